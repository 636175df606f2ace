"""Which portfolios there are, and how far the history of each reaches."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from sqlalchemy import text

from core.database.connection import DatabaseManager
from core.database.models import Strategy
from core.database.records import PortfolioSnapshotCreate
from core.trading import portfolios

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


async def filled(manager: DatabaseManager) -> None:
    async with manager.transaction() as session:
        session.add(Strategy(strategy_id="s1", name="One", config={}, parameters={}))
        await session.flush()
        for name, broker, currency, strategy in (
            ("p2", "kite", "USD", None),
            ("p1", "paper", "INR", "s1"),
            ("p3", "kite", "INR", "s1"),
        ):
            await portfolios.create(
                session, portfolio_id=name, broker=broker, currency=currency, name=name, strategy_id=strategy
            )
        for name, broker, days in (("p1", "paper", (-400, -3, 0)), ("p3", "kite", (-500, -30))):
            for day in days:
                nothing = dict.fromkeys(("cash", "realized_pnl", "unrealized_pnl", "equity"), Decimal(0))
                at = NOON + timedelta(days=day)
                snapshot = PortfolioSnapshotCreate(portfolio_id=name, broker=broker, snapshot_time=at, **nothing)
                await portfolios.record(session, snapshot)


async def test_portfolios_are_found_by_broker_strategy_and_currency_in_order(manager: DatabaseManager) -> None:
    await filled(manager)
    async with manager.get_session(read_only=True) as session:
        for wanted, ids in (
            ({}, ["p1", "p2", "p3"]),
            ({"broker": "kite"}, ["p2", "p3"]),
            ({"strategy_id": "s1"}, ["p1", "p3"]),
            ({"broker": "kite", "currency": "INR"}, ["p3"]),
            ({"strategy_id": ""}, []),
        ):
            assert [item.portfolio_id for item in await portfolios.find(session, **wanted)] == ids
        found = await portfolios.get(session, "p2")
        assert found is not None and (found.broker, found.currency) == ("kite", "USD")
        assert await portfolios.get(session, "P2") is None


async def test_the_history_reaches_from_the_first_snapshot_to_the_last(manager: DatabaseManager) -> None:
    await filled(manager)
    async with manager.get_session(read_only=True) as session:
        of_p1 = await portfolios.recorded_period(session, ["p1"])
        assert of_p1 == (NOON - timedelta(days=400), NOON)
        assert await portfolios.recorded_period(session) == (NOON - timedelta(days=500), NOON)
        assert await portfolios.recorded_period(session, iter(["p3", "none"])) == (
            NOON - timedelta(days=500),
            NOON - timedelta(days=30),
        )
        for ids in ([], ["p2"], ["none"]):
            assert await portfolios.recorded_period(session, ids) is None


async def test_how_far_it_reaches_is_read_from_the_ends_alone(manager: DatabaseManager) -> None:
    await filled(manager)
    async with manager.transaction() as session:
        await session.execute(
            text(
                "INSERT INTO portfolio_snapshots (portfolio_id, snapshot_time, broker, cash, realized_pnl, unrealized_pnl,"
                " total_pnl, equity) SELECT 'p1', '2026-11-21 00:00+00'::timestamptz + n * interval '1 minute', 'paper',"
                " 0, 0, 0, 0, n FROM generate_series(1, 10000) n"
            )
        )
        await session.execute(text("ANALYZE portfolio_snapshots"))
        await portfolios.recorded_period(session, ["p1"])
        before = await session.scalar(READ)
        await portfolios.recorded_period(session, ["p1"])
        assert await session.scalar(READ) - before <= 4


READ = text(
    "SELECT sum(pg_stat_get_xact_tuples_fetched(relid) + pg_stat_get_xact_tuples_returned(relid))"
    " FROM pg_partition_tree('portfolio_snapshots')"
)
