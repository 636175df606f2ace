"""Returns and their statistics."""

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from itertools import pairwise
from typing import NamedTuple

from core.database.errors import InvalidInput
from core.trading.portfolios._calendar import DEFAULT_ZONE, Days
from core.trading.portfolios._drawdown import MaximumDrawdown, drawdown
from core.trading.portfolios._series import EXACT, NOTHING, DailyClose, Flow, Growth, Step, Valued, steps

_DAYS_PER_YEAR = 365.25
_SECONDS_PER_DAY = 86_400


class DailyReturn(NamedTuple):
    """A calendar day's return as a fraction (0.01 is 1 %) of the close before; None where that was not above 0. `equity` is
    the day's close, at `snapshot_time`.
    """

    day: date
    snapshot_time: datetime
    equity: Decimal
    value: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A portfolio's performance from its first point to its last; `summary` has the formulas.

    Money is Decimal in the portfolio's currency and exact; ratios are float, and fractions: 0.01 is 1 %. None is what has no
    value: no second day, nothing to divide by, a worth that was not above 0.
    """

    first_time: datetime
    last_time: datetime
    points: int
    """How many points it was made of."""
    days: int
    """How many calendar days had one."""
    years: float
    """From the first point to the last, in years of 365.25 days."""
    first_equity: Decimal
    last_equity: Decimal
    net_flow: Decimal
    """Deposits less withdrawals."""
    profit: Decimal
    """last_equity - first_equity - net_flow"""
    total_return: float | None
    cagr: float | None
    """The yearly rate of growth."""
    volatility: float | None
    sharpe: float | None
    sortino: float | None
    calmar: float | None
    maximum_drawdown: float | None
    """A fraction of the peak, not negative; 0.0 when there was none."""
    drawdown: MaximumDrawdown | None
    hit_rate: float | None
    exposure: float | None


def returns(points: Iterable[Valued], *, zone: str = DEFAULT_ZONE, flows: Iterable[Flow] = ()) -> list[DailyReturn]:
    """The return of each calendar day of a time zone that has points, the first excepted: r_d = C_d / C_(d-1) - 1, with C_d the
    day's last equity and C_(d-1) that of the day with points before it, over nights, weekends and gaps.

    `flows` are taken out as in `summary`. Raises `InvalidInput`.
    """
    return list(_daily(steps(points, flows), zone))


def summary(
    points: Iterable[Valued],
    *,
    zone: str = DEFAULT_ZONE,
    periods_per_year: float = 252,
    risk_free: float = 0.0,
    flows: Iterable[Flow] = (),
) -> Summary:
    """What `points`, in order of time, come to. Raises `InvalidInput`, without any point too.

    A deposit is no return: give deposits and withdrawals as `flows`, and all returns are time-weighted (`Growth`; Global
    Investment Performance Standards 2020): cut at the first point at or after each flow, which so is taken to have come at the
    end of its interval. Without them every change of equity counts as a gain or a loss.

    n daily returns r of `zone` (see `returns`), p = `periods_per_year` (252 trading days; 365 for what is recorded every day),
    f = (1 + risk_free) ** (1 / p) - 1 with `risk_free` a yearly rate. A day whose return has no value is left out.

    - total_return: E_last / E_first - 1, or the product of the parts between flows.
    - cagr: (1 + total_return) ** (1 / years) - 1, from a day upwards. GIPS 2020 shows no yearly rate for less than a year.
    - volatility: s * sqrt(p), s the sample standard deviation (n - 1) of r (Bacon 2008, ch. 4).
    - sharpe: mean(r - f) / s(r - f) * sqrt(p) (W. Sharpe, The Sharpe Ratio, J. Portfolio Management 21 (1), 1994).
    - sortino: mean(r - f) / sqrt(sum(min(r - f, 0) ** 2) / n) * sqrt(p) (F. Sortino, L. Price, Performance Measurement in a
      Downside Risk Framework, J. Investing 3 (3), 1994).
    - maximum_drawdown: of all points, as `drawdown` has it; calmar: cagr / maximum_drawdown (T. Young, Calmar Ratio: A Smoother
      Tool, Futures 20 (12), 1991, over the period given and not its 36 months).
    - hit_rate: days above 0 as a share of those not 0 (QuantStats, `win_rate`).
    - exposure: share of the time in which positions were open (QuantStats, "time in market"), each close speaking for the time
      until the next. Only of `DailyClose`, since other points do not know their positions.
    """
    given, came = list(points), list(flows)
    if not math.isfinite(periods_per_year) or periods_per_year <= 0:
        raise InvalidInput("periods_per_year must be above 0", column="periods_per_year")
    if not math.isfinite(risk_free) or risk_free <= -1:
        raise InvalidInput("risk_free must be above -1", column="risk_free")
    whole = list(steps(given, came))
    if not whole:
        raise InvalidInput("points: there are none to sum up", column="points")
    first, last = whole[0], whole[-1]
    seconds = (last.time - first.time).total_seconds()
    years = seconds / (_DAYS_PER_YEAR * _SECONDS_PER_DAY)
    net = NOTHING
    for step in whole[1:]:
        net = EXACT.add(net, step.flow)
    growth = _growth(whole)
    yearly = _yearly(growth, years) if seconds >= _SECONDS_PER_DAY else None
    days = list(_daily(iter(whole), zone))
    values = [day.value for day in days if day.value is not None]
    ratios = _ratios(values, periods_per_year, (1 + risk_free) ** (1 / periods_per_year) - 1)
    fall = drawdown(given, flows=came).maximum
    share = fall.fraction if fall else 0.0 if any(step.equity > 0 for step in whole) else None
    return Summary(
        first_time=first.time,
        last_time=last.time,
        points=len(whole),
        days=len(days) + 1,
        years=years,
        first_equity=first.equity,
        last_equity=last.equity,
        net_flow=net,
        profit=EXACT.subtract(EXACT.subtract(last.equity, first.equity), net),
        total_return=None if growth is None else float(EXACT.subtract(growth, Decimal(1))),
        cagr=yearly,
        volatility=ratios.volatility,
        sharpe=ratios.sharpe,
        sortino=ratios.sortino,
        calmar=yearly / share if yearly is not None and share else None,
        maximum_drawdown=share,
        drawdown=fall,
        hit_rate=_hit_rate(values),
        exposure=_exposure(given),
    )


class _Ratios(NamedTuple):
    volatility: float | None
    sharpe: float | None
    sortino: float | None


def _ratios(values: Sequence[float], periods: float, free: float) -> _Ratios:
    if len(values) < 2:
        return _Ratios(None, None, None)
    root = math.sqrt(periods)
    deviation = statistics.stdev(values)
    excess = [value - free for value in values]
    mean = statistics.fmean(excess)
    downside = math.sqrt(math.fsum(min(value, 0.0) ** 2 for value in excess) / len(excess))
    # Returns that differ by no more than rounding have no spread to divide by.
    least = 1e-12 * max(abs(value) for value in (*values, *excess))
    return _Ratios(
        deviation * root,
        mean / deviation * root if deviation > least else None,
        mean / downside * root if downside > least else None,
    )


def _daily(whole: Iterator[Step], zone: str) -> Iterator[DailyReturn]:
    """One for each day but the first; a day's growth begins at the close before it."""
    days = Days(zone)
    close = next(whole, None)
    if close is None:
        return
    day, growth, first = days.of(close.time), Growth(close.equity), True
    for step in whole:
        if (next_day := days.of(step.time)) != day:
            if not first:
                yield _return(day, close, growth)
            day, growth, first = next_day, Growth(close.equity), False
        growth.add(step)
        close = step
    if not first:
        yield _return(day, close, growth)


def _return(day: date, close: Step, growth: Growth) -> DailyReturn:
    factor = growth.factor
    value = None if factor is None else float(EXACT.subtract(factor, Decimal(1)))
    return DailyReturn(day, close.time, close.equity, value)


def _growth(whole: Sequence[Step]) -> Decimal | None:
    growth = Growth(whole[0].equity)
    for step in whole[1:]:
        growth.add(step)
    return growth.factor


def _yearly(growth: Decimal | None, years: float) -> float | None:
    if growth is None or growth <= 0:
        return None
    try:
        return float(growth) ** (1 / years) - 1
    except OverflowError:
        return None


def _hit_rate(values: Sequence[float]) -> float | None:
    moved = [value for value in values if value]
    return sum(value > 0 for value in moved) / len(moved) if moved else None


def _exposure(given: Sequence[Valued]) -> float | None:
    closes = [point for point in given if isinstance(point, DailyClose)]
    if len(closes) < len(given) or len(closes) < 2:
        return None
    invested = sum(
        (after.snapshot_time - before.snapshot_time).total_seconds()
        for before, after in pairwise(closes)
        if before.invested
    )
    return invested / (closes[-1].snapshot_time - closes[0].snapshot_time).total_seconds()
