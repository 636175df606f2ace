"""A made instrument master: 100,000 rows in Kite's format, the same bytes on every machine.

Indices, equities, bonds, futures and option chains of six exchanges, with the lot sizes, tick sizes, strikes and expiries that
such contracts have. Companies and prices are invented. As in Kite's own file `instrument_token >> 8 == exchange_token`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from itertools import chain

from core.demo.companies import NSE_FIRST, NSE_STRIDE, Listed, companies, mix, tick_paise
from core.demo.trading_days import AS_OF, is_trading_day, monthly_expiry, months_from, weekly_expiries

__all__ = ["HEADER", "ROWS", "made_master"]

ROWS = 100_000
HEADER = (
    "instrument_token,exchange_token,tradingsymbol,name,last_price,expiry,"
    "strike,tick_size,lot_size,instrument_type,segment,exchange"
)

_Contract = tuple[str, str, str, str, str, str, int, str, str]
"""Everything of a row from tradingsymbol to segment."""

_LOW_BYTE = {"NSE": 1, "NFO": 2, "CDS": 3, "BSE": 4, "BFO": 5, "MCX": 7, "INDICES": 9}
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKLY_MONTH = "123456789OND"
_TUESDAY, _THURSDAY, _FRIDAY = 1, 3, 4
_NSE_COMPANIES, _BONDS, _OPTION_STOCKS = 2_400, 7_400, 205
_RUPEE = 10_000
"""Prices, strikes and ticks are integers of a ten-thousandth of a rupee: a currency option's tick is 0.0025."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Underlying:
    """What a chain is written on, with `reach` strikes on either side of the money."""

    symbol: str
    price: int
    step: int
    tick: int
    future_tick: int
    lot: int
    reach: int


def made_master(as_of: date = AS_OF) -> bytes:
    """The master of one day as CSV: `HEADER` and exactly `ROWS` rows. The same day gives the same bytes."""
    if not is_trading_day(as_of):
        raise ValueError(f"{as_of} is no trading day")
    fixed = list(
        chain(
            _numbered("NSE", 1_001, 1, _indices("NIFTY", 136)),
            _numbered("BSE", 2_001, 1, _indices("BSE", 64)),
            _numbered("NSE", NSE_FIRST, NSE_STRIDE, _equities("NSE", companies(_NSE_COMPANIES), unnamed_every=40)),
            _numbered("NSE", 700_001, 3, _bonds(_BONDS)),
            _numbered("NFO", 35_001, 1, _nfo(as_of)),
            _numbered("BFO", 820_001, 1, _bfo(as_of)),
            _numbered("MCX", 450_001, 1, _mcx(as_of)),
            _numbered("CDS", 2_001, 1, _cds(as_of)),
        )
    )
    rest = _numbered("BSE", 500_002, 1, _equities("BSE", companies(ROWS - len(fixed)), unnamed_every=50))
    return "\n".join([HEADER, *fixed, *rest, ""]).encode()


def _numbered(exchange: str, first: int, stride: int, contracts: Iterable[_Contract]) -> Iterator[str]:
    """A line for each contract, with exchange tokens from `first` on."""
    token = first
    for symbol, name, last, expiry, strike, tick, lot, kind, segment in contracts:
        low = _LOW_BYTE["INDICES" if segment == "INDICES" else exchange]
        yield f"{token << 8 | low},{token},{symbol},{name},{last},{expiry},{strike},{tick},{lot},{kind},{segment},{exchange}"
        token += stride


def _decimal(number: int) -> str:
    """As Kite writes it: at least one digit behind the point, no further trailing zeros."""
    whole, fraction = divmod(number, _RUPEE)
    return f"{whole}.{f'{fraction:04}'.rstrip('0') or '0'}"


def _indices(house: str, count: int) -> Iterator[_Contract]:
    themes = (
        "50", "100", "200", "500", "MIDCAP 100", "SMALLCAP 250", "BANK", "AUTO", "IT", "PHARMA", "FMCG", "METAL", "REALTY", "ENERGY",
    )  # fmt: skip
    series = (
        "",
        " EQUAL WEIGHT",
        " QUALITY",
        " ALPHA",
        " LOW VOLATILITY",
        " VALUE",
        " MOMENTUM",
        " DIVIDEND",
        " GROWTH",
        " TRI",
    )
    for index in range(count):
        name = f"{house} {themes[index % len(themes)]}{series[index // len(themes)]}"
        level = (1_000_000 + mix(index) % 5_000_000) * 100
        yield name, name, _decimal(level), "", "0.0", "0.0", 0, "EQ", "INDICES"


def _equities(segment: str, listed: Iterable[Listed], *, unnamed_every: int) -> Iterator[_Contract]:
    for index, one in enumerate(listed, 1):
        name = "" if index % unnamed_every == 0 else one.name
        yield (
            one.symbol,
            name,
            _decimal(one.paise * 100),
            "",
            "0.0",
            _decimal(tick_paise(one.paise) * 100),
            1,
            "EQ",
            segment,
        )


def _bonds(count: int) -> Iterator[_Contract]:
    states = ("AP", "AS", "BR", "GA", "GJ", "HR", "JK", "KA", "KL", "MH", "MP", "PB", "RJ", "TN", "UK", "UP", "WB")
    for index in range(count):
        rate, state, year = 600 + index % 400, states[index // 400 % len(states)], 27 + index * 7 % 15
        yield (
            f"{rate}{state}{year}-SG",
            f"SDL {state} {rate / 100:.2f}% 20{year}",
            "0.0",
            "",
            "0.0",
            "0.01",
            100,
            "EQ",
            "NSE",
        )


def _futures(segment: str, written: Iterable[_Underlying], expiries: list[date]) -> Iterator[_Contract]:
    for on in written:
        for expiry in expiries:
            symbol = f"{on.symbol}{_month_code(expiry)}FUT"
            yield symbol, on.symbol, "0.0", expiry.isoformat(), "0.0", _decimal(on.future_tick), on.lot, "FUT", segment


def _options(segment: str, on: _Underlying, expiries: list[tuple[date, bool]]) -> Iterator[_Contract]:
    """A chain for each (expiry, is weekly): a call and a put at every strike."""
    middle = on.price - on.price % on.step
    lowest, highest = max(on.step, middle - on.reach * on.step), middle + on.reach * on.step
    tick = _decimal(on.tick)
    for expiry, weekly in expiries:
        code, day = f"{on.symbol}{_week_code(expiry) if weekly else _month_code(expiry)}", expiry.isoformat()
        for strike in range(lowest, highest + 1, on.step):
            number = _decimal(strike)
            short = number.removesuffix(".0")
            yield f"{code}{short}CE", on.symbol, "0.0", day, number, tick, on.lot, "CE", segment
            yield f"{code}{short}PE", on.symbol, "0.0", day, number, tick, on.lot, "PE", segment


def _month_code(expiry: date) -> str:
    return f"{expiry:%y}{_MONTHS[expiry.month - 1]}"


def _week_code(expiry: date) -> str:
    return f"{expiry:%y}{_WEEKLY_MONTH[expiry.month - 1]}{expiry:%d}"


def _stock(one: Listed) -> _Underlying:
    bands = ((5_000, 100), (25_000, 250), (50_000, 500), (100_000, 1_000), (250_000, 2_000), (500_000, 5_000))
    step = next((step for limit, step in bands if one.paise <= limit), 10_000)
    tick = tick_paise(one.paise)
    return _Underlying(
        symbol=one.symbol,
        price=one.paise * 100,
        step=step * 100,
        tick=min(tick, 5) * 100,
        future_tick=tick * 100,
        # A contract is worth about six lakh rupees.
        lot=max(25, 60_000_000 // one.paise // 25 * 25),
        reach=20,
    )


def _index(symbol: str, level: int, step: int, lot: int, reach: int) -> _Underlying:
    return _Underlying(
        symbol=symbol, price=level * _RUPEE, step=step * _RUPEE, tick=500, future_tick=1_000, lot=lot, reach=reach
    )


def _monthlies(as_of: date, count: int, *, weekday: int) -> list[date]:
    expiries = (monthly_expiry(year, month, weekday=weekday) for year, month in months_from(as_of, count + 1))
    return [expiry for expiry in expiries if expiry >= as_of][:count]


def _single(expiries: Iterable[date]) -> list[tuple[date, bool]]:
    return [(expiry, False) for expiry in expiries]


def _with_weeks(as_of: date, monthlies: list[date], count: int, *, weekday: int) -> list[tuple[date, bool]]:
    weeks = weekly_expiries(as_of, count, weekday=weekday)
    return [*((week, True) for week in weeks if week not in monthlies), *_single(monthlies)]


def _long_dated(as_of: date, *, weekday: int) -> list[date]:
    """Three months, three quarters behind them, and half-years to five years out, as index options have them."""
    months = [(month + 1, monthly_expiry(year, month, weekday=weekday)) for year, month in months_from(as_of, 61)]
    near = _monthlies(as_of, 3, weekday=weekday)
    quarters = [expiry for month, expiry in months if month % 3 == 0 and expiry > near[-1]][:3]
    halves = [expiry for month, expiry in months if month % 6 == 0 and expiry > quarters[-1]]
    return [*near, *quarters, *halves]


def _nfo(as_of: date) -> Iterator[_Contract]:
    months = _monthlies(as_of, 3, weekday=_TUESDAY)
    nifty = _index("NIFTY", 24_950, 50, 65, 60)
    others = [
        _index("BANKNIFTY", 55_820, 100, 30, 70),
        _index("FINNIFTY", 26_610, 50, 60, 50),
        _index("MIDCPNIFTY", 12_930, 25, 120, 50),
        _index("NIFTYNXT50", 68_040, 100, 25, 40),
        *(_stock(one) for one in companies(_OPTION_STOCKS)),
    ]
    yield from _futures("NFO-FUT", [nifty, *others], months)
    chains = _with_weeks(as_of, _long_dated(as_of, weekday=_TUESDAY), 5, weekday=_TUESDAY)
    yield from _options("NFO-OPT", nifty, chains)
    for on in others:
        yield from _options("NFO-OPT", on, _single(months))


def _bfo(as_of: date) -> Iterator[_Contract]:
    sensex, bankex = _index("SENSEX", 81_640, 100, 20, 70), _index("BANKEX", 62_950, 100, 30, 50)
    months = _monthlies(as_of, 3, weekday=_THURSDAY)
    yield from _futures("BFO-FUT", [sensex, bankex], months)
    chains = _with_weeks(as_of, _long_dated(as_of, weekday=_THURSDAY), 5, weekday=_THURSDAY)
    yield from _options("BFO-OPT", sensex, chains)
    yield from _options("BFO-OPT", bankex, _single(months))


def _mcx(as_of: date) -> Iterator[_Contract]:
    # Symbol, price and strike step in rupees, tick, lot.
    table = (
        ("CRUDEOIL", 5_420, 50, 10_000, 100), ("CRUDEOILM", 5_420, 50, 10_000, 10), ("NATURALGAS", 318, 5, 1_000, 1_250),
        ("NATGASMINI", 318, 5, 1_000, 250), ("GOLD", 123_400, 100, 10_000, 100), ("GOLDM", 123_400, 100, 10_000, 10),
        ("SILVER", 154_300, 250, 10_000, 30), ("SILVERM", 154_300, 250, 10_000, 5), ("COPPER", 1_005, 10, 500, 2_500),
        ("ZINC", 302, 5, 500, 5_000),
    )  # fmt: skip
    traded = [
        _Underlying(
            symbol=symbol, price=price * _RUPEE, step=step * _RUPEE, tick=tick, future_tick=tick, lot=lot, reach=50
        )
        for symbol, price, step, tick, lot in table
    ]
    months = _monthlies(as_of, 6, weekday=_THURSDAY)
    yield from _futures("MCX-FUT", traded, months)
    for on in traded:
        yield from _options("MCX-OPT", on, _single(months[:3]))


def _cds(as_of: date) -> Iterator[_Contract]:
    table = (("USDINR", 887_500), ("EURINR", 1_028_000), ("GBPINR", 1_163_500), ("JPYINR", 567_500))
    traded = [
        _Underlying(symbol=symbol, price=price, step=2_500, tick=25, future_tick=25, lot=1_000, reach=40)
        for symbol, price in table
    ]
    months = _monthlies(as_of, 12, weekday=_FRIDAY)
    yield from _futures("CDS-FUT", traded, months)
    chains = _with_weeks(as_of, months[:3], 4, weekday=_FRIDAY)
    for on in traded:
        yield from _options("CDS-OPT", on, chains)
