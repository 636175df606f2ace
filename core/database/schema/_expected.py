"""What each revision makes, as PostgreSQL spells it.

It is stored beside the migrations, so that looking for drift needs no scratch database and no right to make one. A catalog is
a file of JSON lines, an entry each: `catalogs/<revision>.jsonl` beside the folder of the migration files. It is written from a
database that the migrations have made (`python -m tests.expected_catalogs`); a test compares it with one.
"""

import json
import re
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from core.database.errors import SchemaError, translate
from core.database.schema._catalog import Catalog, CatalogEntry, catalog

# What a constant in a definition is spelled by. In a statement each, since a server may lack none of them.
_SPELLING = text(
    "SELECT current_schema(), set_config('TimeZone', 'UTC', true), set_config('DateStyle', 'ISO, MDY', true),"
    " set_config('IntervalStyle', 'postgres', true), set_config('bytea_output', 'hex', true),"
    " set_config('extra_float_digits', '1', true), set_config('quote_all_identifiers', 'off', true)"
)
_ONE_SNAPSHOT = text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")


def folder_of(versions: Path) -> Path:
    """Where the catalogs of a folder of migration files are."""
    return versions.parent / "catalogs"


def expected(versions: Path, revision: str, *, schema: str = "public") -> Catalog:
    """The catalog of a database at `revision`, as if made in `schema`. Raises `SchemaError` if none is stored."""
    file = folder_of(versions) / f"{revision}.jsonl"
    try:
        entries = _read(file, file.stat().st_mtime_ns)
    except FileNotFoundError:
        raise SchemaError(
            f"the release holds no catalog of revision {revision}, so that nothing can be compared with it",
            hint="Write it with `python -m tests.expected_catalogs` where the migration was made, or reinstall "
            "alpha-panda-core.",
        ) from None
    return Catalog(schema, entries if schema == "public" else _moved(entries, schema))


def write(versions: Path, revision: str, found: Catalog) -> Path:
    """Store the catalog of a database that stands at `revision`; the file.

    Rights on the schema itself are left out: they are the database's and no migration's.
    """
    file = folder_of(versions) / f"{revision}.jsonl"
    file.parent.mkdir(exist_ok=True)
    lines = [
        json.dumps([entry.kind, entry.name, entry.table, entry.definition])
        for entry in found.entries
        if not is_right_on_schema(entry)
    ]
    file.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return file


@asynccontextmanager
async def one_snapshot(engine: AsyncEngine) -> AsyncGenerator[AsyncConnection]:
    """A connection in a read-only transaction whose statements all see the same moment; it is rolled back."""
    async with engine.connect() as connection:
        await connection.execute(_ONE_SNAPSHOT)
        yield connection
        await connection.rollback()


async def live(connection: AsyncConnection) -> Catalog:
    """The catalog of the schema that unqualified names mean, spelled as the stored ones are.

    The settings that spelling depends on are changed until the transaction ends.
    """
    try:
        schema: str | None = (await connection.execute(_SPELLING)).one()[0]
    except SQLAlchemyError as error:
        raise translate(error) or error from error
    if schema is None:
        raise SchemaError(
            "the search_path of this role names no schema that exists",
            hint="Set it: ALTER ROLE ... SET search_path = public.",
        )
    return await catalog(connection, schema=schema)


def is_right_on_schema(entry: CatalogEntry) -> bool:
    return entry.kind == "privileges" and entry.name.startswith("on schema ")


@lru_cache(maxsize=16)
def _read(file: Path, _changed: int) -> tuple[CatalogEntry, ...]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return tuple(sorted(CatalogEntry(*json.loads(line)) for line in lines if line))


def _moved(entries: Iterable[CatalogEntry], schema: str) -> tuple[CatalogEntry, ...]:
    """The same entries spelled for another schema than `public`."""
    plain = re.fullmatch(r"[a-z_][a-z0-9_$]*", schema) is not None
    quoted = schema if plain else '"' + schema.replace('"', '""') + '"'
    return tuple(
        sorted(
            CatalogEntry(
                entry.kind,
                entry.name,
                entry.table,
                re.sub(r"\bpublic\.", lambda _: f"{quoted}.", entry.definition),
            )
            for entry in entries
        )
    )
