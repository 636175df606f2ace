"""Finding instruments: what comes first, what never comes, and by which plans."""

from collections.abc import AsyncIterator
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput
from core.database.models import Instrument
from core.trading import instruments
from core.trading.instruments._query import Query, after, parse, upper

AUG, SEP = date(2026, 8, 25), date(2026, 9, 29)


def row(token: int, symbol: str, **given: Any) -> Instrument:
    values: dict[str, Any] = {
        "source": "kite", "exchange": "NSE", "segment": "NSE", "instrument_type": "EQ", "name": symbol, **given,
    }  # fmt: skip
    return Instrument(instrument_token=token, trading_symbol=symbol, **values)


def option(token: int, underlying: str, expiry: date, strike: int, side: str, **given: Any) -> Instrument:
    symbol = f"{underlying}{expiry:%y%b}{strike}{side}".upper()
    contract = {"instrument_type": "OPT", "underlying": underlying, "expiry": expiry, "exchange": "NFO", "name": None}
    return row(
        token, symbol, **{**contract, "strike": Decimal(strike), "option_type": side, "segment": "NFO-OPT", **given}
    )


def future(token: int, underlying: str, expiry: date, **given: Any) -> Instrument:
    symbol = f"{underlying}{expiry:%y%b}FUT".upper()
    contract = {"instrument_type": "FUT", "underlying": underlying, "expiry": expiry, "exchange": "NFO", "name": None}
    return row(token, symbol, **{**contract, "segment": "NFO-FUT", **given})


def master() -> list[Instrument]:
    options = [
        option(1000 + 100 * place + 2 * number + (side == "PE"), "NIFTY", expiry, 24_900 + 50 * number, side)
        for place, expiry in enumerate((SEP, AUG))
        for number in range(5)
        for side in ("CE", "PE")
    ]
    return [
        *options,
        row(1, "NIFTY 50", instrument_type="IDX", segment="INDICES"),
        row(2, "Nifty Bank", instrument_type="IDX", segment="INDICES", source="nuvama"),
        row(3, "NIFTYBEES", name="NIPPON INDIA ETF NIFTY BEES"),
        row(4, "RELIANCE", name="RELIANCE INDUSTRIES LTD"),
        row(5, "RELINFRA", name="RELIANCE INFRASTRUCTURE"),
        row(6, "TATAMOTORS-OLD", name="TATA MOTORS", is_active=False),
        row(7, "M&M", name="MAHINDRA & MAHINDRA"),
        row(8, "100%_O'K\\", name=None),
        row(9, "INFY", exchange="BSE", segment="BSE"),
        row(10, "INFY"),
        row(11, "INFYX"),
        future(20, "NIFTY", AUG),
        future(21, "NIFTY", SEP),
        future(22, "NIFTYNXT50", AUG),
        option(30, "NIFTY", date(2026, 7, 28), 25_000, "CE", is_active=False),
        option(31, "NIFTYNXT50", date(2026, 8, 4), 25_000, "CE"),
    ]


@pytest.fixture
async def session(manager: DatabaseManager) -> AsyncIterator[AsyncSession]:
    async with manager.transaction() as writing:
        writing.add_all(master())
    async with manager.get_session(read_only=True) as reading:
        yield reading


async def found(session: AsyncSession, line: str, **given: Any) -> list[str]:
    return [one.trading_symbol for one in await instruments.search(session, line, **given)]


async def test_the_exact_symbol_comes_first_then_those_that_begin_so(session: AsyncSession):
    tokens = [one.instrument_token for one in await instruments.search(session, "infy")]
    assert tokens == [9, 10, 11]
    assert (await found(session, "Nifty  50"))[0] == "NIFTY 50"
    assert (await found(session, "nifty bank")) == ["Nifty Bank"]
    assert (await found(session, "nifty"))[:6] == [
        "NIFTYBEES", "NIFTY 50", "Nifty Bank", "NIFTY26AUGFUT", "NIFTY26SEPFUT", "NIFTYNXT5026AUGFUT",
    ]  # fmt: skip
    assert (await found(session, "1005")) == ["NIFTY26SEP25000PE"]


async def test_contracts_are_found_by_their_terms_the_nearest_expiry_first(session: AsyncSession):
    expected = ["NIFTY26AUG25000CE", "NIFTY26SEP25000CE"]
    for line in ("nifty 25000 ce", "25000CE nifty", "NIFTY call 25000"):
        assert (await found(session, line))[:2] == expected
    for line in ("nifty 25000 ce sep", "nifty 29 sep 25000 ce", "nifty sep 2026 25000 ce", "nifty 2026-09-29 25000ce"):
        assert await found(session, line) == expected[1:]
    assert await found(session, "nifty 28 sep 25000 ce") == []
    assert await found(session, "nifty fut") == ["NIFTY26AUGFUT", "NIFTY26SEPFUT", "NIFTYNXT5026AUGFUT"]
    assert await found(session, "nifty sep 26 future") == ["NIFTY26SEPFUT"]
    assert await found(session, "25000 ce", underlying="NIFTY") == expected
    assert await found(session, "25000 ce") == ["NIFTYNXT5026AUG25000CE", *expected]  # of whatever underlying
    assert await found(session, "25000 ce sep") == expected[1:]
    assert await found(session, "25000") == await found(session, "ce") == []
    assert await found(session, "NIFTY26AUG2500") == ["NIFTY26AUG25000CE", "NIFTY26AUG25000PE"]


async def test_words_of_a_name_are_found_wherever_they_stand(session: AsyncSession):
    assert await found(session, "reliance industries") == ["RELIANCE"]
    assert await found(session, "reliance") == ["RELIANCE", "RELINFRA"]
    assert await found(session, "indus rel") == ["RELIANCE"]
    assert await found(session, "in nifty") == []  # two letters are a word, not a beginning
    assert await found(session, "m&m") == ["M&M"]


async def test_what_has_left_the_file_is_found_when_asked_for_and_comes_last(session: AsyncSession):
    assert await found(session, "tatamotors") == []
    assert await found(session, "tata motors", active_only=False) == ["TATAMOTORS-OLD"]
    symbols = await found(session, "nifty 25000 ce", active_only=False)
    assert symbols == [
        "NIFTY26AUG25000CE", "NIFTY26SEP25000CE", "NIFTYNXT5026AUG25000CE", "NIFTY26JUL25000CE",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "passes"),
    [
        ({"source": "nuvama"}, lambda one: one.source == "nuvama"),
        ({"exchange": "NFO"}, lambda one: one.exchange == "NFO"),
        ({"segment": "INDICES"}, lambda one: one.segment == "INDICES"),
        ({"instrument_type": "FUT"}, lambda one: one.instrument_type == "FUT"),
        ({"option_type": "PE"}, lambda one: one.option_type == "PE"),
        ({"underlying": "NIFTYNXT50"}, lambda one: one.underlying == "NIFTYNXT50"),
        ({"expiry": SEP}, lambda one: one.expiry == SEP),
        ({"expiry_from": AUG, "expiry_to": AUG}, lambda one: one.expiry == AUG),
        ({"strike_from": 24_950, "strike_to": Decimal(25_000)}, lambda one: one.strike in (24_950, 25_000)),
    ],
)
async def test_every_filter_holds_for_every_result_and_loses_none(session: AsyncSession, given: Any, passes: Any):
    everything = await instruments.search(session, "nifty", limit=200)
    assert len(everything) == 27
    assert [one.instrument_token for one in await instruments.search(session, "nifty", limit=200, **given)] == [
        one.instrument_token for one in everything if passes(one)
    ]


async def test_the_limit_is_held_and_keeps_the_best(session: AsyncSession):
    whole = await found(session, "nifty", limit=200)
    for limit in (1, 3, 5):
        assert await found(session, "nifty", limit=limit) == whole[:limit]


@pytest.mark.parametrize(
    ("line", "given", "field"),
    [
        ("", {}, "text"),
        (" \t", {}, "text"),
        ("a\x00b", {}, "text"),
        ("\ud800", {}, "text"),
        ("x" * 201, {}, "text"),
        (None, {}, "text"),
        ("x", {"limit": 0}, "limit"),
        ("x", {"limit": 201}, "limit"),
        ("x", {"limit": True}, "limit"),
        ("x", {"source": "a\x00"}, "source"),
        ("x", {"instrument_type": "XX"}, "instrument_type"),
        ("x", {"option_type": "C"}, "option_type"),
        ("x", {"expiry": "2026-08-25"}, "expiry"),
        ("x", {"strike_from": 1.5}, "strike_from"),
    ],
)
async def test_what_cannot_be_searched_for_is_refused_by_name(session: AsyncSession, line: Any, given: Any, field: str):
    with pytest.raises(InvalidInput) as fault:
        await instruments.search(session, line, **given)
    assert fault.value.column == field
    assert field in fault.value.message


@pytest.mark.parametrize("line", ["%", "_", "n_fty", "'", "''", "\\", "&", "a & b", ":*", "infy:*x", "(", "<->"])
async def test_no_character_has_a_meaning_of_its_own(session: AsyncSession, line: str):
    assert await found(session, line) == []
    assert await found(session, "!infy") == await found(session, "infy | :") == await found(session, "infy")


async def test_odd_symbols_are_found_as_they_are(session: AsyncSession):
    assert await found(session, "100%_o'k\\") == ["100%_O'K\\"]
    assert await found(session, "100%") == ["100%_O'K\\"]


def matches(query: Query, one: Instrument) -> bool:
    symbol = upper(one.trading_symbol)
    if symbol.startswith((query.text, query.squeezed)) or query.text == str(one.instrument_token):
        return True
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in f"{symbol} {upper(one.name or '')}").split()
    if query.words and all(
        any(word.startswith(sought) if len(sought) > 2 else word == sought for word in words) for sought in query.words
    ):
        return True
    return (
        one.underlying is not None
        and (query.name != "" or (query.strike is not None and query.option_type is not None))
        and one.underlying.startswith(query.name)
        and query.strike in (None, one.strike)
        and query.option_type in (None, one.option_type)
        and query.kind in (None, one.instrument_type)
        and (query.month is None or (one.expiry is not None and one.expiry.month == query.month))
    )


LINES = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.sampled_from(["nifty", "NI", "25000", "25000ce", "ce", "put", "fut", "aug", "29", "sep26", "2026", "rel", "'", "&",
                         "m&m", ":*", "%", "infy", "50", "0", "99999999999999999999", "2026-13-45", "\u0131", "1.5"]),
        max_size=5,
    ).map(" ".join),
)  # fmt: skip


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(line=LINES)
async def test_any_text_is_searched_for_and_every_result_matches_it(session: AsyncSession, line: str):
    try:
        query = parse(line)
    except InvalidInput:
        with pytest.raises(InvalidInput):
            await instruments.search(session, line)
        return
    results = await instruments.search(session, line, active_only=False, limit=200)
    assert all(matches(query, one) for one in results)
    symbols = [one for one in master() if upper(one.trading_symbol).startswith(query.text)]
    assert {one.instrument_token for one in symbols} <= {one.instrument_token for one in results}


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1), st.text())
def test_the_end_of_a_range_lies_above_all_that_begin_alike(prefix: str, rest: str):
    def place(value: str) -> bytes:
        return value.encode("utf-8", "surrogatepass")

    assert place(prefix) <= place(prefix + rest) < place(after(prefix))


async def test_a_chain_has_a_row_for_each_strike(session: AsyncSession, manager: DatabaseManager):
    async with manager.transaction() as writing:
        writing.add(option(50, "NIFTY", AUG, 25_000, "CE", source="nuvama"))
        writing.add(option(51, "NIFTY", AUG, 26_000, "PE", is_active=False))
    rows = await instruments.option_chain(session, "NIFTY", AUG, source="kite")
    assert [row.strike for row in rows] == [24_900, 24_950, 25_000, 25_050, 25_100]
    for chained in rows:
        assert chained.call is not None
        assert chained.put is not None
        assert (chained.call.option_type, chained.put.option_type) == ("CE", "PE")
        assert chained.call.strike == chained.put.strike == chained.strike
    both = await instruments.option_chain(session, "NIFTY", AUG, exchange="NFO", active_only=False)
    assert [(row.strike, row.source, row.put is None) for row in both if row.strike in (25_000, 26_000)] == [
        (25_000, "kite", False),
        (25_000, "nuvama", True),
        (26_000, "kite", False),
    ]
    assert await instruments.option_chain(session, "NIFTY", date(2030, 1, 1)) == []
    with pytest.raises(InvalidInput, match="expiry"):
        await instruments.option_chain(session, "NIFTY", "2026-08-25")  # pyright: ignore[reportArgumentType]


async def test_expiries_are_told_once_and_in_order(session: AsyncSession):
    assert await instruments.expiries(session, "NIFTY") == [AUG, SEP]
    assert await instruments.expiries(session, "NIFTY", active_only=False) == [date(2026, 7, 28), AUG, SEP]
    assert await instruments.expiries(session, "NIFTYNXT50", instrument_type="FUT") == [AUG]
    assert await instruments.expiries(session, "NIFTY", source="nuvama") == []
    assert await instruments.expiries(session, "%") == []


async def fill(manager: DatabaseManager) -> None:
    """Sixty thousand instruments, many of them gone."""
    made = """
        INSERT INTO instruments (instrument_token, source, exchange, trading_symbol, name, segment, instrument_type, underlying,
            option_type, expiry, strike, is_active, broker_key)
        SELECT n, 'kite', 'NFO', 'U' || n % 200 || '26' || n || CASE WHEN n % 2 = 0 THEN 'CE' ELSE 'PE' END, NULL, 'NFO', 'OPT',
            'U' || n % 200, CASE WHEN n % 2 = 0 THEN 'CE' ELSE 'PE' END, date '2026-08-04' + 7 * (n % 12), 100 * (n % 50) + 100,
            n % 5 > 0, NULL
        FROM generate_series(1, 50000) n
        UNION ALL
        SELECT n, CASE WHEN n % 2 = 0 THEN 'nuvama' ELSE 'kite' END, 'NSE', 'S' || n, 'COMPANY ' || n || ' LIMITED', 'NSE', 'EQ',
            NULL, NULL, NULL, NULL, true, CASE WHEN n % 2 = 0 THEN n || '_NSE' END
        FROM generate_series(50001, 60000) n
    """
    async with manager.transaction() as session:
        await session.execute(text(made))
    async with manager.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("VACUUM ANALYZE instruments"))


async def test_no_hot_query_reads_the_whole_table(manager: DatabaseManager):
    await fill(manager)
    statements: list[tuple[str, Any]] = []
    async with manager.get_session() as session:
        engine: Any = session.sync_session.get_bind()

        def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            statements.append((statement, parameters))

        event.listen(engine, "before_cursor_execute", note)
        lines = (
            "s",
            "s5",
            "company 50500",
            "limited",
            "u7 300 ce",
            "u7",
            "U726",
            "U1",
            "ce",
            "25000",
            "300 ce",
            "u7 aug fut",
        )
        for line in lines:
            await instruments.search(session, line)
            await instruments.search(session, line, active_only=False, exchange="NFO")
        assert await instruments.get(session, 50_007)
        assert await instruments.by_symbol(session, "NSE", "S50001")
        assert await instruments.by_symbol(session, "NSE", "S50001", source="kite")
        assert await instruments.by_key(session, "nuvama", "50002_NSE")
        await instruments.as_of(session, "NSE:S50001", date(2026, 11, 1))
        await instruments.as_of(session, "nuvama/50002_NSE", date(2026, 11, 1))
        await instruments.as_of(session, 50_001, date(2026, 11, 1))
        await instruments.history(session, 50_001)
        await instruments.option_chain(session, "U7", date(2026, 8, 4))
        await instruments.expiries(session, "U7")
        event.remove(engine, "before_cursor_execute", note)
        connection = await session.connection()
        for statement, parameters in statements:
            plan = (await connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)).scalars().all()
            seen = [line for line in plan if "Seq Scan on instruments" in line]
            assert not seen, (statement, parameters, plan)
            assert "tsquery" not in statement or any("ix_instruments_words" in line for line in plan), plan


async def test_a_search_is_planned_once_for_all_of_its_kind(manager: DatabaseManager):
    await fill(manager)
    async with manager.get_session() as session:
        for number in range(10, 18):
            for line in (f"u{number} 300 ce", f"U{number}26", f"s5{number}", f"company {number}"):
                await instruments.search(session, line)
        kept = await session.execute(
            text(
                "SELECT statement, generic_plans, custom_plans FROM pg_prepared_statements WHERE statement LIKE '%holders%'"
            )
        )
        plans = [(generic, custom) for statement, generic, custom in kept if "pg_prepared_statements" not in statement]
    assert len(plans) == 3  # two of the lines are of one kind
    assert all(generic >= 3 and custom == 5 for generic, custom in plans), plans
