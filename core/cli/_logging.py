"""Logs on stderr: for people, or one JSON object a line. Configured here and nowhere else in the project."""

import logging
import os
import sys
import traceback
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, TextIO

import structlog

from core.cli._output import as_json_text
from core.printable import printable, printable_value

_LEVELS = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG}


def configure(*, verbosity: int, as_json: bool) -> None:
    """-1 errors, 0 warnings, 1 what is done, 2 everything, foreign libraries included."""
    level = _LEVELS[max(-1, min(2, verbosity))]
    chain: list[structlog.typing.Processor] = [structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder()]
    if as_json or verbosity > 0:  # a lone warning for a person needs neither
        chain += [structlog.stdlib.add_logger_name, structlog.processors.TimeStamper(fmt="iso", utc=True)]
    colors = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    final: list[structlog.typing.Processor] = (
        [_tracebacks, structlog.processors.JSONRenderer(serializer=as_json_text)]
        if as_json
        else [
            _on_one_line,
            structlog.dev.ConsoleRenderer(
                colors=colors, pad_level=False, pad_event_to=0, exception_formatter=_write_traceback
            ),
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
            foreign_pre_chain=chain,
        )
    )
    structlog.configure(
        processors=[*chain, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level if verbosity >= 2 or level > logging.WARNING else logging.WARNING)
    logging.getLogger("core").setLevel(level)
    # What asyncio says of connections that an interrupt has left half made is for those who look for it.
    logging.getLogger("asyncio").setLevel(level if verbosity >= 2 else logging.CRITICAL)


# Never with the locals of the frames, which structlog would show unasked: passwords and tokens stand in them.
_tracebacks = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


def _on_one_line(logger: object, method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Texts of any library, with what they quote of others, steer no terminal and forge no line."""
    return {
        printable_value(name): value if name == "exc_info" else printable_value(value) for name, value in record.items()
    }


def _write_traceback(stream: TextIO, error: tuple[type[BaseException], BaseException, TracebackType | None]) -> None:
    """Below the record, every line set in: none of them passes for a record, whatever the exception's text holds."""
    told = "".join(traceback.format_exception(*error)).rstrip("\n")
    stream.writelines(f"\n  {printable(line)}" for line in told.split("\n"))
