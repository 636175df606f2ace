"""`panda health` and `panda wait`: is the database fit for use, and will it be soon?"""

import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.cli._command import command
from core.cli._failure import NOT_READY, Failure
from core.cli._output import Output

if TYPE_CHECKING:
    from core.config.settings import Settings

__all__ = ["register"]

_GRACE = 1.0  # seconds for a clean end before the process is ended

Limit = Annotated[float, typer.Option("--timeout", min=0.1, max=86_400, help="Seconds to wait at the most.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("health")(command(health))
    app.command("wait")(command(wait))


def health(out: Output) -> int:
    """Ask the database how it is.

    Exit code 0 if it is healthy or degraded, 4 if it is unhealthy. Changes nothing and starts nothing, the built-in server included.
    """
    from core.cli._database import run, settings_in_force

    report = run(_ask(settings_in_force()))
    out.data(report)
    out.table(_rows(report))
    if report["status"] == "degraded":
        out.warn(f"the database is degraded: {report['error']}")
    return NOT_READY if report["status"] == "unhealthy" else 0


def wait(out: Output, timeout: Limit = 30.0) -> None:
    """Wait until the database can be used.

    Exit code 4 if it cannot in time. Usable means that it answers and, where an application would refuse to start otherwise, that the schema is at head.
    Starts the built-in server if that is what the URL names, and changes nothing else.
    """
    from core.cli._database import run, settings_in_force, unchanging_manager

    settings = settings_in_force()
    manager = unchanging_manager(settings, verify=_must_be_at_head(settings))
    started = time.monotonic()

    async def ready() -> None:
        try:
            await manager.wait_for_ready(timeout)
        finally:
            await manager.close()

    with _ended_after(timeout, out), out.status(f"Waiting up to {timeout:g} s for the database"):
        run(ready())
    seconds = round(time.monotonic() - started, 3)
    out.data({"ready": True, "seconds": seconds})
    out.line(f"ready after {seconds:.1f} s")


def _must_be_at_head(settings: "Settings") -> bool:
    """Whether an application would refuse another schema: not where it creates or migrates by itself."""
    database = settings.database
    migrates = database.schema_management == "auto" and settings.environment in ("development", "testing")
    return database.verify_migrations and not migrates and database.schema_management != "create_all"


@contextmanager
def _ended_after(timeout: float, out: Output) -> Generator[None]:
    """End the process soon after that time, whatever it is doing in the block.

    A name look-up or a server's start runs in a thread, which nothing can cancel and which the loop waits for.
    """

    def end() -> None:
        failure = Failure("ConnectTimeout", f"the database was not ready within {timeout:g} s", None, NOT_READY)
        out.data(failure.to_json())
        if not out.as_json:
            out.error(failure.message)
        os._exit(NOT_READY)

    timer = threading.Timer(timeout + _GRACE, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


async def _ask(settings: "Settings") -> dict[str, Any]:
    from core.cli._database import unchanging_manager
    from core.database.embedded import EmbeddedServer, is_embedded_url
    from core.database.errors import ConfigurationError, PandaDatabaseError
    from core.database.health import unhealthy

    url = settings.database.postgres_url
    manager = unchanging_manager(settings)
    if is_embedded_url(url) and not EmbeddedServer.from_url(url).status().running:
        return unhealthy("the built-in server is not running; start it with `panda up`")
    try:
        await manager.connect()
    except ConfigurationError:
        raise
    except PandaDatabaseError as error:
        return unhealthy(str(error))
    try:
        return await manager.health_check()
    finally:
        await manager.close()


def _rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report as a person reads it: what is unknown is left out, a mapping is one line."""
    rows: list[tuple[str, str]] = []
    for name, value in report.items():
        if value is None or value in ([], {}):
            continue
        match name:
            case "latency_ms":
                rows.append(("latency", f"{value:.1f} ms"))
            case "replica_lag":
                rows.append(("replica lag", f"{value:.1f} s"))
            case "schema":
                current = ", ".join(value["current"]) or "none"
                rows.append(
                    ("schema", f"{value['status'].replace('_', ' ')} (revision {current}, head {value['head']})")
                )
            case "pool":
                rows += [(f"pool {which.replace('_', '-')}", _pool(figures)) for which, figures in value.items()]
            case "warnings":
                rows += [("warning", text) for text in value]
            case _:
                rows.append((name, str(value)))
    return rows


def _pool(figures: dict[str, int]) -> str:
    return f"{figures['in_use']} in use, {figures['open']} open, limit {figures['limit']}" if figures else "-"
