"""`panda demo`: the main job, from nothing to an equity curve, on a database of its own."""

import asyncio
import shlex
import shutil
import time
from datetime import date
from pathlib import Path
from urllib.parse import quote

from core.config.options import Environment, MonitoringOptions, Timeouts
from core.database.connection import DatabaseManager
from core.database.embedded import EmbeddedServer, default_directory
from core.database.errors import ConfigurationError
from core.demo.fill import fill
from core.demo.gather import gather
from core.demo.report import Command, DemoReport, DemoReporter, SilentReporter
from core.demo.steps import Steps
from core.demo.trading_days import AS_OF

__all__ = ["demo_directory", "run_demo"]

_MARK = "panda-demo"


def demo_directory() -> Path:
    """Where the demo keeps its server unless told otherwise: beside the folder of `embedded:`."""
    return default_directory().parent / "demo"


async def run_demo(
    *,
    directory: Path | None = None,
    instruments: Path | None = None,
    fresh: bool = False,
    environment: Environment = "development",
    as_of: date | None = None,
    reporter: DemoReporter | None = None,
) -> DemoReport:
    """Start the demo's own embedded server, fill it, and gather what there is to show.

    A second run finds what the first one stored and adds what is missing; `fresh` removes the demo's folder first. After
    success the server goes on running; cancellation stops it, and each step is one transaction. Raises
    `ConfigurationError` in production and for a folder that is not a demo's, and what the steps raise.
    """
    if environment == "production":
        raise ConfigurationError("the demo does not run in production", hint="Set ENVIRONMENT to development.")
    started = time.perf_counter()
    steps = Steps(reporter or SilentReporter())
    server = EmbeddedServer(directory or demo_directory())
    await asyncio.to_thread(_claim, server, fresh=fresh)
    first_run = not (server.directory / "data").exists()
    try:
        with steps.step("Start PostgreSQL") as step:
            dsn = await asyncio.to_thread(server.ensure)
            step.note = server.directory.as_posix()
        async with _manager(dsn) as manager:
            curve_portfolio = await fill(manager, steps, instruments=instruments, as_of=as_of or AS_OF)
            facts = await gather(manager, steps, curve_portfolio=curve_portfolio)
        await asyncio.to_thread(server.keep)
    except asyncio.CancelledError:
        await asyncio.to_thread(server.stop)
        raise
    finally:
        await asyncio.to_thread(server.release)
    url = f"embedded://{quote(server.directory.as_posix())}"
    return DemoReport(
        url=url,
        dsn=dsn,
        directory=server.directory,
        first_run=first_run,
        as_of=as_of or AS_OF,
        steps=tuple(steps.timings),
        seconds=time.perf_counter() - started,
        next=_commands(url, dsn),
        **facts,
    )


def _manager(dsn: str) -> DatabaseManager:
    """Patient with slow machines and silent about them: the report has the seconds."""
    return DatabaseManager(
        dsn,
        "development",
        "migrations_only",
        verify_migrations=False,
        timeouts=Timeouts(statement=120, idle_in_transaction=120),
        monitoring=MonitoringOptions(slow_query=0, long_session=0),
    )


def _claim(server: EmbeddedServer, *, fresh: bool) -> None:
    """Mark the folder as the demo's before anything is in it; with `fresh`, remove what an earlier demo left."""
    folder = server.directory
    mark = folder.parent / f".{folder.name}.{_MARK}"
    occupied = folder.exists() and any(folder.iterdir())
    if occupied and not mark.exists():
        raise ConfigurationError(
            f"{folder} is not empty and no demo made it", hint="Name another folder with --directory, or none."
        )
    if fresh and occupied:
        server.stop()
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def _commands(url: str, dsn: str) -> tuple[Command, ...]:
    setting = f"DATABASE__POSTGRES_URL={shlex.quote(url)}"
    return (
        Command(purpose="look around in SQL", command=f"psql {shlex.quote(dsn)}"),
        Command(purpose="ask how it is", command=f"{setting} panda health"),
        Command(purpose="stop the server; the data stays", command=f"{setting} panda down"),
    )
