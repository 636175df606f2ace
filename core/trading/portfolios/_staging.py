"""Rows of a file, staged beside the table: repeats taken out, compared with what is stored, inserted."""

from collections.abc import AsyncIterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from core.config.options import Timeouts
from core.database import bulk
from core.database.errors import SerializationFailure
from core.trading.portfolios._file_reports import (
    KEPT_ROWS,
    ConflictingSnapshot,
    RejectedSnapshot,
    RepeatedSnapshot,
)
from core.trading.portfolios._frames import SNAPSHOT_COLUMNS
from core.trading.portfolios._rows import STAGED_LINES

_LIMIT = Timeouts().bulk
_VALUES = SNAPSHOT_COLUMNS[2:]


def _value(alias: str, column: str) -> str:
    return f"CAST({alias}.{column} AS jsonb)" if column == "positions" and alias != "t" else f"{alias}.{column}"


def _row(alias: str) -> str:
    return f"ROW({', '.join(_value(alias, column) for column in _VALUES)})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeats:
    """Rows of a portfolio and time that an earlier row of the file names; they are gone from the staged ones."""

    equal: int
    equal_rows: tuple[RepeatedSnapshot, ...]
    contradicting: int
    contradicting_rows: tuple[RejectedSnapshot, ...]


NO_REPEATS = Repeats(equal=0, equal_rows=(), contradicting=0, contradicting_rows=())


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """Staged rows whose portfolio and time are stored."""

    equal: int
    different: int
    different_rows: tuple[ConflictingSnapshot, ...]


async def stage_rows(session: AsyncSession, pieces: AsyncIterable[bytes]) -> str:
    """Copy CSV in the order of `STAGED_LINES` into a table of this transaction; its name. Statements may take long then."""
    table = await bulk.stage(session, STAGED_LINES, name="snapshots")
    await bulk.copy_csv(session, table, pieces, columns=list(STAGED_LINES))
    await session.execute(text(f"SET LOCAL statement_timeout = '{_LIMIT}s'"))
    await session.execute(text(f"ANALYZE {table} (portfolio_id, snapshot_time)"))
    return table


async def take_out_repeats(session: AsyncSession, staged: str, *, label: str) -> Repeats:
    """The first row of each portfolio and time stays. `label` is the file's word for the time."""
    key = "portfolio_id, snapshot_time"
    some = f"SELECT EXISTS (SELECT FROM {staged} GROUP BY {key} HAVING count(*) > 1)"  # noqa: S608 - names of our own
    if not await session.scalar(text(some)):
        return NO_REPEATS
    repeats = (
        f"SELECT s.line, f.line AS first_line, s.portfolio_id, s.snapshot_time, {_row('s')} = {_row('f')} AS equal"  # noqa: S608
        f" FROM (SELECT *, min(line) OVER (PARTITION BY {key}) AS first FROM {staged}) s"
        f" JOIN {staged} f ON f.line = s.first WHERE s.line > s.first"
    )
    table = f"{staged}_repeats"
    await session.execute(text(f"CREATE TEMPORARY TABLE {table} ON COMMIT DROP AS {repeats}"))
    counts = f"SELECT count(*) FILTER (WHERE equal), count(*) FILTER (WHERE NOT equal) FROM {table}"  # noqa: S608
    equal, contradicting = (await session.execute(text(counts))).one()
    columns = "line, first_line, portfolio_id, snapshot_time"
    equal_rows = await session.execute(
        text(f"SELECT {columns} FROM {table} WHERE equal ORDER BY line LIMIT {KEPT_ROWS}")  # noqa: S608
    )
    others = await session.execute(
        text(f"SELECT line, first_line FROM {table} WHERE NOT equal ORDER BY line LIMIT {KEPT_ROWS}")  # noqa: S608
    )
    await session.execute(text(f"DELETE FROM {staged} WHERE line IN (SELECT line FROM {table})"))  # noqa: S608
    return Repeats(
        equal=equal,
        equal_rows=tuple(
            RepeatedSnapshot(line=line, first_line=first, portfolio_id=portfolio, snapshot_time=time)
            for line, first, portfolio, time in equal_rows
        ),
        contradicting=contradicting,
        contradicting_rows=tuple(
            RejectedSnapshot(line=line, field=label, reason=f"stands in line {first} with other values")
            for line, first in others
        ),
    )


async def compare_with_stored(session: AsyncSession, staged: str, period: tuple[datetime, datetime]) -> Stored:
    """`period` holds the times of all staged rows; the partitions outside it are not looked at."""
    joined = (
        f"FROM {staged} s JOIN portfolio_snapshots t USING (portfolio_id, snapshot_time)"
        " WHERE snapshot_time BETWEEN :first AND :last"
    )
    values: dict[str, datetime] = {"first": period[0], "last": period[1]}
    different = f"{_row('s')} IS DISTINCT FROM {_row('t')}"
    counts = f"SELECT count(*), count(*) FILTER (WHERE {different}) {joined}"
    found, others = (await session.execute(text(counts), values)).one()
    if not others:
        return Stored(equal=found, different=0, different_rows=())
    fields = ", ".join(
        f"CASE WHEN {_value('s', column)} IS DISTINCT FROM {_value('t', column)} THEN '{column}' END"
        for column in _VALUES
    )
    rows = await session.execute(
        text(
            f"SELECT s.line, portfolio_id, snapshot_time, array_remove(ARRAY[{fields}], NULL) {joined} AND {different}"
            f" ORDER BY s.line LIMIT {KEPT_ROWS}"
        ),
        values,
    )
    return Stored(
        equal=found - others,
        different=others,
        different_rows=tuple(
            ConflictingSnapshot(line=line, portfolio_id=portfolio, snapshot_time=time, fields=tuple(names))
            for line, portfolio, time, names in rows
        ),
    )


async def insert_new(session: AsyncSession, staged: str, *, expected: int) -> None:
    """Insert what is not stored. Raises `SerializationFailure`, which may be tried again, where another transaction has
    stored some of it since the comparison.
    """
    columns = ", ".join(SNAPSHOT_COLUMNS)
    chosen = columns.replace("positions", "CAST(positions AS jsonb)")
    added = await session.scalar(
        text(
            f"WITH added AS (INSERT INTO portfolio_snapshots ({columns}) SELECT {chosen} FROM {staged}"  # noqa: S608
            " ON CONFLICT DO NOTHING RETURNING 1) SELECT count(*) FROM added"
        )
    )
    if added != expected:
        raise SerializationFailure(
            "another transaction has stored snapshots of the same portfolios and times meanwhile"
        )


async def missing_months(session: AsyncSession, names: list[str]) -> tuple[str, ...]:
    """Of these partitions those that there are not, in order."""
    query = text(
        "SELECT name FROM unnest(CAST(:names AS text[])) AS name WHERE to_regclass(name) IS NULL ORDER BY name"
    )
    return tuple(await session.scalars(query, {"names": names}))
