"""Run a unit of work again, when and only when that is safe."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from core.config.options import RetryOptions
from core.database.errors import PandaDatabaseError
from core.database.monitoring import QueryMonitor

__all__ = ["run_with_retry"]

T = TypeVar("T")


async def run_with_retry(
    open_transaction: Callable[[], AbstractAsyncContextManager[AsyncSession]],
    work: Callable[[AsyncSession], Awaitable[T]],
    *,
    options: RetryOptions,
    max_attempts: int | None = None,
    monitor: QueryMonitor | None = None,
) -> T:
    """Await `work(session)` in a fresh transaction until one commits; its result.

    The whole unit runs again after an error whose class says `retryable`: nothing of the failed attempt is stored
    then. It does not after `CommitOutcomeUnknown`, nor once `work` itself has committed. Raises the last error when
    attempts or time are used up. `monitor` is told of each further attempt.
    """
    attempts = max_attempts or options.max_attempts
    deadline = time.monotonic() + options.deadline
    attempt = 1
    while True:
        session: AsyncSession | None = None
        try:
            async with open_transaction() as session:
                return await work(session)
        except PandaDatabaseError as error:
            wait = backoff(options, attempt)
            final = attempt >= attempts or time.monotonic() + wait > deadline
            if final or not error.retryable or getattr(session, "committed", False):
                raise
            attempt += 1
            if monitor is not None:
                monitor.retried(attempt, error, wait, session_id=getattr(session, "log_id", None))
        await asyncio.sleep(wait)


def backoff(options: RetryOptions, failures: int) -> float:
    """Seconds to wait after so many failures: anything up to a limit that doubles, so that rivals do not meet again."""
    limit = min(options.backoff_max, options.backoff * 2 ** min(failures - 1, 32))
    return random.uniform(0, limit)  # noqa: S311 - it spreads load, it guards nothing
