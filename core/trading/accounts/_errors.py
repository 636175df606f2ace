"""What accounts refuse."""

from typing import Any

from core.database.errors import PandaDatabaseError


class InvalidCredentials(PandaDatabaseError):
    """The login is refused. Nothing in it tells an unknown name from a wrong password or an account that is disabled."""


class TooManyAttempts(PandaDatabaseError):
    """Logins with this name have failed too often of late; the password was not looked at.

    `retry_after` is seconds; until then every attempt gets this, and none makes the wait longer.
    """

    mend = "Wait, or have an administrator lift it by `panda user unlock`."

    def __init__(self, message: str, *, retry_after: float = 0.0, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, (cls, message, fields) = super().__reduce__()
        return rebuild, (cls, message, {**fields, "retry_after": self.retry_after})


class UserNotFound(PandaDatabaseError, LookupError):
    """There is no user of that id or name."""

    mend = "`panda user list` shows those there are."
