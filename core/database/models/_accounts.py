"""Users, what is known of who tried to log in as one, and their trading sessions."""

from datetime import datetime
from typing import get_args
from uuid import uuid4

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, UniqueConstraint, func, text, true
from sqlalchemy.orm import Mapped, mapped_column, relationship, validates

from core.database.models._base import Base, instant_check, now, object_check, text_check
from core.database.records import (
    BROKER_RULE,
    IDENTIFIER_RULE,
    LABEL_RULE,
    PASSWORD_HASH_RULE,
    USERNAME_RULE,
    AuthEventKind,
    EndReason,
    SessionData,
)
from core.database.types import Boolean, Bytes, Document, FoldedText, Integer64, Text, UtcDateTime, folded

ENVELOPE_MAX_BYTES = 65_536
_DIGEST_BYTES = 32  # SHA-256


def _one_of(column: str, *values: str) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(map(repr, values))})", name=column)


def _digest_check(column: str) -> CheckConstraint:
    return CheckConstraint(f"octet_length({column}) = {_DIGEST_BYTES}", name=column)


class User(Base):
    """An account. `username` is kept and compared in the form of `types.folded`: however it is typed, it is one name."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(Integer64(), Identity(), primary_key=True)
    username: Mapped[str] = mapped_column(FoldedText(USERNAME_RULE.max_length))
    hashed_password: Mapped[str] = mapped_column(Text(PASSWORD_HASH_RULE.max_length))
    is_active: Mapped[bool] = mapped_column(Boolean(), server_default=true())
    created_at: Mapped[datetime] = mapped_column(UtcDateTime(), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime(), server_default=func.now(), onupdate=now)

    __table_args__ = (
        text_check("username", USERNAME_RULE),
        text_check("hashed_password", PASSWORD_HASH_RULE),
        instant_check("created_at"),
        instant_check("updated_at"),
        CheckConstraint("username IS NFKC NORMALIZED", name="username_normalized"),
        UniqueConstraint("username"),
    )

    @validates("username")
    def _fold(self, _key: str, value: object) -> object:
        return folded(value) if isinstance(value, str) else value  # what is no text is refused when it is bound


class AuthEvent(Base):
    """One thing that happened to an account or was tried with its name; appended, never changed.

    What was typed for a name is kept as its SHA-256 only, since a password is typed there now and then; `user_id` says
    whose account it was. `source` is where it came from, as the application tells, and `actor` who did it for another.
    """

    __tablename__ = "auth_events"

    event_id: Mapped[int] = mapped_column(Integer64(), Identity(always=True), primary_key=True)
    occurred_at: Mapped[datetime] = mapped_column(UtcDateTime(), server_default=func.clock_timestamp())
    kind: Mapped[str] = mapped_column(Text())
    reason: Mapped[str | None] = mapped_column(Text())
    user_id: Mapped[int | None] = mapped_column(Integer64(), ForeignKey("users.id"))
    name_digest: Mapped[bytes] = mapped_column(Bytes(_DIGEST_BYTES))
    source: Mapped[str | None] = mapped_column(Text(LABEL_RULE.max_length))
    actor: Mapped[str | None] = mapped_column(Text(LABEL_RULE.max_length))

    __table_args__ = (
        instant_check("occurred_at"),
        _one_of("kind", *get_args(AuthEventKind)),
        _one_of("reason", "unknown_name", "wrong_password", "inactive"),
        _digest_check("name_digest"),
        text_check("source", LABEL_RULE),
        text_check("actor", LABEL_RULE),
        Index("ix_auth_events_user_id_event_id", "user_id", "event_id"),
        Index("ix_auth_events_name_digest_event_id", "name_digest", "event_id"),
        Index("ix_auth_events_occurred_at", "occurred_at"),
    )


class LoginDelay(Base):
    """How often a login failed of late, and until when the next attempt has to wait.

    `bucket` is the SHA-256 of the folded name, or of the name and a source that is known for it.
    """

    __tablename__ = "login_delays"

    bucket: Mapped[bytes] = mapped_column(Bytes(_DIGEST_BYTES), primary_key=True)
    failures: Mapped[int] = mapped_column(Integer64())
    failed_at: Mapped[datetime] = mapped_column(UtcDateTime())
    waits_until: Mapped[datetime] = mapped_column(UtcDateTime())

    __table_args__ = (
        _digest_check("bucket"),
        CheckConstraint("failures >= 1", name="failures"),
        instant_check("failed_at"),
        instant_check("waits_until"),
        Index("ix_login_delays_failed_at", "failed_at"),
    )


class KnownSource(Base):
    """Where a user has logged in from, so that a stranger's failures do not hold up the user there."""

    __tablename__ = "known_sources"

    user_id: Mapped[int] = mapped_column(Integer64(), ForeignKey("users.id"), primary_key=True)
    source: Mapped[str] = mapped_column(Text(LABEL_RULE.max_length), primary_key=True)
    seen_at: Mapped[datetime] = mapped_column(UtcDateTime(), server_default=func.now())

    __table_args__ = (text_check("source", LABEL_RULE), instant_check("seen_at"))


class TradingSession(Base):
    """A user's session with a broker; one at most is active for each user and broker, and active is what has no `end_time`.

    `session_id` is made by the application, since it is part of what seals `credentials`, an envelope of
    `encryption.KeyRing`; nothing secret stands in `session_data`. Of the bearer's id, by which a client takes the session up
    again, the SHA-256 is kept and nothing else. A session without a broker is one with `paper`, which moves no money.
    """

    __tablename__ = "trading_sessions"

    session_id: Mapped[str] = mapped_column(
        Text(IDENTIFIER_RULE.max_length), primary_key=True, default=lambda: str(uuid4())
    )
    user_id: Mapped[int] = mapped_column(Integer64(), ForeignKey("users.id"), index=True)
    broker: Mapped[str] = mapped_column(Text(BROKER_RULE.max_length), server_default="paper")
    start_time: Mapped[datetime] = mapped_column(UtcDateTime(), server_default=func.now())
    end_time: Mapped[datetime | None] = mapped_column(UtcDateTime())
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime())
    is_active: Mapped[bool] = mapped_column(Boolean(), server_default=true())
    session_data: Mapped[SessionData] = mapped_column(Document(SessionData), server_default=text("'{}'"))
    credentials: Mapped[bytes | None] = mapped_column(Bytes(ENVELOPE_MAX_BYTES))
    bearer_hash: Mapped[bytes | None] = mapped_column(Bytes(_DIGEST_BYTES))
    end_reason: Mapped[str | None] = mapped_column(Text())
    last_seen_at: Mapped[datetime | None] = mapped_column(UtcDateTime())
    told_expiry: Mapped[datetime | None] = mapped_column(UtcDateTime())
    """The `expires_at` of which it was told that it nears: whoever sets another, by whatever way, has that one told too."""

    user: Mapped[User] = relationship(lazy="raise")

    __table_args__ = (
        text_check("session_id", IDENTIFIER_RULE),
        text_check("broker", BROKER_RULE),
        instant_check("start_time"),
        instant_check("end_time"),
        instant_check("expires_at"),
        object_check("session_data"),
        CheckConstraint("end_time >= start_time", name="period"),
        CheckConstraint("expires_at > start_time", name="lifetime"),
        CheckConstraint("is_active = (end_time IS NULL)", name="is_active"),
        _digest_check("bearer_hash"),
        CheckConstraint(
            f"end_reason IN {get_args(EndReason)!r} AND (end_reason IS NULL OR end_time IS NOT NULL)",
            name="end_reason",
        ),
        instant_check("last_seen_at"),
        instant_check("told_expiry"),
        CheckConstraint(
            rf"substring(credentials, 1, 1) = '\x01' AND octet_length(credentials) BETWEEN 31 AND {ENVELOPE_MAX_BYTES}",
            name="credentials",
        ),
        Index("uq_trading_sessions_bearer_hash", "bearer_hash", unique=True),
        Index("uq_trading_sessions_active", "user_id", "broker", unique=True, postgresql_where=text("is_active")),
        Index("ix_trading_sessions_expires_at", "expires_at", postgresql_where=text("is_active")),
    )
