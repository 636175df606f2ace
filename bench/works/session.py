"""Open a session, ask for one value, close it: what an application pays before it has done anything."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

from sqlalchemy import Integer, literal_column, text

from bench import panda, peers
from bench.measure import Entrant, Goal, SelfTimed, Unit, Work, expect
from bench.pgbench import opened_pgbench
from bench.server import Target

__all__ = ["LIMIT", "READ_ONLY", "READ_WRITE", "SQLALCHEMY", "WORK", "session_entrants"]

LIMIT = "asyncpg pool, no reset"
SQLALCHEMY = "SQLAlchemy"
READ_ONLY = "Alpha Panda, read-only"
READ_WRITE = "Alpha Panda, read-write"

_SQL = "SELECT 1"
_ONE = text(_SQL)


@asynccontextmanager
async def _asyncpg(opened: int, reset: bool, target: Target) -> AsyncGenerator[Unit]:
    async with peers.asyncpg_pool(target, opened=opened, reset=reset) as pool:

        async def unit() -> None:
            async with pool.acquire() as connection:
                expect(await connection.fetchval(_SQL), 1)

        yield unit


@asynccontextmanager
async def _panda(read_only: bool, target: Target) -> AsyncGenerator[Unit]:
    async with panda.opened_manager(target) as manager:

        async def unit() -> None:
            async with manager.get_session(read_only=read_only) as session:
                expect(await session.scalar(_ONE), 1)

        yield unit


@asynccontextmanager
async def _sqlalchemy(autocommit: bool, target: Target) -> AsyncGenerator[Unit]:
    from sqlalchemy.ext.asyncio import async_sessionmaker

    async with peers.sqlalchemy_engine(target, autocommit=autocommit) as engine:
        maker = async_sessionmaker(engine, expire_on_commit=False)

        async def unit() -> None:
            async with maker() as session:
                expect(await session.scalar(_ONE), 1)

        yield unit


@asynccontextmanager
async def _sqlmodel(target: Target) -> AsyncGenerator[Unit]:
    from sqlmodel import select
    from sqlmodel.ext.asyncio.session import AsyncSession

    one = select(literal_column("1", Integer))
    async with peers.sqlalchemy_engine(target) as engine:

        async def unit() -> None:
            async with AsyncSession(engine, expire_on_commit=False) as session:
                expect((await session.exec(one)).one(), 1)

        yield unit


@asynccontextmanager
async def _advanced_alchemy(target: Target) -> AsyncGenerator[Unit]:
    from advanced_alchemy.config import AsyncSessionConfig, SQLAlchemyAsyncConfig

    async with peers.sqlalchemy_engine(target) as engine:
        config = SQLAlchemyAsyncConfig(
            engine_instance=engine, session_config=AsyncSessionConfig(expire_on_commit=False)
        )

        async def unit() -> None:
            async with config.get_session() as session:
                expect(await session.scalar(_ONE), 1)

        yield unit


@asynccontextmanager
async def _tortoise(opened: int, target: Target) -> AsyncGenerator[Unit]:
    async with peers.tortoise_client(target, opened=opened) as client:

        async def unit() -> None:
            _, rows = await client.execute_query(_SQL)
            expect(rows[0][0], 1)

        yield unit


@asynccontextmanager
async def _piccolo(opened: int, target: Target) -> AsyncGenerator[Unit]:
    async with peers.piccolo_engine(target, opened=opened) as engine:
        from piccolo.table import Table

        class Nothing(Table, db=engine):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
            """A table to ask through; `raw` reads no table."""

        async def unit() -> None:
            rows = await Nothing.raw("SELECT 1 AS one")
            expect(rows[0]["one"], 1)

        yield unit


@asynccontextmanager
async def _psycopg(opened: int, autocommit: bool, target: Target) -> AsyncGenerator[Unit]:
    async with peers.psycopg_pool(target, opened=opened, autocommit=autocommit) as pool:

        async def unit() -> None:
            async with pool.connection() as connection:
                cursor = await connection.execute(_SQL)
                row = await cursor.fetchone()
                expect(row and row[0], 1)

        yield unit


@asynccontextmanager
async def _pgbench(clients: int, target: Target) -> AsyncGenerator[SelfTimed]:
    async with opened_pgbench(target, script=f"{_SQL};\n", clients=clients) as clock:
        yield clock


def session_entrants(opened: int) -> tuple[Entrant, ...]:
    """Everybody who opens sessions; pools that open connections beforehand begin with `opened` of them."""
    return (
        Entrant("pgbench", partial(_pgbench, opened)),
        Entrant(LIMIT, partial(_asyncpg, opened, False)),
        Entrant("asyncpg pool", partial(_asyncpg, opened, True)),
        Entrant(READ_ONLY, partial(_panda, True)),
        Entrant(READ_WRITE, partial(_panda, False)),
        Entrant(SQLALCHEMY, partial(_sqlalchemy, False)),
        Entrant("SQLAlchemy, autocommit", partial(_sqlalchemy, True)),
        Entrant("SQLModel", _sqlmodel),
        Entrant("advanced-alchemy", _advanced_alchemy),
        Entrant("Tortoise", partial(_tortoise, opened)),
        Entrant("Piccolo", partial(_piccolo, opened)),
        Entrant("psycopg 3 pool", partial(_psycopg, opened, False)),
        Entrant("psycopg 3 pool, autocommit", partial(_psycopg, opened, True)),
    )


WORK = Work(
    name="session",
    title="open a session, SELECT 1, close it",
    entrants=session_entrants(opened=1),
    limit=LIMIT,
    goals=(Goal(READ_ONLY, LIMIT, at_most=2.5), Goal(READ_WRITE, SQLALCHEMY, at_most=1.0)),
    units=200,
    runs=31,
)
