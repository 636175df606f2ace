"""`panda portfolio partitions`, `prune` and `downsample`: what they print, return, and leave."""

import asyncio
import os
import sys
from datetime import UTC, date, datetime, timedelta

import asyncpg
import pytest
from sqlalchemy import text

from core.database.connection import DatabaseManager
from core.trading import portfolios
from tests.test_cli import answer, panda

pytestmark = pytest.mark.usefixtures("clean")


@pytest.fixture
def history(database_url_sync: str) -> str:
    """A hundred snapshots, a minute apart, in January 2020 and in March."""

    async def fill() -> None:
        async with DatabaseManager(database_url_sync, "testing") as manager, manager.transaction() as session:
            await portfolios.create(session, portfolio_id="p1", broker="paper", currency="INR", name="Paper")
            for month in (1, 3):
                await portfolios.ensure_partitions(session, date(2020, month, 1), date(2020, month, 1))
                await session.execute(
                    text(
                        "INSERT INTO portfolio_snapshots SELECT 'p1', CAST(:start AS timestamptz) + n * interval '1 min',"
                        " 'paper', '[]', 0, 0, 0, 0, n FROM generate_series(0, 99) n"
                    ),
                    {"start": datetime(2020, month, 1, tzinfo=UTC)},
                )
            await session.execute(text("ANALYZE portfolio_snapshots"))

    asyncio.run(fill())
    return database_url_sync


def ask(url: str, statement: str) -> int:
    async def work() -> int:
        connection = await asyncpg.connect(url)
        try:
            return int(await connection.fetchval(statement))
        finally:
            await connection.close()

    return asyncio.run(work())


def portfolio(url: str, *arguments: str, **environment: str):
    return panda("portfolio", *arguments, url=url, **environment)


def test_partitions_are_listed_within_80_columns(history: str) -> None:
    result = portfolio(history, "partitions")
    assert result.returncode == 0, result.stderr
    head, january, march = result.stdout.splitlines()
    assert head.split() == ["month", "about", "rows", "size", "state", "table"]
    assert january.split()[:2] == ["2020-01", "100"] and january.endswith("attached  portfolio_snapshots_y2020m01")
    assert march.startswith("2020-03")
    assert max(map(len, result.stdout.splitlines())) <= 80
    found = answer(portfolio(history, "partitions", "--exact", "--json"))["partitions"]
    assert [(one["first_day"], one["end"], one["rows"], one["state"]) for one in found] == [
        ("2020-01-01", "2020-02-01", 100, "attached"),
        ("2020-03-01", "2020-04-01", 100, "attached"),
    ]


def test_months_are_made_on_request_and_told(history: str) -> None:
    dry = portfolio(history, "partitions", "--ensure", "2020-01..2020-03", "--dry-run")
    assert dry.stdout == "would make portfolio_snapshots_y2020m02\n"
    assert portfolio(history, "partitions", "--ensure", "2020-01..2020-03").stdout == (
        "made portfolio_snapshots_y2020m02\n"
    )
    again = portfolio(history, "partitions", "--ensure", "2020-02")
    assert (again.returncode, again.stdout) == (0, "nothing to make: these months are there\n")
    ahead = answer(portfolio(history, "partitions", "--ahead", "3", "--json"))
    assert len(ahead["made"]) == 4 and len(ahead["partitions"]) == 7


def test_prune_tells_what_it_would_do_and_does_it(history: str) -> None:
    dry = portfolio(history, "prune", "--before", "2020-02-01", "--dry-run")
    assert dry.stdout.startswith("1 month ended by 2020-02-01: would be removed, ")
    assert dry.stdout.splitlines()[2].split()[:2] == ["2020-01", "100"]
    assert ask(history, "SELECT count(*) FROM portfolio_snapshots") == 200
    report = answer(portfolio(history, "prune", "--before", "2020-02-01", "--json"))
    assert (report["rows"], report["partitions"][0]["name"]) == (100, "portfolio_snapshots_y2020m01")
    assert ask(history, "SELECT count(*) FROM portfolio_snapshots") == 100
    assert portfolio(history, "prune", "--keep-months", "2").stdout.startswith("1 month ended by ")
    assert portfolio(history, "prune", "--keep-months", "2").stdout.startswith("0 months ended by ")


def test_downsample_tells_what_it_would_do_and_does_it(history: str) -> None:
    dry = portfolio(history, "downsample", "--before", "2020-04-01", "--every", "1h", "--dry-run")
    assert dry.stdout.startswith("2 months ended by 2020-04-01, every 1h: 8 of 200 snapshots would be kept\n")
    assert ask(history, "SELECT count(*) FROM portfolio_snapshots") == 200
    report = answer(portfolio(history, "downsample", "--before", "2020-02-01", "--every", "30m", "--compact", "--json"))
    assert (report["rows"], report["kept"], report["every"]) == (100, 8, 1_800)
    assert [one["name"] for one in report["partitions"]] == ["portfolio_snapshots_y2020m01"]
    assert ask(history, "SELECT count(*) FROM portfolio_snapshots") == 108


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("partitions", "--ensure", "2020-01..2020-02", "--ahead", "1"), 2, "either --ensure or --ahead"),
        (("partitions", "--ensure", "next month"), 2, "no period"),
        (("partitions", "--ensure", "2020-03..2020-01"), 6, "end must not be before start"),
        (("prune",), 2, "either --before or --keep-months"),
        (("prune", "--before", "yesterday"), 2, "'yesterday' is no date"),
        (("prune", "--before", "2999-01-01"), 6, "before must not be after"),
        (("downsample", "--before", "2020-02-01", "--every", "often"), 2, "'often' is no span of time"),
        (("downsample", "--before", "2020-02-01", "--every", "7m"), 6, "divide a day"),
        (("downsample", "--every", "1h"), 2, "--before"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(
    history: str, arguments: tuple[str, ...], code: int, words: str
) -> None:
    result = portfolio(history, *arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert words in result.stderr
    assert ask(history, "SELECT count(*) FROM portfolio_snapshots") == 200


def test_a_month_in_use_is_exit_code_5_and_the_next_run_finishes(history: str) -> None:
    async def work() -> None:
        reader = await asyncpg.connect(history)
        try:
            await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM portfolio_snapshots")
            result = await asyncio.to_thread(portfolio, history, "prune", "--before", "2020-02-01", "--wait", "0")
        finally:
            await reader.close()
        assert result.returncode == 5
        assert "portfolio_snapshots_y2020m01 is still in use" in result.stderr
        assert "Run the same again" in result.stderr
        assert "slow query" not in result.stderr

    asyncio.run(work())
    listed = portfolio(history, "partitions").stdout
    assert "detaching, pruning" in listed
    assert answer(portfolio(history, "prune", "--before", "2020-02-01", "--json"))["partitions"][0]["pruning"]
    assert "y2020m01" not in portfolio(history, "partitions").stdout


def test_a_prune_that_is_killed_is_finished_by_the_next(history: str) -> None:
    async def work() -> None:
        reader = await asyncpg.connect(history)
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM portfolio_snapshots")
        victim = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "core.cli.main", "portfolio", "prune", "--before", "2020-02-01"),
            env={**os.environ, "DATABASE__POSTGRES_URL": history},
        )
        pending = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"
        try:
            async with asyncio.timeout(60):
                while not await asyncio.to_thread(ask, history, pending):
                    await asyncio.sleep(0.05)
        finally:
            victim.kill()
            await victim.wait()
            await reader.close()

    asyncio.run(work())
    # The server may have ended by itself the one statement that was under way.
    assert ", pruning" in portfolio(history, "partitions").stdout
    assert portfolio(history, "prune", "--before", "2020-02-01").returncode == 0
    assert "y2020m01" not in portfolio(history, "partitions").stdout


def test_a_detached_archive_is_left_alone_and_told(history: str) -> None:
    async def detach() -> None:
        connection = await asyncpg.connect(history)
        await connection.execute("ALTER TABLE portfolio_snapshots DETACH PARTITION portfolio_snapshots_y2020m01")
        await connection.close()

    asyncio.run(detach())
    result = portfolio(history, "prune", "--before", str(datetime.now(UTC).date() - timedelta(31)))
    assert result.returncode == 0
    assert "portfolio_snapshots_y2020m01 was detached by somebody else" in result.stderr
    assert ask(history, "SELECT count(*) FROM portfolio_snapshots_y2020m01") == 100
