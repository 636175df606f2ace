"""A client that writes snapshots until it is killed, and notes each acknowledged one in a ledger that survives it.

`python -m tests.snapshot_client URL LEDGER FIRST` writes with 32 tasks; each line of the ledger is the number of a row, and is
on the disk before the next of that task is written.
"""

import asyncio
import os
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count

from core.database.connection import DatabaseManager
from core.database.records import PortfolioSnapshotCreate
from core.trading.portfolios import SnapshotWriter

START = datetime(2026, 11, 1, tzinfo=UTC)
TASKS = 32


def numbered(number: int) -> PortfolioSnapshotCreate:
    """The only snapshot of that number: all of it follows from it."""
    return PortfolioSnapshotCreate(
        portfolio_id="p1",
        broker="paper",
        snapshot_time=START + timedelta(milliseconds=number),
        cash=Decimal(number),
        realized_pnl=Decimal(number) / 8,
        unrealized_pnl=Decimal("-0.0000000001"),
        equity=Decimal(number),
    )


class Ledger:
    """Lines that are on the disk when `note` returns; one fsync serves all that are waiting."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._lock = asyncio.Lock()
        self._lines: list[bytes] = []

    async def note(self, number: int) -> None:
        mine = b"%d\n" % number
        self._lines.append(mine)
        async with self._lock:
            lines, self._lines = self._lines, []
            if lines:
                os.write(self._file, b"".join(lines))
                await asyncio.to_thread(os.fsync, self._file)


async def write_on(writer: SnapshotWriter, ledger: Ledger, first: int, stop: asyncio.Event) -> None:
    """Write and note rows from `first` on until told to stop; each task has numbers of its own."""

    async def task(place: int) -> None:
        for number in count(first + place, TASKS):
            if stop.is_set():
                return
            await writer.write(numbered(number))
            await ledger.note(number)

    async with asyncio.TaskGroup() as group:
        for place in range(TASKS):
            group.create_task(task(place))


async def main(url: str, path: str, first: int) -> None:
    async with DatabaseManager(url, "testing", "migrations_only") as manager, SnapshotWriter(manager) as writer:
        await write_on(writer, Ledger(path), first, asyncio.Event())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
