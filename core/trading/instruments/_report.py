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
class Shrink:
    """How much of one exchange a file no longer names, contracts that have expired left aside."""

    exchange: str
    gone: int
    active: int

    @property
    def share(self) -> float:
        return self.gone / self.active if self.active else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """The outcome of one load, in rows.

    `rows` of the file are `added + changed + attributes_changed + reactivated + unchanged + duplicates + len(rejected)`. A row
    that comes back is `reactivated` whether or not it changed meanwhile. `deactivated` are stored rows of the same source and
    exchanges that the file no longer names; they stay readable. `seconds` maps each stage to its duration.
    """

    source: str
    format: str
    exchanges: tuple[str, ...]
    trading_date: date
    rows: int
    added: int
    changed: int
    """Rows of which something else than `attributes` and the last price is different."""
    attributes_changed: int
    """Rows of which the broker's other columns alone are different."""
    renamed: int
    """How many of the changed have another symbol."""
    reactivated: int
    deactivated: int
    unchanged: int
    duplicates: int
    """Rows equal in every field to an earlier one."""
    repriced: int
    """How many of the unchanged got another last price, which is stored but is no change of the instrument."""
    rejected: tuple[RejectedRow, ...]
    digest: str
    """SHA-256 of the file's unpacked content, in hexadecimal."""
    known: bool = False
    """The file was the last one loaded, byte for byte: only its day was noted."""
    dry_run: bool = False
    """Nothing was stored."""
    ignored_columns: tuple[str, ...] = ()
    """Columns of the file that are kept nowhere."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def written(self) -> int:
        """Rows that became other than they were, apart from their last price."""
        return self.added + self.changed + self.attributes_changed + self.reactivated + self.deactivated
