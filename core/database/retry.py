"""Run a unit of work again, when and only when that is safe."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import stamina
from sqlalchemy.ext.asyncio import AsyncSession

from core.config.options import RetryOptions
from core.database.errors import PandaDatabaseError

__all__ = ["run_with_retry"]

T = TypeVar("T")


async def run_with_retry(
    open_transaction: Callable[[], AbstractAsyncContextManager[AsyncSession]],
    work: Callable[[AsyncSession], Awaitable[T]],
    *,
    options: RetryOptions,
    max_attempts: int | None = None,
) -> T:
    """Await `work(session)` in a fresh transaction until one commits; its result.

    The whole unit runs again after an error whose class says `retryable`: nothing of the failed attempt is stored
    then. It does not after `CommitOutcomeUnknown`, nor once `work` itself has committed. Raises the last error when
    attempts or time are used up.
    """
    stored = False

    def again(error: Exception) -> bool:
        return isinstance(error, PandaDatabaseError) and error.retryable and not stored

    async for attempt in stamina.retry_context(
        on=again,
        attempts=max_attempts or options.max_attempts,
        timeout=options.deadline,
        wait_initial=options.backoff,
        wait_max=options.backoff_max,
        wait_jitter=options.backoff,
    ):
        with attempt:
            async with open_transaction() as session:
                try:
                    return await work(session)
                finally:
                    stored = stored or bool(getattr(session, "committed", False))
    raise AssertionError("unreachable: the last attempt returns or raises")
