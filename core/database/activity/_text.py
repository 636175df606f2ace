"""A plan as text: a tree of bounded width."""

import textwrap
from dataclasses import replace
from itertools import groupby

from core.database.activity._nodes import PlanNode
from core.database.monitoring import without_literals

_SHOWN_ALIKE = 2
_NARROWEST = 24


def plan_lines(root: PlanNode, width: int, *, literals: bool = True) -> list[str]:
    """The tree with rows and cost in columns; of many alike, the partitions of a table say, two are shown."""
    lines = [f"{'rows':>11}  {'cost':>11}  step"]
    _add(root if literals else _blanked(root), lines, width, first="", rest="")
    return [line.rstrip() for line in lines]


def _blanked(node: PlanNode) -> PlanNode:
    conditions = tuple((name, without_literals(value)) for name, value in node.conditions)
    return replace(node, conditions=conditions, children=tuple(map(_blanked, node.children)))


def _add(node: PlanNode, lines: list[str], width: int, *, first: str, rest: str) -> None:
    figures = f"{_figure(node.rows)}  {_figure(node.total_cost)}  "
    _wrap(lines, width, figures + first, " " * len(figures) + rest, node.title)
    below = " " * len(figures) + rest + ("│ " if node.children else "  ")
    for name, value in node.conditions:
        _wrap(lines, width, f"{below}{name}: ", f"{below}  ", value)
    shown = _shown(node.children)
    for at, child in enumerate(shown):
        edge, space = ("└ ", "  ") if at == len(shown) - 1 else ("├ ", "│ ")
        if isinstance(child, PlanNode):
            _add(child, lines, width, first=rest + edge, rest=rest + space)
        else:
            rows, cost = sum(one.rows for one in child), sum(one.total_cost for one in child)
            lines.append(f"{_figure(rows)}  {_figure(cost)}  {rest}{edge}{len(child)} more {child[0].kind}s")


def _shown(children: tuple[PlanNode, ...]) -> list[PlanNode | list[PlanNode]]:
    """The children, those alike beyond the first two in one list."""
    shown: list[PlanNode | list[PlanNode]] = []
    for kind, group in groupby(children, key=lambda node: (node.kind, node.relation is None)):
        members = list(group)
        if len(members) <= _SHOWN_ALIKE + 1 or kind[1]:
            shown += members
        else:
            shown += [*members[:_SHOWN_ALIKE], members[_SHOWN_ALIKE:]]
    return shown


def _wrap(lines: list[str], width: int, first: str, rest: str, text: str) -> None:
    """Broken between words only; a deep tree or a long name may go beyond the width rather than be torn."""
    room = max(width, len(rest) + _NARROWEST)
    lines += textwrap.wrap(
        text, room, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    ) or [first]


def _figure(value: float) -> str:
    text = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.2f}"
    return f"{text if len(text) <= 11 else f'{value:.2e}':>11}"
