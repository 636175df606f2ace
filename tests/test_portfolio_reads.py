"""What is asked of portfolios, on a real server: the latest, curves, daily closes, summaries and comparisons."""

import csv
import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput
from core.trading import portfolios
from core.trading.portfolios import DailyClose, EquityPoint, Flow, _closes, _reads

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
DAY = timedelta(days=1)
HELD = '[{"instrument_token": 5633, "quantity": "1", "average_price": "1834.5", "last_price": "1850", "pnl": "15.5"}]'
INSERT = text(
    "INSERT INTO portfolio_snapshots (portfolio_id, snapshot_time, broker, positions, cash, realized_pnl, unrealized_pnl,"
    " total_pnl, equity) SELECT :portfolio_id, :time, broker, CAST(:positions AS jsonb), 1, 0.5, 0, 0.5, :equity"
    " FROM portfolios WHERE portfolio_id = :portfolio_id"
)


class Row(NamedTuple):
    portfolio_id: str
    time: datetime
    equity: Decimal
    positions: str = "[]"


async def create(manager: DatabaseManager, *ids: str, **fields: str) -> None:
    values: dict[str, Any] = {"broker": "paper", "currency": "INR", "name": "Paper"} | fields
    async with manager.transaction() as session:
        for portfolio_id in ids:
            await portfolios.create(session, portfolio_id=portfolio_id, **values)


async def store(manager: DatabaseManager, rows: Sequence[Row]) -> None:
    times = [row.time for row in rows]
    async with manager.transaction() as session:
        await portfolios.ensure_partitions(session, min(times), max(times))
        await session.execute(INSERT, [row._asdict() for row in rows])


def series(portfolio_id: str, *equity: int, start: datetime = NOON, step: timedelta = DAY) -> list[Row]:
    return [Row(portfolio_id, start + number * step, Decimal(one)) for number, one in enumerate(equity)]


async def strategies(manager: DatabaseManager, *ids: str) -> None:
    async with manager.transaction() as session:
        for strategy_id in ids:
            await session.execute(
                text("INSERT INTO strategies (strategy_id, name, strategy_type) VALUES (:id, :id, 'test')"),
                {"id": strategy_id},
            )


class TestLatest:
    async def test_as_of_is_the_newest_at_that_time_or_before_it(self, manager: DatabaseManager):
        await create(manager, "p1", "p2")
        rows = [*series("p1", 1, 2, 3, step=20 * DAY), *series("p2", 7, start=NOON + 50 * DAY)]
        await store(manager, rows)
        microsecond = timedelta(microseconds=1)
        async with manager.get_session(read_only=True) as session:
            for moment, expected in (
                (NOON - microsecond, []),
                (NOON, [1]),
                (NOON + 20 * DAY - microsecond, [1]),
                (NOON + 20 * DAY, [2]),
                (NOON + 50 * DAY, [3, 7]),
            ):
                assert [row.equity for row in await portfolios.latest(session, as_of=moment)] == expected
            assert [row.equity for row in await portfolios.latest(session, ["p2"], as_of=NOON + 60 * DAY)] == [7]

    async def test_broker_and_strategy_choose(self, manager: DatabaseManager):
        await strategies(manager, "trend")
        await create(manager, "a", "b", currency="USD")
        await create(manager, "c", strategy_id="trend")
        await create(manager, "d", broker="zerodha", strategy_id="trend")
        await store(manager, [row for one in "abcd" for row in series(one, 5)])
        async with manager.get_session(read_only=True) as session:

            async def ids(*given: Any, **options: Any) -> str:
                return "".join(row.portfolio_id for row in await portfolios.latest(session, *given, **options))

            assert await ids() == "abcd"
            assert await ids(broker="paper") == "abc"
            assert await ids(strategy_id="trend") == "cd"
            assert await ids(["d", "b", "c"], broker="paper", strategy_id="trend", as_of=NOON) == "c"
            assert [row.currency for row in await portfolios.latest(session)] == ["USD", "USD", "INR", "INR"]

    async def test_what_makes_no_sense_is_refused(self, manager: DatabaseManager):
        async with manager.get_session(read_only=True) as session:
            wrong: tuple[tuple[dict[str, Any], str], ...] = (
                ({"as_of": datetime(2026, 1, 1)}, "as_of"),
                ({"broker": "\0"}, "broker"),
                ({"strategy_id": 5}, "strategy_id"),
                ({"portfolio_ids": ["\ud800"]}, "portfolio_ids"),
            )
            for options, column in wrong:
                with pytest.raises(InvalidInput) as caught:
                    await portfolios.latest(session, **options)
                assert caught.value.column == column


async def crowd(session: AsyncSession, portfolio_count: int, ticks: int) -> None:
    """Snapshots of many portfolios over two years, made by the server."""
    await session.execute(text("SET LOCAL statement_timeout = '60s'"))
    await portfolios.ensure_partitions(session, date(2024, 1, 1), date(2026, 3, 1))
    await session.execute(
        text(
            "INSERT INTO portfolios (portfolio_id, broker, currency, name)"
            " SELECT 'p' || n, 'paper', 'INR', 'Paper' FROM generate_series(1, :count) n"
        ),
        {"count": portfolio_count},
    )
    await session.execute(
        text(
            "INSERT INTO portfolio_snapshots (portfolio_id, snapshot_time, broker, cash, realized_pnl, unrealized_pnl,"
            " total_pnl, equity) SELECT 'p' || n, TIMESTAMPTZ '2024-01-01 00:00+00' + tick * interval '731 days' / :ticks,"
            " 'paper', 0, 0, 0, 0, tick FROM generate_series(0, :ticks - 1) tick, generate_series(1, :count) n"
        ),
        {"ticks": ticks, "count": portfolio_count},
    )
    await session.execute(text("ANALYZE portfolio_snapshots"))
    await session.execute(text("ANALYZE portfolios"))


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


async def explained(
    session: AsyncSession, statement: TextClause, values: dict[str, tuple[str, str]]
) -> list[dict[str, Any]]:
    """The nodes of what was executed, by the plan that a prepared statement comes to have: one without the values, which are
    given with their types.
    """
    names = list(values)
    sql = re.sub(r":(\w+)", lambda found: f"${names.index(found[1]) + 1}", statement.text)
    types = ", ".join(kind for kind, _ in values.values())
    given = ", ".join(f"'{value}'" for _, value in values.values())
    await session.execute(text("SET LOCAL plan_cache_mode = force_generic_plan"))
    connection: Any = (await (await session.connection()).get_raw_connection()).driver_connection
    await connection.execute(f"PREPARE asked{f'({types})' if types else ''} AS {sql}")
    found = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE asked{f'({given})' if given else ''}")
    await connection.execute("DEALLOCATE asked")
    return list(nodes((json.loads(found) if isinstance(found, str) else found)[0]["Plan"]))


def rows_read(found: Sequence[dict[str, Any]]) -> float:
    """Rows that came out of snapshots, over all loops."""
    of_snapshots = [node for node in found if str(node.get("Relation Name", "")).startswith("portfolio_snapshots")]
    assert {node["Node Type"] for node in of_snapshots} <= {"Index Scan", "Index Only Scan"}
    assert not [node for node in found if node["Node Type"] in ("Merge Append", "Gather", "Gather Merge")]
    return sum(node["Actual Rows"] * node["Actual Loops"] for node in of_snapshots)


class TestPlans:
    @pytest.mark.parametrize("given", [{}, {"as_of": ("timestamptz", "2025-03-07")}, {"broker": ("text", "paper")}])
    async def test_the_latest_is_a_probe_a_portfolio(self, manager: DatabaseManager, given: dict[str, tuple[str, str]]):
        async with manager.transaction() as session:
            await crowd(session, 40, 500)
            found = await explained(session, _reads._latest_statement(frozenset(given)), given)
            assert rows_read(found) == 40

    async def test_a_curve_and_the_closes_are_a_probe_a_bucket(self, manager: DatabaseManager):
        start, days = datetime(2024, 1, 1, tzinfo=UTC), 731
        edges = ",".join(f'"{start + day * DAY}"' for day in range(days + 1))
        asked = {"portfolio_id": ("text", "p1")}
        curve = {
            "start": ("timestamptz", f"{start}"),
            "span": ("interval", f"{days} days"),
            "points": ("integer", "500"),
        }
        closes = {"days": ("integer", f"{days}"), "edges": ("timestamptz[]", f"{{{edges}}}")}
        async with manager.transaction() as session:
            await crowd(session, 2, 12_000)
            # the averages of a plan are rounded
            found = await explained(session, _reads._CURVE, asked | curve)
            assert rows_read(found) == pytest.approx(500, abs=25)
            found = await explained(session, _closes._CLOSES, asked | closes)
            assert rows_read(found) == pytest.approx(days, abs=25)


class TestDailyCloses:
    @pytest.mark.parametrize("zone", ["Asia/Kolkata", "UTC", "America/New_York"])
    async def test_each_day_has_its_last_snapshot(self, manager: DatabaseManager, zone: str):
        await create(manager, "p1", "p2")
        chance = random.Random(11)
        start = datetime(2026, 10, 25, tzinfo=UTC)  # clocks go back in New York on 1 November
        minutes = sorted(chance.sample(range(14 * 1_440), 40))
        rows = [Row("p1", start + timedelta(minutes=at), Decimal(at), HELD if at % 2 else "[]") for at in minutes]
        await store(manager, [*rows, *series("p2", 5, start=start)])
        first, last = rows[2].time, rows[-3].time
        async with manager.get_session(read_only=True) as session:
            found = await portfolios.daily_closes(session, "p1", first, last, zone=zone)
        expected: dict[date, DailyClose] = {}
        for row in rows[2:-3]:
            day = portfolios.day_of(row.time, zone)
            expected[day] = DailyClose(day, row.time, row.equity, Decimal("0.5"), row.positions == HELD)
        assert found == list(expected.values())

    async def test_the_days_of_a_period_are_counted_from_local_midnight(self, manager: DatabaseManager):
        await create(manager, "p1")
        await store(
            manager, series("p1", 1, 2, 3, start=datetime(2026, 11, 1, 18, 29, tzinfo=UTC), step=timedelta(minutes=1))
        )
        start, end = (portfolios.day_start(date(2026, 11, day)) for day in (1, 3))
        async with manager.get_session(read_only=True) as session:
            found = await portfolios.daily_closes(session, "p1", start, end)
            assert [(close.day.day, close.equity) for close in found] == [(1, 1), (2, 3)]
            assert await portfolios.daily_closes(session, "unknown", start, end) == []

    async def test_periods_that_make_no_sense_are_refused(self, manager: DatabaseManager):
        async with manager.get_session(read_only=True) as session:
            for start, end, zone, column in (
                (NOON, NOON, "UTC", "end"),
                (datetime(2026, 1, 1), NOON, "UTC", "start"),
                (NOON - 40_000 * DAY, NOON, "UTC", "end"),
                (NOON, NOON + DAY, "Mars/Olympus", "zone"),
            ):
                for ask in (portfolios.daily_closes, portfolios.portfolio_summary):
                    with pytest.raises(InvalidInput) as caught:
                        await ask(session, "p1", start, end, zone=zone)
                    assert caught.value.column == column
                with pytest.raises(InvalidInput) as caught:
                    await portfolios.compare(session, start, end, zone=zone)
                assert caught.value.column == column


class TestPortfolioSummary:
    async def test_it_begins_with_what_was_before_the_period(self, manager: DatabaseManager):
        await create(manager, "p1")
        await store(manager, series("p1", 50, 100, 110, 99, step=20 * DAY))
        start, end = NOON + 30 * DAY, NOON + 60 * DAY
        async with manager.get_session(read_only=True) as session:
            found = await portfolios.portfolio_summary(session, "p1", start, end)
            late = await portfolios.portfolio_summary(session, "p1", end, end + DAY)
            assert await portfolios.portfolio_summary(session, "p1", end + DAY, end + 2 * DAY) is None
            assert await portfolios.portfolio_summary(session, "unknown", start, end) is None
        assert found is not None
        assert (found.first_time, found.first_equity, found.last_equity) == (NOON + 20 * DAY, 100, 110)
        assert found.total_return == pytest.approx(0.1)
        assert late is not None and late.total_return == pytest.approx(-0.1)

    async def test_it_is_the_summary_of_the_closes(self, manager: DatabaseManager):
        await create(manager, "p1")
        chance = random.Random(5)
        await store(manager, series("p1", *(chance.randint(900, 1_100) for _ in range(200)), step=timedelta(hours=5)))
        flows = [Flow(NOON + 5 * DAY, Decimal(30))]
        async with manager.get_session(read_only=True) as session:
            end = NOON + 100 * DAY
            closes = await portfolios.daily_closes(session, "p1", NOON, end, zone="UTC")
            found = await portfolios.portfolio_summary(
                session, "p1", NOON, end, zone="UTC", periods_per_year=365, risk_free=0.05, flows=flows
            )
        expected = portfolios.summary(closes, zone="UTC", periods_per_year=365, risk_free=0.05, flows=flows)
        assert found == expected
        assert expected.net_flow == 30 and expected.days == len(closes) == 42


class TestCompare:
    async def test_by_portfolio_each_has_its_own_summary(self, manager: DatabaseManager):
        await create(manager, "p1", "p2", "empty", "early")
        await store(manager, [*series("p1", 100, 110), *series("p2", 5, 4), *series("early", 9, start=NOON - 9 * DAY)])
        async with manager.get_session(read_only=True) as session:
            found = await portfolios.compare(session, NOON, NOON + 9 * DAY)
            for line in found:
                own = await portfolios.portfolio_summary(session, str(line.group), NOON, NOON + 9 * DAY)
                assert line.summary == own
        assert [(line.group, line.currency, line.portfolio_ids) for line in found] == [
            ("p1", "INR", ("p1",)),
            ("p2", "INR", ("p2",)),
        ]

    async def test_currencies_are_never_added_together(self, manager: DatabaseManager):
        await strategies(manager, "trend")
        await create(manager, "p1", "p2", strategy_id="trend")
        await create(manager, "p3", strategy_id="trend", currency="USD")
        await create(manager, "p4")
        await store(manager, [row for n in range(1, 5) for row in series(f"p{n}", 100 * n, 110 * n)])
        async with manager.get_session(read_only=True) as session:
            found = await portfolios.compare(session, NOON, NOON + 9 * DAY, by="strategy")
            brokers = await portfolios.compare(session, NOON, NOON + 9 * DAY, by="broker", strategy_id="trend")
        assert [(line.group, line.currency, line.portfolio_ids, line.summary.last_equity) for line in found] == [
            ("trend", "INR", ("p1", "p2"), 330),
            ("trend", "USD", ("p3",), 330),
            (None, "INR", ("p4",), 440),
        ]
        assert [(line.group, line.currency, line.summary.last_equity) for line in brokers] == [
            ("paper", "INR", 330),
            ("paper", "USD", 330),
        ]
        assert found[0].summary.total_return == pytest.approx(0.1)

    async def test_a_portfolio_that_joins_is_a_deposit_and_one_that_rests_keeps_its_worth(
        self, manager: DatabaseManager
    ):
        await create(manager, "a", "b")
        await store(manager, [*series("a", 100, 110), *series("b", 1_000, 1_100, start=NOON + 2 * DAY)])
        async with manager.get_session(read_only=True) as session:
            (line,) = await portfolios.compare(session, NOON, NOON + 9 * DAY, by="broker")
        assert (line.summary.first_equity, line.summary.last_equity) == (100, 1_210)
        assert (line.summary.net_flow, line.summary.profit) == (1_000, 110)
        assert line.summary.total_return == pytest.approx(1.1 * (1_210 / 1_110) - 1)

    async def test_flows_are_of_their_portfolio(self, manager: DatabaseManager):
        await create(manager, "a", "b")
        rows = series("a", 100, 200, start=NOON - timedelta(hours=6))
        await store(manager, [*rows, *series("b", 100, 100, 110)])
        # in the evening: b has closed and a has not, whose next snapshot has it
        flows = {"a": [Flow(NOON + timedelta(hours=2), Decimal(100))]}
        async with manager.get_session(read_only=True) as session:
            (line,) = await portfolios.compare(
                session, NOON - DAY, NOON + 9 * DAY, by="broker", flows=flows, zone="UTC"
            )
            assert line.summary.total_return == pytest.approx(310 / 300 - 1)
            assert (line.summary.net_flow, line.summary.profit) == (100, 10)
            with pytest.raises(InvalidInput, match="c are not among"):
                await portfolios.compare(session, NOON, NOON + DAY, flows={"c": []})
            with pytest.raises(InvalidInput, match="by must be one of"):
                await portfolios.compare(session, NOON, NOON + DAY, by="moon")  # pyright: ignore[reportArgumentType]

    async def test_portfolios_may_be_chosen(self, manager: DatabaseManager):
        await create(manager, "a", "b")
        await create(manager, "c", broker="zerodha")
        await store(manager, [row for one in "abc" for row in series(one, 1, 2)])
        async with manager.get_session(read_only=True) as session:
            some = await portfolios.compare(session, NOON, NOON + DAY, portfolio_ids=["c", "a", "none"])
            paper = await portfolios.compare(session, NOON, NOON + DAY, broker="paper")
            assert await portfolios.compare(session, NOON, NOON + DAY, portfolio_ids=[]) == []
        assert [line.group for line in some] == ["a", "c"]
        assert [line.group for line in paper] == ["a", "b"]


SHARED = Path(os.environ.get("PANDA_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.mark.shared_data
def test_the_drawdown_of_a_real_series_is_that_of_its_own_column():
    path = SHARED / "equity_djunh1_daily_positions.csv"
    if not path.exists():
        pytest.skip("the real files are not beside the checkout")
    with path.open() as file:
        days = {row["datetime"]: row for row in csv.DictReader(file)}
    given = [row for row in days.values() if row["equity_curve"]]
    points = [
        EquityPoint(datetime.fromisoformat(row["datetime"]).replace(tzinfo=UTC), Decimal(row["total"]), Decimal(0))
        for row in given
    ]
    assert len(points) == 6_537
    found = portfolios.drawdown(points)
    # theirs is the fall from the peak as a share of the first equity, 100,000, reckoned in floats
    for point, row in zip(found.points, given, strict=True):
        assert abs(point.amount / 100_000 - Decimal(row["drawdown"])) < Decimal("1e-12")
