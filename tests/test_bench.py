"""The bench's own arithmetic, order and texts. Nothing here measures anything, and no peer need be installed."""

import gc
import importlib
import itertools
import json
import pkgutil
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bench.works
from bench import latency, measure
from bench.__main__ import wishes
from bench.catalog import WORKS, chosen
from bench.measure import Entrant, Goal, Result, SelfTimed, Unavailable, Work, expect, rotated, run_work
from bench.outcome import lines, verdicts
from bench.pgbench import seconds_from
from bench.report import report
from bench.samples import interval, quantile, ratios, spread
from bench.server import Target
from bench.table import render
from bench.works import search

TARGET = Target("/run/nowhere", 5432, "panda", None, "panda")
SERIES = st.lists(st.floats(1e-9, 1e6), min_size=1, max_size=40)


def entrant(name: str, unit: Callable[[], Awaitable[None]] | SelfTimed) -> Entrant:
    @asynccontextmanager
    async def opened(target: Target) -> AsyncGenerator:
        yield unit

    return Entrant(name, opened)


def absent_entrant(name: str, error: Exception) -> Entrant:
    @asynccontextmanager
    async def opened(target: Target) -> AsyncGenerator:
        raise error
        yield

    return Entrant(name, opened)


def recording(name: str, calls: list[str]) -> Entrant:
    async def unit() -> None:
        calls.append(name)

    return entrant(name, unit)


def work_of(*entrants: Entrant, goals: tuple[Goal, ...] = (), **options) -> Work:
    settings: dict[str, Any] = {"units": 4, "runs": 3, **options}
    return Work(name="made", title="made up", entrants=entrants, limit=entrants[0].name, goals=goals, **settings)


def result_of(work: Work) -> Result:
    """Every entrant as slow as its place in the work, over three rounds of a machine that slows down."""
    speeds = {each.name: place for place, each in enumerate(work.entrants, start=1)}
    return Result(work, work.units, {name: (1e-4 * n, 2e-4 * n, 8e-4 * n) for name, n in speeds.items()})


class TestStatistics:
    def test_a_quantile_is_interpolated_between_neighbours(self):
        assert quantile([4.0, 1.0, 2.0, 3.0], 0.25) == pytest.approx(1.75)
        assert quantile([7.0], 0.9) == 7.0

    @pytest.mark.parametrize("share", [-0.1, 1.1])
    def test_a_quantile_outside_the_series_is_refused(self, share):
        with pytest.raises(ValueError, match="between 0 and 1"):
            quantile([1.0], share)

    def test_no_values_have_no_quantile(self):
        with pytest.raises(ValueError, match="No values"):
            quantile([], 0.5)

    @given(SERIES)
    def test_the_five_numbers_are_in_order_and_end_at_the_extremes(self, values):
        found = spread(values)
        five = [found.low, found.first, found.median, found.third, found.high]
        assert all(a <= b or a == pytest.approx(b) for a, b in itertools.pairwise(five))
        assert (found.low, found.high) == (min(values), max(values))

    @given(SERIES, st.floats(0.1, 10))
    def test_a_ratio_is_formed_within_its_round_so_that_drift_cancels_out(self, speeds, factor):
        found = spread(ratios([speed * factor for speed in speeds], speeds))
        assert found.low == pytest.approx(factor)
        assert found.high == pytest.approx(factor)

    def test_the_median_is_known_as_well_as_the_rounds_allow(self):
        assert interval([5.0, 1.0, 3.0]) == (1.0, 5.0)
        assert interval([float(n) for n in range(1, 101)]) == (40.0, 61.0)

    @given(SERIES)
    def test_the_median_lies_within_its_interval(self, values):
        low, high = interval(values)
        assert low <= spread(values).median <= high or low == pytest.approx(high)

    def test_series_of_different_rounds_have_no_ratio(self):
        with pytest.raises(ValueError, match="zip"):
            ratios([1.0, 2.0], [1.0])


class TestRunning:
    @pytest.fixture(autouse=True)
    def _heap(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The heap here is that of a whole suite: no entrant is timed, so nobody waits until it is clean."""
        monkeypatch.setattr(measure, "gc", mock.Mock(spec=gc))

    def test_every_entrant_takes_every_place_and_the_second_time_around_is_reversed(self):
        entrants = [recording(name, []) for name in "abc"]
        orders = ["".join(each.name for each in rotated(entrants, turn)) for turn in range(6)]
        assert orders == ["abc", "bca", "cab", "cba", "acb", "bac"]

    @pytest.mark.parametrize("alone", [False, True])
    async def test_every_round_has_a_sample_of_every_entrant(self, alone):
        calls: list[str] = []
        work = work_of(recording("a", calls), recording("b", calls), alone=alone)
        result = await run_work(work, TARGET)
        assert {name: len(taken) for name, taken in result.seconds.items()} == {"a": 3, "b": 3}
        warm_ups = 3 if alone else 1
        assert calls.count("a") == calls.count("b") == 3 * 4 + warm_ups

    async def test_a_work_of_a_size_is_asked_for_another(self):
        calls: list[str] = []

        def sized(rows: int) -> Work:
            return work_of(recording(f"of {rows}", calls), units=2)

        result = await run_work(work_of(recording("a", calls), sized=sized), TARGET, units=7, runs=1)
        assert (result.units, set(calls)) == (2, {"of 7"})

    async def test_rounds_are_interleaved(self):
        calls: list[str] = []
        await run_work(work_of(recording("a", calls), recording("b", calls), units=1), TARGET)
        assert "".join(calls[2:]) == "abbaba"

    async def test_tasks_share_the_units_of_a_sample(self):
        calls: list[str] = []
        result = await run_work(work_of(recording("a", calls), units=10, tasks=4), TARGET, runs=1)
        assert result.units == 12
        assert len(calls) == 12 + 4

    async def test_an_entrant_with_its_own_clock_is_believed(self):
        async def sample(units: int) -> float:
            return units * 0.25

        result = await run_work(work_of(entrant("clock", SelfTimed(sample))), TARGET)
        assert result.seconds["clock"] == (0.25, 0.25, 0.25)

    @pytest.mark.parametrize("alone", [False, True])
    async def test_who_cannot_take_part_is_named_with_the_reason(self, alone):
        calls: list[str] = []
        missing = ModuleNotFoundError("No module named 'peer'", name="peer")
        work = work_of(
            recording("a", calls),
            absent_entrant("b", Unavailable("not today")),
            absent_entrant("c", missing),
            alone=alone,
        )
        result = await run_work(work, TARGET)
        assert list(result.seconds) == ["a"]
        assert result.absent["b"] == "not today"
        assert result.absent["c"] == "peer is not installed: pip install -r requirements/bench.lock"

    async def test_a_module_of_ours_that_is_missing_is_a_fault_and_no_absence(self):
        missing = ModuleNotFoundError("No module named 'core.database.nothing'", name="core.database.nothing")
        with pytest.raises(ModuleNotFoundError):
            await run_work(work_of(recording("a", []), absent_entrant("b", missing)), TARGET)

    async def test_without_its_limit_a_work_is_not_measured(self):
        with pytest.raises(Unavailable, match="not today"):
            await run_work(work_of(absent_entrant("limit", Unavailable("not today"))), TARGET)

    async def test_a_wrong_answer_ends_the_run(self):
        async def wrong() -> None:
            expect(2, 1)

        with pytest.raises(AssertionError, match="Expected 1, got 2"):
            await run_work(work_of(entrant("liar", wrong)), TARGET)

    def test_a_goal_for_nobody_is_refused(self):
        with pytest.raises(ValueError, match="no entrant named nobody"):
            work_of(recording("a", []), goals=(Goal("a", "nobody", at_most=1.0),))

    def test_two_entrants_of_one_name_are_refused(self):
        with pytest.raises(ValueError, match="same name"):
            work_of(recording("a", []), recording("a", []))


class TestOutcome:
    def test_ratios_are_to_the_limit_and_goals_to_whom_they_name(self):
        work = work_of(
            *(recording(name, []) for name in "abc"),
            goals=(Goal("b", "a", at_most=2.0), Goal("c", "b", at_most=1.4), Goal("c", "a")),
        )
        result = result_of(work)
        assert [line.ratio.median for line in lines(result)] == pytest.approx([1.0, 2.0, 3.0])
        assert [found.met for found in verdicts(result)] == [True, False, None]

    def test_a_goal_of_an_absent_entrant_is_neither_met_nor_missed(self):
        work = work_of(recording("a", []), recording("b", []), goals=(Goal("b", "a", at_most=2.0),))
        whole = result_of(work)
        result = replace(whole, seconds={"a": whole.seconds["a"]}, absent={"b": "gone"})
        assert verdicts(result)[0].met is None
        assert "b <= 2 x a: not measured" in render(result)

    def test_a_verdict_that_another_run_may_reverse_says_so(self):
        work = work_of(recording("a", []), recording("b", []), goals=(Goal("b", "a", at_most=2.0),))
        result = Result(work, 1, {"a": (1.0,) * 8, "b": (1.7, 1.8, 1.9, 1.95, 1.98, 2.1, 2.2, 2.3)})
        assert verdicts(result)[0].met
        assert not verdicts(result)[0].sure
        assert ": met, unsure" in render(result)

    @pytest.mark.parametrize(("rounds", "sure"), [(5, False), (6, True)])
    def test_a_verdict_takes_six_rounds_to_be_sure(self, rounds, sure):
        work = work_of(recording("a", []), recording("b", []), goals=(Goal("b", "a", at_most=2.0),))
        assert verdicts(Result(work, 1, {"a": (1.0,) * rounds, "b": (1.5,) * rounds}))[0].sure is sure

    def test_the_table_says_who_met_what(self):
        goals = (Goal("b", "a", at_most=2.0), Goal("c", "a", at_most=2.5))
        text = render(result_of(work_of(*(recording(name, []) for name in "abc"), goals=goals)))
        row = {line[0]: line.split() for line in text.splitlines() if line[:3] in {"a  ", "b  ", "c  "}}
        assert row["a"] == ["a", "200.0", "100.0", "-", "800.0", "1.00", "1.00", "-", "1.00"]
        assert row["b"][-3:] == ["<=", "2", "met"]
        assert row["c"][-3:] == ["<=", "2.5", "MISSED"]
        assert "c <= 2.5 x a: 3.000 (3.000 - 3.000): MISSED, unsure\n" in text

    @pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
    def test_every_table_is_at_most_100_columns_wide_and_keeps_its_columns_apart(self, work):
        slow = {each.name: (2.5, 12345.6, 99999.9) for each in work.entrants}
        unsure = {each.name: (1e-3, 99e-3, 1e-3 * place) for place, each in enumerate(work.entrants, start=1)}
        for result in (result_of(work), Result(work, 100_000, slow), Result(work, 100_000, unsure)):
            rows = render(result).splitlines()
            assert max(len(row) for row in rows) <= 100
            for name in result.seconds:
                assert any(row.startswith(f"{name} ") for row in rows)

    def test_a_report_is_plain_json_with_every_sample(self):
        work = work_of(recording("a", []), recording("b", []), goals=(Goal("b", "a", at_most=2.0),))
        written = json.loads(json.dumps(report({"cores": 2}, [result_of(work)])))
        only = written["works"][0]
        assert only["entrants"][1]["seconds"] == pytest.approx([2e-4, 4e-4, 16e-4])
        assert only["goals"][0]["met"] is True


class TestCatalog:
    def test_every_module_of_works_is_listed_once(self):
        modules = [
            importlib.import_module(f"bench.works.{found.name}") for found in pkgutil.iter_modules(bench.works.__path__)
        ]
        assert sorted(work.name for work in WORKS) == sorted(module.WORK.name for module in modules)

    def test_the_works_of_this_release_are_there(self):
        assert {work.name for work in WORKS} >= {
            "session",
            "session-64",
            "lookup",
            "load",
            "reload-0",
            "reload-1",
            "monitoring",
            "connect",
        }

    @pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
    def test_every_work_has_us_in_it_and_a_goal_for_us(self, work):
        bound = {goal.entrant for goal in work.goals if goal.at_most is not None}
        assert any(name.startswith("Alpha Panda") for name in bound)

    def test_works_are_chosen_by_name_and_all_by_default(self):
        assert chosen("") == WORKS
        assert [work.name for work in chosen("connect, session")] == ["connect", "session"]

    def test_an_unknown_work_is_named_beside_the_known(self):
        with pytest.raises(ValueError, match=r"No work named sesion; there are session, "):
            chosen("sesion,connect")


class TestWishes:
    def test_the_environment_says_what_the_arguments_leave_open(self):
        wanted = wishes(["--work", "session"], {"WORK": "connect", "ROWS": "5", "RUNS": ""})
        assert ([work.name for work in wanted.work], wanted.rows, wanted.runs) == (["session"], 5, None)

    def test_everything_is_measured_by_default(self):
        assert wishes([], {}).work == WORKS

    @pytest.mark.parametrize(
        ("arguments", "environment"), [(["--runs", "0"], {}), ([], {"ROWS": "many"}), ([], {"WORK": "x"})]
    )
    def test_nonsense_ends_with_status_2(self, arguments, environment, capsys):
        with pytest.raises(SystemExit) as end:
            wishes(arguments, environment)
        assert end.value.code == 2
        assert "argument --" in capsys.readouterr().err


REPORT = """pgbench (18.4)
transaction type: /tmp/script.sql
number of transactions actually processed: 500/500
number of failed transactions: 0 (0.000%)
latency average = 0.050 ms
initial connection time = 2.154 ms
tps = 20000.000000 (without initial connection time)
"""


class TestPgbench:
    def test_its_own_rate_is_taken_without_the_time_to_connect(self):
        assert seconds_from(REPORT, 500) == pytest.approx(0.025)

    def test_transactions_that_were_not_done_are_not_counted(self):
        with pytest.raises(AssertionError, match="Expected 1000, got 500"):
            seconds_from(REPORT, 1000)

    def test_another_text_is_no_report(self):
        with pytest.raises(AssertionError, match="Not a report"):
            seconds_from("pgbench: error", 1)


class TestTarget:
    @given(
        st.sampled_from(["127.0.0.1", "db.example", "/run/some dir"]), st.text("ab@/:?#%&= é", max_size=8) | st.none()
    )
    def test_a_target_reads_its_own_url(self, host, password):
        target = Target(host, 5433, "panda", password, "panda")
        assert Target.from_url(target.url) == target


class TestLatency:
    def test_the_lines_are_a_few_hundred_and_always_the_same(self):
        assert search.lines() == search.lines()
        assert len(search.lines()) == 300

    def test_the_table_tells_all_searches_and_the_best_of_each_line(self):
        quick = [(0.001, "a"), (0.009, "a"), (0.003, "b"), (0.005, "b"), (0.005, "b")]
        text = latency.render({search.PANDA: quick, "a peer": [(0.5, "slow")]})
        assert "a peer                             500.00   500.00   500.00    500.00    500.00  slow" in text
        assert "p50 <= 2 ms: 5.00 (best 2.00): MISSED" in text
        assert "p99 <= 10 ms: 8.84 (best 2.98): met" in text
