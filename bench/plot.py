"""The results as one picture: a panel per work, a bar per entrant, a mark where a goal lies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.measure import Result
from bench.outcome import Line, lines

__all__ = ["draw"]

_OURS, _LIMIT, _OTHERS, _GOAL = "#1b7f5c", "#333333", "#9aa5b1", "#c0392b"
_BACKGROUND = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}


def draw(results: Sequence[Result], headline: str, path: Path) -> None:
    """Write a PNG; ModuleNotFoundError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [0.8 + 0.28 * len(result.seconds) for result in results]
    figure = Figure(figsize=(9, sum(heights) + 0.8), layout="constrained")
    figure.suptitle(headline, fontsize=8)
    panels: Any = figure.subplots(len(results), 1, squeeze=False, height_ratios=heights)
    for panel, result in zip(panels[:, 0], results, strict=True):
        _panel(panel, result)
    FigureCanvasAgg(figure).print_png(path)


def _panel(axes: Any, result: Result) -> None:
    rows = lines(result)
    places = range(len(rows))
    middles = [row.ratio.median for row in rows]
    whiskers = [
        [row.ratio.median - row.ratio.first for row in rows],
        [row.ratio.third - row.ratio.median for row in rows],
    ]
    axes.barh(
        places, middles, xerr=whiskers, color=[_colour(row, result) for row in rows], height=0.7, ecolor="#555555"
    )
    for place, row in zip(places, rows, strict=True):
        axes.annotate(f" {row.ratio.median:.2f}", (row.ratio.third, place), va="center", fontsize=7, bbox=_BACKGROUND)
        for goal in result.work.goals:
            if goal.entrant == row.name and goal.against == result.work.limit and goal.at_most is not None:
                axes.plot([goal.at_most, goal.at_most], [place - 0.45, place + 0.45], color=_GOAL, linewidth=2)
    axes.set_yticks(list(places), [row.name for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_title(
        f"{result.work.name}: {result.work.title} (x {result.work.limit}; red: goal)", fontsize=9, loc="left"
    )
    axes.tick_params(axis="x", labelsize=7)


def _colour(row: Line, result: Result) -> str:
    if row.name.startswith("Alpha Panda"):
        return _OURS
    return _LIMIT if row.name == result.work.limit else _OTHERS
