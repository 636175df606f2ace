"""Passwords that anybody would try first."""

from core.config.options import Environment
from core.database.engine._url import DatabaseUrl
from core.database.errors import ConfigurationError

_GUESSED = frozenset(
    {
        "", "pass", "password", "passwd", "postgres", "postgresql", "secret", "changeme", "change_me", "admin", "root",
        "test", "example", "default", "panda", "alpha_panda", "alphapanda", "trader", "1234", "12345", "123456",
        "12345678", "123456789", "qwerty", "letmein",
    }
)  # fmt: skip


def is_guessed(url: DatabaseUrl) -> bool:
    """Whether the password in the URL is a usual one, or the user's or the database's name."""
    if url.password is None:
        return False
    plain = url.password.lower()
    return plain in _GUESSED or plain in {(url.user or "").lower(), (url.database or "").lower()}


def refuse_guessed(url: DatabaseUrl, environment: Environment) -> None:
    """Raise `ConfigurationError` for such a password, that of the default URL among them, where money is real."""
    if environment in ("staging", "production") and is_guessed(url):
        raise ConfigurationError(
            f"the password in the URL is one that anybody would try first, which {environment} refuses",
            hint="ALTER ROLE ... PASSWORD with a random one, then set it in DATABASE__POSTGRES_URL.",
        )
