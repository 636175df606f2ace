"""Waiting for what has come about on the server, since no sleep is long enough on a machine that stands still for a while."""

import asyncio
import functools
import gc
import inspect
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import asyncpg
import pytest

LIMIT = 60.0
"""Seconds; reached by a failing test alone."""


async def wait_for(url: str, condition: str) -> None:
    """Wait until the condition holds in that database, asked from a connection of its own."""
    connection = await asyncpg.connect(url)
    try:
        async with asyncio.timeout(LIMIT):
            while not await connection.fetchval(f"SELECT {condition}"):
                await asyncio.sleep(0.01)
    finally:
        await connection.close()


async def wait_for_session(url: str, state: str, statement: str) -> None:
    """Wait until another session of that database has come to that state with such a statement, a pattern of LIKE."""
    await wait_for(
        url,
        f"EXISTS (SELECT FROM pg_stat_activity WHERE state = '{state}' AND query LIKE '{statement}'"
        " AND datname = current_database() AND pid <> pg_backend_pid())",
    )


async def wait_for_lock(url: str, kind: str = "%") -> None:
    """Wait until somebody waits for a lock of that kind in that database: relation, tuple, transactionid, advisory, ..."""
    await wait_for(
        url,
        "EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)"
        f" WHERE NOT granted AND datname = current_database() AND locktype LIKE '{kind}')",
    )


class TriedAgain(UserWarning):
    """A test has failed at its first pace."""


def paced(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Coroutine[Any, Any, None]]:
    """A test whose moments are `pace` times as long as they need be: a machine that stood still in one of them has it tried
    again with longer ones, while a defect fails at every pace. The run's summary of warnings names each that was tried again.
    """

    @functools.wraps(test)
    async def trying(*arguments: Any, **named: Any) -> None:
        for pace in (1, 4):
            try:
                return await test(*arguments, pace=pace, **named)
            except (AssertionError, TimeoutError, pytest.fail.Exception) as error:
                with warnings.catch_warnings():
                    warnings.simplefilter("always")  # it is shown, and no error
                    told = f"{test.__name__} is tried again: {type(error).__name__} at pace {pace}"
                    warnings.warn(TriedAgain(told), stacklevel=2)
                gc.collect()  # what the attempt has left behind is no part of the next
        return await test(*arguments, pace=16, **named)

    asked = inspect.signature(test)
    trying.__signature__ = asked.replace(parameters=[one for one in asked.parameters.values() if one.name != "pace"])  # type: ignore[attr-defined]
    return trying
