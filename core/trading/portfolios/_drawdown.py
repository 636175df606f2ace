"""How far below its peak a portfolio stands."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from core.trading.portfolios._series import EXACT, NOTHING, Flow, Step, Valued, steps


class DrawdownPoint(NamedTuple):
    """A portfolio at one time against its highest worth until then.

    `amount` is peak less equity, exactly; `fraction` is that as a share of the peak: 0.25 is a quarter below it, more than 1 is
    more than all. None while the peak is not above 0.
    """

    snapshot_time: datetime
    equity: Decimal
    peak: Decimal
    amount: Decimal
    fraction: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class MaximumDrawdown:
    """The deepest fall: from `peak`, last seen at `peak_time`, to `trough`. `recovery_time` is when the peak was reached again,
    None as long as it was not.
    """

    fraction: float | None
    amount: Decimal
    peak: Decimal
    trough: Decimal
    peak_time: datetime
    trough_time: datetime
    recovery_time: datetime | None


@dataclass(frozen=True, slots=True)
class Drawdown:
    """The drawdown at every point given; `maximum` is None when it never was below its peak."""

    points: tuple[DrawdownPoint, ...]
    maximum: MaximumDrawdown | None


def drawdown(points: Iterable[Valued], *, flows: Iterable[Flow] = ()) -> Drawdown:
    """The drawdown at each of `points`, which are in order of time: D_t = P_t - E_t, of which the fraction is D_t / P_t, with
    P_t = max(E_s, s <= t); the maximum is max D_t / P_t.

    Source: M. Magdon-Ismail, A. Atiya, Maximum Drawdown, Risk 17 (10), 2004. Drawdowns are not negative here; other libraries
    give them a minus sign. The maximum is that of the fractions, or of the amounts where no peak was above 0.

    With `flows` a deposit raises the peak and a withdrawal lowers it in the proportion in which it changed the equity, so that
    neither is a gain or a fall: the fraction is then that of the time-weighted growth. Each belongs to the first point at or
    after its time. Raises `InvalidInput`.
    """
    found: list[DrawdownPoint] = []
    peaks: list[datetime] = []  # when the peak of each point was last reached
    peak, peak_time = NOTHING, None
    for step in steps(points, flows):
        equity = EXACT.subtract(step.equity, step.flow)
        if peak_time is None or equity >= peak:
            peak, peak_time = equity, step.time
        if step.flow:
            peak = _moved(peak, equity, step)
        fall = EXACT.subtract(peak, step.equity)
        share = float(EXACT.divide(fall, peak)) if peak > 0 else None
        found.append(DrawdownPoint(step.time, step.equity, peak, fall, share))
        peaks.append(peak_time)
    return Drawdown(tuple(found), _maximum(found, peaks))


def _moved(peak: Decimal, equity: Decimal, step: Step) -> Decimal:
    """The peak after a flow; where there is no proportion, by the amount itself."""
    if equity > 0 and step.equity > 0:
        return EXACT.divide(EXACT.multiply(peak, step.equity), equity)
    return EXACT.add(peak, step.flow)


def _maximum(found: Sequence[DrawdownPoint], peaks: Sequence[datetime]) -> MaximumDrawdown | None:
    deepest = max(range(len(found)), key=lambda at: (found[at].fraction or 0.0, found[at].amount), default=None)
    if deepest is None or found[deepest].amount <= 0:
        return None
    trough = found[deepest]
    # The peak stands until it is reached again: from then on it has another time.
    again = next((at for at in range(deepest, len(found)) if peaks[at] != peaks[deepest]), None)
    return MaximumDrawdown(
        fraction=trough.fraction,
        amount=trough.amount,
        peak=trough.peak,
        trough=trough.equity,
        peak_time=peaks[deepest],
        trough_time=trough.snapshot_time,
        recovery_time=None if again is None else found[again].snapshot_time,
    )
