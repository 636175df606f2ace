"""SnapshotWriter: many tasks write single snapshots, one commit serves them all."""

import asyncio
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from core.database.connection import DatabaseManager
from core.database.errors import (
    ConfigurationError,
    InvalidInput,
    PandaDatabaseError,
    PartitionMissing,
    WriterClosed,
    WrongEventLoop,
)
from core.database.records import PortfolioSnapshotCreate
from core.trading.portfolios._answers import never_sent
from core.trading.portfolios._batch import Row
from core.trading.portfolios._months import Months
from core.trading.portfolios._sender import Sender

_DAY = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterStatistics:
    """What a writer has done since it was made, and what it has before it."""

    added: int
    """Rows stored."""
    present: int
    """Rows that were there already, the same to the last digit."""
    refused: int
    """Rows whose callers got an error."""
    batches: int
    """Commits: `added / batches` rows share one."""
    retries: int
    """Attempts that failed and whose rows were tried again."""
    pending: int
    """Calls of `write` under way."""
    last_error: str | None
    """The class of the last error of an attempt or a row."""


class SnapshotWriter:
    """`async with SnapshotWriter(manager) as writer:`, then `await writer.write(snapshot)` from any number of tasks.

    `write` returns when its row is durable, whatever synchronous_commit is set to: rows that arrive while a batch is being
    committed make up the next one, so that a commit serves as many as there are, and nobody waits for a batch to fill.

    `connections` of the manager's pool are held meanwhile: with two, one batch is made up while another is committed. A month's
    first row takes one more for a moment, to make its partition. `max_batch` rows go into one statement. `max_pending` rows may wait or be under way; further calls of `write` wait for room.
    `deadline` seconds after `write` was called its caller has an answer in any case. `close` gives what it finds `flush` seconds
    to be stored. Raises `ConfigurationError` for limits that make no sense.
    """

    def __init__(
        self,
        manager: DatabaseManager,
        *,
        connections: int = 2,
        max_batch: int = 512,
        max_pending: int = 8_192,
        deadline: float = 30.0,
        flush: float = 10.0,
    ) -> None:
        if (
            not 1 <= connections <= 64
            or not 1 <= max_batch <= max_pending
            or not 0 < deadline <= _DAY
            or not 0 < flush <= _DAY
        ):
            raise ConfigurationError(
                "a snapshot writer takes 1 to 64 connections, 1 <= max_batch <= max_pending, and seconds above 0 for deadline"
                " and flush"
            )
        self._manager = manager
        self._senders = [Sender(manager, max_batch=max_batch, wanted=self._wanted) for _ in range(connections)]
        self._months = Months(manager)
        self._room = asyncio.Semaphore(max_pending)
        self._deadline = deadline
        self._flush = flush
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False
        self._lone: object = None
        self._pending = 0
        self._refused = 0

    @property
    def statistics(self) -> WriterStatistics:
        """At this moment; cheap, and from any thread."""
        counts: Counter[str] = Counter()
        for sender in self._senders:
            counts.update(sender.counts)
        return WriterStatistics(
            added=counts["added"],
            present=counts["present"],
            refused=self._refused,
            batches=counts["batches"],
            retries=counts["retries"],
            pending=self._pending,
            last_error=self._last_error(),
        )

    async def __aenter__(self) -> Self:
        """Connect. Raises what that meets, and `WriterClosed` for a writer that was entered before."""
        if self._loop is not None or self._closing:
            raise WriterClosed("this snapshot writer has been entered before; make another")
        self._loop = asyncio.get_running_loop()
        await self._senders[0].lane.connect()  # the others when there is something for them to do
        for sender in self._senders:
            task = self._loop.create_task(sender.run(), name="snapshot writer")
            task.add_done_callback(sender.ended)
            self._tasks.append(task)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def write(self, snapshot: PortfolioSnapshotCreate) -> bool:
        """Store one snapshot, durably; False if it was there already, to the last digit.

        Raises, for this row alone: `SnapshotConflict` (another of that portfolio and time is there), `ForeignKeyViolation` (no
        such portfolio with that broker), `InvalidInput`, `CheckViolation`, or what making the month's partition met. After
        trying again until the deadline: `CommitOutcomeUnknown` (sent, no answer: to write the same snapshot again is safe), the
        connection's error or `WriterOverloaded` (not sent: nothing is stored). `WriterClosed` and the manager's own errors at
        once.

        The row of a cancelled call is not stored if it was not sent, else whole or not at all; no other row is touched by that.
        Calls with the same key are served in their order. After an answer that was lost, a row that this very call has stored
        may be found there by it: False then too.
        """
        loop = self._check()
        self._pending += 1
        try:
            return await self._write(loop, snapshot, loop.time() + self._deadline)
        except PandaDatabaseError as error:
            self._refused += 1
            self._senders[0].last_error = type(error).__name__
            raise
        finally:
            self._pending -= 1
            if self._closing:
                self._wake()

    async def close(self) -> None:
        """Store what has been given, within `flush` seconds; what is left then fails.

        Its callers get `WriterClosed` (nothing stored) or `CommitOutcomeUnknown`. Safe to call twice. Raises `WrongEventLoop`.
        """
        self._closing = True
        if not self._tasks:
            return
        if self._loop is not asyncio.get_running_loop():
            raise WrongEventLoop("this snapshot writer belongs to another event loop")
        self._wake()
        try:
            await asyncio.wait(self._tasks, timeout=self._flush)
        finally:  # cancelled too: what stands behind it does not outlive a writer
            self._months.stop()
            for task in self._tasks:
                task.cancel()
        await asyncio.wait(self._tasks)

    def _wake(self) -> None:
        for sender in self._senders:
            sender.news.set()

    def _wanted(self) -> bool:
        return self._pending > 0 or not self._closing

    def _check(self) -> asyncio.AbstractEventLoop:
        self._manager.engine  # noqa: B018 - raises in a forked child, on another loop, and once the manager is closed
        if self._loop is None or not self._tasks:
            raise WriterClosed("the snapshot writer is not open", hint="Use it within `async with`.")
        if self._closing:
            raise WriterClosed("the snapshot writer is closed")
        return self._loop

    async def _write(self, loop: asyncio.AbstractEventLoop, snapshot: PortfolioSnapshotCreate, due: float) -> bool:
        if type(snapshot) is not PortfolioSnapshotCreate:
            raise InvalidInput(f"takes a PortfolioSnapshotCreate, not {type(snapshot).__name__}")
        if snapshot.positions.root:
            snapshot.check_equity()
        if not self._room.locked():
            await self._room.acquire()
        else:
            await self._in_time(self._room.acquire(), due)
        try:
            return await self._placed(loop, snapshot, due)
        finally:
            self._room.release()

    async def _placed(self, loop: asyncio.AbstractEventLoop, snapshot: PortfolioSnapshotCreate, due: float) -> bool:
        """Hand a row to the sender once its month is there."""
        time = snapshot.snapshot_time
        while True:
            made_now = not self._months.knows(time)
            if made_now:
                await self._in_time(self._months.ensure(time, due), due)
            try:
                return await self._answered(Row(snapshot, loop.create_future(), due))
            except PartitionMissing:
                # It was there once, and has been pruned since. If this very call has made it, that is beyond us.
                self._months.forget(time)
                if made_now:
                    raise

    async def _in_time(self, work: Awaitable[object], due: float) -> None:
        try:
            async with asyncio.timeout_at(due):
                await work
        except TimeoutError:
            trouble = next((sender.trouble for sender in self._senders if sender.trouble is not None), None)
            raise never_sent(trouble) from trouble

    async def _answered(self, row: Row) -> bool:
        # By key, so that the second row of a key comes after the first. Alone it need not change connections; while others
        # are about, its key stays with the connection that it was given when it was alone.
        if self._pending == 1:
            self._lone = row.key
        place = 0 if row.key == self._lone else hash(row.key) % len(self._senders)
        sender = self._senders[place]
        if self._tasks[place].done():
            raise WriterClosed("the snapshot writer was closed before it came to this row")
        try:
            if self._pending == 1 and sender.idle:
                return await sender.alone(row)
            sender.put(row)
            return await row.future
        except asyncio.CancelledError:
            sender.withdraw(row)
            raise

    def _last_error(self) -> str | None:
        return next((sender.last_error for sender in self._senders if sender.last_error is not None), None)
