"""Ending sessions: by their users, by whoever may, or because another takes their place."""

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.models import TradingSession
from core.trading.sessions._errors import RevokedReason, SessionNotFound
from core.trading.sessions._events import SessionEnded, tell
from core.trading.sessions._standing import locked, locked_user, the_one


async def end(session: AsyncSession, *, session_id: str | None = None, bearer: str | None = None) -> bool:
    """The user logs out: end the session of that id or bearer, and erase its credentials. The caller commits.

    False if there is none or it has ended before, so that it may be done twice. One that has expired ends as expired. What is
    no bearer at all has no session either.
    """
    return await _end_one(session, session_id, bearer, "ended")


async def revoke(session: AsyncSession, *, session_id: str | None = None, bearer: str | None = None) -> bool:
    """As `end`, by somebody else than the user: whoever resumes it is told that it was revoked."""
    return await _end_one(session, session_id, bearer, "revoked")


async def revoke_all(session: AsyncSession, user_id: int, *, broker: str | None = None) -> int:
    """Revoke what the user has open, with one broker or with all; how many there were. The caller commits.

    A session that is being opened meanwhile is waited for and revoked too.
    """
    user = await locked_user(session, user_id)
    if user is None:
        return 0
    which = TradingSession.user_id == user_id
    ended = await end_where(session, which if broker is None else which & (TradingSession.broker == broker), user.now)
    await tell(session, ended)
    return len(ended)


async def end_where(
    session: AsyncSession, which: sa.ColumnElement[bool], now: datetime, reason: RevokedReason = "revoked"
) -> list[SessionEnded]:
    """End the active ones among them and erase their credentials. What has expired before `now` ended then, as expired."""
    table = TradingSession
    is_due = table.expires_at <= now
    rows = await session.execute(
        sa.update(table)
        .where(which, table.is_active)
        .values(
            is_active=False,
            # Another machine's clock may have been ahead when an old session was opened.
            end_time=sa.case((is_due, table.expires_at), else_=sa.func.greatest(table.start_time, now)),
            end_reason=sa.case((is_due, "expired"), else_=reason),
            credentials=None,
        )
        .returning(table.session_id, table.user_id, table.broker, table.expires_at, table.end_reason)
        .execution_options(synchronize_session=False)
    )
    return [SessionEnded(*row) for row in rows]


async def _end_one(session: AsyncSession, session_id: str | None, bearer: str | None, reason: RevokedReason) -> bool:
    try:
        which = the_one(bearer, session_id)
    except SessionNotFound:
        return False
    found = await locked(session, which)
    if found is None or not found.is_active:
        return False
    ended = await end_where(session, TradingSession.session_id == found.session_id, found.now, reason)
    await tell(session, ended)
    return bool(ended)
