"""From nothing to fit for use and back: for this project that means a manager that has verified the schema, and its end."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

from sqlalchemy import text

from bench import panda, peers
from bench.measure import Entrant, Goal, Unit, Work, expect
from bench.server import Target

__all__ = ["WORK"]

LIMIT = "asyncpg connect"
VERIFIED = "Alpha Panda, schema verified"


@asynccontextmanager
async def _asyncpg(target: Target) -> AsyncGenerator[Unit]:
    import asyncpg

    async def unit() -> None:
        connection = await asyncpg.connect(**target.keywords)
        expect(connection.is_closed(), False)
        await connection.close()

    yield unit


@asynccontextmanager
async def _panda(verify: bool, target: Target) -> AsyncGenerator[Unit]:
    async def unit() -> None:
        manager = panda.manager_for(target, verify_migrations=verify)
        await manager.connect()
        await manager.close()

    yield unit


@asynccontextmanager
async def _sqlalchemy(target: Target) -> AsyncGenerator[Unit]:
    async def unit() -> None:
        async with peers.sqlalchemy_engine(target) as engine, engine.connect() as connection:
            expect(await connection.scalar(text("SELECT 1")), 1)

    yield unit


WORK = Work(
    name="connect",
    title="connect until the database is fit for use, and close",
    entrants=(
        Entrant(LIMIT, _asyncpg),
        Entrant(VERIFIED, partial(_panda, True)),
        Entrant("Alpha Panda, not verified", partial(_panda, False)),
        Entrant("SQLAlchemy engine, SELECT 1", _sqlalchemy),
    ),
    limit=LIMIT,
    goals=(Goal(VERIFIED, LIMIT, at_most=3.0),),
    prepare=panda.migrate,
    units=10,
    runs=25,
)
