"""Who looks up, and how."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial

from bench import panda, peers
from bench.measure import Entrant, Goal, SelfTimed, Unit, Work, expect
from bench.pgbench import opened_pgbench
from bench.server import Target
from bench.works.lookup._data import BY_TOKEN, ROWS, Instrument, check, fill_master, make_table, tokens

__all__ = ["WORK"]

LIMIT = "asyncpg + dataclass"
ORM = "Alpha Panda, ORM"
CORE = "Alpha Panda, Core row"
CACHE = "Alpha Panda, cache"


@asynccontextmanager
async def _pgbench(target: Target) -> AsyncGenerator[SelfTimed]:
    script = f"\\set token random(1, {ROWS})\n{BY_TOKEN} :token;\n"
    async with opened_pgbench(target, script=script) as clock:
        yield clock


@asynccontextmanager
async def _asyncpg(target: Target) -> AsyncGenerator[Unit]:
    async with peers.asyncpg_pool(target, reset=False) as pool:
        keys = tokens()

        async def unit() -> None:
            token = next(keys)
            async with pool.acquire() as connection:
                row = await connection.fetchrow(BY_TOKEN + "$1", token)
            check(row and Instrument(*row), token)

        yield unit


@asynccontextmanager
async def _panda_orm(target: Target) -> AsyncGenerator[Unit]:
    from bench.works.lookup._sqlalchemy_models import PandaInstrument

    async with panda.opened_manager(target) as manager:
        keys = tokens()

        async def unit() -> None:
            token = next(keys)
            async with manager.get_session(read_only=True) as session:
                check(await session.get(PandaInstrument, token), token)

        yield unit


@asynccontextmanager
async def _panda_core(target: Target) -> AsyncGenerator[Unit]:
    from sqlalchemy import select

    from bench.works.lookup._sqlalchemy_models import PandaInstrument

    table = PandaInstrument.__table__
    async with panda.opened_manager(target) as manager:
        keys = tokens()

        async def unit() -> None:
            token = next(keys)
            async with manager.get_session(read_only=True) as session:
                result = await session.execute(select(table).where(table.c.token == token))
                check(result.one(), token)

        yield unit


@asynccontextmanager
async def _cache(target: Target) -> AsyncGenerator[Unit]:
    from core.trading.instruments import InstrumentCache

    async with panda.opened_manager(target) as manager, InstrumentCache(manager) as cache:
        keys = tokens()

        async def unit() -> None:
            token = next(keys)
            found = cache.get(token)
            expect(found and (found.instrument_token, found.strike), (token, token + Decimal("0.05")))

        yield unit


@asynccontextmanager
async def _sqlalchemy_orm(autocommit: bool, target: Target) -> AsyncGenerator[Unit]:
    from sqlalchemy.ext.asyncio import async_sessionmaker

    from bench.works.lookup._sqlalchemy_models import PlainInstrument

    async with peers.sqlalchemy_engine(target, autocommit=autocommit) as engine:
        maker, keys = async_sessionmaker(engine, expire_on_commit=False), tokens()

        async def unit() -> None:
            token = next(keys)
            async with maker() as session:
                check(await session.get(PlainInstrument, token), token)

        yield unit


@asynccontextmanager
async def _sqlalchemy_core(autocommit: bool, target: Target) -> AsyncGenerator[Unit]:
    from sqlalchemy import select

    from bench.works.lookup._sqlalchemy_models import PlainInstrument

    table = PlainInstrument.__table__
    async with peers.sqlalchemy_engine(target, autocommit=autocommit) as engine:
        keys = tokens()

        async def unit() -> None:
            token = next(keys)
            async with engine.connect() as connection:
                result = await connection.execute(select(table).where(table.c.token == token))
                check(result.one(), token)

        yield unit


@asynccontextmanager
async def _sqlmodel(target: Target) -> AsyncGenerator[Unit]:
    from sqlmodel.ext.asyncio.session import AsyncSession

    from bench.works.lookup._sqlmodel_models import Instrument as Model

    async with peers.sqlalchemy_engine(target) as engine:
        keys = tokens()

        async def unit() -> None:
            token = next(keys)
            async with AsyncSession(engine, expire_on_commit=False) as session:
                check(await session.get(Model, token), token)

        yield unit


@asynccontextmanager
async def _tortoise(target: Target) -> AsyncGenerator[Unit]:
    async with peers.tortoise_client(target):
        from bench.works.lookup._tortoise_models import Instrument as Model

        keys = tokens()

        async def unit() -> None:
            token = next(keys)
            check(await Model.get(token=token), token)

        yield unit


@asynccontextmanager
async def _piccolo(target: Target) -> AsyncGenerator[Unit]:
    async with peers.piccolo_engine(target) as engine:
        from bench.works.lookup._piccolo_models import instrument_table

        table, keys = instrument_table(engine), tokens()

        async def unit() -> None:
            token = next(keys)
            check(await table.objects().get(table.token == token), token)

        yield unit


@asynccontextmanager
async def _psycopg(autocommit: bool, target: Target) -> AsyncGenerator[Unit]:
    async with peers.psycopg_pool(target, autocommit=autocommit) as pool:
        from psycopg.rows import class_row

        keys, rows = tokens(), class_row(Instrument)

        async def unit() -> None:
            token = next(keys)
            async with pool.connection() as connection, connection.cursor(row_factory=rows) as cursor:
                await cursor.execute(BY_TOKEN + "%s", (token,))
                check(await cursor.fetchone(), token)

        yield unit


async def _prepare(target: Target) -> None:
    await panda.migrate(target)
    await make_table(target)
    await fill_master(target)


WORK = Work(
    name="lookup",
    title=f"one of {ROWS:,} instruments by its key, as an object",
    entrants=(
        Entrant("pgbench", _pgbench),
        Entrant(LIMIT, _asyncpg),
        Entrant(ORM, _panda_orm),
        Entrant(CORE, _panda_core),
        Entrant(CACHE, _cache),
        Entrant("SQLAlchemy ORM", partial(_sqlalchemy_orm, False)),
        Entrant("SQLAlchemy ORM, autocommit", partial(_sqlalchemy_orm, True)),
        Entrant("SQLAlchemy Core", partial(_sqlalchemy_core, False)),
        Entrant("SQLAlchemy Core, autocommit", partial(_sqlalchemy_core, True)),
        Entrant("SQLModel", _sqlmodel),
        Entrant("Tortoise", _tortoise),
        Entrant("Piccolo", _piccolo),
        Entrant("psycopg 3 pool", partial(_psycopg, False)),
        Entrant("psycopg 3 pool, autocommit", partial(_psycopg, True)),
    ),
    limit=LIMIT,
    goals=(Goal(ORM, LIMIT, at_most=2.5), Goal(CORE, LIMIT, at_most=2.5)),
    prepare=_prepare,
    units=200,
    runs=27,
)
