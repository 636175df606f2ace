"""200,000 snapshots of 100 portfolios into 24 monthly partitions, with their key, foreign key and checks.

The limit copies the finished rows from another table of the same server: no wire, no parser. "asyncpg COPY" stages tuples of
Python values and inserts from there, which is what the driver alone offers: nothing is validated but what the table's
constraints say. Ours takes a data frame, which it checks by column, or records that are made already; making them costs more
than storing them, and is not counted for anybody. SQLAlchemy inserts a tenth of the rows, and its time is counted ten times.
"""

import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial
from typing import Any

from bench import panda, peers, snapshots
from bench.measure import Entrant, Goal, SelfTimed, Work, expect
from bench.server import Target

__all__ = ["WORK"]

ROWS = 200_000
PORTFOLIOS = 100
LIMIT = "INSERT ... SELECT"
FRAME = "Alpha Panda, frame"
RECORDS = "Alpha Panda, records"
_PART = 10
_TABLE = "portfolio_snapshots"
_COLUMNS = (
    "portfolio_id",
    "snapshot_time",
    "broker",
    "positions",
    "cash",
    "realized_pnl",
    "unrealized_pnl",
    "total_pnl",
    "equity",
)
_LISTED = ", ".join(_COLUMNS)
_SERVER_SIDE = f"INSERT INTO {_TABLE} SELECT * FROM bench_snapshots"
_STAGE = f"CREATE TEMPORARY TABLE staged ON COMMIT DROP AS SELECT {_LISTED} FROM {_TABLE} WITH NO DATA"
_DIGEST = f"SELECT count(*), sum(equity), sum(total_pnl), max(snapshot_time), count(positions -> 0) FROM {_TABLE}"
_POSITION = {
    "instrument_token": 5633,
    "quantity": "3",
    "average_price": "1834.5",
    "last_price": "1850.75",
    "pnl": "48.75",
}


async def _prepare(rows: int, target: Target) -> None:
    """A table with the very rows that everybody ends up with: one position each, worth what the equity says."""
    await snapshots.fill(target, portfolios=PORTFOLIOS, rows=rows)
    async with snapshots.connected(target) as connection:
        await connection.execute("DROP TABLE IF EXISTS bench_snapshots")
        await connection.execute(
            f"CREATE TABLE bench_snapshots AS SELECT {_LISTED} FROM {_TABLE} ORDER BY snapshot_time"
        )
        await connection.execute(
            "UPDATE bench_snapshots SET positions = $1::jsonb, equity = cash + 5552.25", json.dumps([_POSITION])
        )
        await connection.execute("VACUUM (FULL, ANALYZE, FREEZE) bench_snapshots")


@asynccontextmanager
async def _judged(rows: int, target: Target) -> AsyncGenerator[tuple[Any, tuple[Any, ...]]]:
    """A connection beside the entrant's own, and what the table shall hold in the end."""
    async with snapshots.connected(target) as connection:
        await _empty(connection)
        await connection.execute(_SERVER_SIDE)
        wanted = tuple(await connection.fetchrow(_DIGEST))
        expect(wanted[0], rows)
        yield connection, wanted


async def _empty(connection: Any) -> None:
    await connection.execute(f"TRUNCATE {_TABLE}")


async def _read(connection: Any) -> list[tuple[Any, ...]]:
    """The rows as Python values, in the order of `_COLUMNS`; positions as JSON text."""
    return [
        tuple(row) for row in await connection.fetch(f"SELECT {_LISTED} FROM bench_snapshots ORDER BY snapshot_time")
    ]


@asynccontextmanager
async def _limit(rows: int, target: Target) -> AsyncGenerator[SelfTimed]:
    async with _judged(rows, target) as (connection, wanted):

        async def sample(units: int) -> float:
            taken = 0.0
            for _ in range(units):
                await _empty(connection)
                start = time.perf_counter()
                await connection.execute(_SERVER_SIDE)
                taken += time.perf_counter() - start
                expect(tuple(await connection.fetchrow(_DIGEST)), wanted)
            return taken

        yield SelfTimed(sample)


@asynccontextmanager
async def _panda(rows: int, target: Target, *, as_frame: bool) -> AsyncGenerator[SelfTimed]:
    from core.trading import portfolios

    async with _judged(rows, target) as (connection, wanted), panda.opened_manager(target) as manager:
        async with manager.get_session(read_only=True) as session:
            frame = (await portfolios.snapshot_frame(session)).sort("snapshot_time", "portfolio_id")
        given: Any = frame if as_frame else _records(await _read(connection))

        async def sample(units: int) -> float:
            taken = 0.0
            for _ in range(units):
                await _empty(connection)
                start = time.perf_counter()
                async with manager.transaction() as session:
                    added = await portfolios.record_many(session, given)
                taken += time.perf_counter() - start
                expect(added, rows)
                expect(tuple(await connection.fetchrow(_DIGEST)), wanted)
            return taken

        yield SelfTimed(sample)


def _records(rows: list[tuple[Any, ...]]) -> list[Any]:
    from core.database.records import PortfolioSnapshotCreate, Position

    amounts = {name: Decimal(value) for name, value in _POSITION.items() if isinstance(value, str)}
    position = Position(instrument_token=5633, **amounts)
    made: list[Any] = []
    for row in rows:
        values: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True)) | {"positions": [position]}
        made.append(PortfolioSnapshotCreate(**values))
    return made


@asynccontextmanager
async def _asyncpg(rows: int, target: Target) -> AsyncGenerator[SelfTimed]:
    async with _judged(rows, target) as (judge, wanted), snapshots.connected(target) as connection:
        given = await _read(judge)

        async def sample(units: int) -> float:
            taken = 0.0
            for _ in range(units):
                await _empty(judge)
                start = time.perf_counter()
                async with connection.transaction():
                    await connection.execute(_STAGE)
                    await connection.copy_records_to_table("staged", records=given, columns=list(_COLUMNS))
                    await connection.execute(f"INSERT INTO {_TABLE} ({_LISTED}) SELECT {_LISTED} FROM staged")
                taken += time.perf_counter() - start
                expect(tuple(await judge.fetchrow(_DIGEST)), wanted)
            return taken

        yield SelfTimed(sample)


@asynccontextmanager
async def _sqlalchemy(rows: int, target: Target) -> AsyncGenerator[SelfTimed]:
    from sqlalchemy import Column, DateTime, MetaData, Numeric, String, Table, insert
    from sqlalchemy.dialects.postgresql import JSONB

    kinds: dict[str, Any] = {"snapshot_time": DateTime(timezone=True), "positions": JSONB()}
    table = Table(
        _TABLE,
        MetaData(),
        *(
            Column(name, kinds.get(name, String() if number < 3 else Numeric(28, 10)), primary_key=number < 2)
            for number, name in enumerate(_COLUMNS)
        ),
    )
    async with _judged(rows, target) as (judge, _), peers.sqlalchemy_engine(target) as engine:
        read = (await _read(judge))[::_PART]
        given = [dict(zip(_COLUMNS, row, strict=True)) | {"positions": [_POSITION]} for row in read]

        async def sample(units: int) -> float:
            taken = 0.0
            for _ in range(units):
                await _empty(judge)
                start = time.perf_counter()
                async with engine.begin() as connection:
                    await connection.execute(insert(table), given)
                taken += time.perf_counter() - start
                expect(await judge.fetchval(f"SELECT count(*) FROM {_TABLE}"), len(given))
            return taken * _PART

        yield SelfTimed(sample)


def _work(rows: int) -> Work:
    rows = rows // PORTFOLIOS * PORTFOLIOS
    return Work(
        name="bulk-snapshots",
        title=f"{rows:,} snapshots into monthly partitions",
        entrants=(
            Entrant(LIMIT, partial(_limit, rows)),
            Entrant(FRAME, partial(_panda, rows, as_frame=True)),
            Entrant(RECORDS, partial(_panda, rows, as_frame=False)),
            Entrant("asyncpg COPY + INSERT ... SELECT", partial(_asyncpg, rows)),
            Entrant("SQLAlchemy, a tenth x 10", partial(_sqlalchemy, rows)),
        ),
        limit=LIMIT,
        goals=(Goal(FRAME, LIMIT, at_most=4.5), Goal(FRAME, "asyncpg COPY + INSERT ... SELECT")),
        prepare=partial(_prepare, rows),
        sized=_work,
        units=1,
        runs=7,
    )


WORK = _work(ROWS)
