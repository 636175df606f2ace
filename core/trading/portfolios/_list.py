"""Which portfolios there are, and since when each has a history."""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import bindparam, select, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.models import Portfolio

# Two probes of the primary key for each portfolio, whatever the number of its rows and of their months.
_RECORDED = text("""
    SELECT min(f.snapshot_time), max(l.snapshot_time)
    FROM portfolios AS p
    CROSS JOIN LATERAL (
        SELECT snapshot_time FROM portfolio_snapshots
        WHERE portfolio_id = p.portfolio_id ORDER BY snapshot_time LIMIT 1
    ) AS f
    CROSS JOIN LATERAL (
        SELECT snapshot_time FROM portfolio_snapshots
        WHERE portfolio_id = p.portfolio_id ORDER BY snapshot_time DESC LIMIT 1
    ) AS l
    WHERE CAST(:portfolio_ids AS text[]) IS NULL OR p.portfolio_id = ANY(:portfolio_ids)
""").bindparams(bindparam("portfolio_ids", type_=ARRAY(TEXT())))


class RecordedPeriod(NamedTuple):
    """The times (UTC) of the first and the last snapshot."""

    first: datetime
    last: datetime


async def get(session: AsyncSession, portfolio_id: str) -> Portfolio | None:
    """One portfolio, or None."""
    return await session.get(Portfolio, portfolio_id)


async def find(
    session: AsyncSession, *, broker: str | None = None, strategy_id: str | None = None, currency: str | None = None
) -> list[Portfolio]:
    """The portfolios, those of a broker, of a strategy, in a currency; in order of their ids."""
    wanted = {Portfolio.broker: broker, Portfolio.strategy_id: strategy_id, Portfolio.currency: currency}
    rows = await session.scalars(
        select(Portfolio)
        .where(*(column == value for column, value in wanted.items() if value is not None))
        .order_by(Portfolio.portfolio_id)
    )
    return list(rows)


async def recorded_period(session: AsyncSession, portfolio_ids: Iterable[str] | None = None) -> RecordedPeriod | None:
    """From when until when the history of all portfolios, or of those given, reaches; None where there is none."""
    ids = None if portfolio_ids is None else list(portfolio_ids)
    first, last = (await session.execute(_RECORDED, {"portfolio_ids": ids})).one()
    return None if first is None else RecordedPeriod(first, last)
