"""kill -9 of the client and of the server under a running SnapshotWriter: what was acknowledged is there, once.

PANDA_SOAK_ROUNDS says how often each is killed; `make soak` sets 30.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select

from core.config.options import Timeouts
from core.database.connection import DatabaseManager
from core.database.embedded import EmbeddedServer
from core.database.models import PortfolioSnapshot
from core.trading import portfolios
from core.trading.portfolios import SnapshotWriter
from tests.snapshot_client import Ledger, numbered, write_on

ROUNDS = int(os.environ.get("PANDA_SOAK_ROUNDS", "3"))
_SHARE = 1_000_000  # numbers that one round may use
_SWEPT = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}
"""A killed process loses what it had not handed to the system: here an acknowledgement that did not wait would be found out."""


async def create(manager: DatabaseManager) -> None:
    async with manager.transaction() as session:
        await portfolios.create(session, portfolio_id="p1", broker="paper", currency="INR", name="Paper")


def noted(path: Path) -> set[int]:
    """A last line without its end was being written when the client died."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return {int(line) for line in lines}


async def judge(manager: DatabaseManager, acknowledged: set[int]) -> int:
    """Every acknowledged row is there, none twice, and whatever else is there is whole; how many there are."""
    async with manager.get_session() as session:
        rows = list(await session.scalars(select(PortfolioSnapshot)))
    numbers = [int(row.cash) for row in rows]
    assert len(set(numbers)) == len(numbers)
    assert acknowledged <= set(numbers), f"{len(acknowledged - set(numbers))} acknowledged rows are lost"
    for number, row in zip(numbers, rows, strict=True):
        wanted = numbered(number)
        assert all(getattr(row, name) == getattr(wanted, name) for name in type(wanted).model_fields)
    return len(numbers)


async def until_it_grows(path: Path, process: "subprocess.Popen[bytes]") -> None:
    size = path.stat().st_size if path.exists() else 0
    async with asyncio.timeout(60):
        while not path.exists() or path.stat().st_size <= size:
            assert process.poll() is None, "the client ended by itself"
            await asyncio.sleep(0.02)


async def test_kill_9_of_the_client_loses_and_doubles_nothing(
    database_url: str, manager: DatabaseManager, tmp_path: Path
):
    await create(manager)
    ledger = tmp_path / "ledger"
    for turn in range(ROUNDS):
        command = [sys.executable, "-m", "tests.snapshot_client", database_url, str(ledger), str(turn * _SHARE)]
        process = subprocess.Popen(command, cwd=Path(__file__).parent.parent)
        try:
            await until_it_grows(ledger, process)
            await asyncio.sleep(random.uniform(0, 0.3))
        finally:
            process.kill()
            process.wait()
        print(f"client killed {turn + 1}/{ROUNDS}: {len(noted(ledger)):,} acknowledged", flush=True)
    acknowledged = noted(ledger)
    assert len(acknowledged) >= ROUNDS
    there = await judge(manager, acknowledged)
    print(f"{ROUNDS} kills of the client: {len(acknowledged):,} acknowledged, {there:,} there")


async def survive(manager: DatabaseManager, server: EmbeddedServer, ledger: Path) -> tuple[int, int]:
    """Kill the server again and again under the writer; how many rows were asked to be tried again, and refused.

    A kill between two batches makes nothing be tried again: there are more of them until one has come in the middle.
    """
    stop = asyncio.Event()
    async with SnapshotWriter(manager, deadline=60) as writer:
        working = asyncio.create_task(write_on(writer, Ledger(str(ledger)), 0, stop))
        for turn in range(10 * ROUNDS):
            added = writer.statistics.added
            async with asyncio.timeout(60):
                while writer.statistics.added < added + 200:
                    assert not working.done(), working.exception()
                    await asyncio.sleep(0.01)
            if turn >= ROUNDS and writer.statistics.retries:
                break
            await asyncio.sleep(random.uniform(0, 0.1))
            pid = server.status().pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            print(f"server killed {turn + 1}/{ROUNDS}: {writer.statistics.added:,} added", flush=True)
        stop.set()
        await working
        return writer.statistics.retries, writer.statistics.refused


@pytest.mark.builtin_server(reason="the server is killed")
async def test_kill_9_of_the_server_loses_and_doubles_nothing(open_folder: Path, tmp_path: Path):
    server = EmbeddedServer(open_folder / "ledger", settings=_SWEPT)
    ledger = tmp_path / "ledger"
    try:
        await asyncio.to_thread(server.ensure)
        url = f"embedded://{server.directory}"
        async with DatabaseManager(url, "testing", "auto", timeouts=Timeouts(connect=10)) as manager:
            await create(manager)
            retries, refused = await survive(manager, server, ledger)
            acknowledged = noted(ledger)
            there = await judge(manager, acknowledged)
        assert retries >= 1
        assert refused == 0
        assert there == len(acknowledged)  # the client lives, so that it knows of every row
        print(f"{ROUNDS} kills of the server: {len(acknowledged):,} acknowledged, {there:,} there, {retries} retries")
    finally:
        await asyncio.to_thread(server.stop)
