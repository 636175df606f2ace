"""From a place to engines that are ready, and back: one attempt at a time, one event loop, one process."""

import asyncio

from core.config.options import SchemaManagement
from core.database import schema
from core.database.connection._engines import Engines
from core.database.connection._fork import forget_after_fork
from core.database.connection._place import Place
from core.database.connection._startup import hold_ring, reach
from core.database.encryption import KeyRing, refuse_guessed_keys
from core.database.engine import DatabaseUrl, EngineOptions, refuse_guessed, tls_mode
from core.database.errors import ForkedProcess, ManagerNotConnected, WrongEventLoop
from core.database.monitoring import QueryMonitor, get_logger

_LAST_EVENTS = 1.0  # seconds that close() gives hooks to be told what is still in their queues

_log = get_logger()


class Lifecycle:
    """The engines of one manager between `connect` and `close`. What cannot work is refused at construction."""

    def __init__(
        self,
        db_url: str,
        options: EngineOptions,
        *,
        mode: SchemaManagement,
        verify: bool,
        ring: KeyRing | None,
        monitor: QueryMonitor,
        monitored: bool,
    ) -> None:
        """`monitor` is told of statements only if `monitored`, and waited for in any case."""
        if ring is not None:
            refuse_guessed_keys(ring, options.environment)
        self.place = Place(db_url)
        if (url := self.place.url) is not None:
            tls_mode(url, options.tls, options.environment)
            refuse_guessed(url, options.environment)
        self.engines: Engines | None = None
        """Those that sessions may use: None before `connect` is done, and after `close`."""
        self.warnings: list[str] = []
        """Of the last `connect`."""
        self._options = options
        self._mode: SchemaManagement = mode
        self._verify = verify
        self._ring = ring
        self._monitor = monitor
        self._monitored = monitored
        self._made: Engines | None = None
        """Those with connections to close."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connecting: asyncio.Lock | None = None
        self._closings = 0
        self._forked = False
        forget_after_fork(self, Lifecycle._abandon)

    def check(self) -> Engines:
        """The engines, or a `SessionMisuse` where this process and event loop have none."""
        if self._forked:
            raise ForkedProcess("this manager was connected before the process forked")
        if self.engines is None:
            raise ManagerNotConnected("this manager is not connected")
        if asyncio.get_running_loop() is not self._loop:
            raise WrongEventLoop("this manager was connected on another event loop")
        return self.engines

    async def connect(self) -> None:
        """As `DatabaseManager.connect`: one caller at a time, nothing if it is done, nothing left open by a failure."""
        if self._connecting is None:
            self._connecting = asyncio.Lock()
        async with self._connecting:
            if self.engines is not None and not self._forked:
                self.check()
                return
            self._forked, self.engines = False, None
            self._loop = asyncio.get_running_loop()
            closings = self._closings
            url = await self.place.reach()
            monitor = self._monitor if self._monitored else None
            recover = self.place.restart if self.place.built_in else None
            engines = self._made = Engines(url, self._options, monitor=monitor, recover=recover)
            try:
                await self._prepare(engines, url)
                if self._closings != closings:
                    raise ManagerNotConnected("this manager was closed while it was connecting")
            except BaseException:  # cancellation too: whatever ends the attempt, no connection outlives it
                self._made = engines  # which close() may have closed before the last of them was made
                await self.close()
                raise
            self.engines = engines

    async def _prepare(self, engines: Engines, url: DatabaseUrl) -> None:
        self.warnings = await reach(engines.writer, url, self._options)
        for warning in self.warnings:
            _log.warning(warning)
        await schema.prepare(
            engines.writer,
            mode=self._mode,
            environment=self._options.environment,
            verify=self._verify,
            timeouts=self._options.timeouts,
        )
        if self._ring is not None:
            missing = await hold_ring(engines.writer, self._ring)
            self.warnings += missing
            for warning in missing:
                _log.warning(warning)

    async def close(self) -> None:
        """Close every connection, tell hooks what is left, and let go of the built-in server. Safe to call twice."""
        self._closings += 1
        made, self._made, self.engines = self._made, None, None
        if made is not None and self._loop is asyncio.get_running_loop():
            await made.dispose(timeout=self._options.timeouts.cleanup)
            await self._monitor.drained(_LAST_EVENTS)
        await self.place.leave()

    def _abandon(self) -> None:
        """Forget, in the child of a fork, what belongs to the parent; `connect()` then starts anew."""
        if self._made is not None:
            self._forked = True
            self._made.abandon()
        self.place.forget_threads()
        self._connecting = None
