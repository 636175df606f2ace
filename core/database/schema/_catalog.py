"""What stands in a database's catalog, in a form that can be compared and printed."""

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from core.database.errors import translate
from core.database.schema._catalog_sql import CATALOG_SQL

_QUERY = text(CATALOG_SQL)
_PATH = text("SELECT current_setting('search_path')")
_SET_PATH = text("SELECT set_config('search_path', :path, true)")


@dataclass(frozen=True, slots=True, order=True)
class CatalogEntry:
    """One thing in the catalog."""

    kind: str
    """table, column, constraint, index, policy, trigger, function, privileges, comment, ..."""
    name: str
    """With the table's name before a dot, where it belongs to one."""
    table: str
    """The table or view it belongs to, itself included; empty if to none."""
    definition: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.definition}"


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything in one schema that the application relies on; equal catalogs mean equal schemas.

    Partitions, owners, the order of columns, and what belongs to an extension are left out. `str()` gives a line an entry.
    """

    schema: str
    entries: tuple[CatalogEntry, ...]
    """Sorted."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.entries))


async def catalog(connection: AsyncConnection, *, schema: str = "public") -> Catalog:
    """Describe `schema` as PostgreSQL itself spells it. Runs in the caller's transaction and changes nothing.

    The spelling follows search_path, which is emptied for the query and put back, so the result depends on no setting.
    """
    try:
        path: str = (await connection.execute(_PATH)).scalar_one()
        await connection.execute(_SET_PATH, {"path": ""})
        rows = (await connection.execute(_QUERY, {"schema": schema})).all()
        await connection.execute(_SET_PATH, {"path": path})
    except SQLAlchemyError as error:
        raise translate(error) or error from error
    return Catalog(
        schema,
        tuple(sorted(CatalogEntry(kind, name, table or "", definition) for kind, name, table, definition in rows)),
    )


def differences(
    left: Catalog, right: Catalog, *, left_name: str = "the first", right_name: str = "the second"
) -> tuple[str, ...]:
    """What tells two catalogs apart, a sentence for each thing, sorted; empty if nothing does.

    Of a table that is on one side only, what belongs to it is not listed.
    """
    ours = {(entry.kind, entry.name): entry for entry in left.entries}
    theirs = {(entry.kind, entry.name): entry for entry in right.entries}
    one_sided = {key[1] for key in ours.keys() ^ theirs.keys() if key[0] in ("table", "view", "materialized view")}
    said: list[str] = []
    for key in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(key), theirs.get(key)
        entry = mine or other
        if mine == other or entry is None or (entry.table in one_sided and entry.name != entry.table):
            continue
        what = f"{entry.kind} {entry.name}"
        if mine is None or other is None:
            said.append(f"{what} is only in {left_name if mine else right_name}: {entry.definition}")
        else:
            said.append(f"{what} differs: {left_name} has {mine.definition}; {right_name} has {other.definition}")
    return tuple(said)
