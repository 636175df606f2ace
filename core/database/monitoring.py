"""What statements cost: events for hooks, statistics per statement, a log of the slow ones.

No parameter is ever seen here: the driver hands over SQL text with placeholders, seconds and the error.
"""

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from core.config.options import MonitoringOptions

__all__ = [
    "QueryEvent",
    "QueryHook",
    "QueryMonitor",
    "StatementStatistics",
    "get_logger",
]

_SHORTEST = 10e-6  # seconds; the histogram's first bucket ends here
_GROWTH = math.log(1.2)  # each bucket is 20 % wider than the one before: a percentile is off by 10 % at the most
_BUCKETS = 96  # up to 10e-6 * 1.2**95 = 333 s
_LOGGED_CHARACTERS = 2_000


def get_logger() -> Any:
    """The project's logger: structured events handed to the standard library's logger `core.database`.

    An application that configures nothing sees warnings on stderr and nothing on stdout; one that renders standard
    library records through structlog gets every field.
    """
    return structlog.wrap_logger(
        logging.getLogger("core.database"),
        processors=[structlog.contextvars.merge_contextvars, structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


_log = get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryEvent:
    """One statement that ended, well or not."""

    statement: str
    """SQL with placeholders."""
    seconds: float
    error: str | None
    """The name of the driver's exception, or None."""
    sqlstate: str | None
    read_only: bool
    """Whether it ran on the read-only pool."""

    @property
    def operation(self) -> str:
        """The first word, upper-case: SELECT, INSERT, COPY, COMMIT."""
        return self.statement.lstrip("( \n\t").split(None, 1)[0].upper().rstrip(";") if self.statement.strip() else ""


QueryHook = Callable[[QueryEvent], None]
"""Called on the event loop after each statement; one that raises is logged once and then ignored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StatementStatistics:
    """All runs of one statement; times are seconds, percentiles within 10 %."""

    statement: str
    count: int
    errors: int
    total: float
    max: float
    p50: float
    p95: float
    p99: float

    @property
    def mean(self) -> float:
        return self.total / self.count


class _Tally:
    __slots__ = ("buckets", "count", "errors", "longest", "total")

    def __init__(self) -> None:
        self.count = 0
        self.errors = 0
        self.total = 0.0
        self.longest = 0.0
        self.buckets = [0] * _BUCKETS

    def add(self, seconds: float, *, failed: bool) -> None:
        self.count += 1
        self.errors += failed
        self.total += seconds
        self.longest = max(self.longest, seconds)
        index = 0 if seconds <= _SHORTEST else int(math.log(seconds / _SHORTEST) / _GROWTH) + 1
        self.buckets[min(index, _BUCKETS - 1)] += 1

    def percentile(self, share: float) -> float:
        """The middle of the bucket in which the share-th run lies, never above the longest run."""
        rank = share * self.count
        seen = 0
        for index, count in enumerate(self.buckets):
            seen += count
            if seen >= rank:
                middle = _SHORTEST * math.exp((index - 0.5) * _GROWTH)
                return min(middle, self.longest)
        return self.longest


class QueryMonitor:
    """Receives every statement of a manager; memory is bounded by `options.max_statements`."""

    def __init__(self, options: MonitoringOptions, hooks: Sequence[QueryHook] = ()) -> None:
        self._options = options
        self._hooks = list(hooks)
        self._tallies: OrderedDict[str, _Tally] = OrderedDict()
        self._slow = options.slow_query or math.inf
        self._failed_hooks: set[int] = set()

    def add_hook(self, hook: QueryHook) -> None:
        self._hooks.append(hook)

    def remove_hook(self, hook: QueryHook) -> None:
        self._hooks.remove(hook)

    def record(self, statement: str, seconds: float, error: BaseException | None, *, read_only: bool = False) -> None:
        """Count one run. Never raises for what a hook does."""
        self._tally(statement).add(seconds, failed=error is not None)
        if seconds >= self._slow:
            _log.warning("slow query", statement=_flat(statement), seconds=round(seconds, 6), read_only=read_only)
        if self._hooks:
            self._call_hooks(
                QueryEvent(
                    statement=statement,
                    seconds=seconds,
                    error=type(error).__name__ if error is not None else None,
                    sqlstate=getattr(error, "sqlstate", None),
                    read_only=read_only,
                )
            )

    def statistics(self) -> tuple[StatementStatistics, ...]:
        """Every statement seen, the one with the largest total first."""
        rows = [_statistics(statement, tally) for statement, tally in self._tallies.items()]
        return tuple(sorted(rows, key=lambda row: row.total, reverse=True))

    def reset(self) -> None:
        """Forget all statistics."""
        self._tallies.clear()

    def session_closed(self, seconds: float, opened_at: tuple[str, int]) -> None:
        """Log a session that was open for longer than the limit; `opened_at` is the file and line of the code that did."""
        limit = self._options.long_session
        if limit and seconds >= limit:
            _log.warning("long session", seconds=round(seconds, 3), opened_at=f"{opened_at[0]}:{opened_at[1]}")

    def _tally(self, statement: str) -> _Tally:
        tally = self._tallies.get(statement)
        if tally is None:
            tally = self._tallies[statement] = _Tally()
            if len(self._tallies) > self._options.max_statements:
                self._tallies.popitem(last=False)
        else:
            self._tallies.move_to_end(statement)
        return tally

    def _call_hooks(self, event: QueryEvent) -> None:
        for hook in self._hooks:
            try:
                hook(event)
            except Exception as error:  # a stranger's code: whatever it raises must not reach the transaction
                if id(hook) not in self._failed_hooks:
                    self._failed_hooks.add(id(hook))
                    _log.warning("query hook failed", hook=repr(hook), error=type(error).__name__)


def _statistics(statement: str, tally: _Tally) -> StatementStatistics:
    return StatementStatistics(
        statement=statement,
        count=tally.count,
        errors=tally.errors,
        total=tally.total,
        max=tally.longest,
        p50=tally.percentile(0.50),
        p95=tally.percentile(0.95),
        p99=tally.percentile(0.99),
    )


def _flat(statement: str) -> str:
    """On one line and of bounded length, so that a log line stays one."""
    return " ".join(statement.split())[:_LOGGED_CHARACTERS]
