"""A batch of snapshots: one statement and its commit, and what became of rows that were not added by it."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from pydantic import TypeAdapter
from sqlalchemy import ForeignKeyConstraint

from core.database.driver import CommittingConnection
from core.database.errors import ForeignKeyViolation, PandaDatabaseError, SerializationFailure, SnapshotConflict
from core.database.models import PortfolioSnapshot
from core.database.records import PortfolioSnapshotCreate, Position, Positions
from core.database.types import strict_json_loads

_POSITIONS = TypeAdapter(list[Position])
_TABLE: Final[Any] = PortfolioSnapshot.__table__
_FOREIGN_KEY: Final = str(
    next(each.name for each in _TABLE.constraints if isinstance(each, ForeignKeyConstraint) and each.name)
)

# Each column with the type that its values are sent as, and what makes the column's own of them: text is the quickest to
# encode, for amounts above all.
_SENT: Final = {
    "portfolio_id": ("text", "{}"),
    "snapshot_time": ("timestamptz", "{}"),
    "broker": ("text", "{}"),
    "positions": ("text", "CAST({} AS jsonb)"),
    "cash": ("text", "CAST({} AS numeric)"),
    "realized_pnl": ("text", "CAST({} AS numeric)"),
    "unrealized_pnl": ("text", "CAST({} AS numeric)"),
    "total_pnl": ("text", "CAST({} AS numeric)"),
    "equity": ("text", "CAST({} AS numeric)"),
}
_COLUMNS: Final = ", ".join(_SENT)
_SKIP: Final = "ON CONFLICT (portfolio_id, snapshot_time) DO NOTHING"

_ONE: Final = (
    f"INSERT INTO portfolio_snapshots ({_COLUMNS}) VALUES ("  # noqa: S608 - names of our own, here and below
    + ", ".join(cast.format(f"${n}::{kind}") for n, (kind, cast) in enumerate(_SENT.values(), start=1))
    + f") {_SKIP} RETURNING true"
)

# A row of a portfolio that is not there, or not with that broker, is left out by the join instead of failing the others.
_MANY: Final = (
    f"INSERT INTO portfolio_snapshots ({_COLUMNS}) SELECT "  # noqa: S608
    + ", ".join(cast.format(f"g.{column}") for column, (_, cast) in _SENT.items())
    + " FROM unnest("
    + ", ".join(f"${n}::{kind}[]" for n, (kind, _) in enumerate(_SENT.values(), start=1))
    + f") AS g({_COLUMNS}) JOIN portfolios AS p ON p.portfolio_id = g.portfolio_id AND p.broker = g.broker {_SKIP}"
    " RETURNING portfolio_id, snapshot_time"
)

# What is there already may have been stored by a transaction that did not wait for the disk. The message writes WAL, so
# that this statement's own commit waits for all that was written before.
_STORED: Final = """
    SELECT k.number, p.broker AS known, s.broker, s.positions::text AS positions, s.cash, s.realized_pnl, s.unrealized_pnl,
        s.total_pnl, s.equity
    FROM unnest($1::text[], $2::timestamptz[]) WITH ORDINALITY AS k(portfolio_id, snapshot_time, number)
    CROSS JOIN (SELECT pg_logical_emit_message(true, 'alpha-panda', '')) AS flushed
    LEFT JOIN portfolios AS p ON p.portfolio_id = k.portfolio_id
    LEFT JOIN portfolio_snapshots AS s ON s.portfolio_id = k.portfolio_id AND s.snapshot_time = k.snapshot_time
"""

COMPARED: Final = ("broker", "positions", "cash", "realized_pnl", "unrealized_pnl", "total_pnl", "equity")
"""The columns in which two snapshots of one key may differ."""


class Row:
    """One snapshot on its way, as one caller's `write` gave it."""

    __slots__ = ("due", "future", "in_doubt", "key", "snapshot", "values")

    def __init__(self, snapshot: PortfolioSnapshotCreate, future: "asyncio.Future[bool]", due: float) -> None:
        self.snapshot = snapshot
        self.key: tuple[str, datetime] = (snapshot.portfolio_id, snapshot.snapshot_time)
        self.values = (
            snapshot.portfolio_id,
            snapshot.snapshot_time,
            snapshot.broker,
            stored_positions(snapshot.positions),
            str(snapshot.cash),
            str(snapshot.realized_pnl),
            str(snapshot.unrealized_pnl),
            str(snapshot.total_pnl),
            str(snapshot.equity),
        )
        self.future = future
        """Whether it was added (True) or there already (False)."""
        self.due = due
        """The event loop's time at which its caller gives up."""
        self.in_doubt = False
        """It was sent, and it is not known what became of it."""


def stored_positions(positions: Positions) -> str:
    """As `Positions.to_stored`, which validates once more. These have come out of a record: only a list inside one could have
    been changed since, and only by something that is no `Position`.
    """
    items = positions.root
    if not items:
        return "[]"
    if any(type(position) is not Position for position in items):
        return positions.to_stored()
    return _POSITIONS.dump_json(list(items)).decode()


async def insert(connection: CommittingConnection, rows: Sequence[Row], *, timeout: float) -> list[Row]:
    """Store what is new of `rows`, whose keys differ, in one transaction; the rows that it left out, because their key is
    there already or because they are of no portfolio. Raises as `fetch`: then none is stored, or that is unknown.
    """
    if len(rows) == 1:
        return [] if await connection.fetch(_ONE, *rows[0].values, timeout=timeout) else [rows[0]]
    columns = zip(*(row.values for row in rows), strict=True)
    added = await connection.fetch(_MANY, *columns, timeout=timeout)
    if len(added) == len(rows):
        return []
    keys = {tuple(key) for key in added}
    return [row for row in rows if row.key not in keys]


async def look_up(
    connection: CommittingConnection, rows: Sequence[Row], *, timeout: float
) -> list[PandaDatabaseError | None]:
    """For each row None if it is stored, and durably so, or why it is not. Raises as `fetch`."""
    keys = zip(*(row.key for row in rows), strict=True)
    found = await connection.fetch(_STORED, *keys, timeout=timeout)
    outcomes: list[PandaDatabaseError | None] = [None] * len(rows)
    for stored in found:
        place: int = stored["number"] - 1
        outcomes[place] = _outcome(rows[place].snapshot, stored)
    return outcomes


def _outcome(snapshot: PortfolioSnapshotCreate, stored: Any) -> PandaDatabaseError | None:
    if stored["broker"] is not None:
        values = {name: stored[name] for name in COMPARED}
        values["positions"] = Positions.from_stored(strict_json_loads(stored["positions"]))
        return conflict(snapshot, values)
    if stored["known"] != snapshot.broker:
        reason = "is not there" if stored["known"] is None else "is with another broker"
        return ForeignKeyViolation(
            f"the portfolio of the snapshot {reason}",
            sqlstate="23503",
            constraint=_FOREIGN_KEY,
            table=_TABLE.name,
            hint="Create it first with core.trading.portfolios.create(), under the broker that its snapshots name.",
        )
    return SerializationFailure("the row was removed while it was written", sqlstate="40001", table=_TABLE.name)


def conflict(snapshot: PortfolioSnapshotCreate, stored: dict[str, Any]) -> SnapshotConflict | None:
    """How the stored row of the same key differs, or None where it is the same to the last digit."""
    differing = tuple(name for name in COMPARED if _differ(getattr(snapshot, name), stored[name]))
    if not differing:
        return None
    return SnapshotConflict(
        f"the portfolio has another snapshot of that time; they differ in {', '.join(differing)}",
        sqlstate="23505",
        constraint=str(_TABLE.primary_key.name),
        table=_TABLE.name,
        differing=differing,
    )


def _differ(given: Any, stored: Any) -> bool:
    if isinstance(given, Decimal) or not isinstance(given, Positions):
        return bool(given != stored)
    return given.root != stored.root
