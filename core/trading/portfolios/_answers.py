"""What the callers of rows are told where no answer of the database is theirs."""

import copy
from collections.abc import Iterable

from core.database.errors import CommitOutcomeUnknown, PandaDatabaseError, WriterOverloaded
from core.trading.portfolios._batch import Row

ENDED = "the snapshot writer ended while it stored the row"
NOT_REACHED = "the snapshot writer was closed before it came to this row"
UNHEARD = "the row was sent and no answer came within the deadline"
_AGAIN = "Write the same snapshot again: a key is stored once, whatever became of this attempt."


def in_doubt(message: str) -> CommitOutcomeUnknown:
    """Of a row that was sent, and may be stored."""
    return CommitOutcomeUnknown(message, hint=_AGAIN)


def never_sent(trouble: PandaDatabaseError | None) -> PandaDatabaseError:
    """Why a row whose time is up was never sent."""
    if trouble is None or isinstance(trouble, CommitOutcomeUnknown):
        return WriterOverloaded("the snapshot writer did not come to this row within its deadline")
    return copy.copy(trouble)


def unanswered(rows: Iterable[Row]) -> list[Row]:
    """Those whose callers still wait."""
    return [row for row in rows if not row.future.done()]


def refuse(row: Row, error: PandaDatabaseError, *, cause: BaseException | None = None) -> None:
    """Raise `error` at the caller, if nobody has answered yet."""
    if not row.future.done():
        error.__cause__ = cause
        row.future.set_exception(error)
