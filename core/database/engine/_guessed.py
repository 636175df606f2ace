"""Passwords that anybody would try first."""

import re

from core.config.options import Environment
from core.database.engine._url import DatabaseUrl
from core.database.errors import ConfigurationError

_SHORTEST = 8
_FEW = 4  # different characters
_SHORT_NUMBER = 16  # digits
_WORDS = frozenset(
    {
        "pass", "password", "passwd", "pw", "pwd", "postgres", "postgresql", "pg", "psql", "sql", "secret", "change", "changeme",
        "me", "my", "the", "your", "admin", "administrator", "root", "super", "user", "test", "testing", "example", "default",
        "dev", "development", "stage", "staging", "prod", "production", "local", "localhost", "host", "server", "database",
        "db", "docker", "app", "application", "panda", "alpha", "core", "trade", "trader", "trading", "paper", "zerodha", "kite",
        "upstox", "qwerty", "letmein", "let", "in", "welcome", "login", "guest", "hello", "world", "iloveyou", "monkey", "dragon",
        "master", "sunshine", "football", "abc", "new", "temp", "temporary", "demo", "is", "to", "and",
    }
)  # fmt: skip
_ROWS = (
    "abcdefghijklmnopqrstuvwxyz",
    "qwertyuiopasdfghjklzxcvbnm",
    "1234567890",
    "1q2w3e4r5t6y7u8i9o0p",
    "1qaz2wsx3edc4rfv",
)
_NO_LETTERS = re.compile(r"[\W\d_]+")
_LOOKALIKES = str.maketrans("@4031!5$7", "aaoeiisst")


def is_guessed(url: DatabaseUrl) -> bool:
    """Whether the password in the URL is short, a row or few of the keys, or made of usual words, the user's and the database's
    names, whatever digits and signs stand around and between.
    """
    return url.password is not None and _is_guessed(url.password.casefold(), _names(url))


def _is_guessed(plain: str, names: frozenset[str]) -> bool:
    if len(plain) < _SHORTEST or len(set(plain)) < _FEW or (plain.isdigit() and len(plain) < _SHORT_NUMBER):
        return True
    if any(plain in row or plain in row[::-1] for row in _ROWS):
        return True
    return any(_made_of(form, _WORDS | names) for form in (plain, plain.translate(_LOOKALIKES)))


def _made_of(text: str, words: frozenset[str]) -> bool:
    """Whether the letters of the text are words one after another; in time that grows with the length alone."""
    letters = _NO_LETTERS.sub("", text)
    longest = max(map(len, words))
    ends = {0}
    for end in range(1, len(letters) + 1):
        if any(start in ends and letters[start:end] in words for start in range(max(0, end - longest), end)):
            ends.add(end)
    return bool(letters) and len(letters) in ends


def _names(url: DatabaseUrl) -> frozenset[str]:
    """The user's and the database's, and the words that they are made of."""
    names = [name.casefold() for name in (url.user, url.database) if name]
    return frozenset(part for name in names for part in (*_NO_LETTERS.split(name), _NO_LETTERS.sub("", name)) if part)


def refuse_guessed(url: DatabaseUrl, environment: Environment) -> None:
    """Raise `ConfigurationError` for such a password, that of the default URL among them, where money is real."""
    if environment in ("staging", "production") and is_guessed(url):
        raise ConfigurationError(
            f"the password in the URL is one that anybody would try first, or too short, which {environment} refuses",
            hint="ALTER ROLE ... PASSWORD with a random one, then set it in DATABASE__POSTGRES_URL.",
        )
