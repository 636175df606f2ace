"""A database watched from outside of every application."""

import asyncio
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from core.database.connection import DatabaseManager
from core.database.errors import ConfigurationError, PandaDatabaseError
from core.database.health import unhealthy
from core.database.metrics import _registry
from core.database.metrics._families import Families
from core.database.metrics._health import HealthReading
from core.database.metrics._server import ServerReading
from core.database.monitoring import get_logger

_PATIENCE = 10.0  # seconds for connecting, and for all questions about the server

_log = get_logger()


class Exporter:
    """Polls a database and exposes what it says, from now on; one that is away is `up 0` until it is back.

    `open_manager` gives a manager that is not connected, or None while there is nothing to connect to. It is asked again
    whenever the database did not answer, so that what it gives must neither migrate nor start anything.
    """

    def __init__(
        self,
        open_manager: Callable[[], DatabaseManager | None],
        *,
        registry: CollectorRegistry,
        database: str,
        interval: float = 15.0,
    ) -> None:
        self._open_manager = open_manager
        self._registry = registry
        self._database = database
        self._interval = interval
        self._manager: DatabaseManager | None = None
        self._health = HealthReading(max_age=3 * interval + _PATIENCE)
        self._server = ServerReading()
        _registry.add(registry, database, self)

    @property
    def up(self) -> bool:
        """Whether the database answered the last poll."""
        return self._health.up

    async def run(self) -> None:
        """Poll until cancelled, then leave the registry. Raises `ConfigurationError` where no attempt could succeed."""
        try:
            while True:
                await self.poll()
                await asyncio.sleep(self._interval)
        finally:
            _registry.remove(self._registry, self._database, self)
            await self._let_go()

    async def once(self) -> None:
        """Poll once, and leave the answers in the registry."""
        try:
            await self.poll()
        finally:
            await self._let_go()

    async def poll(self) -> None:
        """Ask everything. Raises nothing that a database may do."""
        was_up = self._health.up
        try:
            report = await self._ask()
        except ConfigurationError:
            raise
        except (PandaDatabaseError, TimeoutError) as error:
            report = unhealthy(str(error) or "no answer in time")
        self._health.note(report)
        if report["status"] != "unhealthy":
            return
        self._server.forget()
        if was_up:
            _log.warning("the database does not answer", error=report["error"])
        await self._let_go()

    def fill(self, families: Families, database: str) -> None:
        """Add the last answers; called by the registry, from any thread."""
        self._health.fill(families, database)
        self._server.fill(families, database)

    async def _ask(self) -> dict[str, object]:
        if self._manager is None:
            manager = self._open_manager()
            if manager is None:
                return unhealthy("the server does not run")
            async with asyncio.timeout(_PATIENCE):
                await manager.connect()
            self._manager = manager
        report = await self._manager.health_check()
        if report["status"] != "unhealthy":
            await self._server.read(self._manager, timeout=_PATIENCE)
        return report

    async def _let_go(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            await manager.close()
