"""A hundred thousand instruments of the master as a data frame; the limit is the server writing the same rows to nowhere."""

import io
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import date

from bench import master, panda, peers
from bench.measure import Entrant, Goal, Unit, Work, expect
from bench.server import Target

__all__ = ["WORK"]

ROWS = 100_000
LIMIT = "COPY to nowhere"
FRAME = "Alpha Panda, frame"
_HEADER = (
    "instrument_token,exchange_token,tradingsymbol,name,last_price,expiry,strike,tick_size,lot_size,instrument_type,"
    "segment,exchange\n"
)
_QUERY = (
    "SELECT instrument_token, source, broker_key, exchange, exchange_token, trading_symbol, name, segment, instrument_type,"
    " option_type, underlying, expiry, strike, tick_size, lot_size, last_price, is_active, valid_from"
    " FROM instruments WHERE is_active"
)


async def _fill(target: Target) -> None:
    from core.trading import instruments

    text = io.StringIO()
    text.write(_HEADER)
    for n in range(1, ROWS + 1):
        strike, expiry = 100 + n % 900 * 50, date(2030, 1 + n % 12, 1 + n % 28)
        text.write(f"{n},{n},U{n % 200}X{n}CE,U{n % 200},0.0,{expiry},{strike},0.05,{25 + n % 50},CE,NFO-OPT,NFO\n")
    await panda.migrate(target)
    async with master.connected(target) as connection, panda.opened_manager(target) as manager:
        await master.truncate(connection)
        await instruments.load(manager, text.getvalue().encode(), trading_date=date(2029, 12, 3))


@asynccontextmanager
async def _copy(target: Target) -> AsyncGenerator[Unit]:
    """To a sink in this process where the role may not write on the server: then the wire is in it."""
    import asyncpg

    connection = await asyncpg.connect(**target.keywords)
    try:
        superuser = await connection.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")

        async def sink(_: bytes) -> None:
            pass

        async def unit() -> None:
            if superuser:
                status = await connection.execute(f"COPY ({_QUERY}) TO '/dev/null' (FORMAT csv)")
            else:
                status = await connection.copy_from_query(_QUERY, output=sink, format="csv")
            expect(status, f"COPY {ROWS}")

        yield unit
    finally:
        await connection.close()


@asynccontextmanager
async def _frame(target: Target) -> AsyncGenerator[Unit]:
    from core.trading import instruments

    async with panda.opened_manager(target) as manager:

        async def unit() -> None:
            async with manager.get_session(read_only=True, consistent=True) as session:
                rows = await instruments.frame(session)
            expect((rows.height, rows.null_count()["strike"].item()), (ROWS, 0))

        yield unit


@asynccontextmanager
async def _objects(target: Target) -> AsyncGenerator[Unit]:
    from sqlalchemy import select
    from sqlalchemy.ext.asyncio import async_sessionmaker

    from core.database.models import Instrument

    async with peers.sqlalchemy_engine(target) as engine:
        maker = async_sessionmaker(engine)

        async def unit() -> None:
            async with maker() as session:
                rows = list(await session.scalars(select(Instrument).where(Instrument.is_active)))
            expect(len(rows), ROWS)

        yield unit


WORK = Work(
    name="frame",
    title=f"{ROWS:,} instruments as a data frame",
    entrants=(Entrant(LIMIT, _copy), Entrant(FRAME, _frame), Entrant("SQLAlchemy ORM, objects", _objects)),
    limit=LIMIT,
    goals=(Goal(FRAME, LIMIT, at_most=3.5),),
    prepare=_fill,
    units=1,
    runs=9,
)
