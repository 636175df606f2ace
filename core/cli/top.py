"""`panda top`: what the server is doing, and ending what should not go on."""

import os
import shutil
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.cli._command import command
from core.cli._failure import FAILED, USAGE, CommandError
from core.cli._output import Output

if TYPE_CHECKING:
    from core.cli._top_screen import View
    from core.cli._top_watch import Watcher
    from core.database.activity import End, Target

__all__ = ["register"]

Interval = Annotated[float, typer.Option("--interval", "-i", min=0.2, max=3_600, help="Seconds between two looks.")]
Count = Annotated[int | None, typer.Option("--count", min=1, help="End after that many looks.")]
Once = Annotated[bool, typer.Option("--once", help="One look as plain text.")]
NoText = Annotated[bool, typer.Option("--no-text", help="Leave the statements' texts out.")]
Cancel = Annotated[int | None, typer.Option("--cancel", metavar="PID", min=1, help="Cancel its statement.")]
Terminate = Annotated[int | None, typer.Option("--terminate", metavar="PID", min=1, help="End its session.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("top")(command(top))


def top(
    out: Output,
    *,
    interval: Interval = 2.0,
    count: Count = None,
    once: Once = False,
    no_text: NoText = False,
    cancel: Cancel = None,
    terminate: Terminate = None,
    yes: Yes = False,
) -> int | None:
    """Watch the server: connections, statements, who blocks whom.

    `q` ends it. In a pipe, or with --once, it is plain text. Literals in statements are blanked.
    """
    from core.cli._database import run, settings_in_force
    from core.cli._top_watch import Watcher

    if (cancel is not None) + (terminate is not None) + (count is not None) + once > 1:
        raise CommandError("--count, --once, --cancel and --terminate exclude each other", code=USAGE)
    if out.as_json and count is not None:
        raise CommandError("--json is one object of one look", hint="Leave --count out.", code=USAGE)
    settings = settings_in_force()

    async def work() -> int:
        watcher = Watcher(settings, texts=not no_text)
        try:
            if cancel is not None:
                return await _end(watcher, out, cancel, "cancel", yes=yes)
            if terminate is not None:
                return await _end(watcher, out, terminate, "terminate", yes=yes)
            return await _show(watcher, out, interval=interval, count=1 if once else count, plain=once)
        finally:
            await watcher.close()

    return run(work())


async def _show(watcher: "Watcher", out: Output, *, interval: float, count: int | None, plain: bool) -> int:
    import asyncio

    from core.cli._top_watch import show_frames, show_live

    if out.as_json:
        await watcher.look()
        await asyncio.sleep(min(interval, 1.0))  # a rate takes two looks
        out.data(_report(await watcher.look()))
        return 0
    console = out.stdout
    if plain or not console.is_terminal or console.is_dumb_terminal:
        width = console.width if console.is_terminal else _pipe_width()
        return await show_frames(watcher, out, interval=interval, count=count or 1, width=width)
    return await show_live(watcher, out, interval=interval, count=count)


def _pipe_width() -> int:
    """Of what is drawn into a pipe or file: COLUMNS, else 80."""
    from core.cli._output import WIDTH

    return shutil.get_terminal_size((WIDTH, 24)).columns if os.environ.get("COLUMNS") else WIDTH


async def _end(watcher: "Watcher", out: Output, pid: int, how: "End", *, yes: bool) -> int:
    from core.database.activity import end_session, find_target

    async with watcher.connection() as connection:
        target = await find_target(connection, pid, how)
    if not yes and not _confirmed(out, target, how):
        out.note("nothing was done")
        return FAILED
    async with watcher.connection() as connection:
        done = await end_session(connection, target, how)
    out.data({"pid": pid, "action": how, "done": done})
    if not done:
        out.line(f"session {pid} was gone already, or has not ended yet; `panda top` shows whether it is there")
        return FAILED
    out.line(f"session {pid} is ended" if how == "terminate" else f"session {pid} was told to cancel its statement")
    return 0


def _confirmed(out: Output, target: "Target", how: "End") -> bool:
    from core.cli._top_screen import age

    if out.as_json or not sys.stdin.isatty():
        raise CommandError(f"--{how} asks first, and nobody is there to answer", hint="Say --yes.", code=USAGE)
    open_for = f", in a transaction for {age(target.transaction_seconds)}" if target.transaction_seconds else ""
    who = f"session {target.pid} of {target.user} ({target.application or 'no name'}, {target.state or '?'}{open_for})"
    who = "".join(char if char.isprintable() else "?" for char in who)
    what = "Cancel the statement of" if how == "cancel" else "End"
    return typer.confirm(f"{what} {who}?", err=True)


def _report(view: "View") -> dict[str, Any]:
    import dataclasses

    from core.cli._top_screen import hidden_note
    from core.database.activity import by_application, by_state, lock_tree, running

    activity = view.activity
    rates = view.rates
    return {
        "at": activity.at,
        "database_url": view.place,
        "server": dataclasses.asdict(activity.server) | {"size": view.size},
        "rates": dataclasses.asdict(rates) if rates is not None else None,
        "connections": {
            "limit": activity.server.max_connections,
            "open": sum(by_state(activity.sessions).values()) + 1,
            "by_state": by_state(activity.sessions),
        },
        "applications": [dataclasses.asdict(use) for use in by_application(activity.sessions)],
        "statements": [dataclasses.asdict(session) for session in running(activity.sessions)],
        "locks": [dataclasses.asdict(line) for line in lock_tree(activity.waits)],
        "replicas": [dataclasses.asdict(replica) for replica in activity.replicas],
        "hidden": activity.hidden,
        "note": hidden_note(activity),
        "trouble": view.trouble,
    }
