# ruff: noqa: INP001
"""The pages of docs/reference, from the docstrings: one for each room that has public names.

`python docs/reference.py` writes them, `--check` says which are stale. The code is read, never imported.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "reference"
PRIVATE = ("core.cli", "core.demo")  # the command line documents itself; the demo is for looking at
WIDTH = 100
LONGEST_VALUE = 160
HIDDEN = {"model_config", "impl", "cache_ok"}


def pages() -> dict[str, str]:
    """The text of each page by its file's name."""
    package = griffe.load("core", search_paths=[ROOT], resolve_aliases=True, resolve_external=False)
    assert isinstance(package, griffe.Module)
    found = {room.path: room for room in rooms(package)}
    texts = {f"{path}.md": page(room) for path, room in sorted(found.items())}
    return {"README.md": index(found)} | texts


def rooms(module: griffe.Module) -> Iterator[griffe.Module]:
    """Modules that declare `__all__`, the private ones aside."""
    if module.path.startswith(PRIVATE):
        return
    if module.exports is not None:
        yield module
    for name, child in module.members.items():
        if isinstance(child, griffe.Module) and not name.startswith("_") and name != "migrations":
            yield from rooms(child)


def index(found: dict[str, griffe.Module]) -> str:
    lines = ["# Reference", "", "Made from the docstrings by `make docs`; do not edit.", "", "| room | |", "|---|---|"]
    lines += [f"| [{path}]({path}.md) | {summary(room)} |" for path, room in sorted(found.items())]
    return "\n".join(lines) + "\n"


def summary(thing: griffe.Object) -> str:
    """The first sentence of a docstring, on one line."""
    text = thing.docstring.value if thing.docstring else ""
    first = text.split("\n\n", 1)[0].replace("\n", " ")
    return re.split(r"(?<=[.?!])\s", first)[0].removesuffix(":").replace("|", "\\|")


def page(room: griffe.Module) -> str:
    blocks = [f"# {room.path}", text_of(room)]
    for name in sorted(room.exports or (), key=lambda name: str(name).lower()):
        member = room.members[str(name)]
        try:
            target = member.final_target if isinstance(member, griffe.Alias) else member
        except griffe.AliasResolutionError:  # the name of another project, passed on
            blocks.append(f"## {name}")
            continue
        blocks += entry(str(name), target)
    return "\n\n".join(block for block in blocks if block) + "\n"


def entry(name: str, thing: griffe.Object) -> Iterator[str]:
    yield f"## {name}"
    if isinstance(thing, griffe.Class):
        yield fence(class_line(name, thing))
        yield text_of(thing)
        yield from members_of(name, thing)
    elif isinstance(thing, griffe.Function):
        yield fence(function_line(name, thing))
        yield text_of(thing)
    elif isinstance(thing, griffe.Attribute):
        yield fence(attribute_line(name, thing))
        yield text_of(thing)


def members_of(name: str, cls: griffe.Class) -> Iterator[str]:
    public = [member for key, member in cls.members.items() if not key.startswith("_") and key not in HIDDEN]
    fields = [
        f"- `{as_written(attribute_line(member.name, member))}`{beside(member)}"
        for member in public
        if isinstance(member, griffe.Attribute) and is_worth_naming(member)
    ]
    yield "\n".join(fields)
    for member in public:
        if isinstance(member, griffe.Function):
            yield f"### {name}.{member.name}"
            yield fence(function_line(member.name, member))
            yield text_of(member)


def is_worth_naming(attribute: griffe.Attribute) -> bool:
    """Not what is only machinery: a wrapped method, what `__init__` keeps."""
    is_constant = re.match(r"['\"0-9\[({-]|True|False|None", str(attribute.value)) is not None
    return bool(attribute.annotation or attribute.docstring or is_constant)


def beside(attribute: griffe.Attribute) -> str:
    text = attribute.docstring.value if attribute.docstring else ""
    return " - " + text.replace("\n", " ") if text else ""


def class_line(name: str, cls: griffe.Class) -> str:
    bases = ", ".join(str(base) for base in cls.bases)
    head = f"class {name}({bases})" if bases else f"class {name}"
    start = cls.members.get("__init__")
    if not isinstance(start, griffe.Function):
        return head
    return f"{head}\n\n{call(name, start)}"


def function_line(name: str, function: griffe.Function) -> str:
    lines = [f"@{decorator.value}" for decorator in function.decorators if str(decorator.value) in SHOWN_DECORATORS]
    start = "async def" if "async" in function.labels else "def"
    result = f" -> {function.returns}" if function.returns is not None else ""
    return "\n".join([*lines, f"{start} {call(name, function)}{result}"])


SHOWN_DECORATORS = {"classmethod", "staticmethod"}


def call(name: str, function: griffe.Function) -> str:
    """The call with its parameters: on one line if it fits, else a line for each."""
    parts = list(parameters(function))
    line = f"{name}({', '.join(parts)})"
    if len(line) + len(str(function.returns or "")) + 14 <= WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + ")"


def parameters(function: griffe.Function) -> Iterator[str]:
    kind = griffe.ParameterKind
    keyword_only = False
    for item in function.parameters:
        if item.name in ("self", "cls"):
            continue
        if item.kind in (kind.keyword_only, kind.var_positional) and not keyword_only:
            keyword_only = True
            if item.kind is kind.keyword_only:
                yield "*"
        star = {kind.var_positional: "*", kind.var_keyword: "**"}.get(item.kind or kind.keyword_only, "")
        annotation = f": {item.annotation}" if item.annotation is not None else ""
        equals = " = " if annotation else "="
        default = f"{equals}{item.default}" if item.default is not None and not star else ""
        yield f"{star}{item.name}{annotation}{default}"


def attribute_line(name: str, attribute: griffe.Attribute) -> str:
    annotation = str(attribute.annotation) if attribute.annotation is not None else ""
    if column := re.fullmatch(
        r"Mapped\[(.*)\]", annotation
    ):  # what it holds; how the column is made is not the reader's
        return f"{name}: {column[1]}"
    value = str(attribute.value) if attribute.value is not None else ""
    if "property" in attribute.labels or len(value) > LONGEST_VALUE or "\n" in value:
        value = ""
    kind = f": {annotation}" if annotation and annotation != "TypeAlias" else ""
    return f"{name}{kind}{f' = {value}' if value else ''}"


def as_written(code: str) -> str:
    """With the quotes of the source: griffe writes the others."""
    return re.sub(r"'([^'\"]*)'", r'"\1"', code)


def text_of(thing: griffe.Object) -> str:
    return "\n\n".join(as_markdown(part) for part in thing.docstring.value.split("\n\n")) if thing.docstring else ""


def as_markdown(paragraph: str) -> str:
    """A paragraph as it is; one whose later lines are indented is a drawing and keeps its lines."""
    lines = paragraph.splitlines()
    if len(lines) > 1 and not lines[0].startswith(" ") and all(line.startswith("    ") for line in lines[1:]):
        return "\n".join(f"    {line}" for line in lines)
    return paragraph


def fence(code: str) -> str:
    return f"```python\n{as_written(code)}\n```"


def main() -> int:
    texts = pages()
    present = {path.name for path in PAGES.glob("*.md")}
    stale = [name for name, text in texts.items() if name not in present or (PAGES / name).read_text() != text]
    gone = sorted(present - set(texts))
    if "--check" in sys.argv[1:]:
        for name in (*stale, *gone):
            print(f"docs/reference/{name} is stale", file=sys.stderr)
        if stale or gone:
            print("make docs writes the pages anew", file=sys.stderr)
        return 1 if stale or gone else 0
    PAGES.mkdir(exist_ok=True)
    for name in stale:
        (PAGES / name).write_text(texts[name])
    for name in gone:
        (PAGES / name).unlink()
    print(f"{len(texts)} pages, {len(stale)} written, {len(gone)} removed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
