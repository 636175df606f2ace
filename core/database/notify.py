"""NOTIFY in the caller's transaction, and LISTEN that survives a lost connection.

PostgreSQL keeps no notification for a listener that is away. Whoever follows a channel must therefore read the state anew each
time the connection is made; a `Resync` in the stream says when.
"""

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from core.config.options import Timeouts
from core.database.driver import DriverConnection, listen, probe
from core.database.errors import ConfigurationError, InvalidInput, PandaDatabaseError, SessionMisuse, translate
from core.database.monitoring import get_logger

__all__ = ["Listener", "Notification", "Resync", "notify"]

_LONGEST_PAYLOAD = 7_999  # bytes; PostgreSQL refuses more
_LONGEST_CHANNEL = 63  # bytes; PostgreSQL cuts identifiers there
_NOTIFY = text("SELECT pg_notify(:channel, :payload)")

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Notification:
    """What a transaction that has committed said; `pid` is its server process."""

    channel: str
    payload: str
    pid: int


@dataclass(frozen=True, slots=True)
class Resync:
    """Notifications may have been missed: read the state anew."""

    reason: Literal["connected", "reconnected", "overflow"]


async def notify(session: AsyncSession, channel: str, payload: str = "") -> None:
    """Tell the listeners of `channel` when the caller's transaction commits, and never if it does not.

    Equal notifications of one transaction arrive once. Raises `InvalidInput` for a payload of 8,000 bytes or more: send a
    key, and let the listener read.
    """
    _checked_channel(channel)
    if not _fits(payload, _LONGEST_PAYLOAD):
        raise InvalidInput(f"payload: takes at most {_LONGEST_PAYLOAD:,} bytes of UTF-8 and no NUL", column="payload")
    await session.execute(_NOTIFY, {"channel": channel, "payload": payload})


class Listener:
    """`async with` a `Listener`, then `async for` its events: a `Resync` first and after each break, else `Notification`s.

    It listens on a connection of its own, which it takes from the engine's pool and does not give back: count one more in the
    server's limit. A lost connection is made anew, again and again with growing pauses of at most `backoff_max` seconds, and
    every `heartbeat` seconds a silent one is asked whether it lives. At most `capacity` events wait for a slow consumer; beyond
    that they are dropped and one `Resync("overflow")` takes their place. One consumer at a time.

    Entering raises what the first connection met. Raises `ConfigurationError` behind PgBouncer in transaction mode, which
    carries no notification.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        channels: Sequence[str],
        *,
        heartbeat: float = 10.0,
        backoff: float = 0.05,
        backoff_max: float = 5.0,
        capacity: int = 1_000,
        timeouts: Timeouts | None = None,
    ) -> None:
        if engine.get_execution_options().get("pgbouncer"):
            raise ConfigurationError(
                "PgBouncer in transaction mode carries no notifications",
                hint="Give the listener a manager of its own on the server's direct URL.",
            )
        if not channels:
            raise ConfigurationError("a listener needs a channel")
        self._channels = tuple(_checked_channel(channel) for channel in channels)
        self._engine = engine
        self._heartbeat = heartbeat
        self._backoff = (backoff, backoff_max)
        self._capacity = capacity
        self._timeouts = timeouts or Timeouts()
        self._events: deque[Notification | Resync] = deque()
        self._news = asyncio.Event()
        self._lost = asyncio.Event()
        self._connection: AsyncConnection | None = None
        self._raw: DriverConnection | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.reconnects = 0
        """How often the connection was made anew."""
        self.heard_at: float | None = None
        """`time.monotonic()` when the connection last brought something: a notification, or an answer to the heartbeat."""

    @property
    def connected(self) -> bool:
        """Whether notifications arrive at present, as far as is known."""
        return self._raw is not None and not self._raw.is_closed() and not self._lost.is_set()

    async def __aenter__(self) -> Self:
        if self._keeper is not None:
            raise SessionMisuse("this listener has been entered before; make another")
        await self._connect("connected")
        self._keeper = asyncio.create_task(self._keep(), name=f"listen {','.join(self._channels)}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await self._disconnect()
        self._news.set()

    def __aiter__(self) -> AsyncIterator[Notification | Resync]:
        return self._stream()

    async def _stream(self) -> AsyncIterator[Notification | Resync]:
        while True:
            while self._events:
                yield self._events.popleft()
            if self._keeper is None or self._keeper.done():
                if self._keeper is not None and not self._keeper.cancelled():
                    self._keeper.result()
                return
            self._news.clear()
            await self._news.wait()

    async def _keep(self) -> None:
        """Watch the connection, and make it anew whenever it is gone."""
        try:
            while True:
                await self._until_lost()
                await self._disconnect()
                await self._reconnect()
        finally:
            self._news.set()  # whoever waits for an event learns that none will come

    async def _until_lost(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._heartbeat):
                    await self._lost.wait()
                return
            except TimeoutError:
                if self._raw is None or not await probe(self._raw, timeout=self._timeouts.probe):
                    return
                self.heard_at = time.monotonic()

    async def _reconnect(self) -> None:
        pause, longest = self._backoff
        while True:
            try:
                await self._connect("reconnected")
            except (PandaDatabaseError, SQLAlchemyError, OSError) as error:
                ours = error if isinstance(error, PandaDatabaseError) else translate(error, phase="connect")
                _log.warning("listener is not connected", channels=self._channels, error=type(ours or error).__name__)
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads the clients, guards nothing
                pause = min(pause * 2, longest)
            else:
                self.reconnects += 1
                return

    async def _connect(self, reason: Literal["connected", "reconnected"]) -> None:
        self._lost.clear()
        connection = await self._engine.connect()
        try:
            self._raw = await listen(
                connection,
                self._channels,
                receive=self._receive,
                lost=self._lost.set,
                timeout=self._timeouts.connect,
            )
        except BaseException:  # cancellation too: the connection must not outlive the attempt
            await connection.close()
            raise
        self._connection = connection
        self._put(Resync(reason))

    async def _disconnect(self) -> None:
        raw, self._raw = self._raw, None
        connection, self._connection = self._connection, None
        if raw is not None:
            raw.terminate()
        if connection is not None:
            await asyncio.shield(connection.close())

    def _receive(self, channel: str, payload: str, pid: int) -> None:
        self.heard_at = time.monotonic()
        if len(self._events) >= self._capacity:
            self._events.clear()
            self._put(Resync("overflow"))
        else:
            self._put(Notification(channel, payload, pid))

    def _put(self, event: Notification | Resync) -> None:
        self._events.append(event)
        self._news.set()


def _checked_channel(channel: str) -> str:
    if not channel or not _fits(channel, _LONGEST_CHANNEL):
        raise InvalidInput(f"channel: takes 1 to {_LONGEST_CHANNEL} bytes of UTF-8 and no NUL", column="channel")
    return channel


def _fits(value: str, longest: int) -> bool:
    try:
        return "\0" not in value and len(value.encode()) <= longest
    except UnicodeEncodeError:
        return False
