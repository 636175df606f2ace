"""Records refuse what the tables' constraints refuse, and take what they take."""

import asyncio
import unicodedata
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal, localcontext
from typing import Annotated, Any

import asyncpg
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, TypeAdapter, ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from core.database import records
from core.database.engine import DatabaseUrl, EngineOptions, build_engine
from core.database.errors import InvalidInput
from core.database.models import (
    Instrument,
    InstrumentVersion,
    Portfolio,
    PortfolioSnapshot,
    Strategy,
    StrategyRevision,
    TradingSession,
    User,
    snapshot_partition_ddl,
)
from core.database.records import (
    BROKER_RULE,
    CURRENCY_RULE,
    IDENTIFIER_RULE,
    LABEL_RULE,
    NOTE_RULE,
    PASSWORD_HASH_RULE,
    USERNAME_RULE,
    VENUE_RULE,
    AwareUtc,
    BrokerName,
    CalendarDate,
    InstrumentCreate,
    InstrumentRead,
    InstrumentVersionCreate,
    InstrumentVersionRead,
    MoneyValue,
    PortfolioCreate,
    PortfolioRead,
    PortfolioSnapshotCreate,
    PortfolioSnapshotRead,
    Position,
    Positions,
    ReadRecord,
    Record,
    StrategyConfig,
    StrategyCreate,
    StrategyRead,
    StrategyRevisionCreate,
    StrategyRevisionRead,
    TextRule,
    TradingSessionCreate,
    TradingSessionRead,
    UserCreate,
    UserRead,
)
from core.database.types import folded

in_database = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def rules_url(panda_new_database) -> Iterator[str]:
    """A database at head for all tests of this module, with one row in every table; each test rolls back."""

    async def fill(url: str) -> None:
        connection = await asyncpg.connect(url)
        for statement in ROWS:
            await connection.execute(statement)
        await connection.close()

    with panda_new_database() as url:
        asyncio.run(fill(url))
        yield url


ROWS = [
    "INSERT INTO users (username, hashed_password) VALUES ('trader', 'hash')",
    "INSERT INTO strategies (strategy_id, name) VALUES ('s', 'Strategy')",
    "INSERT INTO strategy_revisions (strategy_id, version, name) VALUES ('s', 1, 'Strategy')",
    "INSERT INTO trading_sessions (session_id, user_id) SELECT 'session', id FROM users",
    """INSERT INTO instruments (instrument_token, source, exchange, trading_symbol, segment, instrument_type, valid_from)
       VALUES (1, 'kite', 'NSE', 'INFY', 'NSE', 'EQ', '2026-01-01 00:00:00+00')""",
    """INSERT INTO instrument_versions
       (instrument_token, valid_from, valid_to, source, exchange, trading_symbol, segment, instrument_type)
       VALUES (1, '2025-01-01 00:00:00+00', '2026-01-01 00:00:00+00', 'kite', 'NSE', 'INFY', 'NSE', 'EQ')""",
    "INSERT INTO portfolios (portfolio_id, broker, currency, name) VALUES ('p', 'paper', 'INR', 'Paper')",
    snapshot_partition_ddl(NOON),
    """INSERT INTO portfolio_snapshots
       (portfolio_id, broker, snapshot_time, cash, realized_pnl, unrealized_pnl, total_pnl, equity)
       VALUES ('p', 'paper', '2026-11-22 12:00:00+00', 1, 1, 1, 2, 1)""",
]


@pytest.fixture
async def connection(rules_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(rules_url)
    yield connection
    await connection.close()


@asynccontextmanager
async def rolled_back(connection: asyncpg.Connection) -> AsyncGenerator[None]:
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield
    finally:
        await transaction.rollback()


async def table_takes(connection: asyncpg.Connection, statement: str, *values: Any) -> bool:
    """Whether the server takes it; any other failure than a refused value is an error of the test."""
    async with rolled_back(connection):
        try:
            await connection.execute(statement, *values)
        except (
            asyncpg.CheckViolationError,
            asyncpg.NumericValueOutOfRangeError,
            asyncpg.CharacterNotInRepertoireError,
        ):
            return False
        return True


def takes(kind: Any, value: Any) -> bool:
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


# Text

TEXT_COLUMNS: list[tuple[str, str, TextRule]] = [
    ("users", "username", USERNAME_RULE),
    ("users", "hashed_password", PASSWORD_HASH_RULE),
    ("trading_sessions", "session_id", IDENTIFIER_RULE),
    ("trading_sessions", "broker", BROKER_RULE),
    ("strategies", "name", LABEL_RULE),
    ("strategies", "strategy_type", LABEL_RULE),
    ("strategy_revisions", "name", LABEL_RULE),
    ("strategy_revisions", "note", NOTE_RULE),
    ("instruments", "source", BROKER_RULE),
    ("instruments", "exchange", VENUE_RULE),
    ("instruments", "exchange_token", LABEL_RULE),
    ("instruments", "trading_symbol", LABEL_RULE),
    ("instruments", "name", LABEL_RULE),
    ("instruments", "segment", VENUE_RULE),
    ("instruments", "underlying", LABEL_RULE),
    ("instrument_versions", "source", BROKER_RULE),
    ("instrument_versions", "exchange", VENUE_RULE),
    ("instrument_versions", "trading_symbol", LABEL_RULE),
    ("instrument_versions", "segment", VENUE_RULE),
    ("portfolios", "currency", CURRENCY_RULE),
    ("portfolios", "name", LABEL_RULE),
]
# Everything near an edge of the rules: blanks, controls, line ends, letters that some locale takes for one of ours.
TRICKY = "\t\n\r \x01\x1e\x1f\x7f\x80\x85\x9f\xa0\u1680\u180e\u2000\u200a\u200b\u2028\u2029\u202f\u205f\u3000\ufeffaAzZ09_-.éßıK|$^\\'\""
tricky = st.text(st.sampled_from(TRICKY), max_size=5)
any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
codes = st.from_regex(r"[A-Za-z0-9_-]{0,34}", fullmatch=True)


@pytest.mark.parametrize(("table", "column", "rule"), TEXT_COLUMNS, ids=[f"{t}.{c}" for t, c, _ in TEXT_COLUMNS])
async def test_text_rules_and_their_constraints_agree_on_length(
    connection: asyncpg.Connection, table: str, column: str, rule: TextRule
) -> None:
    filler = "A" if takes(_annotated(rule), "A" * rule.max_length) else "a"
    for character in (filler, "é" if takes(_annotated(rule), "é") else filler):
        for length in (0, 1, 2, 3, rule.max_length - 1, rule.max_length, rule.max_length + 1):
            value = character * length
            taken = await table_takes(connection, f"UPDATE {table} SET {column} = $1", value)
            assert taken == takes(_annotated(rule), value), length


@in_database
@given(which=st.sampled_from(TEXT_COLUMNS), value=st.one_of(tricky, any_text, codes))
@example(which=TEXT_COLUMNS[0], value="trader\n")
@example(which=TEXT_COLUMNS[3], value="paper\n")
@example(which=TEXT_COLUMNS[0], value="\u2028")
async def test_text_rules_and_their_constraints_agree(
    connection: asyncpg.Connection, which: tuple[str, str, TextRule], value: str
) -> None:
    table, column, rule = which
    if column == "username":  # of which another constraint, and a function of ours, make one form
        value = folded(value)
        assume(all(unicodedata.category(character) != "Cn" for character in value))
    taken = await table_takes(connection, f"UPDATE {table} SET {column} = $1", value)
    assert taken == takes(_annotated(rule), value)


def _annotated(rule: TextRule) -> Any:
    return Annotated[str, AfterValidator(rule)]


@in_database
@given(brokers=st.lists(st.one_of(codes, tricky), max_size=3))
@example(brokers=["a" * 32])
@example(brokers=["a" * 33])
@example(brokers=["paper\n"])
@example(brokers=["a,b"])
async def test_broker_lists_and_their_constraint_agree(connection: asyncpg.Connection, brokers: list[str]) -> None:
    taken = await table_takes(connection, "UPDATE strategies SET active_brokers = $1", brokers)
    assert taken == takes(list[BrokerName], brokers)


@pytest.mark.parametrize("brokers", ["{NULL}", "{{paper},{kite}}", "{paper,NULL}"])
async def test_broker_lists_hold_no_null_and_no_list(connection: asyncpg.Connection, brokers: str) -> None:
    assert not await table_takes(connection, f"UPDATE strategies SET active_brokers = '{brokers}'")


@pytest.mark.parametrize("value", [5, b"x", "\ud800", "a\0b", None])
def test_text_rules_refuse_what_is_no_text(value: Any) -> None:
    for _, _, rule in TEXT_COLUMNS:
        assert not takes(_annotated(rule), value)


# Numbers and times

MONEY_COLUMNS = [
    ("portfolio_snapshots", "cash"),
    ("portfolio_snapshots", "equity"),
    ("instruments", "last_price"),
    ("instruments", "tick_size"),
]


@in_database
@given(which=st.sampled_from(MONEY_COLUMNS), value=st.decimals(allow_nan=True, allow_infinity=True))
@example(which=MONEY_COLUMNS[0], value=Decimal("999999999999999999.9999999999"))
@example(which=MONEY_COLUMNS[0], value=Decimal("1E+18"))
@example(which=MONEY_COLUMNS[0], value=Decimal("1E-10"))
@example(which=MONEY_COLUMNS[1], value=Decimal("NaN"))
@example(which=MONEY_COLUMNS[3], value=Decimal("NaN"))
@example(which=MONEY_COLUMNS[1], value=Decimal("-Infinity"))
async def test_money_that_a_record_takes_is_stored_exactly_and_no_nan_by_any_way(
    connection: asyncpg.Connection, which: tuple[str, str], value: Decimal
) -> None:
    table, column = which
    kind: Any = records.TickSize if column == "tick_size" else MoneyValue
    if takes(kind, value):
        async with rolled_back(connection):
            await connection.execute(f"UPDATE {table} SET {column} = $1::text::numeric", format(value, "f"))
            assert await connection.fetchval(f"SELECT {column} FROM {table}") == value
    elif not value.is_finite() or abs(value) >= 10**18 or (column == "tick_size" and value <= -1):
        statement = f"UPDATE {table} SET {column} = $1::text::numeric"
        if value.is_finite() and value.adjusted() > 1000:
            return  # no text of a sensible length says it
        text = format(value, "f") if value.is_finite() else str(value).replace("sNaN", "NaN").lstrip("-")
        assert not await table_takes(connection, statement, text if "NaN" not in text else "NaN")


TIME_COLUMNS = [
    ("users", "created_at"),
    ("users", "updated_at"),
    ("instruments", "valid_from"),
    ("strategies", "updated_at"),
    ("portfolios", "created_at"),
    ("strategy_revisions", "created_at"),
]


@in_database
@given(
    which=st.sampled_from(TIME_COLUMNS),
    value=st.one_of(
        st.datetimes(timezones=st.just(UTC)),
        st.sampled_from([datetime.min, datetime.max]).map(lambda end: end.replace(tzinfo=UTC)),
        st.timedeltas(timedelta(0), timedelta(microseconds=2)).map(lambda d: datetime.min.replace(tzinfo=UTC) + d),
        st.timedeltas(timedelta(0), timedelta(microseconds=2)).map(lambda d: datetime.max.replace(tzinfo=UTC) - d),
    ),
)
async def test_times_and_their_constraints_agree(
    connection: asyncpg.Connection, which: tuple[str, str], value: datetime
) -> None:
    table, column = which
    taken = await table_takes(
        connection,
        f"UPDATE {table} SET {column} = $1::text::timestamptz",
        value.strftime("%Y").zfill(4) + value.isoformat()[4:],
    )
    assert taken == takes(AwareUtc, value)


@pytest.mark.parametrize(("table", "column"), TIME_COLUMNS)
@pytest.mark.parametrize("value", ["infinity", "-infinity", "10000-01-01 00:00:00+00", "0001-01-01 00:00:00+00 BC"])
async def test_no_time_outside_pythons_calendar_is_stored(
    connection: asyncpg.Connection, table: str, column: str, value: str
) -> None:
    assert not await table_takes(connection, f"UPDATE {table} SET {column} = '{value}'")


@in_database
@given(value=st.one_of(st.dates(), st.sampled_from([date.min, date.max, date(1, 1, 2), date(9999, 12, 30)])))
async def test_dates_and_their_constraint_agree(connection: asyncpg.Connection, value: date) -> None:
    statement = "UPDATE instruments SET instrument_type = 'FUT', expiry = $1::text::date"
    taken = await table_takes(connection, statement, f"{value.year:04}-{value.month:02}-{value.day:02}")
    assert taken == takes(CalendarDate, value)


# Rules across columns


@in_database
@given(
    instrument_type=st.sampled_from(["EQ", "FUT", "OPT", "IDX", "XX"]),
    option_type=st.sampled_from([None, "CE", "PE", "XX"]),
    strike=st.sampled_from([None, Decimal(0), Decimal("-0.01"), Decimal("370.75")]),
    expiry=st.sampled_from([None, date(2026, 11, 26)]),
    tick_size=st.sampled_from([None, Decimal(0), Decimal("0.05"), Decimal(-1)]),
    lot_size=st.sampled_from([None, 0, 75, -1]),
)
async def test_instrument_records_and_the_table_agree(connection: asyncpg.Connection, **fields: Any) -> None:
    try:
        InstrumentCreate(
            instrument_token=2, source="kite", exchange="NFO", trading_symbol="X", segment="NFO-OPT", **fields
        )
        taken = True
    except ValidationError:
        taken = False
    values = [fields[name] for name in ("instrument_type", "option_type", "strike", "expiry", "tick_size", "lot_size")]
    statement = """
        INSERT INTO instruments (instrument_token, source, exchange, trading_symbol, segment,
                                 instrument_type, option_type, strike, expiry, tick_size, lot_size)
        VALUES (2, 'kite', 'NFO', 'X', 'NFO-OPT', $1, $2, $3, $4, $5, $6)"""
    assert await table_takes(connection, statement, *values) == taken


amounts = st.sampled_from([Decimal(n) for n in ("0", "1.5", "-1.5", "3", "1E+17", "9E+17", "0.0000000001", "-9E+17")])


@in_database
@given(realized=amounts, unrealized=amounts, total=st.one_of(st.none(), amounts))
async def test_the_total_is_the_sum_in_records_and_in_the_table(
    connection: asyncpg.Connection, realized: Decimal, unrealized: Decimal, total: Decimal | None
) -> None:
    given_total: dict[str, Any] = {} if total is None else {"total_pnl": total}
    total = realized + unrealized if total is None else total
    with localcontext() as context:
        context.prec = 5  # a caller's own precision must not decide
        try:
            record = PortfolioSnapshotCreate(
                portfolio_id="p",
                broker="paper",
                snapshot_time=NOON,
                cash=Decimal(1),
                realized_pnl=realized,
                unrealized_pnl=unrealized,
                equity=Decimal(1),
                **given_total,
            )
            taken = True
            assert record.total_pnl == total
        except ValidationError:
            taken = False
    statement = "UPDATE portfolio_snapshots SET realized_pnl = $1, unrealized_pnl = $2, total_pnl = $3"
    assert await table_takes(connection, statement, realized, unrealized, total) == taken


@in_database
@given(start=st.integers(0, 3), expires=st.one_of(st.none(), st.integers(0, 3)))
async def test_session_lifetimes_agree(connection: asyncpg.Connection, start: int, expires: int | None) -> None:
    times = [None if hours is None else NOON + timedelta(hours=hours) for hours in (start, expires)]
    try:
        TradingSessionCreate(user_id=1, broker="paper", start_time=times[0], expires_at=times[1])  # type: ignore[arg-type]
        taken = True
    except ValidationError:
        taken = False
    statement = "UPDATE trading_sessions SET start_time = $1, expires_at = $2"
    assert await table_takes(connection, statement, *times) == taken


@pytest.mark.parametrize(
    ("assignment", "taken"),
    [
        ("end_time = start_time, is_active = false", True),
        ("end_time = start_time - interval '1 s', is_active = false", False),
        ("end_time = start_time", False),
        ("is_active = false", False),
        ("expires_at = start_time", False),
    ],
)
async def test_a_session_is_active_exactly_until_it_ends(
    connection: asyncpg.Connection, assignment: str, taken: bool
) -> None:
    assert await table_takes(connection, f"UPDATE trading_sessions SET {assignment}") is taken


@in_database
@given(start=st.integers(0, 2), end=st.integers(0, 2))
async def test_periods_of_instrument_versions_agree(connection: asyncpg.Connection, start: int, end: int) -> None:
    times = [NOON + timedelta(hours=hours) for hours in (start, end)]
    state: dict[str, Any] = {
        "instrument_token": 1,
        "source": "kite",
        "exchange": "NSE",
        "trading_symbol": "X",
        "segment": "NSE",
    }
    try:
        InstrumentVersionCreate(**state, instrument_type="EQ", valid_from=times[0], valid_to=times[1])  # type: ignore[arg-type]
        taken = True
    except ValidationError:
        taken = False
    statement = "UPDATE instrument_versions SET valid_from = $1, valid_to = $2"
    assert await table_takes(connection, statement, *times) == taken


SHAPES: list[tuple[str, bool]] = [
    ("[]", True),
    ('[{"instrument_token":1,"quantity":"1","average_price":"1.5","last_price":"2","pnl":"-3"}]', True),
    ("{}", False),
    ('"x"', False),
    ("null", False),
    ("[1]", False),
    ("[null]", False),
    ("[[]]", False),
    ("[{}]", False),
    ('[[{"instrument_token":1,"quantity":"1","average_price":"1","last_price":"2","pnl":"3"}]]', False),
    ('[{"instrument_token":"1","quantity":"1","average_price":"1","last_price":"2","pnl":"3"}]', False),
    ('[{"instrument_token":1,"quantity":1,"average_price":"1","last_price":"2","pnl":"3"}]', False),
    ('[{"instrument_token":1,"quantity":"1","average_price":"1","last_price":"2"}]', False),
    ('[{"instrument_token":1,"quantity":"1","average_price":"1","last_price":"2","pnl":1.5}]', False),
    ('[{"instrument_token":1,"quantity":"1","average_price":"1","last_price":"2","pnl":["3"]}]', False),
    ('[{"instrument_token":1,"quantity":"1","average_price":"1","last_price":"2","pnl":null}]', False),
]


@pytest.mark.parametrize(("positions", "taken"), SHAPES)
async def test_positions_agree_on_their_shape(connection: asyncpg.Connection, positions: str, taken: bool) -> None:
    assert await table_takes(connection, f"UPDATE portfolio_snapshots SET positions = '{positions}'") is taken
    if taken:
        assert Positions.model_validate_json(positions).model_dump_json() == positions


@pytest.mark.parametrize("value", ["[]", '"x"', "null", "1"])
@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("trading_sessions", "session_data"),
        ("strategies", "config"),
        ("strategies", "parameters"),
        ("strategy_revisions", "config"),
        ("instruments", "attributes"),
        ("instrument_versions", "attributes"),
    ],
)
async def test_free_form_columns_hold_objects_only(
    connection: asyncpg.Connection, table: str, column: str, value: str
) -> None:
    assert not await table_takes(connection, f"UPDATE {table} SET {column} = '{value}'")


# Records by themselves

POSITION: dict[str, Any] = {
    "instrument_token": 1,
    "quantity": 75,
    "average_price": Decimal("1.5"),
    "last_price": 2,
    "pnl": Decimal(3),
}
INSTRUMENT: dict[str, Any] = {
    "instrument_token": 256265,
    "source": "kite",
    "exchange": "NFO",
    "exchange_token": "1001",
    "trading_symbol": "NIFTY26NOV24000CE",
    "segment": "NFO-OPT",
    "instrument_type": "OPT",
    "underlying": "NIFTY",
    "option_type": "CE",
    "tick_size": Decimal("0.05"),
    "lot_size": 65,
    "expiry": date(2026, 11, 26),
    "strike": Decimal(24000),
    "attributes": {"series": "XX", "rows": [1, None, True]},
}
SNAPSHOT: dict[str, Any] = {
    "portfolio_id": "p",
    "broker": "paper",
    "snapshot_time": NOON,
    "positions": [POSITION],
    "cash": Decimal("100.5"),
    "realized_pnl": Decimal(-1),
    "unrealized_pnl": Decimal("0.0000000001"),
    "equity": Decimal("250.5"),
}
STATE: dict[str, Any] = {
    "name": "Momentum",
    "config": {"a": 1},
    "parameters": {"lookback": 20},
    "active_brokers": ["paper"],
}


def but(fields: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**fields, **changes}


CREATES: list[tuple[type[Record], dict[str, Any]]] = [
    (UserCreate, {"username": "trader", "hashed_password": "hash"}),
    (TradingSessionCreate, {"user_id": 1, "broker": "paper", "session_data": {"ip": "::1"}}),
    (StrategyCreate, {"strategy_id": "s2", **STATE}),
    (StrategyRevisionCreate, {"strategy_id": "s", "version": 2, "is_active": True, "note": "first", **STATE}),
    (InstrumentCreate, but(INSTRUMENT, last_price=0)),
    (
        InstrumentVersionCreate,
        but(INSTRUMENT, instrument_token=1, valid_from=NOON, valid_to=NOON + timedelta(days=1)),
    ),
    (PortfolioCreate, {"portfolio_id": "p2", "broker": "kite", "currency": "INR", "name": "Real", "strategy_id": "s"}),
    (PortfolioSnapshotCreate, SNAPSHOT),
]


@pytest.mark.parametrize(("face", "fields"), CREATES, ids=[face.__name__ for face, _ in CREATES])
def test_every_record_round_trips_through_its_own_json(face: type[Record], fields: dict[str, Any]) -> None:
    record = face(**fields)
    assert face.model_validate_json(record.model_dump_json()) == record


@pytest.mark.parametrize(("face", "fields"), CREATES, ids=[face.__name__ for face, _ in CREATES])
def test_records_are_strict_frozen_and_closed(face: type[Record], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="extra"):
        face(**but(fields, unknown=1))
    record = face(**fields)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(record, next(iter(fields)), 1)
    assert set(record.columns()) == set(face.model_fields)


PAIRS = [
    (UserCreate, User, UserRead),
    (TradingSessionCreate, TradingSession, TradingSessionRead),
    (StrategyCreate, Strategy, StrategyRead),
    (StrategyRevisionCreate, StrategyRevision, StrategyRevisionRead),
    (InstrumentCreate, Instrument, InstrumentRead),
    (InstrumentVersionCreate, InstrumentVersion, InstrumentVersionRead),
    (PortfolioCreate, Portfolio, PortfolioRead),
    (PortfolioSnapshotCreate, PortfolioSnapshot, PortfolioSnapshotRead),
]


@pytest.mark.parametrize(("face", "model", "read"), PAIRS, ids=[model.__name__ for _, model, _ in PAIRS])
async def test_a_record_becomes_a_row_and_the_row_a_record(
    rules_url: str, face: type[Record], model: type[Any], read: type[ReadRecord]
) -> None:
    fields = dict(CREATES)[face]
    if face is UserCreate:
        fields = but(fields, username="another")
    if face is TradingSessionCreate:
        fields = but(fields, broker="kite")
    if face is PortfolioSnapshotCreate:
        fields = but(fields, snapshot_time=NOON + timedelta(seconds=1))
    created = face(**fields)
    engine = build_engine(DatabaseUrl.parse(rules_url), EngineOptions())
    async with AsyncSession(engine, expire_on_commit=False) as session:
        row = model(**created.columns())
        session.add(row)
        await session.flush()
        first = read.model_validate(row)
        await session.refresh(row)
        second = read.model_validate(row)
        await session.rollback()
    await engine.dispose()
    assert first == second
    shared = set(face.model_fields) & set(read.model_fields)
    assert {name: getattr(second, name) for name in shared} == {name: getattr(created, name) for name in shared}


def test_read_faces_show_no_secret() -> None:
    assert "hashed_password" not in UserRead.model_fields
    assert "credentials" not in TradingSessionRead.model_fields
    assert "credentials" not in TradingSessionCreate.model_fields
    assert "hash" not in repr(UserCreate(username="trader", hashed_password="the hash")).replace("hashed", "")


def test_errors_of_records_never_show_the_value() -> None:
    for make in (
        lambda: UserCreate(username=" secret-value", hashed_password="\x00secret-value"),
        lambda: UserCreate.model_validate({"username": 5, "hashed_password": b"secret-value"}),
        lambda: StrategyCreate(name="x", config={"a": [b"secret-value"]}),  # type: ignore[arg-type]
        lambda: PortfolioSnapshotCreate(**but(SNAPSHOT, cash="secret-value")),
        lambda: Position(**but(POSITION, pnl="secret-value")),
    ):
        with pytest.raises(ValidationError) as refused:
            make()
        assert "secret-value" not in str(refused.value)


@pytest.mark.parametrize("value", [1.5, True, "1", Decimal("NaN"), Decimal("Infinity"), Decimal("1E-11"), 10**18])
def test_money_is_never_a_float_or_a_guess(value: Any) -> None:
    assert not takes(MoneyValue, value)


def test_money_in_json_is_text_or_a_whole_number() -> None:
    kind = TypeAdapter[Decimal](MoneyValue)
    assert kind.validate_json('"1.50"') == Decimal("1.50")
    assert kind.validate_json('"-1E+5"') == Decimal(-100000)
    assert kind.validate_json("5") == 5
    for text in (
        "1.5",
        '" 1"',
        '"1_000"',
        '"NaN"',
        '"Infinity"',
        '"１"',
        "true",
        '"1e9999"',
        '"' + "9" * 200 + '"',
        "null",
    ):
        with pytest.raises(ValidationError):
            kind.validate_json(text)


def test_times_in_json_need_a_zone() -> None:
    kind = TypeAdapter[datetime](AwareUtc)
    ist = datetime(2026, 11, 22, 17, 30, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    assert kind.validate_json('"2026-11-22T17:30:00+05:30"') == NOON == kind.validate_python(ist)
    assert kind.validate_python(ist).tzinfo is UTC
    for text in ('"2026-11-22T17:30:00"', '"yesterday"', "true"):
        with pytest.raises(ValidationError):
            kind.validate_json(text, strict=True)


def test_json_numbers_that_would_lose_digits_are_refused_in_records() -> None:
    body = '{"name": "x", "config": {"a": %s}}'
    assert StrategyCreate.model_validate_json(body % "0.1").config == {"a": Decimal("0.1")}
    for number in ("0.1234567890123456789", "NaN", "Infinity"):
        with pytest.raises(InvalidInput):
            StrategyCreate.model_validate_json(body % number)


def test_records_keep_documents_of_their_own() -> None:
    config = StrategyConfig({"a": [1]})
    record = StrategyCreate(name="x", config=config)
    config["a"].append(2)
    assert record.config == {"a": [1]}


def test_positions_are_used_like_a_list() -> None:
    positions = Positions([POSITION])  # type: ignore[list-item]
    assert positions[0].quantity == 75
    assert positions == [POSITION]
    assert [position.instrument_token for position in positions] == [1]
    positions.append(Position(**but(POSITION, instrument_token=2)))
    assert len(positions) == 2
    with pytest.raises(ValidationError):
        positions.append({"instrument_token": 3})  # type: ignore[arg-type]


def test_every_public_record_is_a_closed_model() -> None:
    for name in records.__all__:
        thing = getattr(records, name)
        if isinstance(thing, type) and issubclass(thing, BaseModel):
            assert thing.model_config.get("hide_input_in_errors"), name
            assert thing.model_config.get("strict"), name
