"""Where a session stands, by the server's clock, and the errors that say so."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.errors import ConfigurationError
from core.database.models import TradingSession, User
from core.database.types import UtcDateTime
from core.trading.sessions._bearer import bearer_hash
from core.trading.sessions._errors import RevokedReason, SessionExpired, SessionNotFound, SessionRevoked

_WORDS: dict[str, str] = {
    "replaced": "a newer session of this user with this broker has taken its place",
    "ended": "the user has ended this session",
    "revoked": "this session has been revoked",
}


def server_clock() -> sa.Function[datetime]:
    """The server's clock at the moment at which it comes to the row."""
    return sa.func.clock_timestamp(type_=UtcDateTime())


def one_of(session_ids: Sequence[str]) -> sa.ColumnElement[bool]:
    """As one parameter, however many there are."""
    return TradingSession.session_id == sa.any_(sa.literal(list(session_ids), ARRAY(sa.Text())))


def expired() -> sa.ColumnElement[bool]:
    return sa.func.coalesce(TradingSession.expires_at <= server_clock(), sa.false())


def untold() -> sa.ColumnElement[bool]:
    """Of those that expire: whether it has not been told of the very end that is set."""
    return TradingSession.told_expiry.is_distinct_from(TradingSession.expires_at)


def the_one(bearer: str | None, session_id: str | None) -> sa.ColumnElement[bool]:
    """Which session is meant. Raises `ConfigurationError` unless it is said in one way, and `SessionNotFound`."""
    if (bearer is None) == (session_id is None):
        raise ConfigurationError("give either a bearer or a session_id")
    return TradingSession.session_id == session_id if bearer is None else by_bearer(bearer)


def by_bearer(bearer: object) -> sa.ColumnElement[bool]:
    """Raises `SessionNotFound` for what is no bearer."""
    hashed = bearer_hash(bearer)
    if hashed is None:
        raise never_there()
    return TradingSession.bearer_hash == hashed


async def locked_user(session: AsyncSession, user_id: int) -> Any:
    """`is_active` of the user under a lock on the row, which whoever opens sessions for the user takes, and `now`."""
    row = sa.select(User.is_active).where(User.id == user_id).with_for_update(key_share=True).subquery("locked")
    return (await session.execute(sa.select(row, server_clock().label("now")))).one_or_none()


async def locked(session: AsyncSession, which: sa.ColumnElement[bool]) -> Any:
    """The session's standing under a lock on its row, and the server's clock once the lock is held; None if there is none."""
    # The clock stands outside: within, it would be read before the lock is waited for.
    row = (
        sa.select(
            TradingSession.session_id,
            TradingSession.user_id,
            TradingSession.broker,
            TradingSession.is_active,
            TradingSession.end_reason,
            TradingSession.end_time,
            TradingSession.expires_at,
            User.is_active.label("user_is_active"),
        )
        .join(User)
        .where(which)
        .with_for_update(key_share=True, of=TradingSession)
        .subquery("locked")
    )
    clock = server_clock().label("now")
    is_expired = sa.func.coalesce(row.c.expires_at <= server_clock(), sa.false()).label("expired")
    return (await session.execute(sa.select(row, clock, is_expired))).one_or_none()


def judge(found: Any) -> None:
    """Raise unless a row of `is_active`, `end_reason`, `expires_at`, `expired` and `user_is_active` may be worked with."""
    if found is None:
        raise never_there()
    if not found.is_active and found.end_reason != "expired":
        # Sessions that ended before reasons were kept have none.
        reason = cast("RevokedReason", found.end_reason or "ended")
        raise SessionRevoked(_WORDS[reason], reason=reason)
    if not found.is_active or found.expired:
        raise SessionExpired("this session has expired", expired_at=found.expires_at)
    if not found.user_is_active:
        raise SessionRevoked("the user of this session is disabled", hint="Enable the user, then open another session.")


def never_there() -> SessionNotFound:
    return SessionNotFound("there is no such session")
