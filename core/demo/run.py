"""`panda demo`: the main job, from nothing to an equity curve, on a database of its own."""

import asyncio
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from core.config.options import Environment, MonitoringOptions, Timeouts
from core.database.connection import DatabaseManager
from core.database.embedded import EmbeddedServer, default_directory, psql_program
from core.database.errors import ConfigurationError
from core.demo.fill import fill
from core.demo.gather import gather
from core.demo.report import Command, DemoReport, DemoReporter, SilentReporter
from core.demo.steps import Steps
from core.demo.trading_days import AS_OF, is_trading_day
from core.demo.walk import FIRST_DAY

__all__ = ["demo_directory", "run_demo"]

T = TypeVar("T")

_MARK = "alpha-panda-demo"
_LOCK = "alpha-panda.lock"
"""The embedded server's own file, which other processes may be waiting for."""


def demo_directory() -> Path:
    """Where the demo keeps its server unless told otherwise: beside the folder of `embedded:`."""
    return default_directory().parent / "demo"


async def run_demo(
    *,
    directory: Path | None = None,
    instruments: Path | None = None,
    fresh: bool = False,
    environment: Environment = "development",
    as_of: date = AS_OF,
    reporter: DemoReporter | None = None,
) -> DemoReport:
    """Start the demo's own embedded server, fill it, and gather what there is to show.

    A second run finds what the first one stored and adds what is missing; `fresh` empties the demo's folder first. `as_of` is
    the demo's trading day. After success the server goes on running. Cancellation stops it, an error does if it was not
    running before; each step is one transaction. Raises `ConfigurationError` in production, for a folder that is not a
    demo's and for an `as_of` on which nobody trades, and what the steps raise.
    """
    if environment == "production":
        raise ConfigurationError("the demo does not run in production", hint="Set ENVIRONMENT to development.")
    if as_of < FIRST_DAY or not is_trading_day(as_of):
        raise ConfigurationError(f"as_of must be a trading day from {FIRST_DAY} on, not {as_of}")
    started = time.perf_counter()
    steps = Steps(reporter or SilentReporter())
    server = EmbeddedServer(directory or demo_directory())
    was_running = await _in_thread(lambda: _claim(server, fresh=fresh))
    first_run = not (server.directory / "data").exists()
    try:
        with steps.step("Start PostgreSQL") as step:
            dsn = await _in_thread(server.ensure)
            step.note = server.directory.as_posix()
        async with _manager(dsn) as manager:
            curve_portfolio = await fill(manager, steps, instruments=instruments, as_of=as_of)
            facts = await gather(manager, steps, curve_portfolio=curve_portfolio)
        await _in_thread(server.keep)
    except asyncio.CancelledError:
        await _in_thread(server.stop)
        raise
    except BaseException:  # nothing is swallowed; what was started for a run that failed must not stay behind
        if not was_running:
            await _in_thread(server.stop)
        raise
    finally:
        await _in_thread(server.release)
    url = f"embedded://{quote(server.directory.as_posix())}"
    return DemoReport(
        url=url,
        dsn=dsn,
        directory=server.directory,
        first_run=first_run,
        as_of=as_of,
        steps=tuple(steps.timings),
        seconds=time.perf_counter() - started,
        next=_commands(url, dsn),
        **facts,
    )


async def _in_thread(work: Callable[[], T]) -> T:
    """Await blocking work; a cancellation is raised when the work has ended, so that what undoes it comes after it."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # looked at, so that nobody warns of it
        raise


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


def _claim(server: EmbeddedServer, *, fresh: bool) -> bool:
    """Whether the demo's server runs already. A new or empty folder becomes the demo's; with `fresh`, one of a demo is emptied.

    The mark lies inside the folder, so that it goes when the folder goes.
    """
    folder = server.directory
    mark = folder / _MARK
    try:
        if not mark.exists():
            if folder.exists() and any(folder.iterdir()):
                raise ConfigurationError(
                    f"{folder} is not empty and no demo made it", hint="Name another folder with --directory, or none."
                )
            server.keep()  # the folder is the server's before it holds anything else
            mark.touch(mode=0o600)
        elif fresh:
            server.stop()
            _empty(folder, but={_MARK, _LOCK})
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be used for the demo: {error.strerror}", hint="Name another folder with --directory."
        ) from error
    return server.status().running


def _empty(folder: Path, *, but: set[str]) -> None:
    for entry in folder.iterdir():
        if entry.name in but:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _commands(url: str, dsn: str) -> tuple[Command, ...]:
    setting = f"DATABASE__POSTGRES_URL={shlex.quote(url)}"
    panda = shlex.quote(_program())
    return (
        Command(purpose="look around in SQL", command=f"{shlex.quote(psql_program())} {shlex.quote(dsn)}"),
        Command(purpose="ask how it is", command=f"{setting} {panda} health"),
        Command(purpose="stop the server; the data stays", command=f"{setting} {panda} down"),
    )


def _program() -> str:
    """What to type for `panda`: the command where it is on the path, else where this environment keeps it."""
    if shutil.which("panda"):
        return "panda"
    here = Path(sys.executable).parent / "panda"
    return os.path.relpath(here) if here.is_relative_to(Path.cwd()) else str(here)
