"""What is refused of changes of strategies, and what an error tells of those of others."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.orm.exc import StaleDataError

from core.database.errors import ForeignKeyViolation, PandaDatabaseError

_TOLD = 5  # changes in the message of a conflict
_PATHS = 4


@dataclass(frozen=True, slots=True)
class RevisionChange:
    """A version as it came into force: who made it, when, why, and the paths of what it changed."""

    version: int
    changed_by: str | None
    changed_at: datetime
    note: str | None
    fields: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(self.fields[:_PATHS]) + (", ..." if len(self.fields) > _PATHS else "")
        # repr, since it escapes what could forge a line or turn its direction.
        who = "somebody" if self.changed_by is None else quoted(self.changed_by)
        why = "" if self.note is None else f" ({quoted(self.note)})"
        return (
            f"version {self.version} by {who} at {self.changed_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC: {shown}{why}"
        )


def quoted(text: str) -> str:
    """In quotes, with all that is no printable character escaped."""
    return repr(text)


class VersionConflict(PandaDatabaseError, StaleDataError):
    """Somebody else changed the strategy first: it is at version `actual`, and the decision was made on `expected`.

    `changes` are the versions since, at most the last hundred, the earliest first.
    """

    mend = "Read the strategy again and decide anew."

    def __init__(
        self,
        message: str,
        *,
        expected: int | None = None,
        actual: int | None = None,
        changes: tuple[RevisionChange, ...] = (),
        **fields: Any,
    ) -> None:
        super().__init__(message, **fields)
        self.expected = expected
        self.actual = actual
        self.changes = changes

    @classmethod
    def of(
        cls, strategy_id: str, *, expected: int, actual: int, changes: tuple[RevisionChange, ...]
    ) -> "VersionConflict":
        """With a message that tells who changed what, the latest of it."""
        message = f"strategy {strategy_id!r} is at version {actual}, not {expected}"
        if changes:
            told = changes[-_TOLD:]
            more = actual - expected - len(told)
            message += f": {f'{more:,} more; ' if more > 0 else ''}{'; '.join(map(str, told))}"
        return cls(message, expected=expected, actual=actual, changes=changes)

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, (cls, message, fields) = super().__reduce__()
        own = {"expected": self.expected, "actual": self.actual, "changes": self.changes}
        return rebuild, (cls, message, {**fields, **own})


class HistoryKept(ForeignKeyViolation):
    """A strategy is never deleted, since its history and perhaps portfolios point at it, and a revision never changed.

    Nothing was sent.
    """
