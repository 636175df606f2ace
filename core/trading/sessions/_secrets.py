"""Sealing and opening credentials: this room alone does it."""

from collections.abc import Mapping
from typing import Any, cast

from core.database.encryption import KeyRing
from core.database.errors import ConfigurationError, InvalidInput, forgets
from core.database.models import TradingSession
from core.trading._secret_names import is_secret_name
from core.trading.sessions._bearer import holds_bearer

TABLE, COLUMN = TradingSession.__tablename__, "credentials"
_SHORTEST = 8
"""Of credentials that are looked for: what is shorter may well stand among the notes by chance."""


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


@forgets
def refuse_in_notes(notes: Mapping[str, Any], credentials: str | None) -> None:
    """Raise `InvalidInput` for a text in `session_data` whose name speaks of a secret, for a bearer, and for the credentials."""
    sought = credentials if isinstance(credentials, str) and len(credentials) >= _SHORTEST else None

    def is_secret(text: str) -> bool:
        return holds_bearer(text) or (sought is not None and sought in text)

    todo: list[tuple[str, bool, Any]] = [("", False, notes)]
    while todo:
        path, is_named, value = todo.pop()
        if isinstance(value, list):
            todo += [(path, is_named, member) for member in cast("list[Any]", value)]
        elif isinstance(value, dict):
            members = cast("dict[str, Any]", value)
            if any(map(is_secret, members)):
                raise _in_clear(path or "a name")
            todo += [
                (f"{path}.{name}" if path else name, is_named or is_secret_name(name), member)
                for name, member in members.items()
            ]
        elif isinstance(value, str) and value and (is_named or is_secret(value)):
            raise _in_clear(path)


def _in_clear(path: str) -> InvalidInput:
    return InvalidInput(
        f"session_data: {path!r} looks like a secret, which would be stored in the clear",
        hint="Give it as `credentials`, which are sealed; if it is none, under another name.",
        column="session_data",
    )
