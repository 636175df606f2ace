"""One snapshot and its commit: the real table with its index, its foreign key and its checks, each row acknowledged as durable.

The limit is pgbench, a commit per row, with the number of clients that suits the machine best: that is looked for each time.
Everybody stores the same row, one position in it. 64 tasks write one row after another; the pools hold 20 connections, the
snapshot writer its two.
"""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from bench import panda, peers
from bench.measure import Entrant, Goal, SelfTimed, Work, expect
from bench.pgbench import opened_pgbench
from bench.server import Target

__all__ = ["DIRECT", "PANDA", "WORK", "prepare", "snapshots", "table", "timed_direct", "timed_writer"]

LIMIT = "pgbench at its best"
PANDA = "Alpha Panda, writer"
RECORD = "Alpha Panda, record"
ASYNCPG = "asyncpg pool"
DIRECT = "asyncpg, one connection"
TASKS = 64
PORTFOLIOS = 64
START = datetime(2026, 11, 2, tzinfo=UTC)
_CLIENTS = (16, 32, 64, 90)
_TRIAL = 1_280  # rows by which a number of clients is judged

_POSITION = {
    "instrument_token": 408065,
    "quantity": "75.0000000000",
    "average_price": "1834.5000000000",
    "last_price": "1850.7500000000",
    "pnl": "1218.7500000000",
}
_AMOUNTS = {
    "cash": Decimal("861193.7500000000"),
    "realized_pnl": Decimal("12.5000000000"),
    "unrealized_pnl": Decimal("1218.7500000000"),
    "total_pnl": Decimal("1231.2500000000"),
    "equity": Decimal("1000000.0000000000"),
}
_COLUMNS = ("portfolio_id", "snapshot_time", "broker", "positions", *_AMOUNTS)
_INSERT = (
    f"INSERT INTO portfolio_snapshots ({', '.join(_COLUMNS)})"
    f" VALUES ({', '.join(f'${n}' for n in range(1, len(_COLUMNS) + 1))})"
)
# pgbench takes a colon before a letter for a variable of its own: no time of day, and blanks in the JSON.
_SCRIPT = (
    f"\\set portfolio random(0, {PORTFOLIOS - 1})\n"
    f"INSERT INTO portfolio_snapshots ({', '.join(_COLUMNS)}) VALUES ('p' || :portfolio,"
    f" date '{START:%Y-%m-%d}' + nextval('bench_times') * interval '1 microsecond', 'paper',"
    f" '{json.dumps([_POSITION])}', {', '.join(str(amount) for amount in _AMOUNTS.values())});\n"
)


async def prepare(target: Target) -> None:
    """The schema, the portfolios and the month."""
    from core.trading import portfolios

    await panda.migrate(target)
    async with table(target) as judge, panda.opened_manager(target) as manager:
        await judge.execute(  # which another work may have done before
            "INSERT INTO portfolios (portfolio_id, broker, currency, name)"
            f" SELECT 'p' || n, 'paper', 'INR', 'Portfolio ' || n FROM generate_series(0, {PORTFOLIOS - 1}) AS n"
            " ON CONFLICT DO NOTHING"
        )
        await portfolios.ensure_partitions(manager, START, START)


@asynccontextmanager
async def table(target: Target) -> AsyncGenerator[Any]:
    """A connection beside the entrant's own, which empties and counts the table."""
    import asyncpg

    connection = await asyncpg.connect(**target.keywords)
    try:
        await connection.execute("CREATE SEQUENCE IF NOT EXISTS bench_times CACHE 100")
        yield connection
    finally:
        await connection.close()


def rows() -> Iterator[tuple[Any, ...]]:
    """The values of one row after another, in the table's order, the position as JSON."""
    for number in itertools.count():
        at = START + timedelta(microseconds=number)
        yield f"p{number % PORTFOLIOS}", at, "paper", json.dumps([_POSITION]), *_AMOUNTS.values()


def snapshots(number: int) -> "list[Any]":
    """So many records, made beforehand: validating them is not the work."""
    from core.database.records import PortfolioSnapshotCreate, Position, Positions

    positions = Positions([Position.model_validate_json(json.dumps(_POSITION))])
    return [
        PortfolioSnapshotCreate(
            portfolio_id=f"p{place % PORTFOLIOS}",
            snapshot_time=START + timedelta(microseconds=place),
            broker="paper",
            positions=positions,
            **_AMOUNTS,
        )
        for place in range(number)
    ]


def _timed(judge: Any, write: Callable[[Any], Awaitable[object]], *, tasks: int, records: bool = False) -> SelfTimed:
    """An empty table, then `tasks` tasks that write the rows between them."""

    async def sample(units: int) -> float:
        await judge.execute("TRUNCATE portfolio_snapshots")
        given = iter(snapshots(units)) if records else itertools.islice(rows(), units)

        async def task() -> None:
            for row in given:
                await write(row)

        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(task())
        taken = time.perf_counter() - start
        expect(await judge.fetchval("SELECT count(*) FROM portfolio_snapshots"), units)
        return taken

    return SelfTimed(sample)


@asynccontextmanager
async def _pgbench(target: Target) -> AsyncGenerator[SelfTimed]:
    best: list[int] = []

    async def run(clients: int, units: int) -> float:
        await judge.execute("TRUNCATE portfolio_snapshots")
        units = -(-units // clients) * clients
        async with opened_pgbench(target, script=_SCRIPT, clients=clients) as bench:
            taken = await bench.sample(units)
        expect(await judge.fetchval("SELECT count(*) FROM portfolio_snapshots"), units)
        return taken / units

    async def sample(units: int) -> float:
        if not best:
            best.append(min([(await run(clients, _TRIAL), clients) for clients in _CLIENTS])[1])
        return await run(best[0], units) * units

    async with table(target) as judge:
        yield SelfTimed(sample)


@asynccontextmanager
async def timed_writer(tasks: int, target: Target) -> AsyncGenerator[SelfTimed]:
    from core.trading.portfolios import SnapshotWriter

    async with table(target) as judge, panda.opened_manager(target) as manager, SnapshotWriter(manager) as writer:
        yield _timed(judge, writer.write, tasks=tasks, records=True)


@asynccontextmanager
async def _record(target: Target) -> AsyncGenerator[SelfTimed]:
    from core.config.options import PoolOptions
    from core.trading import portfolios

    patient = PoolOptions(size=peers.POOL, max_overflow=0, read_size=1, wait=60)  # as the peers' pools wait
    async with table(target) as judge, panda.opened_manager(target, pool=patient) as manager:

        async def write(snapshot: Any) -> None:
            async with manager.transaction() as session:
                await portfolios.record(session, snapshot)

        yield _timed(judge, write, tasks=TASKS, records=True)


@asynccontextmanager
async def _asyncpg(target: Target) -> AsyncGenerator[SelfTimed]:
    async with table(target) as judge, peers.asyncpg_pool(target, opened=peers.POOL, reset=False) as pool:

        async def write(row: tuple[Any, ...]) -> None:
            async with pool.acquire() as connection:
                expect(await connection.execute(_INSERT, *row), "INSERT 0 1")

        yield _timed(judge, write, tasks=TASKS)


@asynccontextmanager
async def timed_direct(target: Target) -> AsyncGenerator[SelfTimed]:
    import asyncpg

    connection = await asyncpg.connect(**target.keywords)
    try:
        async with table(target) as judge:

            async def write(one: Any) -> None:  # from the record that the writer is given, as one would by hand
                amounts = (one.cash, one.realized_pnl, one.unrealized_pnl, one.total_pnl, one.equity)
                position = one.positions.model_dump_json()
                status = await connection.execute(
                    _INSERT, one.portfolio_id, one.snapshot_time, one.broker, position, *amounts
                )
                expect(status, "INSERT 0 1")

            yield _timed(judge, write, tasks=1, records=True)
    finally:
        await connection.close()


@asynccontextmanager
async def _sqlalchemy(target: Target) -> AsyncGenerator[SelfTimed]:
    from sqlalchemy import column, insert
    from sqlalchemy import table as table_of
    from sqlalchemy.dialects.postgresql import JSONB

    place = table_of(
        "portfolio_snapshots", *(column(name, JSONB) if name == "positions" else column(name) for name in _COLUMNS)
    )
    statement = insert(place)
    async with table(target) as judge, peers.sqlalchemy_engine(target) as engine:

        async def write(row: tuple[Any, ...]) -> None:
            async with engine.begin() as connection:
                await connection.execute(statement, dict(zip(_COLUMNS, row, strict=True)) | {"positions": [_POSITION]})

        yield _timed(judge, write, tasks=TASKS)


@asynccontextmanager
async def _tortoise(target: Target) -> AsyncGenerator[SelfTimed]:
    async with table(target) as judge, peers.tortoise_client(target, opened=peers.POOL) as client:

        async def write(row: tuple[Any, ...]) -> None:
            await client.execute_query(_INSERT, list(row))

        yield _timed(judge, write, tasks=TASKS)


@asynccontextmanager
async def _many(target: Target) -> AsyncGenerator[SelfTimed]:
    async with timed_writer(TASKS, target) as timed:
        yield timed


WORK = Work(
    name="durable-row",
    title=f"one snapshot and its commit, {TASKS} tasks",
    entrants=(
        Entrant(LIMIT, _pgbench),
        Entrant(PANDA, _many),
        Entrant(RECORD, _record),
        Entrant(ASYNCPG, _asyncpg),
        Entrant("SQLAlchemy", _sqlalchemy),
        Entrant("Tortoise, SQL", _tortoise),
    ),
    limit=LIMIT,
    goals=(Goal(PANDA, LIMIT, at_most=0.5), Goal(PANDA, ASYNCPG), Goal(RECORD, "SQLAlchemy")),
    prepare=prepare,
    units=6_400,
    runs=7,
    alone=True,
)
