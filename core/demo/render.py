"""The demo's report for people: rich, within 80 columns."""

from collections.abc import Iterable
from decimal import Decimal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from core.demo.curve import draw_curve
from core.demo.report import DemoReport
from core.demo.trading_days import IST
from core.printable import printable

__all__ = ["RichReporter", "render"]

_WIDTH = 80


class RichReporter:
    """A `DemoReporter` that prints a line per step on `console`, and a bar while it lasts where that is a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: tuple[Progress, TaskID] | None = None

    def started(self, step: str) -> None:
        self._clear()
        if self._console.is_terminal:
            progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._bar = progress, progress.add_task(step, total=None)
            progress.start()

    def advanced(self, step: str, *, done: int, total: int) -> None:
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, completed=done, total=total)

    def finished(self, step: str, *, seconds: float, note: str) -> None:
        self._clear()
        row = _grid(_WIDTH, (36, "left", "bold"), (None, "left", None), (9, "right", "dim"))
        row.add_row(Text(step), Text(note), Text(f"{seconds:.2f} s"))
        self._console.print(row)

    def failed(self, step: str) -> None:
        self._clear()

    def _clear(self) -> None:
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None


def render(report: DemoReport, console: Console) -> None:
    """Print the report on `console`. Commands, which hold the connection URLs, are never wrapped, so that they can be copied."""
    width = min(_WIDTH, console.width)
    _section(console, "Database")
    console.print(_facts(width, _database(report)))
    if report.instrument is not None:
        _section(console, "One instrument of the master")
        console.print(_facts(width, _instrument(report)))
    _section(console, "Portfolios at their latest snapshot")
    console.print(_portfolios(report, width))
    _section(console, f"Equity of {report.curve_portfolio}")
    _curve(report, console, width)
    _section(console, f"Ready in {report.seconds:.1f} s; the server stays up. Next:")
    for one in report.next:
        console.print(Text(f"  # {one.purpose}", style="dim"))
        console.print(Text(f"  {one.command}"), soft_wrap=True)


def _section(console: Console, title: str) -> None:
    console.print()
    console.print(Text(title, style="bold"))


def _grid(width: int, *columns: tuple[int | None, str, str | None]) -> Table:
    """A table without lines from (width, justification, style) of each column."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.width = width
    for wide, justify, style in columns:
        grid.add_column(
            width=wide,
            justify="right" if justify == "right" else "left",
            style=style or "",
            overflow="fold",
            ratio=None if wide else 1,
        )
    return grid


def _facts(width: int, facts: Iterable[tuple[str, str]]) -> Table:
    grid = _grid(width, (18, "left", "dim"), (None, "left", None))
    for name, value in facts:
        grid.add_row(Text(f"  {name}"), Text(printable(value)))
    return grid


def _database(report: DemoReport) -> list[tuple[str, str]]:
    health = report.health
    latency = health.get("latency_ms")
    shown = f", answers in {latency:.1f} ms" if isinstance(latency, int | float) else ""
    return [
        ("health", f"{health.get('status')}{shown}"),
        ("schema revision", report.revision or "none"),
        ("rows", ", ".join(f"{count:,} {table.replace('_', ' ')}" for table, count in report.counts.items())),
    ]


def _instrument(report: DemoReport) -> list[tuple[str, str]]:
    one = report.instrument
    assert one is not None
    contract = [f"{one.instrument_type} on {one.underlying}" if one.underlying else one.instrument_type]
    if one.expiry is not None:
        contract.append(f"expires {one.expiry:%d %b %Y}")
    if one.strike is not None:
        contract.append(f"strike {_plain(one.strike)}")
    if one.lot_size:
        contract.append(f"lot {one.lot_size:,}")
    if one.tick_size:
        contract.append(f"tick {_plain(one.tick_size)}")
    return [
        ("symbol", f"{one.exchange}:{one.trading_symbol} (token {one.instrument_token})"),
        ("contract", ", ".join(contract)),
    ]


def _portfolios(report: DemoReport, width: int) -> Table:
    grid = _grid(
        width, (22, "left", None), (8, "left", "dim"), (17, "left", "dim"), (None, "right", None), (13, "right", None)
    )
    grid.add_row(*(Text(title, style="dim") for title in ("  portfolio", "broker", "at (IST)", "equity", "P&L")))
    for line in report.portfolios:
        grid.add_row(
            Text(f"  {line.portfolio_id}"),
            Text(line.broker),
            Text(f"{line.snapshot_time.astimezone(IST):%d %b %Y %H:%M}"),
            Text(f"{line.currency} {line.equity:,.2f}"),
            Text(f"{line.total_pnl:+,.2f}", style="red" if line.total_pnl < 0 else "green"),
        )
    return grid


def _curve(report: DemoReport, console: Console, width: int) -> None:
    currency = next((line.currency for line in report.portfolios if line.portfolio_id == report.curve_portfolio), "")
    plain = not console.encoding.lower().startswith("utf")
    points = [(point.time, point.equity) for point in report.curve]
    for line in draw_curve(points, currency=currency, width=width, plain=plain):
        console.print(Text(line), no_wrap=True, crop=False)


def _plain(number: Decimal) -> str:
    """Without the zeros that NUMERIC(28,10) pads with."""
    return f"{number.normalize():,f}"
