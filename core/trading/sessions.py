"""Trading sessions: a user's standing with a broker, one active at most for each pair.

`session_data` is what the application notes in the open; a broker's token goes into `credentials`, which is sealed for the
session's own row before it is bound to a statement, and is erased when the session ends.
"""

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.canaries import keep_canary
from core.database.encryption import KeyRing
from core.database.errors import ConfigurationError, ForeignKeyViolation
from core.database.models import TradingSession, User
from core.database.records import SessionData, TradingSessionCreate
from core.database.types import invalid_input

__all__ = ["active", "credentials_of", "end", "open_session", "seal_credentials"]


async def open_session(
    session: AsyncSession,
    *,
    user_id: int,
    broker: str,
    expires_at: datetime | None = None,
    session_data: Mapping[str, Any] | None = None,
    credentials: str | None = None,
    ring: KeyRing | None = None,
) -> TradingSession:
    """Open a session under a new id of 128 random bits, and end the user's active one with that broker; the caller commits.

    `credentials` are sealed with `ring`, which they need; the key's first secret in this database leaves its canary in the
    same transaction. Several opening at once wait for one another, and the last one stays active. Raises `InvalidInput`
    for a value that does not fit (an `expires_at` in the past, say), `ForeignKeyViolation` if there is no such user, and
    `InvalidKey`, before anything is written, if another key than the ring's has sealed here under its id.
    """
    if credentials is not None and ring is None:
        raise ConfigurationError("credentials are only stored sealed", hint="Give a KeyRing as `ring`.")
    try:
        record = TradingSessionCreate(
            session_id=secrets.token_hex(16),
            user_id=user_id,
            broker=broker,
            expires_at=expires_at,
            session_data=SessionData.model_validate(dict(session_data or {})),
        )
    except ValidationError as fault:
        raise invalid_input(fault) from None
    # The user's row is the lock: without it two openings would both find nothing to end.
    user = await session.scalar(select(User.id).where(User.id == user_id).with_for_update(key_share=True))
    if user is None:
        raise ForeignKeyViolation(
            f"there is no user {user_id}",
            constraint="fk_trading_sessions_user_id",
            table="trading_sessions",
            column="user_id",
        )
    if credentials is not None and ring is not None:
        await keep_canary(session, ring)
    await session.execute(
        _ending(record.start_time).where(TradingSession.user_id == user_id, TradingSession.broker == broker)
    )
    opened = TradingSession(**record.columns())
    if credentials is not None and ring is not None:
        opened.credentials = ring.seal(credentials, **_place(opened.session_id))
    session.add(opened)
    await session.flush()
    return opened


async def end(session: AsyncSession, *, session_id: str) -> bool:
    """End a session; False if there is none of that id or it has ended before. The caller commits."""
    ended = await session.scalars(
        _ending(datetime.now(UTC)).where(TradingSession.session_id == session_id).returning(TradingSession.session_id)
    )
    return ended.one_or_none() is not None


async def active(session: AsyncSession, *, user_id: int, broker: str) -> TradingSession | None:
    """The user's session with that broker that has neither ended nor expired."""
    return await session.scalar(
        select(TradingSession).where(
            TradingSession.user_id == user_id,
            TradingSession.broker == broker,
            TradingSession.is_active,
            or_(TradingSession.expires_at.is_(None), TradingSession.expires_at > datetime.now(UTC)),
        )
    )


def credentials_of(opened: TradingSession, *, ring: KeyRing) -> str | None:
    """The session's credentials in clear; None if it has none. Raises `UnknownKey` or `EnvelopeTampered`."""
    if opened.credentials is None:
        return None
    return ring.open_text(opened.credentials, **_place(opened.session_id))


def seal_credentials(credentials: str, *, session_id: str, ring: KeyRing) -> bytes:
    """An envelope of `credentials` for the row of that id and no other, for who writes many rows at once.

    The caller calls `keep_canary` in the transaction that stores it.
    """
    return ring.seal(credentials, **_place(session_id))


def _place(session_id: str) -> dict[str, str]:
    return {"table": TradingSession.__tablename__, "column": "credentials", "row_key": session_id}


def _ending(now: datetime) -> Any:
    # Another machine's clock may have been ahead when the session was opened.
    return (
        update(TradingSession)
        .where(TradingSession.is_active)
        .values(is_active=False, end_time=func.greatest(TradingSession.start_time, now), credentials=None)
        .execution_options(synchronize_session=False)
    )
