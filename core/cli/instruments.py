"""`panda instruments ...`: the daily instrument master."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.cli._command import command
from core.cli._failure import USAGE, CommandError
from core.cli._instruments_files import diff, export, formats
from core.cli._instruments_find import chain, history, search, show
from core.cli._instruments_print import as_json, hints, print_counts, print_folded, print_rejected, shown_date
from core.cli._output import Output

if TYPE_CHECKING:
    from core.trading.instruments import LoadReport

__all__ = ["register"]

_INDIA = timezone(timedelta(hours=5, minutes=30), "IST")
"""Of the shipped formats' exchanges; it has no daylight saving time."""
_STAGES = {
    "read": "Reading the file",
    "lock": "Waiting for other loads",
    "copy": "Copying its rows",
    "merge": "Comparing with the master",
    "commit": "Committing",
}

File = Annotated[str, typer.Argument(metavar="FILE", help="A .csv, .gz or .zip; - is stdin.")]
Source = Annotated[str | None, typer.Option("--source", help="Whose file it is; else its format's broker.")]
Day = Annotated[str | None, typer.Option("--date", metavar="DATE", help="Its trading date; else today in India.")]
Format = Annotated[str, typer.Option("--format", help="See `panda instruments formats`.")]
Mapping = Annotated[Path | None, typer.Option("--mapping", dir_okay=False, help="A TOML file that says its format.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Do all, and store nothing.")]
AllowShrink = Annotated[bool, typer.Option("--allow-shrink", help="However much is gone from an exchange.")]
MaxShrink = Annotated[
    float, typer.Option("--max-shrink", min=0, max=1, help="The share of an exchange that may be gone at once.")
]
Of = Annotated[str | None, typer.Option("--source", help="Of this source alone.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=200, help="At most so many.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(help="The daily instrument master: load, compare, find, export.", no_args_is_help=True)
    for function in (load, diff, search, show, chain, history, loads, export, formats):
        group.command(function.__name__)(command(function))
    app.add_typer(group, name="instruments")


def load(
    out: Output,
    file: File,
    *,
    source: Source = None,
    day: Day = None,
    format: Format = "auto",
    mapping: Mapping = None,
    dry_run: DryRun = False,
    allow_shrink: AllowShrink = False,
    max_shrink: MaxShrink = 0.30,
) -> None:
    """Bring the master to what a broker's file says.

    One transaction: all of it is stored or nothing. Exchanges that are not in the file are left alone. Exit code 6 if the
    file is refused: it is damaged, of an earlier day than what is stored, or lacks too much of it.
    """
    from core.cli._database import connected, run, settings_in_force
    from core.trading import instruments

    trading_date = shown_date(day) if day else datetime.now(_INDIA).date()
    given = _standard_input() if file == "-" else file
    settings = settings_in_force()

    async def work() -> "LoadReport":
        async with connected(settings, out, verify=True) as manager:
            with hints(), _progress(out) as progress:
                return await instruments.load(
                    manager,
                    given,
                    trading_date=trading_date,
                    source=source,
                    format=format,
                    mapping=mapping,
                    dry_run=dry_run,
                    allow_shrink=allow_shrink,
                    max_shrink=max_shrink,
                    name="standard input" if file == "-" else None,
                    progress=progress,
                )

    report = run(work())
    out.data(as_json(report))
    _print(out, report)


def loads(out: Output, source: Of = None, limit: Limit = 20) -> None:
    """List what was loaded, the newest first."""
    from core.cli._database import connected, run, settings_in_force
    from core.trading import instruments

    async def work() -> list[dict[str, Any]]:
        async with connected(settings_in_force(), out) as manager, manager.get_session(read_only=True) as session:
            return [as_json(item) for item in await instruments.loads(session, source=source, limit=limit)]

    found = run(work())
    out.data({"loads": found})
    if not found:
        out.note("nothing has been loaded yet")
        return
    names = ("rows", "added", "changed", "deactivated", "rejected")
    out.table(
        [
            (
                str(item["load_id"]),
                str(item["trading_date"]),
                item["source"],
                *(f"{item[name] + (item['attributes_changed'] if name == 'changed' else 0):,}" for name in names),
                f"{item['loaded_at'].astimezone(UTC):%Y-%m-%d %H:%M}",
            )
            for item in found
        ],
        columns=("id", "date", "source", "rows", "added", "changed", "gone", "rejected", "loaded (UTC)"),
    )


def _standard_input() -> Any:
    if sys.stdin is None or sys.stdin.isatty():  # pyright: ignore[reportUnnecessaryComparison] - so it is after `<&-`
        raise CommandError("nothing comes from standard input", hint="Name a file, or pipe one in.", code=USAGE)
    return sys.stdin.buffer


@contextmanager
def _progress(out: Output) -> "Generator[Callable[[str], None] | None]":
    """The stage, on a terminal."""
    if out.quiet or not out.stderr.is_terminal:
        yield None
        return
    with out.stderr.status(_STAGES["read"]) as status:
        yield lambda stage: status.update(_STAGES.get(stage, stage))


def _print(out: Output, report: "LoadReport") -> None:
    print_folded(out, f"{report.source} {', '.join(report.exchanges)} as of {report.trading_date}: {_word(report)}")
    if not report.known:
        print_counts(out, report, (("deactivated", "gone from the file"),))
    print_rejected(out, report.rejected)
    if report.ignored_columns:
        print_folded(out, f"not kept: {', '.join(report.ignored_columns)}", indent="  ")
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in report.seconds.items())
    out.line(f"  {sum(report.seconds.values()):.2f} s ({stages})")


def _word(report: "LoadReport") -> str:
    if report.known:
        return f"loaded before, byte for byte; {report.rows:,} rows"
    return "dry run, nothing was stored" if report.dry_run else "loaded" if report.written else "nothing has changed"
