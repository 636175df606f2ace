"""An equity curve as a picture: equity above, drawdown below, over one axis of time."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The signatures of matplotlib leave much open.

import io
import math
import textwrap
import warnings
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias
from zoneinfo import ZoneInfo

from core.database.errors import InvalidInput
from core.trading.portfolios._calendar import DEFAULT_ZONE, zone_of
from core.trading.portfolios._drawdown import drawdown
from core.trading.portfolios._reads import EquityPoint

PlotFormat: TypeAlias = Literal["png", "svg", "pdf"]

_SIZE = (6.4, 5.2)
"""Inches: the text's width of a page, and with these letters still legible on a phone, where it is a third of that."""
_LETTERS, _SMALL = 13, 12
_LINE, _DOWN, _RULE = "#17365d", "#9b2d1f", "#c8ccd0"
"""Of different darkness too, since a printer may have one colour."""
_UNITS = ((1e13, 1e12, "trillions"), (1e10, 1e9, "billions"), (1e7, 1e6, "millions"))
_TITLE_WIDTH = 46
_NO_TIME = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def plot_equity(
    points: Sequence[EquityPoint],
    *,
    title: str,
    currency: str,
    zone: str = DEFAULT_ZONE,
    format: PlotFormat = "png",
    dpi: int = 150,
) -> bytes:
    """The picture's bytes: equity above, drawdown below, times and dates by the clock of `zone`.

    It is 6.4 by 5.2 inches at `dpi` (300 for print). The exact amounts are made into floats for drawing, here
    alone. Where no peak above zero came before, there is no drawdown to draw. Raises `InvalidInput` if there are no
    points or no such zone, and ModuleNotFoundError without matplotlib: `pip install "alpha-panda-core[plot]"`.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'plots need matplotlib, which is not installed: pip install "alpha-panda-core[plot]"', name=error.name
        ) from None

    if not points:
        raise InvalidInput("there are no points to draw", column="points")
    zone_of(zone)
    figure = Figure(figsize=_SIZE, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, hspace=0.02), dpi=dpi)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.4))
    times: Any = [point.snapshot_time for point in points]
    _equity(upper, times, [float(point.equity) for point in points], currency)
    _drawdown(lower, times, _fractions(points), zone)
    _times(lower, points[0].snapshot_time, points[-1].snapshot_time, zone)
    figure.suptitle(_wrapped(title), fontsize=_LETTERS + 1, fontweight="bold", parse_math=False)
    drawn = io.BytesIO()
    with warnings.catch_warnings():
        # A name may hold letters that the font lacks; they are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(drawn, format=format, dpi=dpi, metadata=_NO_TIME[format])
    return drawn.getvalue()


def _equity(axes: Any, times: Any, values: list[float], currency: str) -> None:
    size, unit = _unit(values)
    scaled = [value / size for value in values]
    axes.plot(times, scaled, color=_LINE, linewidth=1.6, marker=_marker(values))
    axes.set_ylabel(f"Equity ({currency}{', ' + unit if unit else ''})", fontsize=_LETTERS)
    axes.yaxis.set_major_formatter(_amounts())
    if min(values) == max(values):
        room = abs(scaled[0]) * 0.01 or 1
        axes.set_ylim(scaled[0] - room, scaled[0] + room)
    _dress(axes)


def _drawdown(axes: Any, times: Any, fractions: list[float], zone: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.fill_between(times, fractions, 0, color=_DOWN, alpha=0.25, linewidth=0)
    axes.plot(times, fractions, color=_DOWN, linewidth=1.2, marker=_marker(fractions))
    deepest, at = min(
        ((value, at) for value, at in zip(fractions, times, strict=True) if value < 0), default=(0.0, None)
    )
    if at is not None:
        day = at.astimezone(ZoneInfo(zone)).date()
        axes.plot([at], [deepest], color=_DOWN, marker="v", markersize=7)
        axes.set_title(f"deepest {_percent(deepest, digits=3)} on {day}", fontsize=_SMALL, loc="right")
    axes.set_ylim(deepest * 1.2 or -0.01, 0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent_tick))
    axes.set_ylabel("Drawdown", fontsize=_LETTERS)
    axes.set_xlabel(f"Time ({zone})", fontsize=_LETTERS)
    _dress(axes)


def _times(axes: Any, first: datetime, last: datetime, zone: str) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    clock = ZoneInfo(zone)
    locator = AutoDateLocator(tz=clock, minticks=3, maxticks=6)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=clock))
    axes.xaxis.get_offset_text().set_fontsize(_SMALL)
    room = timedelta(0) if first < last else timedelta(hours=12)
    axes.set_xlim(first - room, last + room)


def _dress(axes: Any) -> None:
    axes.tick_params(labelsize=_SMALL)
    axes.grid(visible=True, color=_RULE, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _fractions(points: Sequence[EquityPoint]) -> list[float]:
    """Downwards, as it is drawn."""
    shares = (point.fraction for point in drawdown(points).points)
    return [math.nan if share is None else -share for share in shares]


def _percent(share: float, *, digits: int = 6) -> str:
    return f"{share * 100:.{digits}g}%".replace("-", "\N{MINUS SIGN}")


def _percent_tick(share: float, _place: int) -> str:
    return _percent(share)


def _unit(values: list[float]) -> tuple[float, str]:
    largest = max(map(abs, values))
    return next(((size, name) for least, size, name in _UNITS if largest >= least), (1.0, ""))


def _marker(values: list[float]) -> str | None:
    """A dot where a line would have no length to be seen by."""
    return "o" if len(values) == 1 else None


def _amounts() -> Any:
    from matplotlib.ticker import Formatter

    class Amounts(Formatter):
        """With separators, and as many decimals as tell one tick from the next."""

        decimals = 0

        def format_ticks(self, values: list[float]) -> list[str]:
            near = max((abs(value) for value in values), default=0.0) * 1e-9
            exact = (n for n in range(10) if all(abs(round(value, n) - value) <= near for value in values))
            self.decimals = next(exact, 10)
            return super().format_ticks(values)

        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:,.{self.decimals}f}".replace("-", "\N{MINUS SIGN}")

    return Amounts()


def _wrapped(title: str) -> str:
    return "\n".join(textwrap.wrap(title, _TITLE_WIDTH, max_lines=2, placeholder=" ..."))
