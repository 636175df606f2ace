"""What is measured is what happened; what is logged holds no parameter; a bad hook harms nothing."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from core.config.options import MonitoringOptions
from core.database import bulk
from core.database.connection import DatabaseManager
from core.database.errors import StatementFault
from core.database.monitoring import QueryEvent, QueryMonitor


def monitor(**options) -> QueryMonitor:
    return QueryMonitor(MonitoringOptions(**options))


@given(st.lists(st.floats(min_value=1e-6, max_value=300), min_size=1, max_size=200))
def test_figures_agree_with_the_exact_ones(times: list[float]) -> None:
    subject = monitor()
    for seconds in times:
        subject.record("S", seconds, None)
    (row,) = subject.statistics()
    ordered = sorted(times)
    assert row.count == len(times)
    assert row.total == pytest.approx(sum(times))
    assert row.mean == pytest.approx(sum(times) / len(times))
    assert row.max == ordered[-1]
    for share, value in ((0.5, row.p50), (0.95, row.p95), (0.99, row.p99)):
        exact = ordered[max(0, -int(-share * len(times) // 1) - 1)]
        assert value <= max(exact * 1.1, 10e-6) + 1e-12
        assert value >= min(exact / 1.1, row.max) - 1e-12 or exact < 10e-6


def test_memory_is_bounded_and_the_least_recent_statement_goes() -> None:
    subject = monitor(max_statements=3)
    for name in ("a", "b", "c", "a", "d"):
        subject.record(name, 0.1, None)
    assert {row.statement for row in subject.statistics()} == {"a", "c", "d"}
    subject.reset()
    assert subject.statistics() == ()


def test_errors_are_counted_and_told_to_hooks_by_name() -> None:
    seen: list[QueryEvent] = []
    subject = QueryMonitor(MonitoringOptions(), [seen.append])
    subject.record("  select 1", 0.1, ValueError("secret"))
    assert subject.statistics()[0].errors == 1
    assert (seen[0].error, seen[0].operation) == ("ValueError", "SELECT")
    assert "secret" not in repr(seen)


def test_a_hook_that_raises_is_logged_once_and_the_others_go_on(caplog) -> None:
    seen: list[QueryEvent] = []

    def broken(event: QueryEvent) -> None:
        raise RuntimeError("boom")

    subject = QueryMonitor(MonitoringOptions(), [broken, seen.append])
    with caplog.at_level(logging.WARNING, "core.database"):
        subject.record("S", 0.1, None)
        subject.record("S", 0.1, None)
    assert len(seen) == 2
    assert [record.message for record in caplog.records] == ["query hook failed"]
    subject.remove_hook(broken)
    subject.add_hook(broken)


async def test_every_kind_of_statement_of_a_manager_is_seen(database_url: str) -> None:
    seen: list[QueryEvent] = []
    subject = QueryMonitor(MonitoringOptions(), [seen.append])
    async with DatabaseManager(database_url, "testing", "migrations_only", monitor=subject) as manager:
        subject.reset()
        seen.clear()
        async with manager.get_session(read_only=True) as session:
            await session.execute(text("SELECT 1"))
        async with manager.transaction() as session:
            await session.execute(
                text("INSERT INTO users (username, hashed_password) VALUES (:n, 'h')"), [{"n": "a"}, {"n": "b"}]
            )
            table = await bulk.stage(session, {"a": "int"})
            await bulk.copy_records(session, table, [(1,), (2,)], columns=["a"])
        async with manager.get_session() as session:
            with pytest.raises(StatementFault):
                await session.execute(text("SELECT nonsense"))
    kinds = [(event.operation, event.read_only) for event in seen]
    for expected in [("SELECT", True), ("BEGIN", False), ("INSERT", False), ("COPY", False), ("COMMIT", False)]:
        assert expected in kinds
    statements = {row.statement: row for row in subject.statistics()}
    assert statements["SELECT 1"].count == 1
    assert statements["SELECT 1"].total > 0


async def test_the_slow_query_log_names_the_statement_and_no_parameter(database_url: str, caplog) -> None:
    options = MonitoringOptions(slow_query=0.05)
    async with DatabaseManager(database_url, "testing", "migrations_only", monitoring=options) as manager:
        with caplog.at_level(logging.WARNING, "core.database"):
            async with manager.get_session() as session:
                statement = text("SELECT pg_sleep(0.1),\n :canary")
                await session.execute(statement.bindparams(canary="c4n4ry"))
    (record,) = [item for item in caplog.records if item.message == "slow query"]
    assert record.statement.startswith("SELECT pg_sleep(0.1), $1")
    assert record.seconds >= 0.1
    assert "c4n4ry" not in repr(vars(record))


async def test_monitoring_can_be_turned_off(database_url: str) -> None:
    subject = monitor(enabled=False)
    options = MonitoringOptions(enabled=False)
    async with DatabaseManager(
        database_url, "testing", "migrations_only", monitoring=options, monitor=subject
    ) as manager:
        async with manager.get_session() as session:
            await session.execute(text("SELECT 1"))
    assert subject.statistics() == ()
