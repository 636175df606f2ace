"""From a foreign exception to one of ours, by SQLSTATE, constraint name and type; never by message text."""

import os
import socket
import ssl
from typing import Any, Literal

from sqlalchemy import exc as sa

from core.database.errors import _tree as tree
from core.database.errors._forget import arose_below, causes, is_driver_error, plain, scrub, speaks
from core.database.errors._tree import PandaDatabaseError

Phase = Literal["connect", "statement", "commit"]

_BY_SQLSTATE: dict[str, type[PandaDatabaseError]] = {
    "08001": tree.HostUnreachable,
    "08004": tree.ConnectionFailed,
    "23502": tree.NotNullViolation,
    "23503": tree.ForeignKeyViolation,
    "23505": tree.UniqueViolation,
    "23514": tree.CheckViolation,
    "23P01": tree.ExclusionViolation,
    "25006": tree.PrimaryDemoted,
    "25P02": tree.TransactionAborted,
    "25P03": tree.IdleInTransactionTimeout,
    "25P04": tree.TransactionTimeout,
    "40002": tree.IntegrityViolation,
    "40003": tree.CommitOutcomeUnknown,
    "40P01": tree.DeadlockDetected,
    "42501": tree.PermissionDenied,
    "53100": tree.DiskFull,
    "53300": tree.TooManyConnections,
    "55P03": tree.LockTimeout,
    "57014": tree.StatementTimeout,
    "57P03": tree.ServerStarting,
    "57P04": tree.DatabaseNotFound,
}

_BY_CLASS: dict[str, type[PandaDatabaseError]] = {
    "01": tree.ServerFault,
    "02": tree.ServerFault,
    "03": tree.StatementFault,
    "08": tree.ConnectionLost,
    "09": tree.ServerFault,
    "0A": tree.UnsupportedFeature,
    "0B": tree.StatementFault,
    "0F": tree.StatementFault,
    "0L": tree.PermissionDenied,
    "0P": tree.PermissionDenied,
    "0Z": tree.ServerFault,
    "10": tree.StatementFault,
    "20": tree.StatementFault,
    "21": tree.StatementFault,
    "22": tree.InvalidInput,
    "23": tree.IntegrityViolation,
    "24": tree.StatementFault,
    "25": tree.StatementFault,
    "26": tree.StatementFault,
    "27": tree.IntegrityViolation,
    "28": tree.AuthenticationFailed,
    "2B": tree.StatementFault,
    "2D": tree.StatementFault,
    "2F": tree.ServerFault,
    "34": tree.StatementFault,
    "38": tree.ServerFault,
    "39": tree.ServerFault,
    "3B": tree.StatementFault,
    "3D": tree.DatabaseNotFound,
    "3F": tree.StatementFault,
    "40": tree.SerializationFailure,
    "42": tree.StatementFault,
    "44": tree.IntegrityViolation,
    "53": tree.ResourceExhausted,
    "54": tree.StatementFault,
    "55": tree.StatementFault,
    "57": tree.ConnectionLost,
    "58": tree.ServerFault,
    "72": tree.ServerFault,
    "F0": tree.ConfigurationError,
    "HV": tree.ServerFault,
    "P0": tree.ServerFault,
    "XX": tree.ServerFault,
}

# The driver's own errors, which have no SQLSTATE, by the name of the class: only the driver room imports it.
_BY_NAME: dict[str, type[PandaDatabaseError]] = {
    "ClientConfigurationError": tree.ConfigurationError,
    "InternalClientError": tree.ServerFault,
    "InterfaceError": tree.StatementFault,
    "InvalidCachedStatementError": tree.StalePlan,
    "OutdatedSchemaCacheError": tree.StalePlan,
    "ProtocolError": tree.ConnectionLost,
    "TargetServerAttributeNotMatched": tree.HostUnreachable,
    "UnsupportedClientFeatureError": tree.UnsupportedFeature,
    "UnsupportedServerFeatureError": tree.UnsupportedFeature,
}

_OTHER_TABLES = "Mend the name; if it is right, `panda migrate check` says what the database lacks."
_HINTS = {"42703": _OTHER_TABLES, "42P01": _OTHER_TABLES}


def translate(
    error: BaseException, *, phase: Phase = "statement", read_only: bool = False, disconnected: bool = False
) -> PandaDatabaseError | None:
    """Our error for a foreign one, or None where it is not the database's (cancellation, no result found, a bug).

    `error` is scrubbed on the way. `phase` says what was under way: a connection lost during `commit` is
    `CommitOutcomeUnknown`. `read_only` tells a forbidden write from a demoted primary. `disconnected` says that the
    connection is gone, whatever the error calls itself.
    """
    if isinstance(error, PandaDatabaseError):
        return error
    for current in causes(error):
        if isinstance(current, PandaDatabaseError):
            return current
    found = _foreign(error) if isinstance(error, sa.SQLAlchemyError) else None
    if found is None:
        found = _driver(error, phase=phase, read_only=read_only, disconnected=disconnected)
    if found is None and isinstance(error, UnicodeEncodeError) and arose_below(error):
        return tree.StatementFault("the statement's text holds a lone surrogate, which is not text")
    if found is None and (phase == "connect" or disconnected) and isinstance(error, OSError):
        found = _network(error, phase)
    if found is not None:
        scrub(error)
        found.orig = error.orig if isinstance(error, sa.StatementError) else error
        found.connection_invalidated = disconnected
    return found


def _foreign(error: sa.SQLAlchemyError) -> PandaDatabaseError | None:
    """SQLAlchemy's own errors, which come from no driver."""
    if isinstance(error, sa.TimeoutError):
        return tree.PoolExhausted("every connection of the pool is in use and none came back in time")
    if isinstance(error, sa.PendingRollbackError):
        return tree.TransactionAborted("an earlier error ended this transaction")
    if isinstance(error, sa.StatementError) and not isinstance(error, sa.DBAPIError):
        return tree.InvalidInput(f"a value could not be prepared for the database ({type(error.orig).__name__})")
    return None


def _driver(error: BaseException, *, phase: Phase, read_only: bool, disconnected: bool) -> PandaDatabaseError | None:
    source = next((item for item in causes(error) if is_driver_error(item)), None)
    if source is None:
        return None
    deepest = [item for item in causes(error) if is_driver_error(item)][-1]
    state: str | None = getattr(deepest, "sqlstate", None) or getattr(source, "sqlstate", None)
    cls = _class_of(source, deepest, state)
    if cls is tree.PrimaryDemoted and read_only:
        cls = tree.ReadOnlyViolation
    if cls is tree.CheckViolation and not getattr(deepest, "constraint_name", None):
        cls = tree.PartitionMissing  # the only 23514 that has no constraint
    if disconnected and not issubclass(cls, tree.ConnectionFailed | tree.ConfigurationError):
        cls = tree.ConnectionLost
    if phase == "connect" and cls is tree.ConnectionLost:
        cls = tree.HostUnreachable
    if phase == "commit" and (issubclass(cls, tree.ConnectionFailed) or disconnected or (state or "").startswith("XX")):
        return tree.CommitOutcomeUnknown("the connection was lost while COMMIT was under way", sqlstate=state)
    return cls(
        _message(deepest, cls),
        hint=_HINTS.get(state or ""),
        sqlstate=state,
        constraint=getattr(deepest, "constraint_name", None),
        table=getattr(deepest, "table_name", None),
        column=getattr(deepest, "column_name", None),
    )


def _class_of(source: BaseException, deepest: BaseException, state: str | None) -> type[PandaDatabaseError]:
    for item in (deepest, source):
        for cls in type(item).__mro__:
            if cls.__name__ in ("InvalidCachedStatementError", "OutdatedSchemaCacheError"):
                return tree.StalePlan
    if state:
        return _BY_SQLSTATE.get(state) or _BY_CLASS.get(state[:2]) or tree.ServerFault
    for cls in type(deepest).__mro__:
        if cls.__name__ in _BY_NAME:
            return _BY_NAME[cls.__name__]
    return tree.ServerFault


_NO_TLS = "rejected SSL upgrade"


def _network(error: OSError, phase: Phase) -> PandaDatabaseError:
    """Operating-system errors, met while connecting or on a connection that broke."""
    if phase == "commit":
        return tree.CommitOutcomeUnknown("the connection was lost while COMMIT was under way")
    if phase == "statement":
        return tree.ConnectionLost(f"the connection was lost ({type(error).__name__})")
    if isinstance(error, TimeoutError):
        return tree.ConnectTimeout("the server did not answer in time")
    if isinstance(error, socket.gaierror):
        return tree.HostUnreachable("the host name cannot be resolved")
    if isinstance(error, ssl.SSLError):
        return tree.TlsRefused(f"the TLS handshake failed ({_tls_reason(error)})")
    if type(error) is ConnectionError:
        # asyncpg's for three ends of the request for TLS, which its words alone tell apart: "no", an error, a connection lost.
        if _NO_TLS in str(error):
            return tree.TlsRefused("the server does not offer TLS, which this connection demands")
        return tree.HostUnreachable("the server ended the connection while TLS was being asked for")
    return tree.HostUnreachable(f"the server cannot be reached ({_reason(error)})")


def _reason(error: OSError) -> str:
    """The system's words; the event loop's own name the address once more."""
    return os.strerror(error.errno).lower() if error.errno else type(error).__name__


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return getattr(error, "verify_message", None) or "certificate refused"
    return (error.reason or type(error).__name__).replace("_", " ").lower()


def _message(error: BaseException, cls: type[PandaDatabaseError]) -> str:
    if not speaks(error):
        return plain(error) if cls is not tree.StatementFault else f"the statement is wrong: {plain(error)}"
    text: Any = error.args[0] if error.args else type(error).__name__
    return str(text).split("\n", 1)[0]
