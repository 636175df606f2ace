"""Take over a database whose tables are this project's, but whose stamp is lost, unknown or in another place."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, MetaData, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from core.config.options import Timeouts
from core.database.errors import SchemaError, SchemaMissing, SchemaTablesMissing, SchemaUnstamped
from core.database.schema._catalog import Catalog, CatalogEntry
from core.database.schema._drift import joined, oddities, without_schema_rights
from core.database.schema._expected import expected, live
from core.database.schema._lock import migration_lock
from core.database.schema._scripts import Revision, Scripts, read
from core.database.schema._state import SchemaState, inspect, project_metadata
from core.database.schema._words import Difference, compare

_STAMP_TABLE = "alembic_version"
_STAMP = (
    # As Alembic makes it.
    text(
        "CREATE TABLE IF NOT EXISTS alembic_version"
        " (version_num varchar(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
    ),
    text("DELETE FROM alembic_version"),
    text("INSERT INTO alembic_version (version_num) VALUES (:revision)"),
)
_ALIKE = 0.75
"""The share of a table's columns by which it is recognised as ours, changed; below it is somebody else's."""


@dataclass(frozen=True, slots=True)
class Adoption:
    """What became of an adoption, or would."""

    before: SchemaState
    revision: str
    """The revision whose schema the database has, or comes closest to."""
    differences: tuple[Difference, ...]
    """What tells the database from it. If there is drift among them nothing was changed."""
    stamped: bool
    """Whether the revision was recorded now; with `dry_run`, would be."""

    @property
    def drift(self) -> tuple[Difference, ...]:
        return tuple(item for item in self.differences if item.severity == "drift")

    @property
    def pending(self) -> bool:
        """Whether an upgrade is to follow."""
        return not self.drift and self.revision != self.before.head


async def adopt(
    engine: AsyncEngine,
    *,
    dry_run: bool = False,
    timeouts: Timeouts | None = None,
    metadata: MetaData | None = None,
    versions: Path | None = None,
) -> Adoption:
    """Record the revision whose schema the database has, if it has one to the last constraint; else change nothing.

    Every revision of this release is compared through the catalog, so that a database of an older one is stamped with
    that and can be upgraded from there. Owns its transaction, under the migration lock. One that is stamped rightly is
    left alone.

    Raises `SchemaMissing` if none of our tables is there, `SchemaUnstamped` if tables bear our names and are not ours,
    `SchemaTablesMissing` if some are missing, as after half a restore, `SchemaAhead` if a newer release has stamped it,
    and `SchemaLockTimeout`.
    """
    limits, tables, scripts = timeouts or Timeouts(), metadata or project_metadata(), read(versions)
    async with migration_lock(engine, timeouts=limits) as worker, worker.begin() as transaction:
        state = await inspect(worker, metadata=tables, versions=versions)
        if state.status == "ahead":
            state.raise_unless_at_head()
        found = await live(worker)
        revision, differences = _closest(found, scripts, state)
        differences = joined(differences, await oddities(worker, found))
        drifted = any(item.severity == "drift" for item in differences)
        stamped = not drifted and state.current != (revision,)
        if stamped and not dry_run:
            await _stamp(worker, revision)
        else:
            await transaction.rollback()
    return Adoption(state, revision, differences, stamped)


async def create_all(
    connection: AsyncConnection, *, metadata: MetaData | None = None, versions: Path | None = None
) -> None:
    """Create every table of this release and stamp the head, in the caller's transaction, who holds `migration_lock`."""

    def work(sync: Connection) -> None:
        from core.database.schema import _alembic  # late: who only looks does not pay for it

        (metadata or project_metadata()).create_all(sync, checkfirst=False)
        _alembic.stamp(sync, scripts=read(versions))

    await connection.run_sync(work)


def _closest(found: Catalog, scripts: Scripts, state: SchemaState) -> tuple[str, tuple[Difference, ...]]:
    """The revision that the least tells apart, the recorded one and then the newest first among equals."""
    here = _without_stamp(without_schema_rights(found))
    heads = {
        step.revision: _without_stamp(expected(scripts.folder, step.revision, schema=found.schema))
        for step in reversed(_line(scripts))
    }
    _refuse_strangers(here, list(heads.values()))
    judged = {
        revision: compare(here, head, name="head" if revision == scripts.head else f"revision {revision}")
        for revision, head in heads.items()
    }

    def distance(revision: str) -> tuple[int, bool]:
        drifts = sum(_weight(item) for item in judged[revision] if item.severity == "drift")
        return drifts, (revision,) != state.current

    revision = min(judged, key=distance)
    _refuse_half(judged[revision], revision)
    return revision, judged[revision]


def _weight(item: Difference) -> int:
    return 20 if item.kind == "table" else 1


def _line(scripts: Scripts) -> Sequence[Revision]:
    if len(scripts.heads) > 1:
        raise SchemaError(f"The migration files have more than one head: {scripts.head}.")
    return scripts.line(scripts.head)


def _without_stamp(found: Catalog) -> Catalog:
    return Catalog(found.schema, tuple(entry for entry in found.entries if entry.table != _STAMP_TABLE))


def _refuse_strangers(here: Catalog, revisions: Sequence[Catalog]) -> None:
    """Raise if the database has none of our tables, or tables that share nothing with ours but the name.

    A table is held against what it was at every revision, the newest first.
    """
    known, present = [_columns(revision) for revision in revisions], _columns(here)
    wanted = known[0]
    ours = [table for table in wanted if table in present]
    if not ours:
        raise SchemaMissing(
            "The database has none of this project's tables.", hint="Create them with `panda migrate upgrade`."
        )
    strangers = [table for table in ours if not any(_alike(then.get(table), present[table]) for then in known)]
    if strangers:
        words = "; ".join(
            f"{table} has {_some(present[table] - wanted[table])} and lacks {_some(wanted[table] - present[table])}"
            for table in strangers
        )
        raise SchemaUnstamped(
            f"Tables here bear our names and are not ours: {words}.",
            hint="Name another database in the URL. Nothing was changed.",
        )


def _alike(wanted: set[str] | None, present: set[str]) -> bool:
    return wanted is not None and len(wanted & present) >= _ALIKE * len(wanted)


def _refuse_half(differences: Sequence[Difference], revision: str) -> None:
    missing = sorted(item.name for item in differences if item.severity == "drift" and item.kind == "table")
    if missing:
        raise SchemaTablesMissing(
            f"Only a part of the tables of revision {revision} is here; missing: {', '.join(missing)}.",
            hint="It looks like half a restore: restore the backup anew into an empty database. Nothing was changed.",
        )


def _columns(found: Catalog) -> dict[str, set[str]]:
    tables: dict[str, set[str]] = {entry.name: set() for entry in found.entries if entry.kind == "table"}
    for entry in found.entries:
        if entry.kind == "column":
            tables.setdefault(entry.table, set()).add(_bare_column(entry))
    return tables


def _bare_column(entry: CatalogEntry) -> str:
    return entry.name.removeprefix(f"{entry.table}.")


def _some(names: set[str]) -> str:
    first = sorted(names)
    return ", ".join(first[:4]) + (f" and {len(first) - 4} more" if len(first) > 4 else "") if first else "nothing else"


async def _stamp(worker: AsyncConnection, revision: str) -> None:
    # By hand: what stands there may be no revision of ours, from which Alembic would not move on.
    for statement in _STAMP:
        await worker.execute(statement, {"revision": revision} if ":revision" in statement.text else {})
