"""COPY inside the caller's transaction; stage and merge.

No function here commits: what is copied is stored with the caller's transaction or not at all. Rows for a table go by
way of a temporary one (`stage`, `copy_*`, `merge`), since COPY into a table with policies is refused by PostgreSQL.
"""

import io
import itertools
import time
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Table, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncSession

from core.config.options import Timeouts
from core.database.driver import DriverConnection, raw_connection
from core.database.errors import InvalidInput, PandaDatabaseError

__all__ = ["MergeResult", "copy_csv", "copy_out", "copy_records", "merge", "stage"]

_quote = postgresql.dialect().identifier_preparer.quote
_numbers = itertools.count(1)
_DEFAULT_TIMEOUT = Timeouts().bulk
_GRACE = 5.0  # seconds for the server to end a COPY by its own limit, before the connection is given up

CsvSource = bytes | Path | io.IOBase | AsyncIterable[bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeResult:
    """Rows of a merge by what became of them."""

    inserted: int
    updated: int
    unchanged: int


async def stage(session: AsyncSession, columns: Mapping[str, str], *, name: str = "staged") -> str:
    """Create a temporary table that vanishes with the transaction; its name, made unique.

    `columns` maps each column to its SQL type, in order.
    """
    table = f"{name}_{next(_numbers)}"
    body = ", ".join(f"{_quote(column)} {kind}" for column, kind in columns.items())
    await session.execute(text(f"CREATE TEMPORARY TABLE {_quote(table)} ({body}) ON COMMIT DROP"))
    return table


async def copy_records(
    session: AsyncSession,
    table: str,
    records: Iterable[Sequence[Any]],
    *,
    columns: Sequence[str],
    timeout: float = _DEFAULT_TIMEOUT,
) -> int:
    """Copy tuples in binary form; the number of rows. `timeout` seconds bound the whole COPY.

    Raises the error of the first bad row, after which the transaction can only be rolled back: `InvalidInput` for a value
    that is not of its column's type, else the server's. What `records` itself raises passes.
    """
    rows = _Counted(records)
    async with raw_connection(session, timeout=timeout + _GRACE) as raw:
        work = _untyped(raw).copy_records_to_table(table, records=rows, columns=list(columns))
        try:
            return await _timed(raw, f"COPY {table} FROM STDIN (FORMAT binary)", work, timeout)
        except (TypeError, ValueError, ArithmeticError, AttributeError) as error:  # how the driver's encoders refuse
            if isinstance(error, PandaDatabaseError) or error is rows.error:
                raise
        # Outside the handler: such an error holds the value.
        raise InvalidInput(f"row {rows.count} of the COPY into {table} holds a value that is not of its column's type")


class _Counted:
    """The caller's rows, how many were taken, and the caller's own error."""

    def __init__(self, records: Iterable[Sequence[Any]]) -> None:
        self._records = records
        self.count = 0
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[Sequence[Any]]:
        try:
            for record in self._records:
                self.count += 1
                yield record
        except Exception as error:  # the caller's own, told apart later from what COPY raises; nothing is swallowed
            self.error = error
            raise


async def copy_csv(
    session: AsyncSession,
    table: str,
    source: CsvSource,
    *,
    columns: Sequence[str],
    header: bool = False,
    null: str = "",
    timeout: float = _DEFAULT_TIMEOUT,
) -> int:
    """Copy UTF-8 CSV from bytes, a file or a stream; the number of rows. `timeout` seconds bound the whole COPY.

    What opening or reading the source raises passes.
    """
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    async with raw_connection(session, timeout=timeout + _GRACE) as raw:
        work = _untyped(raw).copy_to_table(
            table,
            source=stream,
            columns=list(columns),
            format="csv",
            header=header,
            null=null,
            encoding="utf-8",
        )
        return await _timed(raw, f"COPY {table} FROM STDIN (FORMAT csv)", work, timeout)


async def copy_out(
    session: AsyncSession,
    query: str,
    *args: Any,
    output: Any,
    header: bool = True,
    timeout: float = _DEFAULT_TIMEOUT,
) -> int:
    """Copy a query's rows as CSV into `output` (a path, a binary file, or an async callable taking bytes).

    `args` stand for $1, $2... of the query. Returns the number of rows.
    """
    async with raw_connection(session, timeout=timeout + _GRACE) as raw:
        work = _untyped(raw).copy_from_query(query, *args, output=output, format="csv", header=header)
        return await _timed(raw, f"COPY ({query}) TO STDOUT (FORMAT csv)", work, timeout)


async def merge(
    session: AsyncSession,
    target: Table,
    staged: str,
    *,
    key: Sequence[str],
    columns: Sequence[str],
    untouched: Mapping[str, str] | None = None,
) -> MergeResult:
    """Insert the staged rows that are new and update those that differ; rows that are equal are not written.

    `key` and `columns` are names common to both tables; `key` must be unique in each. `untouched` maps columns that
    are written with the row but whose difference alone is no reason to write it, to SQL expressions over `excluded`.
    """
    extra = dict(untouched or {})
    names = [*key, *columns]
    listed = ", ".join(_quote(name) for name in [*names, *extra])
    chosen = ", ".join(f"s.{_quote(name)}" for name in [*names, *extra])
    match = " AND ".join(f"t.{_quote(name)} = s.{_quote(name)}" for name in key)
    theirs = ", ".join(f"s.{_quote(name)}" for name in columns)
    ours = ", ".join(f"t.{_quote(name)}" for name in columns)
    sets = ", ".join(
        [f"{_quote(name)} = excluded.{_quote(name)}" for name in columns]
        + [f"{_quote(name)} = {expression}" for name, expression in extra.items()]
    )
    table = _quote(target.name)
    statement = f"""
        WITH applied AS (
            INSERT INTO {table} ({listed})
            SELECT {chosen} FROM {_quote(staged)} s LEFT JOIN {table} t ON {match}
            WHERE t.{_quote(key[0])} IS NULL OR ROW({theirs}) IS DISTINCT FROM ROW({ours})
            ON CONFLICT ({", ".join(_quote(name) for name in key)}) DO UPDATE SET {sets}
            RETURNING (xmax = 0) AS fresh
        )
        SELECT count(*) FILTER (WHERE fresh) AS inserted, count(*) FILTER (WHERE NOT fresh) AS updated,
            (SELECT count(*) FROM {_quote(staged)}) AS given
        FROM applied
    """  # noqa: S608 - every name is quoted
    row = (await session.execute(text(statement))).one()
    return MergeResult(inserted=row.inserted, updated=row.updated, unchanged=row.given - row.inserted - row.updated)


def _untyped(raw: DriverConnection) -> Any:
    """The driver's COPY methods carry no types."""
    return raw


async def _timed(raw: DriverConnection, statement: str, work: Any, timeout: float) -> int:
    """Await a COPY under a server-side limit of its own, report it, and read the count from its status."""
    start, failure = time.perf_counter(), None
    try:
        await raw.execute(f"SET LOCAL statement_timeout = {timeout * 1000:.0f}")
        status: str = await work
        await raw.execute("SET LOCAL statement_timeout TO DEFAULT")
    except BaseException as error:  # cancellation is reported too; nothing is swallowed
        failure = error
        raise
    finally:
        if raw.on_statement is not None:
            raw.on_statement(statement, time.perf_counter() - start, failure)
    return int(status.rpartition(" ")[2])
