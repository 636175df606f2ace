"""Every row of a database in a few numbers that can be compared, whatever the server's version and settings."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from core.database.backup._manifest import Contents, SequenceValue, TableDigest
from core.database.errors import translate

_HALF = 2**64

# What a row's text depends on. Who backs up is bound by no policy, or by those alone that hide nothing: refuse_unreadable.
_SETTINGS = {
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "xmlbinary": "base64",
    "lc_monetary": "C",
    "search_path": "pg_catalog",
    "row_security": "on",
    "statement_timeout": "0",
    "jit": "off",
}
_SET = text("SELECT " + ", ".join(f"set_config('{name}', '{value}', true)" for name, value in _SETTINGS.items()))

USER_SCHEMAS = """
    SELECT n.oid, n.nspname FROM pg_catalog.pg_namespace n
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend d
        WHERE d.classid = 'pg_catalog.pg_namespace'::regclass AND d.objid = n.oid AND d.deptype = 'e')
"""
NOT_OF_EXTENSION = """NOT EXISTS (
    SELECT FROM pg_catalog.pg_depend d
    WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
"""
_RELATIONS = text(f"""
    SELECT c.oid::bigint AS oid, format('%I.%I', s.nspname, c.relname) AS name, c.relkind = 'S' AS is_sequence
    FROM pg_catalog.pg_class c JOIN ({USER_SCHEMAS}) s ON s.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'S') AND c.relpersistence <> 't' AND {NOT_OF_EXTENSION}
""")  # noqa: S608 - constants
# The inner query is fenced off by OFFSET: else the text of each row would be made once for each half.
_DIGEST = """
    SELECT count(*), coalesce(sum(('x' || substr(h, 1, 16))::bit(64)::bigint), 0)::text,
        coalesce(sum(('x' || substr(h, 17, 16))::bit(64)::bigint), 0)::text
    FROM (SELECT encode(sha256(convert_to((a_row.*)::text, 'UTF8')), 'hex') AS h FROM ONLY {table} a_row OFFSET 0) hashes
"""

Count = Callable[[int, int], None]
"""Called with the tables done and their total."""


async def read_contents(connection: AsyncConnection, *, progress: Count | None = None) -> Contents:
    """Digest every table and read every sequence, in the caller's transaction.

    For one moment in time that must be REPEATABLE READ. Sets what the text of rows depends on for the rest of the
    transaction, search_path included. Raises `PermissionDenied` naming the table that may not be read whole.
    """
    try:
        await connection.execute(_SET)
        relations = (await connection.execute(_RELATIONS)).all()
        names = sorted(row.name for row in relations if not row.is_sequence)
        tables: list[TableDigest] = []
        for name in names:
            tables.append(await _digest(connection, name))
            if progress is not None:
                progress(len(tables), len(names))
        sequences = await _sequences(connection, sorted(row.name for row in relations if row.is_sequence))
    except SQLAlchemyError as error:
        raise translate(error) or error from error
    return Contents(tables=tuple(tables), sequences=sequences)


async def compare(left: AsyncEngine, right: AsyncEngine) -> tuple[str, ...]:
    """What tells the rows and sequences of two databases apart, a sentence for each table; empty if nothing does.

    Each is read in a REPEATABLE READ READ ONLY transaction of its own.
    """
    return differences(await contents_of(left), await contents_of(right), left="the first", right="the second")


async def contents_of(engine: AsyncEngine) -> Contents:
    """`read_contents` in a transaction of its own. Raises `PermissionDenied` where policies may hide rows."""
    from core.database.backup._objects import refuse_unreadable  # late: it takes its schemas from here

    snapshot = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    async with snapshot.connect() as connection:
        await refuse_unreadable(connection, role=str(engine.url.username or "the login"))
        return await read_contents(connection)


def differences(
    mine: Contents, other: Contents, *, left: str = "the first", right: str = "the second"
) -> tuple[str, ...]:
    """What tells two contents apart, a sentence for each table or sequence, sorted; empty if nothing does."""
    said: list[str] = []
    ours = {table.name: table for table in mine.tables}
    theirs = {table.name: table for table in other.tables}
    for name in ours.keys() | theirs.keys():
        one, two = ours.get(name), theirs.get(name)
        if one is None or two is None:
            said.append(f"table {name} is only in {left if one else right}")
        elif one.rows != two.rows:
            said.append(f"table {name}: {left} has {_rows(one.rows)}, {right} {two.rows}")
        elif one.digest != two.digest:
            said.append(f"table {name}: {_rows(one.rows)} in both, but not the same ones")
    return tuple(sorted(said + _sequence_differences(mine.sequences, other.sequences, left, right)))


def _sequence_differences(
    mine: Sequence[SequenceValue], other: Sequence[SequenceValue], left: str, right: str
) -> list[str]:
    ours = {item.name: item for item in mine}
    theirs = {item.name: item for item in other}
    said: list[str] = []
    for name in ours.keys() | theirs.keys():
        one, two = ours.get(name), theirs.get(name)
        if one is None or two is None:
            said.append(f"sequence {name} is only in {left if one else right}")
        elif one != two:
            said.append(f"sequence {name}: {left} stands at {_stand(one)}, {right} at {_stand(two)}")
    return said


async def _digest(connection: AsyncConnection, table: str) -> TableDigest:
    # Past SQLAlchemy's text(): a colon in a quoted name would be a parameter to it.
    row: Any = (await connection.exec_driver_sql(_DIGEST.format(table=table))).one()
    return TableDigest(name=table, rows=row[0], digest="".join(f"{int(half) % _HALF:016x}" for half in row[1:]))


async def _sequences(connection: AsyncConnection, names: Sequence[str]) -> tuple[SequenceValue, ...]:
    found: list[SequenceValue] = []
    for name in names:
        row: Any = (await connection.exec_driver_sql(f"SELECT last_value, is_called FROM {name}")).one()  # noqa: S608 - quoted by the server
        found.append(SequenceValue(name=name, last_value=row[0], is_called=row[1]))
    return tuple(found)


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"


def _stand(value: SequenceValue) -> str:
    return f"{value.last_value}{'' if value.is_called else ' (not yet given out)'}"
