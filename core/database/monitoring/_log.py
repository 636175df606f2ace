"""The project's logger, and which session and trace a record belongs to.

Both are looked up when something is logged and not before: a session costs one context variable, a trace nothing.
"""

import asyncio
import contextlib
import logging
import sys
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any, Protocol

import structlog

from core.printable import printable_value


class LoggedSession(Protocol):
    """What a session tells about itself to the log."""

    user_task: asyncio.Task[Any] | None
    """The task that is inside one of its calls."""
    outer: "LoggedSession | None"
    """The session that was open in the same context when this one was opened."""
    closed: bool

    @property
    def log_id(self) -> str:
        """Made when first asked for."""
        ...


SESSION: ContextVar[LoggedSession | None] = ContextVar("panda_session", default=None)
"""The innermost session of this context."""


def session_id() -> str | None:
    """The session whose call is under way in this task; else the innermost open one of the context."""
    task: asyncio.Task[Any] | None = None
    with contextlib.suppress(RuntimeError):
        task = asyncio.current_task()
    first: LoggedSession | None = None
    current = SESSION.get()
    while current is not None:
        if not current.closed:
            if task is not None and current.user_task is task:
                return current.log_id
            first = first or current
        current = current.outer
    return first.log_id if first is not None else None


def trace_ids() -> dict[str, str]:
    """`trace_id` and `span_id` of OpenTelemetry's current span; empty where it is not used or no span is active."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return {}
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": format(context.trace_id, "032x"), "span_id": format(context.span_id, "016x")}


def _correlate(logger: object, method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the session and the trace, unless the caller named them."""
    found = record.pop("session_id", None) or session_id()
    if found is not None:
        record["session_id"] = found
    for name, value in trace_ids().items():
        record.setdefault(name, value)
    return record


_FOR_LOGGING = frozenset({"exc_info", "stack_info", "stacklevel"})


def _on_one_line(logger: object, method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """No text of the record holds a control, a line break or what turns the reading order round, whoever it comes from."""
    return {
        printable_value(name): value if name in _FOR_LOGGING else printable_value(value)
        for name, value in record.items()
    }


def get_logger(name: str = "core.database") -> Any:
    """The project's logger: structured events handed to the standard library's logger `name`.

    An application that configures nothing sees warnings on stderr and nothing on stdout; one that renders standard
    library records through structlog gets every field. Records carry `session_id` inside a session, and `trace_id` and
    `span_id` inside an OpenTelemetry span. One record is one line: what steers a terminal or forges a line is escaped.
    """
    return structlog.wrap_logger(
        logging.getLogger(name),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            _correlate,
            _on_one_line,
            structlog.stdlib.render_to_log_kwargs,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
