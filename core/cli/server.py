"""`panda up` and `panda down`: the built-in server."""

import shlex
from typing import TYPE_CHECKING

import typer

from core.cli._command import command
from core.cli._output import Output

if TYPE_CHECKING:
    from core.config.settings import Settings

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("up")(command(up))
    app.command("down")(command(down))


def up(out: Output) -> None:
    """Start the built-in PostgreSQL and keep it running.

    Brings its schema to head in development, and prints how to reach it. Running already is no error.
    """
    from core.cli._database import embedded_server, run, settings_in_force
    from core.database.embedded import psql_program

    settings = settings_in_force()
    server = embedded_server(settings, verb="start")
    was_running = server.status().running
    with out.status(f"Starting PostgreSQL in {server.directory}"):
        dsn = server.ensure(progress=out.note)
        server.keep()
    revision = run(_prepare(settings))
    server.release()
    url = settings.database.postgres_url
    out.data(
        {"url": url, "dsn": dsn, "directory": str(server.directory), "started": not was_running, "revision": revision}
    )
    out.line(f"PostgreSQL {'was running' if was_running else 'runs'} in {server.directory}")
    out.line()
    out.line(f"  settings  DATABASE__POSTGRES_URL={url}")
    out.line(f"  psql      {shlex.quote(psql_program())} {shlex.quote(dsn)}")
    out.line("  stop      panda down")


def down(out: Output) -> None:
    """Stop the built-in PostgreSQL. Not running is no error; its data stays."""
    from core.cli._database import embedded_server, settings_in_force

    server = embedded_server(settings_in_force(), verb="stop")
    users = server.status().users
    with out.status(f"Stopping PostgreSQL in {server.directory}"):
        stopped = server.stop()
    out.data({"stopped": stopped, "directory": str(server.directory), "users": users})
    if stopped and users:
        out.warn(f"it was in use by {users} other {'user' if users == 1 else 'users'}")
    out.line(f"PostgreSQL in {server.directory} {'is stopped' if stopped else 'was not running'}")


async def _prepare(settings: "Settings") -> str | None:
    """Connect as an application would, which migrates in development; the revision reached."""
    from core.database import schema
    from core.database.connection import DatabaseManager

    async with DatabaseManager.from_settings(settings) as manager:
        state = await schema.inspect(manager.engine)
    return state.current[0] if state.current else None
