"""Snapshots by the million, made by the server itself: two years of months, every portfolio at every time."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from typing import Any

from bench import panda
from bench.measure import expect
from bench.server import Target

__all__ = ["END", "START", "connected", "fill"]

START = datetime(2024, 1, 1, tzinfo=UTC)
END = datetime(2026, 1, 1, tzinfo=UTC)
_LAST_MONTH = date(2025, 12, 1)
_BATCH = 1_000_000

# Checked row by row it would take longer than all the rest; added to a full table it is checked at once.
_FOREIGN_KEY = """
    SELECT conname AS name, pg_get_constraintdef(oid) AS definition FROM pg_constraint
    WHERE conrelid = 'portfolio_snapshots'::regclass AND contype = 'f'
"""

# In order of time, as they are recorded.
_ROWS = """
    INSERT INTO portfolio_snapshots
           (portfolio_id, snapshot_time, broker, cash, realized_pnl, unrealized_pnl, total_pnl, equity)
    SELECT 'p' || lpad(CAST(portfolio AS text), 6, '0'), $1::timestamptz + tick * $2::interval, 'bench', 1000, tick, 0.25,
           tick + 0.25, 100000 + tick + 0.25
    FROM generate_series($3::bigint, $4::bigint) AS tick, generate_series(1, $5::integer) AS portfolio
"""


@asynccontextmanager
async def connected(target: Target) -> AsyncGenerator[Any]:
    """A connection of the bare driver."""
    import asyncpg

    connection = await asyncpg.connect(**target.keywords)
    try:
        yield connection
    finally:
        await connection.close()


async def fill(target: Target, *, portfolios: int, rows: int) -> None:
    """Make `rows` snapshots of `portfolios` portfolios, evenly from START to END, in place of all there were.

    Tick n of a portfolio stands at START + n * (END - START) / (rows / portfolios) and has the equity 100000.25 + n.
    """
    from core.trading.portfolios import ensure_partitions

    await panda.migrate(target)
    async with panda.opened_manager(target) as manager:
        await ensure_partitions(manager, START.date(), _LAST_MONTH)
    ticks, batch = rows // portfolios, max(_BATCH // portfolios, 1)
    async with connected(target) as connection:
        await connection.execute("TRUNCATE portfolio_snapshots, portfolios")
        await connection.execute(
            "INSERT INTO portfolios (portfolio_id, broker, currency, name)"
            " SELECT 'p' || lpad(CAST(n AS text), 6, '0'), 'bench', 'INR', 'Bench' FROM generate_series(1, $1::integer) AS n",
            portfolios,
        )
        key = await connection.fetchrow(_FOREIGN_KEY)
        await connection.execute(f"ALTER TABLE portfolio_snapshots DROP CONSTRAINT {key['name']}")
        for first in range(0, ticks, batch):
            last = min(first + batch, ticks) - 1
            await connection.execute(_ROWS, START, (END - START) / ticks, first, last, portfolios)
        await connection.execute(f"ALTER TABLE portfolio_snapshots ADD CONSTRAINT {key['name']} {key['definition']}")
        await connection.execute("VACUUM (ANALYZE, FREEZE) portfolio_snapshots")
        await connection.execute("VACUUM (ANALYZE, FREEZE) portfolios")
        expect(await connection.fetchval("SELECT count(*) FROM portfolio_snapshots"), ticks * portfolios)
