"""A result as text, at most 100 columns wide."""

from bench.measure import Goal, Result
from bench.outcome import Line, Verdict, lines, verdicts
from bench.samples import Spread

__all__ = ["render"]

_SCALES = ((10e-3, 1e6, "µs"), (10.0, 1e3, "ms"))
_WIDTHS = (29, 8, 17, 9, 15)


def render(result: Result) -> str:
    """The table of one work: who, seconds per unit, ratio to the limit with its quartiles, goals, and who was missing."""
    work, rows, found = result.work, lines(result), verdicts(result)
    factor, unit = _scale(min(row.cost.median for row in rows))
    rounds = len(result.seconds[work.limit])
    head = f"{rounds} rounds, interleaved, {result.units:,} a sample; ratios are medians of the rounds' ratios"
    said = [
        f"{work.name}: {work.title}",
        head,
        "",
        _columns("", f"{unit} each", "min - max", "x limit", "quartiles", "goal"),
        *(_row(row, factor, _goal_cell(row.name, found)) for row in rows),
        "",
        *(["Ratios with their 95 % intervals; unsure where a bound lies inside:"] if found else []),
        *(_sentence(verdict) for verdict in found),
        *(f"{name}: {why}" for name, why in result.absent.items()),
    ]
    return "\n".join(line.rstrip() for line in said).rstrip() + "\n"


def _row(line: Line, factor: float, goal: str) -> str:
    cost = line.cost
    extremes = f"{_figure(cost.low * factor)} - {_figure(cost.high * factor)}"
    return _columns(
        line.name, _figure(cost.median * factor), extremes, f"{line.ratio.median:.2f}", _quartiles(line.ratio), goal
    )


def _figure(value: float) -> str:
    return f"{value:.1f}" if value < 1_000 else f"{value:,.0f}"


def _columns(name: str, *cells: str) -> str:
    """The name and the goal begin their columns, the figures end theirs."""
    first, *rest = _WIDTHS
    *figures, goal = cells
    middle = "".join(f"{cell:>{width}}" for cell, width in zip(figures, rest, strict=True))
    return f"{name:{first}}{middle}  {goal}"


def _goal_cell(name: str, found: tuple[Verdict, ...]) -> str:
    return " ".join(
        f"<= {verdict.goal.at_most:g} {'met' if verdict.met else 'MISSED'}"
        for verdict in found
        if verdict.goal.entrant == name and verdict.met is not None
    )


def _sentence(verdict: Verdict) -> str:
    if verdict.ratio is None or verdict.between is None:
        return f"{_demand(verdict.goal)}: not measured"
    low, high = verdict.between
    end = {True: ": met", False: ": MISSED", None: ""}[verdict.met]
    doubt = "" if verdict.met is None or verdict.sure else ", unsure"
    return f"{_demand(verdict.goal)}: {verdict.ratio:.3f} ({low:.3f} - {high:.3f}){end}{doubt}"


def _demand(goal: Goal) -> str:
    return f"{goal.entrant}{', ' if goal.at_most is None else f' <= {goal.at_most:g} '}x {goal.against}"


def _quartiles(ratio: Spread) -> str:
    return f"{ratio.first:.2f} - {ratio.third:.2f}"


def _scale(seconds: float) -> tuple[float, str]:
    for below, factor, unit in _SCALES:
        if seconds < below:
            return factor, unit
    return 1.0, "s"
