"""`panda portfolio import` and `export`."""

import sys
import textwrap
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.cli._failure import USAGE, CommandError
from core.cli._output import WIDTH, Output
from core.cli._portfolio_print import as_json
from core.cli._portfolio_read import ZONE, End, Start, clock_of, limits

if TYPE_CHECKING:
    from core.trading.portfolios import ExportReport, ImportReport

Source = Annotated[str, typer.Argument(metavar="FILE", help="A .csv, .gz, .zip or .parquet; - is stdin.")]
Into = Annotated[str | None, typer.Option("--portfolio", help="Whose it is, where no column says so.")]
Column = Annotated[
    list[str] | None, typer.Option("--column", metavar="OURS=THEIRS", help="Such as equity=total; may be repeated.")
]
FileZone = Annotated[str, typer.Option("--zone", help="Of times without an offset.")]
TimeFormat = Annotated[str | None, typer.Option("--time-format", help="Such as %d/%m/%Y, or epoch; else ISO 8601.")]
Round = Annotated[bool, typer.Option("--round", help="Round what has more than ten decimals, and say so.")]
Skip = Annotated[bool, typer.Option("--skip-conflicts", help="Leave out what is stored with other values.")]
Strict = Annotated[bool, typer.Option("--strict", help="Nothing at all, if one row is bad.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Do all, and store nothing.")]
Target = Annotated[Path, typer.Argument(metavar="FILE", help="A new .csv, .csv.gz or .parquet file.")]
Ids = Annotated[list[str] | None, typer.Option("--portfolio", help="Of this one; may be repeated. Else of all.")]
ExportZone = Annotated[str, typer.Option("--zone", help="Whose days and times.")]
Force = Annotated[bool, typer.Option("--force", help="Replace FILE, once the new one is whole.")]

SHOWN = 10
"""Rows of each kind that people are shown; JSON has more."""
_LARGEST = 2 * 2**30
"""Bytes; one more, and the importer refuses them."""
_STAGES = {
    "read": "Reading the file",
    "partitions": "Making the months' partitions",
    "copy": "Copying its rows",
    "compare": "Comparing with what is stored",
    "store": "Storing",
    "commit": "Committing",
}


def import_(
    out: Output,
    file: Source,
    *,
    portfolio: Into = None,
    column: Column = None,
    zone: FileZone = ZONE,
    time_format: TimeFormat = None,
    round: Round = False,
    skip_conflicts: Skip = False,
    strict: Strict = False,
    dry_run: DryRun = False,
) -> None:
    """Bring snapshots in from a CSV or Parquet file.

    Whole snapshots, or a mere curve of equity. One transaction. Bad rows are left out and told; what is stored is
    never changed. Exit code 6 if the file is refused, or contradicts what is stored.
    """
    columns = dict(_pair(text) for text in column or ())
    given = _standard_input() if file == "-" else Path(file)

    from core.cli._database import connected, run, settings_in_force
    from core.trading import portfolios

    async def work() -> "ImportReport":
        async with connected(settings_in_force(), out, verify=True) as manager:
            with _progress(out, _STAGES["read"]) as say:
                return await portfolios.import_snapshots(
                    manager,
                    given,
                    portfolio_id=portfolio,
                    columns=columns,
                    time_zone=zone,
                    time_format=time_format,
                    round_to_scale=round,
                    on_conflict="skip" if skip_conflicts else "error",
                    strict=strict,
                    dry_run=dry_run,
                    name="standard input" if file == "-" else None,
                    progress=(lambda stage: say(_STAGES.get(stage, stage))) if say else None,
                )

    report = run(work())
    out.data(as_json(report))
    _print_import(out, report)


def export(
    out: Output,
    file: Target,
    *,
    portfolio: Ids = None,
    start: Start = None,
    end: End = None,
    zone: ExportZone = ZONE,
    force: Force = False,
) -> None:
    """Write snapshots into a CSV or Parquet file.

    Amounts are exact, and all are of one moment of the database. FILE appears when it is whole, and is never
    replaced without --force.
    """
    from core.cli._database import connected, run, settings_in_force
    from core.cli._target import check_target
    from core.trading import portfolios

    if not file.name.lower().endswith((".csv", ".csv.gz", ".parquet")):
        raise CommandError(f"{file} is no .csv, .csv.gz or .parquet", hint="Name it by its kind.", code=USAGE)
    first, last = limits(start, end, clock_of(zone))
    check_target(file, force=force)

    async def work() -> "ExportReport":
        async with connected(settings_in_force(), out, verify=True) as manager:
            with _progress(out, "Exporting") as say:
                return await portfolios.export_snapshots(
                    manager,
                    file,
                    portfolio_ids=portfolio,
                    start=first,
                    end=last,
                    zone=zone,
                    overwrite=force,
                    progress=(lambda rows: say(f"Exporting: {rows:,} rows")) if say else None,
                )

    report = run(work())
    out.data(as_json(report))
    many = "portfolio" if report.portfolios == 1 else "portfolios"
    out.line(f"{file}: {report.rows:,} snapshots of {report.portfolios:,} {many}, {report.size:,} bytes")
    if report.first is not None and report.last is not None:
        out.line(f"  {report.first:%Y-%m-%d %H:%M:%S} to {report.last:%Y-%m-%d %H:%M:%S} UTC, {report.seconds:.2f} s")


def _print_import(out: Output, report: "ImportReport") -> None:
    word = "dry run, nothing was stored" if report.dry_run else "stored" if report.added else "nothing new"
    out.line(f"{report.name} into {', '.join(report.portfolios) or 'nothing'}: {word}")
    counts = (
        ("rows", report.rows, ""),
        ("added", report.added, ""),
        ("existing", report.existing, "stored already, the same"),
        ("repeated", report.repeated, "the same as an earlier row of the file"),
        ("conflicts", report.conflicts, "stored with other values, left as they are"),
        ("rejected", report.rejected, ""),
    )
    kept = [(name, number, note) for name, number, note in counts if number or name in ("rows", "added", "rejected")]
    width = max(len(f"{number:,}") for _, number, _ in kept)
    out.table([(f"  {name}", f"{number:,}".rjust(width), note if number else "") for name, number, note in kept])
    if report.first is not None and report.last is not None:
        out.line(f"  {report.first:%Y-%m-%d %H:%M:%S} to {report.last:%Y-%m-%d %H:%M:%S} UTC")
    _print_rows(
        out,
        "rejected",
        (f"line {row.line}, {row.field}: {row.reason}" for row in report.rejected_rows),
        report.rejected,
    )
    _print_rows(
        out, "repeated", (f"line {row.line} as line {row.first_line}" for row in report.repeated_rows), report.repeated
    )
    _print_rows(
        out,
        "conflicts",
        (f"line {row.line}, {row.portfolio_id}: {', '.join(row.fields)}" for row in report.conflict_rows),
        report.conflicts,
    )
    for change in report.rounded:
        rows = "row" if change.rows == 1 else "rows"
        out.line(f"  rounded {change.field}: {change.rows:,} {rows}, by {change.largest:E} at most")
    for odd in report.oddities:
        cells = f"{odd.rows:,} {odd.kind} {'cell' if odd.rows == 1 else 'cells'}"
        first = f"line {odd.first_line}" if odd.rows == 1 else f"the first in line {odd.first_line}"
        out.line(f"  odd: {odd.column} has {cells}, {first}" + ("" if odd.stored else "; it is not stored"))
    if report.ignored_columns:
        names = textwrap.wrap(", ".join(report.ignored_columns), WIDTH - 14, break_long_words=False)
        out.line(f"  not stored: {names[0]}")
        for more in names[1:]:
            out.line(f"              {more}")
    if report.months_made:
        out.line(f"  partitions {'to make' if report.dry_run else 'made'}: {len(report.months_made):,}")
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in report.seconds.items())
    out.line(f"  {sum(report.seconds.values()):.2f} s ({stages})")


def _print_rows(out: Output, title: str, rows: Iterable[str], count: int) -> None:
    if not count:
        return
    out.line(f"  {title}:")
    for row, _ in zip(rows, range(SHOWN), strict=False):
        out.line(f"    {row}")
    if count > SHOWN:
        out.line(f"    and {count - SHOWN:,} more; --json has the first thousand")


def _pair(text: str) -> tuple[str, str]:
    ours, _, theirs = text.partition("=")
    if not ours or not theirs:
        raise CommandError(f"{text!r} is no OURS=THEIRS", hint="Write --column equity=total.", code=USAGE)
    return ours, theirs


def _standard_input() -> bytes:
    """Read before polars is loaded, and not in the importer's thread: with either an interrupt would not end it."""
    if sys.stdin is None or sys.stdin.isatty():  # pyright: ignore[reportUnnecessaryComparison] - so it is after `<&-`
        raise CommandError("nothing comes from standard input", hint="Name a file, or pipe one in.", code=USAGE)
    return sys.stdin.buffer.read(_LARGEST + 1)


@contextmanager
def _progress(out: Output, first: str) -> "Generator[Callable[[str], None] | None]":
    """What it is at, on a terminal."""
    if out.quiet or not out.stderr.is_terminal:
        yield None
        return
    with out.stderr.status(first) as status:
        yield status.update
