"""What stands behind a SnapshotWriter: one task that sends batch after batch and answers every row."""

import asyncio
import copy
from collections import Counter, deque
from collections.abc import Callable, Sequence

from core.database.connection import DatabaseManager
from core.database.errors import (
    CommitOutcomeUnknown,
    IntegrityViolation,
    InvalidInput,
    PandaDatabaseError,
    ServerFault,
    WriterClosed,
)
from core.database.monitoring import get_logger
from core.trading.portfolios._answers import ENDED, NOT_REACHED, UNHEARD, in_doubt, never_sent, refuse, unanswered
from core.trading.portfolios._batch import Row, insert, look_up
from core.trading.portfolios._lane import Lane, is_passing, pause_after

_LARGEST = (
    4_000_000  # characters of positions in one batch, so that its statement stays small beside the server's memory
)

_log = get_logger()


class Sender:
    """Rows are `put`, and their futures answered. `run` is the task; `ended` must be called when it is done."""

    def __init__(self, manager: DatabaseManager, *, max_batch: int, wanted: Callable[[], bool]) -> None:
        """`wanted` tells whether further rows may come; `news` is to be set when it changes."""
        self.lane = Lane(manager)
        self.news = asyncio.Event()
        self.counts: Counter[str] = Counter()
        """Of `added`, `present`, `batches`, `retries`."""
        self.trouble: PandaDatabaseError | None = None
        """Why the attempt before failed; None after one that did not."""
        self.last_error: str | None = None
        self._max_batch = max_batch
        self._wanted = wanted
        self._queue: deque[Row] = deque()
        self._batch: Sequence[Row] = ()
        self._on_wire: Sequence[Row] = ()
        self._failures = 0
        self._sending = False
        self._lent = False
        self._over = False
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Nothing is waiting or on its way, and there is a connection to send the next row on."""
        return not (self._lent or self._sending or self._queue or self._over) and self.lane.ready is not None

    async def alone(self, row: Row) -> bool:
        """Send a row from its caller's own task, when the sender is `idle`: nobody needs to be woken for it.

        Who comes meanwhile is queued. A row that is to be tried again is queued too, before them. A caller who is cancelled
        ends the connection and no other row.
        """
        self._lent = True
        try:
            found = await self._try(row)
        finally:
            self._lent = False
            if self._queue:
                self.news.set()
        if found is not None:
            return found
        self._queue_first(row)
        return await row.future

    async def _try(self, row: Row) -> bool | None:
        """Whether it was added, or None if it is to be tried again. Raises what is its caller's."""
        connection = self.lane.ready
        timeout = min(self.lane.limit, row.due - row.future.get_loop().time())
        if connection is None or timeout <= 0:
            return None
        try:
            if not await insert(connection, (row,), timeout=timeout):
                self.counts["batches"] += 1
                self.counts["added"] += 1
                self._failures, self.trouble = 0, None
                return True
            (reason,) = await look_up(connection, (row,), timeout=timeout)
        except PandaDatabaseError as error:
            reason = error
        if reason is None:
            self.counts["present"] += 1
            return False
        self.last_error = type(reason).__name__
        row.in_doubt = isinstance(reason, CommitOutcomeUnknown)
        if not is_passing(reason):
            raise reason
        if self._over or row.due <= row.future.get_loop().time():
            raise self._outcome(row, reason) from reason
        self._note(reason, 1)
        await self.lane.recover(reason)
        return None

    def _outcome(self, row: Row, reason: PandaDatabaseError) -> PandaDatabaseError:
        if row.in_doubt:
            return in_doubt(reason.message)
        return WriterClosed(NOT_REACHED) if self._over else never_sent(reason)

    def put(self, row: Row) -> None:
        self._queue.append(row)
        self._announce(row)

    def _queue_first(self, row: Row) -> None:
        if self._over:
            raise in_doubt(ENDED) if row.in_doubt else WriterClosed(NOT_REACHED)
        self._queue.appendleft(row)
        self._announce(row)

    def _announce(self, row: Row) -> None:
        if self._alarm is not None and self._alarm.when() > row.due:
            self._alarm.cancel()
            self._alarm = None
        if self._alarm is None:
            self._alarm = row.future.get_loop().call_at(row.due, self._expire)
        self.news.set()

    def withdraw(self, row: Row) -> None:
        """Forget a row whose caller was cancelled, if no batch has taken it."""
        if row in self._queue:
            self._queue.remove(row)

    async def run(self) -> None:
        """Until no more rows are wanted."""
        try:
            while self._wanted():
                if self._lent or not self._queue:
                    self.news.clear()
                    await self.news.wait()
                    continue
                self._batch = self._take()
                self._sending = True
                await self._send(self._batch)
                self._sending = False
                self._batch = ()
                # Those just answered write their next rows first, and so share the next batch.
                await asyncio.sleep(0)
        finally:
            await self.lane.release()

    def ended(self, run: "asyncio.Task[None]") -> None:
        """Nobody is left waiting, whatever ended the run."""
        self._over = True
        if self._alarm is not None:
            self._alarm.cancel()
        fault = None if run.cancelled() else run.exception()
        if fault is not None:
            self.last_error = type(fault).__name__
            _log.error("snapshot writer failed", error=self.last_error)
        for row in (*self._batch, *self._queue):
            if self._in_doubt(row):
                refuse(row, in_doubt(ENDED), cause=fault)
            elif fault is not None:
                refuse(row, ServerFault(f"the snapshot writer failed ({type(fault).__name__})"), cause=fault)
            else:
                refuse(row, WriterClosed(NOT_REACHED))
        self._queue.clear()
        self._batch = self._on_wire = ()

    def _take(self) -> list[Row]:
        """The next batch: in order, each key once; the second row of a key waits for the next."""
        batch: dict[object, Row] = {}
        later: list[Row] = []
        size = 0
        while self._queue and len(batch) < self._max_batch and size < _LARGEST:
            row = self._queue.popleft()
            if row.future.done():
                continue
            if row.key in batch:
                later.append(row)
                continue
            batch[row.key] = row
            size += len(row.values[3])
        self._queue.extendleft(reversed(later))
        return list(batch.values())

    async def _send(self, rows: Sequence[Row]) -> None:
        """Have each row answered, or put back to be tried again."""
        rows = unanswered(rows)
        if not rows:
            return
        try:
            connection = await self.lane.connect()
            rows = unanswered(rows)  # making the connection may have taken longer than some had
            if not rows:
                return
            self._on_wire = rows
            left_out = await insert(connection, rows, timeout=self.lane.limit)
            self._on_wire = ()
            self._stored(rows, left_out)
            reasons = await look_up(connection, left_out, timeout=self.lane.limit) if left_out else ()
        except PandaDatabaseError as error:
            self._on_wire = ()
            await self._failed(unanswered(rows), error)
        else:
            self._failures, self.trouble = 0, None
            if left_out:
                await self._not_added(left_out, reasons)

    def _stored(self, rows: Sequence[Row], left_out: Sequence[Row]) -> None:
        if len(left_out) < len(rows):
            self.counts["batches"] += 1
            self.counts["added"] += len(rows) - len(left_out)
        without = set(left_out)
        for row in rows:
            if row not in without and not row.future.done():
                row.future.set_result(True)

    async def _not_added(self, rows: Sequence[Row], reasons: Sequence[PandaDatabaseError | None]) -> None:
        again: list[Row] = []
        for row, reason in zip(rows, reasons, strict=True):
            if reason is None:
                self.counts["present"] += 1
                if not row.future.done():
                    row.future.set_result(False)
            elif reason.retryable:
                self.trouble = reason
                again.append(row)
            else:
                refuse(row, reason)
        if again and self.trouble is not None:
            await self._again(again, self.trouble)

    async def _failed(self, rows: Sequence[Row], error: PandaDatabaseError) -> None:
        self.last_error = type(error).__name__
        if isinstance(error, CommitOutcomeUnknown):
            for row in rows:
                row.in_doubt = True
        if is_passing(error):
            await self._again(rows, error)
        elif isinstance(error, (IntegrityViolation, InvalidInput)) and len(rows) > 1:
            half = len(rows) // 2
            await self._send(rows[:half])
            await self._send(rows[half:])
        else:
            for row in rows:
                refuse(row, copy.copy(error), cause=error)

    async def _again(self, rows: Sequence[Row], error: PandaDatabaseError) -> None:
        """Put rows back to the front of the queue, and wait a little."""
        self._note(error, len(rows))
        self._queue.extendleft(reversed(rows))
        self._batch = ()
        await self.lane.recover(error)
        await asyncio.sleep(pause_after(self._failures))

    def _note(self, error: PandaDatabaseError, rows: int) -> None:
        self.trouble = error
        self._failures += 1
        self.counts["retries"] += 1
        if self._failures == 1:
            _log.warning("snapshot writer tries again", error=type(error).__name__, rows=rows)

    def _expire(self) -> None:
        """Answer those whose time is up, and come again for the next."""
        self._alarm = None
        waiting = unanswered((*self._batch, *self._queue))
        if not waiting:
            return
        loop = waiting[0].future.get_loop()
        now = loop.time()
        for row in waiting:
            if row.due > now:
                continue
            if self._in_doubt(row):
                refuse(row, in_doubt(UNHEARD), cause=self.trouble)
            else:
                refuse(row, never_sent(self.trouble), cause=self.trouble)
        due = min((row.due for row in waiting if row.due > now), default=None)
        if due is not None:
            self._alarm = loop.call_at(due, self._expire)

    def _in_doubt(self, row: Row) -> bool:
        return row.in_doubt or row in self._on_wire
