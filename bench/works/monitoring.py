"""What watching costs: a read-only session with monitoring off, on, and with everything there is to hang on it.

The differences are of the order of what a busy machine adds by itself, so "off, once more" stands beside "off": as far as
those two differ, the run cannot tell anything apart.

"All" is: statistics, the slow-query log, Prometheus with its health checks, a hook of the user's
and OpenTelemetry's SDK with a batch processor whose exporter throws away what it gets; with spans of each statement, and with
none because none is sampled. Hooks run on threads of their own: the clock sees of them what they take from the
event loop.
"""

import time
from bisect import bisect_left
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

from sqlalchemy import event, text

from bench import panda, peers
from bench.measure import Entrant, Goal, SelfTimed, Unit, Work, expect
from bench.server import Target

__all__ = ["WORK"]

OFF = "Alpha Panda, off"
AGAIN = "Alpha Panda, off, once more"
ON = "Alpha Panda, on"
HOOKED = "Alpha Panda, on, with a hook"
UNSAMPLED = "Alpha Panda, all, unsampled"
EVERYTHING = "Alpha Panda, all, traced"
PLAIN = "SQLAlchemy, autocommit"
CURSOR_EVENTS = "the same with cursor events"

_ONE = text("SELECT 1")
_BOUNDS = [1e-5 * 1.5**step for step in range(32)]


@asynccontextmanager
async def _panda(enabled: bool, hooked: bool, target: Target) -> AsyncGenerator[Unit]:
    from core.config.options import MonitoringOptions

    seen = 0

    def count(query: object) -> None:
        nonlocal seen
        seen += 1

    options = MonitoringOptions(enabled=enabled, slow_query=0.5)
    async with panda.opened_manager(target, monitoring=options, hooks=(count,) if hooked else ()) as manager:

        async def unit() -> None:
            async with manager.get_session(read_only=True) as session:
                expect(await session.scalar(_ONE), 1)

        yield unit
    expect(seen > 0, hooked)


@asynccontextmanager
async def _everything(sampled: bool, target: Target) -> AsyncGenerator[SelfTimed]:
    from opentelemetry.trace import use_span
    from prometheus_client import CollectorRegistry, generate_latest

    from core.config.options import MonitoringOptions
    from core.database.metrics import DatabaseMetrics
    from core.database.tracing import trace_queries

    seen = 0

    def count(event: object) -> None:
        nonlocal seen
        seen += 1

    registry = CollectorRegistry()
    with _tracer_provider(sampled) as (provider, exported):
        hooks = (trace_queries(provider), count)
        request = provider.get_tracer("bench").start_span("a request of the application")
        async with (
            panda.opened_manager(target, monitoring=MonitoringOptions(), hooks=hooks) as manager,
            DatabaseMetrics(manager, registry=registry),
        ):

            async def unit() -> None:
                async with manager.get_session(read_only=True) as session:
                    expect(await session.scalar(_ONE), 1)

            async def sample(units: int) -> float:
                """Inside a request, as an application's statements are; entering it is the application's affair."""
                with use_span(request):
                    start = time.perf_counter()
                    for _ in range(units):
                        await unit()
                    return time.perf_counter() - start

            yield SelfTimed(sample)
            expect(b"alpha_panda_database_query_duration_seconds_count" in generate_latest(registry), True)
        provider.force_flush()
    expect(seen > 0, True)
    expect(exported() > 0, sampled)


@contextmanager
def _tracer_provider(sampled: bool) -> Generator[tuple[Any, Callable[[], int]]]:
    """OpenTelemetry's SDK as it is used in production, and how many spans have left it."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

    class Dropping(SpanExporter):
        spans = 0

        def export(self, spans: Any) -> Any:
            self.spans += len(spans)
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            """Nothing is held."""

    exporter = Dropping()
    provider = TracerProvider(sampler=ALWAYS_ON if sampled else ALWAYS_OFF, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield provider, lambda: exporter.spans
    finally:
        provider.shutdown()


@asynccontextmanager
async def _sqlalchemy(watched: bool, target: Target) -> AsyncGenerator[Unit]:
    from sqlalchemy.ext.asyncio import async_sessionmaker

    async with peers.sqlalchemy_engine(target, autocommit=True) as engine:
        buckets = [0] * (len(_BOUNDS) + 1)

        def before(connection: Any, *_: object) -> None:
            connection.info["began"] = time.perf_counter()

        def after(connection: Any, *_: object) -> None:
            buckets[bisect_left(_BOUNDS, time.perf_counter() - connection.info["began"])] += 1

        if watched:
            event.listen(engine.sync_engine, "before_cursor_execute", before)
            event.listen(engine.sync_engine, "after_cursor_execute", after)
        maker = async_sessionmaker(engine, expire_on_commit=False)

        async def unit() -> None:
            async with maker() as session:
                expect(await session.scalar(_ONE), 1)

        yield unit
        expect(sum(buckets) > 0, watched)


WORK = Work(
    name="monitoring",
    title="a read-only session, watched and not",
    entrants=(
        Entrant(OFF, partial(_panda, False, False)),
        Entrant(ON, partial(_panda, True, False)),
        Entrant(AGAIN, partial(_panda, False, False)),
        Entrant(HOOKED, partial(_panda, True, True)),
        Entrant(UNSAMPLED, partial(_everything, False)),
        Entrant(EVERYTHING, partial(_everything, True)),
        Entrant(PLAIN, partial(_sqlalchemy, False)),
        Entrant(CURSOR_EVENTS, partial(_sqlalchemy, True)),
    ),
    limit=OFF,
    goals=(
        Goal(ON, OFF, at_most=1.03),
        Goal(HOOKED, OFF),
        Goal(UNSAMPLED, OFF, at_most=1.03),
        Goal(EVERYTHING, OFF),
        Goal(CURSOR_EVENTS, PLAIN),
    ),
    units=50,
    runs=240,
)
