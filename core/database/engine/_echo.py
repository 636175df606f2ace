"""SQLAlchemy's own log of an engine, `echo` and `logging.DEBUG` alike, without a value of a statement or a row.

Our engines log under a name of their own, below SQLAlchemy's: other engines of the process go on as they are. Nothing is
looked at where nothing is logged.
"""

import logging
from typing import Final

from core.database.monitoring import without_literals

LOGGING_NAME: Final = "panda"
"""Records are of the logger `sqlalchemy.engine.Engine.panda`."""


class _Hidden:
    def __repr__(self) -> str:
        return "(values hidden)"


_HIDDEN = _Hidden()


class WithoutValues(logging.Filter):
    """Statements lose their literals and stand on one line; rows and parameters, whatever is asked for, are not shown."""

    def filter(self, record: logging.LogRecord) -> bool:
        arguments = record.args
        if not arguments:
            record.msg = without_literals(str(record.msg))
        elif isinstance(arguments, tuple):
            record.args = tuple(item if _is_plain(item) else _HIDDEN for item in arguments)
        else:
            record.args = ()
        return True


def _is_plain(item: object) -> bool:
    """How long it took, how many rows there were, and what the columns are called."""
    if isinstance(item, tuple):
        return all(type(name) is str for name in item)  # type: ignore[reportUnknownVariableType]
    return isinstance(item, str | int | float)


logging.getLogger(f"sqlalchemy.engine.Engine.{LOGGING_NAME}").addFilter(WithoutValues())
