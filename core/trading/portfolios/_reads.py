"""What there is to know of a portfolio: how it stands, and how it got there."""

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.errors import InvalidInput
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

# One probe for each portfolio, backwards from the end of its key.
_LATEST_SQL = """
    SELECT s.portfolio_id, s.snapshot_time, s.broker, s.cash, s.realized_pnl, s.unrealized_pnl, s.total_pnl, s.equity
    FROM portfolios AS p
    CROSS JOIN LATERAL (
        SELECT * FROM portfolio_snapshots
        WHERE portfolio_id = p.portfolio_id
        ORDER BY snapshot_time DESC
        LIMIT 1
    ) AS s
    {where}
    ORDER BY p.portfolio_id
"""
_LATEST = text(_LATEST_SQL.format(where=""))
_LATEST_OF = text(_LATEST_SQL.format(where="WHERE p.portfolio_id = ANY(:portfolio_ids)")).bindparams(
    bindparam("portfolio_ids", type_=ARRAY(TEXT()))
)


class LatestSnapshot(NamedTuple):
    """How a portfolio stands, without its positions; money in the portfolio's currency, the time in UTC."""

    portfolio_id: str
    snapshot_time: datetime
    broker: str
    cash: Decimal
    realized_pnl: Decimal
    unrealized_pnl: Decimal
    total_pnl: Decimal
    equity: Decimal


class EquityPoint(NamedTuple):
    """A portfolio's worth at one time (UTC), in the portfolio's currency."""

    snapshot_time: datetime
    equity: Decimal
    total_pnl: Decimal


async def latest(session: AsyncSession, portfolio_ids: Iterable[str] | None = None) -> list[LatestSnapshot]:
    """The newest snapshot of each portfolio, or of those given, by portfolio_id. One without any is left out.

    Without its positions, which would cost more than all the rest: `session.get(PortfolioSnapshot, (portfolio_id,
    snapshot_time))` reads the whole of one.
    """
    if portfolio_ids is None:
        rows = await session.execute(_LATEST)
    else:
        rows = await session.execute(_LATEST_OF, {"portfolio_ids": list(portfolio_ids)})
    return [LatestSnapshot(*row) for row in rows]


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
