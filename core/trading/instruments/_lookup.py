"""Finding one instrument."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.models import Instrument


async def get(session: AsyncSession, instrument_token: int) -> Instrument | None:
    """The instrument of that token, active or not."""
    return await session.get(Instrument, instrument_token)


async def by_symbol(
    session: AsyncSession, exchange: str, trading_symbol: str, *, source: str | None = None
) -> Instrument | None:
    """The instrument of that symbol on that exchange, by the broker's own spelling.

    Symbols repeat over time: an active one goes before those that are gone, then the one whose state is the newest.
    """
    query = (
        select(Instrument)
        .where(Instrument.exchange == exchange, Instrument.trading_symbol == trading_symbol)
        .order_by(Instrument.is_active.desc(), Instrument.valid_from.desc(), Instrument.instrument_token)
        .limit(1)
    )
    if source is not None:
        query = query.where(Instrument.source == source)
    return await session.scalar(query)


async def by_key(session: AsyncSession, source: str, broker_key: str) -> Instrument | None:
    """The instrument that a broker with text keys has under that key, active or not."""
    return await session.scalar(
        select(Instrument).where(Instrument.source == source, Instrument.broker_key == broker_key)
    )
