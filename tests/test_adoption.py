"""The original Alpha Panda's database becomes ours, with its data, its oddities and its tokens."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
from sqlalchemy import select
from sqlalchemy.orm import selectinload

from core.config.options import Timeouts
from core.database import schema
from core.database.connection import DatabaseManager
from core.database.encryption import KeyRing
from core.database.errors import (
    ConfigurationError,
    InvalidInput,
    LockTimeout,
    PermissionDenied,
    SchemaError,
    SchemaMissing,
    SchemaUnstamped,
)
from core.database.models import (
    Instrument,
    Portfolio,
    PortfolioSnapshot,
    Strategy,
    StrategyRevision,
    TradingSession,
    User,
)
from core.trading import accounts, adoption, instruments, portfolios, sessions
from core.trading.adoption._secrets import split
from tests import original
from tests.small_schema import engine_on
from tests.test_cli import answer, panda

pytestmark = pytest.mark.usefixtures("clean")

RING = KeyRing({"k1": bytes(range(32))}, active="k1")
KEYS = "k1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
ROWS = 300

REFUSED_SNAPSHOTS: list[tuple[dict[str, Any], str]] = [
    ({"cash": float("nan")}, "cash is not a number (NaN)"),
    ({"total_realized_pnl": float("inf"), "total_pnl": float("inf")}, "realized_pnl is infinite"),
    ({"cash": 1e18}, "cash has more than 18 digits before the point"),
    ({"total_pnl": 5.0}, "total_pnl 5 is not the sum of realized 0 and unrealized 0"),
    ({"positions": [1, 2]}, "position 0 has no whole instrument_token"),
    ({"positions": "3"}, "positions holds no positions"),
    ({"positions": {"5": {"instrument_token": 5}}}, "position 5 has no quantity"),
    (
        {"positions": {"5": {"instrument_token": 5, "quantity": 1, "average_price": 1e30}}},
        "position 5 has an amount of more than 18 digits before the point",
    ),
    ({"broker_namespace": "Zerodha!"}, "broker must be a lower-case name"),
    ({"snapshot_time": None}, "snapshot_time is missing"),
]
KINDS: list[tuple[dict[str, Any], str, str | None, int | None]] = [
    ({"instrument_type": None, "segment": None}, "EQ", None, None),
    ({"instrument_type": None, "segment": "NSE-INDICES"}, "IDX", None, None),
    (
        {"instrument_type": "", "expiry": datetime(2026, 7, 30), "tradingsymbol": "NIFTY26JULFUT"},
        "FUT",
        None,
        None,
    ),
    (
        {"instrument_type": None, "expiry": datetime(2026, 7, 30), "strike": 5, "tradingsymbol": "N5PE"},
        "OPT",
        "PE",
        5,
    ),
    ({"instrument_type": "fut", "expiry": datetime(2026, 7, 30), "strike": 0}, "FUT", None, None),
    ({"instrument_type": "PE", "expiry": datetime(2026, 7, 30), "strike": 7}, "OPT", "PE", 7),
]
REFUSED_INSTRUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"instrument_type": "FUT"}, "ck_instruments_expiry_given"),
    ({"instrument_type": "CE", "expiry": datetime(2026, 7, 30), "strike": 0}, "ck_instruments_strike"),
    ({"instrument_type": "XX"}, "ck_instruments_instrument_type"),
    ({"lot_size": -1}, "ck_instruments_lot_size"),
    ({"last_price": Decimal("NaN")}, "last_price is not a number (NaN)"),
    ({"exchange": "nse "}, "exchange must be an upper-case name"),
    ({"updated_at": datetime.max.replace(tzinfo=UTC)}, "ck_instruments_updated_at"),
]


class Place:
    """An original's database, and what is asked of it with plain SQL."""

    def __init__(self, url: str, connection: Any) -> None:
        self.url = url
        self.connection = connection

    async def add(self, table: str, **values: Any) -> None:
        await original.add(self.connection, table, **values)

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self.connection.fetch(query)]

    async def value(self, query: str) -> Any:
        return await self.connection.fetchval(query)

    async def adopt(self, **options: Any) -> adoption.AdoptionReport:
        async with engine_on(self.url) as engine:
            given: dict[str, Any] = {"ring": RING} | options
            return await adoption.adopt(engine, **given)

    async def reasons(self) -> dict[tuple[str, str], str]:
        rows = await self.rows("SELECT source_table, row_key, reason FROM alpha_panda_original.set_aside")
        return {(table, key): reason for table, key, reason in rows}


@pytest.fixture
async def place(empty_database: str) -> AsyncIterator[Place]:
    await original.make(empty_database)
    connection = await asyncpg.connect(empty_database)
    yield Place(empty_database, connection)
    await connection.close()


@pytest.fixture
async def filled(place: Place) -> Place:
    """With some hundred healthy rows in each table."""
    await place.connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await original.make(place.url, rows=ROWS)
    return place


def counts(report: adoption.AdoptionReport) -> dict[str, tuple[int, int, int]]:
    return {row.table: (row.read, row.moved, row.set_aside) for row in report.tables}


async def all_text(place: Place) -> str:
    """Every value of every table of ours and of the kept ones, as text."""
    tables = await place.rows(
        "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables"
        " WHERE schemaname IN ('public', 'alpha_panda_original')"
    )
    found = []
    for (table,) in tables:
        found += [row[0] for row in await place.rows(f"SELECT CAST(t AS text) FROM {table} t")]
    return "\n".join(found)


class TestAHealthyOriginal:
    async def test_every_row_is_moved_and_the_database_is_at_head_without_drift(self, filled: Place):
        report = await filled.adopt()
        assert counts(report) == dict.fromkeys(
            ("users", "trading_sessions", "strategy_configurations", "portfolio_snapshots", "instruments"),
            (ROWS, ROWS, 0),
        )
        assert (report.sealed, report.accounts_made, report.set_aside) == (ROWS, ROWS, ())
        assert report.kept == (("instrument_registry", ROWS // 10), ("trading_events", 7), ("alembic_version", 1))
        async with engine_on(filled.url) as engine:
            found = await schema.drift(engine)
        assert (found.clean, found.differences) == (True, ())

    async def test_what_was_moved_is_read_through_our_rooms(self, filled: Place):
        await filled.adopt()
        async with (
            DatabaseManager(filled.url, "testing", "migrations_only") as manager,
            manager.get_session() as session,
        ):
            query = (
                select(TradingSession).options(selectinload(TradingSession.user)).order_by(TradingSession.session_id)
            )
            opened = (await session.scalars(query)).first()
            assert opened is not None
            assert (opened.user.username, opened.user.is_active, opened.broker) == ("za00001", False, "zerodha")
            assert sessions.credentials_of(opened, ring=RING) == original.TOKEN.format(1)
            assert dict(opened.session_data)["email"] == "trader1@example.test"
            assert "access_token" not in opened.session_data
            assert (opened.is_active, opened.end_time) == (True, None)
            assert opened.expires_at == original.BEGIN + timedelta(days=1)

            strategy = await session.get_one(Strategy, "momentum_5")
            assert (strategy.version, strategy.active_brokers) == (1, ["paper", "zerodha"])
            assert strategy.parameters["momentum_threshold"] == Decimal("0.02")
            assert strategy.config["instruments"] == [738561, 256265]
            assert strategy.config["use_composition"] is True
            revision = await session.get_one(StrategyRevision, ("momentum_5", 1))
            assert revision.parameters == strategy.parameters

            (latest,) = (
                await portfolios.latest(session, portfolio_ids=["paper_momentum_4"])
                if False
                else [
                    (
                        await session.scalars(
                            select(PortfolioSnapshot).where(PortfolioSnapshot.portfolio_id == "paper_momentum_4")
                        )
                    ).one()
                ]
            )
            assert latest.cash == Decimal("995063.6")
            assert (latest.realized_pnl, latest.unrealized_pnl, latest.total_pnl) == (
                Decimal("0.4"),
                Decimal("0.8"),
                Decimal("1.2"),
            )
            closed, held = latest.positions.root
            assert (closed.instrument_token, closed.quantity, closed.last_price) == (256265, 0, Decimal("100.25"))
            assert (held.quantity, held.average_price, held.last_price) == (4, Decimal("2500.45"), Decimal("2510.1"))
            assert latest.equity == Decimal("995063.6") + 4 * Decimal("2510.1")
            portfolio = await session.get_one(Portfolio, "paper_momentum_4")
            assert (portfolio.broker, portfolio.strategy_id, portfolio.currency) == ("paper", "momentum_4", "INR")

            option = await session.get_one(Instrument, 1002)
            assert (option.instrument_type, option.option_type, option.strike) == ("OPT", "CE", 2)
            assert (option.expiry, option.underlying, option.exchange_token) == (date(2026, 7, 30), "NIFTY", "2")
            future, share, index = [await session.get_one(Instrument, token) for token in (1001, 1004, 1003)]
            assert (future.instrument_type, future.strike, future.underlying) == ("FUT", None, "NIFTY")
            assert (share.instrument_type, share.segment, share.underlying, share.last_price) == ("EQ", "NSE", None, 0)
            assert index.instrument_type == "IDX"
            assert share.attributes == {"source_file": "instruments.csv"}
            assert share.valid_from == datetime(2026, 7, 1, tzinfo=UTC)

    async def test_new_rows_go_on_behind_the_old_ones(self, filled: Place):
        await filled.adopt()
        async with DatabaseManager(filled.url, "testing", "migrations_only") as manager:
            async with manager.transaction() as session:
                user = await accounts.register(session, "newcomer", "correct horse battery")
                assert user.id > ROWS * 2
                await sessions.open(session, user_id=user.id, broker="zerodha", credentials="another", ring=RING)
            header = "instrument_token,exchange_token,tradingsymbol,name,last_price,expiry,strike,tick_size,lot_size,instrument_type,segment,exchange\n"
            row = "1004,4,STOCK4,STOCK NUMBER 4,12.5,,0,0.05,1,EQ,NSE,NSE\n"
            report = await instruments.load(
                manager, (header + row).encode(), trading_date=date(2026, 7, 1), allow_shrink=True
            )
            # The original's own columns were kept as attributes, which the broker's file does not have.
            assert (report.attributes_changed, report.added, report.changed) == (1, 0, 0)

    async def test_no_token_is_readable_in_any_table(self, filled: Place):
        assert "kite-token-in-the-open" in await all_text(filled)
        await filled.adopt()
        assert "kite-token-in-the-open" not in await all_text(filled)
        with pytest.raises(asyncpg.UndefinedTableError):
            await filled.value("SELECT count(*) FROM public.strategy_configurations")
        # Nor in the files behind our tables and the kept ones, dead rows included.
        for table in ("public.trading_sessions", "alpha_panda_original.trading_sessions"):
            assert (
                await filled.value(f"SELECT n_dead_tup FROM pg_stat_all_tables WHERE relid = '{table}'::regclass") == 0
            )

    async def test_a_second_adoption_says_so_and_changes_nothing(self, filled: Place):
        first = await filled.adopt()
        again = await filled.adopt(ring=None)
        assert again.already
        assert (again.tables, again.rounded, again.notes) == (first.tables, first.rounded, first.notes)

    async def test_a_dry_run_reports_the_same_and_changes_nothing(self, filled: Place):
        query = "SELECT oid, relname, relfilenode FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
        before = await filled.rows(query)
        dry = await filled.adopt(dry_run=True, ring=None)
        assert await filled.rows(query) == before
        assert await filled.value("SELECT to_regnamespace('alpha_panda_original') IS NULL")
        assert dry.dry_run
        done = await filled.adopt()
        assert (dry.tables, dry.rounded, dry.sealed, dry.notes) == (done.tables, done.rounded, done.sealed, done.notes)

    async def test_the_first_secret_leaves_its_canary(self, filled: Place):
        await filled.adopt()
        (key, envelope) = (await filled.rows("SELECT key_id, envelope FROM encryption_canaries"))[0]
        RING.check_canary(envelope)
        assert key == "k1"


class TestAmounts:
    async def test_floats_become_the_shortest_decimals_and_what_is_rounded_is_told(self, place: Place):
        await place.add(
            "portfolio_snapshots",
            cash=0.1,
            total_realized_pnl=0.1,
            total_unrealized_pnl=0.2,
            total_pnl=0.1 + 0.2,
            positions={
                "1": {
                    "instrument_token": 1,
                    "quantity": 3,
                    "average_price": 1 / 3,
                    "last_price": None,
                    "unrealized_pnl": 0.0,
                }
            },
        )
        report = await place.adopt()
        (row,) = await place.rows("SELECT cash, realized_pnl, total_pnl, equity, positions FROM portfolio_snapshots")
        assert row[:4] == (Decimal("0.1"), Decimal("0.1"), Decimal("0.3"), Decimal("1.0999999999"))
        assert json.loads(row[4]) == [
            {
                "instrument_token": 1,
                "quantity": "3",
                "average_price": "0.3333333333",
                "last_price": "0.3333333333",
                "pnl": "0",
            }
        ]
        assert [(item.field, item.count) for item in report.rounded] == [("positions.average_price", 1)]
        kept = await place.rows("SELECT row_key, field, given, kept FROM alpha_panda_original.rounded")
        assert kept == [("1", "positions[1].average_price", Decimal("0.3333333333333333"), Decimal("0.3333333333"))]
        assert any("total_pnl is the exact sum now in 1 rows" in note for note in report.notes)
        assert any("positions without a last price: 1;" in note for note in report.notes)

    async def test_no_digit_of_a_float_is_lost(self, place: Place):
        amounts = [123456789.12345679, -0.1, 5e-324, 999999999999999.9, 1e17, 70.07, 1e-10]
        for number, amount in enumerate(amounts):
            await place.add("portfolio_snapshots", portfolio_id=f"paper_{number}", cash=amount)
        report = await place.adopt()
        stored = [row[0] for row in await place.rows("SELECT cash FROM portfolio_snapshots ORDER BY portfolio_id")]
        assert stored == [Decimal(repr(amount)) if amount != 5e-324 else 0 for amount in amounts]
        assert [(item.field, item.count) for item in report.rounded] == [("cash", 1)]

    async def test_snapshots_that_our_tables_refuse_are_set_aside_each_with_its_reason(self, place: Place):
        for number, (values, _) in enumerate(REFUSED_SNAPSHOTS):
            await place.add("portfolio_snapshots", **({"portfolio_id": f"paper_{number}"} | values))
        await place.add("portfolio_snapshots", portfolio_id="paper_good")
        report = await place.adopt()
        bad = len(REFUSED_SNAPSHOTS)
        assert counts(report)["portfolio_snapshots"] == (bad + 1, 1, bad)
        told = await place.reasons()
        for number, (_, reason) in enumerate(REFUSED_SNAPSHOTS):
            assert reason in told["portfolio_snapshots", str(number + 1)]
        assert {row.reason for row in report.set_aside} == set(told.values())
        whole = await place.value("SELECT original FROM alpha_panda_original.set_aside WHERE row_key = '1'")
        assert json.loads(whole)["portfolio_id"] == "paper_0"
        assert await place.rows("SELECT portfolio_id FROM portfolios") == [("paper_good",)]

    async def test_a_history_of_an_older_release_keeps_its_snapshots(self, place: Place):
        await place.connection.execute("DROP INDEX ix_portfolio_snapshots_portfolio_id")
        for month in (1, 2, 2):
            await place.add(
                "portfolio_snapshots", cash=float(month), snapshot_time=datetime(2026, month, 3, tzinfo=UTC)
            )
        await place.add(
            "portfolio_snapshots", broker_namespace="zerodha", snapshot_time=datetime(2025, 1, 1, tzinfo=UTC)
        )
        report = await place.adopt()
        assert counts(report)["portfolio_snapshots"] == (4, 2, 2)
        assert await place.rows("SELECT cash FROM portfolio_snapshots ORDER BY 1") == [(Decimal(1),), (Decimal(2),)]
        assert await place.reasons() == {
            ("portfolio_snapshots", "3"): "row 2 is a snapshot of the same portfolio and time",
            ("portfolio_snapshots", "4"): "its portfolio is one with broker paper",
        }


class TestSecrets:
    @pytest.mark.parametrize(
        ("document", "clean_document", "secret"),
        [
            (None, {}, None),
            ({}, {}, None),
            ({"access_token": "t", "broker": "x"}, {"broker": "x"}, "t"),
            ({"access_token": "", "a": 1}, {"a": 1}, None),
            ({"access_token": None}, {}, None),
            ({"access_token": "t", "refresh_token": "r"}, {}, '{"access_token":"t","refresh_token":"r"}'),
            ({"kite": {"api_secret": "s", "n": 1}}, {"kite": {"n": 1}}, '{"kite.api_secret":"s"}'),
            ({"list": [{"password": "p"}]}, {"list": [{}]}, '{"list[0].password":"p"}'),
            ({"access_token": 5}, {}, '{"access_token":5}'),
            ({"instrument_token": 5, "token_type": "Bearer"}, {"instrument_token": 5, "token_type": "Bearer"}, None),
            ("plain", None, '"plain"'),
            ([1], None, "[1]"),
        ],
    )
    def test_notes_are_parted_from_their_secrets(self, document, clean_document, secret):
        assert split(document) == (clean_document, secret)

    async def test_without_a_ring_nothing_is_done_and_the_hint_makes_a_key(self, filled: Place):
        with pytest.raises(ConfigurationError, match=r"DATABASE__ENCRYPTION_KEYS.*generate_key") as refused:
            await filled.adopt(ring=None)
        assert await filled.value("SELECT count(*) FROM strategy_configurations") == ROWS
        made = str(refused.value.hint).partition("python -c '")[2].partition("'")[0]
        KeyRing.parse(
            subprocess.run([sys.executable, "-c", made], capture_output=True, text=True, check=True).stdout.strip()
        )

    async def test_without_tokens_no_ring_is_needed(self, place: Place):
        await place.add("trading_sessions", session_data={"broker": "zerodha"})
        report = await place.adopt(ring=None)
        assert (report.sealed, counts(report)["trading_sessions"]) == (0, (1, 1, 0))

    async def test_a_session_that_is_set_aside_keeps_its_token_sealed(self, place: Place):
        await place.add("trading_sessions", user_id="x", end_time=original.BEGIN - timedelta(days=1))
        await place.add("trading_sessions", session_id="whole", user_id="y", session_data=json.dumps("a-secret-text"))
        report = await place.adopt()
        assert counts(report)["trading_sessions"] == (2, 0, 2)
        reasons = await place.reasons()
        assert "ck_trading_sessions_lifetime" in reasons["trading_sessions", "session-1"]
        assert reasons["trading_sessions", "whole"] == "session_data is no JSON object"
        sealed = dict(await place.rows("SELECT row_key, sealed FROM alpha_panda_original.set_aside"))
        place_of = {"table": "trading_sessions", "column": "credentials"}
        assert RING.open_text(sealed["session-1"], **place_of, row_key="session-1") == original.TOKEN.format(99)
        assert RING.open_text(sealed["whole"], **place_of, row_key="whole") == '"a-secret-text"'
        text = await all_text(place)
        assert "a-secret-text" not in text
        assert original.TOKEN.format(99) not in text


class TestAccountsAndSessions:
    async def test_sessions_find_their_user_by_name_in_whatever_case_else_one_is_made(self, place: Place):
        await place.add("users", username="ab1234")
        await place.add("trading_sessions", user_id="AB1234")
        await place.add("trading_sessions", session_id="session-2", user_id="CD5678")
        report = await place.adopt()
        assert report.accounts_made == 1
        rows = await place.rows(
            "SELECT u.username, u.is_active FROM trading_sessions s JOIN users u ON u.id = s.user_id ORDER BY 1"
        )
        assert rows == [("ab1234", True), ("cd5678", False)]

    async def test_ended_and_superseded_sessions_end_when_they_did(self, place: Place):
        await place.connection.execute("DROP INDEX ix_trading_sessions_user_id")
        updated = original.BEGIN + timedelta(hours=2)
        await place.add("trading_sessions", session_id="ended", user_id="x", is_active=False, updated_at=updated)
        await place.add("trading_sessions", session_id="older", user_id="y", updated_at=updated)
        await place.add("trading_sessions", session_id="newer", user_id="Y", updated_at=updated + timedelta(hours=1))
        report = await place.adopt()
        rows = await place.rows("SELECT session_id, is_active, end_time FROM trading_sessions ORDER BY 1")
        assert rows == [("ended", False, updated), ("newer", True, None), ("older", False, updated)]
        assert "active sessions that are ended: 1; their user has a later one with the same broker" in report.notes

    async def test_users_that_cannot_be_are_set_aside(self, place: Place):
        for name in ("Anna", "anna", " bert ", "x" * 151, "Stra\u00dfe", "\uff33TRASSE", "be\u202ert"):
            await place.add("users", username=name)
        report = await place.adopt()
        assert counts(report)["users"] == (7, 2, 5)
        assert await place.rows("SELECT username FROM users ORDER BY 1") == [("anna",), ("strasse",)]
        reasons = await place.reasons()
        assert reasons["users", "2"] == "username is another spelling of that of user 1"
        assert reasons["users", "6"] == "username is another spelling of that of user 5"
        assert "invisible characters" in reasons["users", "7"]
        assert reasons["users", "3"].startswith("username must not be empty, begin or end with a blank")

    async def test_a_bcrypt_hash_is_kept_and_a_password_reset_asked_for(self, place: Place):
        await place.add("users", username="trader")
        report = await place.adopt()
        assert report.password_resets == (0 if accounts.can_verify("$2b$12$" + "x" * 53) else 1)
        async with DatabaseManager(place.url, "testing", "migrations_only") as manager:
            with pytest.raises(accounts.InvalidCredentials):
                await accounts.authenticate(manager, "trader", "whatever it was")
            async with manager.get_session() as session:
                user = (await session.scalars(select(User))).one()
            assert not await accounts.verify_password(user, "whatever it was")

    async def test_documents_that_jsonb_cannot_hold_are_set_aside(self, place: Place):
        await place.add("strategy_configurations", id="nul", parameters='{"a": "\\u0000"}')
        await place.add("strategy_configurations", id="list", parameters="[1]")
        await place.add("strategy_configurations", id="deep", instruments="[" * 100 + "]" * 100)
        await place.add("strategy_configurations", id="exact", parameters='{"a": 0.1234567890123456789}')
        report = await place.adopt()
        assert counts(report)["strategy_configurations"] == (4, 1, 3)
        assert await place.value("SELECT parameters ->> 'a' FROM strategies") == "0.1234567890123456789"
        reasons = await place.reasons()
        assert reasons["strategy_configurations", "nul"].startswith("parameters ")
        assert "ck_strategies_parameters" in reasons["strategy_configurations", "list"]


class TestInstruments:
    async def test_kinds_are_read_as_the_loader_reads_them(self, place: Place):
        for number, (values, *_) in enumerate(KINDS):
            await place.add("instruments", **({"instrument_token": number} | values))
        report = await place.adopt()
        rows = await place.rows(
            "SELECT instrument_type, option_type, strike FROM instruments ORDER BY instrument_token"
        )
        assert rows == [tuple(case[1:]) for case in KINDS]
        assert [note for note in report.notes if "without a type" in note] == [
            "instruments without a type: 4; it was read off segment, expiry, strike and symbol"
        ]

    async def test_those_that_cannot_be_are_set_aside_each_with_its_reason(self, place: Place):
        for number, (values, _) in enumerate(REFUSED_INSTRUMENTS):
            await place.add("instruments", **({"instrument_token": number} | values))
        report = await place.adopt()
        assert counts(report)["instruments"] == (len(REFUSED_INSTRUMENTS), 0, len(REFUSED_INSTRUMENTS))
        told = await place.reasons()
        for number, (_, reason) in enumerate(REFUSED_INSTRUMENTS):
            assert reason in told["instruments", str(number)]

    async def test_an_empty_name_and_an_unknown_exchange_token_are_null(self, place: Place):
        await place.add("instruments", name="", exchange_token=0)
        await place.adopt()
        assert await place.rows("SELECT name, exchange_token FROM instruments") == [(None, None)]


class TestWhatIsThere:
    async def test_the_first_release_without_the_later_tables_and_columns_is_adopted(self, filled: Place):
        await filled.connection.execute(
            "DROP TABLE instrument_registry, instruments, portfolio_snapshots, trading_events, alembic_version;"
            " ALTER TABLE strategy_configurations DROP use_composition"
        )
        report = await filled.adopt()
        assert set(counts(report)) == {"users", "trading_sessions", "strategy_configurations"}
        assert report.kept == ()
        async with engine_on(filled.url) as engine:
            assert (await schema.drift(engine)).clean

    async def test_times_without_a_zone_are_utc_whatever_the_server_says(self, place: Place):
        await place.connection.execute("ALTER TABLE users ALTER created_at TYPE timestamp")
        name = place.connection._params.database
        await place.connection.execute(f"ALTER DATABASE {name} SET TimeZone = 'Asia/Kolkata'")
        await place.add("users", created_at=datetime(2026, 1, 1, 12))
        await place.adopt()
        assert await place.value("SELECT created_at FROM users") == datetime(2026, 1, 1, 12, tzinfo=UTC)

    async def test_columns_that_it_never_had_are_told_and_kept(self, place: Place):
        await place.connection.execute(
            "ALTER TABLE users ADD nickname text; ALTER TABLE trading_sessions ADD mood text"
        )
        report = await place.adopt()
        assert [note.split()[1] for note in report.notes] == ["users.nickname", "trading_sessions.mood"]
        assert await place.value("SELECT count(mood) FROM alpha_panda_original.trading_sessions") == 0

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            ("DROP TABLE trading_sessions", "table trading_sessions is missing"),
            ("ALTER TABLE users DROP hashed_password", "table users lacks the column hashed_password"),
            (
                "ALTER TABLE portfolio_snapshots ALTER cash TYPE numeric",
                "column portfolio_snapshots.cash is numeric, not double precision",
            ),
            (
                "CREATE TABLE portfolios (portfolio_id text)",
                "beside the original's tables there are some of ours: portfolios",
            ),
        ],
    )
    async def test_half_an_original_is_refused_in_words(self, spoil: str, words: str, place: Place):
        await place.connection.execute(spoil)
        with pytest.raises(SchemaUnstamped, match=words):
            await place.adopt()

    async def test_other_databases_are_not_taken_for_it(self, database_url: str, empty_database: str):
        for url in (database_url, empty_database):
            async with engine_on(url) as engine:
                assert not await adoption.is_original(engine)
                with pytest.raises(SchemaMissing, match="not a database of the original"):
                    await adoption.adopt(engine, ring=RING)

    async def test_a_currency_that_is_none_is_refused(self, place: Place):
        with pytest.raises(InvalidInput, match="currency code"):
            await place.adopt(currency="Rs.")


class TestWholeOrNotAtAll:
    async def test_an_original_that_is_still_at_work_is_waited_for_briefly(self, filled: Place):
        async with filled.connection.transaction():
            await filled.connection.execute("UPDATE users SET hashed_password = 'x' WHERE id = 1")
            with pytest.raises(LockTimeout):
                await filled.adopt(timeouts=Timeouts(lock=0.2))
        assert (await filled.adopt()).set_aside == ()

    async def test_what_depends_on_its_tables_stops_it_with_everything_as_it_was(self, filled: Place):
        await filled.connection.execute("CREATE VIEW open_sessions AS SELECT * FROM trading_sessions")
        with pytest.raises(SchemaError, match="depends on the original's tables: view open_sessions"):
            await filled.adopt()
        assert await filled.value("SELECT count(*) FROM open_sessions") == ROWS
        assert await filled.value("SELECT to_regnamespace('alpha_panda_original') IS NULL")

    async def test_kill_9_in_the_middle_leaves_the_original_untouched(self, filled: Place):
        before = await all_text(filled)
        program = (
            "import asyncio, os, time\n"
            "from core.trading import adoption\n"
            "from tests.small_schema import engine_on\n"
            "from tests.test_adoption import RING\n"
            "def slow(stage):\n"
            "    print(stage, flush=True)\n"
            "    time.sleep(60 if stage == 'instruments' else 0)\n"
            "async def main():\n"
            "    async with engine_on(os.environ['URL_OF_TEST']) as engine:\n"
            "        await adoption.adopt(engine, ring=RING, progress=slow)\n"
            "asyncio.run(main())\n"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            program,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "URL_OF_TEST": filled.url},
        )
        assert process.stdout is not None
        told: list[str] = []
        while line := (await process.stdout.readline()).decode().strip():
            told.append(line)
            if line == "instruments":
                break
        if process.returncode is None:
            process.kill()
        _, failure = await process.communicate()
        assert told[-1:] == ["instruments"], failure.decode()
        assert await all_text(filled) == before
        assert counts(await filled.adopt())["instruments"] == (ROWS, ROWS, 0)

    async def test_a_role_that_may_make_no_schema_is_told_so(self, filled: Place):
        name = filled.connection._params.database
        await filled.connection.execute(f"REVOKE CREATE ON DATABASE {name} FROM CURRENT_USER")
        with pytest.raises(PermissionDenied, match="permission denied for database"):
            await filled.adopt()
        assert await filled.value("SELECT count(*) FROM strategy_configurations") == ROWS


class TestDropOriginal:
    async def test_it_drops_the_kept_tables_and_says_what_was_only_there(self, filled: Place):
        await filled.add("users", username=" x ")
        await filled.adopt()
        async with engine_on(filled.url) as engine:
            assert await adoption.left_aside(engine) == {"users": 1, "instrument_registry": 30, "trading_events": 7}
            await filled.connection.execute("CREATE VIEW old_users AS SELECT * FROM alpha_panda_original.users")
            with pytest.raises(SchemaError, match="depends on the original's tables: view old_users"):
                await adoption.drop_original(engine)
            await filled.connection.execute("DROP VIEW old_users")
            assert "trading_sessions" in await adoption.drop_original(engine)
            with pytest.raises(SchemaMissing, match="nothing was adopted"):
                await adoption.drop_original(engine)
            assert await filled.value("SELECT to_regnamespace('alpha_panda_original') IS NULL")
            assert (await schema.drift(engine)).clean


class TestCommand:
    def test_it_says_what_it_did_within_80_columns_and_no_secret(self, empty_database: str):
        asyncio.run(original.make(empty_database, rows=50))
        asyncio.run(_add(empty_database, "portfolio_snapshots", cash=float("nan")))
        refused = panda("migrate", "adopt", url=empty_database)
        assert (refused.returncode, "DATABASE__ENCRYPTION_KEYS" in refused.stderr) == (2, True)
        dry = panda("migrate", "adopt", "--dry-run", url=empty_database)
        assert (dry.returncode, dry.stdout.startswith("A dry run")) == (0, True)
        assert "no key to seal the tokens with" in dry.stderr
        done = panda("migrate", "adopt", url=empty_database, DATABASE__ENCRYPTION_KEYS=KEYS)
        assert done.returncode == 0, done.stderr
        assert max(map(len, done.stdout.splitlines())) <= 80
        assert "portfolio_snapshots 51: cash is not a number (NaN)" in " ".join(done.stdout.split())
        assert "kite-token" not in done.stdout + done.stderr + dry.stdout + dry.stderr
        again = panda("migrate", "adopt", "--json", url=empty_database)
        assert again.returncode == 0
        assert (answer(again)["already"], answer(again)["set_aside_count"], answer(again)["sealed"]) == (True, 1, 50)
        assert panda("migrate", "check", url=empty_database).returncode == 0
        assert panda("migrate", "adopt", "--drop-original", "--json", url=empty_database).returncode == 2
        dropped = panda("migrate", "adopt", "--drop-original", "--yes", "--json", url=empty_database)
        assert (dropped.returncode, "set_aside" in answer(dropped)["dropped"]) == (0, True)

    def test_half_an_original_exits_with_3(self, empty_database: str):
        asyncio.run(original.make(empty_database))
        asyncio.run(_run(empty_database, "DROP TABLE trading_sessions"))
        result = panda("migrate", "adopt", url=empty_database)
        assert (result.returncode, "table trading_sessions is missing" in result.stderr) == (3, True)


async def _run(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(statement)
    await connection.close()


async def _add(url: str, table: str, **values: Any) -> None:
    connection = await asyncpg.connect(url)
    await original.add(connection, table, **values)
    await connection.close()
