"""The rules that squawk lacks, about the file and about the SQL, and how to mend what it finds."""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

_PATIENCE = 60  # seconds: what waits for a lock for longer stops everybody who comes after it
_KNOWN_PACKAGES = sys.stdlib_module_names | {"alembic", "sqlalchemy"}
_EXEMPTION = re.compile(r"^[ \t]*#[ \t]*lint:[ \t]*allow[ \t]+([a-z, \t-]*?[a-z])(?:[ \t]+-[ \t]*(.*))?$", re.MULTILINE)
_BY_HAND = re.compile(r"\b(?:CREATE\s+(?:UNIQUE\s+)?|DROP\s+|RE)INDEX\b.*\bCONCURRENTLY\b", re.IGNORECASE | re.DOTALL)
_CONCURRENT = re.compile(r"^(?:CREATE (?:UNIQUE )?|DROP )INDEX CONCURRENTLY\b")
_CHANGES_ROWS = re.compile(r"^(?:UPDATE|DELETE\s+FROM)\s", re.IGNORECASE)

_MENDS = {
    "adding-field-with-default": "Give a constant default, or add the column without one and fill it in batches.",
    "adding-not-nullable-field": "Add CHECK (x IS NOT NULL) NOT VALID, validate it in the next migration, then SET NOT NULL.",
    "adding-required-field": "Add it nullable or with a constant default; make it NOT NULL once it is filled.",
    "ban-drop-column": "Release code that does not use it, then drop it: `# lint: allow ban-drop-column - since when`.",
    "ban-drop-table": "Release code that does not use it, then drop it: `# lint: allow ban-drop-table - since when`.",
    "changes-rows": "Change rows in batches outside the transaction (docs: expand and contract), or say why they are few.",
    "changing-column-type": "Add a new column, write both, fill it in batches, read it, and drop the old one a release later.",
    "concurrent-index-by-hand": "Write op.create_index or op.drop_index with postgresql_concurrently=True: it can be resumed.",
    "constraint-missing-not-valid": "Add it with postgresql_not_valid=True; VALIDATE CONSTRAINT in the next migration.",
    "disallowed-unique-constraint": "Build a unique index concurrently, then ADD CONSTRAINT ... UNIQUE USING INDEX.",
    "exemption-unused": "Delete it.",
    "exemption-without-reason": "Write `# lint: allow RULE - reason`.",
    "foreign-import": "Copy what is needed into the file: a migration is frozen, what it imports is not.",
    "lock-timeout-off": f"Declare lock_timeout in seconds, above 0 and up to {_PATIENCE}.",
    "no-downgrade": "Write it; if nothing leads back, raise an error that says so and allow this rule.",
    "not-renderable": "Decide without reading the database, or say why it must.",
    "not-written": "Write it, or delete the file.",
    "renaming-column": "Add a new column, write both, fill it in batches, read it, and drop the old one a release later.",
    "renaming-table": "Make a view of the old name in the same transaction, and drop it a release later.",
    "require-concurrent-index-creation": "Say postgresql_concurrently=True in op.create_index, in a migration of its own.",
    "require-concurrent-index-deletion": "Say postgresql_concurrently=True in op.drop_index, in a migration of its own.",
    "work-before-concurrent-index": "Put the index into a migration of its own, or before everything else in this one.",
}


@dataclass(frozen=True, slots=True)
class Complaint:
    """What a rule says, before exemptions."""

    rule: str
    message: str
    mend: str = ""
    file_line: int | None = None
    sql_line: int | None = None


@dataclass(frozen=True, slots=True)
class Exemption:
    """A line `# lint: allow RULE, RULE - reason`."""

    rules: frozenset[str]
    reason: str
    line: int


def mend_of(complaint: Complaint) -> str:
    """In the words of a migration file where we have them, else squawk's."""
    return _MENDS.get(complaint.rule) or complaint.mend or f"https://squawkhq.com/docs/{complaint.rule}"


def exemptions(source: str) -> tuple[Exemption, ...]:
    return tuple(
        Exemption(
            rules=frozenset(re.findall(r"[a-z][a-z-]*", found[1])),
            reason=(found[2] or "").strip(),
            line=source.count("\n", 0, found.start()) + 1,
        )
        for found in _EXEMPTION.finditer(source)
    )


def about_file(source: str) -> Iterator[Complaint]:
    """What the Python of a migration shows."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for name in _imported(node):
            if name.partition(".")[0] not in _KNOWN_PACKAGES:
                message = f"It imports {name}, which will not stay as it is."
                yield Complaint("foreign-import", message, file_line=getattr(node, "lineno", None))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _BY_HAND.search(node.value):
            message = "A concurrent index written as SQL cannot be resumed after an interruption."
            yield Complaint("concurrent-index-by-hand", message, file_line=node.lineno)
    yield from _about_functions(tree)
    yield from _about_limits(tree)


def about_sql(sql: str) -> Iterator[Complaint]:
    """What the SQL of an upgrade shows, statement by statement."""
    inside, worked = False, False
    created: set[str] = set()
    for line, statement in _statements(sql):
        word = statement.split(maxsplit=1)[0].upper().rstrip(";")
        if word in ("BEGIN", "COMMIT"):
            inside = word == "BEGIN"
        elif _CONCURRENT.match(statement):
            if worked:
                message = "What stands before it is committed without the stamp, and would be done again."
                yield Complaint("work-before-concurrent-index", message, sql_line=line)
        elif word not in ("SET", "RESET"):
            worked = worked or inside
            made = re.match(r'CREATE TABLE (?:IF NOT EXISTS )?([\w".]+)', statement)
            created |= {made[1]} if made else set()
            changed = re.match(r'(?:UPDATE|DELETE\s+FROM)\s+(?:ONLY\s+)?([\w".]+)', statement, re.IGNORECASE)
            if _CHANGES_ROWS.match(statement) and not (changed and changed[1] in created):
                yield Complaint("changes-rows", "It locks every row that it changes until it ends.", sql_line=line)


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [item.name for item in node.names]
    if isinstance(node, ast.ImportFrom):
        return ["." * node.level + (node.module or "")]
    return []


def _about_functions(tree: ast.Module) -> Iterator[Complaint]:
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for name in ("upgrade", "downgrade"):
        function = functions.get(name)
        line = function.lineno if function else None
        if function is not None and _is_unwritten(function.body):
            yield Complaint("not-written", f"{name}() is not written yet.", file_line=line)
        elif name == "downgrade" and (function is None or _is_empty(function.body)):
            yield Complaint("no-downgrade", "Nothing takes this migration back.", file_line=line)


def _is_empty(body: list[ast.stmt]) -> bool:
    return all(isinstance(node, ast.Pass) or _is_constant(node) for node in body)


def _is_unwritten(body: list[ast.stmt]) -> bool:
    last = body[-1]
    if not isinstance(last, ast.Raise) or not all(
        isinstance(node, ast.Import) or _is_constant(node) for node in body[:-1]
    ):
        return False
    return last.exc is not None and "NotImplementedError" in ast.unparse(last.exc)


def _is_constant(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _about_limits(tree: ast.Module) -> Iterator[Complaint]:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not any(isinstance(target, ast.Name) and target.id == "lock_timeout" for target in targets):
            continue
        value = getattr(node, "value", None)
        seconds = value.value if isinstance(value, ast.Constant) else None
        if isinstance(seconds, int | float) and not 0 < seconds <= _PATIENCE:
            message = "While a statement waits for a lock, all who come after it wait too."
            yield Complaint("lock-timeout-off", message, file_line=node.lineno)


def _statements(sql: str) -> Iterator[tuple[int, str]]:
    """The statements with the line each begins on, as Alembic writes them: each ends a line with a semicolon."""
    start, collected = 0, list[str]()
    for number, line in enumerate(sql.splitlines(), start=1):
        if not collected and (not line.strip() or line.lstrip().startswith("--")):
            continue
        start = start if collected else number
        collected.append(line)
        if line.rstrip().endswith(";"):
            yield start, "\n".join(collected).strip()
            collected = []
    if collected:
        yield start, "\n".join(collected).strip()
