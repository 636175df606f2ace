"""What a client presents to take its session up again: random, shown once, stored as a hash only."""

import hashlib
import re
import secrets

_PREFIX = "panda_session_"
"""By which a scanner of logs and repositories knows it for what it is."""
_RANDOM_BYTES = 32
_FORM = re.compile(_PREFIX + "[A-Za-z0-9_-]{43}")


def new_bearer() -> str:
    """256 random bits in base64url behind the prefix."""
    return _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def bearer_hash(bearer: object) -> bytes | None:
    """Its SHA-256, by which it is looked up; None of what no bearer of ours can be.

    Of so many random bits a plain hash is as good as a slow one. What an index lookup may tell by its time is a prefix of
    the hash, from which nobody comes to a bearer.
    """
    if not isinstance(bearer, str) or _FORM.fullmatch(bearer) is None:
        return None
    return hashlib.sha256(bearer.encode()).digest()


def holds_bearer(text: str) -> bool:
    """Whether a bearer of ours stands in it."""
    return _FORM.search(text) is not None
