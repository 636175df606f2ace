"""How long a call of SnapshotWriter.write takes, by how many tasks write: `python -m bench.writer_latency`.

Rows a second, and the median and the 99th percentile of the calls, on the server that the bench uses.
"""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from bench import panda
from bench.samples import quantile
from bench.server import Target, opened_target
from bench.works import durable_row

TASKS = (1, 8, 64, 256)
_ROWS = 12_800
_ROWS_ALONE = 1_000


async def latencies(target: Target, tasks: int) -> tuple[float, list[float], int]:
    """The seconds of all calls together and of each, and how many commits they were."""
    from core.trading.portfolios import SnapshotWriter

    taken: list[float] = []

    async def write_on(writer: Any, given: Iterator[Any]) -> None:
        for snapshot in given:
            start = time.perf_counter()
            await writer.write(snapshot)
            taken.append(time.perf_counter() - start)

    records = durable_row.snapshots(_ROWS_ALONE if tasks == 1 else _ROWS)
    async with durable_row.table(target) as judge, panda.opened_manager(target) as manager:
        await judge.execute("TRUNCATE portfolio_snapshots")
        async with SnapshotWriter(manager) as writer:
            given = iter(records)
            start = time.perf_counter()
            await asyncio.gather(*(write_on(writer, given) for _ in range(tasks)))
            whole = time.perf_counter() - start
            return whole, taken, writer.statistics.batches


async def main() -> None:
    async with opened_target() as target:
        await durable_row.prepare(target)
        print("tasks    rows/s    p50 ms    p99 ms  rows a commit")
        for tasks in TASKS:
            whole, taken, batches = await latencies(target, tasks)
            middle, late = (quantile(taken, share) * 1_000 for share in (0.5, 0.99))
            rate = len(taken) / whole
            print(f"{tasks:5}  {rate:8,.0f}  {middle:8.2f}  {late:8.2f}  {len(taken) / batches:13.1f}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
