"""Where Alembic is run; imported when a migration is about to run, not before. Blocking; run by `run_sync`.

Alembic keeps its context in globals: whoever calls into here, `stamp` excepted, holds `alembic_guard`.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from alembic import command
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.autogenerate.api import AutogenContext
from alembic.config import Config
from alembic.operations import ops
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, MetaData, TypeDecorator

from core.database.schema._concurrent import HANDED
from core.database.schema._lock import Step
from core.database.schema._scripts import MIGRATIONS, Scripts

_INNER_TYPE = re.compile(r"(?<=[=(, ])(?=[A-Z]\w*\()")
"""Where the type of an array's elements, or a type within a type, begins in a repr."""

Partitions = Mapping[str, Sequence[tuple[str, str]]]
"""Of each partitioned table its partitions, as schema and name."""


def run(
    connection: Connection,
    *,
    scripts: Scripts,
    metadata: MetaData,
    upgrade: bool,
    target: str | None,
    step: Step,
    say: Callable[[str], None],
) -> None:
    """Migrate up or down to `target` (None: base), each revision in a transaction of its own."""
    handed = {"step": step, "say": say}
    config = _config(scripts.folder, connection, metadata, handed)
    move = command.upgrade if upgrade else command.downgrade
    move(config, target or "base")


def render(
    connection: Connection | None,
    *,
    scripts: Scripts,
    metadata: MetaData,
    upgrade: bool,
    start: str | None,
    target: str | None,
    step: Step,
    partitions: Partitions,
) -> str:
    """The SQL that `run` would send from `start` to `target`. Sends nothing; a connection, if given, lends its dialect."""
    output = io.StringIO()
    handed = {"step": step, "partitions": partitions}
    config = _config(scripts.folder, connection, metadata, handed, output)
    move = command.upgrade if upgrade else command.downgrade
    move(config, f"{start or 'base'}:{target or 'base'}", sql=True)
    return output.getvalue()


def stamp(connection: Connection, *, scripts: Scripts) -> None:
    """Record the head as the database's only revision, in the connection's transaction."""
    context = MigrationContext.configure(connection)
    if context.get_current_heads():
        context.stamp(_directory(scripts.folder), "base")
    context.stamp(_directory(scripts.folder), "head")


def compare(connection: Connection, *, metadata: MetaData) -> tuple[str, str, tuple[str, ...]]:
    """What would make the database what the models say: the bodies of upgrade and downgrade, and the imports they need.

    Empty bodies where Alembic sees no difference. Reads the catalog only.
    """
    imports: set[str] = set()

    def render(kind: str, item: Any, _: AutogenContext) -> str | Literal[False]:
        """A column type as SQLAlchemy's own: a migration imports nothing of ours."""
        if kind != "type":
            return False
        plain = item.load_dialect_impl(connection.dialect) if isinstance(item, TypeDecorator) else item
        if type(plain).__module__.startswith("sqlalchemy.dialects.postgresql"):
            imports.add("from sqlalchemy.dialects import postgresql")
            return f"postgresql.{_INNER_TYPE.sub('sa.', repr(plain))}"
        return f"sa.{plain!r}" if type(plain).__module__.startswith("sqlalchemy.") else False

    options = {
        "compare_type": True,
        "compare_server_default": True,
        "target_metadata": metadata,
        "include_object": _comparable,
    }
    context = MigrationContext.configure(connection, opts=options)
    script = produce_migrations(context, metadata)
    if script.upgrade_ops is None or script.downgrade_ops is None or script.upgrade_ops.is_empty():
        return "", "", ()
    parts: tuple[ops.UpgradeOps, ops.DowngradeOps] = script.upgrade_ops, script.downgrade_ops
    for part in parts:
        _make_concurrent(part)
    codes = [render_python_code(part, render_item=render, migration_context=context) for part in parts]
    bodies = ["\n".join(line for line in code.splitlines() if not line.strip().startswith("# ###")) for code in codes]
    if any("postgresql." in body for body in bodies):
        imports.add("from sqlalchemy.dialects import postgresql")
    return bodies[0], bodies[1], tuple(sorted(imports))


def _comparable(item: Any, name: str | None, kind: str, reflected: bool, counterpart: Any) -> bool:
    """Not an index of expressions that both have: the server tells it in other words, which Alembic takes for a change."""
    if kind != "index" or counterpart is None:
        return True
    return all(isinstance(part, Column) for index in (item, counterpart) for part in index.expressions)


def _make_concurrent(part: "ops.UpgradeOps | ops.DowngradeOps") -> None:
    """Where a migration does nothing but indexes of tables that exist, they need block nobody."""
    inner = [op for outer in part.ops for op in (outer.ops if isinstance(outer, ops.ModifyTableOps) else [outer])]
    indexes = [op for op in inner if isinstance(op, ops.CreateIndexOp | ops.DropIndexOp)]
    if len(indexes) == len(inner):
        for index in indexes:
            index.kw["postgresql_concurrently"] = True


def _directory(versions: Path) -> ScriptDirectory:
    return ScriptDirectory(MIGRATIONS, version_locations=[versions])


def _config(
    versions: Path,
    connection: Connection | None,
    metadata: MetaData,
    handed: Mapping[str, Any],
    output: io.StringIO | None = None,
) -> Config:
    attributes = {"connection": connection, "metadata": metadata, HANDED: dict(handed)}
    config = Config(output_buffer=output, attributes=attributes)
    # Configuration values interpolate %, and lists of folders are split: by what no folder's name has.
    config.set_main_option("path_separator", "newline")
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("version_locations", str(versions).replace("%", "%%"))
    return config
