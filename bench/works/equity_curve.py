"""An equity curve of 500 points, out of the 100,000 snapshots of one portfolio over 24 months.

The limit is 500 bare probes of the index in one statement, which is told where each bucket begins and ends. "By exact key" is
told the very keys: no curve can be asked for so, and a server spares itself the rest of each index page. ROWS= asks for as many
snapshots: the cost shall not follow them. "SQLAlchemy, all rows" fetches the series and thins it out in Python; "date_bin" has
the server do so.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Any

from bench import panda, peers, snapshots
from bench.measure import Entrant, Goal, Unit, Work, expect
from bench.server import Target

__all__ = ["WORK"]

ROWS = 100_000
POINTS = 500
PORTFOLIO = "p000001"
LIMIT = "asyncpg, 500 probes"
PANDA = "Alpha Panda, equity_curve"
KEYS = "asyncpg, by exact key"

_PROBES = f"""
    SELECT s.snapshot_time, s.equity, s.total_pnl
    FROM unnest($1::timestamptz[], $2::timestamptz[]) AS bucket(begins, ends)
    CROSS JOIN LATERAL (
        SELECT snapshot_time, equity, total_pnl FROM portfolio_snapshots
        WHERE portfolio_id = '{PORTFOLIO}' AND snapshot_time >= bucket.begins AND snapshot_time < bucket.ends
        ORDER BY snapshot_time DESC
        LIMIT 1
    ) AS s
"""
_KEYS = f"""
    SELECT s.snapshot_time, s.equity, s.total_pnl
    FROM unnest($1::timestamptz[]) AS wanted(at)
    CROSS JOIN LATERAL (
        SELECT snapshot_time, equity, total_pnl FROM portfolio_snapshots
        WHERE portfolio_id = '{PORTFOLIO}' AND snapshot_time = wanted.at
        LIMIT 1
    ) AS s
"""
_BINNED = f"""
    SELECT DISTINCT ON (date_bin($1::interval, snapshot_time, $2::timestamptz)) snapshot_time, equity, total_pnl
    FROM portfolio_snapshots
    WHERE portfolio_id = '{PORTFOLIO}' AND snapshot_time >= $2 AND snapshot_time < $3
    ORDER BY date_bin($1::interval, snapshot_time, $2::timestamptz), snapshot_time DESC
"""


def _check(found: Sequence[Any], rows: int) -> None:
    """As many as asked for, the first bucket's last tick first and the last tick last."""
    expect(len(found), POINTS)
    expect([found[at].equity for at in (0, -1)], [rows // POINTS * n - 1 + Decimal("100000.25") for n in (1, POINTS)])


def _points(rows: Sequence[Any]) -> list[Any]:
    from core.trading.portfolios import EquityPoint

    return [EquityPoint(*row) for row in rows]


@asynccontextmanager
async def _limit(rows: int, target: Target) -> AsyncGenerator[Unit]:
    edges = [snapshots.START + (snapshots.END - snapshots.START) * n / POINTS for n in range(POINTS + 1)]
    async with peers.asyncpg_pool(target, reset=False) as pool:

        async def unit() -> None:
            async with pool.acquire() as connection:
                found = await connection.fetch(_PROBES, edges[:-1], edges[1:])
            _check(_points(found), rows)

        yield unit


@asynccontextmanager
async def _exact_keys(rows: int, target: Target) -> AsyncGenerator[Unit]:
    async with snapshots.connected(target) as connection:
        edges = [snapshots.START + (snapshots.END - snapshots.START) * n / POINTS for n in range(POINTS + 1)]
        keys = [row["snapshot_time"] for row in await connection.fetch(_PROBES, edges[:-1], edges[1:])]
    async with peers.asyncpg_pool(target, reset=False) as pool:

        async def unit() -> None:
            async with pool.acquire() as connection:
                found = await connection.fetch(_KEYS, keys)
            _check(_points(found), rows)

        yield unit


@asynccontextmanager
async def _panda(rows: int, target: Target) -> AsyncGenerator[Unit]:
    from core.trading import portfolios

    async with panda.opened_manager(target) as manager:

        async def unit() -> None:
            async with manager.get_session(read_only=True) as session:
                found = await portfolios.equity_curve(session, PORTFOLIO, snapshots.START, snapshots.END, points=POINTS)
            _check(found, rows)

        yield unit


@asynccontextmanager
async def _date_bin(rows: int, target: Target) -> AsyncGenerator[Unit]:
    span = (snapshots.END - snapshots.START) / POINTS
    async with peers.asyncpg_pool(target, reset=False) as pool:

        async def unit() -> None:
            async with pool.acquire() as connection:
                found = await connection.fetch(_BINNED, span, snapshots.START, snapshots.END)
            _check(_points(found), rows)

        yield unit


@asynccontextmanager
async def _all_rows(rows: int, target: Target) -> AsyncGenerator[Unit]:
    from sqlalchemy import select

    from core.database.models import PortfolioSnapshot

    table: Any = PortfolioSnapshot.__table__
    series = (
        select(table.c.snapshot_time, table.c.equity, table.c.total_pnl)
        .where(table.c.portfolio_id == PORTFOLIO)
        .order_by(table.c.snapshot_time)
    )
    span = (snapshots.END - snapshots.START) / POINTS
    async with peers.sqlalchemy_engine(target) as engine:

        async def unit() -> None:
            async with engine.connect() as connection:
                found = {(row.snapshot_time - snapshots.START) // span: row for row in await connection.execute(series)}
            _check([*found.values()], rows)

        yield unit


def _sized(rows: int) -> Work:
    """The work on that many snapshots, a multiple of the points; those that read every row take part up to a million."""
    rows = max(rows // POINTS, 1) * POINTS
    entrants = {LIMIT: _limit, PANDA: _panda, KEYS: _exact_keys}
    if rows <= 1_000_000:
        entrants |= {"asyncpg, date_bin": _date_bin, "SQLAlchemy, all rows": _all_rows}
    return Work(
        name="equity-curve",
        title=f"an equity curve of {POINTS} points, of {rows:,}",
        entrants=tuple(Entrant(name, partial(opened, rows)) for name, opened in entrants.items()),
        limit=LIMIT,
        goals=(Goal(PANDA, LIMIT, at_most=1.3), Goal(PANDA, KEYS)),
        prepare=partial(_prepare, rows),
        units=5,
        runs=15,
    )


async def _prepare(rows: int, target: Target) -> None:
    await snapshots.fill(target, portfolios=1, rows=rows)


WORK = replace(_sized(ROWS), sized=_sized)
