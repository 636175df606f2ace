"""What strikes the eye in a plan, in plain words. An index is never promised to help: it may."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from core.database.activity._nodes import PlanNode
from core.database.activity._relations import Relation, Relations
from core.database.monitoring import without_literals

_MANY = 10_000  # rows from which reading or sorting all of them is worth a word
_LOOPS = 1_000
_FEW = 0.2  # the share of a table that an index may find faster than reading all of it
_PARTITIONS = 3
_STALE = 0.2

Kind = Literal["sequential scan", "sort", "nested loop", "partitions", "no statistics", "old statistics"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """One remark on a plan, with the table it is about where it is about one."""

    kind: Kind
    text: str
    relation: str | None


def observe(root: PlanNode, relations: Relations) -> tuple[Observation, ...]:
    """Every remark, those on how the statement runs before those on what the planner knows."""
    found: list[Observation] = []
    found += _scans(root, relations)
    for node in root.walk():
        if node.kind == "Sort":
            found += _sort(node, relations)
        elif node.kind == "Nested Loop":
            found += _loop(node)
        elif node.kind in ("Append", "Merge Append"):
            found += _partitions(node, relations)
    return tuple(dict.fromkeys([*found, *_statistics(relations)]))


def _scans(root: PlanNode, relations: Relations) -> list[Observation]:
    """A remark for each table that is read whole, its partitions taken together."""
    groups: dict[tuple[str, str | None], list[tuple[PlanNode, Relation]]] = defaultdict(list)
    for node in root.walk():
        relation = _relation(node, relations)
        if node.kind == "Seq Scan" and relation is not None:
            groups[relation.parent or relation.name, None if relation.parent else node.alias].append((node, relation))
    found: list[Observation] = []
    for (name, _), members in groups.items():
        total = sum({relation.name: max(relation.rows, node.rows) for node, relation in members}.values())
        if total < _MANY:
            continue
        kept = sum(node.rows for node, _ in members)
        node, relation = members[0]
        what = f"Seq Scan reads all of {name}, about {_count(total)} rows"
        found.append(
            Observation(kind="sequential scan", text=what + _advice(node, relation, kept, total), relation=name)
        )
    return found


def _advice(node: PlanNode, relation: Relation, kept: float, total: float) -> str:
    condition = dict(node.conditions).get("Filter")
    if condition is None:
        return ": nothing in the statement restricts it."
    keeps = f", and its filter keeps about {_count(kept)}"
    if kept > total * _FEW:
        return f"{keeps}: for such a share an index would hardly be faster."
    columns = _columns(condition, node.alias)
    if not columns:
        return f"{keeps}. What it compares is no plain column, so that only an index on that expression could help."
    indexed = [name for name, first in relation.first_columns.items() if first in columns]
    if indexed:
        return f"{keeps}. {indexed[0]} begins with a column of the filter; the planner expects less of it."
    return f"{keeps}. No index begins with {_or(columns)}; one may help."


def _sort(node: PlanNode, relations: Relations) -> list[Observation]:
    rows = max((child.rows for child in node.children), default=0)
    if rows < _MANY:
        return []
    key = without_literals(dict(node.conditions).get("Sort Key", "its key"))
    scanned = {(below.schema, below.relation) for below in node.walk() if below.relation}
    names = {relation.parent or relation.name for place, relation in relations.items() if place in scanned}
    name = names.pop() if len(names) == 1 else None
    advice = f" An index on {name} in that order may spare it." if name else ""
    text = f"Sort puts about {_count(rows)} rows in order of {key} before it gives the first.{advice}"
    return [Observation(kind="sort", text=text, relation=name)]


def _loop(node: PlanNode) -> list[Observation]:
    if len(node.children) < 2:
        return []
    outer, inner = node.children[:2]
    bottom = inner
    while bottom.kind in ("Materialize", "Memoize") and bottom.children:
        bottom = bottom.children[0]
    whole = bottom.kind == "Seq Scan"
    if outer.rows < (_LOOPS if whole else _MANY) or outer.rows * max(inner.rows, 1) < _MANY:
        return []
    how = "reads it whole each time" if whole and bottom is inner else "looks into it each time"
    text = f"Nested Loop goes to its inner side ({bottom.title}) about {_count(outer.rows)} times and {how}."
    advice = " An index on the join's column may help." if whole else ""
    return [Observation(kind="nested loop", text=text + advice, relation=bottom.relation)]


def _partitions(node: PlanNode, relations: Relations) -> list[Observation]:
    """All partitions of one table below one Append."""
    members = [
        relation for child in node.children for below in child.walk() if (relation := _relation(below, relations))
    ]
    parents = {relation.parent for relation in members}
    touched = {relation.name for relation in members}
    if len(parents) != 1 or members[0].parent is None or not _PARTITIONS < members[0].siblings <= len(touched):
        return []
    parent, keys = members[0].parent, members[0].keys
    conditions = [
        text
        for below in node.walk()
        for name, text in below.conditions
        if name in ("Index Cond", "Filter", "Recheck Cond")
    ]
    key = _or(keys) if keys else "its partition key"
    if any(re.search(rf'(?<!\w)"?{re.escape(column)}"?(?!\w)', text) for column in keys for text in conditions):
        text = (
            f"The plan names all {len(touched)} partitions of {parent}, since it serves any value; when it runs, those"
            f" that cannot match the condition on {key} are skipped."
        )
    else:
        text = f"{node.kind} may go to all {len(touched)} partitions of {parent}: nothing restricts {key}, which they are cut by."
    return [Observation(kind="partitions", text=text, relation=parent)]


def _statistics(relations: Relations) -> list[Observation]:
    unknown = sorted({relation.parent or relation.name for relation in relations.values() if relation.unknown})
    found = [
        Observation(
            kind="no statistics",
            text=f"{name} was never analyzed: every estimate about it is a guess. Run ANALYZE {name}.",
            relation=name,
        )
        for name in unknown
    ]
    for relation in relations.values():
        if not relation.unknown and relation.changed > max(relation.rows * _STALE, _MANY):
            text = f"{relation.name} has {_count(relation.changed)} rows changed since its last ANALYZE; run it again."
            found.append(Observation(kind="old statistics", text=text, relation=relation.name))
    return found


def _relation(node: PlanNode, relations: Relations) -> Relation | None:
    return relations.get((node.schema or "", node.relation or ""))


def _columns(condition: str, alias: str | None) -> list[str]:
    """Columns that the condition compares with something, as `alias.column`, a cast around them aside."""
    if alias is None:
        return []
    name = rf'(?<![\w."]){re.escape(alias)}\.("[^"]+"|\w+)'
    cast = rf"\({name}\)::[a-z ]+(?:\(\d+\))?"
    found = re.findall(rf"(?:{name}|{cast}) (?:=|<=?|>=?|~~|@>|IS NULL)", condition)
    return list(dict.fromkeys((plain or inside).strip('"') for plain, inside in found))


def _or(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _count(rows: float) -> str:
    return f"{rows:,.0f}"
