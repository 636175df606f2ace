"""The demo's made market, made history and drawn curve, without a database."""

import csv
import hashlib
import io
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.demo.companies import companies
from core.demo.curve import draw_curve
from core.demo.market import HEADER, ROWS, made_master
from core.demo.trading_days import AS_OF, is_trading_day, monthly_expiry, session_times, trading_days, weekly_expiries
from core.demo.walk import BOOKS, FIRST_DAY, Moment, walk
from core.trading.instruments._reader import open_master


@pytest.fixture(scope="module")
def master() -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(made_master().decode())))


@pytest.fixture(scope="module")
def history() -> list[Moment]:
    return list(walk(AS_OF))


def test_the_made_master_is_the_same_bytes_everywhere():
    assert (
        hashlib.sha256(made_master()).hexdigest() == "2dc5edd4fad2b54138bce2b007e96c9a1b73193c3c5042578892c2ec14d8c78a"
    )


def test_the_made_master_is_accepted_without_a_reject():
    master = open_master(made_master(), name="made")
    chunks = list(master.chunks())
    assert (master.format, master.ignored_columns) == ("kite", ())
    assert sum(chunk.rows for chunk in chunks) == sum(chunk.count for chunk in chunks) == ROWS
    assert {venue for chunk in chunks for venue in chunk.exchanges} == {"BFO", "BSE", "CDS", "MCX", "NFO", "NSE"}


def test_the_made_master_has_the_keys_of_a_real_one(master: list[dict[str, str]]):
    assert ",".join(master[0]) == HEADER
    assert len(master) == ROWS
    assert all(int(row["instrument_token"]) >> 8 == int(row["exchange_token"]) for row in master)
    for key in (("instrument_token",), ("exchange", "tradingsymbol"), ("exchange", "exchange_token")):
        assert len({tuple(row[column] for column in key) for row in master}) == ROWS, key


def test_the_made_contracts_are_like_real_ones(master: list[dict[str, str]]):
    kinds = Counter(row["instrument_type"] for row in master)
    assert kinds["CE"] == kinds["PE"] > 30_000
    assert kinds["FUT"] > 600 and kinds["EQ"] > 20_000
    for row in master:
        if row["instrument_type"] == "EQ":
            assert row["expiry"] == "" and row["strike"] == "0.0"
            continue
        assert is_trading_day(date.fromisoformat(row["expiry"])) and row["expiry"] >= AS_OF.isoformat()
        assert row["tradingsymbol"].startswith(row["name"]) and row["tradingsymbol"].endswith(row["instrument_type"])
        assert Decimal(row["tick_size"]) > 0 and int(row["lot_size"]) > 0
        assert (Decimal(row["strike"]) > 0) == (row["instrument_type"] in ("CE", "PE"))
    nifty = [row for row in master if row["name"] == "NIFTY" and row["instrument_type"] == "CE"]
    assert {Decimal(row["strike"]) % 50 for row in nifty} == {0}
    assert {(row["lot_size"], row["tick_size"]) for row in nifty} == {("65", "0.05")}
    assert {"NIFTY26NOV24950CE", "NIFTY26D0124950CE"} <= {row["tradingsymbol"] for row in nifty}


def test_another_day_has_other_contracts():
    later = {row["expiry"] for row in csv.DictReader(io.StringIO(made_master(date(2026, 11, 25)).decode()))}
    assert "2026-11-24" not in later
    with pytest.raises(ValueError, match="no trading day"):
        made_master(date(2026, 11, 22))


def test_expiries_move_back_from_holidays():
    assert monthly_expiry(2029, 11, weekday=1) == date(2029, 12, 24)
    assert monthly_expiry(2026, 10, weekday=1) == date(2026, 11, 24)
    assert weekly_expiries(date(2029, 12, 20), 2, weekday=1) == [date(2029, 12, 24), date(2030, 1, 1)]


def test_company_symbols_are_unique():
    assert len({one.symbol for one in companies(20_000)}) == 20_000


def test_a_session_runs_from_open_to_close_in_utc():
    times = list(session_times(date(2026, 11, 20), minutes=5))
    assert (times[0], times[-1], len(times)) == (
        datetime(2026, 11, 20, 3, 45, tzinfo=UTC),
        datetime(2026, 11, 20, 10, 0, tzinfo=UTC),
        76,
    )


def test_the_walk_is_the_same_everywhere(history: list[Moment]):
    digest = hashlib.sha256("\n".join(map(repr, history)).encode()).hexdigest()
    assert digest == "a15240e26d1bfaa2f7788e1d57bd548b95b78010168acf6804d327c9a545f35f"


def test_the_books_balance_to_the_paisa_at_every_moment(history: list[Moment]):
    capital = {book.portfolio_id: book.capital for book in BOOKS}
    for moment in history:
        assert moment.total == moment.realized + moment.unrealized
        assert moment.equity == capital[moment.portfolio_id] + moment.total
        assert moment.equity == moment.cash + sum(held.quantity * held.last_price for held in moment.holdings)
        assert moment.unrealized == sum(held.pnl for held in moment.holdings)


def test_the_walk_covers_ninety_days_of_sessions_for_each_book(history: list[Moment]):
    days = list(trading_days(FIRST_DAY, AS_OF))
    assert len(history) == len(days) * 76 * len(BOOKS) == 29_184
    assert all(is_trading_day(moment.time.date()) for moment in history)
    for book in BOOKS:
        own = [moment for moment in history if moment.portfolio_id == book.portfolio_id]
        assert all(one.time < other.time for one, other in pairwise(own))
        changes = [abs(other.equity / one.equity - 1) for one, other in pairwise(own)]
        assert 0 < max(changes) < Decimal("0.1")


def test_what_is_held_is_listed_in_the_made_master(history: list[Moment], master: list[dict[str, str]]):
    listed = {int(row["instrument_token"]): row for row in master}
    held = {holding.instrument_token for moment in history for holding in moment.holdings}
    assert len(held) > 8
    assert {(listed[token]["exchange"], listed[token]["instrument_type"]) for token in held} == {("NSE", "EQ")}


def test_a_longer_walk_only_adds_to_a_shorter_one(history: list[Moment]):
    shorter = list(walk(AS_OF - timedelta(days=10)))
    assert history[: len(shorter)] == shorter
    after = {book.portfolio_id: shorter[-1].time for book in BOOKS}
    assert list(walk(AS_OF, after=after)) == history[len(shorter) :]


START = datetime(2026, 11, 20, 3, 45, tzinfo=UTC)
money = st.decimals(min_value=-(10**17), max_value=10**17, places=2)


@given(
    values=st.lists(money, min_size=1, max_size=700),
    width=st.integers(min_value=40, max_value=200),
    height=st.integers(min_value=1, max_value=30),
    plain=st.booleans(),
)
def test_a_curve_stays_in_its_box_and_has_no_gap(values: list[Decimal], width: int, height: int, plain: bool):
    points = [(START + timedelta(minutes=number), value) for number, value in enumerate(values)]
    lines = draw_curve(points, currency="INR", width=width, height=height, plain=plain)
    assert len(lines) == height + 3
    assert max(map(len, lines)) <= width
    if plain:
        assert all(line.isascii() for line in lines)
    wall = len(lines[-2]) - len(lines[-2].lstrip()) + 1
    rows = [line[wall:].ljust(width) for line in lines[1 : height + 1]]
    drawn = len(lines[-2]) - wall
    assert all(any(row[column] != " " for row in rows) for column in range(drawn))
    if len(set(values)) > 1:
        assert rows[0].strip() and rows[-1].strip()


@given(st.lists(st.integers(min_value=0, max_value=39), min_size=30, max_size=30))
def test_each_point_is_drawn_at_its_own_height(levels: list[int]):
    levels = [0, 39, *levels]
    points = [(START + timedelta(minutes=number), Decimal(level)) for number, level in enumerate(levels)]
    margin = len("INR") + 2
    lines = draw_curve(points, currency="INR", width=margin + 16, height=10)
    for column, level in enumerate(levels):
        cell = lines[1 + (39 - level) // 4].ljust(margin + 16)[margin + column // 2]
        bit = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))[(39 - level) % 4][column % 2]
        assert ord(cell) - 0x2800 & bit, (column, level)


def test_the_axes_say_money_and_days():
    points = [(START + timedelta(days=day), Decimal(1_000_000 + 1_000 * day)) for day in range(60)]
    lines = draw_curve(points, currency="INR", width=60, height=4)
    assert lines[0] == "      INR"
    assert lines[1].startswith("1,059,000 ┤") and lines[4].startswith("1,000,000 ┤")
    assert lines[6].split() == ["20", "Nov", "2026", "20", "Dec", "2026", "18", "Jan", "2027"]


def test_a_curve_without_points_is_a_sentence():
    assert draw_curve([], currency="INR") == ["no points to draw"]
