"""The tables: the seed's usage works, the rules are constraints, and the migration makes the same schema."""

import ast
import io
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm.exc import StaleDataError

import core
from core.database import schema
from core.database.connection import DatabaseManager
from core.database.encryption import KeyRing
from core.database.engine import DatabaseUrl, EngineOptions, build_engine
from core.database.errors import (
    CheckViolation,
    ForeignKeyViolation,
    InvalidInput,
    NotNullViolation,
    PartitionMissing,
    UniqueViolation,
)
from core.database.models import (
    INSTRUMENT_WORDS,
    ISOLATED_TABLES,
    RESTRICTED_RIGHTS,
    Base,
    Instrument,
    InstrumentVersion,
    Portfolio,
    PortfolioSnapshot,
    Strategy,
    StrategyRevision,
    TradingSession,
    User,
    snapshot_partition_ddl,
    snapshot_partition_name,
)
from core.database.roles._rights import _SECRETS
from core.testing import make_portfolio, make_user

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
TABLES = Base.metadata.tables


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = build_engine(DatabaseUrl.parse(database_url), EngineOptions())
    yield engine
    await engine.dispose()


@pytest.fixture
async def session(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine, expire_on_commit=False) as session:
        yield session


def instrument(**changes: Any) -> Instrument:
    fields: dict[str, Any] = {
        "instrument_token": 256265,
        "source": "kite",
        "exchange": "NSE",
        "trading_symbol": "NIFTY 50",
        "segment": "INDICES",
        "instrument_type": "IDX",
        "tick_size": 0,
        "lot_size": 0,
    }
    return Instrument(**{**fields, **changes})


def portfolio(**changes: Any) -> Portfolio:
    return make_portfolio(**dict[str, Any](portfolio_id="p") | changes)


def snapshot(**changes: Any) -> PortfolioSnapshot:
    fields: dict[str, Any] = {
        "portfolio_id": "p",
        "broker": "paper",
        "snapshot_time": NOON,
        "cash": Decimal("100000.5"),
        "realized_pnl": Decimal("-1.25"),
        "unrealized_pnl": Decimal("3.5"),
        "total_pnl": Decimal("2.25"),
        "equity": Decimal("100002.75"),
    }
    return PortfolioSnapshot(**{**fields, **changes})


async def user(session: AsyncSession, username: str = "trader") -> User:
    user = make_user(username=username)
    session.add(user)
    await session.flush()
    return user


async def make_partition(session: AsyncSession, month: date) -> None:
    await session.execute(sa.text(snapshot_partition_ddl(month)))


# The documented usage


async def test_a_user_is_created_and_found_as_documented(manager: DatabaseManager) -> None:
    async with manager.get_session() as session:
        user = User(username="trader", hashed_password="hash")
        session.add(user)
        await session.commit()
        assert user.id == 1
        assert user.created_at.tzinfo is UTC
        assert user.created_at == user.updated_at
        assert user.is_active is True
    async with manager.get_session() as session:
        users = await session.execute(select(User).where(User.username == "trader"))
        found = users.scalar_one_or_none()
    assert found is not None
    assert (found.username, found.hashed_password) == ("trader", "hash")


async def test_the_documented_fields_work_by_their_names(session: AsyncSession) -> None:
    owner = await user(session)
    trading = TradingSession(
        session_id="session-1", user_id=owner.id, start_time=NOON, is_active=True, session_data={"ip": "127.0.0.1"}
    )
    strategy = Strategy(
        strategy_id="momentum",
        name="Momentum",
        config={"threshold": 0.02},
        active_brokers=["paper", "zerodha"],
        parameters={"lookback": 20},
    )
    index = instrument(name="NIFTY 50")
    session.add_all([trading, strategy, index])
    await session.commit()
    session.expunge_all()
    trading = await session.get_one(TradingSession, "session-1")
    strategy = await session.get_one(Strategy, "momentum")
    index = await session.get_one(Instrument, 256265)
    assert (trading.user_id, trading.start_time, trading.end_time, trading.is_active) == (owner.id, NOON, None, True)
    assert trading.session_data == {"ip": "127.0.0.1"}
    assert trading.broker == "paper"
    assert (strategy.name, strategy.active_brokers) == ("Momentum", ["paper", "zerodha"])
    assert strategy.config["threshold"] == Decimal("0.02")
    assert strategy.parameters == {"lookback": 20}
    assert (index.trading_symbol, index.name, index.segment, index.instrument_type) == (
        "NIFTY 50",
        "NIFTY 50",
        "INDICES",
        "IDX",
    )


async def test_what_the_server_fills_in_is_there_after_the_commit(session: AsyncSession) -> None:
    owner = await user(session)
    trading, strategy, index = TradingSession(user_id=owner.id), Strategy(name="Momentum"), instrument()
    session.add_all([trading, strategy, index])
    await session.commit()
    assert len(trading.session_id) == 36
    assert (trading.is_active, trading.session_data, trading.end_time) == (True, {}, None)
    assert trading.start_time.tzinfo is UTC
    assert (strategy.version, strategy.config, strategy.parameters, strategy.active_brokers) == (1, {}, {}, [])
    assert len(strategy.strategy_id) == 36
    assert (index.is_active, index.attributes) == (True, {})
    assert index.valid_from == index.created_at


async def test_an_unknown_field_is_a_type_error() -> None:
    for model in (User, TradingSession, Strategy, Instrument, Portfolio, PortfolioSnapshot):
        with pytest.raises(TypeError, match="no_such_field"):
            model(no_such_field=1)


async def test_changes_to_documents_and_broker_lists_are_stored(session: AsyncSession) -> None:
    strategy = Strategy(name="Momentum", config={"legs": [{"side": "buy"}]}, active_brokers=["paper"])
    session.add(strategy)
    await session.commit()
    strategy.config["legs"][0]["side"] = "sell"
    strategy.active_brokers.append("zerodha")
    await session.commit()
    await session.refresh(strategy)
    assert strategy.config == {"legs": [{"side": "sell"}]}
    assert strategy.active_brokers == ["paper", "zerodha"]


async def test_updated_at_moves_with_an_update_and_created_at_does_not(session: AsyncSession) -> None:
    strategy, owner, index = Strategy(name="Momentum"), await user(session), instrument()
    session.add_all([strategy, index])
    await session.commit()
    before = [(row.created_at, row.updated_at) for row in (strategy, owner, index)]
    strategy.name, owner.is_active, index.last_price = "Other", False, Decimal("24000.05")
    await session.commit()
    for (created, updated), row in zip(before, (strategy, owner, index), strict=True):
        assert row.created_at == created
        assert row.updated_at > updated


# Rules


async def test_a_username_is_taken_whatever_the_case_of_its_letters(session: AsyncSession) -> None:
    """More of names in tests/test_usernames.py."""
    await user(session, "Trader")
    await session.commit()
    for name in ("trader", "Trader", "tRADER"):
        with pytest.raises(UniqueViolation) as refused:
            await user(session, name)
        assert refused.value.constraint == "uq_users_username"
        await session.rollback()


async def test_one_session_at_most_is_active_for_a_user_and_broker(session: AsyncSession) -> None:
    owner = await user(session)
    first = TradingSession(user_id=owner.id, broker="zerodha")
    session.add_all([first, TradingSession(user_id=owner.id, broker="paper")])
    await session.commit()
    user_id, session_id = owner.id, first.session_id
    session.add(TradingSession(user_id=user_id, broker="zerodha"))
    with pytest.raises(UniqueViolation) as refused:
        await session.flush()
    assert refused.value.constraint == "uq_trading_sessions_active"
    await session.rollback()
    first = await session.get_one(TradingSession, session_id)
    first.is_active, first.end_time = False, datetime.now(UTC) + timedelta(seconds=1)
    await session.flush()
    session.add(TradingSession(user_id=user_id, broker="zerodha"))
    await session.commit()


async def test_a_write_on_top_of_anothers_is_refused(engine: AsyncEngine) -> None:
    async with AsyncSession(engine, expire_on_commit=False) as mine, AsyncSession(engine) as theirs:
        strategy = Strategy(strategy_id="s", name="Momentum")
        mine.add(strategy)
        await mine.commit()
        other = await theirs.get_one(Strategy, "s")
        other.config["a"] = 1
        await theirs.commit()
        strategy.parameters["b"] = 2
        with pytest.raises(StaleDataError):
            await mine.commit()
        await mine.rollback()
        fresh = await mine.get_one(Strategy, "s")
        assert (fresh.version, fresh.config, fresh.parameters) == (2, {"a": 1}, {})


async def test_a_snapshots_broker_is_its_portfolios(session: AsyncSession) -> None:
    await make_partition(session, NOON)
    session.add(portfolio())
    await session.commit()
    session.add(snapshot(broker="zerodha"))
    with pytest.raises(ForeignKeyViolation) as refused:
        await session.commit()
    assert refused.value.constraint == "fk_portfolio_snapshots_portfolio_id_broker"


async def test_envelopes_stand_in_credentials_and_clear_text_does_not(session: AsyncSession) -> None:
    owner = await user(session)
    ring = KeyRing.parse("k1:" + KeyRing.generate_key())
    place = {"table": "trading_sessions", "column": "credentials", "row_key": "session-1"}
    sealed = ring.seal("access token", **place)
    session.add(TradingSession(session_id="session-1", user_id=owner.id, credentials=sealed))
    await session.commit()
    stored = (await session.scalars(select(TradingSession.credentials))).one()
    assert stored is not None
    assert ring.open_text(stored, **place) == "access token"
    for credentials, error in (
        ("access token", InvalidInput),
        (b"access token of thirty bytes and more", CheckViolation),
    ):
        session.add(TradingSession(user_id=owner.id, broker="kite", credentials=credentials))
        with pytest.raises(error):
            await session.flush()
        await session.rollback()
        owner = await session.get_one(User, 1)


async def test_history_keeps_what_it_points_at(session: AsyncSession) -> None:
    session.add_all([Strategy(strategy_id="s", name="M"), StrategyRevision(strategy_id="s", version=1, name="M")])
    session.add_all([instrument(), portfolio(strategy_id="s")])
    await session.commit()
    with pytest.raises(ForeignKeyViolation):
        await session.execute(sa.delete(Strategy))


async def test_a_portfolio_needs_a_key_of_the_applications_making(session: AsyncSession) -> None:
    with pytest.raises(NotNullViolation) as refused:
        await session.execute(sa.text("INSERT INTO portfolios (broker, currency, name) VALUES ('paper', 'INR', 'x')"))
    assert refused.value.column == "portfolio_id"


async def test_one_flush_writes_parents_before_children_in_whatever_order_they_were_added(
    session: AsyncSession,
) -> None:
    await make_partition(session, NOON)
    session.add_all(
        [
            snapshot(),
            StrategyRevision(strategy_id="s", version=1, name="M"),
            InstrumentVersion(
                instrument_token=1,
                source="kite",
                exchange="NSE",
                trading_symbol="X",
                segment="NSE",
                instrument_type="EQ",
                valid_from=NOON,
                valid_to=NOON + timedelta(days=1),
            ),
            portfolio(strategy_id="s"),
            Strategy(strategy_id="s", name="M"),
            instrument(instrument_token=1),
        ]
    )
    await session.commit()


def test_a_repr_shows_the_key_and_nothing_else() -> None:
    for row, text in (
        (User(id=7, username="trader", hashed_password="secret"), "User(id=7)"),
        (
            TradingSession(session_id="s", session_data={"secret": 1}, credentials=b"secret"),
            "TradingSession(session_id='s')",
        ),
        (Strategy(strategy_id="s", config={"secret": 1}), "Strategy(strategy_id='s')"),
        (StrategyRevision(strategy_id="s", version=2), "StrategyRevision(strategy_id='s', version=2)"),
        (User(), "User(id=None)"),
    ):
        assert repr(row) == text


# Ways in: COPY and raw SQL obey what the ORM obeys


async def test_rows_by_copy_are_the_same_rows(database_url: str, session: AsyncSession) -> None:
    connection = await asyncpg.connect(database_url)
    positions = '[{"instrument_token": 1, "quantity": "75", "average_price": "0.1", "last_price": "2", "pnl": "3"}]'
    try:
        await connection.execute(snapshot_partition_ddl(NOON))
        await connection.execute(
            "INSERT INTO portfolios (portfolio_id, broker, currency, name) VALUES ('p', 'paper', 'INR', 'P')"
        )
        await connection.execute("CREATE TEMP TABLE staged (LIKE portfolio_snapshots)")
        columns = [column.name for column in PortfolioSnapshot.__table__.columns]
        amounts = [
            Decimal("1E-10"),
            Decimal("0.1"),
            Decimal("0.2"),
            Decimal("0.3"),
            Decimal("999999999999999999.9999999999"),
        ]
        await connection.copy_records_to_table(
            "staged", records=[("p", NOON, "paper", positions, *amounts)], columns=columns
        )
        csv = f"p,2026-11-22 12:00:01+00,paper,[],{','.join(map(str, amounts))}\n"
        await connection.copy_to_table("staged", source=io.BytesIO(csv.encode()), columns=columns, format="csv")
        await connection.execute("INSERT INTO portfolio_snapshots SELECT * FROM staged")
        with pytest.raises(asyncpg.CheckViolationError, match="ck_portfolio_snapshots_total"):
            await connection.execute(
                "INSERT INTO portfolio_snapshots SELECT portfolio_id, snapshot_time + interval '1 h', broker, positions,"
                " cash, realized_pnl, unrealized_pnl, total_pnl + 1, equity FROM staged"
            )
    finally:
        await connection.close()
    rows = (await session.scalars(select(PortfolioSnapshot).order_by(PortfolioSnapshot.snapshot_time))).all()
    assert [row.snapshot_time for row in rows] == [NOON, NOON + timedelta(seconds=1)]
    for row in rows:
        assert [row.cash, row.realized_pnl, row.unrealized_pnl, row.total_pnl, row.equity] == amounts
    assert rows[0].positions[0].average_price == Decimal("0.1")
    assert rows[1].positions == []


# Partitions


async def test_a_row_without_its_months_partition_is_refused(session: AsyncSession) -> None:
    session.add(portfolio())
    await session.commit()
    session.add(snapshot())
    with pytest.raises(PartitionMissing):
        await session.commit()


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    moment=st.one_of(
        st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29)),
        st.sampled_from([datetime(2026, 12, 31, 23, 59, 59, 999999), datetime(2028, 2, 29), datetime(9999, 12, 29)]),
    ),
    offset=st.integers(-14 * 60, 14 * 60),
)
async def test_every_moment_lands_in_the_partition_of_its_utc_month(
    session: AsyncSession, moment: datetime, offset: int
) -> None:
    at = moment.replace(tzinfo=UTC).astimezone(timezone(timedelta(minutes=offset)))
    for _ in range(2):
        await make_partition(session, at)
    session.add_all([portfolio(), snapshot(snapshot_time=at)])
    await session.flush()
    found = await session.scalar(sa.text("SELECT tableoid::regclass::text FROM portfolio_snapshots"))
    assert found == snapshot_partition_name(at) == f"portfolio_snapshots_y{moment.year:04}m{moment.month:02}"
    await session.rollback()


async def test_months_follow_one_another_without_gap_or_overlap(session: AsyncSession) -> None:
    month = date(2026, 1, 1)
    for _ in range(26):
        await make_partition(session, month)
        month = (month + timedelta(days=31)).replace(day=1)
    names = (
        await session.scalars(
            sa.text(
                "SELECT relid::regclass::text FROM pg_partition_tree('portfolio_snapshots') WHERE isleaf ORDER BY 1"
            )
        )
    ).all()
    assert len(names) == 26
    bounds = [
        (
            await session.execute(
                sa.text(f"SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = '{name}'")
            )
        ).scalar_one()
        for name in names
    ]
    edges = [bound.split("'")[1::2] for bound in bounds]
    assert all(first[1] == second[0] for first, second in pairwise(edges))


def test_a_naive_moment_belongs_to_no_month() -> None:
    with pytest.raises(InvalidInput, match="naive"):
        snapshot_partition_ddl(datetime(2026, 11, 22))


async def test_there_is_no_default_partition(session: AsyncSession) -> None:
    query = "SELECT partdefid, partstrat FROM pg_partitioned_table WHERE partrelid = 'portfolio_snapshots'::regclass"
    assert tuple((await session.execute(sa.text(query))).one()) == (0, b"r")


# The schema as a whole


async def test_the_models_and_the_migrations_make_the_same_schema(engine: AsyncEngine, empty_database: str) -> None:
    ours = build_engine(DatabaseUrl.parse(empty_database), EngineOptions())
    order = sa.text(
        "SELECT table_name, string_agg(column_name, ' ' ORDER BY ordinal_position) FROM information_schema.columns"
        " WHERE table_schema = 'public' AND table_name <> 'alembic_version' GROUP BY table_name ORDER BY table_name"
    )
    async with ours.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        models, model_order = await schema.catalog(connection), (await connection.execute(order)).all()
    async with engine.connect() as connection:
        migrated, migrated_order = await schema.catalog(connection), (await connection.execute(order)).all()
    await ours.dispose()
    told = schema.differences(models, migrated, left_name="the models", right_name="the migrations")
    assert [line for line in told if "alembic_version" not in line] == []
    assert model_order == migrated_order


async def test_every_migration_goes_up_and_down_and_up(empty_database: str) -> None:
    engine = build_engine(DatabaseUrl.parse(empty_database), EngineOptions())
    await schema.upgrade(engine)
    async with engine.connect() as connection:
        first = await schema.catalog(connection)
    await schema.downgrade(engine, "base")
    async with engine.connect() as connection:
        left = {entry.name for entry in (await schema.catalog(connection)).entries if entry.kind == "table"}
    await schema.upgrade(engine)
    async with engine.connect() as connection:
        assert schema.differences(first, await schema.catalog(connection)) == ()
    await engine.dispose()
    assert left <= {"alembic_version"}


async def test_every_constraint_and_index_is_named_by_the_convention(session: AsyncSession) -> None:
    query = """
        SELECT conname, contype::text, conrelid::regclass::text FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND contype <> 'n' AND conrelid <> 0
          AND conrelid::regclass::text <> 'alembic_version'
        UNION ALL
        SELECT indexrelid::regclass::text, 'i', indrelid::regclass::text FROM pg_index JOIN pg_class ON oid = indexrelid
        WHERE relnamespace = 'public'::regnamespace AND indrelid::regclass::text <> 'alembic_version'"""
    prefixes = {"p": ("pk",), "u": ("uq",), "c": ("ck",), "f": ("fk",), "i": ("ix", "uq", "pk")}
    rows = (await session.execute(sa.text(query))).all()
    assert len(rows) > 80
    for name, kind, table in rows:
        assert any(name.startswith(f"{prefix}_{table}") for prefix in prefixes[kind]), name
        assert len(name) <= 60, name


async def test_no_triggers_no_enums_no_sequences_but_bigint_ones(session: AsyncSession) -> None:
    for query in (
        "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal",
        "SELECT count(*) FROM pg_enum",
        "SELECT count(*) FROM pg_sequence WHERE seqtypid <> 'bigint'::regtype",
    ):
        assert await session.scalar(sa.text(query)) == 0, query


def test_portfolio_id_stands_in_every_key_of_a_table_that_may_be_distributed() -> None:
    distributed = {"portfolios", "portfolio_snapshots"}
    for name in distributed:
        table = TABLES[name]
        column = table.c["portfolio_id"]
        assert not column.nullable
        assert column.default is None
        assert column.server_default is None
        assert column.identity is None
        keys: list[Any] = [table.primary_key, *(c for c in table.constraints if isinstance(c, sa.UniqueConstraint))]
        keys += [index for index in table.indexes if index.unique]
        assert all("portfolio_id" in key.columns for key in keys)
    for table in TABLES.values():
        for key in table.foreign_key_constraints:
            if key.referred_table.name in distributed:
                assert table.name in distributed
                assert "portfolio_id" in key.columns


# The rules by which the schema and the statements run on Citus, as far as their texts tell


def sql_texts() -> Iterator[tuple[str, str]]:
    """Every text in the package's code, f-strings with `?` for what is put in, and the file that it stands in."""
    package = Path(core.__file__ or "").parent
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text())
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "?" for part in node.values]
                yield str(path.relative_to(package)), "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
                yield str(path.relative_to(package)), node.value


NOWHERE = {
    "a trigger": r"CREATE\s+(OR\s+REPLACE\s+)?(CONSTRAINT\s+)?TRIGGER\s+\w",
    "MERGE": r"MERGE\s+INTO\s+[\w?]",
    "an UPDATE joined to staged rows": r"UPDATE\s+[\w.]+(\s+(?!SET)\w+)?\s+SET\b(?:(?!;|SELECT).)*\bFROM\s+[?{]",
    "a DELETE joined to staged rows": r"DELETE\s+FROM\s+[\w.]+(\s+(?!USING)\w+)?\s+USING\s+[?{]",
    "the clock in what a conflict writes": r"DO\s+UPDATE\s+SET(?:(?!;|RETURNING).)*\b(now\(\)|CURRENT_TIMESTAMP|clock_timestamp)",
    "the broker by set_config": r"set_config\(\s*'panda\.broker",
    "a portfolio's key changed": r"\bSET\s+(\w+\s*=[^=]*,\s*)?portfolio_id\s*=",
    "LATERAL from what is no table": r"(unnest\([^)]*\)|\(\s*VALUES[^)]*\))\s*(AS\s+)?\w*\s*(\([^)]*\)\s*)?(CROSS\s+)?JOIN\s+LATERAL\s*\(\s*SELECT",
}
OVER_PORTFOLIOS = {
    "a recursive CTE": r"WITH\s+RECURSIVE\s",
    "a lock over portfolios": r"\bFOR\s+(NO\s+KEY\s+)?UPDATE\b",
}


def test_no_statement_is_one_that_a_sharded_database_refuses() -> None:
    texts = list(sql_texts())
    assert sum("SELECT" in told for _, told in texts) > 150, "the statements are found"
    for rule, pattern in NOWHERE.items():
        found = [(file, told) for file, told in texts if re.search(pattern, told, re.IGNORECASE | re.DOTALL)]
        assert found == [], rule
    for rule, pattern in OVER_PORTFOLIOS.items():
        found = [
            (file, told) for file, told in texts if file.startswith("trading/portfolios") and re.search(pattern, told)
        ]
        assert found == [], rule


@pytest.mark.parametrize("rule", NOWHERE)
def test_the_look_for_such_statements_sees_them(rule: str) -> None:
    examples = {
        "a trigger": "CREATE CONSTRAINT TRIGGER t AFTER INSERT ON users",
        "MERGE": "MERGE INTO users USING staged",
        "an UPDATE joined to staged rows": "UPDATE instruments t SET name = f.name\n FROM ? f WHERE f.id = t.id",
        "a DELETE joined to staged rows": "DELETE FROM instruments t USING ? f WHERE f.id = t.id",
        "the clock in what a conflict writes": "ON CONFLICT (id) DO UPDATE SET a = excluded.a,\n updated_at = now()",
        "the broker by set_config": "SELECT set_config('panda.broker', ?, true)",
        "a portfolio's key changed": "UPDATE portfolios SET name = 'x', portfolio_id = 'y'",
        "LATERAL from what is no table": "FROM unnest($1::text[]) AS p (id) CROSS JOIN LATERAL (SELECT 1) s",
    }
    assert re.search(NOWHERE[rule], examples[rule], re.IGNORECASE | re.DOTALL)


def test_no_migration_adds_a_column_with_a_rule_inside() -> None:
    for path in sorted((Path(core.__file__ or "").parent / "database/migrations/versions").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("add_column", "create_table")):
                for column in (part for part in ast.walk(node) if isinstance(part, ast.Call)):
                    if ast.unparse(column.func).endswith("sa.Column"):
                        inner = {ast.unparse(part.func) for part in ast.walk(column) if isinstance(part, ast.Call)}
                        assert not inner & {"sa.ForeignKey", "sa.CheckConstraint"}, (
                            f"{path.name}: {ast.unparse(column)}"
                        )


async def test_policies_ask_no_other_table_and_no_function_lends_its_owners_rights(session: AsyncSession) -> None:
    policies = (
        await session.execute(sa.text("SELECT tablename, concat(qual, ' ', with_check) AS rule FROM pg_policies"))
    ).all()
    assert {row.tablename for row in policies} == set(ISOLATED_TABLES)
    assert not any(re.search(r"\b(SELECT|EXISTS)\b", row.rule, re.IGNORECASE) for row in policies)
    lent = "SELECT proname FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace"
    assert (await session.scalars(sa.text(lent))).all() == []


def test_whatever_belongs_to_a_broker_has_policies_and_what_sounds_secret_is_closed_to_readers() -> None:
    assert {name for name, table in TABLES.items() if "broker" in table.columns} == set(ISOLATED_TABLES)
    sounding = {
        column.name
        for table in TABLES.values()
        for column in table.columns
        if re.search("hash|secret|token|credential|envelope|password|key$", column.name)
    }
    known = {"instrument_token", "exchange_token", "broker_key"}  # numbers and names of instruments, which are public
    assert sounding - known <= _SECRETS
    assert set(RESTRICTED_RIGHTS) <= set(TABLES)
    for table in set(TABLES) & set(RESTRICTED_RIGHTS):
        secret = [
            column.name
            for column in TABLES[table].columns
            # A broker's session opens and takes up again its own trading sessions, and those alone by their policy.
            if column.name in _SECRETS - {"credentials", "envelope", "bearer_hash"}
        ]
        assert not secret or "(" in RESTRICTED_RIGHTS[table], f"panda_app reads {secret} of {table}"


def test_every_amount_every_time_and_every_text_has_its_constraint() -> None:
    listed = {"instrument_type", "option_type"}
    for table in TABLES.values():
        checks = {str(c.name) for c in table.constraints if isinstance(c, sa.CheckConstraint)}
        for column in table.columns:
            kind = column.type
            if kind._type_affinity in (sa.Numeric, sa.DateTime, sa.Date, sa.String) or column.name in listed:
                inherited = any(
                    key.referred_table.c[element.column.name].type._type_affinity is kind._type_affinity
                    for key in table.foreign_key_constraints
                    for element in key.elements
                    if element.parent is column
                )
                assert inherited or f"ck_{table.name}_{column.name}" in checks, f"{table.name}.{column.name}"


LOOKUPS = {
    "ix_instruments_trading_symbol_exchange": [
        "SELECT * FROM instruments WHERE trading_symbol = 'INFY' AND exchange = 'NSE'",
        "SELECT * FROM instruments WHERE trading_symbol LIKE 'NIFTY%'",
    ],
    "ix_instruments_contract": [
        "SELECT * FROM instruments WHERE underlying = 'NIFTY' AND is_active AND expiry = '2026-11-26' ORDER BY strike",
    ],
    "ix_instruments_symbol": [
        """SELECT * FROM instruments WHERE is_active AND instrument_type = 'EQ' AND upper(trading_symbol) >= 'INF'
            AND upper(trading_symbol) < 'ING' ORDER BY upper(trading_symbol)""",
    ],
    "ix_instruments_words": [
        f"SELECT * FROM instruments WHERE instrument_type <> 'OPT' AND {INSTRUMENT_WORDS} @@ 'TATA'::tsquery",
    ],
    "ix_instrument_versions_trading_symbol_exchange": ["SELECT * FROM instrument_versions WHERE trading_symbol = 'X'"],
    "pk_instrument_versions": ["SELECT * FROM instrument_versions WHERE instrument_token = 1 ORDER BY valid_from DESC"],
    "uq_users_username": ["SELECT * FROM users WHERE username = 'trader'"],
    "ix_trading_sessions_expires_at": ["SELECT * FROM trading_sessions WHERE is_active AND expires_at < now()"],
    "uq_trading_sessions_active": ["SELECT * FROM trading_sessions WHERE user_id = 1 AND broker = 'x' AND is_active"],
    "ix_auth_events_user_id_event_id": ["SELECT * FROM auth_events WHERE user_id = 1 AND event_id < 9"],
    "ix_auth_events_name_digest_event_id": [
        "SELECT * FROM auth_events WHERE name_digest = sha256('x') AND event_id < 9"
    ],
    "ix_auth_events_occurred_at": ["SELECT * FROM auth_events WHERE occurred_at < now()"],
    "ix_login_delays_failed_at": ["SELECT * FROM login_delays WHERE failed_at < now()"],
    "pk_known_sources": ["SELECT * FROM known_sources WHERE user_id = 1 AND source = 'x'"],
    "ix_trading_sessions_user_id": ["SELECT * FROM trading_sessions WHERE user_id = 1"],
    "ix_portfolios_strategy_id": ["SELECT * FROM portfolios WHERE strategy_id = 's'"],
}


async def test_every_index_serves_the_lookup_it_is_for(session: AsyncSession) -> None:
    await session.execute(sa.text("SET LOCAL enable_seqscan = off"))
    for index, queries in LOOKUPS.items():
        for query in queries:
            plan = (await session.scalars(sa.text(f"EXPLAIN {query}"))).all()
            assert any(index in line for line in plan), (query, plan)
            assert not any("Sort" in line for line in plan), (query, plan)
