"""Portfolios and their snapshots on the way in."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, Final

import polars as pl
from pydantic import ValidationError
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from core.config.options import Timeouts
from core.database import bulk
from core.database.errors import SerializationFailure
from core.database.models import Portfolio, PortfolioSnapshot, snapshot_partition_name
from core.database.records import PortfolioCreate, PortfolioSnapshotCreate
from core.database.types import invalid_input
from core.trading.portfolios._batch import COMPARED, conflict, stored_positions
from core.trading.portfolios._frames import SNAPSHOT_COLUMNS, STAGED, checked_frame, frame_csv, period_of
from core.trading.portfolios._partitions import ensure_partitions

_TABLE: Final[Any] = PortfolioSnapshot.__table__
_AMOUNTS: Final = ("cash", "realized_pnl", "unrealized_pnl", "total_pnl", "equity")
_INTO: Final = (
    f"INSERT INTO portfolio_snapshots (portfolio_id, snapshot_time, broker, positions, {', '.join(_AMOUNTS)})"
    " SELECT CAST(:portfolio_id AS text), CAST(:snapshot_time AS timestamptz), CAST(:broker AS text),"
    " CAST(CAST(:positions AS text) AS jsonb), "
    + ", ".join(f"CAST(CAST(:{name} AS text) AS numeric)" for name in _AMOUNTS)
)
_NEW: Final = " ON CONFLICT (portfolio_id, snapshot_time) DO NOTHING RETURNING true"
# Where the month has its partition there is no need to look for it beforehand; where it has none, to try would abort the
# caller's transaction.
_WHERE_THERE_IS_ROOM: Final = (
    " WHERE EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass(:partition)"
    " AND inhparent = 'portfolio_snapshots'::regclass AND NOT inhdetachpending)"
)
_INSERT: Final = text(_INTO + _NEW)
_INSERT_IF_ROOM: Final = text(_INTO + _WHERE_THERE_IS_ROOM + _NEW)


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


async def record(session: AsyncSession, snapshot: PortfolioSnapshotCreate) -> bool:
    """Add one snapshot, and its month's partition if that is missing; the caller commits. False if it was there already.

    The same snapshot twice is one row. Raises `SnapshotConflict` for another one of that portfolio and time, after which the
    caller's transaction goes on, `ForeignKeyViolation` if there is no such portfolio with that broker, and `InvalidInput` if
    its list of positions was changed so that equity no longer agrees.
    """
    snapshot.check_equity()
    values = _columns(snapshot)
    partition = snapshot_partition_name(snapshot.snapshot_time)
    if await session.scalar(_INSERT_IF_ROOM, values | {"partition": partition}):
        return True
    stored = await _stored(session, snapshot)
    if stored is None:
        await ensure_partitions(session, snapshot.snapshot_time, snapshot.snapshot_time)
        if await session.scalar(_INSERT, values):
            return True
        stored = await _stored(session, snapshot)
    if stored is None:
        raise SerializationFailure("the row was removed while it was written", table=_TABLE.name)
    different = conflict(snapshot, stored)
    if different is not None:
        raise different
    return False


def _columns(snapshot: PortfolioSnapshotCreate) -> dict[str, Any]:
    """Amounts as text, which is the quickest to encode and as exact."""
    return {
        "portfolio_id": snapshot.portfolio_id,
        "snapshot_time": snapshot.snapshot_time,
        "broker": snapshot.broker,
        "positions": stored_positions(snapshot.positions),
        **{name: str(getattr(snapshot, name)) for name in _AMOUNTS},
    }


async def _stored(session: AsyncSession, snapshot: PortfolioSnapshotCreate) -> dict[str, Any] | None:
    key = (_TABLE.c.portfolio_id == snapshot.portfolio_id, _TABLE.c.snapshot_time == snapshot.snapshot_time)
    found = await session.execute(select(*(_TABLE.c[name] for name in COMPARED)).where(*key))
    row = found.mappings().one_or_none()
    return None if row is None else dict(row)


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
            stored_positions(one.positions),
            one.cash,
            one.realized_pnl,
            one.unrealized_pnl,
            one.total_pnl,
            one.equity,
        )
