"""What came in from a file, and what went out to one, as frozen values."""

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Literal

KEPT_ROWS = 1_000
"""Rows of each kind that a report names; beyond that it counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectedSnapshot:
    """A row that was left out, and what is wrong with which field. `line` counts from 1, the header of a CSV; of a frame
    or a Parquet file it counts the rows from 1.
    """

    line: int
    field: str
    """The file's word for it."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatedSnapshot:
    """A row that says of a portfolio and time what an earlier row of the same file, `first_line`, has said already."""

    line: int
    first_line: int
    portfolio_id: str
    snapshot_time: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class ConflictingSnapshot:
    """A row whose portfolio and time are stored with other values; `fields` are the columns that differ."""

    line: int
    portfolio_id: str
    snapshot_time: datetime
    fields: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundedField:
    """Amounts of one column that had more than 10 digits after the point: in how many rows, and the largest difference
    that rounding made. Of rejected rows too.
    """

    field: str
    rows: int
    largest: Decimal


@dataclass(frozen=True, kw_only=True, slots=True)
class Oddity:
    """What is strange in a column of the file, whether the column is stored or not: cells that are empty, or that hold
    infinity or no number (`inf`, `NaN`). `first_line` is where it is met first.
    """

    column: str
    kind: Literal["empty", "not finite"]
    rows: int
    first_line: int
    stored: bool
    """Whether the column is one that is stored; then these rows are among the rejected ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportReport:
    """The outcome of one import, in rows: `rows` are `added + existing + repeated + conflicts + rejected`.

    The `..._rows` name the first `KEPT_ROWS` of each kind, by line.
    """

    name: str
    """What the file is called."""
    rows: int
    added: int
    existing: int
    """Stored already, equal in every field."""
    repeated: int
    conflicts: int
    """Left as they are stored; always 0 unless `on_conflict` is "skip" or it is a dry run."""
    rejected: int
    repeated_rows: tuple[RepeatedSnapshot, ...] = ()
    conflict_rows: tuple[ConflictingSnapshot, ...] = ()
    rejected_rows: tuple[RejectedSnapshot, ...] = ()
    rounded: tuple[RoundedField, ...] = ()
    """Empty unless rounding was asked for."""
    oddities: tuple[Oddity, ...] = ()
    portfolios: tuple[str, ...] = ()
    """Those of the valid rows, in order."""
    first: datetime | None = None
    last: datetime | None = None
    """Of the valid rows, in UTC."""
    months_made: tuple[str, ...] = ()
    """The partitions made for it; those that would have to be made, in a dry run."""
    ignored_columns: tuple[str, ...] = ()
    """Columns of the file that are stored nowhere."""
    dry_run: bool = False
    """Nothing was stored."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """Of each stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """A file of snapshots that was made, whole and on the disk."""

    path: Path
    format: Literal["csv", "csv.gz", "parquet"]
    rows: int
    portfolios: int
    """Those that have rows in it."""
    first: datetime | None
    last: datetime | None
    """In UTC."""
    size: int
    """Bytes."""
    replaced: bool
    """Whether another file stood in its place."""
    seconds: float
