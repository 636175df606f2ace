"""Making a backup."""

import asyncio
import re
import tempfile
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from core.database import schema
from core.database.backup._container import BLOCK
from core.database.backup._contents import read_contents
from core.database.backup._manifest import Contents, Manifest, SequenceValue, written
from core.database.backup._objects import lock_tables, refuse_unreadable, roles_named
from core.database.backup._part import PartFile, check_target, part_file
from core.database.backup._progress import OnStep, Step, silent
from core.database.backup._script import listed, script
from core.database.backup._target import Target, opened
from core.database.backup._tools import Tools, find_tools, running
from core.database.engine import EngineOptions
from core.database.errors import BackupRefused, SchemaMissing, translate

_CHUNK = 1024 * 1024
_EXPORT = text("SELECT pg_export_snapshot()")
_DUMPING = re.compile(r'pg_dump: dumping contents of table "(.+)"')
_SETVAL = re.compile(r"SELECT pg_catalog\.setval\('((?:[^']|'')*)', (-?[0-9]+), (true|false)\);")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupReport:
    """A backup that was made."""

    file: Path
    size: int
    """Bytes of the file."""
    database: str
    server_version: str
    dump_version: str
    """Of the pg_dump that made it."""
    revision: str | None
    tables: int
    """Partitions count each."""
    rows: int
    seconds: float
    replaced: bool
    """Whether another file stood in its place."""
    warnings: tuple[str, ...]


async def backup(
    db_url: str,
    file: Path,
    *,
    options: EngineOptions | None = None,
    force: bool = False,
    programs: Path | None = None,
    progress: OnStep | None = None,
) -> BackupReport:
    """Back the whole database up into one new file, of mode 0600: it holds password hashes and sealed credentials.

    One snapshot of the database is dumped by pg_dump and digested row by row at the same time; a restore must yield the same
    digests. The file gets its name when it is whole and on the disk, and replaces another one then and only with `force`.
    Reads in a REPEATABLE READ READ ONLY transaction of its own and blocks nobody but who changes a table's form.

    `programs` is the folder with pg_dump and pg_restore; without it the ones that fit are looked for. Raises BackupRefused
    before anything is begun; BackupError, BackupToolFailed, `PermissionDenied` naming the tables, `LockTimeout`, and what
    connecting raises. Nothing is left behind by a failed one.
    """
    started, target = time.monotonic(), file.absolute()
    check_target(target, force=force)
    with part_file(target) as part:
        manifest, warnings = await _filled(part, db_url, options or EngineOptions(), programs, progress or silent)
        mtime = int(manifest.created_at.timestamp())
        size = await asyncio.to_thread(part.finish, written(manifest), mtime=mtime)
        replaced = target.exists()
        part.publish(target, force=force)
    return BackupReport(
        file=target,
        size=size,
        database=manifest.database,
        server_version=manifest.server_version,
        dump_version=manifest.dump_version,
        revision=manifest.revision,
        tables=len(manifest.contents.tables),
        rows=manifest.contents.rows,
        seconds=time.monotonic() - started,
        replaced=replaced,
        warnings=warnings,
    )


async def _filled(
    part: PartFile, db_url: str, options: EngineOptions, programs: Path | None, say: OnStep
) -> tuple[Manifest, tuple[str, ...]]:
    """Write the dump into the file; its manifest, and what to warn of."""
    async with opened(db_url, options, create=False, superuser=True) as source:
        _refuse_foreign(await schema.inspect(source.engine), source.database)
        tools = await asyncio.to_thread(find_tools, at_least=source.major, tls=source.encrypted, folder=programs)
        created_at = datetime.now(UTC).replace(microsecond=0)
        seen = await _read(source, tools, part, say)
    sequences = await _sequences(tools, part)
    manifest = Manifest(
        created_at=created_at,
        release=version("alpha-panda-core"),
        database=source.database,
        system_identifier=source.system_identifier,
        server_version=source.version,
        server_version_num=source.version_num,
        dump_version=tools.version,
        revision=seen.state.current[0] if seen.state.current else None,
        roles=seen.roles,
        catalog=seen.catalog,
        contents=Contents(tables=seen.contents.tables, sequences=sequences),
        dump_bytes=part.dump_bytes,
        dump_sha256=part.sha256,
    )
    return manifest, () if seen.state.status == "at_head" else (seen.state.describe(),)


def _refuse_foreign(state: schema.SchemaState, database: str) -> None:
    if not state.present_tables:
        raise SchemaMissing(
            f"the database {database} holds none of this project's tables; there is nothing to back up",
            hint="Check that DATABASE__POSTGRES_URL names the right database.",
        )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was read of a snapshot besides its dump."""

    state: schema.SchemaState
    catalog: tuple[str, ...]
    roles: tuple[str, ...]
    contents: Contents


async def _read(source: Target, tools: Tools, part: PartFile, say: OnStep) -> _Seen:
    """Dump and digest one snapshot."""
    async with source.engine.connect() as connection:
        await refuse_unreadable(connection, role=source.role)
    snapshots = source.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    try:
        async with snapshots.connect() as connection:
            # Locked before the snapshot is taken: a table that is rewritten after it would look empty in it.
            await lock_tables(connection, source.engine)
            snapshot: str = (await connection.execute(_EXPORT)).scalar_one()
            await _refuse_large_objects(connection)
            state = await schema.inspect(connection)
            catalog = tuple(map(str, (await schema.catalog(connection)).entries))
            roles = await roles_named(connection)
            contents = await _both(
                _dump(source, tools, snapshot, part, say),
                read_contents(
                    connection, progress=lambda done, total: say(Step("digesting rows", done, total, "tables"))
                ),
            )
    except SQLAlchemyError as error:
        raise translate(error) or error from error
    return _Seen(state, catalog, roles, contents)


async def _both(dump: Coroutine[Any, Any, None], digest: Coroutine[Any, Any, Contents]) -> Contents:
    """Both at once; the first failure ends the other and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(dump)
            found = tasks.create_task(digest)
    except ExceptionGroup as group:
        first = group.exceptions[0]
        raise first from first.__cause__
    return found.result()


async def _dump(source: Target, tools: Tools, snapshot: str, part: PartFile, say: OnStep) -> None:
    table = ""

    def line(text: str) -> None:
        nonlocal table
        if found := _DUMPING.match(text):
            table = found[1]

    wait = round(source.options.timeouts.migration_lock * 1_000)
    command = (
        tools.pg_dump, "--format=custom", "--no-password", "--encoding=UTF8", "--verbose", f"--snapshot={snapshot}",
        f"--lock-wait-timeout={wait}", "--no-publications", "--no-subscriptions",
        "--enable-row-security",  # the owner is bound by policies too, by one that lets it see all
    )  # fmt: skip
    with source.client_environment() as environment:
        async with running(command, environment=environment, on_line=line) as output:
            while chunk := await output.read(_CHUNK):
                await asyncio.to_thread(part.write, chunk)
                say(Step("dumping", part.dump_bytes, None, "bytes", table))


async def _refuse_large_objects(connection: AsyncConnection) -> None:
    """They have no place in this project's tables, and a script cannot restore them in one transaction."""
    found: int = (await connection.exec_driver_sql("SELECT count(*) FROM pg_largeobject_metadata")).scalar_one()
    if found:
        raise BackupRefused(
            f"the database holds {found} large objects, which a backup does not carry",
            hint="Use pg_dump itself for this database, or remove them (lo_unlink).",
        )


async def _sequences(tools: Tools, part: PartFile) -> tuple[SequenceValue, ...]:
    """As the dump holds them: sequences do not belong to a snapshot. It shows too that the dump can be read."""
    entries = [entry for entry in await listed(tools, part.descriptor, BLOCK) if " SEQUENCE SET " in entry]
    if not entries:
        return ()
    with tempfile.NamedTemporaryFile("w", prefix="panda-", encoding="utf-8") as chosen:
        chosen.write("\n".join(entries) + "\n")
        chosen.flush()
        arguments = ("--section=data", f"--use-list={chosen.name}")
        text = (await script(tools, part.descriptor, BLOCK, arguments)).decode()
    values = [
        SequenceValue(name=name.replace("''", "'"), last_value=int(value), is_called=called == "true")
        for name, value, called in _SETVAL.findall(text)
    ]
    return tuple(sorted(values, key=lambda value: value.name))
