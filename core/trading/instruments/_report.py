"""What a load did, as frozen values."""

from dataclasses import dataclass, field
from datetime import date


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectedRow:
    """A row that was left out: where it stands, and what is wrong with which field. `line` counts from 1, the header."""

    line: int
    field: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """The outcome of one load, in rows.

    `rows` of the file are `added + changed + reactivated + unchanged + duplicates + len(rejected)`. A row that comes back is
    `reactivated` whether or not it changed meanwhile. `deactivated` are stored rows of the same source and exchanges that
    the file no longer names; they stay readable. `seconds` maps each stage to its duration.
    """

    source: str
    exchanges: tuple[str, ...]
    trading_date: date
    rows: int
    added: int
    changed: int
    reactivated: int
    deactivated: int
    unchanged: int
    duplicates: int
    """Rows equal in every field to an earlier one."""
    repriced: int
    """How many of the unchanged got another last price, which is stored but is no change of the instrument."""
    rejected: tuple[RejectedRow, ...]
    ignored_columns: tuple[str, ...] = ()
    """Columns of the file that the format does not know."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def written(self) -> int:
        """Rows that became other than they were, apart from their last price."""
        return self.added + self.changed + self.reactivated + self.deactivated
