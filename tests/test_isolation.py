"""A broker's session sees and writes the rows of its broker, whatever happened on the connection before."""

import asyncio
import functools
import io
import json
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import asyncpg
import hypothesis
import pytest
import sqlalchemy as sa
from hypothesis import strategies as st
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from core.config.options import PoolOptions
from core.config.settings import get_settings
from core.database import roles, schema
from core.database.bulk import copy_records, stage
from core.database.connection import DatabaseManager
from core.database.doctor import examine
from core.database.driver import DriverConnection, raw_connection
from core.database.engine import BROKER, DatabaseUrl, EngineOptions, build_engine
from core.database.errors import (
    ConfigurationError,
    ConnectionLost,
    ForeignKeyViolation,
    InvalidInput,
    IsolationUnavailable,
    PermissionDenied,
    ReadOnlyViolation,
    SchemaMissing,
    SessionMisuse,
    StatementFault,
    TransactionAborted,
    UniqueViolation,
)
from core.database.models import (
    ISOLATED_TABLES,
    RESTRICTED_ROLE,
    Portfolio,
    PortfolioSnapshot,
    Strategy,
    TradingSession,
    User,
    snapshot_partition_name,
)
from core.database.monitoring import sql_tokens
from core.database.records import PortfolioSnapshotCreate, Positions
from core.testing import make_portfolio, make_snapshot, make_user
from core.trading import portfolios, sessions
from tests.cluster import debian

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
PARTITION = snapshot_partition_name(NOON)
BROKERS = ("paper", "zerodha")


async def fill(manager: DatabaseManager) -> None:
    """A portfolio, a snapshot and a session of each broker, by the unrestricted application."""
    async with manager.transaction() as session:
        await portfolios.ensure_partitions(session, NOON, NOON)
        owner = make_user(username="trader")
        session.add(owner)
        await session.flush()
        for broker in BROKERS:
            portfolio = make_portfolio(portfolio_id=f"of-{broker}", broker=broker)
            session.add_all([portfolio, TradingSession(user_id=owner.id, broker=broker)])
            session.add(make_snapshot(portfolio, snapshot_time=NOON))


@pytest.fixture
async def filled(manager: DatabaseManager) -> DatabaseManager:
    await fill(manager)
    return manager


async def seen(session: AsyncSession) -> dict[str, set[str]]:
    """The brokers whose rows the session sees, by table."""
    rows = {model: await session.scalars(select(model.broker)) for model in (TradingSession, Portfolio)}
    found = {model.__tablename__: set(brokers) for model, brokers in rows.items()}
    return found | {"portfolio_snapshots": set(await session.scalars(select(PortfolioSnapshot.broker)))}


def only(*brokers: str) -> dict[str, set[str]]:
    return {table: set(brokers) for table in ISOLATED_TABLES}


async def who(session: AsyncSession) -> str:
    return str(await session.scalar(text("SELECT current_user")))


# What is seen and written


async def test_a_brokers_session_sees_its_brokers_rows_and_any_other_session_sees_all(filled: DatabaseManager) -> None:
    for broker in BROKERS:
        async with filled.get_session(broker=broker) as session:
            assert await seen(session) == only(broker)
        async with filled.transaction(broker=broker) as session:
            assert await seen(session) == only(broker)
        assert await filled.run_transaction(seen, broker=broker) == only(broker)
    async with filled.get_session() as session:
        assert await seen(session) == only(*BROKERS)
    async with filled.get_session(read_only=True) as session:
        assert await seen(session) == only(*BROKERS)


async def test_a_broker_of_whom_nothing_is_stored_sees_nothing(filled: DatabaseManager) -> None:
    async with filled.get_session(broker="upstox") as session:
        assert await seen(session) == only()


async def test_a_brokers_session_writes_its_own_rows(filled: DatabaseManager) -> None:
    async with filled.transaction(broker="paper") as session:
        await portfolios.create(session, portfolio_id="second", broker="paper", currency="INR", name="Second")
        session.add(make_snapshot(portfolio_id="second", broker="paper", snapshot_time=NOON))
        await session.execute(sa.update(Portfolio).values(name="Renamed"))
        user_id = await session.scalar(select(User.id))
        assert user_id is not None
        opened = (await sessions.open(session, user_id=user_id, broker="paper")).session
    async with filled.get_session() as session:
        assert await session.scalar(select(func.count()).select_from(PortfolioSnapshot)) == 3
        named = {row.portfolio_id: row.name for row in await session.scalars(select(Portfolio))}
        assert named["of-paper"] == named["second"] == "Renamed" != named["of-zerodha"]
        assert (await session.get_one(TradingSession, opened.session_id)).is_active


async def test_rows_of_another_broker_are_neither_made_nor_changed_nor_taken(filled: DatabaseManager) -> None:
    portfolio = {"portfolio_id": "x", "broker": "zerodha", "currency": "INR", "name": "X"}
    for statement in (
        sa.insert(Portfolio).values(portfolio),
        sa.update(Portfolio).values(broker="zerodha").where(Portfolio.portfolio_id == "of-paper"),
        sa.insert(TradingSession).values(session_id="x", user_id=1, broker="zerodha"),
    ):
        async with filled.get_session(broker="paper") as session:
            with pytest.raises(PermissionDenied):
                await session.execute(statement)
            with pytest.raises(TransactionAborted):
                await session.commit()
    async with filled.get_session(broker="paper") as session:
        snapshot = make_snapshot(portfolio_id="of-zerodha", broker="zerodha", snapshot_time=NOON.replace(hour=13))
        session.add(snapshot)
        with pytest.raises(PermissionDenied):
            await session.flush()
    async with filled.transaction(broker="paper") as session:
        changed: Any = await session.execute(
            sa.update(Portfolio).values(name="Mine").where(Portfolio.broker != "paper")
        )
        assert changed.rowcount == 0
        with pytest.raises(PermissionDenied):
            async with session.begin_nested():
                await session.execute(sa.delete(PortfolioSnapshot))
        assert await seen(session) == only("paper")


async def test_hashes_and_the_partitions_by_name_are_out_of_reach(filled: DatabaseManager) -> None:
    for statement in (
        f"SELECT * FROM {PARTITION}",
        f"INSERT INTO {PARTITION} SELECT * FROM portfolio_snapshots",
        f"TRUNCATE {PARTITION}",
        f"COPY {PARTITION} TO STDOUT",
        "SELECT hashed_password FROM users",
        "UPDATE strategies SET name = 'x'",
        "ALTER TABLE portfolios DISABLE ROW LEVEL SECURITY",
        "DROP POLICY broker ON portfolios",
        "CREATE TABLE stolen (x int)",
    ):
        async with filled.get_session(broker="paper") as session:
            with pytest.raises(PermissionDenied):
                await session.execute(text(statement))
    async with filled.get_session(broker="paper") as session:
        assert (await session.execute(select(User.id, User.username))).one().username == "trader"
        assert (await session.scalars(select(Strategy))).all() == []


async def test_a_partition_that_is_made_later_is_out_of_reach_too(filled: DatabaseManager) -> None:
    later = NOON.replace(year=2027)
    name = snapshot_partition_name(later)
    async with filled.transaction() as session:
        await portfolios.ensure_partitions(session, later, later)
        session.add(make_snapshot(portfolio_id="of-zerodha", broker="zerodha", snapshot_time=later))
    for partition in (name, PARTITION):
        for statement in (
            f"SELECT count(*) FROM ONLY {partition}",
            f"UPDATE {partition} SET cash = 0",
            f"DELETE FROM {partition}",
            f"SELECT 1 FROM {partition} FOR UPDATE",
            f"LOCK TABLE {partition}",
            f"ALTER TABLE portfolio_snapshots DETACH PARTITION {partition}",
            f"CREATE TEMPORARY TABLE mine (LIKE {partition} INCLUDING ALL) INHERITS ({partition})",
        ):
            async with filled.get_session(broker="paper") as session:
                with pytest.raises(PermissionDenied):
                    await session.execute(text(statement))
    async with filled.get_session(broker="paper") as session:
        assert await seen(session) == only("paper")


async def test_neither_statistics_nor_plans_nor_keys_show_another_brokers_rows(filled: DatabaseManager) -> None:
    async with filled.transaction() as session:
        await session.execute(text("ANALYZE"))
        known = text("SELECT count(*) FROM pg_stats WHERE tablename = ANY(:names)")
        names = [*ISOLATED_TABLES, PARTITION]
        assert await session.scalar(known, {"names": names}), "the owner sees what was sampled"
    async with filled.get_session(broker="paper") as session:
        assert await session.scalar(known, {"names": names}) == 0
        with pytest.raises(PermissionDenied):
            async with session.begin_nested():
                await session.execute(text("SELECT starelid FROM pg_statistic"))
        ran = text("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT * FROM portfolio_snapshots")
        plan = "\n".join(await session.scalars(ran))
        assert "Rows Removed by Filter: 1" in plan or "actual rows=1" in plan
        # A function that tells what it is given is called for no row that the policy has not let through.
        leaky = "SELECT count(*) FROM portfolios WHERE CASE WHEN broker = 'zerodha' THEN 1 / (length(name) - length(name)) = 1 ELSE true END"
        assert await session.scalar(text(leaky)) == 1
    async with filled.get_session(broker="paper") as session:
        with pytest.raises(UniqueViolation) as caught:
            await portfolios.create(session, portfolio_id="of-zerodha", broker="paper", currency="INR", name="Mine")
        assert "Zerodha" not in str(caught.value)
    async with filled.get_session(broker="paper") as session:
        with pytest.raises((PermissionDenied, ForeignKeyViolation)):
            session.add(make_snapshot(portfolio_id="of-zerodha", broker="paper", snapshot_time=NOON.replace(hour=15)))
            await session.flush()


async def test_sessions_of_two_brokers_may_be_open_in_one_task(filled: DatabaseManager) -> None:
    async with filled.get_session(broker="paper") as one, filled.get_session(broker="zerodha") as other:
        for _ in range(2):
            for session, broker in ((one, "paper"), (other, "zerodha")):
                assert await seen(session) == only(broker)
                streamed = await session.stream(select(Portfolio.broker))
                assert {row.broker async for row in streamed} == {broker}
                await session.commit()


async def test_a_lost_connection_takes_no_broker_with_it(filled: DatabaseManager) -> None:
    one = PoolOptions(size=1, max_overflow=0, read_size=1)
    async with DatabaseManager(database_of(filled), pool=one) as manager, filled.get_session() as killer:
        for broker in (*BROKERS, None):
            with pytest.raises(ConnectionLost):
                async with manager.transaction(broker=broker) as session:
                    pid = await session.scalar(text("SELECT pg_backend_pid()"))
                    await killer.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
                    await session.execute(text("SELECT 1"))
            for following in (*BROKERS, None):
                async with manager.get_session(broker=following) as session:
                    assert await seen(session) == (only(following) if following else only(*BROKERS))


@pytest.mark.builtin_server(reason="asks who we are on it")
async def test_on_the_embedded_server_nobody_who_works_passes_by_the_policies(filled: DatabaseManager) -> None:
    async with filled.get_session() as session:
        mighty = (
            "SELECT rolname FROM pg_roles WHERE (rolsuper OR rolbypassrls) AND rolname IN (current_user, 'panda_app')"
        )
        assert (await session.scalars(text(mighty))).all() == []
        forced = "SELECT relname FROM pg_class WHERE relrowsecurity AND relforcerowsecurity ORDER BY relname"
        assert (await session.scalars(text(forced))).all() == sorted(ISOLATED_TABLES)


async def test_copy_goes_by_way_of_a_temporary_table(filled: DatabaseManager) -> None:
    async with filled.transaction(broker="paper") as session:
        table = await stage(session, {"broker": "text", "name": "text"})
        await copy_records(session, table, [("paper", "P"), ("paper", "Q")], columns=["broker", "name"])
        await session.execute(
            text(f"INSERT INTO portfolios SELECT 'by-copy-' || name, broker, NULL, 'INR', name FROM {table}")
        )
        assert await session.scalar(select(func.count()).select_from(Portfolio)) == 3
    async with filled.get_session(broker="paper") as session:
        with pytest.raises(PermissionDenied):
            table = await stage(session, {"broker": "text"})
            await copy_records(session, table, [("zerodha",)], columns=["broker"])
            await session.execute(text(f"INSERT INTO portfolios SELECT 'z', broker, NULL, 'INR', 'Z' FROM {table}"))


async def test_what_a_broker_records_in_bulk_is_its_own(filled: DatabaseManager) -> None:
    money = dict.fromkeys(("cash", "realized_pnl", "unrealized_pnl", "total_pnl", "equity"), Decimal(0))
    mine, theirs = (
        PortfolioSnapshotCreate(
            portfolio_id=f"of-{broker}",
            broker=broker,
            snapshot_time=NOON.replace(hour=14),
            positions=Positions(),
            **money,
        )
        for broker in BROKERS
    )
    async with filled.transaction(broker="paper") as session:
        await portfolios.record_many(session, [mine])
    async with filled.get_session(broker="paper") as session:
        with pytest.raises(PermissionDenied):
            await portfolios.record_many(session, [theirs])


async def test_a_missing_partition_is_told_with_who_makes_it(filled: DatabaseManager) -> None:
    late = NOON.replace(year=2031)
    async with filled.get_session(broker="paper") as session:
        with pytest.raises(PermissionDenied, match="ensure_partitions"):
            await portfolios.ensure_partitions(session, late, late)


# Read-only


async def test_a_read_only_session_of_a_broker_is_one_read_only_transaction(filled: DatabaseManager) -> None:
    async with filled.get_session(broker="zerodha", read_only=True) as session:
        assert await seen(session) == only("zerodha")
        assert session.in_transaction()
        with pytest.raises(ReadOnlyViolation):
            await session.execute(sa.update(Portfolio).values(name="x"))
    async with filled.transaction(broker="paper", read_only=True, isolation_level="REPEATABLE READ") as session:
        assert await session.scalar(text("SHOW transaction_isolation")) == "repeatable read"
        assert await seen(session) == only("paper")


# Fails closed


@pytest.mark.parametrize("name", ["", "Paper", "paper'; RESET ROLE; --", "p" * 33, "pa per", "paper\n", "-", "панда"])
async def test_what_is_no_brokers_name_is_refused_before_anything_is_sent(manager: DatabaseManager, name: str) -> None:
    with pytest.raises(InvalidInput, match="broker"):
        manager.get_session(broker=name)
    with pytest.raises(InvalidInput, match="broker"):
        manager.transaction(broker=name)
    async with manager.get_session() as session:
        with pytest.raises(InvalidInput):
            await session.scalar(text("SELECT panda_set_broker(:name)"), {"name": name})


async def test_the_restricted_role_without_a_broker_sees_nothing(filled: DatabaseManager) -> None:
    async with filled.get_session() as session:
        await session.execute(text(f"SET LOCAL ROLE {RESTRICTED_ROLE}"))
        assert await seen(session) == only()
    async with filled.get_session(broker="paper") as session:
        await session.execute(text("RESET ALL"))
        assert await seen(session) == only()
        with pytest.raises(PermissionDenied):
            await session.execute(text("INSERT INTO portfolios VALUES ('y', 'paper', NULL, 'INR', 'Y')"))


async def test_row_security_cannot_be_switched_off(filled: DatabaseManager) -> None:
    async with filled.get_session(broker="paper") as session:
        await session.execute(text("SET LOCAL row_security = off"))
        with pytest.raises(PermissionDenied):
            await session.execute(select(Portfolio.broker))


LEADS_OUT = [
    "RESET ROLE",
    "set role none",
    "SET LOCAL ROLE NONE",
    "SET SESSION ROLE NONE",
    "SET SESSION AUTHORIZATION DEFAULT",
    "RESET SESSION AUTHORIZATION",
    "SET LOCAL panda.broker = 'zerodha'",
    'SET "panda"."broker" = zerodha',
    "RESET panda.broker",
    "COMMIT",
    "END",
    "ROLLBACK",
    "ROLLBACK AND CHAIN",
    "ABORT",
    "PREPARE TRANSACTION 'x'",
    "DISCARD ALL",
    "-- a comment\n /* and\n another */ ; COMMIT",
    "SET/**/ROLE NONE",
    "SET -- a comment\n LOCAL ROLE NONE",
    'SET "role" TO none',
    'SET U&"\\0072ole" TO none',
    "SET session_authorization TO DEFAULT",
    "/* one /* in another */ */ RESET ROLE",
    'SET "Panda.broker" TO zerodha',
    "SET panda /**/ . broker = 'zerodha'",
    "SELECT set_config('role', 'none', true)",
    "SELECT set_config(lower('ROLE'), 'none', true)",
    "SELECT pg_catalog.set_config('panda.broker', 'zerodha', true)",
    "UPDATE pg_settings SET setting = 'none' WHERE name = 'role'",
    "SELECT panda_set_broker('zerodha')",
    "ALTER ROLE panda_app PASSWORD 'known'",
    "DROP OWNED BY CURRENT_USER",
]


async def test_a_statement_that_leads_out_of_the_session_is_not_sent(filled: DatabaseManager) -> None:
    for statement in LEADS_OUT:
        async with filled.get_session(broker="paper") as session:
            assert await who(session) == RESTRICTED_ROLE
            await refused(session, statement)
            assert await seen(session) == only("paper"), statement


async def refused(session: AsyncSession, statement: str) -> None:
    """By the session and by the driver's connection, in each way that they have to run it."""
    sends: list[Any] = [
        lambda: session.execute(text(statement)),
        lambda: session.execute(text(statement), [{}, {}]),
        lambda: session.stream(text(statement)),
    ]
    async with raw_connection(session) as connection:
        raw: Any = connection
        calls = (raw.execute, raw.fetch, raw.fetchrow, raw.fetchval, raw.prepare, raw.cursor)
        sends += [functools.partial(call, statement) for call in calls]
        sends += [functools.partial(raw.executemany, statement, [()])]
        sends += [
            functools.partial(raw.execute, f"SELECT {text}; {statement}") for text in ("1", "'\\'", "'a;' /* ; */")
        ]
        for send in sends:
            with pytest.raises(SessionMisuse, match="lead out"):
                await send()
        assert raw.is_in_transaction()


async def test_past_its_transaction_a_brokers_connection_sends_nothing(filled: DatabaseManager) -> None:
    """BEGIN is lazy: what goes to the driver before the session's first statement would see every broker."""
    query = "SELECT broker FROM portfolios"
    async with filled.get_session(broker="paper") as session:
        raw: Any = (await (await session.connection()).get_raw_connection()).driver_connection
        sends: list[Any] = [
            functools.partial(call, query) for call in (raw.execute, raw.fetch, raw.fetchval, raw.prepare)
        ]
        sends += [
            lambda: raw.executemany("UPDATE portfolios SET name = 'x'", [()]),
            lambda: raw.copy_from_query(query, output=io.BytesIO()),
            lambda: raw.copy_records_to_table("users", records=[(1,)], columns=["id"]),
        ]
        for send in sends:
            with pytest.raises(SessionMisuse, match="no transaction of the broker"):
                await send()
        assert await seen(session) == only("paper")
        await raw.execute("COMMIT;")  # as it would be called by who knows the driver
        with pytest.raises(SessionMisuse, match="no transaction of the broker"):
            await raw.fetch(query)


async def test_a_statement_that_was_prepared_before_is_refused_too(filled: DatabaseManager) -> None:
    one = PoolOptions(size=1, max_overflow=0, read_size=1)
    async with DatabaseManager(str(database_of(filled)), pool=one) as manager:
        async with manager.get_session() as session:
            raw: Any = (await (await session.connection()).get_raw_connection()).driver_connection
            kept = await raw.prepare("RESET ROLE")
            await session.execute(text("RESET ROLE"))
            await session.commit()
        async with manager.get_session(broker="paper") as session:
            with pytest.raises(SessionMisuse, match="lead out"):
                await session.execute(text("RESET ROLE"))
            for run in ("fetch", "fetchrow", "fetchval", "cursor", "executemany"):
                with pytest.raises(SessionMisuse, match="lead out"):
                    await getattr(kept, run)()
            assert await who(session) == RESTRICTED_ROLE


LEFT: dict[str, tuple[str, str, Any]] = {
    "a setting": ("SET search_path = pg_catalog", "SHOW search_path", '"$user", public'),
    "a setting of a function": (
        "SELECT set_config('search_path', 'pg_catalog', false)",
        "SHOW search_path",
        '"$user", public',
    ),
    "a role": (f"SET ROLE {RESTRICTED_ROLE}", "SELECT current_user = session_user", True),
    "a broker": ("SET panda.broker = 'zerodha'", "SELECT coalesce(current_setting('panda.broker', true), '')", ""),
    "a cursor": (
        "DECLARE kept CURSOR WITH HOLD FOR SELECT * FROM portfolios",
        "SELECT count(*) FROM pg_cursors WHERE name = 'kept'",
        0,
    ),
    "a temporary table": (
        "CREATE TEMPORARY TABLE kept AS SELECT * FROM portfolios",
        "SELECT to_regclass('pg_temp.kept')",
        None,
    ),
    "a table's shadow": (
        "CREATE TEMP TABLE strategies (strategy_id int)",
        "SELECT to_regclass('pg_temp.strategies')",
        None,
    ),
    "a function": (
        "CREATE FUNCTION pg_temp.kept() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "SELECT to_regprocedure('pg_temp.kept()')",
        None,
    ),
    "a lock": (
        "SELECT pg_advisory_lock(42)",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        0,
    ),
    "a channel": ("LISTEN kept", "SELECT count(*) FROM pg_listening_channels()", 0),
    "what a block did": ("DO $$ BEGIN EXECUTE 'SET search_path = pg_catalog'; END $$", "SHOW search_path", '"$user", public'),
}  # fmt: skip


async def test_nothing_that_outlives_a_transaction_goes_on_to_the_next_session(filled: DatabaseManager) -> None:
    one = PoolOptions(size=1, max_overflow=0, read_size=1)
    async with DatabaseManager(database_of(filled), pool=one) as manager:
        for _ in range(2):  # the second time the statement is prepared already
            for what, (leave, ask, clean) in LEFT.items():
                for broker in (None, "paper"):
                    if broker is not None and what in ("a role", "a broker"):
                        continue  # refused, as told above
                    async with manager.transaction(broker=broker) as session:
                        pid = await session.scalar(text("SELECT pg_backend_pid()"))
                        await session.execute(text(leave))
                        assert await session.scalar(text(ask)) != clean or what in ("a role", "a channel")
                    for following in ("zerodha", None):
                        async with manager.get_session(broker=following) as session:
                            if what != "a role" or following is None:
                                found = await session.scalar(text(ask))
                                assert found == (following or "" if what == "a broker" else clean), what
                            if what != "a table's shadow":
                                assert await seen(session) == (only(following) if following else only(*BROKERS))
                            assert await session.scalar(text("SELECT pg_backend_pid()")) == pid, "no new connection"
        async with manager.get_session(read_only=True) as session:
            await session.execute(text("SET search_path = pg_catalog"))
        async with manager.get_session(read_only=True) as session:
            assert await session.scalar(text("SHOW search_path")) == '"$user", public'
    # A pooler hands the server's connections on as they are.
    async with DatabaseManager(database_of(filled), "testing", "migrations_only", pgbouncer=True) as pooled:
        async with pooled.get_session(broker="paper") as session:
            for what, (leave, _, _) in LEFT.items():
                with pytest.raises(
                    SessionMisuse, match="lead out" if what in ("a role", "a broker") else "other brokers"
                ):
                    await session.execute(text(leave if what != "what a block did" else "SET search_path = pg_catalog"))
            assert await seen(session) == only("paper")
            await session.execute(text("SET LOCAL work_mem = '8MB'"))
    async with DatabaseManager(database_of(filled), pool=one) as manager:
        with pytest.raises(StatementFault):
            async with manager.transaction() as session:
                await session.execute(text("SELECT pg_advisory_lock(42)"))
                await session.execute(text("SELECT nothing"))
        async with manager.get_session() as session:
            assert await session.scalar(text(LEFT["a lock"][1])) == 0


def database_of(manager: DatabaseManager) -> str:
    parsed = manager._life.place.url
    assert parsed is not None
    return swapped(parsed, str(parsed.database))


async def test_savepoints_are_no_way_out_and_go_on_working(filled: DatabaseManager) -> None:
    async with filled.transaction(broker="paper") as session:
        with pytest.raises(PermissionDenied):
            async with session.begin_nested():
                await session.execute(text("INSERT INTO portfolios VALUES ('y', 'zerodha', NULL, 'INR', 'Y')"))
        assert await seen(session) == only("paper")
        async with filled.transaction(session=session) as inner:
            await portfolios.create(inner, portfolio_id="in", broker="paper", currency="INR", name="In")
    with pytest.raises(ConfigurationError):
        filled.transaction(session=session, broker="paper")


async def test_autocommit_is_refused(filled: DatabaseManager) -> None:
    async with filled.get_session(broker="paper") as session:
        with pytest.raises(SessionMisuse, match="AUTOCOMMIT"):
            await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
    async with filled.get_session(broker="paper") as session:
        assert await seen(session) == only("paper")


async def test_the_option_holds_on_an_engine_and_on_a_connection_and_costs_others_no_listener(
    filled: DatabaseManager,
) -> None:
    count = text("SELECT DISTINCT broker FROM portfolios")
    option = {BROKER: "paper"}
    async with filled.engine.execution_options(**option).connect() as connection:
        assert (await connection.scalars(count)).all() == ["paper"]
    async with filled.engine.connect() as connection:
        await connection.execution_options(**option)
        assert (await connection.scalars(count)).all() == ["paper"]
        await connection.rollback()
        await connection.execution_options(**{BROKER: "zerodha"})
        assert (await connection.scalars(count)).all() == ["zerodha"]
    async with filled.get_session() as session:
        await session.connection(execution_options=option)
        assert (await session.scalars(count)).all() == ["paper"]
    async with filled.get_session() as session:
        assert set(await session.scalars(count)) == set(BROKERS)
    assert filled.engine.sync_engine._has_events is False


async def test_after_a_commit_the_session_is_the_brokers_still(filled: DatabaseManager) -> None:
    async with filled.get_session(broker="paper") as session:
        for end in (session.commit, session.rollback):
            await session.execute(sa.update(Portfolio).values(name="Changed"))
            await end()
            assert await who(session) == RESTRICTED_ROLE
            assert await seen(session) == only("paper")


# One pool


async def test_a_connection_carries_nothing_over(filled: DatabaseManager) -> None:
    one = PoolOptions(size=1, max_overflow=0, read_size=1)
    query = text("SELECT broker FROM portfolios ORDER BY 1")
    async with DatabaseManager(database_of(filled), pool=one) as manager:
        for _ in range(7):  # often enough for a cached plan that is not made for one role
            for broker in BROKERS:
                async with manager.get_session(broker=broker) as session:
                    assert (await session.scalars(query)).all() == [broker]
                with pytest.raises(StatementFault):
                    async with manager.transaction(broker=broker) as session:
                        await session.execute(text("SELECT nothing"))
                with pytest.raises(asyncio.CancelledError):
                    async with manager.transaction(broker=broker) as session:
                        await session.execute(query)
                        raise asyncio.CancelledError
            async with manager.get_session() as session:
                assert (await session.scalars(query)).all() == list(BROKERS)
                assert await who(session) != RESTRICTED_ROLE
                assert not await session.scalar(text("SELECT current_setting('panda.broker', true)"))
                await session.commit()


async def mix(manager: DatabaseManager, *, tasks: int, rounds: int) -> int:
    """Tasks of two brokers and of none, that read, write, fail and are cancelled; the number of looks."""
    looks = 0

    async def work(number: int) -> None:
        nonlocal looks
        broker = (*BROKERS, None)[number % 3]
        for turn in range(rounds):
            async with manager.get_session(broker=broker, read_only=turn % 4 == 3) as session:
                brokers = set(await session.scalars(select(Portfolio.broker)))
                assert brokers == ({broker} if broker else set(BROKERS))
                if turn % 4 == 0:
                    await session.execute(
                        sa.update(Portfolio).values(name=f"{number}").where(Portfolio.broker == broker)
                    )
                    await session.commit()
                elif turn % 4 == 1:
                    with pytest.raises(StatementFault):
                        await session.execute(text("SELECT nothing"))
                looks += 1
            if turn % 5 == 4:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.001), manager.transaction(broker=broker) as session:
                        await session.execute(text("SELECT pg_sleep(1)"))

    await asyncio.gather(*(work(number) for number in range(tasks)))
    return looks


async def test_sixty_four_tasks_of_two_brokers_share_a_pool_and_see_only_their_own(filled: DatabaseManager) -> None:
    pool = PoolOptions(size=8, max_overflow=0, read_size=2, wait=60)
    async with DatabaseManager(database_of(filled), pool=pool) as manager:
        assert await mix(manager, tasks=64, rounds=6) == 64 * 6


@pytest.fixture
def bouncer(component: Any) -> Iterator[tuple[str, str]]:
    """The URLs of a server and of a PgBouncer before it, with fewer connections than there are tasks."""
    component(debian.binaries() is not None, "apt-get install postgresql")
    component(debian.pgbouncer() is not None, "apt-get install pgbouncer")
    with debian.debian_server() as server, debian.pooled(server, size=3) as url:
        yield server.url(query="?sslmode=require"), url


@pytest.mark.component
async def test_brokers_stay_apart_behind_pgbouncer(bouncer: tuple[str, str]) -> None:
    direct, url = bouncer
    async with DatabaseManager(direct) as manager:
        await fill(manager)
    pool = PoolOptions(size=8, max_overflow=0, read_size=2, wait=60)
    async with DatabaseManager(url, "testing", "migrations_only", pgbouncer=True, pool=pool) as manager:
        assert await mix(manager, tasks=24, rounds=5) == 24 * 5
        for broker in BROKERS:
            async with manager.get_session(broker=broker) as session:
                assert await seen(session) == only(broker)
                assert await session.scalar(text("SHOW statement_timeout")) != "0"


# The owner, and a login of its own


async def test_the_owner_of_the_tables_is_bound_by_policies_too(filled: DatabaseManager) -> None:
    async with filled.transaction() as session:
        await session.execute(text("DROP POLICY application ON portfolios"))
        superuser = await session.scalar(text("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"))
        if not superuser:
            assert (await session.scalars(select(Portfolio.broker))).all() == []


async def test_a_login_that_starts_as_the_restricted_role_falls_back_to_it(filled: DatabaseManager) -> None:
    """RESET ROLE leads to the role that the connection began with, SET ROLE NONE to the login: so the guide says."""
    url = f"{database_of(filled)}&options=-c%20role%3D{RESTRICTED_ROLE}"
    async with DatabaseManager(url, "testing", "migrations_only") as manager:
        async with manager.get_session() as session:
            for statement in ("RESET ROLE", "RESET ALL", "COMMIT"):
                await session.execute(text(statement))
                assert await seen(session) == only()
        async with manager.get_session(broker="paper") as session:
            assert await seen(session) == only("paper")
            await session.execute(text("DO $$ BEGIN EXECUTE 'RESET ' || 'ROLE'; END $$"))
            assert await seen(session) == only("paper")
        async with manager.get_session() as session:
            await session.execute(text("SET ROLE NONE"))
            assert await seen(session) == only(*BROKERS)
            await session.commit()
        async with manager.get_session() as session:
            assert await seen(session) == only(), "wiped off"


# Where the role or the function is missing


async def test_other_clients_set_their_broker_by_a_function(filled: DatabaseManager) -> None:
    async with filled.transaction() as session:
        await session.execute(text("SELECT panda_set_broker('zerodha')"))
        assert await seen(session) == only("zerodha")
        await session.execute(text("SELECT panda_set_broker('paper')"))
        assert await seen(session) == only("paper")
    async with filled.get_session() as session:
        assert await seen(session) == only(*BROKERS)


async def test_a_database_without_the_policies_is_shut_to_brokers(filled: DatabaseManager) -> None:
    await schema.downgrade(filled.engine, "0005")
    async with filled.get_session(broker="paper") as session:
        with pytest.raises(PermissionDenied):
            await session.execute(select(Portfolio.broker))


async def test_migrating_many_databases_of_one_server_at_once_makes_one_role(
    database_url: str,
) -> None:
    parsed = DatabaseUrl.parse(database_url)
    names = [f"{parsed.database}_{number}" for number in range(4)]  # of this run: other runs drop what belongs to none
    admin = await asyncpg.connect(database_url)
    try:
        for name in names:
            await admin.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
        engines = [build_engine(DatabaseUrl.parse(swapped(parsed, name)), EngineOptions()) for name in names]
        await asyncio.gather(*(schema.upgrade(engine) for engine in engines))
        for engine in engines:
            async with engine.connect() as connection:
                assert (await schema.inspect(connection)).status == "at_head"
                may = "SELECT has_table_privilege('panda_app', 'portfolios', 'SELECT')"
                assert (await connection.execute(text(may))).scalar_one()
            await engine.dispose()
    finally:
        for name in names:
            await admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        await admin.close()


def swapped(url: DatabaseUrl, database: str) -> str:
    """The same login on the same server."""
    host, port = url.hosts[0]
    login = f"{url.user}:{quote(url.password, safe='')}@" if url.password else f"{url.user}@"
    return f"postgresql://{login}/{database}?host={host}&port={port}"


async def test_old_rows_survive_the_upgrade_and_the_downgrade(empty_database: str) -> None:
    engine = build_engine(DatabaseUrl.parse(empty_database), EngineOptions())
    await schema.upgrade(engine, "0005")
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO users (username, hashed_password) VALUES ('old', 'hash')"))
        await connection.execute(text("INSERT INTO portfolios VALUES ('old', 'zerodha', NULL, 'INR', 'Old')"))
        await connection.execute(text("INSERT INTO trading_sessions (session_id, user_id) VALUES ('old', 1)"))
    for move, revision in ((schema.upgrade, "head"), (schema.downgrade, "0005"), (schema.upgrade, "head")):
        await move(engine, revision)
        async with engine.connect() as connection:
            assert (await connection.execute(text("SELECT portfolio_id, broker FROM portfolios"))).all() == [
                ("old", "zerodha")
            ]
            assert (await connection.execute(text("SELECT session_id, broker FROM trading_sessions"))).all() == [
                ("old", "paper")
            ]
    await engine.dispose()


def test_what_a_statement_does_is_told_by_its_words() -> None:
    from core.database.driver._broker import begin_with
    from core.database.driver._effect import Effect, effect_of

    assert begin_with("BEGIN;", "paper").endswith(f"SET LOCAL ROLE {RESTRICTED_ROLE}")
    with pytest.raises(InvalidInput):
        begin_with("BEGIN;", "paper'; RESET ROLE; --")
    for statement in (
        "SELECT 1",
        "UPDATE users SET role = 'x'",
        "SELECT 'COMMIT'",
        "SELECT 'a; COMMIT'; SELECT $$; RESET ROLE$$; SELECT 1",
        "ROLLBACK TO SAVEPOINT sa_savepoint_1",
        "ROLLBACK WORK TO SAVEPOINT a",
        "SET LOCAL statement_timeout = 100",
        "SET TRANSACTION READ ONLY",
        "SELECT set_config('statement_timeout', '5', true), set_config('lock_timeout', '5', true)",
        "CREATE TEMPORARY TABLE staged (x int) ON COMMIT DROP",
        "SELECT pg_advisory_xact_lock(1)",
        "ENDLESS",
        "WITH a AS (SELECT 1) SELECT * FROM a -- COMMIT",
        "",
        ";",
    ):
        assert effect_of(statement) == Effect.NONE, statement
    for statement in (
        "SET statement_timeout = 100",
        "SELECT 1 INTO TEMP kept",
        "SELECT pg_try_advisory_lock(1)",
        "RESET ALL",
    ):
        assert effect_of(statement) == Effect.OUTLIVES, statement
    assert issubclass(DriverConnection, asyncpg.Connection)


@hypothesis.given(st.text(st.sampled_from("SETROL; '\"$-/*\\\n\0\ud800aé"), max_size=40))
def test_whatever_stands_before_it_a_statement_that_leads_out_is_found(before: str) -> None:
    """Whether the server sees text or a comment there or not: what cannot be told counts."""
    from core.database.driver._effect import Effect, effect_of

    effect_of(before)
    tokens = list(sql_tokens(f"{before};RESET ROLE"))
    if [token.text for token in tokens[-4:]] == [";", "RESET", " ", "ROLE"]:
        assert Effect.LEAVES in effect_of(f"{before};RESET ROLE")


async def test_whoever_is_cancelled_while_a_connection_is_wiped_leaves_none_behind_that_is_not(
    filled: DatabaseManager,
) -> None:
    one = PoolOptions(size=1, max_overflow=0, read_size=1)
    async with DatabaseManager(database_of(filled), pool=one) as manager:
        cut = 0
        for step in range(40):
            try:
                async with asyncio.timeout(step * 0.000_2), manager.transaction(broker="paper") as session:
                    await session.execute(text("SET search_path = pg_catalog"))
                    await session.execute(text("CREATE TEMP TABLE kept AS SELECT 1"))
            except TimeoutError:
                cut += 1
            async with manager.get_session() as session:
                assert await session.scalar(text("SHOW search_path")) == '"$user", public'
                assert await session.scalar(text("SELECT to_regclass('pg_temp.kept')")) is None
                assert await seen(session) == only(*BROKERS)
        assert cut


# Roles


async def test_a_plan_is_applied_once_and_then_nothing_is_missing(filled: DatabaseManager) -> None:
    suffix = secrets.token_hex(4)
    names = {"application": f"app_{suffix}", "reader": f"reader_{suffix}"}
    try:
        found = await roles.plan(filled.engine, **names)
        assert f"CREATE ROLE app_{suffix} NOLOGIN;" in found.sql
        assert found.forbidden == ()
        assert await roles.apply(filled.engine, **names) == found
        assert (await roles.plan(filled.engine, **names)).steps == ()
        assert (await roles.apply(filled.engine, **names)).sql == ""
        async with filled.transaction() as session:
            await session.execute(text(f"GRANT ALL ON auth_events TO {names['application']}"))
        [excess] = (await roles.apply(filled.engine, **names)).steps
        assert excess.sql == f"REVOKE UPDATE, DELETE, TRUNCATE ON auth_events FROM {names['application']}"
        async with filled.transaction() as session:
            await session.execute(text(f"GRANT {names['application']}, {names['reader']} TO CURRENT_USER"))
        async with filled.transaction() as session:
            await session.execute(text(f"SET LOCAL ROLE {names['reader']}"))
            assert await seen(session) == only(*BROKERS)
            for statement in (
                "SELECT hashed_password FROM users",
                "SELECT credentials FROM trading_sessions",
                "SELECT bearer_hash FROM trading_sessions",
                "SELECT name_digest FROM auth_events",
                "SELECT bucket FROM login_delays",
                "DELETE FROM portfolios",
            ):
                with pytest.raises(PermissionDenied):
                    async with session.begin_nested():
                        await session.execute(text(statement))
        async with filled.transaction() as session:
            await session.execute(text(f"SET LOCAL ROLE {names['application']}"))
            assert await seen(session) == only(*BROKERS)
            await session.execute(sa.update(Portfolio).values(name="By the application"))
            await session.execute(text("INSERT INTO auth_events (kind, name_digest) VALUES ('login', sha256('x'))"))
            for statement in (
                "DROP POLICY broker ON portfolios",
                "UPDATE auth_events SET kind = 'login'",
                "DELETE FROM auth_events",
                "TRUNCATE auth_events",
            ):
                with pytest.raises(PermissionDenied):
                    async with session.begin_nested():
                        await session.execute(text(statement))
            assert (
                await session.scalars(text(f"SELECT pg_has_role('{names['application']}', 'panda_app', 'MEMBER')"))
            ).one()
    finally:
        async with filled.transaction() as session:
            for name in names.values():
                await session.execute(text(f"DROP OWNED BY {name}"))
                await session.execute(text(f"DROP ROLE IF EXISTS {name}"))


async def test_rights_that_were_lost_and_rights_on_partitions_are_in_the_plan(filled: DatabaseManager) -> None:
    async with filled.transaction() as session:
        await session.execute(text(f"REVOKE INSERT ON portfolios FROM {RESTRICTED_ROLE}"))
        await session.execute(text(f"REVOKE SELECT (username) ON users FROM {RESTRICTED_ROLE}"))
        await session.execute(text(f"GRANT SELECT ON {PARTITION} TO {RESTRICTED_ROLE}"))
    mine = [step.sql for step in (await roles.plan(filled.engine)).steps if step.role == RESTRICTED_ROLE]
    assert mine == [
        f"REVOKE SELECT ON {PARTITION} FROM {RESTRICTED_ROLE}",
        f"GRANT SELECT, INSERT, UPDATE ON portfolios TO {RESTRICTED_ROLE}",
        f"GRANT SELECT (id, username, is_active, created_at, updated_at), UPDATE (updated_at) ON users TO {RESTRICTED_ROLE}",
    ]


DRIFT = {
    "the restricted role on a partition": f"GRANT SELECT ON {PARTITION} TO {RESTRICTED_ROLE}",
    "everybody on a partition": f"GRANT SELECT ON {PARTITION} TO PUBLIC",
    "a column of a partition": f"GRANT SELECT (cash) ON {PARTITION} TO {RESTRICTED_ROLE}",
    "everybody on a table": "GRANT SELECT ON portfolios TO PUBLIC",
    "everybody instead of the role": f"REVOKE SELECT ON strategies FROM {RESTRICTED_ROLE}; GRANT SELECT ON strategies TO PUBLIC",
    "a hash": f"GRANT SELECT (hashed_password) ON users TO {RESTRICTED_ROLE}",
    "a whole table of hashes": f"GRANT ALL ON users TO {RESTRICTED_ROLE}",
    "more than it should": f"GRANT DELETE, TRUNCATE ON portfolios TO {RESTRICTED_ROLE}",
    "the reader on envelopes": "GRANT SELECT (credentials) ON trading_sessions TO {reader}",
    "a reader that writes": "GRANT SELECT, INSERT ON users TO {reader}",
    "what is made later": f"ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {RESTRICTED_ROLE}",
    "what is made later, for everybody": "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO PUBLIC",
}  # fmt: skip


async def test_rights_beside_those_that_are_wanted_are_taken_away(filled: DatabaseManager) -> None:
    reader = f"reader_{secrets.token_hex(4)}"
    try:
        await roles.apply(filled.engine, reader=reader)
        for what, statements in DRIFT.items():
            async with filled.transaction() as session:
                for statement in statements.format(reader=reader).split(";"):
                    await session.execute(text(statement))
            found = await roles.plan(filled.engine, reader=reader)
            assert found.steps and not found.forbidden, what
            if what != "everybody instead of the role":
                async with filled.transaction() as session:  # by hand, as `panda roles plan --sql` prints them
                    for statement in found.sql.split(";\n")[:-1]:
                        await session.execute(text(statement))
                assert (await roles.plan(filled.engine, reader=reader)).steps == (), what
            else:
                assert len((await roles.apply(filled.engine, reader=reader)).steps) == 2
                assert (await roles.plan(filled.engine, reader=reader)).steps == (), what
            assert (await told(database_of(filled))).status == "ok"
        async with filled.transaction(broker="paper") as session:
            assert await seen(session) == only("paper")
            assert (await session.execute(select(User.id, User.username))).one().username == "trader"
    finally:
        await dropped(database_of(filled), [reader])


@pytest.mark.parametrize("name", ["", "Robert", "a; DROP TABLE users", "pg_monitor", RESTRICTED_ROLE, "a" * 64])
async def test_a_name_that_is_none_for_a_role_is_refused(manager: DatabaseManager, name: str) -> None:
    with pytest.raises(ConfigurationError):
        await roles.plan(manager.engine, application=name)
    with pytest.raises(ConfigurationError):
        await roles.apply(manager.engine, reader=name)


async def test_a_database_without_our_tables_has_no_plan(empty_database: str) -> None:
    engine = build_engine(DatabaseUrl.parse(empty_database), EngineOptions())
    with pytest.raises(SchemaMissing):
        await roles.plan(engine)
    await engine.dispose()


@pytest.fixture
def plain_server(component: Any) -> Iterator[debian.DebianServer]:
    component(debian.binaries() is not None, "apt-get install postgresql")
    with debian.debian_server(tls=False) as server:
        yield server


async def run_as(server: debian.DebianServer, user: str, *statements: str) -> None:
    connection = await asyncpg.connect(server.url(user=user))
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


@pytest.mark.component
async def test_an_owner_without_the_right_to_make_roles_migrates_and_is_told_what_is_left(
    plain_server: debian.DebianServer,
) -> None:
    await run_as(plain_server, "postgres", "ALTER ROLE panda NOCREATEROLE")
    async with DatabaseManager(plain_server.url()) as manager:
        async with manager.get_session(broker="paper") as session:
            with pytest.raises(IsolationUnavailable, match="panda roles plan"):
                await session.execute(text("SELECT 1"))
        async with manager.get_session() as session:
            assert await seen(session) == only()
        found = await roles.plan(manager.engine)
        assert {step.sql for step in found.forbidden} >= {
            f"CREATE ROLE {RESTRICTED_ROLE} LOGIN NOINHERIT",
            f"GRANT {RESTRICTED_ROLE} TO panda",
        }
        with pytest.raises(PermissionDenied, match="nothing was done"):
            await roles.apply(manager.engine)
    async with DatabaseManager(plain_server.url(user="postgres"), "testing", "migrations_only") as manager:
        await roles.apply(manager.engine)
    async with DatabaseManager(plain_server.url()) as manager:
        assert (await roles.plan(manager.engine)).steps == ()
        await fill(manager)
        async with manager.get_session(broker="zerodha") as session:
            assert await seen(session) == only("zerodha")


@pytest.mark.component
async def test_a_login_of_the_application_owns_nothing_and_works_for_every_broker(
    plain_server: debian.DebianServer,
) -> None:
    async with DatabaseManager(plain_server.url()) as manager:
        await fill(manager)
        await roles.apply(manager.engine)
    login = f"CREATE ROLE runner LOGIN PASSWORD '{debian.PASSWORD}'"
    await run_as(plain_server, "postgres", login, "GRANT panda_application TO runner")
    mighty = f"ALTER ROLE {RESTRICTED_ROLE} BYPASSRLS REPLICATION"
    await run_as(plain_server, "postgres", mighty, f"GRANT pg_read_all_data TO {RESTRICTED_ROLE}")
    await run_as(plain_server, "postgres", f"ALTER ROLE {RESTRICTED_ROLE} SET panda.broker = 'paper'")
    async with DatabaseManager(plain_server.url(user="postgres"), "testing", "migrations_only") as manager:
        assert [step.sql for step in (await roles.apply(manager.engine)).steps] == [
            f"ALTER ROLE {RESTRICTED_ROLE} NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB NOREPLICATION",
            f"REVOKE pg_read_all_data FROM {RESTRICTED_ROLE}",
            f"ALTER ROLE {RESTRICTED_ROLE} RESET panda.broker",
        ]
        assert (await roles.plan(manager.engine)).steps == ()
        for name in ("application", "reader"):
            with pytest.raises(ConfigurationError, match="superuser"):
                await roles.plan(manager.engine, **{name: "postgres"})
    await run_as(plain_server, "postgres", f"ALTER ROLE {RESTRICTED_ROLE} PASSWORD '{debian.PASSWORD}'")
    for user, sees in (("runner", BROKERS), (RESTRICTED_ROLE, ())):
        url = plain_server.url(user=user)
        async with DatabaseManager(url, "testing", "migrations_only") as manager:
            async with manager.get_session() as session:
                assert await seen(session) == only(*sees)
            async with manager.get_session(broker="paper") as session:
                assert await seen(session) == only("paper")
            if user == RESTRICTED_ROLE:
                async with manager.get_session() as session:
                    for statement in ("SET ROLE NONE", "SET SESSION AUTHORIZATION DEFAULT", "COMMIT"):
                        await session.execute(text(statement))
                        assert await seen(session) == only()
                    with pytest.raises(PermissionDenied):
                        await session.execute(text("SET ROLE panda"))


def test_the_command_prints_the_plan_and_runs_it(
    server_url: str, database_url: str, capsys: Any, monkeypatch: Any
) -> None:
    from core.cli.main import main

    monkeypatch.setenv("DATABASE__POSTGRES_URL", database_url)
    get_settings.cache_clear()
    names = [f"--application=app_{secrets.token_hex(4)}", f"--reader=reader_{secrets.token_hex(4)}"]
    try:
        assert main(["roles", "plan", "--sql", *names]) == 0
        assert capsys.readouterr().out.count("CREATE ROLE") == 2
        assert main(["roles", "apply", "--json", *names]) == 0
        assert all(step["done"] for step in json.loads(capsys.readouterr().out)["steps"])
        assert main(["roles", "plan", *names]) == 0
        assert "nothing is missing" in capsys.readouterr().out
        assert main(["roles", "plan", "--application=No Name"]) == 2
    finally:
        get_settings.cache_clear()
        asyncio.run(dropped(database_url, [name.partition("=")[2] for name in names]))


async def dropped(url: str, names: list[str]) -> None:
    connection = await asyncpg.connect(url)
    for name in names:
        await connection.execute(f"GRANT {name} TO CURRENT_USER")
        await connection.execute(f"DROP OWNED BY {name}")
        await connection.execute(f"DROP ROLE {name}")
    await connection.close()


# The doctor


async def told(url: str) -> Any:
    return next(finding for finding in await examine(url) if finding.check == "isolation")


async def test_the_doctor_tells_what_lets_brokers_through(database_url: str, filled: DatabaseManager) -> None:
    assert (await told(database_url)).status == "ok"
    async with filled.transaction() as session:
        await session.execute(text(f"GRANT SELECT ON {PARTITION} TO {RESTRICTED_ROLE}"))
        await session.execute(text("ALTER TABLE portfolios NO FORCE ROW LEVEL SECURITY"))
    finding = await told(database_url)
    assert finding.status == "error"
    assert finding.details["open_tables"] == ["portfolios"]
    assert finding.details["partitions_open"] == [PARTITION]
    async with filled.transaction() as session:
        for statement in finding.mend.splitlines():
            await session.execute(text(statement.removesuffix(";")))
    assert (await told(database_url)).status == "ok"
