"""A broker's file into an empty table: 100,000 instruments, their constraints and indexes included.

The limit reads the finished rows from another table of the same server: no file, no parser, no wire. "asyncpg COPY" sends the
file as it is and lets the server convert it: a bad row ends it, and nothing is validated but what the table's constraints say.
"psycopg COPY" converts row by row in Python. SQLAlchemy inserts a tenth of the rows, and its time is counted ten times.
"""

import csv
import io
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from typing import Any

from bench import master, panda, peers
from bench.measure import Entrant, Goal, SelfTimed, Work, expect
from bench.server import Target

__all__ = ["WORK"]

LIMIT = "INSERT ... SELECT"
PANDA = "Alpha Panda"
_PART = 10
_SERVER_SIDE = "INSERT INTO instruments SELECT * FROM bench_master"


async def _prepare(target: Target) -> None:
    """A table with the very rows that everybody ends up with."""
    async with master.connected(target) as connection:
        await master.truncate(connection)
        async with connection.transaction():
            await master.stage(connection, master.made())
            await connection.execute(master.FROM_STAGED)
        await connection.execute("DROP TABLE IF EXISTS bench_master")
        await connection.execute("CREATE TABLE bench_master AS SELECT * FROM instruments")
        await connection.execute("VACUUM (ANALYZE, FREEZE) bench_master")


@asynccontextmanager
async def _judged(target: Target) -> AsyncGenerator[tuple[Any, tuple[Any, ...]]]:
    """A connection beside the entrant's own, and what the table shall hold in the end."""
    async with master.connected(target) as connection:
        await master.truncate(connection)
        await connection.execute(_SERVER_SIDE)
        yield connection, await master.check(connection)


def _from_empty(judge: Any, fill: Callable[[], Awaitable[None]], check: Callable[[], Awaitable[object]]) -> SelfTimed:
    """The clock runs while `fill` does; the table is emptied before, and `check` looks at it afterwards."""

    async def sample(units: int) -> float:
        taken = 0.0
        for _ in range(units):
            await master.truncate(judge)
            start = time.perf_counter()
            await fill()
            taken += time.perf_counter() - start
            await check()
        return taken

    return SelfTimed(sample)


@asynccontextmanager
async def _limit(target: Target) -> AsyncGenerator[SelfTimed]:
    async with _judged(target) as (connection, wanted):
        yield _from_empty(
            connection, partial(connection.execute, _SERVER_SIDE), partial(master.check, connection, wanted)
        )


@asynccontextmanager
async def _panda(target: Target) -> AsyncGenerator[SelfTimed]:
    data = master.made()
    async with _judged(target) as (connection, wanted), panda.opened_manager(target) as manager:

        async def fill() -> None:
            report = await master.load(manager, data)
            expect((report.added, report.rejected), (master.ROWS, ()))

        yield _from_empty(connection, fill, partial(master.check, connection, wanted))


@asynccontextmanager
async def _asyncpg(target: Target) -> AsyncGenerator[SelfTimed]:
    data = master.made()
    async with _judged(target) as (connection, wanted):

        async def fill() -> None:
            async with connection.transaction():
                await master.stage(connection, data)
                await connection.execute(master.FROM_STAGED)

        yield _from_empty(connection, fill, partial(master.check, connection, wanted))


@asynccontextmanager
async def _psycopg(target: Target) -> AsyncGenerator[SelfTimed]:
    data = master.made()
    command: Any = f"COPY instruments ({', '.join(master.COLUMNS)}) FROM STDIN"
    async with _judged(target) as (judge, wanted), peers.psycopg_pool(target) as pool:

        async def fill() -> None:
            async with pool.connection() as connection, connection.cursor() as cursor, cursor.copy(command) as copy:
                for row in _converted(data):
                    await copy.write_row(row)

        yield _from_empty(judge, fill, partial(master.check, judge, wanted))


@asynccontextmanager
async def _sqlalchemy(target: Target) -> AsyncGenerator[SelfTimed]:
    from sqlalchemy import insert

    from core.database.models import Instrument

    table: Any = Instrument.__table__
    rows = [dict(zip(master.COLUMNS, row, strict=True)) for row in _converted(master.made())][::_PART]
    async with _judged(target) as (judge, _), peers.sqlalchemy_engine(target) as engine:

        async def fill() -> None:
            async with engine.begin() as connection:
                await connection.execute(insert(table), rows)

        async def check() -> None:
            expect(await judge.fetchval("SELECT count(*) FROM instruments"), master.ROWS // _PART)

        part = _from_empty(judge, fill, check)

        async def sample(units: int) -> float:
            return await part.sample(units) * _PART

        yield SelfTimed(sample)


def _converted(data: bytes) -> Iterator[tuple[Any, ...]]:
    """The file's rows as Python values, in the order of the table's columns."""
    begin = datetime.combine(master.DAY, datetime.min.time(), tzinfo=UTC)
    for row in csv.DictReader(io.StringIO(data.decode())):
        kind = row["instrument_type"]
        option = kind in ("CE", "PE")
        yield (
            int(row["instrument_token"]),
            "kite",
            row["exchange"],
            row["exchange_token"],
            row["tradingsymbol"],
            row["name"] or None,
            row["segment"],
            "IDX" if row["segment"] == "INDICES" else "OPT" if option else kind,
            row["name"] or None if kind != "EQ" else None,
            kind if option else None,
            Decimal(row["tick_size"]),
            int(row["lot_size"]),
            date.fromisoformat(row["expiry"]) if row["expiry"] else None,
            Decimal(row["strike"]) if option else None,
            Decimal(row["last_price"]),
            begin,
        )


WORK = Work(
    name="load",
    title=f"{master.ROWS:,} instruments, from the file to an empty table",
    entrants=(
        Entrant(LIMIT, _limit),
        Entrant(PANDA, _panda),
        Entrant("asyncpg COPY, not validated", _asyncpg),
        Entrant("psycopg COPY, row by row", _psycopg),
        Entrant("SQLAlchemy, a tenth x 10", _sqlalchemy),
    ),
    limit=LIMIT,
    goals=(Goal(PANDA, LIMIT, at_most=3.0), Goal(PANDA, "asyncpg COPY, not validated")),
    prepare=_prepare,
    units=1,
    runs=7,
)
