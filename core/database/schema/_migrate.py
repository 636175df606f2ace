"""Move a database along the line of migrations, or say what that would do."""

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from sqlalchemy import MetaData, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from core.config.options import Timeouts
from core.database.errors import ConfigurationError, LockTimeout, translate
from core.database.schema._failed import failed
from core.database.schema._lock import STEP, Step, alembic_guard, migration_lock
from core.database.schema._scripts import Revision, Scripts, read
from core.database.schema._state import SchemaState, inspect, project_metadata
from core.database.schema._watch import Watch

Progress = Callable[[str], None]

ATTEMPTS = 3
"""How often a migration that cannot get a lock is tried."""

_MOVABLE = ("at_head", "empty", "behind")
_LONGEST_PAUSE = 10.0  # seconds
_PARTITIONS = text(
    "SELECT p.relname, n.nspname, c.relname FROM pg_catalog.pg_class p JOIN pg_catalog.pg_inherits i ON i.inhparent = p.oid"
    " JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    " WHERE p.relkind = 'p' ORDER BY 1, 2, 3"
)


async def upgrade(
    engine: AsyncEngine,
    target: str = "head",
    *,
    timeouts: Timeouts | None = None,
    attempts: int = ATTEMPTS,
    progress: Progress | None = None,
    metadata: MetaData | None = None,
    versions: Path | None = None,
) -> SchemaState:
    """Migrate up to `target`: `head`, a revision id, or steps from where the database is (`+1`).

    Owns its transactions, one for each revision, under the migration lock; a cancelled or failed one leaves the revision
    before it. `progress` is called with a sentence before and after each revision. Returns the state that was reached;
    a target that the database has passed changes nothing.

    Each revision has the lock and statement limits that its file declares, else those of `timeouts`. One that cannot get a
    lock within its limit is rolled back, so that nobody queues behind it for longer, and tried again, `attempts` times in
    all with growing pauses. What it did outside a transaction, concurrent indexes excepted, is not tried again.

    Raises `MigrationFailed` naming the revision, `SchemaLockTimeout`, `SchemaUnknownRevision` for the target, and what
    `verify` raises if the database is in a state that no migration leads out of.
    """
    work = _Work(
        engine,
        timeouts=timeouts or Timeouts(),
        attempts=attempts,
        progress=progress,
        metadata=metadata or project_metadata(),
        versions=versions,
    )
    return await work.move(target, up=True)


async def downgrade(
    engine: AsyncEngine,
    target: str,
    *,
    timeouts: Timeouts | None = None,
    attempts: int = ATTEMPTS,
    progress: Progress | None = None,
    metadata: MetaData | None = None,
    versions: Path | None = None,
) -> SchemaState:
    """Migrate down to `target`: `base`, a revision id, or steps (`-1`). What the revisions added is lost.

    Transactions, limits, attempts, progress and errors are those of `upgrade`.
    """
    work = _Work(
        engine,
        timeouts=timeouts or Timeouts(),
        attempts=attempts,
        progress=progress,
        metadata=metadata or project_metadata(),
        versions=versions,
    )
    return await work.move(target, up=False)


async def preview(
    engine: AsyncEngine,
    target: str = "head",
    *,
    start: str | None = None,
    direction: Literal["up", "down"] | None = None,
    timeouts: Timeouts | None = None,
    metadata: MetaData | None = None,
    versions: Path | None = None,
) -> str:
    """The SQL that leads from `start`, by default where the database is, to `target`, up or down. Executes none of it.

    Each revision's transaction begins with its time limits, so that the text can be run by hand with `psql`. It is empty
    where there is nothing to do. A migration that reads data to decide what to do cannot be previewed. Reads the state, if
    `start` is None, and which partitions there are. With a `direction`, a target that lies the other way is refused.
    Raises as `upgrade` does, and `ConfigurationError`.
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
    _refuse_turn(direction, up=up, origin=origin, goal=goal)
    async with engine.connect() as connection:
        partitions: dict[str, list[tuple[str, str]]] = {}
        for parent, place, name in (await connection.execute(_PARTITIONS)).all():
            partitions.setdefault(parent, []).append((place, name))
        await connection.rollback()
        from core.database.schema._render import (
            render,
        )  # a start that finds the schema at head does not pay for Alembic

        steps = _steps(scripts, origin, goal, up=up)
        parts: list[str] = []
        async with alembic_guard(timeouts=limits):
            for step, reached in steps:
                try:
                    sql = await connection.run_sync(
                        render, step, scripts=scripts, metadata=tables, up=up, timeouts=limits, partitions=partitions
                    )
                except Exception as error:  # a migration is foreign code: it may raise anything
                    what = f"migration {step.revision} ({step.file}), {'to' if up else 'back to'} {reached or 'base'},"
                    raise failed(f"{what} cannot be previewed", error, step) from error
                parts.append(sql)
    return "".join(parts)


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
        *,
        timeouts: Timeouts,
        attempts: int,
        progress: Progress | None,
        metadata: MetaData,
        versions: Path | None,
    ) -> None:
        if attempts < 1:
            raise ConfigurationError(f"a migration cannot be tried {attempts} times", hint="Say 1 or more attempts.")
        self._engine = engine
        self._timeouts = timeouts
        self._attempts = attempts
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
            for revision, reached in steps:
                await self._take(worker, revision, reached, here, up=up)
                here = reached
            return await self._inspect(worker) if steps else state

    async def _inspect(self, worker: AsyncConnection) -> SchemaState:
        state = await inspect(worker, metadata=self._metadata, versions=self._versions)
        await worker.rollback()
        return state

    async def _take(
        self, worker: AsyncConnection, revision: Revision, reached: str | None, here: str | None, *, up: bool
    ) -> None:
        """Apply or revert one revision, again where it could not get a lock and nothing of it was kept."""
        loop = asyncio.get_running_loop()
        self._say(f"{'applying' if up else 'reverting'} {revision.revision} {revision.message}".rstrip())
        started = loop.time()
        for attempt in range(1, self._attempts + 1):
            step = Step(*revision.limits(self._timeouts))
            async with Watch(self._engine, step, self._say) as watch:
                try:
                    await self._run(worker, step, reached, up=up)
                    break
                except Exception as error:  # a migration is foreign code: it may raise anything
                    found = translate(error)
                    blocked = isinstance(found, LockTimeout) and not step.left_transaction and bool(step.lock)
                    if not blocked or attempt == self._attempts:
                        tried = f" after {attempt} attempts" if attempt > 1 else ""
                        what = f"migration {revision.revision} ({revision.file}) failed{tried}"
                        left = f"; the database is left at {here or 'base'}"
                        raise failed(what + left, error, revision, watch.blockers) from error
            await self._pause(worker, revision, step, attempt)
        self._say(f"{'applied' if up else 'reverted'} {revision.revision} in {loop.time() - started:.2f} s")

    async def _run(self, worker: AsyncConnection, step: Step, reached: str | None, *, up: bool) -> None:
        from core.database.schema import _alembic  # late, as above

        await worker.execution_options(**{STEP: step})
        async with alembic_guard(timeouts=self._timeouts):
            await worker.run_sync(
                _alembic.run,
                scripts=self._scripts,
                metadata=self._metadata,
                upgrade=up,
                target=reached,
                step=step,
                say=self._say,
            )

    async def _pause(self, worker: AsyncConnection, revision: Revision, step: Step, attempt: int) -> None:
        """As long as the lock limit, doubling: who queued behind the attempt gets through meanwhile."""
        await worker.rollback()
        pause = min(step.lock * 2 ** (attempt - 1), _LONGEST_PAUSE) * random.uniform(0.75, 1.0)  # noqa: S311 - no secret
        self._say(
            f"{revision.revision} got no lock within {step.lock:g} s and was rolled back;"
            f" attempt {attempt + 1} of {self._attempts} in {pause:.1f} s"
        )
        await asyncio.sleep(pause)


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


def _refuse_turn(direction: Literal["up", "down"] | None, *, up: bool, origin: str | None, goal: str | None) -> None:
    if direction is None or (direction == "up") == up:
        return
    other = "upgrade" if up else "downgrade"
    raise ConfigurationError(
        f"from {origin or 'base'} to {goal or 'base'} is {'an upgrade' if up else 'a downgrade'}",
        hint=f"`panda migrate {other} {goal or 'base'} --sql` prints its SQL.",
    )


def _current(state: SchemaState) -> str | None:
    return state.current[0] if state.current else None
