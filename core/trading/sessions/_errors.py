"""Why a trading session cannot be opened or taken up. That the database is away is none of these: it is `ConnectionFailed`."""

from datetime import datetime
from typing import Any, Literal, TypeAlias

from core.database.errors import PandaDatabaseError

RevokedReason: TypeAlias = Literal["replaced", "ended", "revoked"]


class TradingSessionError(PandaDatabaseError):
    """The user has no such session to work with, or may have none."""

    mend = "Log in to the broker anew and open another session."


class SessionNotFound(TradingSessionError):
    """There never was such a session, as far as whoever asks may see."""


class SessionExpired(TradingSessionError):
    """The broker's login has come to its end; `expired_at` says when."""

    def __init__(self, message: str, *, expired_at: datetime | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.expired_at = expired_at

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, (cls, message, fields) = super().__reduce__()
        return rebuild, (cls, message, {**fields, "expired_at": self.expired_at})


class SessionRevoked(TradingSessionError):
    """Somebody ended it: the user (`ended`), a newer session with that broker (`replaced`), or whoever may (`revoked`).

    A session whose user has been disabled is `revoked`, whether or not its row says so.
    """

    def __init__(self, message: str, *, reason: RevokedReason = "revoked", **fields: Any) -> None:
        super().__init__(message, **fields)
        self.reason: RevokedReason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, (cls, message, fields) = super().__reduce__()
        return rebuild, (cls, message, {**fields, "reason": self.reason})


class UserDisabled(TradingSessionError):
    """The user may not open a session."""

    mend = "Enable the user first, if that is meant to be."
