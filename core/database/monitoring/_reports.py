"""What one connection and one pool report to the monitor."""

import asyncio
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from contextvars import copy_context
from math import inf
from typing import TYPE_CHECKING

from core.database.errors import translate
from core.database.monitoring._events import CheckoutEvent, CheckoutResult, QueryEvent, Server, TransactionOutcome
from core.database.monitoring._literals import without_literals
from core.database.monitoring._log import get_logger
from core.database.monitoring._statements import OTHER
from core.database.monitoring._statistics import BOUNDS, Tally

if TYPE_CHECKING:
    from core.database.monitoring._monitor import QueryMonitor

_LOGGED_CHARACTERS = 2_000

_log = get_logger()


class ConnectionMonitor:
    """What one connection reports: its statements, and how its transactions end."""

    __slots__ = ("_began", "_bulk", "_monitor", "_reading", "_slow", "cancelled", "closed", "read_only", "server")

    def __init__(self, monitor: "QueryMonitor", *, read_only: bool = False, server: Server | None = None) -> None:
        self.read_only = read_only
        self.server = server
        self.closed: Callable[[], bool] = _never
        """Whether the connection is gone, which makes of any error a lost connection."""
        self._monitor = monitor
        self._slow = monitor.options.slow_query or inf
        self._began = 0.0
        self._reading = False
        self._bulk = False
        self.cancelled = False
        """Whether a task was cancelled that had the transaction open."""

    def statement(self, statement: str, seconds: float, error: BaseException | None) -> None:
        """Count one run. Never raises for what a hook does."""
        monitor = self._monitor
        tallies = monitor.tallies
        tally = tallies.get(statement)
        if tally is None:
            tally = monitor.new_tally(statement)
        else:
            try:
                tallies.move_to_end(statement)
            except KeyError:  # another thread has just called reset()
                pass
        if tally.is_copy:
            self._bulk = True
        # As Tally.add, without the call: this runs with every statement.
        tally.count += 1
        tally.total += seconds
        if seconds > tally.longest:  # noqa: PLR1730 - a call of max() takes as long as all the rest
            tally.longest = seconds
        tally.buckets[bisect_left(BOUNDS, seconds)] += 1
        failure = None if error is None else self._failed(tally, statement, error)
        slow = seconds >= self._slow and self._note_slow(statement, seconds)
        listeners = monitor.listeners[QueryEvent]
        if listeners:
            name, state = (None, None) if error is None else (type(error).__name__, getattr(error, "sqlstate", None))
            fields = (statement, seconds, name, state, self.read_only, failure, slow, self.server)
            item = (QueryEvent, fields, time.perf_counter(), copy_context())
            for delivery in listeners:
                delivery.put(item)

    def begun(self, statement: str) -> None:
        """BEGIN has been answered."""
        self._began = time.perf_counter()
        self._reading = "READ ONLY" in statement
        self.cancelled = False
        self._bulk = False

    def ended(self, outcome: TransactionOutcome) -> None:
        """The transaction is over; nothing happens when none was open. A roll-back after a cancellation is `cancelled`."""
        if not self._began:
            return
        seconds = time.perf_counter() - self._began
        self._began = 0.0
        if self.cancelled and outcome in ("rolled_back", "aborted"):
            outcome = "cancelled"
        self._monitor.transaction_ended(outcome, seconds, read_only=self._reading)

    def refused(self, failure: str) -> None:
        """An error of ours that no statement caused."""
        self._monitor.errors[failure] += 1

    def _failed(self, tally: Tally, statement: str, error: BaseException) -> str | None:
        tally.errors += 1
        if isinstance(error, asyncio.CancelledError):
            self.cancelled = True
            self._monitor.cancelled += 1
            return None
        phase = "commit" if statement == "COMMIT" else "statement"
        reading = self.read_only or (self._reading and self._began > 0)
        ours = translate(error, phase=phase, read_only=reading, disconnected=self.closed())
        self._monitor.errors[type(ours).__name__ if ours is not None else OTHER] += 1
        return type(ours).__name__ if ours is not None else None

    def _note_slow(self, statement: str, seconds: float) -> bool:
        """Log it, unless it belongs to bulk work, which has a limit of its own: COPY, and what follows in its transaction."""
        if self._bulk and seconds < (self._monitor.options.slow_bulk or inf):
            return False
        self._monitor.slow += 1
        shown = without_literals(statement)[:_LOGGED_CHARACTERS]
        _log.warning("slow query", statement=shown, seconds=round(seconds, 6), read_only=self.read_only)
        return True


class PoolMonitor:
    """How long connections were waited for, and what became of it."""

    __slots__ = ("_monitor", "name", "refusals", "taken", "waiting")

    def __init__(self, monitor: "QueryMonitor", name: str) -> None:
        self._monitor = monitor
        self.name = name
        self.taken = Tally()
        self.refusals: Counter[CheckoutResult] = Counter()
        self.waiting = 0
        """Tasks that wait for a connection at this moment."""

    def given(self, seconds: float) -> None:
        """A connection was handed out."""
        self.taken.add(seconds)
        if self._monitor.listeners[CheckoutEvent]:
            self._monitor.tell(CheckoutEvent, self.name, seconds, "ok", None)

    def refused(self, seconds: float, error: BaseException) -> None:
        """None was."""
        result: CheckoutResult = "cancelled"
        failure: str | None = None
        if not isinstance(error, asyncio.CancelledError):
            ours = translate(error, phase="connect")
            failure = type(ours).__name__ if ours is not None else None
            result = "exhausted" if failure == "PoolExhausted" else "failed"
            self._monitor.errors[failure or OTHER] += 1
        self.refusals[result] += 1
        if self._monitor.listeners[CheckoutEvent]:
            self._monitor.tell(CheckoutEvent, self.name, seconds, result, failure)


def _never() -> bool:
    return False
