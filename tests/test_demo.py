"""`panda demo` as a function: from nothing, again, from anew, broken off - each on a server of its own."""

import asyncio
import io
import json
import secrets
import shutil
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy import func, select, text

from core.database.connection import DatabaseManager
from core.database.embedded import EmbeddedServer
from core.database.errors import ConfigurationError
from core.database.models import Instrument, PortfolioSnapshot, TradingSession
from core.demo.market import made_master
from core.demo.render import RichReporter, render
from core.demo.report import DemoReport, SilentReporter
from core.demo.run import run_demo
from core.demo.trading_days import AS_OF
from core.demo.walk import BOOKS, walk
from core.trading import accounts
from core.trading.instruments import InstrumentFileMissing

STEPS = 8
PER_DAY = 76 * len(BOOKS)
SMALL = b"\n".join(made_master().split(b"\n")[:301]) + b"\n"


@pytest.fixture(scope="module")
def folder(open_folder: Path) -> Iterator[Path]:
    """A new one each time: a worker that helps the others may come back to this module."""
    folder = open_folder / f"demo run {secrets.token_hex(4)}"
    yield folder
    EmbeddedServer(folder).stop()


@pytest.fixture(scope="module")
def first(folder: Path) -> DemoReport:
    return asyncio.run(run_demo(directory=folder))


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.csv"
    path.write_bytes(SMALL)
    return path


@pytest.fixture
def place(open_folder: Path) -> Iterator[Path]:
    """A folder for one demo, whose server is stopped at the end."""
    place = open_folder / "one demo"
    yield place
    EmbeddedServer(place).stop()
    if place.exists():
        shutil.rmtree(place)


async def physical(dsn: str) -> tuple[list[object], list[object], int]:
    """Which row versions are there, and how many sessions."""
    async with DatabaseManager(dsn, schema_management="migrations_only") as manager, manager.get_session() as session:
        rows = await session.execute(text("SELECT instrument_token, xmin::text FROM instruments ORDER BY 1"))
        snapshots = await session.execute(
            text("SELECT portfolio_id, snapshot_time, xmin::text, equity FROM portfolio_snapshots ORDER BY 1, 2")
        )
        sessions = await session.scalar(select(func.count()).select_from(TradingSession))
        return [tuple(row) for row in rows], [tuple(row) for row in snapshots], sessions or 0


def test_the_first_run_makes_everything_and_shows_it(first: DemoReport, folder: Path):
    assert first.first_run and first.as_of == AS_OF
    assert first.counts == {
        "instruments": 100_000,
        "users": 1,
        "trading_sessions": 2,
        "strategies": 2,
        "portfolios": 6,
        "portfolio_snapshots": 29_184,
    }
    assert first.health["status"] == "healthy"
    assert first.revision
    assert (first.directory, first.url) == (folder, f"embedded://{str(folder).replace(' ', '%20')}")
    assert first.instrument is not None
    assert (first.instrument.underlying, first.instrument.instrument_type) == ("NIFTY", "OPT")
    assert [line.portfolio_id for line in first.portfolios] == sorted(book.portfolio_id for book in BOOKS)
    assert len(first.steps) == STEPS
    assert sum(step.seconds for step in first.steps) <= first.seconds


def test_what_it_shows_is_what_the_walk_made(first: DemoReport):
    last = {moment.portfolio_id: moment for moment in walk(AS_OF)}
    for line in first.portfolios:
        moment = last[line.portfolio_id]
        assert (line.snapshot_time, line.cash, line.total_pnl, line.equity) == (
            moment.time,
            moment.cash,
            moment.total,
            moment.equity,
        )
    own = {moment.time: moment.equity for moment in walk(AS_OF) if moment.portfolio_id == first.curve_portfolio}
    assert 100 < len(first.curve) <= 400
    assert all(own[point.time] == point.equity for point in first.curve)
    assert first.curve[-1].equity == last[first.curve_portfolio].equity


def test_the_report_is_one_json_object_without_floats_for_money(first: DemoReport):
    report = json.loads(first.to_json())
    assert DemoReport.model_validate_json(first.to_json()).portfolios == first.portfolios
    assert Decimal(report["portfolios"][0]["equity"]) == first.portfolios[0].equity
    assert isinstance(report["portfolios"][0]["equity"], str)
    assert all(isinstance(point["equity"], str) for point in report["curve"])


def test_the_server_stays_up_for_the_commands_that_it_names(first: DemoReport, folder: Path):
    status = EmbeddedServer(folder).status()
    assert status.running and status.kept and status.url == first.dsn
    assert len(first.next) == 3
    assert f"'{first.url}'" not in first.next[0].command and first.dsn in first.next[0].command
    assert all(first.url in one.command for one in first.next[1:])


async def test_what_is_stored_is_valid_for_the_models_and_the_password_fits(first: DemoReport):
    async with DatabaseManager(first.dsn, schema_management="migrations_only") as manager:
        assert (await accounts.authenticate(manager, "trader", "panda-demo-password")).username == "trader"
        async with manager.get_session() as session:
            end = first.portfolios[0].snapshot_time
            rows = await session.scalars(select(PortfolioSnapshot).where(PortfolioSnapshot.snapshot_time == end))
            for row in rows:
                value = sum(position.quantity * position.last_price for position in row.positions.root)
                assert row.equity == row.cash + value
                assert row.unrealized_pnl == sum(position.pnl for position in row.positions.root)
                tokens = [position.instrument_token for position in row.positions.root]
                known = await session.scalar(select(func.count()).where(Instrument.instrument_token.in_(tokens)))
                assert known == len(tokens)


async def test_a_second_run_touches_nothing_and_one_of_a_later_day_adds_its_snapshots_only(
    first: DemoReport, folder: Path
):
    before = await physical(first.dsn)
    again = await run_demo(directory=folder)
    assert not again.first_run
    assert (again.counts, again.portfolios, again.curve) == (first.counts, first.portfolios, first.curve)
    assert await physical(first.dsn) == before
    notes = {step.step: step.note for step in again.steps}
    assert notes["Load 100,000 made instruments"] == "100,000 unchanged"
    assert notes["Record 90 days of snapshots"] == "all there"
    later = await run_demo(directory=folder, as_of=AS_OF + timedelta(days=4))
    _, after, _ = await physical(first.dsn)
    assert later.counts["portfolio_snapshots"] == 29_184 + 2 * PER_DAY == len(after)
    assert set(before[1]) < set(after)
    assert later.curve[-1].time.date() == AS_OF + timedelta(days=4)


def test_the_report_fits_a_terminal_of_80_columns(first: DemoReport):
    for encoding, width in (("utf-8", 80), ("utf-8", 200), ("ascii", 80)):
        raw = io.BytesIO()
        console = Console(file=io.TextIOWrapper(raw, encoding=encoding), width=width, color_system=None)
        render(first, console)
        console.file.flush()
        lines = raw.getvalue().decode(encoding).split("\n")
        commands = [f"  {one.command}" for one in first.next]
        assert [line for line in lines if line in commands] == commands
        assert all(len(line) <= 80 for line in lines if line not in commands)
        shown = "\n".join(lines)
        for piece in (
            "healthy",
            "100,000 instruments",
            "NFO:NIFTY26NOV",
            "paper-sandbox",
            "INR",
            "20 Nov 2026",
            "tick 0.05",
        ):
            assert piece in shown, piece
        assert ("┤" in shown) == (encoding == "utf-8")


def test_the_reporter_prints_a_line_for_each_step_that_ends():
    console = Console(file=io.StringIO(), width=80, color_system=None)
    reporter = RichReporter(console)
    reporter.started("Load [things]")
    reporter.advanced("Load [things]", done=1, total=2)
    reporter.finished("Load [things]", seconds=1.234, note="3 [added]")
    reporter.started("Fail")
    reporter.failed("Fail")
    (line,) = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert line.split() == ["Load", "[things]", "3", "[added]", "1.23", "s"]


async def test_a_fresh_run_begins_from_nothing(place: Path, small_file: Path):
    await run_demo(directory=place, instruments=small_file, as_of=date(2026, 8, 28))
    (place / "left behind").write_text("by somebody")
    fresh = await run_demo(directory=place, instruments=small_file, as_of=date(2026, 8, 25), fresh=True)
    assert fresh.first_run
    assert (fresh.counts["instruments"], fresh.counts["portfolio_snapshots"]) == (300, 2 * PER_DAY)
    assert not (place / "left behind").exists()


class Breaker(SilentReporter):
    """Cancels the run at a step, when it starts or when it has advanced to a part of it."""

    def __init__(self, step: str, done: int | None = None) -> None:
        self.task = asyncio.current_task()
        self._at = (step, done)
        self.failures: list[str] = []

    def started(self, step: str) -> None:
        self._cancel(step, None)

    def advanced(self, step: str, *, done: int, total: int) -> None:
        self._cancel(step, done)

    def failed(self, step: str) -> None:
        self.failures.append(step)

    def _cancel(self, step: str, done: int | None) -> None:
        if (step.split()[0], done) == self._at:
            assert self.task is not None
            self.task.get_loop().call_soon_threadsafe(self.task.cancel)


async def counted(place: Path) -> tuple[int, int]:
    server = EmbeddedServer(place)
    try:
        async with DatabaseManager(server.ensure(), "testing", "auto") as manager, manager.get_session() as session:
            counts = [
                await session.scalar(select(func.count()).select_from(of)) for of in (Instrument, PortfolioSnapshot)
            ]
            return counts[0] or 0, counts[1] or 0
    finally:
        server.release()


async def test_a_run_that_is_broken_off_stops_the_server_and_leaves_whole_steps_only(place: Path, small_file: Path):
    day = date(2026, 8, 25)
    for step, done, expected in (
        ("Start", None, (0, 0)),
        ("Load", 3, (0, 0)),
        ("Record", 0, (300, 0)),
        ("Read", None, (300, 2 * PER_DAY)),
    ):
        reporter = Breaker(step, done)
        with pytest.raises(asyncio.CancelledError):
            await run_demo(directory=place, instruments=small_file, as_of=day, reporter=reporter)
        assert reporter.failures[-1].startswith(step) or step == "Start"
        status = EmbeddedServer(place).status()
        assert not status.running and not status.kept
        assert await counted(place) == expected, step
    complete = await run_demo(directory=place, instruments=small_file, as_of=day)
    assert (complete.counts["instruments"], complete.counts["portfolio_snapshots"]) == (300, 2 * PER_DAY)


async def test_an_error_stops_a_server_that_was_not_running_before(place: Path, small_file: Path):
    day = date(2026, 8, 25)
    with pytest.raises(InstrumentFileMissing):
        await run_demo(directory=place, instruments=small_file.with_name("absent.csv"), as_of=day)
    assert not EmbeddedServer(place).status().running
    await run_demo(directory=place, instruments=small_file, as_of=day)
    with pytest.raises(InstrumentFileMissing):
        await run_demo(directory=place, instruments=small_file.with_name("absent.csv"), as_of=day)
    status = EmbeddedServer(place).status()
    assert status.running and status.kept


async def test_production_and_days_without_trading_are_refused(place: Path):
    with pytest.raises(ConfigurationError, match="production"):
        await run_demo(directory=place, environment="production")
    for day in (date(2026, 11, 22), date(2020, 1, 1)):
        with pytest.raises(ConfigurationError, match="trading day"):
            await run_demo(directory=place, as_of=day)
    assert not place.exists()


@pytest.mark.parametrize("fresh", [False, True])
async def test_a_folder_that_is_not_a_demos_is_left_alone(tmp_path: Path, place: Path, fresh: bool):
    (tmp_path / "notes").write_text("keep")
    server = EmbeddedServer(place)
    server.ensure()
    server.keep()
    server.release()
    for folder in (tmp_path, place):
        with pytest.raises(ConfigurationError, match="no demo made it"):
            await run_demo(directory=folder, fresh=fresh)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        await run_demo(directory=tmp_path / "notes", fresh=fresh)
    assert (tmp_path / "notes").read_text() == "keep"
    assert server.status().running
