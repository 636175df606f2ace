"""Checking a backup, up to restoring it into a server that exists for nothing else."""

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from core.config.options import Timeouts
from core.database.backup._container import BLOCK, OpenBackup, opened_backup
from core.database.backup._contents import contents_of, differences
from core.database.backup._manifest import Manifest
from core.database.backup._objects import missing_roles
from core.database.backup._progress import OnStep, Step, silent
from core.database.backup._restore import apply, refuse_old_server
from core.database.backup._script import listed
from core.database.backup._target import opened
from core.database.backup._tools import Tools, find_tools
from core.database.embedded import EmbeddedServer
from core.database.engine import DatabaseUrl, EngineOptions, build_engine
from core.database.errors import BackupRefused, translate

# A server that is thrown away needs no durability; without WAL for what is made and filled in one transaction it is small.
_FAST = {
    "fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off", "wal_level": "minimal",
    "max_wal_senders": "0", "maintenance_work_mem": "256MB",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What is known of a backup after it was checked. A damaged one raises instead."""

    file: Path
    size: int
    manifest: Manifest
    proven: tuple[str, ...]
    """A sentence each."""
    not_proven: tuple[str, ...]
    differences: tuple[str, ...]
    """What tells the database that it was compared with from the backup; empty if nothing does, or none was named."""
    warnings: tuple[str, ...]
    seconds: float


async def verify_backup(
    file: Path,
    *,
    deep: bool = False,
    against: str | None = None,
    options: EngineOptions | None = None,
    scratch: Path | None = None,
    programs: Path | None = None,
    progress: OnStep | None = None,
) -> VerifyReport:
    """Check the file's structure and checksums, and that pg_restore reads its table of contents.

    `deep` restores it into a new embedded server in a folder below `scratch` (the system's temporary folder), compares every
    table row by row through the digests, and removes the server; no other database is touched. `against` is the URL of a
    database whose rows are then compared, in a transaction that only reads. Raises BackupDamaged, BackupRefused,
    BackupToolFailed, BackupDiffers.
    """
    started, say = time.monotonic(), progress or silent
    with opened_backup(file.absolute()) as source:
        manifest = source.manifest
        total = manifest.dump_bytes
        await asyncio.to_thread(source.check_dump, lambda done: say(Step("checking the file", done, total, "bytes")))
        tools = await asyncio.to_thread(find_tools, at_least=int(manifest.dump_version.split(".")[0]), folder=programs)
        entries = await listed(tools, source.descriptor, BLOCK)
        proven = [
            "the file is whole: every byte is the one that was written (SHA-256)",
            f"pg_restore {tools.version} reads its table of contents, {len(entries)} entries",
        ]
        not_proven: list[str] = []
        if deep:
            proven += await _restored(source, tools, scratch, say)
        else:
            not_proven.append("that it restores: --deep does that, in a server of its own")
        found: tuple[str, ...] = ()
        if against is not None:
            place, found = await _compared(manifest, against, options or EngineOptions(), say)
            if not found:
                proven.append(f"the database {place} holds the same rows, table by table")
        readable = () if source.private else (f"others than its owner may read {source.path}: chmod 600 it",)
    return VerifyReport(
        file=source.path,
        size=source.size,
        manifest=manifest,
        proven=tuple(proven),
        not_proven=tuple(not_proven),
        differences=found,
        warnings=readable,
        seconds=time.monotonic() - started,
    )


async def _restored(source: OpenBackup, tools: Tools, scratch: Path | None, say: OnStep) -> list[str]:
    """Restore it where nothing else is; what that proves."""
    manifest = source.manifest
    async with _throwaway(scratch) as (engine, major):
        refuse_old_server(manifest, major=major, what="the built-in server")
        try:
            async with engine.connect() as connection:
                for role in await missing_roles(connection, manifest.roles):
                    quoted = role.replace('"', '""')
                    await connection.exec_driver_sql(f'CREATE ROLE "{quoted}" NOLOGIN')
                await apply(connection, source, tools, major=major, privileges=True, say=say)
                await connection.rollback()
        except SQLAlchemyError as error:
            raise translate(error) or error from error
    contents = manifest.contents
    counted = f"{contents.rows} rows in {len(contents.tables)} tables"
    said = [
        f"it restores into PostgreSQL {major}: {counted}, equal row by row, and {len(contents.sequences)} sequences"
    ]
    if manifest.server_major == major:
        said.append("constraints, indexes, policies, triggers, functions and privileges come back as they were")
    return said


@asynccontextmanager
async def _throwaway(scratch: Path | None) -> AsyncGenerator[tuple[AsyncEngine, int]]:
    """An engine of the superuser on a new embedded server, and its major version; all of it is removed on leaving."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="panda-verify-", dir=scratch))
    except OSError as error:
        raise BackupRefused(
            f"no folder can be made in {scratch or tempfile.gettempdir()}: {error.strerror}",
            hint="Name another --scratch.",
        ) from error
    server = EmbeddedServer(folder / "server", settings=_FAST)
    try:
        if os.geteuid() == 0:
            folder.chmod(0o711)  # the server's user must pass through
        url = DatabaseUrl.parse(await asyncio.to_thread(server.ensure))
        limits = Timeouts(statement=0, lock=0, idle_in_transaction=0)
        engine = build_engine(replace(url, user="postgres"), EngineOptions(timeouts=limits))
        try:
            async with engine.connect() as connection:
                number: int = (
                    await connection.exec_driver_sql("SELECT current_setting('server_version_num')::integer")
                ).scalar_one()
            yield engine, number // 10_000
        finally:
            await engine.dispose()
    finally:
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread(server.stop)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _compared(manifest: Manifest, url: str, options: EngineOptions, say: OnStep) -> tuple[str, tuple[str, ...]]:
    """The database's name, and what tells it from the backup."""
    async with opened(url, options, create=False, superuser=True) as target:
        say(Step("digesting rows", 0, None, "tables"))
        found = await contents_of(target.engine)
    return target.database, differences(manifest.contents, found, left="the backup", right="the database")
