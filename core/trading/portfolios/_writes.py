"""Portfolios and their snapshots on the way in."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import polars as pl
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncSession

from core.config.options import Timeouts
from core.database import bulk
from core.database.models import Portfolio, PortfolioSnapshot
from core.database.records import PortfolioCreate, PortfolioSnapshotCreate, Position, Positions
from core.database.types import invalid_input
from core.trading.portfolios._frames import SNAPSHOT_COLUMNS, STAGED, checked_frame, frame_csv, period_of
from core.trading.portfolios._partitions import ensure_partitions

_POSITIONS = TypeAdapter(list[Position])


async def create(
    session: AsyncSession, *, portfolio_id: str, broker: str, currency: str, name: str, strategy_id: str | None = None
) -> Portfolio:
    """Add a portfolio; the caller commits.

    Raises `InvalidInput`, `UniqueViolation` if the id exists, `ForeignKeyViolation` if there is no such strategy; the caller's
    transaction goes on after these.
    """
    try:
        row = PortfolioCreate(
            portfolio_id=portfolio_id, broker=broker, strategy_id=strategy_id, currency=currency, name=name
        )
    except ValidationError as fault:
        raise invalid_input(fault) from None
    portfolio = Portfolio(**row.columns())
    async with session.begin_nested():
        session.add(portfolio)
        await session.flush()
    return portfolio


async def record(session: AsyncSession, snapshot: PortfolioSnapshotCreate) -> None:
    """Add one snapshot, and its month's partition if that is missing; the caller commits.

    Raises `UniqueViolation` if the portfolio has a snapshot of that time, `ForeignKeyViolation` if there is no such portfolio
    with that broker.
    """
    await ensure_partitions(session, snapshot.snapshot_time, snapshot.snapshot_time)
    await session.execute(insert(PortfolioSnapshot).values(**snapshot.columns()))


async def record_many(
    session: AsyncSession,
    snapshots: Iterable[PortfolioSnapshotCreate] | pl.DataFrame,
    *,
    skip_existing: bool = False,
) -> int:
    """Add snapshots by COPY, and their months' partitions; how many were added. The caller commits.

    For volume give a data frame: validating a record in Python costs more than storing it. A frame has the columns `SNAPSHOT_COLUMNS` in any order: money as Decimal, integer or text, never float; times with a
    time zone; `positions` as JSON text. All are stored or none: raises as `record` does, and `InvalidInput` for a frame that
    does not fit. With `skip_existing` a snapshot whose portfolio and time are stored already is left out instead.
    """
    staged = await bulk.stage(session, STAGED, name="snapshots")
    if isinstance(snapshots, pl.DataFrame):
        frame = checked_frame(snapshots)
        if frame.is_empty():
            return 0
        period = period_of(frame)
        await bulk.copy_csv(session, staged, frame_csv(frame), columns=list(STAGED))
    else:
        times: list[datetime] = []
        await bulk.copy_records(session, staged, _tuples(snapshots, times), columns=list(STAGED))
        if not times:
            return 0
        period = min(times), max(times)
    await ensure_partitions(session, *period)
    columns = ", ".join(SNAPSHOT_COLUMNS)
    chosen = columns.replace("positions", "CAST(positions AS jsonb)")
    skip = "ON CONFLICT DO NOTHING" if skip_existing else ""
    await session.execute(text(f"SET LOCAL statement_timeout = '{Timeouts().bulk}s'"))
    added = await session.scalar(
        text(
            f"WITH added AS (INSERT INTO portfolio_snapshots ({columns}) SELECT {chosen} FROM {staged} {skip} RETURNING 1)"  # noqa: S608 - names of our own
            " SELECT count(*) FROM added"
        )
    )
    await session.execute(text("SET LOCAL statement_timeout TO DEFAULT"))
    return int(added or 0)


def _tuples(snapshots: Iterable[PortfolioSnapshotCreate], times: list[datetime]) -> Iterator[tuple[Any, ...]]:
    """Rows in the order of `SNAPSHOT_COLUMNS`; their times are noted on the way, since the source may be a generator."""
    for one in snapshots:
        times.append(one.snapshot_time)
        yield (
            one.portfolio_id,
            one.snapshot_time,
            one.broker,
            _stored(one.positions),
            one.cash,
            one.realized_pnl,
            one.unrealized_pnl,
            one.total_pnl,
            one.equity,
        )


def _stored(positions: Positions) -> str:
    """As `Positions.to_stored`, which validates once more. These have just come out of a record: only a list inside one could
    have been changed since, and only by something that is no `Position`.
    """
    if any(type(position) is not Position for position in positions.root):
        return positions.to_stored()
    return _POSITIONS.dump_json(list(positions.root)).decode()
