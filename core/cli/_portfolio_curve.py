"""`panda portfolio equity` and `drawdown`."""

import math
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast
from zoneinfo import ZoneInfo

import typer

from core.cli._failure import FAILED, USAGE, CommandError
from core.cli._output import WIDTH, Output
from core.cli._portfolio_print import amount, as_json, moment, percent, table
from core.cli._portfolio_read import (
    ZONE,
    End,
    Flows,
    Start,
    Which,
    Zone,
    clock_of,
    empty,
    flows_of,
    limits,
    period_of,
    portfolio_of,
)
from core.cli._target import check_target, published

if TYPE_CHECKING:
    import polars as pl
    from sqlalchemy.ext.asyncio import AsyncSession

    from core.database.models import Portfolio
    from core.trading.portfolios import Drawdown, EquityPoint

Points = Annotated[
    int | None,
    typer.Option("--points", min=1, max=100_000, help="At most so many; else 24, 500 of JSON, 10000 of a plot."),
]
Plot = Annotated[
    str | None, typer.Option("--plot", metavar="FILE|terminal", help="Draw it: a .png, .svg or .pdf, or letters here.")
]
Dpi = Annotated[int, typer.Option("--dpi", min=50, max=1200, help="Dots to the inch of FILE; 300 for print.")]
Force = Annotated[bool, typer.Option("--force", help="Replace FILE, once the new one is whole.")]
Worst = Annotated[int, typer.Option("--worst", min=1, max=100, help="How many of the deepest falls to list.")]
Series = Annotated[bool, typer.Option("--series", help="Every point, with --json.")]

_FORMATS: tuple[Literal["png", "svg", "pdf"], ...] = ("png", "svg", "pdf")
_PLOTTED = 10_000
"""More than there are dots, so that no deep but short fall is missed for want of a point."""
_HEIGHTS = (14, 5)
"""Lines of the two parts of a plot in letters."""


def equity(
    out: Output,
    portfolio: Which,
    *,
    start: Start = None,
    end: End = None,
    zone: Zone = ZONE,
    points: Points = None,
    plot: Plot = None,
    dpi: Dpi = 150,
    force: Force = False,
) -> None:
    """Show an equity curve, or plot it.

    The period is cut into equal parts, of which each gives its last snapshot as it was recorded. A plot has the equity
    above and the drawdown below.
    """
    from core.cli._database import read
    from core.trading import portfolios

    clock = clock_of(zone)
    file = _target(plot, force=force)
    first, last = limits(start, end, clock)
    wanted = points or (_PLOTTED if plot else 500 if out.as_json else 24)

    async def work(session: "AsyncSession") -> "tuple[Portfolio, list[EquityPoint]]":
        owner = await portfolio_of(session, portfolio)
        period = await period_of(session, [portfolio], first, last)
        return owner, await portfolios.equity_curve(session, portfolio, *period, points=wanted)

    owner, found = read(out, work)
    if not found:
        raise empty()
    if file is not None:
        _save(file, owner, found, zone=clock.key, dpi=dpi, force=force)
    out.data(
        {
            "portfolio": as_json(owner),
            "zone": clock.key,
            "points": [as_json(item) for item in found],
            "plot": str(file) if file else None,
        }
    )
    if file is not None:
        out.line(f"{file}: {len(found):,} points, {file.stat().st_size:,} bytes")
    elif plot is not None:
        _draw(out, owner, found, clock)
    else:
        _print_points(out, owner, found, clock)


def drawdown(
    out: Output,
    portfolio: Which,
    *,
    start: Start = None,
    end: End = None,
    zone: Zone = ZONE,
    worst: Worst = 5,
    series: Series = False,
    flow: Flows = None,
) -> None:
    """Show the deepest falls of a portfolio.

    From which peak, how far, and when it was back, of every snapshot in the period. Deposits and withdrawals are
    rises and falls unless --flow names them.
    """
    from core.cli._database import read
    from core.trading import portfolios

    clock = clock_of(zone)
    first, last = limits(start, end, clock)
    came = flows_of(flow, clock)

    async def work(session: "AsyncSession") -> "tuple[Portfolio, pl.DataFrame]":
        owner = await portfolio_of(session, portfolio)
        begin, until = await period_of(session, [portfolio], first, last)
        return owner, await portfolios.snapshot_frame(session, [portfolio], start=begin, end=until, positions=False)

    owner, frame = read(out, work)
    if frame.is_empty():
        raise empty()
    rows = frame.select("snapshot_time", "equity", "total_pnl").sort("snapshot_time")
    chosen = rows if series or came else _turning(rows)
    found = portfolios.drawdown((portfolios.EquityPoint(*row) for row in chosen.iter_rows()), flows=came)
    falls = _falls(found)[:worst]
    result: dict[str, Any] = {"portfolio": as_json(owner), "zone": clock.key, "points": rows.height}
    result |= {"maximum": as_json(found.maximum), "worst": falls}
    out.data(result | ({"series": as_json(found.points)} if series else {}))
    days = " to ".join(f"{rows['snapshot_time'][place].astimezone(clock):%Y-%m-%d}" for place in (0, -1))
    out.line(f"{owner.portfolio_id} in {owner.currency}, {days}, {rows.height:,} snapshots")
    if not falls:
        out.line("never below its highest worth")
        return
    table(out, [_fall_row(fall, clock) for fall in falls], ("peak", "lowest", "recovered", "depth", "amount"), text=3)


def _turning(rows: "pl.DataFrame") -> "pl.DataFrame":
    """The rows where a fall begins, is deepest and ends: all that every fall is known by, and few of many."""
    import polars as pl

    run, equity = pl.col("run"), pl.col("equity")
    marked = rows.with_columns(below=equity < equity.cum_max()).with_columns(run=pl.col("below").rle_id())
    edge = run.ne_missing(run.shift(1)) | run.ne_missing(run.shift(-1))
    return marked.filter(pl.when("below").then(equity == equity.min().over("run")).otherwise(edge)).select(rows.columns)


def _falls(found: "Drawdown") -> list[dict[str, Any]]:
    """From each peak until it was reached again, the deepest first."""
    falls: list[tuple[tuple[float, Decimal], dict[str, Any]]] = []
    peak_time, below = None, False
    for point in found.points:
        if point.amount <= 0:
            if below:
                falls[-1][1]["recovery_time"] = point.snapshot_time
            peak_time, below = point.snapshot_time, False
            continue
        depth = point.fraction or 0.0, point.amount
        if not below or depth > falls[-1][0]:
            fall = {
                "peak_time": peak_time,
                "peak": point.peak,
                "trough_time": point.snapshot_time,
                "trough": point.equity,
            }
            fall |= {"fraction": point.fraction, "amount": point.amount, "recovery_time": None}
            falls[len(falls) - below :] = [(depth, fall)]
        below = True
    return [fall for _, fall in sorted(falls, key=lambda item: item[0], reverse=True)]


def _fall_row(fall: dict[str, Any], clock: ZoneInfo) -> tuple[str, ...]:
    days = [f"{fall[name].astimezone(clock):%Y-%m-%d %H:%M}" for name in ("peak_time", "trough_time")]
    back = f"{fall['recovery_time'].astimezone(clock):%Y-%m-%d %H:%M}" if fall["recovery_time"] else "not yet"
    return (*days, back, percent(fall["fraction"]), amount(fall["amount"]))


def _print_points(out: Output, owner: "Portfolio", points: "list[EquityPoint]", clock: ZoneInfo) -> None:
    rows: list[tuple[str, ...]] = []
    before = None
    for point in points:
        change = amount(point.equity - before) if before is not None else ""
        rows.append((moment(point.snapshot_time, clock), amount(point.equity), change, amount(point.total_pnl)))
        before = point.equity
    table(out, rows, (f"time ({clock.key})", f"equity ({owner.currency})", "change", "P&L"))


def _draw(out: Output, owner: "Portfolio", points: "list[EquityPoint]", clock: ZoneInfo) -> None:
    from core.cli._portfolio_terminal import braille_is_shown, curve
    from core.trading import portfolios

    braille = braille_is_shown()
    width = min(out.stdout.width, 120) if out.stdout.is_terminal else WIDTH
    times = [point.snapshot_time for point in points]
    fractions = [item.fraction for item in portfolios.drawdown(points).points]
    worths = [point.equity for point in points]
    falls = [math.nan if item is None else -item for item in fractions]
    deepest = max((item for item in fractions if item is not None), default=0.0)
    parts = (
        (f"equity ({owner.currency})", [float(item) for item in worths], amount(max(worths)), amount(min(worths))),
        ("drawdown", falls, percent(0.0), percent(-deepest)),
    )
    margin = max(len(text) for part in parts for text in part[2:]) + 1
    out.line(owner.name)
    for (title, values, top, bottom), height in zip(parts, _HEIGHTS, strict=True):
        out.line(" " * margin + title)
        drawn = curve(times, values, width=width - margin, height=height, braille=braille)
        labels = [top.rjust(margin - 1), *[""] * (height - 2), bottom.rjust(margin - 1)]
        for label, letters in zip(labels, drawn, strict=True):
            out.line((label.ljust(margin) + letters).rstrip())
    begin, until = (f"{moment(at, clock)}" for at in (times[0], times[-1]))
    out.line(" " * margin + begin + f"{until} ({clock.key})".rjust(width - margin - len(begin)))


def _target(plot: str | None, *, force: bool) -> Path | None:
    """The file to be drawn into, which may be; None if there is none. Raises CommandError."""
    if plot is None or plot == "terminal":
        return None
    file = Path(plot)
    if file.suffix.lower().lstrip(".") not in _FORMATS:
        hint = "Name it .png, .svg or .pdf, or say terminal."
        raise CommandError(f"{plot} is no kind of picture that can be drawn", hint=hint, code=USAGE)
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        hint = 'pip install "alpha-panda-core[plot]", or say --plot terminal.'
        raise CommandError("a picture needs matplotlib, which is not installed", hint=hint, code=FAILED)
    check_target(file, force=force)
    return file


def _save(file: Path, owner: "Portfolio", points: "list[EquityPoint]", *, zone: str, dpi: int, force: bool) -> None:
    from core.trading import portfolios

    title = owner.name if owner.name == owner.portfolio_id else f"{owner.name} ({owner.portfolio_id})"
    picture = portfolios.plot_equity(
        points,
        title=title,
        currency=owner.currency,
        zone=zone,
        format=cast("Literal['png', 'svg', 'pdf']", file.suffix.lower().lstrip(".")),
        dpi=dpi,
    )
    with published(file, force=force) as part:
        part.write_bytes(picture)
