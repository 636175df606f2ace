"""A migration that failed, in words that say how to go on."""

from collections.abc import Sequence
from typing import Literal

from sqlalchemy.exc import SQLAlchemyError

from core.database.errors import (
    LockTimeout,
    MigrationFailed,
    PandaDatabaseError,
    SchemaError,
    StatementTimeout,
    translate,
)
from core.database.schema._scripts import Revision
from core.database.schema._watch import Blocker


def failed(what: str, error: Exception, revision: Revision, blockers: Sequence[Blocker] = ()) -> MigrationFailed:
    """The error for `error`, which ended `what`; `blockers` are those that it waited for last."""
    found = translate(error)
    hint = "Mend the cause and run the command again; `panda migrate history` lists the revisions."
    if isinstance(found, LockTimeout):
        hint = _lock_hint(revision, blockers)
    elif isinstance(found, StatementTimeout):
        setting = _setting(revision, "statement_timeout", "DATABASE__TIMEOUTS__MIGRATION")
        waited = f"It waited for {', '.join(map(str, blockers))}. " if blockers else ""
        hint = f"{waited}A statement took too long: raise {setting} and run it again."
    elif isinstance(found, SchemaError) and found.hint:
        hint = found.hint
    return MigrationFailed(
        f"{what}: {_cause(found, error)}",
        hint=hint,
        sqlstate=found.sqlstate if found else None,
        revision=revision.revision,
    )


def _lock_hint(revision: Revision, blockers: Sequence[Blocker]) -> str:
    raised = f"raise {_setting(revision, 'lock_timeout', 'DATABASE__TIMEOUTS__LOCK')}"
    if not blockers:
        return f"Other transactions hold a table: run it again when they have ended, or {raised}."
    ends = ", ".join(f"SELECT pg_terminate_backend({item.process})" for item in blockers)
    who = ", ".join(map(str, blockers))
    return f"It waited for {who}. Run it again when that has ended, end it ({ends}), or {raised}."


def _setting(revision: Revision, name: Literal["lock_timeout", "statement_timeout"], setting: str) -> str:
    return setting if getattr(revision, name) is None else f"{name} in {revision.file}"


def _cause(found: PandaDatabaseError | None, error: Exception) -> str:
    if found is not None:
        return found.message
    return (str(error) if not isinstance(error, SQLAlchemyError) else "") or type(error).__name__
