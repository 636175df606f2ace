"""The nodes of a plan as values."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

_CONDITIONS = (
    "Index Cond", "Recheck Cond", "TID Cond", "Hash Cond", "Merge Cond", "Join Filter", "Filter", "One-Time Filter",
    "Order By", "Sort Key", "Presorted Key", "Group Key", "Cache Key", "Conflict Arbiter Indexes", "Subplans Removed",
    "Workers Planned",
)  # fmt: skip
_AGGREGATES = {"Hashed": "HashAggregate", "Sorted": "GroupAggregate", "Mixed": "MixedAggregate"}


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanNode:
    """One step of a plan. Rows and costs are the planner's estimates, costs in its own unit."""

    kind: str
    """PostgreSQL's name: Seq Scan, Nested Loop, Sort."""
    title: str
    """The kind with what it works on, as EXPLAIN's own text has it."""
    schema: str | None
    relation: str | None
    alias: str | None
    rows: float
    startup_cost: float
    total_cost: float
    conditions: tuple[tuple[str, str], ...]
    """What it filters, joins, sorts or groups by, under PostgreSQL's names."""
    children: tuple["PlanNode", ...]

    def walk(self) -> Generator["PlanNode"]:
        """This node and all below it, from above."""
        stack: list[PlanNode] = [self]
        while stack:
            node = stack.pop()
            yield node
            stack += reversed(node.children)


def node_of(found: Mapping[str, Any]) -> PlanNode:
    """From PostgreSQL's JSON."""
    return PlanNode(
        kind=found["Node Type"],
        title=_title(found),
        schema=found.get("Schema"),
        relation=found.get("Relation Name"),
        alias=found.get("Alias"),
        rows=float(found["Plan Rows"]),
        startup_cost=float(found["Startup Cost"]),
        total_cost=float(found["Total Cost"]),
        conditions=tuple((name, _words(found[name])) for name in _CONDITIONS if found.get(name)),
        children=tuple(node_of(child) for child in found.get("Plans", ())),
    )


def _title(found: Mapping[str, Any]) -> str:
    kind: str = found["Node Type"]
    if kind == "Aggregate":
        kind = _AGGREGATES.get(found.get("Strategy", ""), kind)
        partial = found.get("Partial Mode", "Simple")
        kind = kind if partial == "Simple" else f"{partial} {kind}"
    elif kind == "ModifyTable":
        kind = found.get("Operation", kind)
    elif found.get("Join Type", "Inner") != "Inner":
        join = found["Join Type"]
        kind = f"{kind.removesuffix(' Join')} {join} Join"
    title = f"Parallel {kind}" if found.get("Parallel Aware") else kind
    if found.get("Scan Direction") == "Backward":
        title += " Backward"
    if found.get("Index Name"):
        title += f" {'on' if kind == 'Bitmap Index Scan' else 'using'} {found['Index Name']}"
    if place := _place(found):
        title += f" on {place}"
    named = found.get("Subplan Name")
    return f"{named}: {title}" if named else title


def _place(found: Mapping[str, Any]) -> str:
    name = found.get("Relation Name") or found.get("CTE Name") or found.get("Function Name")
    alias = found.get("Alias")
    if name is None:
        return alias or ""
    schema = found.get("Schema")
    full = f"{schema}.{name}" if schema not in (None, "public", "pg_catalog") else name
    return full if alias in (None, name) else f"{full} {alias}"


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
