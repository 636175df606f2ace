"""What an adoption did, row by row accounted for."""

import dataclasses
import json
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from pydantic import TypeAdapter

SHOWN = 20
"""Set-aside rows in a report; all of them are in the table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableCount:
    """One of the original's tables: every row of it was moved or set aside."""

    table: str
    into: str
    """The tables of ours that took the rows."""
    read: int
    moved: int
    set_aside: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SetAside:
    """A row that our tables refuse."""

    table: str
    key: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounded:
    """A kind of amount of which some had more than ten digits after the point."""

    field: str
    count: int
    largest: Decimal
    """The largest change, in the amount's own unit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdoptionReport:
    """An adoption of the original's database. `str` of nothing in it is a secret."""

    tables: tuple[TableCount, ...]
    kept: tuple[tuple[str, int], ...]
    """Tables that have no counterpart here, with their rows: they stand unchanged beside the originals."""
    set_aside: tuple[SetAside, ...]
    """The first ones of each table, `SHOWN` in all."""
    rounded: tuple[Rounded, ...]
    sealed: int
    """Sessions whose tokens were sealed, those of set-aside rows included."""
    accounts_made: int
    """Inactive users made for sessions whose user id is the name of no user."""
    password_resets: int
    """Users whose hash is of a kind that `accounts` cannot verify without the package bcrypt."""
    notes: tuple[str, ...]
    """Whatever else was changed or left out, a sentence each."""
    revision: str
    """The head that was stamped."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    adopted_at: datetime
    dry_run: bool = False
    already: bool = False
    """Whether the database had been adopted before; then this is the report of that time."""

    @property
    def set_aside_count(self) -> int:
        return sum(row.set_aside for row in self.tables)

    def to_json(self) -> dict[str, Any]:
        """As JSON takes it, Decimals as text."""
        plain: dict[str, Any] = json.loads(_ADAPTER.dump_json(self))
        return plain | {"set_aside_count": self.set_aside_count}

    def stored(self) -> str:
        return _ADAPTER.dump_json(self).decode()

    @classmethod
    def from_stored(cls, text: str) -> "AdoptionReport":
        """The report of an earlier adoption."""
        return dataclasses.replace(_ADAPTER.validate_json(text), already=True)


_ADAPTER = TypeAdapter(AdoptionReport)
