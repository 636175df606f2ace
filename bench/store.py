"""`python -m bench.store`: what thinning out and removing old months takes, and what it costs those who record meanwhile.

Rows are made by the server: a year of months before the present one, several portfolios, a snapshot each few seconds whose
equity wanders. While each step runs, one writer records into the current month, one row and one commit at a time, and the
longest that it had to wait is told. BENCH_DATABASE_URL is that of `python -m bench`; 10 million rows take some 4 GB.
"""

import argparse
import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from bench import panda
from bench.__main__ import positive
from bench.machine import describe, headline
from bench.samples import quantile
from bench.server import Target, opened_target
from bench.snapshots import connected

if TYPE_CHECKING:
    from core.database.connection import DatabaseManager

__all__ = ["main"]

_MONTHS = 12
_KEY = """
    SELECT conname AS name, pg_get_constraintdef(oid) AS definition FROM pg_constraint
    WHERE conrelid = 'portfolio_snapshots'::regclass AND contype = 'f'
"""
_ROWS = """
    INSERT INTO portfolio_snapshots
           (portfolio_id, snapshot_time, broker, cash, realized_pnl, unrealized_pnl, total_pnl, equity)
    SELECT 'p' || portfolio, $1::timestamptz + tick * ($2::timestamptz - $1::timestamptz) / $3::bigint, 'bench', 1000, tick,
           0.25, tick + 0.25, round((100000 + portfolio + 3000 * sin(tick / 900.0) + 50 * random())::numeric, 4)
    FROM generate_series(0, $3::bigint - 1) AS tick, generate_series(1, $4::integer) AS portfolio
"""
_ONE = """
    INSERT INTO portfolio_snapshots
           (portfolio_id, snapshot_time, broker, cash, realized_pnl, unrealized_pnl, total_pnl, equity)
    VALUES ('p1', clock_timestamp(), 'bench', 0, 0, 0, 0, 0)
"""


@dataclass
class Writer:
    """Seconds that each row of the current month took."""

    seconds: list[float] = field(default_factory=list[float])

    def told(self) -> str:
        taken, self.seconds = self.seconds, []
        if not taken:
            return "no row was recorded meanwhile"
        return f"{len(taken):,} rows, p50 {quantile(taken, 0.5) * 1e3:.1f} ms, longest {max(taken) * 1e3:.0f} ms"


async def fill(target: Target, first: date, now: date, *, rows: int, portfolios: int) -> None:
    """So many rows evenly over the months from `first` until `now`, the first of the current month."""
    from core.trading.portfolios import ensure_partitions

    await panda.migrate(target)
    async with panda.opened_manager(target) as manager:
        await ensure_partitions(manager, first, now)
    async with connected(target) as connection:
        await connection.execute(
            "INSERT INTO portfolios (portfolio_id, broker, currency, name)"
            " SELECT 'p' || n, 'bench', 'INR', 'Bench' FROM generate_series(1, $1::integer) AS n",
            portfolios,
        )
        key = await connection.fetchrow(_KEY)
        await connection.execute(f"ALTER TABLE portfolio_snapshots DROP CONSTRAINT {key['name']}")
        month = first
        while month < now:
            following = (month + timedelta(31)).replace(day=1)
            ends = (datetime.combine(day, datetime.min.time(), UTC) for day in (month, following))
            await connection.execute(_ROWS, *ends, max(rows // portfolios // _MONTHS, 1), portfolios)
            month = following
        await connection.execute(f"ALTER TABLE portfolio_snapshots ADD CONSTRAINT {key['name']} {key['definition']}")
        await connection.execute("VACUUM (ANALYZE) portfolio_snapshots")


@asynccontextmanager
async def writing(target: Target) -> AsyncGenerator[Writer]:
    """One who records all the while."""
    writer, stop = Writer(), asyncio.Event()

    async def record() -> None:
        async with connected(target) as connection:
            while not stop.is_set():
                begun = time.perf_counter()
                await connection.execute(_ONE)
                writer.seconds.append(time.perf_counter() - begun)
                await asyncio.sleep(0.005)

    task = asyncio.create_task(record())
    try:
        yield writer
    finally:
        stop.set()
        await task


async def _steps(manager: "DatabaseManager", writer: Writer, *, now: date, every: timedelta, compact: bool) -> None:
    from core.trading.portfolios import downsample, prune

    thin: dict[str, Any] = {"before": now, "every": every}
    found = await downsample(manager, **thin, dry_run=True)
    print(f"downsample, dry run   {found.seconds:8.2f} s  {found.kept:,} of {found.rows:,} would stay; {writer.told()}")
    found = await downsample(manager, **thin, compact=compact)
    room = f"{found.bytes_before / 1e6:,.0f} -> {found.bytes_after / 1e6:,.0f} MB"
    rate = (found.rows - found.kept) / max(found.seconds, 1e-9)
    print(f"downsample            {found.seconds:8.2f} s  {found.kept:,} of {found.rows:,} stay, {room},")
    print(f"{'':22}{'':12}{rate:,.0f} rows a second deleted; {writer.told()}")
    again = await downsample(manager, **thin)
    print(f"downsample, once more {again.seconds:8.2f} s  {again.rows - again.kept:,} deleted; {writer.told()}")
    half = (now - timedelta(_MONTHS // 2 * 30)).replace(day=1)
    for before in (half, now):
        gone = await prune(manager, before=before)
        print(f"prune                 {gone.seconds:8.2f} s  {len(gone.partitions)} months removed; {writer.told()}")


async def _run(*, rows: int, portfolios: int, every: timedelta, compact: bool, thin: bool) -> None:
    now = datetime.now(UTC).date().replace(day=1)
    first = now
    for _ in range(_MONTHS):
        first = (first - timedelta(1)).replace(day=1)
    async with opened_target() as target:
        print(headline(await describe(target)), flush=True)
        begun = time.perf_counter()
        await fill(target, first, now, rows=rows, portfolios=portfolios)
        print(
            f"\n{rows:,} rows of {portfolios} portfolios in {_MONTHS} months ({time.perf_counter() - begun:.0f} s to make)\n"
        )
        async with panda.opened_manager(target) as manager, writing(target) as writer:
            if thin:
                await _steps(manager, writer, now=now, every=every, compact=compact)
                return
            from core.trading.portfolios import prune

            gone = await prune(manager, before=now)
            print(f"prune, whole months   {gone.seconds:8.2f} s  {gone.bytes / 1e6:,.0f} MB removed; {writer.told()}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.store", description=__doc__)
    parser.add_argument("--rows", type=positive, default=10_000_000)
    parser.add_argument("--portfolios", type=positive, default=20)
    parser.add_argument("--minutes", type=positive, default=30, help="the grid")
    parser.add_argument("--compact", action="store_true", help="rewrite what has become sparse")
    parser.add_argument("--prune-only", action="store_true", help="remove the months as they are")
    given = parser.parse_args()
    every = timedelta(minutes=given.minutes)
    asyncio.run(
        _run(
            rows=given.rows,
            portfolios=given.portfolios,
            every=every,
            compact=given.compact,
            thin=not given.prune_only,
        )
    )


if __name__ == "__main__":
    main()
