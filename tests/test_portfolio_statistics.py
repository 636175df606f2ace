"""Days, drawdown, returns and their statistics, without a database; an independent library must agree."""

import math
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, localcontext
from typing import Any
from zoneinfo import ZoneInfo

import empyrical
import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.database.errors import InvalidInput
from core.trading import portfolios
from core.trading.portfolios import DailyClose, EquityPoint, Flow

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
DAY = timedelta(days=1)

AMOUNT = st.decimals(-(10**6), 10**6, places=10, allow_nan=False)
POSITIVE = st.decimals(1, 10**6, places=10, allow_nan=False)


def series(*equity: Any, start: datetime = NOON, step: timedelta = DAY) -> list[EquityPoint]:
    return [
        EquityPoint(start + number * step, one if isinstance(one, Decimal) else Decimal(str(one)), Decimal(0))
        for number, one in enumerate(equity)
    ]


def close(value: float | None, expected: Any) -> bool:
    return value is not None and math.isclose(value, float(expected), rel_tol=1e-9, abs_tol=1e-12)


class TestDays:
    def test_a_day_begins_at_local_midnight(self):
        assert portfolios.day_start(date(2026, 11, 2)) == datetime(2026, 11, 1, 18, 30, tzinfo=UTC)
        assert portfolios.day_start(date(2026, 11, 2), "UTC") == datetime(2026, 11, 2, tzinfo=UTC)
        assert portfolios.day_of(datetime(2026, 11, 1, 18, 30, tzinfo=UTC)) == date(2026, 11, 2)
        assert portfolios.day_of(datetime(2026, 11, 1, 18, 29, 59, tzinfo=UTC)) == date(2026, 11, 1)

    @pytest.mark.parametrize(
        ("zone", "day", "hours"),
        [
            ("America/New_York", date(2026, 3, 8), 23),
            ("America/New_York", date(2026, 11, 1), 25),
            ("America/Sao_Paulo", date(2018, 11, 4), 23),  # midnight itself does not exist
            ("America/Havana", date(2026, 11, 1), 25),  # midnight comes twice
            ("Pacific/Apia", date(2011, 12, 30), 0),  # the day was left out
            ("America/Toronto", date(1919, 3, 31), 23.5),  # clocks went from 23:30 to 00:30
        ],
    )
    def test_a_day_is_as_long_as_its_clocks_make_it(self, zone: str, day: date, hours: float):
        length = portfolios.day_start(day + DAY, zone) - portfolios.day_start(day, zone)
        assert length == timedelta(hours=hours)

    @given(
        st.sampled_from(["Asia/Kolkata", "America/St_Johns", "America/Sao_Paulo", "Africa/Cairo", "America/Havana"]),
        st.datetimes(datetime(1950, 1, 1), datetime(2050, 1, 1), timezones=st.just(UTC)),
    )
    @example("America/St_Johns", datetime(2006, 10, 29, 2, 30, 30, tzinfo=UTC))
    def test_a_moment_lies_in_its_day(self, zone: str, moment: datetime):
        day = portfolios.day_of(moment, zone)
        assert portfolios.day_start(day, zone) <= moment < portfolios.day_start(day + DAY, zone)
        assert abs(day - moment.astimezone(ZoneInfo(zone)).date()) <= DAY

    @pytest.mark.parametrize("zone", ["Asia/Nowhere", "", "../../etc/passwd", "\0"])
    def test_an_unknown_zone_is_refused(self, zone: str):
        for call in (
            lambda: portfolios.day_start(date(2026, 1, 1), zone),
            lambda: portfolios.returns(series(1), zone=zone),
        ):
            with pytest.raises(InvalidInput) as caught:
                call()
            assert caught.value.column == "zone"
            assert "Asia/Kolkata" in str(caught.value.hint)

    def test_naive_times_and_the_ends_of_the_calendar_are_refused(self):
        for call in (
            lambda: portfolios.day_of(datetime(2026, 1, 1)),
            lambda: portfolios.day_start(date.max),
            lambda: portfolios.day_start(datetime(2026, 1, 1)),
        ):
            with pytest.raises(InvalidInput):
                call()


class TestDrawdown:
    def test_the_maximum_has_its_peak_trough_and_recovery(self):
        found = portfolios.drawdown(series(100, 120, 120, 90, 110, 60, 119, 120, 100))
        assert [point.amount for point in found.points] == [0, 0, 0, 30, 10, 60, 1, 0, 20]
        assert found.points[3].fraction == 0.25
        worst = found.maximum
        assert worst is not None
        assert (worst.fraction, worst.amount, worst.peak, worst.trough) == (0.5, 60, 120, 60)
        # the last time at the peak before the fall, the first time at it after
        assert (worst.peak_time, worst.trough_time) == (NOON + 2 * DAY, NOON + 5 * DAY)
        assert worst.recovery_time == NOON + 7 * DAY

    def test_a_fall_that_is_not_made_good_has_no_recovery(self):
        worst = portfolios.drawdown(series(100, 50, 99)).maximum
        assert worst is not None and worst.recovery_time is None

    @pytest.mark.parametrize("equity", [(), (5,), (5, 5, 5), (0, 0), (-3, -3), (1, 2, 3)])
    def test_without_a_fall_there_is_no_maximum(self, equity: tuple[int, ...]):
        found = portfolios.drawdown(series(*equity))
        assert found.maximum is None and len(found.points) == len(equity)

    def test_a_loss_of_more_than_all_is_more_than_one(self):
        worst = portfolios.drawdown(series(100, -50, 0)).maximum
        assert worst is not None and (worst.fraction, worst.amount) == (1.5, 150)

    def test_without_a_peak_above_zero_there_is_an_amount_and_no_fraction(self):
        found = portfolios.drawdown(series(-1, -5, 0, -2))
        assert [point.fraction for point in found.points] == [None] * 4
        worst = found.maximum
        assert worst is not None
        assert (worst.fraction, worst.amount, worst.recovery_time) == (None, 4, NOON + 2 * DAY)

    def test_amounts_are_exact_whatever_context_the_caller_has_set(self):
        top, low = Decimal("123456789012345678.0123456789"), Decimal("-123456789012345678.0123456789")
        with localcontext(prec=3):
            worst = portfolios.drawdown(series(top, low)).maximum
        assert worst is not None and worst.amount == Decimal("246913578024691356.0246913578")

    def test_deposits_and_withdrawals_are_neither_gains_nor_falls(self):
        points = series(100, 200, 100, 90, 180, 200)
        flows = [Flow(NOON + DAY, Decimal(100)), Flow(NOON + 2 * DAY, Decimal(-100)), Flow(NOON + 4 * DAY, Decimal(90))]
        found = portfolios.drawdown(points, flows=flows)
        assert [point.fraction for point in found.points] == [0, 0, 0, 0.1, 0.1, 0]
        assert [point.peak for point in found.points] == [100, 200, 100, 100, 200, 200]
        assert found.maximum is not None and found.maximum.recovery_time == NOON + 5 * DAY

    @given(st.lists(POSITIVE, min_size=2, max_size=60))
    def test_it_agrees_with_an_independent_library(self, equity: list[Decimal]):
        found = portfolios.drawdown(series(*equity))
        mine = found.maximum.fraction if found.maximum else 0.0
        assert close(mine, -empyrical.max_drawdown(pd.Series([float(one) for one in equity]).pct_change().dropna()))

    @given(st.lists(AMOUNT, min_size=1, max_size=40))
    def test_every_point_is_measured_against_the_highest_until_then(self, equity: list[Decimal]):
        found = portfolios.drawdown(series(*equity))
        for number, point in enumerate(found.points):
            assert point.peak == max(equity[: number + 1])
            assert point.amount == point.peak - equity[number] >= 0
            assert (point.fraction is None) == (point.peak <= 0)

    @pytest.mark.parametrize(
        "points",
        [
            [*series(1), *series(2)],
            [*series(1, 2)][::-1],
            [EquityPoint(datetime(2026, 1, 1), Decimal(1), Decimal(0))],
            [EquityPoint(NOON, Decimal("NaN"), Decimal(0))],
            [EquityPoint(NOON, 1.5, Decimal(0))],  # pyright: ignore[reportArgumentType]
        ],
    )
    def test_what_is_no_series_of_amounts_is_refused(self, points: list[EquityPoint]):
        for statistic in (portfolios.drawdown, portfolios.returns, portfolios.summary):
            with pytest.raises(InvalidInput) as caught:
                statistic(points)
            assert caught.value.column == "points"

    @pytest.mark.parametrize("flow", [Flow(datetime(2026, 1, 1), Decimal(1)), Flow(NOON, Decimal("Infinity"))])
    def test_a_flow_that_is_none_is_refused(self, flow: Flow):
        with pytest.raises(InvalidInput) as caught:
            portfolios.drawdown(series(1), flows=[flow])
        assert caught.value.column == "flows"


class TestReturns:
    def test_a_days_return_is_from_close_to_close_over_gaps(self):
        friday = datetime(2026, 11, 6, 4, tzinfo=UTC)
        points = [
            *series(100, 101, 110, start=friday, step=timedelta(hours=2)),
            *series(50, 99, start=friday + 3 * DAY, step=timedelta(hours=2)),
        ]
        (only,) = portfolios.returns(points)
        assert (only.day, only.snapshot_time, only.equity) == (date(2026, 11, 9), points[-1].snapshot_time, 99)
        assert close(only.value, -0.1)

    def test_the_zone_says_where_a_day_ends(self):
        points = series(100, 110, 121, start=datetime(2026, 11, 2, 17, tzinfo=UTC), step=timedelta(hours=1))
        assert portfolios.returns(points, zone="UTC") == []
        (night,) = portfolios.returns(points, zone="Asia/Kolkata")
        assert (night.day, night.value) == (date(2026, 11, 3), 0.1)

    def test_after_a_close_that_is_not_above_zero_there_is_no_return(self):
        found = portfolios.returns(series(100, 0, 50, -5, 10, 20))
        assert [day.value for day in found] == [-1.0, None, -1.1, None, 1.0]

    def test_flows_are_taken_out_at_the_first_point_that_has_them(self):
        points = series(100, 105, 210, 150, start=NOON - timedelta(hours=6), step=timedelta(hours=12))
        flows = [
            Flow(NOON + timedelta(hours=10), Decimal(100)),
            Flow(NOON - DAY, Decimal(7)),
            Flow(NOON + DAY, Decimal(-50)),
        ]
        (first,) = portfolios.returns(points[:3], zone="UTC", flows=flows)
        assert first.value is not None and close(first.value, 110 / 105 - 1)
        (both,) = portfolios.returns(points, zone="UTC", flows=flows)
        assert close(both.value, 110 / 105 * (200 / 210) - 1)

    @given(st.lists(POSITIVE, min_size=2, max_size=30), st.lists(st.integers(1, 10**6), min_size=1, max_size=30))
    def test_a_deposit_never_changes_the_growth(self, equity: list[Decimal], deposits: list[int]):
        """Two investors in one fund, of whom one pays in now and then, have the same returns."""
        units, points, flows = Decimal(1), [], []
        for number, price in enumerate(equity):
            if number and number <= len(deposits):
                flows.append(Flow(NOON + number * DAY, round(deposits[number - 1] * price, 10)))
                units += flows[-1].amount / price
            points.append(EquityPoint(NOON + number * DAY, units * price, Decimal(0)))
        plain, paid = portfolios.returns(series(*equity)), portfolios.returns(points, flows=flows)
        assert all(close(mine.value, theirs.value) for mine, theirs in zip(paid, plain, strict=True))
        ours = portfolios.summary(points, flows=flows)
        assert close(ours.total_return, portfolios.summary(series(*equity)).total_return)


def random_walk(seed: int, days: int = 500) -> list[EquityPoint]:
    steps = np.random.default_rng(seed).normal(0.0004, 0.012, days)
    return series(*(round(Decimal(float(one)), 10) for one in 100_000 * np.cumprod(1 + steps)))


class TestSummary:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize(("periods", "free"), [(252, 0.0), (365, 0.06)])
    def test_every_ratio_agrees_with_an_independent_library(self, seed: int, periods: int, free: float):
        points = random_walk(seed)
        rates = pd.Series([float(point.equity) for point in points]).pct_change().dropna()
        daily_free = (1 + free) ** (1 / periods) - 1
        ours = portfolios.summary(points, periods_per_year=periods, risk_free=free)
        yearly = len(rates) / ours.years
        assert close(ours.total_return, empyrical.cum_returns_final(rates))
        assert close(ours.cagr, empyrical.cagr(rates, annualization=yearly))
        assert close(ours.volatility, empyrical.annual_volatility(rates, annualization=periods))
        assert close(ours.sharpe, empyrical.sharpe_ratio(rates, risk_free=daily_free, annualization=periods))
        assert close(ours.sortino, empyrical.sortino_ratio(rates, required_return=daily_free, annualization=periods))
        assert close(ours.calmar, empyrical.calmar_ratio(rates, annualization=yearly))
        assert close(ours.maximum_drawdown, -empyrical.max_drawdown(rates))
        assert close(ours.hit_rate, float((rates > 0).sum() / (rates != 0).sum()))

    def test_money_is_exact_and_says_what_was_earned(self):
        points = series("0.1", "100.2", "100.3333333333")
        ours = portfolios.summary(points, flows=[Flow(NOON + DAY, Decimal(100)), Flow(NOON - DAY, Decimal(5))])
        assert (ours.first_equity, ours.last_equity, ours.net_flow) == (Decimal("0.1"), points[-1].equity, 100)
        assert ours.profit == Decimal("0.2333333333")
        assert close(ours.total_return, 2 * float(points[-1].equity) / 100.2 - 1)
        assert (ours.points, ours.days, ours.first_time, ours.last_time) == (3, 3, NOON, NOON + 2 * DAY)

    def test_a_portfolio_may_begin_with_nothing_and_end_with_nothing(self):
        flows = [Flow(NOON + DAY, Decimal(100)), Flow(NOON + 3 * DAY, Decimal(-110))]
        ours = portfolios.summary(series(0, 100, 110, 0), flows=flows)
        assert close(ours.total_return, 0.1)
        assert (ours.profit, ours.maximum_drawdown, ours.net_flow) == (10, 0.0, -10)

    def test_one_point_is_a_period_without_length(self):
        ours = portfolios.summary(series(100))
        assert (ours.points, ours.days, ours.years, ours.profit, ours.total_return) == (1, 1, 0, 0, 0.0)
        assert (ours.maximum_drawdown, ours.drawdown) == (0.0, None)
        assert nothing(ours, "cagr", "volatility", "sharpe", "sortino", "calmar", "hit_rate", "exposure")

    def test_a_series_that_stands_still_has_no_risk_to_divide_by(self):
        ours = portfolios.summary(series(*[100] * 30))
        assert (ours.total_return, ours.volatility, ours.maximum_drawdown) == (0.0, 0.0, 0.0)
        assert nothing(ours, "sharpe", "sortino", "calmar", "hit_rate")

    def test_steady_growth_has_no_spread_but_that_of_rounding(self):
        ours = portfolios.summary(series(*(round(10**6 * Decimal("1.01") ** n, 10) for n in range(30))))
        assert ours.volatility is not None and 0 < ours.volatility < 1e-12
        assert nothing(ours, "sharpe", "sortino", "calmar")
        assert ours.hit_rate == 1.0

    @pytest.mark.parametrize("equity", [(0, 0, 0), (0, 5, 9), (-5, 5, 9), (-1, -2, -3)])
    def test_from_nothing_or_less_there_is_no_rate(self, equity: tuple[int, ...]):
        ours = portfolios.summary(series(*equity))
        assert nothing(ours, "total_return", "cagr", "calmar")
        assert ours.profit == equity[-1] - equity[0]

    def test_a_loss_of_more_than_all_has_a_return_and_no_yearly_rate(self):
        ours = portfolios.summary(series(100, 50, -20))
        assert close(ours.total_return, -1.2)
        assert ours.cagr is None
        assert ours.maximum_drawdown == 1.2

    def test_no_yearly_rate_is_made_of_less_than_a_day_nor_of_one_beyond_all_numbers(self):
        assert portfolios.summary(series(100, 101, step=timedelta(hours=23))).cagr is None
        assert portfolios.summary(series(1, 10)).cagr is None
        assert portfolios.summary(series(100, 101)).cagr is not None

    @pytest.mark.parametrize(
        ("options", "column"),
        [
            ({"periods_per_year": 0}, "periods_per_year"),
            ({"periods_per_year": math.nan}, "periods_per_year"),
            ({"risk_free": -1.0}, "risk_free"),
            ({"risk_free": math.inf}, "risk_free"),
        ],
    )
    def test_options_that_make_no_sense_are_refused(self, options: dict[str, Any], column: str):
        with pytest.raises(InvalidInput) as caught:
            portfolios.summary(series(1, 2), **options)
        assert caught.value.column == column

    def test_nothing_cannot_be_summed_up(self):
        with pytest.raises(InvalidInput, match="there are none"):
            portfolios.summary([])

    def test_exposure_is_the_share_of_time_with_positions(self):
        assert portfolios.summary(closes([True, True, False, True])).exposure == pytest.approx(2 / 3)
        assert portfolios.summary(closes([True])).exposure is None
        assert portfolios.summary(series(1, 2)).exposure is None

    @given(st.lists(AMOUNT, min_size=1, max_size=20), st.lists(st.tuples(st.integers(-2, 25), AMOUNT), max_size=5))
    def test_it_is_defined_for_whatever_may_be_recorded(self, equity: list[Decimal], flows: list[tuple[int, Decimal]]):
        ours = portfolios.summary(series(*equity), flows=[Flow(NOON + day * DAY, amount) for day, amount in flows])
        for name in (
            "total_return",
            "cagr",
            "volatility",
            "sharpe",
            "sortino",
            "calmar",
            "maximum_drawdown",
            "hit_rate",
        ):
            value = getattr(ours, name)
            assert value is None or (type(value) is float and math.isfinite(value))
        assert ours.profit == ours.last_equity - ours.first_equity - ours.net_flow


def closes(invested: Sequence[bool]) -> list[DailyClose]:
    return [
        DailyClose((NOON + n * DAY).date(), NOON + n * DAY, Decimal(1), Decimal(0), held)
        for n, held in enumerate(invested)
    ]


def nothing(found: portfolios.Summary, *names: str) -> bool:
    return [name for name in names if getattr(found, name) is not None] == []
