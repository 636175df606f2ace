"""What tells the live database from the migrations: everything in the catalog, not only the stamp."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import MetaData, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from core.database.errors import translate
from core.database.schema._catalog import Catalog
from core.database.schema._expected import expected, is_right_on_schema, live, one_snapshot
from core.database.schema._scripts import Scripts, read
from core.database.schema._state import SchemaState, inspect
from core.database.schema._words import Difference, compare

# Partitions are no part of a catalog, since writers make them; nor are the triggers behind foreign keys.
_PARTITIONS = text(
    "SELECT p.relname, c.relname, c.relpersistence::text, c.relkind::text, i.inhdetachpending,"
    " pg_get_expr(c.relpartbound, c.oid), ARRAY(SELECT x.indexrelid::regclass::text FROM pg_index x"
    " WHERE x.indrelid = c.oid AND NOT x.indisvalid ORDER BY 1)"
    " FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent JOIN pg_class c ON c.oid = i.inhrelid"
    " WHERE p.relkind = 'p' AND p.relnamespace = to_regnamespace(quote_ident(:schema)) AND c.relkind <> 'I' ORDER BY 1, 2"
)
_SILENCED = text(
    "SELECT DISTINCT t.relname, k.conname FROM pg_trigger g JOIN pg_class t ON t.oid = g.tgrelid"
    " JOIN pg_constraint k ON k.oid = g.tgconstraint"
    " WHERE g.tgisinternal AND g.tgenabled IN ('D', 'R') AND t.relnamespace = to_regnamespace(quote_ident(:schema))"
    " ORDER BY 1, 2"
)
_MONTH = re.compile(r"(.+)_y(\d{4})m(\d{2})")
_BOUNDS = re.compile(r"FOR VALUES FROM \('([^']*)'\) TO \('([^']*)'\)")


@dataclass(frozen=True, slots=True)
class Drift:
    """What a database is apart from the migrations."""

    state: SchemaState
    """What the database says of itself."""
    compared_with: str
    """The revision whose catalog the live one was compared with: the recorded one, or the head where none is known."""
    differences: tuple[Difference, ...]
    """Sorted, drift before notes."""

    @property
    def drift(self) -> tuple[Difference, ...]:
        return tuple(item for item in self.differences if item.severity == "drift")

    @property
    def notes(self) -> tuple[Difference, ...]:
        return tuple(item for item in self.differences if item.severity == "note")

    @property
    def clean(self) -> bool:
        """At head, and nothing but notes apart from it."""
        return self.state.status == "at_head" and not self.drift


async def drift(engine: AsyncEngine, *, metadata: MetaData | None = None, versions: Path | None = None) -> Drift:
    """Compare the live database with what its revision, by default the head, made in the catalog.

    One read-only transaction over the catalog, which works on a standby and behind PgBouncer. It needs USAGE on the
    schema and SELECT on alembic_version, no more; a newer server takes, for its milliseconds, the lock on our tables
    that any SELECT takes. What is expected was stored when the migration was made. Data is not looked at.

    Raises `SchemaError` if the release holds no catalog of the revision, and what the server raises.
    """
    scripts = read(versions)
    state = await inspect(engine, metadata=metadata, versions=versions)
    revision = _revision(scripts, state)
    async with one_snapshot(engine) as connection:
        found = await live(connection)
        further = await oddities(connection, found)
    named = "head" if revision == scripts.head else f"revision {revision}"
    against = expected(scripts.folder, revision, schema=found.schema)
    return Drift(state, revision, joined(compare(without_schema_rights(found), against, name=named), further))


def joined(apart: Sequence[Difference], further: Sequence[Difference]) -> tuple[Difference, ...]:
    """Both, sorted; of a table that is told as a lost partition it is not also said that it is not ours."""
    lost = {item.name for item in further if item.severity == "note"}
    return tuple(sorted([item for item in apart if item.kind != "table" or item.name not in lost] + [*further]))


def without_schema_rights(found: Catalog) -> Catalog:
    """Rights on the schema itself are the database's and no migration's."""
    return Catalog(found.schema, tuple(entry for entry in found.entries if not is_right_on_schema(entry)))


async def oddities(connection: AsyncConnection, found: Catalog) -> list[Difference]:
    """What is wrong with partitions and with the triggers behind foreign keys, which no catalog holds."""
    try:
        partitions: Any = (await connection.execute(_PARTITIONS, {"schema": found.schema})).all()
        silenced: Any = (await connection.execute(_SILENCED, {"schema": found.schema})).all()
    except SQLAlchemyError as error:
        raise translate(error) or error from error
    quote = postgresql.dialect().identifier_preparer.quote
    said = [item for row in partitions for item in _partition(_Partition(*row))]
    for table, constraint in silenced:
        says = f"foreign key {constraint} is not enforced on table {table}: its triggers are disabled"
        said.append(
            Difference(
                "drift", "trigger", f"{table}.{constraint}", says, f"ALTER TABLE {quote(table)} ENABLE TRIGGER ALL"
            )
        )
    attached = {row[1] for row in partitions}
    parents = {entry.name for entry in found.entries if entry.definition.startswith("partitioned by")}
    for entry in found.entries:
        month = _MONTH.fullmatch(entry.name) if entry.kind == "table" else None
        if month and month[1] in parents and entry.name not in attached:
            says = f"table {entry.name} is named as a partition of {month[1]} and is not attached to it"
            said.append(Difference("note", "partition", entry.name, says))
    return said


@dataclass(frozen=True, slots=True)
class _Partition:
    """A row of `_PARTITIONS`."""

    parent: str
    name: str
    persistence: str
    kind: str
    detaching: bool
    bounds: str
    invalid: list[str]


def _partition(part: _Partition) -> Iterator[Difference]:
    def odd(says: str, mend: str) -> Difference:
        return Difference("drift", "partition", name, f"partition {name} of {parent} {says}", mend)

    parent, name = part.parent, part.name
    if part.bounds == "DEFAULT":
        mend = f"move its rows, then ALTER TABLE {parent} DETACH PARTITION {name}"
        yield odd("is a default partition, which slows reads and blocks new months", mend)
    if part.detaching:
        yield odd("is half detached", f"ALTER TABLE {parent} DETACH PARTITION {name} FINALIZE")
    if part.persistence == "u":
        yield odd("is unlogged: a crash empties it", f"ALTER TABLE {name} SET LOGGED")
    if part.kind == "f":
        yield odd("is a foreign table", f"ALTER TABLE {parent} DETACH PARTITION {name}")
    for index in part.invalid:
        yield odd(f"has the invalid index {index}", f"REINDEX INDEX {index}")
    month, limits = _MONTH.fullmatch(name), _BOUNDS.fullmatch(part.bounds)
    if month and limits and (limits[1], limits[2]) != _month(int(month[2]), int(month[3])):
        says = f"holds {limits[1]} to {limits[2]}, not the UTC month of its name"
        yield odd(says, f"rename it: ALTER TABLE {name} RENAME TO ...")


def _month(year: int, month: int) -> tuple[str, str]:
    following = (year + month // 12, month % 12 + 1)
    return f"{year:04}-{month:02}-01 00:00:00+00", f"{following[0]:04}-{following[1]:02}-01 00:00:00+00"


def _revision(scripts: Scripts, state: SchemaState) -> str:
    """The one that the database records, if this release knows it."""
    if len(state.current) == 1 and state.current[0] in scripts.revisions:
        return state.current[0]
    return scripts.heads[-1]
