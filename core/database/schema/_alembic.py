"""The one module that imports Alembic, and is itself imported when a migration is about to run. Blocking; run by `run_sync`.

Alembic keeps its context in globals: whoever calls into here, `stamp` excepted, holds `alembic_guard`.
"""

import io
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData

from core.database.schema._scripts import MIGRATIONS, Scripts


def run(connection: Connection, *, scripts: Scripts, metadata: MetaData, upgrade: bool, target: str | None) -> None:
    """Migrate up or down to `target` (None: base), each revision in a transaction of its own."""
    config = _config(scripts.folder, connection, metadata)
    move = command.upgrade if upgrade else command.downgrade
    move(config, target or "base")


def render(
    connection: Connection,
    *,
    scripts: Scripts,
    metadata: MetaData,
    upgrade: bool,
    start: str | None,
    target: str | None,
) -> str:
    """The SQL that `run` would send from `start` to `target`. Sends nothing; the connection lends its dialect."""
    output = io.StringIO()
    config = _config(scripts.folder, connection, metadata, output)
    move = command.upgrade if upgrade else command.downgrade
    move(config, f"{start or 'base'}:{target or 'base'}", sql=True)
    return output.getvalue()


def stamp(connection: Connection, *, scripts: Scripts) -> None:
    """Record the head as the database's only revision, in the connection's transaction."""
    context = MigrationContext.configure(connection)
    if context.get_current_heads():
        context.stamp(_directory(scripts.folder), "base")
    context.stamp(_directory(scripts.folder), "head")


def _directory(versions: Path) -> ScriptDirectory:
    return ScriptDirectory(MIGRATIONS, version_locations=[versions])


def _config(versions: Path, connection: Connection, metadata: MetaData, output: io.StringIO | None = None) -> Config:
    config = Config(output_buffer=output, attributes={"connection": connection, "metadata": metadata})
    # Configuration values interpolate %, and lists of folders are split: by what no folder's name has.
    config.set_main_option("path_separator", "newline")
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("version_locations", str(versions).replace("%", "%%"))
    return config
