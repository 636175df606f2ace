"""A portfolio's worth in order of time, with the money that came and went between."""

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow
from typing import Any, Final, NamedTuple, Protocol

from core.database.errors import InvalidInput
from core.database.types import checked_money, checked_utc

EXACT: Final = Context(prec=60, traps=[InvalidOperation, DivisionByZero, Overflow])
"""Sums and differences of stored amounts are exact in it, whatever context the caller has set."""

NOTHING: Final = Decimal(0)


class Valued(Protocol):
    """What statistics are made of: a worth at a time. `EquityPoint`, `DailyClose` and `LatestSnapshot` are such."""

    @property
    def snapshot_time(self) -> datetime:
        """When; aware."""
        ...

    @property
    def equity(self) -> Decimal:
        """How much, in the portfolio's currency."""
        ...


class Flow(NamedTuple):
    """Money from outside (positive: a deposit) or to it (negative: a withdrawal), in the portfolio's currency."""

    time: datetime
    amount: Decimal


class DailyClose(NamedTuple):
    """The last snapshot of a calendar day: its time in UTC, money in the portfolio's currency, whether positions were open."""

    day: date
    snapshot_time: datetime
    equity: Decimal
    total_pnl: Decimal
    invested: bool


class Step(NamedTuple):
    """A worth, and what came in from outside since the one before: it is part of the worth."""

    time: datetime
    equity: Decimal
    flow: Decimal


def steps(points: Iterable[Valued], flows: Iterable[Flow]) -> Iterator[Step]:
    """The points in UTC, each with the flows after the one before and up to its own time.

    Flows until the first point are in its worth already, those after the last are in none: both are left out. Raises
    `InvalidInput` for points that are not in order of time, and for what is no amount.
    """
    waiting = iter(sorted(_checked(flows)))
    flow = next(waiting, None)
    before: datetime | None = None
    for time, equity in map(_valued, points):
        if before is not None and time <= before:
            raise InvalidInput("points must be in order of time, each time once", column="points")
        added = NOTHING
        while flow is not None and flow.time <= time:
            if before is not None:
                added = EXACT.add(added, flow.amount)
            flow = next(waiting, None)
        before = time
        yield Step(time, equity, added)


class Growth:
    """What one unit of money became, deposits and withdrawals taken out: the time-weighted return plus one.

    The period is cut at every flow, and the growth of its parts is multiplied: R = prod((E_i - F_i) / E_(i-1)) with E_i the
    worth after the flow F_i (Global Investment Performance Standards 2020, time-weighted return; C. Bacon, Practical Portfolio
    Performance Measurement and Attribution, 2nd ed. 2008, ch. 2). Without flows it is the last worth over the first.
    """

    def __init__(self, base: Decimal) -> None:
        self._base = self._equity = base
        self._factor: Decimal | None = Decimal(1)
        self._cut = False

    def add(self, step: Step) -> None:
        """Go on to the next worth."""
        if step.flow:
            equity = EXACT.subtract(step.equity, step.flow)
            if equity or self._base:  # else nothing grew into nothing, as before a first deposit
                self._factor = self._times(equity)
            self._base = step.equity
        self._equity = step.equity
        self._cut = bool(step.flow)

    @property
    def factor(self) -> Decimal | None:
        """None where a part began with a worth that was not above 0."""
        return self._factor if self._cut else self._times(self._equity)

    def _times(self, equity: Decimal) -> Decimal | None:
        if self._factor is None or self._base <= 0:
            return None
        return EXACT.multiply(self._factor, EXACT.divide(equity, self._base))


def _valued(point: Valued) -> tuple[datetime, Decimal]:
    time, equity = point.snapshot_time, point.equity
    if getattr(time, "tzinfo", None) is not UTC:
        time = _field("points", checked_utc, time)
    if type(equity) is not Decimal or not equity.is_finite():
        raise InvalidInput("points: equity must be a finite Decimal", column="points")
    return time, equity


def _checked(flows: Iterable[Flow]) -> Iterator[Flow]:
    for flow in flows:
        yield Flow(_field("flows", checked_utc, flow.time), _field("flows", checked_money, flow.amount))


def _field(name: str, check: Any, value: Any) -> Any:
    try:
        return check(value)
    except InvalidInput as fault:
        raise InvalidInput(f"{name}: {fault.message}", column=name) from None
