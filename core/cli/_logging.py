"""Logs on stderr: for people, or one JSON object a line. Configured here and nowhere else in the project."""

import logging
import os
import sys

import structlog

_LEVELS = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG}


def configure(*, verbosity: int, as_json: bool) -> None:
    """-1 errors, 0 warnings, 1 what is done, 2 everything, foreign libraries included."""
    level = _LEVELS[max(-1, min(2, verbosity))]
    chain: list[structlog.typing.Processor] = [structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder()]
    if as_json or verbosity > 0:  # a lone warning for a person needs neither
        chain += [structlog.stdlib.add_logger_name, structlog.processors.TimeStamper(fmt="iso", utc=True)]
    colors = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    final: list[structlog.typing.Processor] = (
        [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
        if as_json
        else [
            structlog.dev.ConsoleRenderer(
                colors=colors, pad_level=False, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
            )
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
