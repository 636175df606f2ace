"""The three schema modes, which a manager applies when it connects."""

from collections.abc import Callable
from pathlib import Path
from typing import assert_never

from sqlalchemy import Connection, MetaData
from sqlalchemy.ext.asyncio import AsyncEngine

from core.config.options import Environment, SchemaManagement, Timeouts
from core.database.schema._lock import migration_lock
from core.database.schema._migrate import upgrade
from core.database.schema._scripts import read
from core.database.schema._state import SchemaState, inspect, project_metadata


async def prepare(
    engine: AsyncEngine,
    *,
    mode: SchemaManagement,
    environment: Environment,
    verify: bool = True,
    timeouts: Timeouts | None = None,
    progress: Callable[[str], None] | None = None,
    metadata: MetaData | None = None,
    versions: Path | None = None,
) -> SchemaState:
    """Bring the schema to where `mode` wants it and return the state; one round trip where it is at head already.

    `auto` migrates to head in development and testing and changes nothing in staging and production. `create_all` creates
    everything if none of our tables exists, stamped with the head, and else changes nothing. `migrations_only` changes nothing.

    Then, unless `verify` is False, raises as `verify` does if the schema is not exactly at head. Owns its transactions.
    Raises `MigrationFailed` and `SchemaLockTimeout` whatever `verify` says.
    """
    limits, tables = timeouts or Timeouts(), metadata or project_metadata()
    state = await inspect(engine, metadata=tables, versions=versions)
    match mode:
        case "auto":
            if environment in ("development", "testing") and state.status in ("empty", "behind"):
                state = await upgrade(engine, timeouts=limits, progress=progress, metadata=tables, versions=versions)
        case "create_all":
            if _is_creatable(state):
                state = await _create_all(engine, timeouts=limits, metadata=tables, versions=versions)
        case "migrations_only":
            pass
        case _:
            assert_never(mode)
    if verify:
        state.raise_unless_at_head()
    return state


def _is_creatable(state: SchemaState) -> bool:
    """None of our tables exists. A stamp that this release does not understand speaks of tables it cannot know."""
    return not state.present_tables and state.status in ("empty", "behind", "tables_missing")


async def _create_all(
    engine: AsyncEngine, *, timeouts: Timeouts, metadata: MetaData, versions: Path | None
) -> SchemaState:
    """Create and stamp in one transaction under the migration lock, unless another process was quicker."""
    async with migration_lock(engine, timeouts=timeouts) as worker:
        state = await inspect(worker, metadata=metadata, versions=versions)
        await worker.rollback()
        if _is_creatable(state):
            async with worker.begin():
                await worker.run_sync(_create, metadata, versions)
            state = await inspect(worker, metadata=metadata, versions=versions)
    return state


def _create(connection: Connection, metadata: MetaData, versions: Path | None) -> None:
    """Everything, DDL that metadata cannot say included: that hangs on its `after_create` events."""
    from core.database.schema import _alembic  # late: a start that finds the schema in place does not pay for it

    metadata.create_all(connection, checkfirst=False)
    _alembic.stamp(connection, scripts=read(versions))
