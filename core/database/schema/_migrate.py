"""Move a database along the line of migrations, or say what that would do."""

import asyncio
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy import MetaData
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from core.config.options import Timeouts
from core.database.errors import LockTimeout, MigrationFailed, PandaDatabaseError, StatementTimeout, translate
from core.database.schema._lock import alembic_guard, migration_lock
from core.database.schema._scripts import Revision, Scripts, read
from core.database.schema._state import SchemaState, inspect, project_metadata

Progress = Callable[[str], None]

_MOVABLE = ("at_head", "empty", "behind")


async def upgrade(
    engine: AsyncEngine,
    target: str = "head",
    *,
    timeouts: Timeouts | None = None,
    progress: Progress | None = None,
    metadata: MetaData | None = None,
    versions: Path | None = None,
) -> SchemaState:
    """Migrate up to `target`: `head`, a revision id, or steps from where the database is (`+1`).

    Owns its transactions, one for each revision, under the migration lock; a cancelled or failed one leaves the revision
    before it. `progress` is called with a sentence before and after each revision. Returns the state that was reached;
    a target that the database has passed changes nothing.

    Raises `MigrationFailed` naming the revision, `SchemaLockTimeout`, `SchemaUnknownRevision` for the target, and what
    `verify` raises if the database is in a state that no migration leads out of.
    """
    work = _Work(engine, timeouts or Timeouts(), progress, metadata or project_metadata(), versions)
    return await work.move(target, up=True)


async def downgrade(
    engine: AsyncEngine,
    target: str,
    *,
    timeouts: Timeouts | None = None,
    progress: Progress | None = None,
    metadata: MetaData | None = None,
    versions: Path | None = None,
) -> SchemaState:
    """Migrate down to `target`: `base`, a revision id, or steps (`-1`). What the revisions added is lost.

    Transactions, progress and errors are those of `upgrade`.
    """
    work = _Work(engine, timeouts or Timeouts(), progress, metadata or project_metadata(), versions)
    return await work.move(target, up=False)


async def preview(
    engine: AsyncEngine,
    target: str = "head",
    *,
    start: str | None = None,
    timeouts: Timeouts | None = None,
    metadata: MetaData | None = None,
    versions: Path | None = None,
) -> str:
    """The SQL that leads from `start`, by default where the database is, to `target`, up or down. Executes none of it.

    Each revision's transaction begins with its time limits, so that the text can be run by hand with `psql`. It is empty
    where there is nothing to do. A migration that reads data to decide what to do cannot be previewed. Reads the state in
    a transaction of its own, and only if `start` is None. Raises as `upgrade` does.
    """
    limits, scripts = timeouts or Timeouts(), read(versions)
    tables = metadata or project_metadata()
    if start is None:
        state = await inspect(engine, metadata=tables, versions=versions)
        _refuse_unmovable(state)
        origin = _current(state)
    else:
        origin = scripts.resolve(start, current=None)
    goal = scripts.resolve(target, current=origin)
    if goal == origin:
        return ""
    up = len(scripts.line(goal)) > len(scripts.line(origin))
    from core.database.schema import _alembic  # a start that finds the schema at head does not pay for importing it

    async with engine.connect() as connection, alembic_guard(timeouts=limits):
        try:
            sql = await connection.run_sync(
                _alembic.render, scripts=scripts, metadata=tables, upgrade=up, start=origin, target=goal
            )
        except Exception as error:  # a migration is foreign code: it may raise anything
            raise _failed(
                f"the migrations from {origin or 'base'} to {goal or 'base'} cannot be previewed", error
            ) from error
    return _with_limits(sql, limits)


async def plan(
    engine: AsyncEngine, *, metadata: MetaData | None = None, versions: Path | None = None
) -> tuple[Revision, ...]:
    """The revisions that an upgrade would apply, oldest first. Changes nothing.

    Raises what `verify` raises if the database is in a state that no migration leads out of.
    """
    state = await inspect(engine, metadata=metadata, versions=versions)
    _refuse_unmovable(state)
    return read(versions).pending(_current(state))


def history(*, versions: Path | None = None) -> tuple[Revision, ...]:
    """Every revision of this release, oldest first. Needs no database."""
    scripts = read(versions)
    lines = [scripts.line(head) for head in scripts.heads]
    return tuple(dict.fromkeys(revision for line in lines for revision in line))


class _Work:
    """One upgrade or downgrade."""

    def __init__(
        self,
        engine: AsyncEngine,
        timeouts: Timeouts,
        progress: Progress | None,
        metadata: MetaData,
        versions: Path | None,
    ) -> None:
        self._engine = engine
        self._timeouts = timeouts
        self._say: Progress = progress or (lambda _: None)
        self._metadata = metadata
        self._versions = versions
        self._scripts: Scripts = read(versions)

    async def move(self, target: str, *, up: bool) -> SchemaState:
        async with migration_lock(self._engine, timeouts=self._timeouts) as worker:
            state = await self._inspect(worker)
            _refuse_unmovable(state)
            here = _current(state)
            steps = _steps(self._scripts, here, self._scripts.resolve(target, current=here), up=up)
            for step, reached in steps:
                await self._take(worker, step, reached, here, up=up)
                here = reached
            return await self._inspect(worker) if steps else state

    async def _inspect(self, worker: AsyncConnection) -> SchemaState:
        state = await inspect(worker, metadata=self._metadata, versions=self._versions)
        await worker.rollback()
        return state

    async def _take(
        self, worker: AsyncConnection, step: Revision, reached: str | None, here: str | None, *, up: bool
    ) -> None:
        from core.database.schema import _alembic  # late, as above

        loop = asyncio.get_running_loop()
        self._say(f"{'applying' if up else 'reverting'} {step.revision} {step.message}".rstrip())
        started = loop.time()
        async with alembic_guard(timeouts=self._timeouts):
            try:
                await worker.run_sync(
                    _alembic.run, scripts=self._scripts, metadata=self._metadata, upgrade=up, target=reached
                )
            except Exception as error:  # a migration is foreign code: it may raise anything
                what = f"migration {step.revision} ({step.file}) failed; the database is left at {here or 'base'}"
                raise _failed(what, error) from error
        self._say(f"{'applied' if up else 'reverted'} {step.revision} in {loop.time() - started:.2f} s")


def _steps(
    scripts: Scripts, current: str | None, goal: str | None, *, up: bool
) -> Sequence[tuple[Revision, str | None]]:
    """Each revision to apply or revert, and the revision reached by it; none if the goal lies the other way."""
    below, above = (current, goal) if up else (goal, current)
    between = scripts.line(above)[len(scripts.line(below)) :]
    if up:
        return [(item, item.revision) for item in between]
    return [(item, item.down_revision) for item in reversed(between)]


def _refuse_unmovable(state: SchemaState) -> None:
    if state.status not in _MOVABLE:
        state.raise_unless_at_head()


def _current(state: SchemaState) -> str | None:
    return state.current[0] if state.current else None


def _failed(what: str, error: Exception) -> MigrationFailed:
    found = translate(error)
    hint = "Mend the cause and run the command again; `panda migrate history` lists the revisions."
    if isinstance(found, LockTimeout):
        hint = "Other transactions hold a table: run it again when they have ended, or raise DATABASE__TIMEOUTS__LOCK."
    elif isinstance(found, StatementTimeout):
        hint = "A statement took too long: raise DATABASE__TIMEOUTS__MIGRATION and run it again."
    return MigrationFailed(f"{what}: {_cause(found, error)}", hint=hint, sqlstate=found.sqlstate if found else None)


def _cause(found: PandaDatabaseError | None, error: Exception) -> str:
    if found is not None:
        return found.message
    return str(error) if not isinstance(error, SQLAlchemyError) else type(error).__name__


def _with_limits(sql: str, timeouts: Timeouts) -> str:
    limits = (
        f"BEGIN;\n\nSET LOCAL lock_timeout = '{timeouts.lock * 1_000:.0f}ms';\n\n"
        f"SET LOCAL statement_timeout = '{timeouts.migration * 1_000:.0f}ms';"
    )
    return re.sub(r"^BEGIN;$", limits, sql, flags=re.MULTILINE)
