"""The slowest statements that pg_stat_statements has seen."""

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from core.database.errors import StatementFault, UnsupportedFeature

_SCHEMA = text(
    "SELECT quote_ident(n.nspname::text) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
    " WHERE e.extname = 'pg_stat_statements'"
)
_MEND = (
    "A superuser adds it: ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements', a restart of the server,"
    " and CREATE EXTENSION pg_stat_statements in this database."
)
_HIDDEN = "<insufficient privilege>"


@dataclass(frozen=True, kw_only=True, slots=True)
class SlowStatement:
    """A statement with `$1` in the place of its values, over all its runs; times are seconds."""

    statement: str
    calls: int
    mean: float
    total: float
    rows: int


async def slowest_statements(source: AsyncEngine | AsyncSession, count: int = 5) -> tuple[SlowStatement, ...]:
    """The `count` statements of this database with a plan that took longest on average, slowest first.

    Statements of other roles are left out where the asking role may not read them (pg_read_all_stats may). Raises
    `UnsupportedFeature` with the mend where pg_stat_statements is not installed.
    """
    if isinstance(source, AsyncEngine):
        async with source.connect() as connection, AsyncSession(connection) as session:
            return await slowest_statements(session, count)
    schema = (await source.execute(_SCHEMA)).scalar()
    if schema is None:
        raise UnsupportedFeature("pg_stat_statements is not installed in this database", hint=_MEND)
    wanted = text(
        "SELECT query AS statement, calls, mean_exec_time / 1000 AS mean, total_exec_time / 1000 AS total, rows"  # noqa: S608 - quoted by the server
        f" FROM {schema}.pg_stat_statements"
        " WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND query <> :hidden"
        " AND query ~* '^[\\s(]*(select|insert|update|delete|merge|with|values)\\M'"
        " ORDER BY mean_exec_time DESC, queryid LIMIT :count"
    )
    try:
        rows = (await source.execute(wanted, {"hidden": _HIDDEN, "count": count})).mappings().all()
    except StatementFault as error:
        if error.sqlstate == "55000":
            raise UnsupportedFeature("pg_stat_statements is installed but not loaded", hint=_MEND) from error
        raise
    return tuple(SlowStatement(**row) for row in rows)
