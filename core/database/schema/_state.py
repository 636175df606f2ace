"""Where a database's schema stands against the migration files of this release."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, assert_never

from sqlalchemy import MetaData, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from core.database.errors import (
    SchemaAhead,
    SchemaBehind,
    SchemaError,
    SchemaMissing,
    SchemaMultipleHeads,
    SchemaTablesMissing,
    SchemaUnknownRevision,
    SchemaUnstamped,
    translate,
)
from core.database.schema._scripts import Scripts, read

Status = Literal[
    "at_head", "empty", "unstamped", "behind", "ahead", "unknown_revision", "multiple_heads", "tables_missing"
]

_UNDEFINED_TABLE = "42P01"
# Rows and the catalog are read on two snapshots: a migration that commits between them looks like a stamp without tables, or
# like tables without a stamp. Who sees that looks once more.
_CONTRADICTIONS = frozenset({"tables_missing", "unstamped"})
# On a new connection planning is the cost: no catalog is scanned and nothing sorted. Names travel and stamps come as text[],
# since for another array the driver would first ask the server what that is.
_STAMPS = "ARRAY(SELECT version_num::text FROM alembic_version)"
_PRESENT = "ARRAY(SELECT n FROM unnest(CAST(:names AS text[])) n WHERE to_regclass(quote_ident(n)) IS NOT NULL)"
_BOTH = text(f"SELECT {_STAMPS}, {_PRESENT}")
_STAMPS_ONLY = text(f"SELECT {_STAMPS}")
_PRESENT_ONLY = text(f"SELECT {_PRESENT}")


@dataclass(frozen=True, slots=True)
class SchemaState:
    """What a database says about its schema, against this release."""

    status: Status
    current: tuple[str, ...]
    """The revisions recorded in alembic_version, sorted: one in a healthy database, none in an empty one."""
    head: str
    """The newest revision among the migration files; several, joined by a comma, if the package is broken."""
    missing_tables: tuple[str, ...]
    """The tables of the models that are not there, sorted. Meaningful at head; all of them in an empty database."""
    pending: tuple[str, ...]
    """The revisions that lead to the head, oldest first."""
    present_tables: tuple[str, ...] = ()
    """The tables of the models that are there, or other relations of their names, sorted."""

    def describe(self) -> str:
        """One plain sentence."""
        recorded = ", ".join(self.current)
        match self.status:
            case "at_head":
                return f"The schema is at head ({self.head})."
            case "empty":
                return "The database has none of this project's tables."
            case "unstamped":
                return f"No revision is recorded, yet tables are there: {', '.join(self.present_tables)}."
            case "behind":
                steps = "one migration" if len(self.pending) == 1 else f"{len(self.pending)} migrations"
                return f"The schema is at revision {recorded}, {steps} behind head {self.head}."
            case "ahead":
                return f"The schema is at revision {recorded}, newer than {self.head}, the head of this release."
            case "unknown_revision":
                return f"The database records revision {recorded}, which is none of this project's (head {self.head})."
            case "multiple_heads":
                if len(self.current) > 1:
                    return f"The database records more than one revision: {recorded}."
                return f"The migration files have more than one head: {self.head}."
            case "tables_missing":
                return f"The schema is recorded at head ({self.head}), but tables are missing: {', '.join(self.missing_tables)}."
            case _:
                assert_never(self.status)

    def raise_unless_at_head(self) -> None:
        """Raise the `SchemaError` that stands for this state, unless the schema is at head and whole."""
        error = self._refusal()
        if error is not None:
            raise error

    def _refusal(self) -> SchemaError | None:
        said = self.describe()
        match self.status:
            case "at_head":
                return None
            case "empty":
                return SchemaMissing(said, hint="Create them with `panda migrate upgrade`.")
            case "unstamped":
                return SchemaUnstamped(
                    said,
                    hint="They were not made by this project's migrations. `panda migrate adopt` takes them over if they are "
                    "this project's or the original Alpha Panda's; else name an empty database in the URL.",
                )
            case "behind":
                return SchemaBehind(said, hint="Bring it to head with `panda migrate upgrade`.")
            case "ahead":
                return SchemaAhead(
                    said,
                    hint="This database was migrated by a newer release: upgrade the application, or, with that release, run "
                    f"`panda migrate downgrade {self.head}`.",
                )
            case "unknown_revision":
                return SchemaUnknownRevision(
                    said,
                    hint="Check that the URL names the right database; `panda migrate history` lists the revisions known here.",
                )
            case "multiple_heads":
                return SchemaMultipleHeads(said, hint=self._which_head())
            case "tables_missing":
                return SchemaTablesMissing(
                    said,
                    hint="Restore them from a backup, or name an empty database in the URL and run `panda migrate upgrade`.",
                )
            case _:
                assert_never(self.status)

    def _which_head(self) -> str:
        if len(self.current) > 1:
            return (
                "Delete from alembic_version the row that is not the database's (`panda migrate history` shows their order), "
                "then run `panda migrate upgrade`."
            )
        return "Reinstall the package alpha-panda-core: its files must form one line in `panda migrate history`."


async def inspect(
    database: AsyncEngine | AsyncConnection, *, metadata: MetaData | None = None, versions: Path | None = None
) -> SchemaState:
    """Read where the schema stands; changes nothing.

    On an engine it is one round trip of a connection of its own, in no transaction, where the database is stamped. On a
    connection it joins the caller's transaction, in two statements of which none can fail for a missing table. `metadata`
    and `versions` (a folder of migration files) are this project's unless given. Raises `SchemaError` only for migration
    files that are no history, and what the server raises.
    """
    scripts = read(versions)
    names = tables_of(metadata)
    try:
        state = _judge(scripts, names, *await _look(database, names))
        if state.status in _CONTRADICTIONS:
            state = _judge(scripts, names, *await _look(database, names))
    except SQLAlchemyError as error:
        raise translate(error) or error from error
    return state


async def verify(
    database: AsyncEngine | AsyncConnection, *, metadata: MetaData | None = None, versions: Path | None = None
) -> SchemaState:
    """`inspect`, and raise unless the schema is exactly at head and whole.

    Each state has its own subclass of `SchemaError`: `SchemaMissing`, `SchemaUnstamped`, `SchemaBehind`, `SchemaAhead`,
    `SchemaUnknownRevision`, `SchemaMultipleHeads`, `SchemaTablesMissing`, with the mend in its hint.
    """
    state = await inspect(database, metadata=metadata, versions=versions)
    state.raise_unless_at_head()
    return state


def project_metadata() -> MetaData:
    """The models' metadata; imported late, because who gives metadata of its own need not load the models."""
    from core.database.models import Base

    return Base.metadata


def tables_of(metadata: MetaData | None) -> list[str]:
    """The names of the tables that must exist, sorted."""
    return sorted(table.name for table in (metadata or project_metadata()).tables.values())


async def _look(database: AsyncEngine | AsyncConnection, names: Sequence[str]) -> tuple[list[str], list[str]]:
    if isinstance(database, AsyncConnection):
        return await _look_carefully(database, names)
    async with database.connect() as connection:
        if database.get_execution_options().get("pgbouncer"):
            # There a statement outside a transaction may be parsed by one server and run by another.
            return await _look_carefully(connection, names)
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        try:
            row: Any = (await connection.execute(_BOTH, {"names": names})).one()
        except SQLAlchemyError as error:
            found = translate(error)
            if found is None or found.sqlstate != _UNDEFINED_TABLE:
                raise
            return await _look_carefully(connection, names)
        return row[0], row[1]


async def _look_carefully(connection: AsyncConnection, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Without naming a table that may not be there: a failed statement would end the caller's transaction."""
    asked = [*names, "alembic_version"]
    present: list[str] = (await connection.execute(_PRESENT_ONLY, {"names": asked})).scalar_one()
    if "alembic_version" not in present:
        return [], present
    stamps: list[str] = (await connection.execute(_STAMPS_ONLY)).scalar_one()
    return stamps, [name for name in present if name in names]


def _judge(scripts: Scripts, names: Sequence[str], stamps: Sequence[str], present: Sequence[str]) -> SchemaState:
    status = _status(scripts, names, stamps, present)
    current = stamps[0] if stamps else None
    walkable = status in ("at_head", "empty", "behind", "tables_missing")
    return SchemaState(
        status=status,
        current=tuple(sorted(stamps)),
        head=scripts.head,
        missing_tables=tuple(sorted(set(names) - set(present))),
        pending=tuple(item.revision for item in scripts.pending(current)) if walkable else (),
        present_tables=tuple(sorted(present)),
    )


def _status(scripts: Scripts, names: Sequence[str], stamps: Sequence[str], present: Sequence[str]) -> Status:
    if len(stamps) > 1 or len(scripts.heads) > 1:
        return "multiple_heads"
    if not stamps:
        return "unstamped" if present else "empty"
    if stamps[0] not in scripts.revisions:
        return "ahead" if _is_newer(stamps[0], scripts.head) else "unknown_revision"
    if stamps[0] != scripts.head:
        return "behind"
    return "at_head" if set(names) <= set(present) else "tables_missing"


def _is_newer(revision: str, head: str) -> bool:
    """Revision ids are numbers of four digits that grow; a number past the head comes from a later release."""
    return all(part.isascii() and part.isdigit() for part in (revision, head)) and (
        len(revision) == len(head) and revision > head
    )
