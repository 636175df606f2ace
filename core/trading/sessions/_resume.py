"""Taking a session up again, and noting that it is in use."""

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.attributes import set_committed_value

from core.database.models import TradingSession, User
from core.trading.sessions._standing import by_bearer, expired, judge, server_clock, the_one

_EVERY = timedelta(minutes=1)


async def resume(session: AsyncSession, bearer: str) -> TradingSession:
    """The session that this bearer was given out with, if it may still be worked with. Changes nothing.

    One statement of a few index lookups, for read-only sessions too, judged by the server's clock. Raises `SessionNotFound`
    (also for what is no bearer, without asking), `SessionExpired`, `SessionRevoked`, and `ConnectionFailed` where nobody
    could be asked.
    """
    found = await _asked(session, by_bearer(bearer))
    judge(found)
    return found.TradingSession


async def touch(
    session: AsyncSession, *, bearer: str | None = None, session_id: str | None = None, every: timedelta = _EVERY
) -> TradingSession:
    """As `resume`, by bearer or id, and note in `last_seen_at` that the session is in use; the caller commits.

    It is written once in `every` at the most, however many do this at once.
    """
    which = the_one(bearer, session_id)
    now = server_clock().label("now")
    while True:
        found = await _asked(session, which, now)
        judge(found)
        row: TradingSession = found.TradingSession
        if row.last_seen_at is not None and row.last_seen_at > found.now - every:
            return row
        if await _noted(session, row.session_id, found.now, every):
            set_committed_value(row, "last_seen_at", found.now)
            return row
        # Somebody else has noted it meanwhile, or ended the session: whichever it was is seen now.


async def _noted(session: AsyncSession, session_id: str, now: datetime, every: timedelta) -> bool:
    noted = await session.execute(
        sa.update(TradingSession)
        .where(
            TradingSession.session_id == session_id,
            TradingSession.is_active,
            sa.or_(TradingSession.last_seen_at.is_(None), TradingSession.last_seen_at <= now - every),
        )
        .values(last_seen_at=now)
        .returning(expired().label("expired"))  # which it may be by now, if it has waited for a lock
        .execution_options(synchronize_session=False)
    )
    return noted.scalar_one_or_none() is False


async def active(session: AsyncSession, *, user_id: int, broker: str) -> TradingSession | None:
    """The user's session with that broker that has neither ended nor expired, unless the user is disabled."""
    return await session.scalar(
        sa.select(TradingSession)
        .join(User)
        .where(
            TradingSession.user_id == user_id,
            TradingSession.broker == broker,
            TradingSession.is_active,
            User.is_active,
            sa.not_(expired()),
        )
        .execution_options(populate_existing=True)
    )


async def _asked(session: AsyncSession, which: sa.ColumnElement[bool], *more: Any) -> Any:
    found = await session.execute(
        sa.select(
            TradingSession,
            TradingSession.is_active.label("is_active"),
            TradingSession.end_reason.label("end_reason"),
            TradingSession.expires_at.label("expires_at"),
            User.is_active.label("user_is_active"),
            expired().label("expired"),
            *more,
        )
        .join(User)
        .where(which)
        .execution_options(populate_existing=True)
    )
    return found.one_or_none()
