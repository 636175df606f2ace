"""The whole master in this process, kept as it is in the database."""

import asyncio
import json
import random
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import polars as pl
from sqlalchemy.exc import SQLAlchemyError

from core.database.connection import DatabaseManager
from core.database.errors import PandaDatabaseError, SessionMisuse, translate
from core.database.monitoring import get_logger
from core.database.notify import Listener, Notification
from core.trading.instruments._cached import CachedInstrument, Master, Row
from core.trading.instruments._frame import frame
from core.trading.instruments._journal import CHANNEL

if TYPE_CHECKING:
    from core.database.metrics import Families

_PAUSES = (0.05, 5.0)
"""Seconds until a reading that failed is tried again: the first time, and at the longest."""

_log = get_logger()


class InstrumentCache:
    """`async with` an `InstrumentCache`: the master by token and by symbol, without asking the database.

    Entering reads the master by COPY and raises what that met. From then on a load, in whatever process, has it read anew: in
    a thread, while the master before it goes on serving; then the two change places at once. While the database is away the
    last master serves and `stale` says so. Objects are values that never change: what was handed out stays as it was.

    It follows loads by NOTIFY on a connection of its own (`Listener`), so the manager must be on the server's direct URL;
    behind PgBouncer it raises `ConfigurationError`. What others write into the table by SQL of their own is not seen before
    the next load, or `refresh`. Enter it once; lookups are for any task and thread.
    """

    def __init__(
        self,
        manager: DatabaseManager,
        *,
        source: str | None = None,
        active_only: bool = True,
        heartbeat: float = 10.0,
    ) -> None:
        """`heartbeat` is after how many silent seconds the listening connection is asked whether it lives."""
        self._manager = manager
        self._source = source
        self._active_only = active_only
        self._heartbeat = heartbeat
        self._master: Master | None = None
        self._generation = 0
        self._wanted = 0
        """Counts what has asked for a reading; `_read` is how far readings have followed."""
        self._read = 0
        self._read_at = 0.0
        self._doubted_at: float | None = None
        """Once the database may hold another master: until when it was known not to. By the monotonic clock, as `_read_at`."""
        self._news = asyncio.Event()
        self._settled = asyncio.Condition()
        self._error: str | None = None
        self._listener: Listener | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        if self._listener is not None:
            raise SessionMisuse("this cache has been entered before; make another")
        self._listener = Listener(self._manager.engine, [CHANNEL], heartbeat=self._heartbeat)
        await self._listener.__aenter__()
        try:
            events = aiter(self._listener)
            await anext(events)  # it listens before the first reading, so that no load falls between the two
            await self._reload()
        except BaseException:  # cancellation too: the connection must not outlive the attempt
            await self._listener.__aexit__(None, None, None)
            raise
        self._tasks = [
            asyncio.create_task(self._follow(events), name="instrument cache: listen"),
            asyncio.create_task(self._keep(), name="instrument cache: read"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            await self._listener.__aexit__(kind, error, trace)

    def __len__(self) -> int:
        return len(self._now.rows)

    def get(self, instrument_token: int) -> CachedInstrument | None:
        """The instrument of that token."""
        master = self._master or self._now
        return master.made.get(instrument_token) or master.make(instrument_token)

    def by_symbol(self, exchange: str, trading_symbol: str, *, source: str | None = None) -> CachedInstrument | None:
        """The instrument of that symbol, the one that `instruments.by_symbol` finds."""
        return self._now.by_symbol(exchange, trading_symbol, source)

    @property
    def frame(self) -> pl.DataFrame:
        """The same rows as a frame, in no particular order."""
        return self._now.frame

    @property
    def loaded_at(self) -> datetime:
        """When the master that serves was read."""
        return self._now.loaded_at

    @property
    def generation(self) -> int:
        """How many masters have served; it grows with each reading."""
        return self._generation

    @property
    def age(self) -> float:
        """Seconds since the master that serves was read. Old is not stale: it is read when it has changed."""
        return max(0.0, (datetime.now(UTC) - self._now.loaded_at).total_seconds())

    @property
    def connected(self) -> bool:
        """Whether news of a load would arrive, as far as is known."""
        return self._listener is not None and self._listener.connected

    @property
    def stale(self) -> bool:
        """Whether the database may hold another master than the one that serves."""
        followed = bool(self._tasks) and not any(task.done() for task in self._tasks)
        return not (followed and self.connected and self._read == self._wanted)

    @property
    def verified_age(self) -> float:
        """Seconds since the master that serves was last known to be the database's: it was read, or the connection that would
        have brought the news of a load answered. While nothing is wrong it stays below `heartbeat`.
        """
        _ = self._now
        return max(0.0, time.monotonic() - (self._verified_at() if self._doubted_at is None else self._doubted_at))

    def health(self) -> dict[str, Any]:
        """For `core.database.health.with_parts`: `status` fresh | stale, `connected`, `generation`, `rows`, `loaded_at`, `age`
        and `verified_age` in seconds, and the last `error`. Never raises.
        """
        master = self._master
        return {
            "status": "stale" if self.stale else "fresh",
            "connected": self.connected,
            "generation": self._generation,
            "rows": len(master.rows) if master else 0,
            "loaded_at": master.loaded_at.isoformat() if master else None,
            "age": self.age if master else None,
            "verified_age": self.verified_age if master else None,
            "error": self._failure(),
        }

    def fill(self, families: "Families", database: str) -> None:
        """Its figures for Prometheus: `DatabaseMetrics(manager, sources=[cache])`. Nothing before it is entered."""
        if self._master is None:
            return
        for name, text, value in (
            ("rows", "Instruments in the cache.", len(self)),
            ("generation", "Masters that the cache has served since it was opened.", self._generation),
            ("stale", "Whether the database may hold another master (1) or not (0).", self.stale),
            ("verified_age_seconds", "Time since the master was known to be the database's.", self.verified_age),
        ):
            families.gauge(f"instrument_cache_{name}", text, value, database=database, source=self._source or "")

    async def refresh(self) -> None:
        """Read the master anew and return when it serves. Waits as long as the database is away; bound it yourself."""
        if not self._tasks:
            raise SessionMisuse("the cache is not entered")
        self._want()
        wanted = self._wanted
        async with self._settled:
            await self._settled.wait_for(lambda: self._read >= wanted)

    @property
    def _now(self) -> Master:
        if self._master is None:
            raise SessionMisuse("the cache is not entered", hint="Use it inside `async with InstrumentCache(manager)`.")
        return self._master

    def _verified_at(self) -> float:
        heard_at = self._listener.heard_at if self._listener is not None else None
        return max(self._read_at, heard_at or 0.0)

    def _want(self) -> None:
        if self._doubted_at is None:
            self._doubted_at = self._verified_at()
        self._wanted += 1
        self._news.set()

    async def _follow(self, events: Any) -> None:
        async for event in events:
            if not isinstance(event, Notification) or self._concerns(event):
                self._want()

    def _concerns(self, event: Notification) -> bool:
        if self._source is None:
            return True
        try:
            return json.loads(event.payload)["source"] == self._source
        except (ValueError, TypeError, KeyError):
            return True  # told by somebody else, in words of their own

    async def _keep(self) -> None:
        pause, longest = _PAUSES
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self._reload()
            except (PandaDatabaseError, SQLAlchemyError, OSError) as error:
                ours = error if isinstance(error, PandaDatabaseError) else translate(error, phase="connect")
                self._error = f"{type(ours).__name__}: {ours}" if ours else type(error).__name__
                _log.warning("the instrument cache could not read the master", error=type(ours or error).__name__)
                self._news.set()
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads the clients, guards nothing
                pause = min(pause * 2, longest)
            else:
                pause = _PAUSES[0]

    async def _reload(self) -> None:
        wanted, began, read_at = self._wanted, time.perf_counter(), time.monotonic()
        async with self._manager.get_session(read_only=True, consistent=True) as session:
            rows = await frame(session, source=self._source, active_only=self._active_only)
        master = await asyncio.to_thread(Master, rows)
        before, self._master = self._master, master
        self._generation += 1
        self._read, self._error, self._read_at = wanted, None, read_at
        self._doubted_at = None if wanted == self._wanted else read_at
        async with self._settled:
            self._settled.notify_all()
        _log.debug("instrument cache read", rows=len(master.rows), seconds=round(time.perf_counter() - began, 3))
        if before is not None:
            rows_before, before = list(before.rows.values()), None
            await asyncio.to_thread(_let_go, rows_before)

    def _failure(self) -> str | None:
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                return type(error).__name__
        return self._error


def _let_go(rows: list[Row]) -> None:
    """Give a master's memory back a little at a time: all at once would stop every thread of the process meanwhile."""
    while rows:
        del rows[-1_000:]
