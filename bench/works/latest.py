"""The newest snapshot of each of 1,000 portfolios, out of a million over 24 months.

The limit reads the answer itself from a table that holds nothing else. ROWS= asks for as many snapshots: the cost shall not
follow them. Plain SQLAlchemy asks portfolio by portfolio, as an application does that loads each one's newest snapshot; the
others send one statement.
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

ROWS = 1_000_000
PORTFOLIOS = 1_000
LIMIT = "asyncpg, answer table"
PANDA = "Alpha Panda, latest"

_COLUMNS = "portfolio_id, snapshot_time, broker, cash, realized_pnl, unrealized_pnl, total_pnl, equity"
_DISTINCT = (
    f"SELECT DISTINCT ON (portfolio_id) {_COLUMNS} FROM portfolio_snapshots ORDER BY portfolio_id, snapshot_time DESC"
)


async def _prepare(rows: int, target: Target) -> None:
    await snapshots.fill(target, portfolios=PORTFOLIOS, rows=rows)
    async with snapshots.connected(target) as connection:
        await connection.execute("DROP TABLE IF EXISTS bench_latest")
        await connection.execute(
            f"CREATE TABLE bench_latest AS SELECT l.*, p.currency FROM ({_DISTINCT}) l JOIN portfolios p USING (portfolio_id)"
        )
        await connection.execute("VACUUM (ANALYZE, FREEZE) bench_latest")


def _check(found: Sequence[Any], rows: int) -> None:
    """As many as there are portfolios, each at its last tick."""
    last = rows // PORTFOLIOS - 1
    expect(len(found), PORTFOLIOS)
    expect((found[0].equity, found[-1].equity), (last + Decimal("100000.25"),) * 2)


@asynccontextmanager
async def _limit(rows: int, target: Target) -> AsyncGenerator[Unit]:
    from core.trading.portfolios import LatestSnapshot

    async with peers.asyncpg_pool(target, reset=False) as pool:

        async def unit() -> None:
            async with pool.acquire() as connection:
                found = await connection.fetch("SELECT * FROM bench_latest ORDER BY portfolio_id")
            _check([LatestSnapshot(*row) for row in found], rows)

        yield unit


@asynccontextmanager
async def _panda(rows: int, target: Target) -> AsyncGenerator[Unit]:
    from core.trading import portfolios

    async with panda.opened_manager(target) as manager:

        async def unit() -> None:
            async with manager.get_session(read_only=True) as session:
                found = await portfolios.latest(session)
            _check(found, rows)

        yield unit


@asynccontextmanager
async def _one_by_one(rows: int, target: Target) -> AsyncGenerator[Unit]:
    from sqlalchemy import select
    from sqlalchemy.ext.asyncio import async_sessionmaker

    from core.database.models import Portfolio, PortfolioSnapshot

    async with peers.sqlalchemy_engine(target) as engine:
        maker = async_sessionmaker(engine, expire_on_commit=False)

        async def unit() -> None:
            found: list[PortfolioSnapshot] = []
            async with maker() as session:
                for portfolio in list(await session.scalars(select(Portfolio).order_by(Portfolio.portfolio_id))):
                    newest = (
                        select(PortfolioSnapshot)
                        .where(PortfolioSnapshot.portfolio_id == portfolio.portfolio_id)
                        .order_by(PortfolioSnapshot.snapshot_time.desc())
                        .limit(1)
                    )
                    found.extend(await session.scalars(newest))
            _check(found, rows)

        yield unit


def _sized(rows: int) -> Work:
    """The work on that many snapshots, rounded down to whole ticks."""
    entrants = {LIMIT: _limit, PANDA: _panda, "SQLAlchemy, one by one": _one_by_one}
    return Work(
        name="latest",
        title=f"the newest snapshot of each of {PORTFOLIOS:,} portfolios, of {rows:,}",
        entrants=tuple(Entrant(name, partial(opened, rows)) for name, opened in entrants.items()),
        limit=LIMIT,
        goals=(Goal(PANDA, LIMIT, at_most=2.5),),
        prepare=partial(_prepare, rows),
        units=4,
        runs=15,
    )


WORK = replace(_sized(ROWS), sized=_sized)
