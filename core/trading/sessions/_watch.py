"""A feed of what becomes of sessions, kept up by each process for all."""

import asyncio
import contextlib
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy.exc import SQLAlchemyError

from core.database.connection import DatabaseManager
from core.database.errors import ConfigurationError, PandaDatabaseError, SessionMisuse, translate
from core.database.monitoring import get_logger
from core.database.notify import Listener, Notification, Resync
from core.trading.sessions._events import CHANNEL, SessionEvent, read
from core.trading.sessions._expiry import WARN_BEFORE, ExpiryReport, expire_due
from core.trading.sessions._known import KnownSessions

if TYPE_CHECKING:
    from core.database.metrics import Families

_PAUSES = (0.05, 5.0)
"""Seconds until a round that failed is tried again: the first time, and at the longest."""
_SOONEST = 0.1
"""Seconds until the next round where something is due that somebody else has locked."""

_log = get_logger()


class SessionWatch:
    """`async with` a `SessionWatch`, then `async for` its `SessionOpened`, `SessionRenewed`, `SessionExpiring`, `SessionEnded`.

    It does `expire_due` itself, every `interval` seconds and when the next session expires or is to be told of, by the server's
    clock; any number of processes may, and each hears of all sessions, once of each event, whoever was the cause. A session that
    is about to expire as the watch begins is told at once. What happened while the connection was lost is told when it is back:
    the state is read anew and compared with what is known, so that all but a session that was opened and over within the break is
    heard of. Behind PgBouncer there are no notifications; it compares after every round instead, and events come up to `interval`
    seconds late.

    At most `capacity` events wait for a slow consumer; then the watch waits too, and compares again when it goes on. Entering
    raises what the first reading met. Enter it once. One consumer at a time; it is a source of metrics with and without one.
    """

    def __init__(
        self,
        manager: DatabaseManager,
        *,
        warn_before: timedelta = WARN_BEFORE,
        interval: float = 15.0,
        heartbeat: float = 10.0,
        capacity: int = 10_000,
    ) -> None:
        """`heartbeat` is after how many silent seconds the listening connection is asked whether it lives."""
        if interval <= 0 or capacity < 1:
            raise ConfigurationError("interval must be more than 0 and capacity 1 or more")
        self._manager = manager
        self._warn_before = warn_before
        self._interval = interval
        self._heartbeat = heartbeat
        self._capacity = capacity
        self._known = KnownSessions()
        self._events: deque[SessionEvent] = deque()
        self._news = asyncio.Event()
        self._taken = asyncio.Event()
        self._sooner = asyncio.Event()
        self._rounded = asyncio.Event()
        self._turn = asyncio.Lock()
        """Held from what is read to what is told of it: so no older picture undoes newer news."""
        self._listener: Listener | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._report: ExpiryReport | None = None
        self._reported_at = 0.0
        """By the monotonic clock, when the report's `now` was."""
        self._due: datetime | None = None
        self._expired: Counter[str] = Counter()
        self._warned: Counter[str] = Counter()
        self._error: str | None = None
        self._left = False

    async def __aenter__(self) -> Self:
        if self._report is not None:
            raise SessionMisuse("this watch has been entered before; make another")
        events: AsyncIterator[Notification | Resync] | None = None
        if not self._manager.engine.get_execution_options().get("pgbouncer"):
            self._listener = Listener(self._manager.engine, [CHANNEL], heartbeat=self._heartbeat)
            await self._listener.__aenter__()
            events = aiter(self._listener)
        try:
            if events is not None:
                await anext(events)  # it listens before the first reading, so that nothing falls between the two
            await self._compare()
            await self._round()
        except BaseException:  # cancellation too: the connection must not outlive the attempt
            await self._let_go()
            raise
        self._tasks = [
            asyncio.create_task(self._keep(), name="trading sessions: expire"),
            asyncio.create_task(self._look(), name="trading sessions: compare"),
        ]
        if events is not None:
            self._tasks.append(asyncio.create_task(self._follow(events), name="trading sessions: follow"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._let_go()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionEvent:
        # No generator, which a time limit around one step of it would end for good.
        while not self._events:
            for task in self._tasks:
                if task.done() and not task.cancelled():
                    task.result()
            if self._left:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        self._taken.set()
        return self._events.popleft()

    @property
    def connected(self) -> bool:
        """Whether other processes' events arrive at once, as far as is known."""
        return self._listener is not None and self._listener.connected

    def health(self) -> dict[str, Any]:
        """For `core.database.health.with_parts`: `status` fresh | stale, `connected`, `active`, `next_expiry`, the last `error`.

        It is stale when sessions may expire without a word: no round has succeeded for three intervals, or events of others do
        not arrive though they could. Never raises.
        """
        report = self._report
        running = bool(self._tasks) and not any(task.done() for task in self._tasks)
        late = time.monotonic() - self._reported_at > 3 * self._interval + _PAUSES[1]
        deaf = self._listener is not None and not self._listener.connected
        expiries = [item.next_expiry for item in report.brokers if item.next_expiry] if report else []
        return {
            "status": "fresh" if running and not late and not deaf else "stale",
            "connected": self.connected,
            "active": sum(item.active for item in report.brokers) if report else 0,
            "next_expiry": min(expiries).isoformat() if expiries else None,
            "error": self._failure(),
        }

    def fill(self, families: "Families", database: str) -> None:
        """Its figures for Prometheus: `DatabaseMetrics(manager, sources=[watch])`. Nothing before it is entered."""
        report, now = self._report, self._server_now()
        if report is None or now is None:
            return
        standing = {item.broker: item for item in report.brokers}
        seen = {*self._known.brokers, *self._expired, *self._warned}
        for broker in sorted({*standing, *seen}):
            item = standing.get(broker)
            labels = {"database": database, "broker": broker}
            text = "Trading sessions with a broker that have not ended."
            families.gauge("trading_sessions_active", text, item.active if item else 0, **labels)
            if item is not None and item.next_expiry is not None:
                left = (item.next_expiry - now).total_seconds()
                text = "Time until the first active trading session with a broker expires; below 0 when overdue."
                families.gauge("trading_session_expires_in_seconds", text, left, **labels)
            text = "Trading sessions that this process has ended because they had expired."
            families.counter("trading_sessions_expired_total", text, self._expired[broker], **labels)
            text = "Trading sessions of which this process has told that they are about to expire."
            families.counter("trading_sessions_warned_total", text, self._warned[broker], **labels)

    async def _keep(self) -> None:
        """Round after round, each when it is time."""
        try:
            while True:
                await self._until_due()
                await self._persist(self._round)
        finally:
            self._news.set()

    async def _follow(self, events: AsyncIterator[Notification | Resync]) -> None:
        """One event after the other; after a break a comparison with the database first."""
        try:
            async for event in events:
                if isinstance(event, Resync):
                    await self._persist(self._compare)
                elif (told := read(event.payload)) is not None:
                    await self._hear(told)
        finally:
            self._news.set()

    async def _hear(self, event: SessionEvent) -> None:
        if self._known.misses(event):
            await self._persist(lambda: self._look_up(event.session_id))
        async with self._turn:
            await self._emit(self._known.heard(event))
        self._come_sooner(event.expires_at)

    async def _look(self) -> None:
        """Compare after every round where nothing can be heard, else after one that has found what nobody has told of."""
        try:
            while True:
                await self._rounded.wait()
                self._rounded.clear()
                await self._persist(self._compare)
        finally:
            self._news.set()

    async def _round(self) -> None:
        report = await expire_due(self._manager, warn_before=self._warn_before)
        self._report, self._reported_at, self._error = report, time.monotonic(), None
        self._due = report.next_due
        self._expired.update(event.broker for event in report.expired)
        self._warned.update(event.broker for event in report.warned)
        if self._listener is None or self._known.differs(report.brokers):
            self._rounded.set()

    async def _compare(self) -> None:
        async with self._turn:
            async with self._manager.get_session() as session:
                events = await self._known.compared(session)
            await self._emit(events)

    async def _look_up(self, session_id: str) -> None:
        async with self._turn:
            async with self._manager.get_session() as session:
                events = await self._known.looked_up(session, session_id)
            await self._emit(events)

    async def _persist(self, work: Any) -> None:
        """Until it succeeds, however long the database is away."""
        pause, longest = _PAUSES
        while True:
            try:
                await work()
                return
            except (PandaDatabaseError, SQLAlchemyError, OSError) as error:
                ours = error if isinstance(error, PandaDatabaseError) else translate(error, phase="connect")
                self._error = f"{type(ours).__name__}: {ours}" if ours else type(error).__name__
                _log.warning("trading sessions could not be looked after", error=type(ours or error).__name__)
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads the clients, guards nothing
            pause = min(pause * 2, longest)

    async def _until_due(self) -> None:
        until = time.monotonic() + self._interval * random.uniform(0.8, 1.2)  # noqa: S311 - as above
        while True:
            self._sooner.clear()
            now, at = self._server_now(), until
            if self._due is not None and now is not None:
                left = (self._due - now).total_seconds()
                at = min(until, time.monotonic() + (left if left > 0 else _SOONEST))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + at - time.monotonic()):
                    await self._sooner.wait()
                continue
            return

    def _come_sooner(self, expires_at: datetime | None) -> None:
        """Somebody has opened or renewed a session: it may be due before all others."""
        if expires_at is None:
            return
        now = self._server_now()
        is_far = now is None or expires_at - now > self._warn_before
        due = expires_at - self._warn_before if is_far else expires_at
        if self._due is None or due < self._due:
            self._due = due
            self._sooner.set()

    async def _emit(self, events: list[SessionEvent]) -> None:
        for event in events:
            while len(self._events) >= self._capacity:
                self._taken.clear()
                await self._taken.wait()
            self._events.append(event)
            self._news.set()

    def _server_now(self) -> datetime | None:
        """By the server's clock, whatever this machine's says: the report's, and the time since."""
        if self._report is None:
            return None
        return self._report.now + timedelta(seconds=time.monotonic() - self._reported_at)

    def _failure(self) -> str | None:
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                return type(error).__name__
        return self._error

    async def _let_go(self) -> None:
        self._left = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            await self._listener.__aexit__(None, None, None)
        self._news.set()
