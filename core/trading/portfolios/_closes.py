"""The closes of calendar days, and what they come to."""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from typing import NamedTuple

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.errors import InvalidInput
from core.trading.portfolios._calendar import DEFAULT_ZONE, Days
from core.trading.portfolios._reads import checked_period
from core.trading.portfolios._series import DailyClose, Flow
from core.trading.portfolios._statistics import Summary, summary

_MAX_DAYS = 36_525
_BEGINNING = datetime(1, 1, 2, tzinfo=UTC)  # the first day that the database does not take for infinity

# One probe of the primary key for each day, as in an equity curve.
_CLOSES = text("""
    SELECT day.number - 1, s.snapshot_time, s.equity, s.total_pnl, s.invested
    FROM generate_series(1, CAST(:days AS integer)) AS day(number)
    CROSS JOIN LATERAL (
        SELECT snapshot_time, equity, total_pnl, jsonb_array_length(positions) > 0 AS invested FROM portfolio_snapshots
        WHERE portfolio_id = :portfolio_id
          AND snapshot_time >= (:edges)[day.number] AND snapshot_time < (:edges)[day.number + 1]
        ORDER BY snapshot_time DESC
        LIMIT 1
    ) AS s
    ORDER BY day.number
""").bindparams(bindparam("edges", type_=ARRAY(TIMESTAMP(timezone=True))))


class Calendar(NamedTuple):
    """The days of a period in a zone, where they begin, and where the last one ends."""

    days: Sequence[date]
    edges: Sequence[datetime]

    @property
    def since_ever(self) -> "Calendar":
        """The same with all that was before the period as its first day."""
        return Calendar([self.days[0], *self.days], [min(_BEGINNING, self.edges[0]), *self.edges])


async def daily_closes(
    session: AsyncSession, portfolio_id: str, start: datetime, end: datetime, *, zone: str = DEFAULT_ZONE
) -> list[DailyClose]:
    """The last snapshot of each calendar day of a time zone, from `start` until just before `end`, in order.

    A day without a snapshot gives none. A day lasts from its own beginning to that of the next (see `day_start`), and counts
    only as far as it lies within the period. It costs a probe of the key for each day, not the rows stored. Raises
    `InvalidInput`, for more than a century too.
    """
    calendar = calendar_of(start, end, zone)
    return [close for _, close in await read_closes(session, portfolio_id, calendar)]


async def portfolio_summary(
    session: AsyncSession,
    portfolio_id: str,
    start: datetime,
    end: datetime,
    *,
    zone: str = DEFAULT_ZONE,
    periods_per_year: float = 252,
    risk_free: float = 0.0,
    flows: Iterable[Flow] = (),
) -> Summary | None:
    """The `summary` of a portfolio's daily closes from `start` until just before `end`; None without any snapshot in it.

    It begins with the last snapshot before `start` if there is one, so that the first day has its return too. Drawdown and
    exposure are those of the closes: for what happened within the days give `summary` or `drawdown` an `equity_curve`. Raises
    `InvalidInput`.
    """
    calendar = calendar_of(start, end, zone).since_ever
    numbered = await read_closes(session, portfolio_id, calendar)
    if not any(number for number, _ in numbered):
        return None
    closes = [close for _, close in numbered]
    return summary(closes, zone=zone, periods_per_year=periods_per_year, risk_free=risk_free, flows=flows)


def calendar_of(start: datetime, end: datetime, zone: str) -> Calendar:
    """The calendar of a period; raises `InvalidInput`."""
    first, last = checked_period(start, end)
    if (last - first).days >= _MAX_DAYS:
        raise InvalidInput(f"start and end are more than {_MAX_DAYS:,} days apart", column="end")
    return Calendar(*Days(zone).edges(first, last))


async def read_closes(session: AsyncSession, portfolio_id: str, calendar: Calendar) -> list[tuple[int, DailyClose]]:
    """The closes of the calendar's days that have one, with the day's place in it."""
    values = {"portfolio_id": portfolio_id, "days": len(calendar.days), "edges": list(calendar.edges)}
    rows = await session.execute(_CLOSES, values)
    return [(number, DailyClose(calendar.days[number], *close)) for number, *close in rows]
