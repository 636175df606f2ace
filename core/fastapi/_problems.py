"""Errors of the database as HTTP: problem details by RFC 9457."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm.exc import StaleDataError
from starlette.requests import Request
from starlette.responses import Response

from core.database import errors as e
from core.database.monitoring import get_logger
from core.trading.accounts import InvalidCredentials, TooManyAttempts
from core.trading.sessions import TradingSessionError, UserDisabled

_log = get_logger()

_STATUS: dict[type[BaseException], int] = {
    # 500 and not 503 or 504: proxies send those again by themselves, and this one may have been stored.
    e.CommitOutcomeUnknown: 500,
    e.ConnectionFailed: 503,
    e.IdleInTransactionTimeout: 500,
    e.TransactionTimeout: 504,
    e.StatementTimeout: 504,
    e.PoolExhausted: 503,
    e.WriterOverloaded: 503,
    e.LockTimeout: 503,
    e.SerializationFailure: 503,
    e.DeadlockDetected: 503,
    e.StalePlan: 503,
    e.ResourceExhausted: 503,
    e.ManagerNotConnected: 503,
    e.IntegrityViolation: 409,
    e.CheckViolation: 422,
    e.NotNullViolation: 422,
    e.PartitionMissing: 500,
    e.InvalidInput: 422,
    e.ConfigurationError: 500,
    e.EncryptionError: 500,
    InvalidCredentials: 401,
    TooManyAttempts: 429,
    TradingSessionError: 401,
    UserDisabled: 403,
}
_RETRY_AFTER: dict[type[BaseException], int] = {
    e.PoolExhausted: 1,
    e.WriterOverloaded: 1,
    e.LockTimeout: 1,
    e.SerializationFailure: 1,
    e.DeadlockDetected: 1,
    e.StalePlan: 1,
    e.ConnectionFailed: 5,
    e.ManagerNotConnected: 5,
    e.ResourceExhausted: 30,
}
_HEADERS: dict[int, dict[str, str]] = {
    # HTTP asks for a scheme; that of a bearer's token is the one for which browsers ask nothing themselves.
    401: {"www-authenticate": "Bearer"},
}
_DETAIL: dict[int, str] = {
    500: "The request could not be carried out; the server's log says why.",
    503: "The database cannot serve this request now; nothing of its transaction is stored. Try again later.",
    504: "The database did not finish in time; nothing of the request's transaction is stored.",
}
_UNKNOWN = (
    "The connection to the database was lost while it stored this request. It is stored whole or not at all: read it back"
    " before sending it again."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What a client is told of an error. Nothing of the server's insides is in it where the client cannot mend it."""

    status: int
    type: str
    """`urn:alpha-panda:` and the error's class: `urn:alpha-panda:unique-violation`."""
    title: str
    detail: str
    constraint: str | None = None
    """The rule that refused the request, with 409 and 422."""
    column: str | None = None
    retry_after: int | None = None
    """Seconds, for the header of that name, where sending the same request again may work."""

    @property
    def headers(self) -> dict[str, str]:
        """Those that belong to it, the content's type aside."""
        after = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return _HEADERS.get(self.status, {}) | after

    def to_json(self) -> dict[str, Any]:
        """The members of the body; those that are not known are left out."""
        members = ("type", "title", "status", "detail", "constraint", "column")
        return {name: getattr(self, name) for name in members if getattr(self, name) is not None}


def problem_of(error: e.PandaDatabaseError) -> Problem:
    """The error as a client may see it. 4xx say in words what is wrong with the request, 5xx only what it may do.

    409: a constraint, or a version that has moved on. 422: a value. 404: what the request names is not there. 401: the
    login is refused, or the trading session is none or over. 403: its user is disabled. 429 with Retry-After: too many
    failed logins. 503 with Retry-After: no connection, none free, a lock, a serialization failure; nothing is stored. 504:
    too slow; nothing is stored. 500: everything else, `urn:alpha-panda:commit-outcome-unknown` included, after which nobody
    knows.
    """
    status = _status(error)
    words = _words(type(error).__name__)
    if isinstance(error, e.CommitOutcomeUnknown):
        detail = _UNKNOWN
    else:
        detail = error.message if status < 500 else _DETAIL[status]
    return Problem(
        status=status,
        type="urn:alpha-panda:" + words.replace(" ", "-"),
        title=words.capitalize(),
        detail=detail,
        constraint=error.constraint if status < 500 else None,
        column=error.column if status < 500 else None,
        retry_after=_retry_after(error, status),
    )


async def answer_problem(request: Request, error: e.PandaDatabaseError) -> Response:
    """The response; what the client is not told goes to the log, with the route and never the values in its path."""
    problem = problem_of(error)
    if problem.status >= 500:
        route = getattr(request.scope.get("route"), "path", None)
        _log.log(
            40 if problem.status == 500 else 30,
            "request failed",
            status=problem.status,
            method=request.method,
            route=route,
            error=type(error).__name__,
            reason=error.message,
            hint=error.hint,
        )
    return Response(
        json.dumps(problem.to_json()), problem.status, headers=problem.headers, media_type="application/problem+json"
    )


def _status(error: e.PandaDatabaseError) -> int:
    known = _nearest(_STATUS, error)
    if known is not None:
        return known
    # Errors of the rooms above the database say by a foreign class what they are.
    if isinstance(error, LookupError):
        return 404
    if isinstance(error, StaleDataError):
        return 409
    return 422 if isinstance(error, ValueError) else 500


def _retry_after(error: e.PandaDatabaseError, status: int) -> int | None:
    if isinstance(error, TooManyAttempts):
        return max(1, math.ceil(error.retry_after))
    return _nearest(_RETRY_AFTER, error) if status == 503 else None


def _nearest(table: dict[type[BaseException], int], error: BaseException) -> int | None:
    """The entry of the most derived class that has one."""
    return next((table[cls] for cls in type(error).__mro__ if cls in table), None)


def _words(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", " ", name).lower()
