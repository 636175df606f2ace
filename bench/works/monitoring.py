"""What watching costs: a read-only session with monitoring off, on, and with everything there is to hang on it.

The differences are of the order of what a busy machine adds by itself, so "off, once more" stands beside "off": as far as
those two differ, the run cannot tell anything apart.
"""

import time
from bisect import bisect_left
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from sqlalchemy import event, text

from bench import panda, peers
from bench.measure import Entrant, Goal, Unit, Work, expect
from bench.server import Target

__all__ = ["WORK"]

OFF = "Alpha Panda, off"
AGAIN = "Alpha Panda, off, once more"
ON = "Alpha Panda, on"
HOOKED = "Alpha Panda, on, with a hook"
PLAIN = "SQLAlchemy, autocommit"
CURSOR_EVENTS = "the same with cursor events"

_ONE = text("SELECT 1")
_BOUNDS = [1e-5 * 1.5**step for step in range(32)]


@asynccontextmanager
async def _panda(enabled: bool, hooked: bool, target: Target) -> AsyncGenerator[Unit]:
    from core.config.options import MonitoringOptions

    seen = 0

    def count(query: object) -> None:
        nonlocal seen
        seen += 1

    options = MonitoringOptions(enabled=enabled, slow_query=0.5)
    async with panda.opened_manager(target, monitoring=options, hooks=(count,) if hooked else ()) as manager:

        async def unit() -> None:
            async with manager.get_session(read_only=True) as session:
                expect(await session.scalar(_ONE), 1)

        yield unit
    expect(seen > 0, hooked)


@asynccontextmanager
async def _sqlalchemy(watched: bool, target: Target) -> AsyncGenerator[Unit]:
    from sqlalchemy.ext.asyncio import async_sessionmaker

    async with peers.sqlalchemy_engine(target, autocommit=True) as engine:
        buckets = [0] * (len(_BOUNDS) + 1)

        def before(connection: Any, *_: object) -> None:
            connection.info["began"] = time.perf_counter()

        def after(connection: Any, *_: object) -> None:
            buckets[bisect_left(_BOUNDS, time.perf_counter() - connection.info["began"])] += 1

        if watched:
            event.listen(engine.sync_engine, "before_cursor_execute", before)
            event.listen(engine.sync_engine, "after_cursor_execute", after)
        maker = async_sessionmaker(engine, expire_on_commit=False)

        async def unit() -> None:
            async with maker() as session:
                expect(await session.scalar(_ONE), 1)

        yield unit
        expect(sum(buckets) > 0, watched)


WORK = Work(
    name="monitoring",
    title="a read-only session, watched and not",
    entrants=(
        Entrant(OFF, partial(_panda, False, False)),
        Entrant(ON, partial(_panda, True, False)),
        Entrant(AGAIN, partial(_panda, False, False)),
        Entrant(HOOKED, partial(_panda, True, True)),
        Entrant(PLAIN, partial(_sqlalchemy, False)),
        Entrant(CURSOR_EVENTS, partial(_sqlalchemy, True)),
    ),
    limit=OFF,
    goals=(Goal(ON, OFF, at_most=1.03), Goal(HOOKED, OFF), Goal(CURSOR_EVENTS, PLAIN)),
    units=50,
    runs=240,
)
