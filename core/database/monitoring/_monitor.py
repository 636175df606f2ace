"""QueryMonitor: everything that a manager measures, and the doors through which it is told."""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from threading import Lock
from typing import Any

from core.config.options import MonitoringOptions
from core.database.monitoring._delivery import Delivery
from core.database.monitoring._events import (
    EVENTS,
    Event,
    Hook,
    QueryEvent,
    QueryHook,
    RetryEvent,
    SessionEvent,
    TransactionEvent,
    TransactionOutcome,
)
from core.database.monitoring._log import get_logger
from core.database.monitoring._reports import ConnectionMonitor, PoolMonitor
from core.database.monitoring._statements import operation
from core.database.monitoring._statistics import StatementStatistics, Tally

_log = get_logger()


class QueryMonitor:
    """Receives what the connections, pools and sessions of a manager do; memory is bounded by `options.max_statements`.

    Statistics and counters are kept where the event happens, on the event loop. Hooks are called on threads of their own:
    see `Hook`. Any thread may read.
    """

    def __init__(self, options: MonitoringOptions, hooks: Sequence[QueryHook | Hook] = ()) -> None:
        self.options = options
        self.tallies: OrderedDict[str, Tally] = OrderedDict()
        self.errors: Counter[str] = Counter()
        """Errors by the name of our class."""
        self.retries: Counter[str] = Counter()
        """Retries by the name of the class that caused them."""
        self.cancelled = 0
        """Statements whose task was cancelled."""
        self.slow = 0
        """Statements slower than their limit."""
        self.long_sessions = 0
        self.transactions: dict[TransactionOutcome, Tally] = {}
        self.pools: dict[str, PoolMonitor] = {}
        self.listeners: dict[type[Event], tuple[Delivery, ...]] = {}
        self._folded: dict[str, Tally] = {}
        """By operation: the statements whose own tallies are forgotten."""
        self._lock = Lock()
        self._deliveries: tuple[Delivery, ...] = ()
        self._sort_listeners()
        for hook in hooks:
            self.add_hook(hook)
        self._own = ConnectionMonitor(self)

    def add_hook(self, hook: QueryHook | Hook) -> None:
        """Tell `hook` what happens from now on: a plain function of each statement, a `Hook` of what it names."""
        self._deliveries = (*self._deliveries, Delivery(hook if isinstance(hook, Hook) else Hook(hook, QueryEvent)))
        self._sort_listeners()

    def remove_hook(self, hook: QueryHook | Hook) -> None:
        """Tell it nothing more, save what is with it or waits for it already. ValueError if it was never added."""
        found = [item for item in self._deliveries if item.hook is hook or item.hook.call == hook]
        if not found:
            raise ValueError("this hook was not added")
        self._deliveries = tuple(item for item in self._deliveries if item is not found[0])
        self._sort_listeners()

    async def drained(self, timeout: float) -> bool:
        """Wait until the hooks have been told everything so far, `timeout` seconds at the most; whether they have."""
        deadline = time.monotonic() + timeout
        waiting = [item for item in self._deliveries if item.pending]
        while waiting and time.monotonic() < deadline:
            for item in waiting:
                item.hasten()
            await asyncio.sleep(0.005)
            waiting = [item for item in waiting if item.pending]
        return not waiting

    def record(self, statement: str, seconds: float, error: BaseException | None, *, read_only: bool = False) -> None:
        """Count one run of a statement that passed no connection of a manager."""
        self._own.read_only = read_only
        self._own.statement(statement, seconds, error)

    def statistics(self) -> tuple[StatementStatistics, ...]:
        """Every statement seen, the one with the largest total first."""
        with self._lock:
            rows = [StatementStatistics.of(statement, tally) for statement, tally in self._seen()]
        return tuple(sorted(rows, key=lambda row: row.total, reverse=True))

    def reset(self) -> None:
        """Forget the statistics of statements. Counters, which Prometheus reads, go on."""
        with self._lock:
            for _, tally in self._seen():
                self._fold(tally)
            self.tallies.clear()

    def operations(self) -> Mapping[str, Tally]:
        """All statements so far by their first word, the forgotten ones included; `OTHER` for unknown words."""
        totals: dict[str, Tally] = {}
        with self._lock:
            for tally in [*self._folded.values(), *(tally for _, tally in self._seen())]:
                totals.setdefault(tally.operation, Tally(tally.operation)).include(tally)
        return totals

    def hook_figures(self) -> Mapping[str, tuple[int, int]]:
        """Of each hook, by name: events dropped, calls that raised."""
        figures: dict[str, tuple[int, int]] = {}
        for item in self._deliveries:
            dropped, failed = figures.get(item.hook.name, (0, 0))
            figures[item.hook.name] = (dropped + item.dropped, failed + item.failed)
        return figures

    def pool(self, name: str) -> "PoolMonitor":
        """The figures of the pool of that name, which go on when it is made anew."""
        return self.pools.setdefault(name, PoolMonitor(self, name))

    def new_tally(self, statement: str) -> Tally:
        """Make room for a statement that is not among those kept."""
        tally = Tally(operation(statement))
        with self._lock:
            self.tallies[statement] = tally
            if len(self.tallies) > self.options.max_statements:
                self._fold(self.tallies.popitem(last=False)[1])
        return tally

    def session_closed(self, seconds: float, opened_at: tuple[str, int], *, read_only: bool, session: Any) -> None:
        """Log a session that was open for longer than the limit; `opened_at` is the file and line of the code that did."""
        limit = self.options.long_session
        if limit and seconds >= limit:
            self.long_sessions += 1
            place = f"{opened_at[0]}:{opened_at[1]}"
            _log.warning("long session", seconds=round(seconds, 3), opened_at=place, session_id=session.log_id)
        if self.listeners[SessionEvent]:
            self.tell(SessionEvent, seconds, opened_at, read_only)

    def retried(self, attempt: int, error: BaseException, wait: float, *, session_id: str | None) -> None:
        """Count a unit of work that is about to run again, in a session other than the one named."""
        failure = type(error).__name__
        self.retries[failure] += 1
        _log.info("transaction retried", attempt=attempt, failure=failure, wait=round(wait, 3), session_id=session_id)
        if self.listeners[RetryEvent]:
            self.tell(RetryEvent, attempt, failure, wait)

    def transaction_ended(self, outcome: TransactionOutcome, seconds: float, *, read_only: bool) -> None:
        """Count a transaction; one whose outcome is unknown is logged."""
        tally = self.transactions.get(outcome)
        if tally is None:
            tally = self.transactions[outcome] = Tally()
        tally.add(seconds)
        if outcome == "unknown":
            _log.warning("commit outcome unknown", seconds=round(seconds, 6))
        if self.listeners[TransactionEvent]:
            self.tell(TransactionEvent, outcome, seconds, read_only)

    def tell(self, kind: type[Event], *fields: Any) -> None:
        """Queue an event, to be made of `fields` and the time, for those who listen."""
        item = (kind, fields, time.perf_counter(), copy_context())
        for delivery in self.listeners[kind]:
            delivery.put(item)

    def _sort_listeners(self) -> None:
        for kind in EVENTS:
            self.listeners[kind] = tuple(item for item in self._deliveries if kind in item.hook.events)

    def _seen(self) -> list[tuple[str, Tally]]:
        """The statements and their tallies; the event loop reorders them meanwhile, without the lock."""
        while True:
            try:
                return list(self.tallies.items())
            except RuntimeError:  # reordered while being listed
                continue

    def _fold(self, tally: Tally) -> None:
        self._folded.setdefault(tally.operation, Tally(tally.operation)).include(tally)
