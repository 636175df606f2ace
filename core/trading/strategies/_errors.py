"""What the functions of this room refuse."""

from typing import Any

from core.database.errors import PandaDatabaseError


class StrategyNotFound(PandaDatabaseError, LookupError):
    """There is no strategy of that id."""


class RevisionNotFound(PandaDatabaseError, LookupError):
    """The strategy never had that version, or nobody put it on record."""

    mend = "`panda strategy history` shows the versions that there are."


class StrategyFileError(PandaDatabaseError, ValueError):
    """A file of strategies that cannot be read as one; `line` and `position` are where, counted from 1."""

    def __init__(self, message: str, *, line: int | None = None, position: int | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.line = line
        self.position = position

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, (cls, message, fields) = super().__reduce__()
        return rebuild, (cls, message, {**fields, "line": self.line, "position": self.position})


class FeedRewound(PandaDatabaseError):
    """The database does not hold the change that the cursor stands at: it was restored, or failed over with loss."""

    mend = (
        "Read every strategy again, and watch from there: from `last_change`, or on the command line without --after."
    )
