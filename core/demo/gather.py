"""What is in the demo's database, for the report."""

from datetime import UTC, datetime, time, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.connection import DatabaseManager
from core.database.models import Base, Instrument, Portfolio
from core.demo.report import CurvePoint, PortfolioLine, SampleInstrument
from core.demo.steps import Steps
from core.demo.walk import FIRST_DAY
from core.trading import portfolios

__all__ = ["gather"]

_COUNTED = ("instruments", "users", "trading_sessions", "strategies", "portfolios", "portfolio_snapshots")
_POINTS = 400


async def gather(manager: DatabaseManager, steps: Steps, *, curve_portfolio: str) -> dict[str, Any]:
    """The report's fields that come from the database."""
    with steps.step("Read it back") as step:
        health = await manager.health_check()
        # One snapshot for all that is shown.
        async with manager.transaction(read_only=True, isolation_level="REPEATABLE READ") as session:
            counts = {name: await _count(session, name) for name in _COUNTED}
            instrument = await _instrument(session)
            lines = await _portfolios(session)
            curve = await _curve(session, curve_portfolio, lines)
        step.note = f"{len(curve)} points of {counts['portfolio_snapshots']:,} snapshots"
    return {
        "revision": next(iter(health["schema"]["current"]), None) if health["schema"] else None,
        "health": health,
        "counts": counts,
        "instrument": instrument,
        "portfolios": lines,
        "curve_portfolio": curve_portfolio,
        "curve": curve,
    }


async def _count(session: AsyncSession, table: str) -> int:
    return await session.scalar(select(func.count()).select_from(Base.metadata.tables[table])) or 0


async def _instrument(session: AsyncSession) -> SampleInstrument | None:
    """A call option of the nearest expiry where there is one, else any instrument."""
    query = (
        select(Instrument)
        .where(Instrument.is_active)
        .order_by(
            (func.coalesce(Instrument.option_type, "") == "CE").desc(),
            (func.coalesce(Instrument.underlying, "") == "NIFTY").desc(),
            Instrument.expiry,
            Instrument.instrument_token,
        )
        .limit(1)
    )
    row = await session.scalar(query)
    if row is None:
        return None
    return SampleInstrument(**{name: getattr(row, name) for name in SampleInstrument.model_fields})


async def _portfolios(session: AsyncSession) -> tuple[PortfolioLine, ...]:
    known = {row.portfolio_id: row for row in await session.scalars(select(Portfolio))}
    return tuple(
        PortfolioLine(
            portfolio_id=row.portfolio_id,
            name=known[row.portfolio_id].name,
            broker=row.broker,
            currency=known[row.portfolio_id].currency,
            snapshot_time=row.snapshot_time,
            cash=row.cash,
            total_pnl=row.total_pnl,
            equity=row.equity,
        )
        for row in await portfolios.latest(session)
    )


async def _curve(session: AsyncSession, portfolio_id: str, lines: tuple[PortfolioLine, ...]) -> tuple[CurvePoint, ...]:
    end = max((line.snapshot_time for line in lines if line.portfolio_id == portfolio_id), default=None)
    if end is None:
        return ()
    start = datetime.combine(FIRST_DAY, time(), tzinfo=UTC)
    points = await portfolios.equity_curve(
        session, portfolio_id, start, end + timedelta(microseconds=1), points=_POINTS
    )
    return tuple(CurvePoint(time=point.snapshot_time, equity=point.equity) for point in points)
