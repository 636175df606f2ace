"""Users and their trading sessions."""

from datetime import UTC, datetime
from typing import Literal, Self, TypeAlias
from uuid import uuid4

from pydantic import Field, model_validator

from core.database.errors import InvalidInput
from core.database.records._base import ReadRecord, Record
from core.database.records._documents import SessionData
from core.database.records._values import AwareUtc, BrokerName, Identifier, PasswordHash, UserId, Username


def _now() -> datetime:
    return datetime.now(UTC)


def _new_id() -> str:
    return str(uuid4())


class UserCreate(Record):
    username: Username
    hashed_password: PasswordHash
    is_active: bool = True


class UserRead(ReadRecord):
    """A user without the password's hash."""

    id: UserId
    username: Username
    is_active: bool
    created_at: AwareUtc
    updated_at: AwareUtc


EndReason: TypeAlias = Literal["replaced", "ended", "revoked", "expired"]
AuthEventKind: TypeAlias = Literal[
    "registered",
    "login",
    "login_refused",
    "login_delayed",
    "password_changed",
    "password_reset",
    "disabled",
    "enabled",
    "unlocked",
]


class TradingSessionCreate(Record):
    """A session as it is opened. Credentials are sealed for its `session_id` and set on the model, never here."""

    session_id: Identifier = Field(default_factory=_new_id)
    user_id: UserId
    broker: BrokerName
    start_time: AwareUtc = Field(default_factory=_now)
    expires_at: AwareUtc | None = None
    session_data: SessionData = Field(default_factory=SessionData)

    @model_validator(mode="after")
    def _lifetime(self) -> Self:
        if self.expires_at is not None and self.expires_at <= self.start_time:
            raise InvalidInput("expires_at must be after start_time")
        return self


class TradingSessionRead(ReadRecord):
    """A session without its credentials."""

    session_id: Identifier
    user_id: UserId
    broker: BrokerName
    start_time: AwareUtc
    end_time: AwareUtc | None
    expires_at: AwareUtc | None
    is_active: bool
    session_data: SessionData
    end_reason: EndReason | None
    last_seen_at: AwareUtc | None
