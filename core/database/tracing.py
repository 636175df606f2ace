"""OpenTelemetry: a CLIENT span for each statement, by the semantic conventions for database spans.

    DatabaseManager(url, hooks=[trace_queries()])

Spans are made after the statement has ended, on the hook's own thread, with its true times and with the span as parent
that was current in the code that ran it; an exporter that hangs or raises holds up nothing. They hold no parameters, no
literals and no messages of errors. Needs the extra `otel`, which is OpenTelemetry's API alone; the application brings and
configures its SDK.
"""

import re
from functools import lru_cache
from importlib.metadata import version

from core.database.monitoring import Hook, QueryEvent, Server, operation, without_literals

try:
    from opentelemetry import trace
    from opentelemetry.trace import SpanKind, StatusCode, Tracer, TracerProvider
    from opentelemetry.util.types import AttributeValue
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("opentelemetry"):
        raise
    raise ModuleNotFoundError(
        "tracing needs OpenTelemetry, which is not installed: pip install 'alpha-panda-core[otel]'", name=error.name
    ) from None

__all__ = ["trace_queries"]

_SCHEMA = "https://opentelemetry.io/schemas/1.44.0"
_DEFAULT_PORT = 5432
_TEXT_CHARACTERS = 8_000
_NAME_CHARACTERS = 255
_NANO = 1e9

_IDENTIFIER = r'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)'
_TARGETS = re.compile(
    rf"\b(?:FROM|JOIN|INTO|UPDATE|TABLE|COPY)\s+(?:ONLY\s+|IF\s+(?:NOT\s+)?EXISTS\s+)*"
    rf"(?P<name>{_IDENTIFIER}(?:\.{_IDENTIFIER})*)(?P<call>\s*\()?",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"(_\d+)+$")
_NOT_NAMES = frozenset(
    ["stdin", "stdout", "program", "select", "lateral", "unnest", "values", "set", "of", "nowait", "skip"]
)


def trace_queries(tracer_provider: TracerProvider | None = None) -> Hook:
    """A hook that makes a span of each statement. Without a provider, the global one at the time of the first span.

    A statement inside a span that is not sampled makes none, whatever the sampler would say.
    """
    tracer = trace.get_tracer("core.database", version("alpha-panda-core"), tracer_provider, _SCHEMA)

    def make_span(event: QueryEvent) -> None:
        _make_span(tracer, event)

    return Hook(make_span, QueryEvent, name="opentelemetry")


def _make_span(tracer: Tracer, event: QueryEvent) -> None:
    parent = trace.get_current_span()
    context = parent.get_span_context()
    if context.is_valid and not context.trace_flags.sampled and not parent.is_recording():
        return
    name, attributes = _described(event.statement, event.server)
    failure = event.failure or event.error
    if failure is not None:
        attributes = {**attributes, "error.type": failure}
        if event.sqlstate is not None:
            attributes["db.response.status_code"] = event.sqlstate
    end = int(event.ended_at * _NANO)
    start = end - int(event.seconds * _NANO)
    span = tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes, start_time=start)
    if failure is not None:
        span.set_status(StatusCode.ERROR)
    span.end(end)


@lru_cache(maxsize=1_000)
def _described(statement: str, server: Server | None) -> tuple[str, dict[str, AttributeValue]]:
    """The span's name, and the attributes that do not differ from run to run."""
    shown = without_literals(statement)
    word, targets = operation(shown), _targets(shown)
    attributes: dict[str, AttributeValue] = {"db.system.name": "postgresql", "db.operation.name": word}
    if targets:
        summary = " ".join([word, *dict.fromkeys(_NUMBERED.sub("", target) for target in targets)])[:_NAME_CHARACTERS]
        attributes["db.query.summary"] = summary
    if len(targets) == 1:
        attributes["db.collection.name"] = targets[0]
    attributes["db.query.text"] = shown[:_TEXT_CHARACTERS]
    if server is not None:
        attributes["server.address"] = server.host
        if server.port != _DEFAULT_PORT:
            attributes["server.port"] = server.port
        if server.database is not None:
            attributes["db.namespace"] = server.database
    return str(attributes.get("db.query.summary", word)), attributes


def _targets(statement: str) -> list[str]:
    """The tables that a statement names, each once, in order; functions are none."""
    found: dict[str, None] = {}
    for match in _TARGETS.finditer(statement):
        called = match["call"] is not None and statement[match.start() : match.start() + 4].upper() in ("FROM", "JOIN")
        if not called and match["name"].lower() not in _NOT_NAMES:
            found[match["name"].replace('"', "")] = None
    return list(found)
