"""What an instrument was on a day, through tokens that are used again and symbols that move."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput
from core.trading import instruments

HEADER = (
    "instrument_token,exchange_token,tradingsymbol,name,last_price,expiry,strike,tick_size,lot_size,instrument_type,"
    "segment,exchange\n"
)
MONDAY = date(2026, 11, 16)


def day(number: int) -> date:
    return MONDAY + timedelta(days=number)


def midnight(number: int) -> datetime:
    return datetime.combine(day(number), datetime.min.time(), tzinfo=UTC)


async def load(manager: DatabaseManager, number: int, names: dict[int, str], lot: int = 1) -> None:
    rows = "".join(f"{token},{token},{name},{name},1,,0,0.05,{lot},EQ,NSE,NSE\n" for token, name in names.items())
    await instruments.load(
        manager, (HEADER + rows).encode(), trading_date=day(number), source="kite", format="kite", allow_shrink=True
    )


async def test_a_token_that_is_used_again_and_a_symbol_that_moves_are_told_apart(manager: DatabaseManager):
    await load(manager, 0, {256: "OLD", 512: "STAYS"})
    await load(manager, 2, {256: "NEW", 512: "STAYS"})
    await load(manager, 4, {256: "NEW", 512: "STAYS", 768: "OLD"})
    async with manager.get_session(read_only=True) as session:
        assert await instruments.as_of(session, 256, day(-1)) is None
        for number, symbol in ((0, "OLD"), (1, "OLD"), (2, "NEW"), (9, "NEW")):
            state = await instruments.as_of(session, 256, day(number))
            assert state is not None
            assert state.trading_symbol == symbol
        holders = [await instruments.as_of(session, "NSE:OLD", day(number)) for number in range(6)]
        assert [state and state.instrument_token for state in holders] == [256, 256, None, None, 768, 768]
        states = await instruments.history(session, 256)
        assert [(one.trading_symbol, one.valid_from, one.valid_to) for one in states] == [
            ("OLD", midnight(0), midnight(2)),
            ("NEW", midnight(2), None),
        ]
        assert [one.instrument_token for one in await instruments.history(session, "NSE:OLD")] == [256, 768]
        assert await instruments.history(session, 1) == []


async def test_one_that_has_left_its_file_is_told_as_inactive(manager: DatabaseManager):
    await load(manager, 0, {256: "GONE", 512: "STAYS"})
    await load(manager, 1, {512: "STAYS"})
    await load(manager, 3, {256: "GONE", 512: "STAYS"})
    async with manager.get_session(read_only=True) as session:
        states = [await instruments.as_of(session, "NSE:GONE", day(number)) for number in range(4)]
        assert [state and state.is_active for state in states] == [True, False, False, True]
        assert [one.is_active for one in await instruments.history(session, 256)] == [True, False, True]


async def test_two_symbols_swapped_in_one_file_are_resolved_on_each_day(manager: DatabaseManager):
    await load(manager, 0, {256: "A", 512: "B"})
    await load(manager, 1, {256: "B", 512: "A"})
    async with manager.get_session(read_only=True) as session:
        for number, token in ((0, 256), (1, 512)):
            state = await instruments.as_of(session, "NSE:A", day(number))
            assert state is not None
            assert state.instrument_token == token


async def test_a_text_key_names_an_instrument_of_its_broker(manager: DatabaseManager):
    async with manager.transaction() as session:
        await session.execute(
            text(
                "INSERT INTO instruments (instrument_token, source, broker_key, exchange, trading_symbol, segment,"
                " instrument_type, valid_from) VALUES (4503599627370497, 'upstox', 'NSE_EQ|INE1:/', 'NSE', 'A:B/C',"
                " 'NSE_EQ', 'EQ', :since)"
            ),
            {"since": midnight(0)},
        )
    async with manager.get_session(read_only=True) as session:
        for wanted in ("upstox/NSE_EQ|INE1:/", "NSE:A:B/C", 4503599627370497):
            state = await instruments.as_of(session, wanted, day(0))
            assert state is not None
            assert (state.broker_key, state.trading_symbol, state.valid_to) == ("NSE_EQ|INE1:/", "A:B/C", None)
        assert await instruments.as_of(session, "NSE:A:B/C", day(0), source="kite") is None
        assert await instruments.as_of(session, "kite/NSE_EQ|INE1:/", day(0)) is None
        found = await instruments.by_key(session, "upstox", "NSE_EQ|INE1:/")
        assert found is not None
        assert found.trading_symbol == "A:B/C"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (("INFY", MONDAY), "instrument"),
        (("", MONDAY), "instrument"),
        (("nse:INFY", MONDAY), "instrument"),
        (("NSE:\x00", MONDAY), "instrument"),
        ((True, MONDAY), "instrument"),
        ((1 << 63, MONDAY), "instrument"),
        ((None, MONDAY), "instrument"),
        ((1, "2026-11-16"), "day"),
        ((1, datetime(2026, 11, 16, tzinfo=UTC)), "day"),
        ((1, date.max), "day"),
    ],
)
async def test_what_names_no_instrument_or_no_day_is_refused(manager: DatabaseManager, given: Any, field: str):
    async with manager.get_session(read_only=True) as session:
        with pytest.raises(InvalidInput) as fault:
            await instruments.as_of(session, *given)
    assert fault.value.column == field


FILES = st.lists(
    st.tuples(
        st.integers(min_value=0, max_value=2),
        st.dictionaries(st.sampled_from([256, 512, 768, 1024]), st.sampled_from(["A", "B", "C"]), min_size=1),
        st.sampled_from([1, 2]),
    ),
    min_size=1,
    max_size=5,
)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(files=FILES)
async def test_as_of_says_what_the_files_said(manager: DatabaseManager, files: list[tuple[int, dict[int, str], int]]):
    async with manager.transaction() as session:
        await session.execute(text("TRUNCATE instruments, instrument_versions, instrument_loads"))
    number = 0
    told: dict[
        int, dict[int, tuple[str, int]]
    ] = {}  # day -> token -> symbol and lot, as the last file of that day said
    ever: list[tuple[int, set[int]]] = []
    for gap, raw, lot in files:
        number += gap
        # A symbol that stands in a file twice is refused by some rules of loading; here each is one token's.
        names = {token: symbol for symbol, token in {symbol: token for token, symbol in raw.items()}.items()}
        await load(manager, number, names, lot)
        ever.append((number, set(names)))
        told[number] = {token: (symbol, lot) for token, symbol in names.items()}
    async with manager.get_session(read_only=True) as session:
        for asked in range(-1, number + 2):
            known = [told[one] for one in sorted(told) if one <= asked]
            for token in (256, 512, 768, 1024):
                state = await instruments.as_of(session, token, day(asked))
                present = known[-1].get(token) if known else None
                active = state if state is not None and state.is_active else None
                assert (active and (active.trading_symbol, active.lot_size)) == present
                assert (state is not None) == any(token in tokens for one, tokens in ever if one <= asked)
            for symbol in ("A", "B", "C"):
                state = await instruments.as_of(session, f"NSE:{symbol}", day(asked))
                holder = next((token for token, one in known[-1].items() if one[0] == symbol), None) if known else None
                assert (state.instrument_token if state and state.is_active else None) == holder
        for token in (256, 512, 768, 1024):
            states = await instruments.history(session, token)
            assert all(one.valid_to == after.valid_from for one, after in pairwise(states))
            assert [one.valid_to for one in states[-1:]] == [None] * bool(states)
