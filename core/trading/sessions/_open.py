"""Opening a session, and renewing one that goes on."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NoReturn

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from core.config.brokers import ExpiryPolicy
from core.database.canaries import keep_canary
from core.database.encryption import KeyRing
from core.database.errors import (
    ConfigurationError,
    ForeignKeyViolation,
    InvalidInput,
    SerializationFailure,
    UniqueViolation,
)
from core.database.models import TradingSession
from core.database.records import SessionData, TradingSessionCreate
from core.database.types import checked_utc, invalid_input
from core.trading.sessions._bearer import bearer_hash, new_bearer
from core.trading.sessions._end import end_where
from core.trading.sessions._errors import UserDisabled
from core.trading.sessions._events import SessionOpened, SessionRenewed, tell
from core.trading.sessions._secrets import refuse_in_clear, refuse_in_notes, seal_credentials
from core.trading.sessions._standing import judge, locked, locked_user

_ID_BYTES = 16
_ONE_ACTIVE = "uq_trading_sessions_active"
_ANY_TIME = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class OpenedSession:
    """A session that has just been opened, and its bearer, which is to be had here and never again.

    No text form shows the bearer, and the pair cannot be pickled or copied.
    """

    session: TradingSession
    bearer: str = field(repr=False)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("an OpenedSession cannot be pickled or copied: it holds the bearer; hand on its `session`")


async def open(  # noqa: A001 - read with its room: sessions.open
    session: AsyncSession,
    *,
    user_id: int,
    broker: str,
    policy: ExpiryPolicy | None = None,
    expires_at: datetime | None = None,
    session_data: Mapping[str, Any] | None = None,
    credentials: str | None = None,
    ring: KeyRing | None = None,
) -> OpenedSession:
    """Open a session under a new public id and a new bearer, and end the user's active one with that broker; the caller commits.

    It begins by the server's clock, from which `policy` computes its end; `expires_at` sets another, and without either it
    does not expire. `credentials` are sealed with `ring`, which they need; the key's first secret in this database leaves its
    canary in the same transaction. Several opening at once wait for one another, and the last one stays active. After
    `CommitOutcomeUnknown` open again: if the first is stored the second takes its place, and nobody has the first's bearer.

    Raises `InvalidInput` for a value that does not fit (an `expires_at` in the past, say), `ForeignKeyViolation` if there is no
    such user, `UserDisabled`, and `InvalidKey` if another key than the ring's has sealed here under its id; all of them before
    anything is written. A text in `session_data` whose name speaks of a secret is such a value. `SerializationFailure`, for
    which `run_transaction` runs the whole again, says that a session was written at the same moment past this function, or that
    this transaction's snapshot does not see it.
    """
    refuse_in_clear(credentials, ring)
    _refuse_two_ends(policy, expires_at)
    record = _record(session_data, user_id=user_id, broker=broker, start_time=_ANY_TIME)
    refuse_in_notes(record.session_data.root, credentials)
    # The user's row is the lock: without it two openings would both find nothing to end.
    user = await locked_user(session, user_id)
    if user is None:
        raise ForeignKeyViolation(
            f"there is no user {user_id}",
            constraint="fk_trading_sessions_user_id",
            table="trading_sessions",
            column="user_id",
        )
    if not user.is_active:
        raise UserDisabled(f"user {user_id} is disabled")
    end = _end_of(user.now, policy, expires_at)
    if credentials is not None and ring is not None:
        await keep_canary(session, ring)
    ended = await end_where(
        session, (TradingSession.user_id == user_id) & (TradingSession.broker == broker), user.now, "replaced"
    )
    bearer = new_bearer()
    opened = TradingSession(
        **record.columns() | {"start_time": user.now, "expires_at": end}, bearer_hash=bearer_hash(bearer)
    )
    if credentials is not None and ring is not None:
        opened.credentials = seal_credentials(credentials, session_id=opened.session_id, ring=ring)
    await _store(session, opened)
    await tell(session, [*ended, SessionOpened(opened.session_id, user_id, broker, end)])
    return OpenedSession(opened, bearer)


async def renew(
    session: AsyncSession,
    session_id: str,
    *,
    policy: ExpiryPolicy | None = None,
    expires_at: datetime | None = None,
    credentials: str | None = None,
    ring: KeyRing | None = None,
) -> TradingSession:
    """Note what a broker's refresh has brought for a session that goes on: another end, other credentials, or both.

    The end is that of a login at this moment by the server's clock (`policy`), or `expires_at`; one that is another than before
    will be told as it nears. The caller commits. Raises what `open` raises of values and keys, and `SessionNotFound`, `SessionExpired` or
    `SessionRevoked`.
    """
    refuse_in_clear(credentials, ring)
    _refuse_two_ends(policy, expires_at)
    if credentials is not None and ring is not None:
        # First, as in `open`: it may wait for another's, and must hold no session then.
        await keep_canary(session, ring)
    found = await locked(session, TradingSession.session_id == session_id)
    judge(found)
    changes: dict[str, Any] = {}
    if policy is not None or expires_at is not None:
        changes["expires_at"] = _end_of(found.now, policy, expires_at)
    if credentials is not None and ring is not None:
        changes["credentials"] = seal_credentials(credentials, session_id=session_id, ring=ring)
    if not changes:
        raise ConfigurationError("there is nothing to renew", hint="Give a policy, an expires_at or credentials.")
    renewed = await session.scalars(
        sa.update(TradingSession)
        .where(TradingSession.session_id == session_id)
        .values(**changes)
        .returning(TradingSession)
        .execution_options(populate_existing=True)
    )
    row = renewed.one()
    if "expires_at" in changes:
        await tell(session, [SessionRenewed(session_id, row.user_id, row.broker, row.expires_at)])
    return row


async def _store(session: AsyncSession, opened: TradingSession) -> None:
    session.add(opened)
    try:
        await session.flush()
    except UniqueViolation as fault:
        if fault.constraint != _ONE_ACTIVE:
            raise
        # Whoever does not lock the user: a plain write to the table, or an opening that this transaction's snapshot is older than.
        raise SerializationFailure(
            "another session of this user with this broker was opened at the same moment", constraint=fault.constraint
        ) from fault


def _refuse_two_ends(policy: ExpiryPolicy | None, expires_at: datetime | None) -> None:
    if policy is not None and expires_at is not None:
        raise ConfigurationError("give either a policy or an expires_at")


def _end_of(now: datetime, policy: ExpiryPolicy | None, expires_at: datetime | None) -> datetime | None:
    if policy is not None:
        return policy.expires_at(now)
    if expires_at is None:
        return None
    try:
        given = checked_utc(expires_at)
    except InvalidInput as fault:
        raise InvalidInput(f"expires_at: {fault.message}", column="expires_at") from None
    if given <= now:
        raise InvalidInput(
            f"expires_at must be after start_time, which is {now:%Y-%m-%d %H:%M:%S} UTC by the database's clock",
            column="expires_at",
        )
    return given


def _record(session_data: Mapping[str, Any] | None, **fields: Any) -> TradingSessionCreate:
    try:
        return TradingSessionCreate(
            session_id=secrets.token_hex(_ID_BYTES),
            session_data=SessionData.model_validate(dict(session_data or {})),
            **fields,
        )
    except ValidationError as fault:
        raise invalid_input(fault) from None
