"""Is there a pooler between, and do the settings know?"""

import asyncio
from dataclasses import replace
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from core.database.doctor._case import Case, row
from core.database.doctor._finding import Finding
from core.database.doctor._reach import SMALL_POOL, cautious
from core.database.engine import build_engine
from core.database.errors import PandaDatabaseError

_SETTING = "DATABASE__PGBOUNCER"
_PATIENCE = 1.0  # seconds
_PID = "SELECT pg_backend_pid() AS pid"


async def pgbouncer(connection: AsyncConnection, case: Case) -> Finding:
    """By the protocol: the process named when a connection is made against those that answer later."""
    given = case.options.pgbouncer
    details: dict[str, Any] = {
        "setting": given,
        "pooled": case.answer.is_pooled,
        "pid_at_connect": case.answer.wire.server_pid,
        "pid_that_answers": case.answer.backend_pid,
    }
    if not case.answer.is_pooled:
        if not given:
            return Finding("pgbouncer", "ok", "none between: the server that answers is the one reached", None, details)
        said = f"{_SETTING} is true, but the server itself answers: nothing stays prepared, each transaction costs more"
        return Finding("pgbouncer", "warning", said, f"{_SETTING}=false, or name the pooler's port in the URL", details)
    by_transaction = details["transaction_mode"] = await _changes_servers(case)
    mode = "in transaction mode" if by_transaction else "whose mode does not show"
    if given:
        return Finding("pgbouncer", "ok", f"a pooler {mode}, and {_SETTING} is true", None, details)
    refusal = details["refusal"] = await _refusal(case)
    if refusal is None and not by_transaction:
        said = f"a pooler {mode}, while {_SETTING} is false: in transaction mode prepared statements would fail"
        return Finding("pgbouncer", "warning", said, f"{_SETTING}=true unless its pool_mode is session", details)
    why = f"it refuses our connections ({refusal})" if refusal else "prepared statements and time limits are lost in it"
    said = f"a pooler {mode}, while {_SETTING} is false: {why}"
    return Finding("pgbouncer", "error", said, f"{_SETTING}=true", details)


async def _changes_servers(case: Case) -> bool:
    """Whether one connection of ours is served by two servers: what was given back last is given out first.

    False too where the pooler has but one server connection for us, for which the second waits.
    """
    engine = build_engine(case.url, cautious(case.options))
    try:
        async with asyncio.timeout(_PATIENCE):
            return await _swap(engine)
    except (PandaDatabaseError, TimeoutError):
        return False
    finally:
        await engine.dispose()


async def _swap(engine: AsyncEngine) -> bool:
    async with engine.connect() as first, engine.connect() as second:
        before = (await row(first, _PID)).pid
        await row(second, _PID)
        await first.rollback()
        await second.rollback()
        return (await row(first, _PID)).pid != before


async def _refusal(case: Case) -> str | None:
    """What an application of these settings is told when it connects; None if it is let in."""
    engine = build_engine(case.url, replace(case.options, pool=SMALL_POOL))
    try:
        async with engine.connect():
            return None
    except PandaDatabaseError as error:
        return error.message
    finally:
        await engine.dispose()
