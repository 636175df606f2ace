"""Draft a migration: what would make the database of the migrations that of the models, tried on a database to throw away."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import MetaData, text
from sqlalchemy.ext.asyncio import AsyncEngine

from core.config.options import Timeouts
from core.database.errors import MigrationFailed
from core.database.schema._catalog import Catalog, catalog, differences
from core.database.schema._lock import alembic_guard
from core.database.schema._migrate import downgrade, upgrade
from core.database.schema._new import Draft, new
from core.database.schema._scripts import MIGRATIONS
from core.database.schema._state import project_metadata

_SPEED = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_LIMITS = Timeouts()


@asynccontextmanager
async def throwaway_engine() -> AsyncGenerator[AsyncEngine]:
    """An engine on an empty database of a built-in server of its own, which is removed on leaving; up in about 2 s.

    Raises `EmbeddedServerError` where no server can be had.
    """
    from core.database.embedded import EmbeddedServer  # late: nobody else in this room needs a server of its own
    from core.database.engine import DatabaseUrl, EngineOptions, build_engine

    folder = Path(tempfile.mkdtemp(prefix="panda-draft-"))
    folder.chmod(0o755)  # where root runs this, the server's own user must come through; its data are 0700
    server = EmbeddedServer(folder / "server", settings=_SPEED)
    try:
        url = DatabaseUrl.parse(await asyncio.to_thread(server.ensure))
        engine = build_engine(url, EngineOptions())
        try:
            yield engine
        finally:
            await engine.dispose()
    finally:
        await asyncio.to_thread(server.stop)
        shutil.rmtree(folder, ignore_errors=True)


async def draft(engine: AsyncEngine, *, metadata: MetaData | None = None, versions: Path | None = None) -> Draft:
    """What a new migration must do for the models to be what the migrations make.

    `engine` is on an empty database, whose public schema is used up: the migrations are applied, Alembic compares the
    models with the result, and what it writes is applied and reverted in turn. What then still differs from the models is
    in the draft's notes: Alembic sees no CHECK, policy, function or trigger, and takes a renamed column for two.

    Raises `MigrationFailed` if the migrations that there are do not run.
    """
    tables = metadata or project_metadata()
    folder = MIGRATIONS / "versions" if versions is None else versions
    with tempfile.TemporaryDirectory(prefix="panda-draft-") as name:
        trial = Path(name)
        files = [path for path in folder.glob("*.py") if not path.name.startswith((".", "__"))]
        for path in files:
            shutil.copy(path, trial)
        if files:
            await upgrade(engine, timeouts=_LIMITS, metadata=tables, versions=trial)
        found = await _compare(engine, tables)
        notes = await _try(engine, found, tables, trial) if found.upgrade else []
        made = await _catalog(engine)
    wanted = await _created(engine, tables)
    left = differences(made, wanted, left_name="the migrations", right_name="the models")
    return Draft(found.upgrade, found.downgrade, found.imports, (*notes, *left))


async def _compare(engine: AsyncEngine, metadata: MetaData) -> Draft:
    from core.database.schema import _alembic  # late: Alembic is loaded only where it is used

    async with alembic_guard(timeouts=_LIMITS), engine.connect() as connection:
        up, down, imports = await connection.run_sync(_alembic.compare, metadata=metadata)
    return Draft(up, down, imports)


async def _try(engine: AsyncEngine, found: Draft, metadata: MetaData, trial: Path) -> list[str]:
    """Apply, revert and apply the draft; what goes wrong is a note, and the database is left as far as it came."""
    made = new("Trial", versions=trial, draft=found)
    try:
        await upgrade(engine, timeouts=_LIMITS, metadata=metadata, versions=trial)
        if made.down_revision is not None:
            await downgrade(engine, made.down_revision, timeouts=_LIMITS, metadata=metadata, versions=trial)
            await upgrade(engine, timeouts=_LIMITS, metadata=metadata, versions=trial)
    except MigrationFailed as error:
        return [f"what was written does not run: {error.message}"]
    return []


async def _catalog(engine: AsyncEngine) -> Catalog:
    async with engine.connect() as connection:
        found = await catalog(connection)
    return Catalog(found.schema, tuple(entry for entry in found.entries if entry.table != "alembic_version"))


async def _created(engine: AsyncEngine, metadata: MetaData) -> Catalog:
    """The catalog that the models make."""
    async with engine.begin() as connection:
        for statement in (
            "DROP SCHEMA public CASCADE",
            "CREATE SCHEMA public",
            "GRANT USAGE ON SCHEMA public TO public",
        ):
            await connection.execute(text(statement))
        await connection.run_sync(metadata.create_all, checkfirst=False)
    return await _catalog(engine)
