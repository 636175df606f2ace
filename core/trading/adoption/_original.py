"""What the tables of the original Alpha Panda look like, and whether a database is one of its."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core.database import schema
from core.database.errors import SchemaError, SchemaUnstamped
from core.database.models import Base

ORIGINAL_SCHEMA = "alpha_panda_original"
"""Where the original's tables stand after an adoption."""

_TEXT, _INTEGER, _FLOAT = ("text", "character varying"), ("integer", "bigint"), ("double precision", "real")
_FLAG, _JSON, _NUMBER = ("boolean",), ("json", "jsonb"), ("numeric",)
_TIME = ("timestamp with time zone", "timestamp without time zone")

_Columns = dict[str, tuple[str, ...]]
TABLES: dict[str, _Columns] = {
    "users": {"id": _INTEGER, "username": _TEXT, "hashed_password": _TEXT, "created_at": _TIME},
    "trading_sessions": {
        "session_id": _TEXT,
        "user_id": _TEXT,
        "start_time": _TIME,
        "end_time": _TIME,
        "is_active": _FLAG,
        "session_data": _JSON,
        "created_at": _TIME,
        "updated_at": _TIME,
    },
    "strategy_configurations": {
        "id": _TEXT,
        "strategy_type": _TEXT,
        "instruments": _JSON,
        "parameters": _JSON,
        "is_active": _FLAG,
        "zerodha_trading_enabled": _FLAG,
        "created_at": _TIME,
        "updated_at": _TIME,
    },
    "portfolio_snapshots": {
        "id": _INTEGER,
        "portfolio_id": _TEXT,
        "broker_namespace": _TEXT,
        "strategy_id": _TEXT,
        "positions": _JSON,
        "total_realized_pnl": _FLOAT,
        "total_unrealized_pnl": _FLOAT,
        "total_pnl": _FLOAT,
        "cash": _FLOAT,
        "snapshot_time": _TIME,
        "created_at": _TIME,
    },
    "instruments": {
        "instrument_token": _INTEGER,
        "exchange_token": _INTEGER,
        "tradingsymbol": _TEXT,
        "name": _TEXT,
        "exchange": _TEXT,
        "segment": _TEXT,
        "instrument_type": _TEXT,
        "last_price": _NUMBER,
        "tick_size": _NUMBER,
        "lot_size": _INTEGER,
        "expiry": _TIME,
        "strike": _NUMBER,
        "is_active": _FLAG,
        "created_at": _TIME,
        "updated_at": _TIME,
        "source_file": _TEXT,
    },
}
"""The five tables that become ours. The last two came later, and need not be there."""

OPTIONAL = ("portfolio_snapshots", "instruments")
LATER_COLUMNS = {"strategy_configurations": ("use_composition",)}
"""Columns that only some of its releases have."""
WITHOUT_COUNTERPART = ("instrument_registry", "trading_events")
"""Tables of the original's that are kept as they are."""

_SHAPES = text(
    "SELECT c.relname, a.attname, format_type(a.atttypid, NULL) FROM pg_class c"
    " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
    " WHERE c.relnamespace = to_regnamespace(quote_ident(current_schema())) AND c.relkind IN ('r', 'p')"
    " AND c.relname = ANY(CAST(:names AS text[]))"
)
_DEPENDENTS = text(
    "SELECT DISTINCT CASE c.relkind WHEN 'v' THEN 'view ' WHEN 'm' THEN 'materialized view ' ELSE 'rule of ' END"
    " || CAST(c.oid AS regclass) FROM pg_depend d JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid"
    " JOIN pg_class c ON c.oid = r.ev_class WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid <> c.oid"
    " AND d.refobjid = ANY(CAST(CAST(:names AS text[]) AS regclass[]))"
    " UNION SELECT format('foreign key %s of %s', conname, conrelid::regclass) FROM pg_constraint WHERE contype = 'f'"
    " AND confrelid = ANY(CAST(CAST(:names AS text[]) AS regclass[]))"
    " AND conrelid <> ALL(CAST(CAST(:names AS text[]) AS regclass[])) ORDER BY 1"
)
_ADOPTED = text("SELECT to_regclass(:name) IS NOT NULL")


@dataclass(frozen=True, slots=True)
class Original:
    """A database that the original's models have made."""

    tables: tuple[str, ...]
    """Those of `TABLES` that are there, in its order."""
    kept: tuple[str, ...]
    """Those of `WITHOUT_COUNTERPART` that are there, and a stamp of its migrations."""
    has_composition: bool
    further_columns: tuple[str, ...]
    """Columns that it does not have itself, as table.column."""


async def adopted(connection: AsyncConnection) -> bool:
    """Whether an adoption has taken place."""
    return bool((await connection.execute(_ADOPTED, {"name": f"{ORIGINAL_SCHEMA}.adoption"})).scalar_one())


async def recognise(connection: AsyncConnection) -> Original | None:
    """The original's tables in this database; None if it is another kind of database.

    Raises `SchemaUnstamped` for one that looks like the original's and is not whole.
    """
    shapes = await _shapes(connection)
    faults = {table: fault for table, columns in TABLES.items() if (fault := _fault(table, shapes.get(table), columns))}
    ours = sorted((Base.metadata.tables.keys() - TABLES.keys()) & shapes.keys())
    if len(TABLES.keys() - faults.keys()) < 2:  # one table may be alike by accident
        return None
    if ours:
        raise _unwhole(f"beside the original's tables there are some of ours: {', '.join(ours)}")
    present = {table: fault for table, fault in faults.items() if table in shapes or table not in OPTIONAL}
    if present:
        raise _unwhole("; ".join(present.values()))
    stamp = ["alembic_version"] if "alembic_version" in shapes else []
    return Original(
        tables=tuple(table for table in TABLES if table in shapes),
        kept=tuple([table for table in WITHOUT_COUNTERPART if table in shapes] + stamp),
        has_composition="use_composition" in shapes["strategy_configurations"],
        further_columns=tuple(
            f"{table}.{column}"
            for table in TABLES
            for column in shapes.get(table, {})
            if column not in TABLES[table] and column not in LATER_COLUMNS.get(table, ())
        ),
    )


async def refuse_dependents(connection: AsyncConnection, tables: Sequence[str]) -> None:
    """Raise `SchemaError` if something else than these tables hangs on them, for they are about to be dropped."""
    found = list(await connection.scalars(_DEPENDENTS, {"names": list(tables)}))
    if found:
        raise SchemaError(
            f"Something depends on the original's tables: {', '.join(found)}.",
            hint="Drop it first, and make it anew on the new tables afterwards. Nothing was changed.",
        )


async def _shapes(connection: AsyncConnection) -> dict[str, dict[str, str]]:
    names = [*TABLES, *WITHOUT_COUNTERPART, *Base.metadata.tables, "alembic_version"]
    rows: Any = (await connection.execute(_SHAPES, {"names": names})).all()
    shapes: dict[str, dict[str, str]] = {}
    for table, column, kind in rows:
        shapes.setdefault(table, {})[column] = kind
    return shapes


def _fault(table: str, shape: dict[str, str] | None, columns: _Columns) -> str | None:
    """Why a table is not the original's."""
    if shape is None:
        return f"table {table} is missing"
    lacking = [column for column in columns if column not in shape]
    if lacking:
        return f"table {table} lacks the column{'s' if len(lacking) > 1 else ''} {', '.join(lacking)}"
    for column, kinds in columns.items():
        if shape[column] not in kinds:
            return f"column {table}.{column} is {shape[column]}, not {kinds[0]}"
    return None


def _unwhole(what: str) -> SchemaUnstamped:
    return SchemaUnstamped(
        f"This looks like the original Alpha Panda's database, but not like a whole one: {what}.",
        hint="Restore it whole into an empty database, or name another one in the URL. Nothing was changed.",
    )


async def head(connection: AsyncConnection) -> str:
    """The revision that the adopted database stands at."""
    return ", ".join((await schema.inspect(connection)).current)
