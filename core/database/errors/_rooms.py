"""What single rooms refuse: the schema, the keys, the built-in server, backups, the history of portfolios."""

from typing import Any

from core.database.errors._tree import ConfigurationError, PandaDatabaseError, SessionMisuse, UniqueViolation


class SchemaError(PandaDatabaseError):
    """The database's schema is not the one that this release works with."""


class SchemaMissing(SchemaError):
    mend = "Create it with `panda migrate upgrade`."


class SchemaUnstamped(SchemaError):
    """Our tables are there, but nothing says at which revision."""


class SchemaBehind(SchemaError):
    mend = "Bring it to head with `panda migrate upgrade`."


class SchemaAhead(SchemaError):
    mend = "Upgrade the application to the release that migrated this database."


class SchemaUnknownRevision(SchemaError):
    mend = "Check that the URL names the right database; its revision is none of this project's."


class SchemaMultipleHeads(SchemaError):
    """More than one revision is stamped, or the migration files have more than one head."""


class SchemaTablesMissing(SchemaError):
    """A revision is stamped but its tables are not all there."""


class SchemaLockTimeout(SchemaError):
    mend = "Another process is migrating; wait for it, or raise DATABASE__TIMEOUTS__MIGRATION_LOCK."


class MigrationFailed(SchemaError):
    """A migration failed and was rolled back; the database is at the revision before it.

    `revision` is the migration's id; None where several were under way, as in a preview.
    """

    def __init__(self, message: str, *, revision: str | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.revision = revision

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, (cls, message, fields) = super().__reduce__()
        return rebuild, (cls, message, {**fields, "revision": self.revision})


class IsolationUnavailable(ConfigurationError):
    """A broker's session cannot be opened: the restricted role is missing, or may not be taken."""

    mend = "`panda roles plan` says what is missing and prints its SQL; `panda roles apply` runs it."


class EncryptionError(PandaDatabaseError):
    """A secret could not be sealed or opened."""


class UnknownKey(EncryptionError):
    mend = "Add the key with this id to DATABASE__ENCRYPTION_KEYS."


class EnvelopeTampered(EncryptionError):
    """The envelope is damaged, or was sealed for another row."""


class InvalidKey(EncryptionError):
    mend = "A key is 32 random bytes in base64, written id:key."


class EmbeddedServerError(PandaDatabaseError):
    """The built-in PostgreSQL could not be started, used or stopped."""


class BackupError(PandaDatabaseError):
    """A backup could not be made, read or restored. What was there before is as it was."""


class BackupRefused(BackupError, ConfigurationError):
    """The file, the database or the programs at hand do not allow it; nothing was begun."""


class BackupDamaged(BackupError, ValueError):
    """The file is not a whole backup: cut off, altered, or something else."""

    mend = "Take another copy of it or an older backup; `panda verify-backup FILE` checks one."


class BackupDiffers(BackupError):
    """What was restored is not what the backup says it holds; it was rolled back."""


class BackupToolFailed(BackupError):
    """pg_dump or pg_restore failed; its own words are in the message."""


class SnapshotConflict(UniqueViolation):
    """The portfolio has another snapshot of that time; `differing` names the columns that are not the same."""

    mend = "A snapshot is never changed: record what is right under a time of its own, or find out who wrote the other."

    def __init__(self, message: str, *, differing: tuple[str, ...] = (), **fields: Any) -> None:
        super().__init__(message, **fields)
        self.differing = differing

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, (cls, message, fields) = super().__reduce__()
        return rebuild, (cls, message, {**fields, "differing": self.differing})


class WriterClosed(SessionMisuse):
    """The snapshot writer is not open, or was closed before it came to this row: nothing of the row is stored."""


class WriterOverloaded(PandaDatabaseError):
    """The snapshot writer did not come to this row within its deadline: nothing of the row is stored."""

    retryable = True
    mend = "Write less often, or let the writer make larger batches (max_batch) or wait longer (deadline)."
