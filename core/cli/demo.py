"""`panda demo`: the main job, from nothing to an equity curve."""

from pathlib import Path
from typing import Annotated

import typer

from core.cli._command import command
from core.cli._output import Output

__all__ = ["register"]

Folder = Annotated[Path | None, typer.Option("--directory", file_okay=False, help="Where the demo keeps its server.")]
File = Annotated[Path | None, typer.Option("--instruments", help="A broker's instrument file to load.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Begin from nothing.")]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("demo")(command(demo))


def demo(out: Output, directory: Folder = None, instruments: File = None, fresh: Fresh = False) -> None:
    """Show the main job, from instruments to an equity curve.

    Works on a database of its own, in a built-in server of its own.
    """
    import json
    import logging

    from core.cli._database import run
    from core.config.settings import get_settings
    from core.demo.render import RichReporter, render
    from core.demo.run import run_demo

    logs = logging.getLogger("core")
    if logs.level > logging.INFO:  # without -v: the demo's bulk loads are slow statements, and are meant to be
        logs.setLevel(logging.ERROR)
    reporter = None if out.quiet else RichReporter(out.stderr)
    report = run(
        run_demo(
            directory=directory,
            instruments=instruments,
            fresh=fresh,
            environment=get_settings().environment,
            reporter=reporter,
        )
    )
    out.data(json.loads(report.to_json()))
    if not out.as_json:
        render(report, out.stdout)
