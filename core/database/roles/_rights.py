"""The roles' names, and what each may: tables, columns, nothing else."""

import re
from dataclasses import dataclass
from typing import Final

from core.database.models import RESTRICTED_RIGHTS, RESTRICTED_ROLE, Base

APPLICATION_ROLE: Final = "panda_application"
READER_ROLE: Final = "panda_reader"

_SECRETS = frozenset({"hashed_password", "credentials", "envelope", "bearer_hash", "name_digest", "bucket"})
"""Columns that the reader may not read, sealed or hashed as they are; of a name that was typed it may be a password."""
APPENDED = frozenset({"auth_events"})
"""Tables that the application adds to, and never changes."""
_CLOSED_TO_READER = frozenset({"encryption_canaries"})
RIGHT = re.compile(r"(\w+)(?: \(([^)]*)\))?")
"""One right in a text as GRANT writes them: its word, and its columns if it has some."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleStep:
    """One statement that is still to be run."""

    role: str
    why: str
    sql: str
    """Without its semicolon."""
    allowed: bool
    """The role that we are connected as may run it."""


def rights_of(application: str, reader: str) -> dict[str, dict[str, str]]:
    """By role and table, as GRANT writes them."""
    tables = Base.metadata.tables
    readable: dict[str, str] = {}
    for name, table in sorted(tables.items()):
        secret = any(column.name in _SECRETS for column in table.columns)
        shown = ", ".join(column.name for column in table.columns if column.name not in _SECRETS)
        readable[name] = f"SELECT ({shown})" if secret else "SELECT"
    stamp = {"alembic_version": "SELECT"}
    return {
        RESTRICTED_ROLE: dict(RESTRICTED_RIGHTS) | stamp,
        application: {
            name: "SELECT, INSERT" if name in APPENDED else "SELECT, INSERT, UPDATE, DELETE" for name in sorted(tables)
        }
        | stamp,
        reader: {name: text_ for name, text_ in readable.items() if name not in _CLOSED_TO_READER} | stamp,
    }
