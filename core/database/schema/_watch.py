"""Who blocks a migration, seen from a connection of its own while the migration waits."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from core.database.schema._lock import Step

_SOONEST, _LATEST = 0.02, 0.5  # seconds between two looks

# No text of a query: it may hold values.
_BLOCKERS = """
SELECT b.pid, a.application_name, a.state, CAST(extract(epoch FROM clock_timestamp() - a.query_start) AS float8) AS age
FROM (SELECT DISTINCT unnest(pg_blocking_pids($1)) AS pid) b LEFT JOIN pg_catalog.pg_stat_activity a USING (pid)
WHERE b.pid <> 0 ORDER BY a.query_start NULLS LAST, b.pid
"""


@dataclass(frozen=True, slots=True)
class Blocker:
    """A process of the server that the migration waited for."""

    process: int
    application: str
    state: str | None
    """As pg_stat_activity has it; None where the role may not see it."""
    age: float | None
    """Seconds since its last statement began."""

    def __str__(self) -> str:
        said = [self.application or "no application name"]
        if self.state:
            said.append(self.state)
        if self.age is not None:
            said.append(f"{'its' if self.state == 'active' else 'last'} statement began {self.age:.1f} s ago")
        return f"process {self.process} ({', '.join(said)})"


class Watch:
    """Looks now and then, while the block runs, at who blocks the step's process; the last who did are `blockers`.

    It only looks on: where it cannot connect or may not look, it sees nobody and the migration goes on.
    """

    def __init__(self, engine: AsyncEngine, step: Step, say: Callable[[str], None]) -> None:
        self.blockers: tuple[Blocker, ...] = ()
        self._engine = engine
        self._step = step
        self._say = say
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._look_on())
        return self

    async def __aexit__(self, *_: object) -> None:
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # seen; it is no business of the migration's

    async def _look_on(self) -> None:
        pause = min(max(self._step.lock / 4, _SOONEST), _LATEST) if self._step.lock else _LATEST
        await asyncio.sleep(pause)
        raw = await self._connect()
        try:
            while True:
                if self._step.process is not None:
                    self._note(await _look(raw, self._step.process))
                await asyncio.sleep(pause)
        finally:
            raw.terminate()

    async def _connect(self) -> Any:
        # A pool of the same making, since the engine's may be as small as the migration itself needs.
        pool = self._engine.sync_engine.pool.recreate()

        def take() -> Any:
            connection = pool.connect()
            raw = connection.driver_connection
            connection.detach()
            return raw

        return await greenlet_spawn(take)

    def _note(self, found: tuple[Blocker, ...]) -> None:
        if not found:
            return
        if {item.process for item in found} != {item.process for item in self.blockers}:
            self._say(f"waiting for {', '.join(map(str, found))}")
        self.blockers = found


async def _look(raw: Any, process: int) -> tuple[Blocker, ...]:
    async with raw.transaction(readonly=True):
        rows = await raw.fetch(_BLOCKERS, process)
    return tuple(Blocker(row["pid"], row["application_name"] or "", row["state"], row["age"]) for row in rows)
