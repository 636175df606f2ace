"""How each peer is opened: the same server, the same transport, the same size of pool, and nothing else changed.

A peer is imported when it is opened, so that one which is not installed is missed by name and the rest still run.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from bench.server import Target

if TYPE_CHECKING:
    from piccolo.engine.postgres import PostgresEngine
    from psycopg import AsyncConnection
    from psycopg_pool import AsyncConnectionPool
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["POOL", "asyncpg_pool", "piccolo_engine", "psycopg_pool", "sqlalchemy_engine", "tortoise_client"]

POOL = 20
"""Connections that every pool may hold."""


async def _leave_as_it_is(connection: Any) -> None:
    """In the place of asyncpg's reset, which costs a round trip."""


@asynccontextmanager
async def asyncpg_pool(target: Target, *, opened: int = 1, reset: bool = True) -> AsyncGenerator[Any]:
    """The driver's own pool; without `reset` nothing is sent when a connection comes back."""
    import asyncpg

    hook = None if reset else _leave_as_it_is
    async with asyncpg.create_pool(min_size=opened, max_size=POOL, reset=hook, **target.keywords) as pool:
        yield pool


@asynccontextmanager
async def sqlalchemy_engine(target: Target, *, autocommit: bool = False) -> "AsyncGenerator[AsyncEngine]":
    """Plain SQLAlchemy on asyncpg, as its documentation has it."""
    from sqlalchemy.ext.asyncio import create_async_engine

    options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"} if autocommit else {}
    engine = create_async_engine(
        "postgresql+asyncpg://", connect_args=target.keywords, pool_size=POOL, max_overflow=0, **options
    )
    try:
        yield engine
    finally:
        await engine.dispose()


@asynccontextmanager
async def tortoise_client(target: Target, *, opened: int = 1) -> AsyncGenerator[Any]:
    """Tortoise on asyncpg with the bench's models; yields its client for the one connection there is."""
    from tortoise import Tortoise

    credentials = {**target.keywords, "minsize": opened, "maxsize": POOL}
    config = {
        "connections": {"default": {"engine": "tortoise.backends.asyncpg", "credentials": credentials}},
        "apps": {"bench": {"models": ["bench.works.lookup._tortoise_models"], "default_connection": "default"}},
    }
    async with await Tortoise.init(config=config) as context:
        yield context.connections.get("default")


@asynccontextmanager
async def piccolo_engine(target: Target, *, opened: int = 1) -> "AsyncGenerator[PostgresEngine]":
    """Piccolo's engine with its pool started."""
    from piccolo.engine.postgres import PostgresEngine

    engine = PostgresEngine(config=target.keywords)
    await engine.start_connection_pool(min_size=opened, max_size=POOL)
    try:
        yield engine
    finally:
        await engine.close_connection_pool()


@asynccontextmanager
async def psycopg_pool(
    target: Target, *, opened: int = 1, autocommit: bool = False
) -> "AsyncGenerator[AsyncConnectionPool[AsyncConnection[Any]]]":
    """psycopg 3 with its C parts; `autocommit` spares it BEGIN and COMMIT."""
    from psycopg import AsyncConnection
    from psycopg_pool import AsyncConnectionPool

    words = {"dbname" if word == "database" else word: value for word, value in target.keywords.items()}
    kwargs = {**words, "autocommit": autocommit}
    kind = AsyncConnection[Any]
    async with AsyncConnectionPool(
        connection_class=kind, kwargs=kwargs, min_size=opened, max_size=POOL, open=False
    ) as pool:
        await pool.wait()
        yield pool
