"""From a foreign exception to one of ours, by SQLSTATE, constraint name and type; never by message text."""

import contextlib
import functools
import inspect
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar, cast

from sqlalchemy import exc as sa

from core.database.errors import _tree as tree
from core.database.errors._tree import PandaDatabaseError
from core.printable import printable_value

Function = TypeVar("Function", bound=Callable[..., Any])
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

# Messages of these classes quote values; the others quote names only.
_SPEAKING = frozenset({"08", "0A", "23", "25", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "XX"})
_QUOTING_STATES = frozenset({"42601"})
_SECRET_FIELDS = ("detail", "hint", "context", "query", "internal_query", "where")
_FRAMES_WITH_VALUES = frozenset({"core", "sqlalchemy", "asyncpg", "pydantic"})
_ARGUMENT = re.compile(r"query argument \$\d+")


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, nearest first; each once."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        queue += [getattr(current, "orig", None), current.__cause__, current.__context__]


def scrub(error: BaseException) -> None:
    """Remove from a driver's exception and its causes all that may quote a value: DETAIL, CONTEXT, parameters.

    What is left of its words is made printable: names are quoted as somebody wrote them.
    """
    for current in chain(error):
        if isinstance(current, PandaDatabaseError):
            continue
        if isinstance(current, sa.StatementError):
            current.params = None
            current.hide_parameters = True
        if not _is_driver_error(current):
            continue
        for name in _SECRET_FIELDS:
            if getattr(current, name, None) is not None:
                setattr(current, name, None)
        current.args = tuple(map(printable_value, current.args)) if _speaks(current) else (_plain(current),)
        if current.args and hasattr(current, "message"):
            current.message = current.args[0]  # type: ignore[attr-defined]


def _with_groups(error: BaseException) -> Iterator[BaseException]:
    """The error, what it came from, and the same of those that it is a group of."""
    seen: set[int] = set()
    queue = [error]
    while queue:
        for current in chain(queue.pop()):
            if id(current) not in seen:
                seen.add(id(current))
                yield current
                if isinstance(current, BaseExceptionGroup):
                    group = cast("BaseExceptionGroup[BaseException]", current)
                    queue += group.exceptions


def forget_locals(error: BaseException) -> None:
    """Clear the local variables in the frames that SQLAlchemy, the driver and this package have left behind in the tracebacks.

    Parameters and passwords stand in them, and reporters of errors that record locals send these away. The lines of the
    traceback stay, and so do the caller's own frames.
    """
    for current in _with_groups(error):
        step = current.__traceback__
        while step is not None:
            room: str = step.tb_frame.f_globals.get("__name__", "")
            if room.partition(".")[0] in _FRAMES_WITH_VALUES:
                with contextlib.suppress(RuntimeError):  # it is still running
                    step.tb_frame.clear()
            step = step.tb_next


def forgets(function: Function) -> Function:
    """Decorate a function, or a coroutine function, that is given a secret: no frame of what it raises keeps one.

    What is raised within a session's block is cleared when it leaves the block; this is for what has no such block.
    """

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except BaseException as error:
            forget_locals(error)
            del arguments, named
            raise

    @functools.wraps(function)
    async def call_and_await(*arguments: Any, **named: Any) -> Any:
        try:
            return await function(*arguments, **named)
        except BaseException as error:
            forget_locals(error)
            del arguments, named
            raise

    return cast("Function", call_and_await if inspect.iscoroutinefunction(function) else call)


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
    for current in chain(error):
        if isinstance(current, PandaDatabaseError):
            return current
    found = _foreign(error) if isinstance(error, sa.SQLAlchemyError) else None
    if found is None:
        found = _driver(error, phase=phase, read_only=read_only, disconnected=disconnected)
    if found is None and isinstance(error, UnicodeEncodeError) and _arose_below(error):
        return tree.StatementFault("the statement's text holds a lone surrogate, which is not text")
    if found is None and (phase == "connect" or disconnected) and isinstance(error, OSError):
        found = _network(error, phase)
    if found is not None:
        scrub(error)
        found.orig = error.orig if isinstance(error, sa.StatementError) else error
        found.connection_invalidated = disconnected
    return found


def _arose_below(error: BaseException) -> bool:
    """In SQLAlchemy or the driver, not in code of the caller's that they have called."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    room: str = step.tb_frame.f_globals.get("__name__", "") if step is not None else ""
    return room.partition(".")[0] in _FRAMES_WITH_VALUES


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
    source = next((item for item in chain(error) if _is_driver_error(item)), None)
    if source is None:
        return None
    deepest = [item for item in chain(error) if _is_driver_error(item)][-1]
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


def _is_driver_error(error: BaseException) -> bool:
    return any(base.__module__.startswith(("asyncpg", "sqlalchemy.dialects")) for base in type(error).__mro__)


def _speaks(error: BaseException) -> bool:
    state: str | None = getattr(error, "sqlstate", None)
    if state is None:
        return not str(error.args[0] if error.args else "").startswith("invalid input")
    return state[:2] in _SPEAKING and state not in _QUOTING_STATES


def _plain(error: BaseException) -> str:
    """A message without values: the condition's name, as the driver's class gives it."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__.removesuffix("Error")).lower()
    place = _ARGUMENT.search(str(error.args[0])) if error.args else None
    return f"{words} ({place.group()})" if place else words


def _message(error: BaseException, cls: type[PandaDatabaseError]) -> str:
    if not _speaks(error):
        return _plain(error) if cls is not tree.StatementFault else f"the statement is wrong: {_plain(error)}"
    text: Any = error.args[0] if error.args else type(error).__name__
    return str(text).split("\n", 1)[0]
