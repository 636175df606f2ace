"""Users and their trading sessions."""

from datetime import datetime
from uuid import uuid4

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, UniqueConstraint, func, text, true
from sqlalchemy.orm import Mapped, mapped_column, relationship

from core.database.models._base import Base, instant_check, now, object_check, text_check
from core.database.records import BROKER_RULE, IDENTIFIER_RULE, PASSWORD_HASH_RULE, USERNAME_RULE, SessionData
from core.database.types import Boolean, Bytes, Document, Integer64, Text, UtcDateTime

ENVELOPE_MAX_BYTES = 65_536


class User(Base):
    """An account. `username` is kept as given; two that differ only in the case of ASCII letters cannot both exist."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(Integer64(), Identity(), primary_key=True)
    username: Mapped[str] = mapped_column(Text(USERNAME_RULE.max_length))
    hashed_password: Mapped[str] = mapped_column(Text(PASSWORD_HASH_RULE.max_length))
    is_active: Mapped[bool] = mapped_column(Boolean(), server_default=true())
    created_at: Mapped[datetime] = mapped_column(UtcDateTime(), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime(), server_default=func.now(), onupdate=now)

    __table_args__ = (
        text_check("username", USERNAME_RULE),
        text_check("hashed_password", PASSWORD_HASH_RULE),
        instant_check("created_at"),
        instant_check("updated_at"),
        UniqueConstraint("username"),
        Index("uq_users_username_lower", func.lower(username), unique=True),
    )


class TradingSession(Base):
    """A user's session with a broker; one at most is active for each user and broker, and active is what has no `end_time`.

    `session_id` is made by the application, since it is part of what seals `credentials`, an envelope of
    `encryption.KeyRing`; nothing secret stands in `session_data`. A session without a broker is one with `paper`, which
    moves no money.
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
        CheckConstraint(
            rf"substring(credentials, 1, 1) = '\x01' AND octet_length(credentials) BETWEEN 31 AND {ENVELOPE_MAX_BYTES}",
            name="credentials",
        ),
        Index("uq_trading_sessions_active", "user_id", "broker", unique=True, postgresql_where=text("is_active")),
        Index("ix_trading_sessions_expires_at", "expires_at", postgresql_where=text("is_active")),
    )
