"""The metrics of one manager in one registry."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from prometheus_client import REGISTRY, CollectorRegistry

from core.database.connection import DatabaseManager, internals
from core.database.health import pool_figures
from core.database.metrics import _registry
from core.database.metrics._families import Families
from core.database.metrics._health import HealthReading
from core.database.monitoring import PoolMonitor, QueryMonitor


class DatabaseMetrics:
    """While the block is open, `registry` exposes the manager: its queries, pools and transactions, and its health.

    A task on the manager's event loop checks the health every `interval` seconds; a scrape reads the last answer, and an
    answer older than three intervals counts as none. `database` is the label that tells managers apart, by default the
    name of the database; two of one name in one registry are refused with `ConfigurationError`. With monitoring turned
    off there are health and pools alone. `sources` add samples of their own, as an `InstrumentCache` does.
    """

    def __init__(
        self,
        manager: DatabaseManager,
        *,
        registry: CollectorRegistry = REGISTRY,
        database: str | None = None,
        interval: float = 10.0,
        sources: Sequence[_registry.Source] = (),
    ) -> None:
        self._manager = manager
        self._sources = tuple(sources)
        self._registry = registry
        self._database = database or internals(manager).database
        self._interval = interval
        self._health = HealthReading(max_age=3 * interval)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Ask for the health once, then expose. The manager need not be connected, or may be anew later."""
        if self._task is not None:
            return
        self._health.note(await self._manager.health_check())
        _registry.add(self._registry, self._database, self)
        self._task = asyncio.create_task(self._check())

    async def close(self) -> None:
        """Take the metrics out of the registry. Safe to call twice."""
        task, self._task = self._task, None
        if task is None:
            return
        _registry.remove(self._registry, self._database, self)
        task.cancel()
        await asyncio.wait([task])

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def fill(self, families: Families, database: str) -> None:
        """Add everything that is known at this moment; called by the registry, from any thread."""
        self._health.fill(families, database)
        inside = internals(self._manager)
        for pool, engine in inside.pools.items():
            _fill_pool(families, database, pool, pool_figures(engine))
        if inside.monitor is not None:
            _fill_statements(families, database, inside.monitor)
            _fill_transactions(families, database, inside.monitor)
            for pool, figures in list(inside.monitor.pools.items()):
                _fill_checkouts(families, database, pool, figures)
            _fill_hooks(families, database, inside.monitor)
        for source in self._sources:
            source.fill(families, database)

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            self._health.note(await self._manager.health_check())


def _fill_statements(families: Families, database: str, monitor: QueryMonitor) -> None:
    for operation, tally in monitor.operations().items():
        families.histogram(
            "query_duration_seconds",
            "Time from sending a statement to its whole answer.",
            tally.histogram(),
            database=database,
            operation=operation,
        )
    for error, count in list(monitor.errors.items()):
        families.counter("errors_total", "Errors by class.", count, database=database, error=error)
    for name, text, value in (
        ("queries_cancelled_total", "Statements whose task was cancelled.", monitor.cancelled),
        ("slow_queries_total", "Statements slower than their limit.", monitor.slow),
        ("long_sessions_total", "Sessions open for longer than their limit.", monitor.long_sessions),
    ):
        families.counter(name, text, value, database=database)


def _fill_transactions(families: Families, database: str, monitor: QueryMonitor) -> None:
    for outcome, tally in list(monitor.transactions.items()):
        families.histogram(
            "transaction_duration_seconds",
            "Time from BEGIN to the end, by what became of it.",
            tally.histogram(),
            database=database,
            outcome=outcome,
        )
    unknown = monitor.transactions.get("unknown")
    families.counter(
        "commits_unknown_total",
        "Commits whose answer was lost: stored or not.",
        unknown.count if unknown is not None else 0,
        database=database,
    )
    for cause, count in list(monitor.retries.items()):
        families.counter("retries_total", "Units of work run again, by cause.", count, database=database, error=cause)


def _fill_pool(families: Families, database: str, pool: str, figures: dict[str, int]) -> None:
    if not figures:
        return
    labels = {"database": database, "pool": pool}
    families.gauge("pool_connections_max", "The most connections that the pool may hold.", figures["limit"], **labels)
    text = "Connections that the pool holds, by state."
    families.gauge("pool_connections", text, figures["in_use"], **labels, state="used")
    families.gauge("pool_connections", text, figures["open"] - figures["in_use"], **labels, state="idle")


def _fill_checkouts(families: Families, database: str, pool: str, figures: PoolMonitor) -> None:
    labels = {"database": database, "pool": pool}
    families.gauge("pool_waiting", "Tasks that wait for a connection.", figures.waiting, **labels)
    families.histogram(
        "pool_checkout_wait_seconds",
        "Time until a connection was handed out, connecting and probing included.",
        figures.taken.histogram(),
        **labels,
    )
    for result in ("exhausted", "failed", "cancelled"):
        families.counter(
            "pool_checkout_failures_total",
            "Connections asked for in vain, by reason.",
            figures.refusals[result],
            **labels,
            reason=result,
        )


def _fill_hooks(families: Families, database: str, monitor: QueryMonitor) -> None:
    for hook, (dropped, failed) in monitor.hook_figures().items():
        labels = {"database": database, "hook": hook}
        families.counter("events_dropped_total", "Events that a hook was too slow to take.", dropped, **labels)
        families.counter("hook_failures_total", "Calls of a hook that raised.", failed, **labels)
