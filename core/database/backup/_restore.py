"""Restoring a backup: one transaction, proven equal before it is committed."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from core.database import schema
from core.database.backup._container import BLOCK, OpenBackup, opened_backup
from core.database.backup._contents import differences, read_contents
from core.database.backup._manifest import Manifest
from core.database.backup._objects import Thing, missing_roles, remove, shortened, things
from core.database.backup._progress import OnStep, Step, silent
from core.database.backup._script import run_definitions, run_rows
from core.database.backup._target import Target, opened
from core.database.backup._tools import Tools, find_tools
from core.database.driver import raw_connection
from core.database.engine import EngineOptions
from core.database.errors import BackupDiffers, BackupRefused, PandaDatabaseError, translate
from core.database.models import MAKE_RESTRICTED_ROLE, RESTRICTED_ROLE, Base

_NO_LIMIT = text("SELECT set_config('statement_timeout', '0', true)")
_STAMP = "public.alembic_version"
_OURS = ("at_head", "behind", "ahead", "tables_missing")


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport:
    """A backup that was restored and proven equal."""

    file: Path
    created_at: str
    """When the backup was made: ISO 8601, UTC."""
    database: str
    server_version: str
    revision: str | None
    tables: int
    rows: int
    removed: int
    """Tables, views, functions and so on that were there before; 0 in an empty database."""
    catalog_compared: bool
    """Whether constraints, indexes, policies, triggers, functions and privileges were compared too: on a server of the same
    major version, which spells them alike."""
    seconds: float
    warnings: tuple[str, ...]


async def restore(
    db_url: str,
    file: Path,
    *,
    options: EngineOptions | None = None,
    replace: bool = False,
    privileges: bool = True,
    programs: Path | None = None,
    progress: OnStep | None = None,
) -> RestoreReport:
    """Restore a backup into an empty database, or with `replace` in the place of what is in one of this project's.

    The file is checked before the database is touched. Everything else is one transaction under the migration lock: what was
    there is removed, the backup restored, every table's rows compared with the manifest's digests, and only then committed.
    Until that moment others see the old content, or wait for it; a failure, a kill, a full disk or a lost connection leaves
    it. Objects belong to the role of the URL, which needs to be no superuser. `privileges=False` leaves GRANTs out.

    Raises BackupDamaged for the file; BackupRefused where the backup and the database do not fit; BackupDiffers where the
    comparison fails; `LockTimeout` while others use the tables; `SchemaLockTimeout`, `PermissionDenied`, `DiskFull`,
    `CommitOutcomeUnknown`, and what connecting raises.
    """
    started, say = time.monotonic(), progress or silent
    with opened_backup(file.absolute()) as source:
        manifest = source.manifest
        await asyncio.to_thread(_check_dump, source, say)
        _refuse_foreign_revision(manifest)
        tools = await asyncio.to_thread(find_tools, at_least=int(manifest.dump_version.split(".")[0]), folder=programs)
        async with opened(db_url, options or EngineOptions(), create=True) as target:
            _refuse_server(manifest, target)
            try:
                removed = await _replace_all(source, target, tools, replace=replace, privileges=privileges, say=say)
            except SQLAlchemyError as error:
                raise translate(error) or error from error
            warnings = [*_warnings(manifest), *await analyzed(target.engine)]
    return RestoreReport(
        file=source.path,
        created_at=manifest.created_at.isoformat(),
        database=target.database,
        server_version=target.version,
        revision=manifest.revision,
        tables=len(manifest.contents.tables),
        rows=manifest.contents.rows,
        removed=removed,
        catalog_compared=manifest.server_major == target.major,
        seconds=time.monotonic() - started,
        warnings=tuple(warnings),
    )


async def apply(
    connection: AsyncConnection, source: OpenBackup, tools: Tools, *, major: int, privileges: bool, say: OnStep
) -> None:
    """Restore into the open transaction of an empty database and compare; the caller commits.

    `major` is the server's version. Raises BackupDiffers.
    """
    manifest, tables = source.manifest, len(source.manifest.contents.tables)
    plain = ("--no-owner", *(() if privileges else ("--no-privileges",)))
    what = source.descriptor, BLOCK
    async with raw_connection(connection) as raw:
        await run_definitions(raw, tools, *what, ("--section=pre-data", *plain))
        await run_rows(
            raw, tools, *what, ("--section=data", *plain),
            on_rows=lambda table, size: say(Step("restoring", size, None, "bytes", table)),
        )  # fmt: skip
    # Before constraints, indexes and policies are made: they change no row, and a forced policy would hide some.
    found = await read_contents(
        connection, progress=lambda done, total: say(Step("comparing rows", done, total, "tables"))
    )
    _refuse_difference(differences(manifest.contents, found, left="the backup", right="the database"))
    say(Step("building indexes", tables, tables, "tables"))
    async with raw_connection(connection) as raw:
        await run_definitions(raw, tools, *what, ("--section=post-data", *plain))
    if manifest.server_major == major:
        _refuse_difference(await _catalog_differences(connection, manifest, privileges=privileges))


async def analyzed(engine: AsyncEngine) -> list[str]:
    """Give the planner its statistics; a warning where that fails, since every row is stored already."""
    try:
        async with engine.connect() as connection:
            tables = [thing.identity for thing in await things(connection) if thing.holds_rows]
            await connection.rollback()
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.exec_driver_sql("SET statement_timeout = 0")
            if tables:
                await connection.exec_driver_sql(f"ANALYZE {', '.join(tables)}")
            await connection.invalidate()
    except PandaDatabaseError as error:
        return [f"the restore is complete, but ANALYZE failed ({error.message}); run it, or queries may be slow"]
    return []


def refuse_old_server(manifest: Manifest, *, major: int, what: str) -> None:
    """Raise BackupRefused where the server is older than the one that the backup comes from."""
    if manifest.server_major > major:
        raise BackupRefused(
            f"the backup comes from PostgreSQL {manifest.server_version} and {what} is PostgreSQL {major}, which is older",
            hint=f"Restore it into a server of version {manifest.server_major} or newer.",
        )


def _check_dump(source: OpenBackup, say: OnStep) -> None:
    total = source.manifest.dump_bytes
    source.check_dump(lambda done: say(Step("checking the file", done, total, "bytes")))


def _refuse_foreign_revision(manifest: Manifest) -> None:
    known = [revision.revision for revision in schema.history()]
    recorded = manifest.revision
    if recorded is None or recorded in known:
        return
    newer = len(recorded) == len(known[-1]) and recorded > known[-1]
    raise BackupRefused(
        f"the backup's schema is at revision {recorded}, "
        + (f"newer than {known[-1]}, the head of this release" if newer else "which is none of this project's"),
        hint="Restore it with the release that made it or a newer one"
        f" (it was made by {manifest.release}), or check that this is the right file.",
    )


def _refuse_server(manifest: Manifest, target: Target) -> None:
    if target.standby:
        raise BackupRefused(
            f"the server of {target.database} is a standby and takes no writes", hint="Name the primary in the URL."
        )
    refuse_old_server(manifest, major=target.major, what="this server")


async def _replace_all(
    source: OpenBackup, target: Target, tools: Tools, *, replace: bool, privileges: bool, say: OnStep
) -> int:
    """The whole transaction; how many things were removed in it."""
    async with schema.migration_lock(target.engine, timeouts=target.options.timeouts) as connection:
        async with connection.begin():
            await connection.execute(_NO_LIMIT)
            if privileges:
                await _refuse_missing_roles(connection, source.manifest)
            before = await things(connection)
            if before:
                await _refuse_content(connection, before, source.manifest, target.database, replace=replace)
                await remove(connection, before)
            await apply(connection, source, tools, major=target.major, privileges=privileges, say=say)
        return len(before)


async def _refuse_missing_roles(connection: AsyncConnection, manifest: Manifest) -> None:
    missing = await missing_roles(connection, manifest.roles)
    if RESTRICTED_ROLE in missing:
        await connection.exec_driver_sql(MAKE_RESTRICTED_ROLE)
        missing = await missing_roles(connection, manifest.roles)
    if missing:
        raise BackupRefused(
            f"policies or privileges in the backup name roles that this server does not have: {', '.join(missing)}",
            hint=f'Create them (CREATE ROLE "{missing[0]}" NOLOGIN), or leave privileges out with --no-privileges.',
        )


async def _refuse_content(
    connection: AsyncConnection, before: Sequence[Thing], manifest: Manifest, database: str, *, replace: bool
) -> None:
    """Refuse a database that is not empty, unless it is this project's and is to be replaced."""
    if not replace:
        raise BackupRefused(
            f"the database {database} is not empty: {shortened(before)}",
            hint="Name an empty database, or say --replace to put the backup in the place of all that is in it.",
        )
    state = await schema.inspect(connection)
    if state.status not in _OURS:
        raise BackupRefused(
            f"the database {database} is not recognised as this project's, so it is not replaced. {state.describe()}",
            hint="Name an empty database (createdb), or remove by hand what is in this one.",
        )
    known = {table.name for table in manifest.contents.tables} | {f"public.{name}" for name in Base.metadata.tables}
    roots = {line.split(":")[0].removeprefix("table ") for line in manifest.catalog if line.startswith("table ")}
    known |= {f"public.{name}" for name in roots} | {_STAMP}
    strange = [thing for thing in before if thing.holds_rows and thing.identity not in known]
    if strange:
        raise BackupRefused(
            f"the database {database} holds what is neither this release's nor in the backup: {shortened(strange)}",
            hint="Move it to another database or drop it yourself; a restore removes nothing that it does not know.",
        )


async def _catalog_differences(connection: AsyncConnection, manifest: Manifest, *, privileges: bool) -> tuple[str, ...]:
    """What of constraints, indexes, policies and so on did not come back; rights on the schema itself are the database's own."""
    found = {str(entry) for entry in (await schema.catalog(connection)).entries}
    left_out = "privileges on schema" if privileges else "privileges "
    missing = {f"only in the backup: {line}" for line in set(manifest.catalog) - found}
    added = {f"only in the database: {line}" for line in found - set(manifest.catalog)}
    return tuple(sorted(line for line in missing | added if not line.partition(": ")[2].startswith(left_out)))


def _refuse_difference(found: Sequence[str]) -> None:
    if found:
        raise BackupDiffers(
            "what was restored is not what the backup says it holds, and was rolled back",
            lines=found[:20],
            hint="The database is as it was. Try another backup, and report this: it should not happen.",
        )


def _warnings(manifest: Manifest) -> list[str]:
    if manifest.revision is None:
        return ["the backup records no revision: `panda migrate adopt` makes such a database this project's"]
    head = schema.history()[-1].revision
    if manifest.revision == head:
        return []
    return [f"the schema is at revision {manifest.revision}, behind {head}: `panda migrate upgrade` brings it to head"]
