"""What the server and the driver report, and misuse; the tree is drawn in the package's docstring."""

from collections.abc import Sequence
from typing import Any, ClassVar

from sqlalchemy import exc as sa

from core.printable import printable

_LONGEST, _END = 1_500, 300
_FIELDS = ("hint", "lines", "sqlstate", "constraint", "table", "column")


class PandaDatabaseError(sa.SQLAlchemyError):
    """What every error of the persistence layer is.

    `message` says what happened, `lines` what a program said of it, and `hint` how to mend it; `str()` joins them on one
    line. What they quote of others is made printable, so that no log line can be forged by it. `sqlstate`, `constraint`,
    `table` and `column` are the server's identifiers where it gave them. No statement parameter is kept anywhere.
    """

    retryable: ClassVar[bool] = False
    """Whether the whole unit of work may be run again as it is."""
    mend: ClassVar[str | None] = None
    """The hint of a class, where the raiser gives none."""

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        lines: Sequence[str] = (),
        sqlstate: str | None = None,
        constraint: str | None = None,
        table: str | None = None,
        column: str | None = None,
    ) -> None:
        self.message = _told(message)
        Exception.__init__(self, self.message)
        self.hint = self.mend if hint is None else _told(hint)
        self.lines = tuple(map(_told, lines))
        self.sqlstate = sqlstate
        self.constraint = None if constraint is None else _told(constraint)
        self.table = None if table is None else _told(table)
        self.column = None if column is None else _told(column)
        # The attributes of the SQLAlchemy classes that the subclasses stand for; their constructors are not run.
        self.code = None
        self.detail: list[str] = []
        self.statement: Any = None
        self.params: Any = None
        self.orig: Any = None
        self.ismulti = False
        self.hide_parameters = True
        self.connection_invalidated = False

    def __str__(self) -> str:
        text = f"{self.message}: {' | '.join(self.lines)}" if self.lines else self.message
        if not self.hint:
            return text
        stop = "" if text.endswith((".", "!", "?", ":")) else "."
        return f"{text}{stop} {self.hint}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, {name: getattr(self, name) for name in _FIELDS})


def _told(text: str) -> str:
    """Printable, and without the middle where somebody's value would make it endless."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - _END]} ... {text[-_END:]}"
    return printable(text)


def _rebuild(cls: type[PandaDatabaseError], message: str, fields: dict[str, Any]) -> PandaDatabaseError:
    return cls(message, **fields)


class ConfigurationError(PandaDatabaseError, sa.ArgumentError, ValueError):
    """An option that cannot work, found before anything is sent."""


class InvalidUrl(ConfigurationError):
    """A database URL that cannot be used. The text never repeats a password."""


class ConnectionFailed(PandaDatabaseError, sa.OperationalError, ConnectionError):
    """No connection could be made or kept."""


class AuthenticationFailed(ConnectionFailed):
    mend = "Check the user name and password in the URL and the server's pg_hba.conf."


class DatabaseNotFound(ConnectionFailed):
    mend = "Create it with `createdb`, or correct the name at the end of the URL."


class HostUnreachable(ConnectionFailed):
    retryable = True
    mend = "Start the server, or correct the host and port in the URL."


class TlsRefused(ConnectionFailed):
    mend = "Check sslmode, the authority's file and the name in the server's certificate."


class ConnectTimeout(ConnectionFailed):
    retryable = True
    mend = "Check the host and the network, or raise the connect limit (DATABASE__TIMEOUTS__CONNECT)."


class TooManyConnections(ConnectionFailed):
    retryable = True
    mend = "Lower the pool size (DATABASE__POOL__SIZE) or raise max_connections on the server."


class ServerStarting(ConnectionFailed):
    retryable = True
    mend = "The server is starting or shutting down; try again in a moment (`panda wait`)."


class ConnectionLost(ConnectionFailed):
    """The connection broke before COMMIT was sent: nothing of the transaction is stored."""

    retryable = True


class IdleInTransactionTimeout(ConnectionLost):
    retryable = False
    mend = "Do slow work outside the transaction, or raise DATABASE__TIMEOUTS__IDLE_IN_TRANSACTION."


class PrimaryDemoted(ConnectionFailed):
    """A write reached a server that is no longer the primary; its connection is discarded."""

    retryable = True


class PoolExhausted(PandaDatabaseError, sa.TimeoutError):
    mend = "Close sessions sooner, or raise DATABASE__POOL__SIZE (the server's max_connections bounds it)."


class StatementTimeout(PandaDatabaseError, sa.OperationalError):
    """The server cancelled the statement: statement_timeout, or an administrator's cancel (the SQLSTATE is the same)."""

    mend = "Make the statement cheaper, or raise DATABASE__TIMEOUTS__STATEMENT for work that is meant to be long."


class LockTimeout(PandaDatabaseError, sa.OperationalError):
    mend = "Another transaction holds the lock; try again, or raise DATABASE__TIMEOUTS__LOCK."


class TransactionTimeout(ConnectionLost):
    retryable = False
    mend = "Make the transaction shorter, or raise transaction_timeout on the server."


class SerializationFailure(PandaDatabaseError, sa.OperationalError):
    retryable = True
    mend = "Run the whole transaction again; `run_transaction` does."


class DeadlockDetected(PandaDatabaseError, sa.OperationalError):
    retryable = True
    mend = "Run the whole transaction again; `run_transaction` does. Take locks in one order."


class StalePlan(PandaDatabaseError, sa.NotSupportedError):
    """A table changed under a prepared statement; the caches are refreshed and the unit may run again."""

    retryable = True


class TransactionAborted(PandaDatabaseError, sa.PendingRollbackError):
    """An earlier error ended this transaction: nothing of it is stored and it can only be rolled back."""

    mend = "Roll back and run the whole transaction again; wrap what may fail in `session.begin_nested()`."


class CommitOutcomeUnknown(PandaDatabaseError, sa.OperationalError):
    """The connection was lost after COMMIT was sent: the transaction is stored whole or not at all."""

    mend = "Read the rows back by a key of your own before writing again; a blind retry may store them twice."


class IntegrityViolation(PandaDatabaseError, sa.IntegrityError):
    """A constraint refused the row; `constraint` names it."""


class UniqueViolation(IntegrityViolation):
    """A row with this key exists."""


class ForeignKeyViolation(IntegrityViolation):
    """The row that is pointed at does not exist, or is still pointed at."""


class CheckViolation(IntegrityViolation):
    """A rule of the table refused a value."""


class NotNullViolation(IntegrityViolation):
    """A value that must be given is missing; `column` names it."""


class ExclusionViolation(IntegrityViolation):
    """The row conflicts with another under an exclusion constraint."""


class PartitionMissing(IntegrityViolation):
    mend = (
        "Make the months first: `panda portfolio partitions --ensure FROM..TO` or `--ahead 3`, in Python"
        " core.trading.portfolios.ensure_partitions()."
    )


class InvalidInput(PandaDatabaseError, sa.DataError, ValueError):
    """A value that the database cannot or must not hold; `column` names the field where it is known."""


class ReadOnlyViolation(PandaDatabaseError, sa.OperationalError):
    mend = "Write through `get_session()` or `transaction()`, not through a read-only session."


class PermissionDenied(PandaDatabaseError, sa.ProgrammingError):
    mend = "Grant the role what it needs, or connect as another role."


class StatementFault(PandaDatabaseError, sa.ProgrammingError):
    """The statement itself is wrong: its syntax, a name, a type, or the moment it was sent."""


class UnsupportedFeature(PandaDatabaseError, sa.NotSupportedError):
    """The server cannot do this."""


class ResourceExhausted(PandaDatabaseError, sa.OperationalError):
    """The server ran out of something."""


class DiskFull(ResourceExhausted):
    mend = "Free space on the server's disk; reads still work."


class ServerFault(PandaDatabaseError, sa.InternalError):
    """The server failed inside, or raised an error of its own or of a function's."""


class SessionMisuse(PandaDatabaseError, sa.InvalidRequestError):
    """A session or manager was used in a way that would corrupt it; nothing was sent."""


class SessionShared(SessionMisuse):
    mend = "Open a session in each task; sessions are cheap."


class WrongEventLoop(SessionMisuse):
    mend = "Make one DatabaseManager for each event loop."


class ForkedProcess(SessionMisuse):
    mend = "Connect after the fork: make the DatabaseManager in the child."


class ManagerNotConnected(SessionMisuse):
    mend = "Call `await manager.connect()` first, or use `async with manager:`."
