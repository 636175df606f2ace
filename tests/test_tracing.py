"""Spans are true: their times, their parent, their names; and they hold no value and hold nothing up."""

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.semconv.attributes import db_attributes, error_attributes, server_attributes
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import text

from core.config.options import MonitoringOptions
from core.database.connection import DatabaseManager
from core.database.engine import DatabaseUrl
from core.database.errors import StatementFault, UniqueViolation
from core.database.monitoring import QueryMonitor, Server
from core.database.tracing import trace_queries
from tests.waiting import wait_for_session

INSERT = text("INSERT INTO users (username, hashed_password) VALUES (:name, 'l1teral')")
CONVENTIONS = {
    value
    for room in (db_attributes, error_attributes, server_attributes)
    for name, value in vars(room).items()
    if name.isupper()
}


def provider(exporter: SpanExporter) -> TracerProvider:
    made = TracerProvider(shutdown_on_exit=False)
    made.add_span_processor(SimpleSpanProcessor(exporter))
    return made


def traced(url: str, tracer_provider: TracerProvider) -> DatabaseManager:
    return DatabaseManager(url, "testing", "migrations_only", hooks=[trace_queries(tracer_provider)])


def statements(exporter: InMemorySpanExporter, word: str) -> list[ReadableSpan]:
    return [
        span for span in exporter.get_finished_spans() if span.name.startswith(word) and span.kind is SpanKind.CLIENT
    ]


async def test_a_span_is_named_timed_and_placed_as_the_statement_was(database_url: str) -> None:
    exporter = InMemorySpanExporter()
    made = provider(exporter)
    before = time.time_ns()
    async with traced(database_url, made) as manager:
        with made.get_tracer("application").start_as_current_span("request") as request:
            async with manager.get_session(read_only=True) as session:
                await session.execute(
                    text("SELECT pg_sleep(0.05), count(*) FROM users WHERE username = :n"), {"n": "s3cret"}
                )
            moment = time.time_ns()
        await asyncio.sleep(0.05)  # the parent has ended when the span is made
    (span,) = statements(exporter, "SELECT users")
    assert span.parent is not None
    assert span.parent.span_id == request.get_span_context().span_id
    assert span.context is not None
    assert span.context.trace_id == request.get_span_context().trace_id
    assert span.start_time is not None
    assert span.end_time is not None
    assert 50e6 <= span.end_time - span.start_time < 1e9
    assert before <= span.start_time
    assert span.end_time <= moment + 5e6
    found = dict(span.attributes or {})
    address = str(found.pop("server.address"))
    assert (
        address.endswith("/socket") or (address, found.pop("server.port")) == DatabaseUrl.parse(database_url).hosts[0]
    )
    assert str(found.pop("db.namespace")).startswith("panda_test_")
    assert found == {
        "db.system.name": "postgresql",
        "db.operation.name": "SELECT",
        "db.query.summary": "SELECT users",
        "db.collection.name": "users",
        "db.query.text": "SELECT pg_sleep(?), count(*) FROM users WHERE username = $1",
    }
    assert span.status.status_code is StatusCode.UNSET


async def test_a_failed_statement_says_which_error_and_no_value(database_url: str) -> None:
    exporter = InMemorySpanExporter()
    async with traced(database_url, provider(exporter)) as manager:
        for _ in range(2):
            with pytest.raises(UniqueViolation):
                async with manager.transaction() as session:
                    await session.execute(INSERT, {"name": "s3cret"})
                    await session.execute(INSERT, {"name": "s3cret"})
        with pytest.raises(StatementFault):
            async with manager.get_session() as session:
                await session.execute(text("SELECT nonsense, 's3cret' FROM users"))
        task = asyncio.create_task(_sleep(manager))
        await wait_for_session(database_url, "active", "SELECT pg_sleep(60)")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    failed = [span for span in exporter.get_finished_spans() if span.status.status_code is StatusCode.ERROR]
    told = [
        ((span.attributes or {})["error.type"], (span.attributes or {}).get("db.response.status_code"))
        for span in failed
    ]
    assert told == [
        ("UniqueViolation", "23505"), ("UniqueViolation", "23505"), ("StatementFault", "42703"), ("CancelledError", None),
    ]  # fmt: skip
    for span in exporter.get_finished_spans():
        written = span.to_json()
        assert "s3cret" not in written
        assert "l1teral" not in written
        assert span.events == ()
        assert span.status.description is None
        assert set(span.attributes or {}) <= CONVENTIONS


async def _sleep(manager: DatabaseManager) -> None:
    async with manager.get_session(read_only=True) as session:
        await session.execute(text("SELECT pg_sleep(60)"))


async def test_tasks_at_the_same_time_keep_their_own_parents(database_url: str) -> None:
    exporter = InMemorySpanExporter()
    made = provider(exporter)
    tracer = made.get_tracer("application")

    async def request(number: int) -> int:
        with tracer.start_as_current_span(f"request {number}") as span:
            async with manager.get_session(read_only=True) as session:
                await session.execute(text(f"SELECT CAST(:n AS int) AS c{number}"), {"n": number})
            return span.get_span_context().span_id

    async with traced(database_url, made) as manager:
        parents = await asyncio.gather(*(request(number) for number in range(8)))
    by_text = {(span.attributes or {}).get("db.query.text"): span for span in exporter.get_finished_spans()}
    for number, parent in enumerate(parents):
        span = by_text[f"SELECT CAST($1 AS int) AS c{number}"]
        assert span.parent is not None
        assert span.parent.span_id == parent


class Hanging(SpanExporter):
    def __init__(self, *, seconds: float) -> None:
        self.seconds = seconds
        self.entered, self.over = threading.Event(), threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        if not self.seconds:
            raise RuntimeError("the collector is on fire")
        self.over.wait(self.seconds)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None: ...


@pytest.mark.parametrize("seconds", [120.0, 0.0])  # far more than a busy machine takes for the rest
async def test_an_exporter_that_hangs_or_raises_holds_nothing_up(database_url: str, seconds: float) -> None:
    exporter = Hanging(seconds=seconds)
    start = time.monotonic()
    async with traced(database_url, provider(exporter)) as manager:
        for number in range(20):
            async with manager.transaction() as session:
                await session.execute(INSERT, {"name": str(number)})
        assert await asyncio.to_thread(exporter.entered.wait, 60)
        async with manager.get_session(read_only=True) as session:
            assert await session.scalar(text("SELECT count(*) FROM users")) == 20
    assert time.monotonic() - start < 100
    exporter.over.set()


async def test_what_is_not_sampled_makes_no_span(database_url: str) -> None:
    exporter = InMemorySpanExporter()
    made = provider(exporter)
    off = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False).get_tracer("application")
    async with traced(database_url, made) as manager:
        subject = "SELECT 4711 AS unsampled"
        with off.start_as_current_span("request"):
            async with manager.get_session(read_only=True) as session:
                await session.execute(text(subject))
    assert not [
        s for s in exporter.get_finished_spans() if "unsampled" in str((s.attributes or {}).get("db.query.text"))
    ]
    assert trace.get_current_span().get_span_context().is_valid is False


@pytest.mark.parametrize(
    ("statement", "name", "collection"),
    [
        ("SELECT a FROM users WHERE id = $1", "SELECT users", "users"),
        (
            "INSERT INTO portfolio_snapshots_2026_11 (a) VALUES ($1)",
            "INSERT portfolio_snapshots",
            "portfolio_snapshots_2026_11",
        ),
        ("SELECT 1 FROM a JOIN public.b ON true", "SELECT a public.b", None),
        ('UPDATE "Odd Name" SET x = 1', "UPDATE Odd Name", "Odd Name"),
        ("COPY staged_12 FROM STDIN (FORMAT binary)", "COPY staged", "staged_12"),
        ("SELECT * FROM generate_series(1, 2)", "SELECT", None),
        ("SELECT a FROM t FOR UPDATE OF t SKIP LOCKED", "SELECT t", "t"),
        ("BEGIN;", "BEGIN", None),
        ("frobnicate the FROM 'x'", "OTHER", None),
        ("", "OTHER", None),
    ],
)
def test_names_have_few_values(statement: str, name: str, collection: str | None) -> None:
    exporter = InMemorySpanExporter()
    subject = QueryMonitor(MonitoringOptions(), [trace_queries(provider(exporter))])
    subject.record(statement, 0.1, None)
    assert asyncio.run(subject.drained(60))
    (span,) = exporter.get_finished_spans()
    assert span.name == name
    assert (span.attributes or {}).get("db.collection.name") == collection


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_statement_makes_a_span_of_bounded_size(statement: str) -> None:
    from core.database.tracing import _described

    name, attributes = _described(statement * 50, Server("db", 6432, "d"))
    assert len(name) <= 255
    assert all(len(str(value)) <= 8_000 for value in attributes.values())
    assert attributes["server.port"] == 6432


def test_without_the_extra_the_import_says_how_to_get_it() -> None:
    program = """
        import sys
        sys.modules["opentelemetry"] = None
        try:
            import core.database.tracing
        except ModuleNotFoundError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=True, capture_output=True, text=True, timeout=60
    )
    assert "pip install 'alpha-panda-core[otel]'" in done.stdout
