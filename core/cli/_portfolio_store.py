"""`panda portfolio partitions`, `prune` and `downsample`."""

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import date, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.cli._failure import USAGE, CommandError
from core.cli._output import Output
from core.cli._portfolio_print import as_json, table

if TYPE_CHECKING:
    from core.config.settings import Settings
    from core.trading.portfolios import DownsampleReport, PartitionInfo, PruneReport

Ensure = Annotated[
    str | None, typer.Option("--ensure", metavar="FROM..TO", help="Make these months: 2026-11..2027-02, both included.")
]
Ahead = Annotated[
    int | None, typer.Option("--ahead", metavar="MONTHS", min=0, max=120, help="Make this month and so many after it.")
]
Exact = Annotated[bool, typer.Option("--exact", help="Count the rows; else the server's estimate.")]
Before = Annotated[str | None, typer.Option("--before", metavar="DATE", help="The months that ended by then, in UTC.")]
Keep = Annotated[
    int | None, typer.Option("--keep-months", metavar="N", min=1, help="All but this month and the N before it.")
]
Until = Annotated[str, typer.Option("--before", metavar="DATE", help="The months that ended by then, in UTC.")]
Every = Annotated[str, typer.Option("--every", metavar="SPAN", help="Such as 30m, 1h or 1d; it divides a day.")]
Compact = Annotated[bool, typer.Option("--compact", help="Give the room back: who reads that month waits.")]
Wait = Annotated[float, typer.Option("--wait", metavar="SECONDS", min=0, help="For others' locks, at each step.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]

_SPAN = re.compile(r"([0-9]{1,5})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_WORDS = {
    "mark": "Marking",
    "detach": "Detaching",
    "drop": "Dropping",
    "thin": "Thinning out",
    "vacuum": "Vacuuming",
    "compact": "Rewriting",
}


def partitions(
    out: Output, *, ensure: Ensure = None, ahead: Ahead = None, exact: Exact = False, dry_run: DryRun = False
) -> None:
    """List the months of the history, or make months that are to come.

    For a daily job: panda portfolio partitions --ahead 3 --quiet.
    """
    from core.cli._database import connected, run, settings_in_force
    from core.trading import portfolios

    if ensure is not None and ahead is not None:
        raise CommandError("give either --ensure or --ahead", code=USAGE)
    period = _period(ensure) if ensure is not None else None

    async def work() -> "tuple[tuple[str, ...], list[PartitionInfo]]":
        async with connected(settings_in_force(), out, verify=True) as manager:
            made: tuple[str, ...] = ()
            if period is not None:
                made = await portfolios.ensure_partitions(manager, *period, dry_run=dry_run)
            elif ahead is not None:
                made = await portfolios.ensure_ahead(manager, months=ahead, dry_run=dry_run)
            async with manager.transaction(read_only=True) as session:
                return made, await portfolios.partitions(session, exact=exact)

    made, found = run(work())
    out.data({"made": made, "dry_run": dry_run, "partitions": as_json(found)})
    if ensure is not None or ahead is not None:
        for name in made:
            out.line(f"{'would make' if dry_run else 'made'} {name}")
        if not made:
            out.line("nothing to make: these months are there")
        return
    _print_partitions(out, found, exact=exact)


def prune(
    out: Output, *, before: Before = None, keep_months: Keep = None, wait: Wait = 60, dry_run: DryRun = False
) -> None:
    """Remove old months of the history, whole.

    Nobody who reads or records is stopped. Interrupted, the same again finishes it. Exit code 5 if a month is still in use
    after --wait.
    """
    from core.cli._database import connected, run
    from core.trading import portfolios

    if (before is None) == (keep_months is None):
        raise CommandError("give either --before or --keep-months", code=USAGE)
    day = _day(before) if before is not None else None

    async def work() -> "PruneReport":
        async with connected(_for_long_work(), out, verify=True) as manager:
            with _progress(out) as progress:
                return await portfolios.prune(
                    manager, before=day, keep_months=keep_months, dry_run=dry_run, patience=wait, progress=progress
                )

    report = run(work())
    out.data(as_json(report))
    verb = "would be removed" if dry_run else "removed"
    out.line(f"{_months(len(report.partitions))} ended by {report.before}: {verb}, {_size(report.bytes)}")
    if report.partitions:
        rows = [(_month(item), _number(item.rows), _size(item.bytes)) for item in report.partitions]
        table(out, rows, ("month", "about rows", "size"))
    for name in report.kept:
        out.warn(f"{name} was detached by somebody else and is left alone")


def downsample(
    out: Output,
    *,
    before: Until,
    every: Every,
    compact: Compact = False,
    wait: Wait = 60,
    dry_run: DryRun = False,
) -> None:
    """Thin out old months: of each span the first, last, highest, lowest and deepest fall stay.

    Curves on that grid, extremes and maximum drawdowns stay what they were. Days of Asia/Kolkata begin on a grid of 30m,
    and not of 1h. What is removed is gone: take a backup, or export it, first.
    """
    from core.cli._database import connected, run
    from core.trading import portfolios

    day, span = _day(before), _span(every)

    async def work() -> "DownsampleReport":
        async with connected(_for_long_work(), out, verify=True) as manager:
            with _progress(out) as progress:
                return await portfolios.downsample(
                    manager,
                    before=day,
                    every=span,
                    compact=compact,
                    dry_run=dry_run,
                    patience=wait,
                    progress=progress,
                )

    report = run(work())
    months = as_json(report.partitions)
    out.data({**as_json(report), "every": report.every.total_seconds(), "partitions": months})
    kept = f"{report.kept:,} of {report.rows:,} snapshots {'would be kept' if dry_run else 'kept'}"
    room = "" if dry_run else f", {_size(report.bytes_before)} -> {_size(report.bytes_after)}"
    out.line(f"{_months(len(report.partitions))} ended by {report.before}, every {every}: {kept}{room}")
    rows = [
        (_month(item), _number(item.rows), _number(item.kept), _size(item.bytes_before), _size(item.bytes_after))
        for item in report.partitions
    ]
    if rows:
        table(out, rows, ("month", "rows", "kept", "size", "size after"))


def _print_partitions(out: Output, found: "list[PartitionInfo]", *, exact: bool) -> None:
    if not found:
        out.line("there are no partitions yet; `panda portfolio partitions --ahead 3` makes some")
        return
    rows = [
        (_month(item), _number(item.rows), _size(item.bytes), _state(item), item.name) for item in found
    ]  # the name stands last: it is the longest, and what SQL takes
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    shown = [(row[0], row[1].rjust(max(widths[1], 10)), row[2].rjust(widths[2]), *row[3:]) for row in rows]
    count = "rows" if exact else "about rows"
    out.table(shown, columns=("month", count.rjust(max(widths[1], 10)), "size".rjust(widths[2]), "state", "table"))


def _state(item: "PartitionInfo") -> str:
    return f"{item.state}, pruning" if item.pruning else item.state


def _month(item: Any) -> str:
    return f"{item.first_day:%Y-%m}" if item.first_day is not None else "-"


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _months(count: int) -> str:
    return "1 month" if count == 1 else f"{count:,} months"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1_000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1_000
    return f"{size:.1f} TB"


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise CommandError(f"{text!r} is no date", hint="Write it as 2026-08-25.", code=USAGE) from None


def _period(text: str) -> tuple[date, date]:
    """Months or days on both sides of two points, or one month."""
    start, _, end = text.partition("..")
    try:
        first, last = (
            date.fromisoformat(f"{part}-01" if len(part) == len("2026-11") else part) for part in (start, end or start)
        )
    except ValueError:
        raise CommandError(
            f"{text!r} is no period", hint="Write it as 2026-11..2027-02, or one month as 2026-11.", code=USAGE
        ) from None
    return first, last


def _span(text: str) -> timedelta:
    found = _SPAN.fullmatch(text)
    if found is None:
        raise CommandError(f"{text!r} is no span of time", hint="Write it as 30m, 1h or 1d.", code=USAGE)
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def _for_long_work() -> "Settings":
    """The settings in force, without a warning for each statement that is meant to be long."""
    from dataclasses import replace

    from core.cli._database import settings_in_force

    settings = settings_in_force().model_copy(deep=True)
    settings.database.monitoring = replace(settings.database.monitoring, slow_query=0)
    return settings


@contextmanager
def _progress(out: Output) -> "Generator[Callable[[str, str], None] | None]":
    """The partition and what is done to it, on a terminal."""
    if out.quiet or not out.stderr.is_terminal:
        yield None
        return
    with out.stderr.status("Looking at the partitions") as status:
        yield lambda name, step: status.update(f"{_WORDS.get(step, step)} {name}")
