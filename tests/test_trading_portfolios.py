"""Portfolios and their history on a real server."""

import asyncio
import json
import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from sqlalchemy import event, func, select, text

from core.database.connection import DatabaseManager
from core.database.errors import (
    ForeignKeyViolation,
    IntegrityViolation,
    InvalidInput,
    PandaDatabaseError,
    UniqueViolation,
)
from core.database.models import PortfolioSnapshot
from core.database.records import PortfolioSnapshotCreate
from core.trading import portfolios
from core.trading.portfolios import EquityPoint, _reads

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
POSITION = {
    "instrument_token": 5633,
    "quantity": Decimal(-3),
    "average_price": Decimal("1834.5000000001"),
    "last_price": Decimal("1850.75"),
    "pnl": Decimal("-48.7499999997"),
}


def snapshot(
    portfolio_id: str = "p1", at: datetime = NOON, equity: int = 1_000, **fields: Any
) -> PortfolioSnapshotCreate:
    held = sum((one["quantity"] * one["last_price"] for one in fields.get("positions", ())), Decimal(0))
    values: dict[str, Any] = {
        "broker": "paper",
        "cash": Decimal(equity) - held,
        "realized_pnl": Decimal("0.1"),
        "unrealized_pnl": Decimal("-0.3"),
    }
    return PortfolioSnapshotCreate(
        portfolio_id=portfolio_id, snapshot_time=at, equity=Decimal(equity), **(values | fields)
    )


async def create(manager: DatabaseManager, *ids: str) -> None:
    async with manager.transaction() as session:
        for portfolio_id in ids:
            await portfolios.create(session, portfolio_id=portfolio_id, broker="paper", currency="INR", name="Paper")


async def partitions(manager: DatabaseManager) -> list[str]:
    async with manager.get_session() as session:
        return list(
            await session.scalars(
                text("SELECT relid::text FROM pg_partition_tree('portfolio_snapshots') WHERE isleaf ORDER BY 1")
            )
        )


async def rows(manager: DatabaseManager) -> list[PortfolioSnapshot]:
    async with manager.get_session() as session:
        order = (PortfolioSnapshot.portfolio_id, PortfolioSnapshot.snapshot_time)
        return list(await session.scalars(select(PortfolioSnapshot).order_by(*order)))


async def test_a_snapshot_is_stored_exactly_and_is_the_latest(manager: DatabaseManager):
    await create(manager, "p1", "p2")
    async with manager.transaction() as session:
        await portfolios.record(session, snapshot(positions=[POSITION]))
        await portfolios.record(session, snapshot(at=NOON - timedelta(days=40)))
    async with manager.get_session(read_only=True) as session:
        (latest,) = await portfolios.latest(session)
        whole = await session.get_one(PortfolioSnapshot, (latest.portfolio_id, latest.snapshot_time))
    assert (latest.portfolio_id, latest.snapshot_time, latest.broker) == ("p1", NOON, "paper")
    assert (latest.realized_pnl, latest.unrealized_pnl, latest.total_pnl) == (
        Decimal("0.1"),
        Decimal("-0.3"),
        Decimal("-0.2"),
    )
    (position,) = whole.positions.root
    assert position.model_dump() == POSITION


async def test_a_portfolio_can_be_created_once_and_the_transaction_goes_on(manager: DatabaseManager):
    async with manager.transaction() as session:
        first = {"portfolio_id": "p1", "broker": "paper", "currency": "INR", "name": "Paper"}
        await portfolios.create(session, **first)
        with pytest.raises(UniqueViolation):
            await portfolios.create(session, **first)
        with pytest.raises(ForeignKeyViolation):
            await portfolios.create(session, **(first | {"portfolio_id": "p2", "strategy_id": "unknown"}))
        with pytest.raises(InvalidInput) as caught:
            await portfolios.create(session, **(first | {"currency": "rupees"}))
        assert caught.value.column == "currency"
        await portfolios.create(session, **(first | {"portfolio_id": "p3"}))


async def test_partitions_are_made_for_each_utc_month_once(manager: DatabaseManager):
    before = await partitions(manager)
    first = await portfolios.ensure_partitions(manager, date(2031, 11, 30), date(2032, 1, 1))
    assert first == ("portfolio_snapshots_y2031m11", "portfolio_snapshots_y2031m12", "portfolio_snapshots_y2032m01")
    assert await portfolios.ensure_partitions(manager, date(2031, 11, 1), date(2032, 1, 31)) == ()
    kolkata = timezone(timedelta(hours=5, minutes=30))
    early = datetime(2033, 3, 1, 2, tzinfo=kolkata)
    assert await portfolios.ensure_partitions(manager, early, early) == ("portfolio_snapshots_y2033m02",)
    assert sorted({*before, *first, "portfolio_snapshots_y2033m02"}) == await partitions(manager)


async def test_partitions_made_in_a_session_are_the_callers_to_commit(manager: DatabaseManager):
    async with manager.get_session() as session:
        assert await portfolios.ensure_partitions(session, date(2031, 1, 1), date(2031, 1, 1))
    assert "portfolio_snapshots_y2031m01" not in await partitions(manager)


async def test_many_may_make_the_same_partitions_at_once(manager: DatabaseManager):
    made = await asyncio.gather(
        *(portfolios.ensure_partitions(manager, date(2031, 1, 1), date(2031, 6, 1)) for _ in range(8))
    )
    assert sorted(name for names in made for name in names) == [f"portfolio_snapshots_y2031m0{n}" for n in range(1, 7)]


async def test_many_may_record_the_first_snapshots_of_a_month_at_once(manager: DatabaseManager):
    ids = [f"p{number}" for number in range(8)]
    await create(manager, *ids)

    async def record(portfolio_id: str) -> None:
        async def work(session: Any) -> None:
            await portfolios.record(session, snapshot(portfolio_id, datetime(2031, 5, 5, tzinfo=UTC)))

        await manager.run_transaction(work)

    await asyncio.gather(*(record(portfolio_id) for portfolio_id in ids))
    assert [row.portfolio_id for row in await rows(manager)] == ids


async def test_periods_that_make_no_sense_are_refused(manager: DatabaseManager):
    for start, end, field in (
        (date(2026, 2, 1), date(2026, 1, 31), "end"),
        (date(1900, 1, 1), date(2026, 1, 1), "end"),
        (datetime(2026, 1, 1), date(2026, 1, 1), "start"),
        (date(2026, 1, 1), date.max, "end"),
    ):
        with pytest.raises(InvalidInput) as caught:
            await portfolios.ensure_partitions(manager, start, end)
        assert caught.value.column == field


async def test_a_snapshot_must_be_new_and_of_a_known_portfolio_and_broker(manager: DatabaseManager):
    await create(manager, "p1")
    async with manager.transaction() as session:
        await portfolios.record(session, snapshot())
    for wrong, error in (
        (snapshot(equity=999), UniqueViolation),
        (snapshot("unknown"), ForeignKeyViolation),
        (snapshot(at=NOON + timedelta(1), broker="zerodha"), ForeignKeyViolation),
    ):
        async with manager.get_session() as session:
            with pytest.raises(error):
                await portfolios.record(session, wrong)
        async with manager.get_session() as session:
            with pytest.raises(error):
                await portfolios.record_many(session, [wrong])
    assert len(await rows(manager)) == 1


def series(count: int, *, portfolio_id: str = "p1", start: datetime = NOON) -> Iterator[PortfolioSnapshotCreate]:
    for number in range(count):
        yield snapshot(portfolio_id, start + timedelta(hours=6 * number), 1_000 + number, positions=[POSITION])


async def test_many_snapshots_are_stored_over_months_like_one(manager: DatabaseManager):
    await create(manager, "p1")
    async with manager.transaction() as session:
        assert await portfolios.record_many(session, series(300)) == 300
    async with manager.transaction() as session:
        await portfolios.record(session, snapshot(at=NOON - timedelta(1), positions=[POSITION]))
    stored = await rows(manager)
    assert [row.equity for row in stored] == [1_000, *range(1_000, 1_300)]
    assert all(row.positions == stored[0].positions for row in stored)
    assert {"portfolio_snapshots_y2026m11", "portfolio_snapshots_y2027m02"} <= set(await partitions(manager))


async def test_recording_many_leaves_the_commit_to_the_caller_and_takes_nothing_too(manager: DatabaseManager):
    await create(manager, "p1")
    async with manager.get_session() as session:
        assert await portfolios.record_many(session, series(3)) == 3
    async with manager.transaction() as session:
        assert await portfolios.record_many(session, []) == 0
        assert await portfolios.record_many(session, frame([])) == 0
    assert await rows(manager) == []


async def test_existing_snapshots_are_skipped_on_request_only(manager: DatabaseManager):
    await create(manager, "p1")
    async with manager.transaction() as session:
        await portfolios.record_many(session, series(3))
    async with manager.transaction() as session:
        assert await portfolios.record_many(session, series(5), skip_existing=True) == 2
    async with manager.get_session() as session:
        with pytest.raises(UniqueViolation):
            await portfolios.record_many(session, series(6))
    assert len(await rows(manager)) == 5


def frame(snapshots: list[PortfolioSnapshotCreate], **overrides: pl.Series) -> pl.DataFrame:
    columns: dict[str, Any] = {
        "portfolio_id": pl.Series([one.portfolio_id for one in snapshots], dtype=pl.String),
        "snapshot_time": pl.Series([one.snapshot_time for one in snapshots], dtype=pl.Datetime("us", "UTC")),
        "broker": pl.Series([one.broker for one in snapshots], dtype=pl.String),
        "positions": pl.Series([one.positions.to_stored() for one in snapshots], dtype=pl.String),
    }
    for name in ("cash", "realized_pnl", "unrealized_pnl", "total_pnl", "equity"):
        columns[name] = pl.Series([getattr(one, name) for one in snapshots], dtype=pl.Decimal(28, 10))
    return pl.DataFrame(columns | overrides)


async def test_a_frame_is_stored_as_the_records_are(manager: DatabaseManager):
    await create(manager, "p1", 'p, "2"')
    given = [*series(20), *series(5, portfolio_id='p, "2"')]
    shuffled = frame(given).select(list(reversed(portfolios.SNAPSHOT_COLUMNS)))
    async with manager.transaction() as session:
        assert await portfolios.record_many(session, shuffled) == 25
    stored = {(row.portfolio_id, row.snapshot_time): row for row in await rows(manager)}
    for one in given:
        row = stored[one.portfolio_id, one.snapshot_time]
        assert row.positions == one.positions
        for name in ("broker", "cash", "realized_pnl", "unrealized_pnl", "total_pnl", "equity"):
            assert getattr(row, name) == getattr(one, name)


async def test_money_in_a_frame_may_be_text_or_whole_numbers_and_keeps_every_digit(manager: DatabaseManager):
    await create(manager, "p1")
    exact = "123456789012345678.0123456789"
    given = frame(list(series(1)), equity=pl.Series([exact]), cash=pl.Series([-7]))
    times = given.with_columns(pl.col("snapshot_time").dt.convert_time_zone("Asia/Kolkata").dt.cast_time_unit("ns"))
    async with manager.transaction() as session:
        assert await portfolios.record_many(session, times) == 1
    (row,) = await rows(manager)
    assert (row.equity, row.cash, row.snapshot_time) == (Decimal(exact), Decimal(-7), NOON)


def misfits() -> Iterator[tuple[pl.DataFrame, str]]:
    good = frame(list(series(2)))
    yield good.drop("cash"), "cash"
    yield good.with_columns(extra=1), "extra"
    yield good.with_columns(cash=1.5), "cash: must be Decimal, integer or text, not Float64"
    yield good.with_columns(cash=pl.lit("NaN")), "cash: holds what is no number"
    yield good.with_columns(cash=pl.lit("0.00000000001")), "cash: holds what is no number"
    yield good.with_columns(cash=pl.lit("1e3")), "cash: holds what is no number"
    yield good.with_columns(cash=pl.lit("0.00000000001").cast(pl.Decimal(20, 11))), "cash: holds what is no number"
    yield good.with_columns(equity=pl.lit(None, pl.Decimal(28, 10))), "equity: holds NULL"
    yield (
        good.with_columns(pl.col("snapshot_time").dt.replace_time_zone(None)),
        "snapshot_time: must be times with a time zone",
    )
    yield good.with_columns(broker=pl.lit(5)), "broker: must be text"
    odd = pl.col("snapshot_time").dt.cast_time_unit("ns") + pl.duration(nanoseconds=1)
    yield good.with_columns(snapshot_time=odd), "snapshot_time: has nanoseconds"


async def test_a_frame_that_does_not_fit_is_refused_naming_the_column(manager: DatabaseManager):
    await create(manager, "p1")
    async with manager.get_session() as session:
        for wrong, words in misfits():
            with pytest.raises(InvalidInput, match=words):
                await portfolios.record_many(session, wrong)


async def test_what_a_frame_says_wrongly_the_table_refuses(manager: DatabaseManager):
    await create(manager, "p1")
    good = frame(list(series(2)))
    for wrong, error in (
        (good.with_columns(total_pnl=pl.lit(5)), IntegrityViolation),
        (good.with_columns(positions=pl.lit("{}")), IntegrityViolation),
        (good.with_columns(positions=pl.lit("")), PandaDatabaseError),
        (good.with_columns(portfolio_id=pl.lit("")), IntegrityViolation),
        (pl.concat([good, good]), UniqueViolation),
    ):
        async with manager.get_session() as session:
            with pytest.raises(error):
                await portfolios.record_many(session, wrong)
    assert await rows(manager) == []


async def test_the_latest_of_each_portfolio_is_found_over_months(manager: DatabaseManager):
    ids = [f"p{number:02}" for number in range(20)]
    await create(manager, *ids, "empty")
    chance = random.Random(7)
    given = [
        snapshot(portfolio_id, NOON + timedelta(days=chance.randint(0, 200), minutes=number), number)
        for portfolio_id in ids
        for number in range(12)
    ]
    async with manager.transaction() as session:
        await portfolios.record_many(session, given)
    async with manager.get_session(read_only=True) as session:
        found = {row.portfolio_id: row for row in await portfolios.latest(session)}
        some = await portfolios.latest(session, ["p03", "empty", "unknown", "p01"])
        assert await portfolios.latest(session, []) == []
    assert [row.portfolio_id for row in some] == ["p01", "p03"]
    assert list(found) == ids
    for portfolio_id in ids:
        expected = max((one for one in given if one.portfolio_id == portfolio_id), key=lambda one: one.snapshot_time)
        assert (found[portfolio_id].snapshot_time, found[portfolio_id].equity) == (
            expected.snapshot_time,
            expected.equity,
        )


async def test_the_latest_is_read_backwards_from_the_keys_and_never_merged(manager: DatabaseManager):
    await create(manager, *(f"p{number:02}" for number in range(20)))
    async with manager.transaction() as session:
        for number in range(20):
            await portfolios.record_many(session, series(400, portfolio_id=f"p{number:02}"))
        await session.execute(text("ANALYZE portfolio_snapshots"))
    statements: list[str] = []
    async with manager.get_session() as session:
        sync = session.sync_session.get_bind()  # the engine whose statements are read
        event.listen(sync, "before_cursor_execute", lambda *given: statements.append(given[2]))
        assert len(await portfolios.latest(session)) == 20
        plan = "\n".join(await session.scalars(text(f"EXPLAIN {statements[0]}")))
    assert "Merge Append" not in plan
    assert "Index Scan Backward" in plan


async def recorded(manager: DatabaseManager) -> list[PortfolioSnapshotCreate]:
    """Two sessions of trading with a night between, at odd seconds, over the end of a month."""
    await create(manager, "p1", "p2")
    start = datetime(2026, 11, 30, 3, 45, 7, 123456, tzinfo=UTC)
    given = [
        snapshot("p1", start + timedelta(days=day, minutes=7 * number), 1_000 * day + number)
        for day in (0, 1)
        for number in range(54)
    ]
    async with manager.transaction() as session:
        await portfolios.record_many(session, given)
        await portfolios.record_many(session, [snapshot("p2", start, 5)])
    return given


@pytest.mark.parametrize("points", [1, 2, 7, 100, 5_000])
async def test_a_curve_has_the_last_snapshot_of_each_bucket(manager: DatabaseManager, points: int):
    given = await recorded(manager)
    start, end = given[0].snapshot_time, given[-1].snapshot_time + timedelta(microseconds=1)
    async with manager.get_session(read_only=True) as session:
        curve = await portfolios.equity_curve(session, "p1", start, end, points=points)
    buckets: dict[int, PortfolioSnapshotCreate] = {}
    for one in given:
        buckets[(one.snapshot_time - start) * points // (end - start)] = one
    expected = [EquityPoint(one.snapshot_time, one.equity, one.total_pnl) for one in buckets.values()]
    assert curve == expected
    assert curve[-1].equity == given[-1].equity and 1 <= len(curve) <= points


async def test_a_curve_ends_before_its_end_and_may_be_empty(manager: DatabaseManager):
    given = await recorded(manager)
    first, last = given[0].snapshot_time, given[-1].snapshot_time
    async with manager.get_session() as session:
        curve = await portfolios.equity_curve(session, "p1", first, last, points=10_000)
        assert [point.snapshot_time for point in curve] == [one.snapshot_time for one in given[:-1]]
        assert await portfolios.equity_curve(session, "unknown", first, last) == []
        assert await portfolios.equity_curve(session, "p1", last + timedelta(1), last + timedelta(2)) == []


async def test_a_curve_that_makes_no_sense_is_refused(manager: DatabaseManager):
    async with manager.get_session() as session:
        for start, end, points, field in (
            (NOON, NOON, 5, "end"),
            (NOON, NOON - timedelta(1), 5, "end"),
            (datetime(2026, 1, 1), NOON, 5, "start"),
            (NOON, NOON + timedelta(1), 0, "points"),
            (NOON, NOON + timedelta(1), 100_001, "points"),
        ):
            with pytest.raises(InvalidInput) as caught:
                await portfolios.equity_curve(session, "p1", start, end, points=points)
            assert caught.value.column == field


async def test_a_curve_costs_probes_and_not_rows(manager: DatabaseManager):
    await create(manager, "p1")
    async with manager.transaction() as session:
        await session.execute(text("SET LOCAL statement_timeout = '60s'"))
        await portfolios.ensure_partitions(session, date(2026, 1, 1), date(2026, 3, 31))
        await session.execute(
            text(
                "INSERT INTO portfolio_snapshots (portfolio_id, snapshot_time, broker, cash, realized_pnl, unrealized_pnl,"
                " total_pnl, equity) SELECT 'p1', '2026-01-01 00:00+00'::timestamptz + n * interval '1 minute', 'paper',"
                " 0, 0, 0, 0, n FROM generate_series(0, 99999) n"
            )
        )
        await session.execute(text("ANALYZE portfolio_snapshots"))
        start = datetime(2026, 1, 1, tzinfo=UTC)
        plan = await session.execute(
            text(f"EXPLAIN (ANALYZE, FORMAT JSON) {_reads._CURVE.text}"),
            {"portfolio_id": "p1", "start": start, "span": timedelta(minutes=100_000), "points": 500},
        )
        found = plan.scalar_one()
        tree = json.loads(found) if isinstance(found, str) else found
        assert await session.scalar(select(func.count()).select_from(PortfolioSnapshot)) == 100_000
    scans = list(leaves(tree[0]["Plan"]))
    assert sum(scan["Actual Rows"] * scan["Actual Loops"] for scan in scans if "Relation Name" in scan) <= 510


def leaves(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for child in node.get("Plans", []):
        yield from leaves(child)
    if not node.get("Plans"):
        yield node
