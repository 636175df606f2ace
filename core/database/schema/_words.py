"""Two catalogs apart, in words that a DBA understands, each with the statement that mends it where there is one."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from sqlalchemy.dialects import postgresql

from core.database.schema._catalog import Catalog, CatalogEntry

_quote = postgresql.dialect().identifier_preparer.quote
Severity = Literal["drift", "note"]

_COLUMN = re.compile(
    r"(?P<type>.*?) (?P<null>not null|null)(?: default (?P<default>.*?))?(?P<rest> identity .*)?", re.DOTALL
)
_INVALID = re.compile(r"(, (?:in|not )(?:valid|ready))+")
_SWITCHED = re.compile(r", (disabled|on replicas|always)$")
# What may stand beside our tables without changing how they work.
_OF_OTHERS = frozenset({"function", "view", "materialized view", "sequence", "enum", "domain", "statistics"})


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    """One thing that tells the live database from the migrations."""

    severity: Severity
    """`drift` is what must not be; a `note` changes nothing about how the application works."""
    kind: str
    """table, column, constraint, index, policy, trigger, function, privileges, comment, partition, ..."""
    name: str
    """With the table's name before a dot, where it belongs to one."""
    says: str
    """A sentence without its full stop."""
    mend: str | None = None
    """A statement, or what to do; None where there is no harm or no one answer."""

    def __str__(self) -> str:
        return f"{self.says}: {self.mend}" if self.mend else self.says


def compare(live: Catalog, head: Catalog, *, name: str = "head") -> tuple[Difference, ...]:
    """What tells `live` from `head`, sorted, drift before notes. `name` is what `head` is called."""
    here = {(entry.kind, entry.name): entry for entry in live.entries}
    there = {(entry.kind, entry.name): entry for entry in head.entries}
    ours = {entry.table for entry in head.entries if entry.table}
    absent = ours - {entry.table for entry in live.entries if entry.kind == "table"}
    found: list[Difference] = []
    for key in here.keys() | there.keys():
        mine, theirs = here.get(key), there.get(key)
        if mine is not None and theirs is None:
            found.extend(_extra(mine, ours, name))
        elif theirs is not None and mine is None:
            alone = (
                not theirs.table and absent == ours
            )  # a function of an empty database, of which the tables say enough
            if theirs.kind == "table" or not (alone or theirs.table in absent):
                found.append(_missing(theirs, name))
        elif mine is not None and theirs is not None and mine != theirs:
            found.append(_changed(mine, theirs, name))
    return tuple(sorted(found))


def _extra(entry: CatalogEntry, ours: set[str], head: str) -> list[Difference]:
    if entry.kind == "table" and entry.table not in ours:
        return [_note(entry, f"table {entry.name} is not one of this project's")]
    if entry.kind in _OF_OTHERS:
        return [_note(entry, f"{entry.kind} {entry.name} is not one of this project's")]
    if entry.table not in ours:
        return []  # what belongs to a table of others
    if entry.kind == "privileges":
        return [_note(entry, f"privileges {entry.name} are not {head}'s: {entry.definition}")]
    if entry.kind == "comment":
        return [_note(entry, f"{entry.kind} {entry.name} is not {head}'s")]
    says = f"{entry.kind} {_bare(entry)} of table {entry.table} is not in {head} ({entry.definition})"
    return [Difference("drift", entry.kind, entry.name, says, _drop(entry))]


def _missing(entry: CatalogEntry, head: str) -> Difference:
    if entry.kind == "comment":
        return _note(entry, f"comment {entry.name} is missing")
    if entry.kind == "table":
        return Difference("drift", "table", entry.name, f"table {entry.name} is missing", "restore it from a backup")
    if entry.kind == "column":
        says = f"column {entry.name} is missing, {head} has {entry.definition}"
        return Difference("drift", "column", entry.name, says, _add_column(entry))
    where = f" of table {entry.table}" if entry.table else ""
    verb = "are" if entry.kind == "privileges" else "is"
    return Difference(
        "drift", entry.kind, entry.name, f"{entry.kind} {_bare(entry)}{where} {verb} missing", _make(entry)
    )


def _changed(mine: CatalogEntry, theirs: CatalogEntry, head: str) -> Difference:
    special: Mapping[str, Callable[[CatalogEntry, CatalogEntry, str], Difference | None]] = {
        "column": _column,
        "constraint": _constraint,
        "index": _index,
        "trigger": _trigger,
        "privileges": _privileges,
        "comment": lambda entry, _, __: _note(entry, f"comment {entry.name} differs"),
    }
    judge = special.get(mine.kind)
    found = judge(mine, theirs, head) if judge else None
    if found is not None:
        return found
    where = f" of table {mine.table}" if mine.table and mine.kind != "table" else ""
    says = f"{mine.kind} {_bare(mine)}{where} is {mine.definition}, {head} has {theirs.definition}"
    return Difference("drift", mine.kind, mine.name, says)


def _column(mine: CatalogEntry, theirs: CatalogEntry, head: str) -> Difference | None:
    here, there = _COLUMN.fullmatch(mine.definition), _COLUMN.fullmatch(theirs.definition)
    if here is None or there is None:
        return None
    alter = f"ALTER TABLE {_quote(mine.table)} ALTER COLUMN {_quote(_bare(mine))}"
    apart = [part for part in ("type", "null", "default", "rest") if here[part] != there[part]]
    if apart == ["default"]:
        has = f"has the default {here['default']}" if here["default"] else "has no default"
        wants = f"{head} has {there['default']}" if there["default"] else f"{head} has none"
        mend = f"{alter} SET DEFAULT {there['default']}" if there["default"] else f"{alter} DROP DEFAULT"
        return Difference("drift", "column", mine.name, f"column {mine.name} {has}, {wants}", mend)
    if apart == ["null"]:
        states = {"not null": "is NOT NULL", "null": "may be NULL"}
        says = f"column {mine.name} {states[here['null']]}, in {head} it {states[there['null']]}"
        return Difference(
            "drift", "column", mine.name, says, f"{alter} {'SET' if there['null'] != 'null' else 'DROP'} NOT NULL"
        )
    shown = (here["type"], there["type"]) if apart == ["type"] else (mine.definition, theirs.definition)
    mend = f"{alter} TYPE {there['type'].replace('collate', 'COLLATE')}" if apart == ["type"] else None
    return Difference("drift", "column", mine.name, f"column {mine.name} is {shown[0]}, {head} has {shown[1]}", mend)


def _constraint(mine: CatalogEntry, theirs: CatalogEntry, head: str) -> Difference:
    name, alter, named = _bare(mine), f"ALTER TABLE {_quote(mine.table)}", _quote(_bare(mine))
    if mine.definition == f"{theirs.definition} NOT VALID":
        says = f"constraint {name} of table {mine.table} is NOT VALID, so rows from before it are unchecked"
        return Difference("drift", "constraint", mine.name, says, f"{alter} VALIDATE CONSTRAINT {named}")
    says = f"constraint {name} of table {mine.table} is {mine.definition}, {head} has {theirs.definition}"
    mend = f"{alter} DROP CONSTRAINT {named}, ADD CONSTRAINT {named} {theirs.definition}"
    return Difference("drift", "constraint", mine.name, says, mend)


def _index(mine: CatalogEntry, theirs: CatalogEntry, head: str) -> Difference:
    name = _bare(mine)
    if _INVALID.search(mine.definition) and _INVALID.sub("", mine.definition) == theirs.definition:
        says = f"index {name} of table {mine.table} is INVALID: it was not built to its end and no query uses it"
    else:
        says = f"index {name} of table {mine.table} is {mine.definition}, {head} has {theirs.definition}"
    return Difference("drift", "index", mine.name, says, f"DROP INDEX {_quote(name)}; {theirs.definition}")


def _trigger(mine: CatalogEntry, theirs: CatalogEntry, head: str) -> Difference | None:
    switched = _SWITCHED.search(mine.definition)
    if switched is None or _SWITCHED.sub("", mine.definition) != _SWITCHED.sub("", theirs.definition):
        return None
    fires = {"disabled": "is disabled", "on replicas": "fires on replicas only", "always": "fires on replicas too"}
    says = f"trigger {_bare(mine)} of table {mine.table} {fires[switched[1]]}"
    return Difference(
        "drift", "trigger", mine.name, says, f"ALTER TABLE {_quote(mine.table)} ENABLE TRIGGER {_quote(_bare(mine))}"
    )


def _privileges(mine: CatalogEntry, theirs: CatalogEntry, head: str) -> Difference:
    lacking = sorted(set(theirs.definition.split(", ")) - set(mine.definition.split(", ")))
    if not lacking:
        return _note(mine, f"privileges {mine.name} are more than {head}'s: {mine.definition}")
    says = f"privileges {mine.name} lack {', '.join(lacking)}"
    return Difference("drift", "privileges", mine.name, says, _make(theirs))


def _note(entry: CatalogEntry, says: str) -> Difference:
    return Difference("note", entry.kind, entry.name, says)


def _bare(entry: CatalogEntry) -> str:
    """The name without its table."""
    return entry.name.removeprefix(f"{entry.table}.") if entry.table and entry.kind != "privileges" else entry.name


def _add_column(entry: CatalogEntry) -> str:
    shape = (
        re.sub(r" null\b(?! default)", "", entry.definition)
        if " not null" not in entry.definition
        else entry.definition
    )
    return f"ALTER TABLE {_quote(entry.table)} ADD COLUMN {_quote(_bare(entry))} {shape}"


def _make(entry: CatalogEntry) -> str:
    """The statement that makes what is missing; its definition where that is no statement."""
    if entry.kind == "constraint":
        return f"ALTER TABLE {_quote(entry.table)} ADD CONSTRAINT {_quote(_bare(entry))} {entry.definition}"
    if entry.kind == "privileges":
        place, _, role = entry.name.partition(" for ")
        return f"GRANT {entry.definition} {place} TO {role}"
    return entry.definition


def _drop(entry: CatalogEntry) -> str:
    name, table = _quote(_bare(entry)), _quote(entry.table)
    if entry.kind in ("column", "constraint"):
        return f"ALTER TABLE {table} DROP {entry.kind.upper()} {name}, if nothing needs it"
    if entry.kind == "index":
        return f"DROP INDEX {name}, if no query needs it"
    return f"DROP {entry.kind.upper()} {name} ON {table}, if nothing needs it"
