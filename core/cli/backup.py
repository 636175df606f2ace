"""`panda backup`, `panda restore` and `panda verify-backup`: the whole database in one file, and back."""

import sys
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from core.cli._command import command
from core.cli._failure import FAILED, USAGE, CommandError
from core.cli._output import Output

if TYPE_CHECKING:
    from core.config.settings import Settings
    from core.database.backup import OnStep, Step
    from core.database.engine import EngineOptions

__all__ = ["register"]

T = TypeVar("T")

File = Annotated[Path, typer.Argument(metavar="FILE", help="The backup file.")]
Force = Annotated[bool, typer.Option("--force", help="Replace FILE, once the new one is whole.")]
Replace = Annotated[bool, typer.Option("--replace", help="Replace what is in the database.")]
NoPrivileges = Annotated[bool, typer.Option("--no-privileges", help="Leave GRANTs out.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Deep = Annotated[bool, typer.Option("--deep", help="Restore it into a server that is thrown away.")]
Against = Annotated[bool, typer.Option("--against-database", help="Compare the database's rows with it.")]
Scratch = Annotated[Path | None, typer.Option("--scratch", help="Where --deep makes its server.")]
Programs = Annotated[Path | None, typer.Option("--programs", help="The folder of pg_dump and pg_restore.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("backup")(command(backup))
    app.command("restore")(command(restore))
    app.command("verify-backup")(command(verify_backup))


def backup(out: Output, file: File, *, force: Force = False, programs: Programs = None) -> None:
    """Back the whole database up into one file.

    FILE appears when it is whole. It is never replaced without --force.
    """
    from core.cli._database import settings_in_force
    from core.database import backup as room

    _refuse_stream(file)
    settings = settings_in_force()
    with _progress(out) as say:
        report = _run(
            room.backup(
                settings.database.postgres_url,
                file,
                options=_options(settings),
                force=force,
                programs=programs,
                progress=say,
            )
        )
    out.data(_plain(report))
    for warning in report.warnings:
        out.warn(warning)
    out.table(
        [
            ("backup", str(report.file)),
            ("size", _size(report.size)),
            ("database", f"{report.database}, revision {report.revision or 'none'}"),
            ("rows", f"{report.rows:,} in {report.tables:,} tables"),
            ("server", f"PostgreSQL {report.server_version}, dumped by pg_dump {report.dump_version}"),
            ("time", f"{report.seconds:.1f} s"),
        ]
    )
    out.note("It holds password hashes and sealed credentials: keep it as safe as the database.")


def restore(
    out: Output,
    file: File,
    *,
    replace: Replace = False,
    yes: Yes = False,
    no_privileges: NoPrivileges = False,
    programs: Programs = None,
) -> int | None:
    """Restore a backup into an empty database.

    One transaction: every table's rows are compared with the backup before it is committed, and a failure changes
    nothing. With --replace it takes the place of what is in the database; asks first, and is refused in production
    without --yes.
    """
    from core.cli._database import settings_in_force
    from core.database import backup as room

    _refuse_stream(file)
    settings = settings_in_force()
    if replace and not yes and not _confirmed(out, settings):
        out.note("nothing was changed")
        return FAILED
    with _progress(out) as say:
        report = _run(
            room.restore(
                settings.database.postgres_url,
                file,
                options=_options(settings),
                replace=replace,
                privileges=not no_privileges,
                programs=programs,
                progress=say,
            )
        )
    out.data(_plain(report))
    for warning in report.warnings:
        out.warn(warning)
    compared = "equal row by row" + (", and so is the schema" if report.catalog_compared else "")
    out.table(
        [
            ("restored", f"{report.rows:,} rows in {report.tables:,} tables, {compared}"),
            ("database", f"{report.database}, revision {report.revision or 'none'}"),
            ("backup of", f"{report.created_at}"),
            ("replaced", f"{report.removed} tables, views, functions and so on" if report.removed else "nothing"),
            ("time", f"{report.seconds:.1f} s"),
        ]
    )
    return None


def verify_backup(
    out: Output,
    file: File,
    *,
    deep: Deep = False,
    against_database: Against = False,
    scratch: Scratch = None,
    programs: Programs = None,
) -> int:
    """Check a backup, and say what that proves.

    Needs no database, and touches none but with --against-database, which only reads. Exit code 6 if the file is
    damaged, 1 if the database differs.
    """
    from core.cli._database import settings_in_force
    from core.database import backup as room

    _refuse_stream(file)
    settings = settings_in_force() if against_database else None
    with _progress(out) as say:
        report = _run(
            room.verify_backup(
                file,
                deep=deep,
                against=settings.database.postgres_url if settings else None,
                options=_options(settings) if settings else None,
                scratch=scratch,
                programs=programs,
                progress=say,
            )
        )
    out.data(_plain(report))
    for warning in report.warnings:
        out.warn(warning)
    manifest = report.manifest
    out.line(f"{report.file} ({_size(report.size)})")
    out.line(
        f"  database {manifest.database} of PostgreSQL {manifest.server_version}, {manifest.created_at.isoformat()}"
    )
    for sentence in report.proven:
        out.line(f"  proven: {sentence}")
    for sentence in report.not_proven:
        out.line(f"  not proven: {sentence}")
    for sentence in report.differences:
        out.line(f"  differs: {sentence}")
    return FAILED if report.differences else 0


def _refuse_stream(file: Path) -> None:
    if str(file) == "-":
        raise CommandError(
            "a backup is a file, which is there whole or not at all; a pipe is neither",
            hint="Name a file, and copy it from there.",
            code=USAGE,
        )


def _confirmed(out: Output, settings: "Settings") -> bool:
    from core.config.settings import redact_url

    place = redact_url(settings.database.postgres_url)
    if settings.environment == "production":
        raise CommandError(
            f"--replace removes everything in {place}, in production", hint="Say --yes if it is meant.", code=USAGE
        )
    if out.as_json or not sys.stdin.isatty():
        raise CommandError("--replace asks first, and nobody is there to answer", hint="Say --yes.", code=USAGE)
    return typer.confirm(f"Replace everything in {place}?", err=True)


def _options(settings: "Settings") -> "EngineOptions":
    from core.database.engine import EngineOptions

    database = settings.database
    return EngineOptions(
        environment=settings.environment, timeouts=database.timeouts, tls=database.tls, pgbouncer=database.pgbouncer
    )


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run it; SIGTERM ends it as Ctrl-C does, so that a stopped service leaves no unfinished file."""
    import asyncio
    import signal

    async def stoppable() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
        stopped = False

        def stop() -> None:
            nonlocal stopped
            stopped = True
            task.cancel()

        loop.add_signal_handler(signal.SIGTERM, stop)
        try:
            return await task
        except asyncio.CancelledError:
            if stopped:
                raise KeyboardInterrupt from None
            raise
        finally:
            loop.remove_signal_handler(signal.SIGTERM)

    return asyncio.run(stoppable())


@contextmanager
def _progress(out: Output) -> "Generator[OnStep]":
    """Bars on a terminal, else a line when an activity begins."""
    if out.quiet or not out.stderr.is_terminal:
        begun: set[str] = set()

        def note(step: "Step") -> None:
            if step.activity not in begun:
                begun.add(step.activity)
                out.note(step.activity)

        yield note
        return
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[said]}"))
    with Progress(*columns, TimeElapsedColumn(), console=out.stderr, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def draw(step: "Step") -> None:
            if step.activity not in tasks:
                tasks[step.activity] = bars.add_task(step.activity, said="")
            bars.update(tasks[step.activity], completed=step.done, total=step.total, said=_said(step))

        yield draw


def _said(step: "Step") -> str:
    if step.unit == "bytes":
        return f"{_size(step.done)} {step.what}"[:34]
    return f"{step.done}{f' of {step.total}' if step.total else ''} tables"


def _size(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _plain(report: Any) -> dict[str, Any]:
    from dataclasses import asdict

    result = asdict(report)
    result["seconds"] = round(result["seconds"], 3)
    if "manifest" in result:
        del result["manifest"]["catalog"]  # hundreds of lines, which stand in the file
    return result
