"""Sessions as people look at them: with their users' names, and without anything that is secret."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.errors import InvalidInput
from core.database.models import TradingSession, User
from core.trading.sessions._standing import expired

SessionState: TypeAlias = Literal["active", "disabled", "expired", "replaced", "ended", "revoked"]


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session as it stands by the server's clock."""

    session_id: str
    user_id: int
    username: str
    broker: str
    state: SessionState
    """`expired` also before anybody has noted it; `disabled` is one that would go on if its user were not."""
    start_time: datetime
    expires_at: datetime | None
    end_time: datetime | None
    last_seen_at: datetime | None
    has_credentials: bool
    session_data: dict[str, Any]


async def find(
    session: AsyncSession,
    *,
    user_id: int | None = None,
    broker: str | None = None,
    active_only: bool = False,
    before: datetime | None = None,
    limit: int = 100,
) -> list[SessionInfo]:
    """Sessions, the latest first: of a user, with a broker, that may be worked with, that began `before` a time."""
    if limit < 1:
        raise InvalidInput("limit: must be 1 or more", column="limit")
    asked = _INFO.order_by(TradingSession.start_time.desc(), TradingSession.session_id).limit(limit)
    if user_id is not None:
        asked = asked.where(TradingSession.user_id == user_id)
    if broker is not None:
        asked = asked.where(TradingSession.broker == broker)
    if active_only:
        asked = asked.where(TradingSession.is_active, User.is_active, sa.not_(expired()))
    if before is not None:
        asked = asked.where(TradingSession.start_time < before)
    return [_info(row) for row in await session.execute(asked)]


async def get(session: AsyncSession, session_id: str) -> SessionInfo | None:
    """The session of that public id."""
    row = (await session.execute(_INFO.where(TradingSession.session_id == session_id))).one_or_none()
    return None if row is None else _info(row)


_INFO = sa.select(
    TradingSession.session_id,
    TradingSession.user_id,
    User.username,
    TradingSession.broker,
    TradingSession.start_time,
    TradingSession.expires_at,
    TradingSession.end_time,
    TradingSession.last_seen_at,
    TradingSession.session_data,
    TradingSession.credentials.is_not(None).label("has_credentials"),
    sa.case(
        (sa.not_(TradingSession.is_active), sa.func.coalesce(TradingSession.end_reason, "ended")),
        (expired(), "expired"),
        (sa.not_(User.is_active), "disabled"),
        else_="active",
    ).label("state"),
).join(User)


def _info(row: Any) -> SessionInfo:
    fields: dict[str, Any] = {name: getattr(row, name) for name in SessionInfo.__dataclass_fields__}
    fields["session_data"] = dict(row.session_data.root)
    return SessionInfo(**fields)
