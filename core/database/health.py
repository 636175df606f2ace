"""Is the database fit for use? The answer is a value and never an exception."""

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool

from core.database.errors import PandaDatabaseError, PoolExhausted, translate
from core.database.schema import inspect

__all__ = ["check_health", "pool_figures", "unhealthy", "with_parts"]

_FACTS = text(
    "SELECT current_setting('server_version') AS version, pg_is_in_recovery() AS standby,"
    " CASE WHEN pg_is_in_recovery() THEN"
    "  extract(epoch FROM now() - pg_last_xact_replay_timestamp())::float8 END AS lag"
)

_leaving: set[asyncio.Future[Any]] = set()  # the loop itself keeps only weak references


async def check_health(
    engine: AsyncEngine, pools: Mapping[str, AsyncEngine], *, timeout: float, warnings: Sequence[str] = ()
) -> dict[str, Any]:
    """Ask the server through `engine`, in `timeout` seconds at the most.

    Keys: `status` (healthy | degraded | unhealthy), `latency_ms`, `version`, `role` (primary | standby), `replica_lag`
    (seconds, on a standby), `schema` (status, current, head), `pool` (figures by pool), `warnings`, `error`. Degraded
    means that it answers but should not be written to: the schema is not at head, or the server is a standby, or
    every connection is in use.
    """
    started = time.perf_counter()
    report = unhealthy(None, warnings=warnings) | {"pool": {name: pool_figures(pool) for name, pool in pools.items()}}
    try:
        report |= await _within(timeout, _ask(engine))
    except TimeoutError:
        report["error"] = f"no answer within {timeout:g} s"
    except Exception as error:  # the outermost door: a health check that raises is no health check
        ours = error if isinstance(error, PandaDatabaseError) else translate(error)
        report["error"] = str(ours) if ours is not None else f"unexpected {type(error).__name__}"
        if isinstance(ours, PoolExhausted):
            report["status"] = "degraded"
    report["latency_ms"] = round((time.perf_counter() - started) * 1_000, 3)
    return report


def unhealthy(error: str | None, *, warnings: Sequence[str] = ()) -> dict[str, Any]:
    """The report of a database that has not answered."""
    return {
        "status": "unhealthy",
        "latency_ms": None,
        "version": None,
        "role": None,
        "replica_lag": None,
        "schema": None,
        "pool": {},
        "warnings": list(warnings),
        "error": error,
    }


def with_parts(report: Mapping[str, Any], **parts: Mapping[str, Any]) -> dict[str, Any]:
    """A report with what parts of the application say of themselves under `parts`: `instruments=cache.health()`.

    A part whose `status` is neither healthy nor fresh makes a healthy report degraded; `error` then names it.
    """
    unfit = [
        f"{name} is {part['status']}" for name, part in parts.items() if part["status"] not in ("healthy", "fresh")
    ]
    whole = dict(report) | {"parts": {name: dict(part) for name, part in parts.items()}}
    if unfit and report["status"] == "healthy":
        whole |= {"status": "degraded", "error": ", ".join(unfit)}
    return whole


def pool_figures(engine: AsyncEngine) -> dict[str, int]:
    """Connections of an engine's pool: the most it may hold, open, in use."""
    pool = engine.sync_engine.pool
    if not isinstance(pool, QueuePool):
        return {}
    return {
        "limit": pool.size() + max(getattr(pool, "_max_overflow", 0), 0),
        "open": pool.checkedin() + pool.checkedout(),
        "in_use": pool.checkedout(),
    }


async def _within(timeout: float, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """The result, or TimeoutError on time: what a dead network makes of the cancelled work is not waited for."""
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait([task], timeout=timeout)
    finally:
        if not task.done():
            task.cancel()
            _leaving.add(task)
            task.add_done_callback(_left)
    if not done:
        raise TimeoutError
    return task.result()


def _left(task: asyncio.Future[Any]) -> None:
    _leaving.discard(task)
    if not task.cancelled():
        task.exception()  # looked at, so that the loop does not report it


async def _ask(engine: AsyncEngine) -> dict[str, Any]:
    async with engine.connect() as connection:
        facts = (await connection.execute(_FACTS)).one()
        schema = await inspect(connection)
    fit = schema.status == "at_head" and not facts.standby
    return {
        "status": "healthy" if fit else "degraded",
        "version": facts.version,
        "role": "standby" if facts.standby else "primary",
        "replica_lag": facts.lag,
        "schema": {"status": schema.status, "current": list(schema.current), "head": schema.head},
        "error": None if fit else (schema.describe() if schema.status != "at_head" else "the server is a standby"),
    }
