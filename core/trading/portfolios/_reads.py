"""What there is to know of a portfolio: how it stands, and how it got there."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import literal_column, select, text, true
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from core.database.errors import InvalidInput
from core.database.models import Portfolio, PortfolioSnapshot
from core.database.types import checked_utc

_MAX_POINTS = 100_000

# One probe of the primary key for each bucket: the cost follows the points asked for, not the rows stored. The time of a
# bucket's edge is multiplied out, so that rounding does not add up.
_CURVE = text("""
    SELECT s.snapshot_time, s.equity, s.total_pnl
    FROM generate_series(0, CAST(:points AS integer) - 1) AS bucket(number)
    CROSS JOIN LATERAL (
        SELECT snapshot_time, equity, total_pnl FROM portfolio_snapshots
        WHERE portfolio_id = :portfolio_id
          AND snapshot_time >= CAST(:start AS timestamptz) + bucket.number * CAST(:span AS interval) / :points
          AND snapshot_time < CAST(:start AS timestamptz) + (bucket.number + 1) * CAST(:span AS interval) / :points
        ORDER BY snapshot_time DESC
        LIMIT 1
    ) AS s
    ORDER BY bucket.number
""")


class EquityPoint(NamedTuple):
    """A portfolio's worth at one time (UTC), in the portfolio's currency."""

    snapshot_time: datetime
    equity: Decimal
    total_pnl: Decimal


async def latest(session: AsyncSession, portfolio_ids: Iterable[str] | None = None) -> Sequence[PortfolioSnapshot]:
    """The newest snapshot of each portfolio, or of those given, by portfolio_id. One without any is left out."""
    newest = (
        select(PortfolioSnapshot)
        .where(PortfolioSnapshot.portfolio_id == Portfolio.portfolio_id)
        .order_by(PortfolioSnapshot.snapshot_time.desc())
        .limit(literal_column("1"))  # a parameter would hide from the planner that one row is enough
        .correlate(Portfolio)
        .lateral()
    )
    snapshot = aliased(PortfolioSnapshot, newest)
    query = select(snapshot).select_from(Portfolio).join(newest, true()).order_by(Portfolio.portfolio_id)
    if portfolio_ids is not None:
        query = query.where(Portfolio.portfolio_id.in_(list(portfolio_ids)))
    return (await session.scalars(query)).all()


async def equity_curve(
    session: AsyncSession, portfolio_id: str, start: datetime, end: datetime, *, points: int = 500
) -> list[EquityPoint]:
    """At most `points` points of a portfolio from `start` until just before `end`, in order of time.

    The period is cut into `points` equal buckets; each gives the last snapshot in it, as it was recorded. A bucket without
    one (a night, a weekend) gives none. Raises `InvalidInput`.
    """
    first, last = _utc(start, "start"), _utc(end, "end")
    if last <= first:
        raise InvalidInput("end must be after start", column="end")
    if not 1 <= points <= _MAX_POINTS:
        raise InvalidInput(f"points must be from 1 to {_MAX_POINTS:,}", column="points")
    rows = await session.execute(
        _CURVE, {"portfolio_id": portfolio_id, "start": first, "span": last - first, "points": points}
    )
    return [EquityPoint(*row) for row in rows]


def _utc(value: datetime, field: str) -> datetime:
    try:
        return checked_utc(value)
    except InvalidInput as fault:
        raise InvalidInput(f"{field}: {fault.message}", column=field) from None
