"""Made portfolio history: a deterministic walk whose books balance to the paisa.

Everything is counted in whole paise and becomes a Decimal at the end, so that at every snapshot
`equity == capital + realized + unrealized` and `cash + market value of the positions == equity` hold exactly.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal

from core.demo.companies import companies, mix, nse_token, tick_paise
from core.demo.trading_days import AS_OF, session_times, trading_days

__all__ = ["BOOKS", "FIRST_DAY", "Book", "Holding", "Moment", "walk"]

FIRST_DAY = AS_OF - timedelta(days=90)
"""Where every walk begins, whichever day it runs to: a longer one only adds to a shorter one."""

_MINUTES = 5
_INSTRUMENTS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Book:
    """A portfolio of the demo; `turnover` trades about one of its instruments in so many steps, None buys once and holds."""

    portfolio_id: str
    broker: str
    name: str
    strategy_id: str | None
    capital: int
    turnover: int | None


BOOKS = (
    Book(portfolio_id="zerodha-momentum", broker="zerodha", name="Momentum", strategy_id="momentum", capital=2_500_000, turnover=90),
    Book(portfolio_id="zerodha-reversion", broker="zerodha", name="Mean reversion", strategy_id="mean-reversion", capital=1_500_000, turnover=30),
    Book(portfolio_id="zerodha-core", broker="zerodha", name="Core holdings", strategy_id=None, capital=5_000_000, turnover=None),
    Book(portfolio_id="paper-momentum", broker="paper", name="Momentum on paper", strategy_id="momentum", capital=1_000_000, turnover=60),
    Book(portfolio_id="paper-reversion", broker="paper", name="Mean reversion on paper", strategy_id="mean-reversion", capital=1_000_000, turnover=20),
    Book(portfolio_id="paper-sandbox", broker="paper", name="Sandbox", strategy_id=None, capital=500_000, turnover=45),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Holding:
    """A position in shares of an NSE company; a negative quantity is short. Prices in rupees."""

    instrument_token: int
    quantity: int
    average_price: Decimal
    last_price: Decimal

    @property
    def pnl(self) -> Decimal:
        return self.quantity * (self.last_price - self.average_price)


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """A portfolio at one time (UTC); money in rupees."""

    portfolio_id: str
    broker: str
    time: datetime
    holdings: tuple[Holding, ...]
    cash: Decimal
    realized: Decimal
    unrealized: Decimal
    total: Decimal
    equity: Decimal


@dataclass(slots=True)
class _Account:
    """A book at work, in paise: `open` maps an instrument's number to (quantity, entry price)."""

    book: Book
    seed: int
    realized: int = 0
    open: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])


def walk(through: date, *, after: Mapping[str, datetime] | None = None) -> Iterator[Moment]:
    """Every book at every five minutes of each session from `FIRST_DAY` through the day given, in order of time.

    `after` leaves out what is not later than a portfolio's time in it: what is stored already.
    """
    seen = after or {}
    prices = [one.paise for one in companies(_INSTRUMENTS)]
    accounts = [_Account(book, seed=number * 1_000_003) for number, book in enumerate(BOOKS)]
    step = 0
    for day in trading_days(FIRST_DAY, through):
        for opening, time in enumerate(session_times(day, minutes=_MINUTES)):
            prices = [
                _next_price(price, step * _INSTRUMENTS + number, gap=opening == 0)
                for number, price in enumerate(prices)
            ]
            for account in accounts:
                _trade(account, prices, step)
                last = seen.get(account.book.portfolio_id)
                if last is None or time > last:
                    yield _moment(account, prices, time)
            step += 1


def _next_price(price: int, chance: int, *, gap: bool) -> int:
    """About 1.5 % a day, three times the usual step overnight, on the exchange's tick, never below a rupee."""
    # The count of 64 fair bits less 32 is close to normal with a deviation of 4.
    deviation = mix(chance).bit_count() - 32
    moved = price + price * (deviation * (132 if gap else 44) + 2) // 100_000
    tick = tick_paise(moved)
    return max(100, (moved + tick // 2) // tick * tick)


def _trade(account: _Account, prices: list[int], step: int) -> None:
    """Open or close whole positions, so that an entry price is a price that was paid and never an average."""
    book = account.book
    if book.turnover is None:
        if step == 0:
            for number in range(0, _INSTRUMENTS, 2):
                account.open[number] = (_quantity(book, prices[number], 7), prices[number])
        return
    chance = mix(account.seed + step)
    if chance % book.turnover:
        return
    number = (chance >> 32) % _INSTRUMENTS
    held = account.open.pop(number, None)
    if held is not None:
        quantity, entry = held
        account.realized += quantity * (prices[number] - entry)
    elif len(account.open) < 5:
        side = -1 if (chance >> 48) % 4 == 0 else 1
        account.open[number] = (side * _quantity(book, prices[number], 6), prices[number])


def _quantity(book: Book, price: int, parts: int) -> int:
    return max(1, book.capital * 100 // parts // price)


def _moment(account: _Account, prices: list[int], time: datetime) -> Moment:
    unrealized = sum(quantity * (prices[number] - entry) for number, (quantity, entry) in account.open.items())
    value = sum(quantity * prices[number] for number, (quantity, _) in account.open.items())
    total = account.realized + unrealized
    equity = account.book.capital * 100 + total
    return Moment(
        portfolio_id=account.book.portfolio_id,
        broker=account.book.broker,
        time=time,
        holdings=tuple(
            Holding(
                instrument_token=nse_token(number),
                quantity=quantity,
                average_price=_rupees(entry),
                last_price=_rupees(prices[number]),
            )
            for number, (quantity, entry) in sorted(account.open.items())
        ),
        cash=_rupees(equity - value),
        realized=_rupees(account.realized),
        unrealized=_rupees(unrealized),
        total=_rupees(total),
        equity=_rupees(equity),
    )


@functools.lru_cache(maxsize=8_192)  # most prices are those of the step before
def _rupees(paise: int) -> Decimal:
    return Decimal(paise).scaleb(-2)
