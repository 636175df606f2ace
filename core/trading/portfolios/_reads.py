"""What there is to know of a portfolio: how it stands, and how it got there."""

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT, TIMESTAMP
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.errors import InvalidInput
from core.database.types import checked_text, checked_utc

_MAX_POINTS = 100_000

# One probe of the primary key for each bucket: the cost follows the points asked for, not the rows stored. The time of a
# bucket's edge is multiplied out, so that rounding does not add up; OFFSET 0 has it computed once and not in each condition.
_CURVE = text("""
    SELECT s.snapshot_time, s.equity, s.total_pnl
    FROM (
        SELECT number, CAST(:start AS timestamptz) + number * CAST(:span AS interval) / :points AS begins,
               CAST(:start AS timestamptz) + (number + 1) * CAST(:span AS interval) / :points AS ends
        FROM generate_series(0, CAST(:points AS integer) - 1) AS series(number)
        OFFSET 0
    ) AS bucket
    CROSS JOIN LATERAL (
        SELECT snapshot_time, equity, total_pnl FROM portfolio_snapshots
        WHERE portfolio_id = :portfolio_id AND snapshot_time >= bucket.begins AND snapshot_time < bucket.ends
        ORDER BY snapshot_time DESC
        LIMIT 1
    ) AS s
    ORDER BY bucket.number
""")

# One probe for each portfolio, backwards from the end of its key or from the time asked for.
_LATEST = """
    SELECT s.portfolio_id, s.snapshot_time, s.broker, s.cash, s.realized_pnl, s.unrealized_pnl, s.total_pnl, s.equity,
           p.currency
    FROM portfolios AS p
    CROSS JOIN LATERAL (
        SELECT * FROM portfolio_snapshots
        WHERE portfolio_id = p.portfolio_id {until}
        ORDER BY snapshot_time DESC
        LIMIT 1
    ) AS s
    {where}
    ORDER BY p.portfolio_id
"""
_CONDITIONS = {
    "portfolio_ids": "p.portfolio_id = ANY(:portfolio_ids)",
    "broker": "p.broker = :broker",
    "strategy_id": "p.strategy_id = :strategy_id",
}
_TYPES: dict[str, Any] = {
    "portfolio_ids": ARRAY(TEXT()),
    "broker": TEXT(),
    "strategy_id": TEXT(),
    "as_of": TIMESTAMP(timezone=True),
}


class LatestSnapshot(NamedTuple):
    """How a portfolio stands, without its positions; money in `currency`, the time in UTC."""

    portfolio_id: str
    snapshot_time: datetime
    broker: str
    cash: Decimal
    realized_pnl: Decimal
    unrealized_pnl: Decimal
    total_pnl: Decimal
    equity: Decimal
    currency: str


class EquityPoint(NamedTuple):
    """A portfolio's worth at one time (UTC), in the portfolio's currency."""

    snapshot_time: datetime
    equity: Decimal
    total_pnl: Decimal


async def latest(
    session: AsyncSession,
    portfolio_ids: Iterable[str] | None = None,
    *,
    as_of: datetime | None = None,
    broker: str | None = None,
    strategy_id: str | None = None,
) -> list[LatestSnapshot]:
    """The newest snapshot of each portfolio, or of those given, by portfolio_id. One without any is left out.

    `as_of` asks for the newest at that time or before it; `broker` and `strategy_id` choose among the portfolios. Its cost
    follows the portfolios, not the rows stored. Without the positions, which would cost more than all the rest:
    `session.get(PortfolioSnapshot, (portfolio_id, snapshot_time))` reads the whole of one. Raises `InvalidInput`.
    """
    values: dict[str, Any] = {}
    if portfolio_ids is not None:
        values["portfolio_ids"] = [_text(one, "portfolio_ids") for one in portfolio_ids]
    if broker is not None:
        values["broker"] = _text(broker, "broker")
    if strategy_id is not None:
        values["strategy_id"] = _text(strategy_id, "strategy_id")
    if as_of is not None:
        values["as_of"] = _utc(as_of, "as_of")
    rows = await session.execute(_latest_statement(frozenset(values)), values)
    return [LatestSnapshot(*row) for row in rows]


@cache
def _latest_statement(given: frozenset[str]) -> TextClause:
    conditions = " AND ".join(condition for name, condition in _CONDITIONS.items() if name in given)
    statement = _LATEST.format(
        until="AND snapshot_time <= :as_of" if "as_of" in given else "", where=conditions and f"WHERE {conditions}"
    )
    return text(statement).bindparams(*(bindparam(name, type_=_TYPES[name]) for name in given))


async def equity_curve(
    session: AsyncSession, portfolio_id: str, start: datetime, end: datetime, *, points: int = 500
) -> list[EquityPoint]:
    """At most `points` points of a portfolio from `start` until just before `end`, in order of time.

    The period is cut into `points` equal buckets; each gives the last snapshot in it, as it was recorded. A bucket without
    one (a night, a weekend) gives none. Raises `InvalidInput`.
    """
    first, last = checked_period(start, end)
    if not 1 <= points <= _MAX_POINTS:
        raise InvalidInput(f"points must be from 1 to {_MAX_POINTS:,}", column="points")
    rows = await session.execute(
        _CURVE, {"portfolio_id": portfolio_id, "start": first, "span": last - first, "points": points}
    )
    return [EquityPoint(*row) for row in rows]


def checked_period(start: datetime, end: datetime) -> tuple[datetime, datetime]:
    """Both in UTC; raises `InvalidInput`."""
    first, last = _utc(start, "start"), _utc(end, "end")
    if last <= first:
        raise InvalidInput("end must be after start", column="end")
    return first, last


def _text(value: str, field: str) -> str:
    try:
        return checked_text(value)
    except InvalidInput as fault:
        raise InvalidInput(f"{field}: {fault.message}", column=field) from None


def _utc(value: datetime, field: str) -> datetime:
    try:
        return checked_utc(value)
    except InvalidInput as fault:
        raise InvalidInput(f"{field}: {fault.message}", column=field) from None
