"""Sealing and opening credentials: this room alone does it."""

from core.database.encryption import KeyRing
from core.database.errors import ConfigurationError, forgets
from core.database.models import TradingSession

TABLE, COLUMN = TradingSession.__tablename__, "credentials"


def credentials_of(opened: TradingSession, *, ring: KeyRing) -> str | None:
    """The session's credentials in clear; None if it has none. Raises `UnknownKey` or `EnvelopeTampered`."""
    if opened.credentials is None:
        return None
    return ring.open_text(opened.credentials, table=TABLE, column=COLUMN, row_key=opened.session_id)


@forgets
def seal_credentials(credentials: str, *, session_id: str, ring: KeyRing) -> bytes:
    """An envelope of `credentials` for the row of that id and no other, for who writes many rows at once.

    The caller calls `keep_canary` in the transaction that stores it.
    """
    return ring.seal(credentials, table=TABLE, column=COLUMN, row_key=session_id)


def refuse_in_clear(credentials: str | None, ring: KeyRing | None) -> None:
    """Raise `ConfigurationError` for credentials that could not be sealed."""
    if credentials is not None and ring is None:
        raise ConfigurationError("credentials are only stored sealed", hint="Give a KeyRing as `ring`.")
