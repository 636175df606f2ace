"""The engines of one connected manager: read-write, read-only, and their variants by isolation level."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from core.database.connection._fork import abandon_pool
from core.database.engine import BROKER, DatabaseUrl, EngineOptions, build_engine
from core.database.monitoring import QueryMonitor, get_logger

_MOST_VARIANTS = 200

_log = get_logger()


class Engines:
    """Two pools: `writer` for transactions, `reader` (autocommit) for single reads."""

    def __init__(
        self,
        url: DatabaseUrl,
        options: EngineOptions,
        *,
        monitor: QueryMonitor | None,
        recover: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self._build = functools.partial(build_engine, url, options, monitor=monitor, recover=recover)
        self.writer = self._build()
        self._variants: dict[tuple[bool, str | None, str | None], AsyncEngine] = {(False, None, None): self.writer}

    @functools.cached_property
    def reader(self) -> AsyncEngine:
        """Made when first asked for: an engine takes a millisecond, and a start counts them."""
        return self._build(read_only=True)

    def variant(self, *, read_only: bool, isolation_level: str | None = None, broker: str | None = None) -> AsyncEngine:
        """The read-write pool, whose transactions begin READ ONLY, with the isolation level or as the broker."""
        key = (read_only, isolation_level, broker)
        if key not in self._variants:
            options: dict[str, Any] = {"postgresql_readonly": True} if read_only else {}
            if isolation_level is not None:
                options["isolation_level"] = isolation_level
            if broker is not None:
                options[BROKER] = broker
            if len(self._variants) >= _MOST_VARIANTS:  # a caller that makes up brokers must not fill the memory
                return self.writer.execution_options(**options)
            self._variants[key] = self.writer.execution_options(**options)
        return self._variants[key]

    async def dispose(self, *, timeout: float) -> None:
        """Close every connection, within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                for engine in self.made().values():
                    await engine.dispose()
        except TimeoutError:
            _log.warning("connections did not close in time")

    def abandon(self) -> None:
        """Forget every connection without a word on its socket."""
        for engine in self.made().values():
            abandon_pool(engine)

    def made(self) -> dict[str, AsyncEngine]:
        """The pools by name; the reader's only if it was asked for."""
        made = {"read_write": self.writer}
        return made | {"read_only": self.reader} if "reader" in vars(self) else made
