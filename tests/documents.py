"""Documents as programs: their code blocks, in order, and what these are held to."""

import ast
import contextlib
import inspect
import io
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

ROOT = Path(__file__).parents[1]

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```[ \t]*$", re.DOTALL | re.MULTILINE
)
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*$")
_FILE = re.compile(r"<!-- file: (\S+) -->\s*$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A fenced block: its language, its text, the line that its text begins on, and why it is not run, if so."""

    path: Path
    language: str
    text: str
    line: int
    output: str | None
    """What a `text` block directly below says that it prints."""
    excuse: str | None
    """The reason in `<!-- not run: ... -->` directly above."""
    file: str | None
    """The name in `<!-- file: ... -->` directly above: it is a file of an application, not a part of the program."""

    @property
    def place(self) -> str:
        return f"{self.path.name}:{self.line}"


def blocks(path: Path, language: str) -> list[Block]:
    text = path.read_text()
    found = list(_FENCE.finditer(text))
    return [
        Block(
            path=path,
            language=language,
            text=textwrap.dedent(match["text"]),
            line=text.count("\n", 0, match.start("text")) + 1,
            output=_output_below(text, match, found[number + 1 :]),
            excuse=found_above[1] if (found_above := _NOT_RUN.search(text, 0, match.start())) else None,
            file=found_above[1] if (found_above := _FILE.search(text, 0, match.start())) else None,
        )
        for number, match in enumerate(found)
        if match["language"] == language
    ]


def _output_below(text: str, match: re.Match[str], later: list[re.Match[str]]) -> str | None:
    if later and later[0]["language"] == "text" and not text[match.end() : later[0].start()].strip():
        return textwrap.dedent(later[0]["text"])
    return None


async def run_python(
    given: Iterable[Block], names: dict[str, Any], *, instead: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Run the blocks in order, with `await` as at a prompt; a failure shows the document's own line.

    `instead` maps texts of the blocks to those that are run in their place.
    """
    for block in given:
        if block.excuse is not None or block.file is not None:
            continue
        source = "\n" * (block.line - 1) + block.text
        for stated, run in instead.items():
            source = source.replace(stated, run)
        code = compile(source, str(block.path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            result = eval(code, names)
            if inspect.iscoroutine(result):
                await result
        if block.output is not None:
            assert is_like(printed.getvalue(), block.output), (
                f"{block.place} says that it prints\n{block.output}and prints\n{printed.getvalue()}"
            )


def is_like(actual: str, stated: str) -> bool:
    """Equal, where `...` stands for anything."""
    pattern = ".*".join(re.escape(part) for part in stated.strip().split("..."))
    return re.fullmatch(pattern, actual.strip(), re.DOTALL) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One line of a `console` block, what is shown below it, and the exit code that `echo $?` shows after it."""

    line: str
    place: str
    shown: str
    code: int


def commands(path: Path) -> Iterator[Command]:
    for block in blocks(path, "console"):
        if block.excuse is not None:
            continue
        parts = re.split(r"^\$ ", block.text.replace("\\\n", ""), flags=re.MULTILINE)[1:]
        for number, part in enumerate(parts):
            line, _, shown = part.partition("\n")
            following = parts[number + 1] if number + 1 < len(parts) else ""
            code = int(following.split()[-1]) if following.startswith("echo $?") else 0
            yield Command(line=line.strip(), place=block.place, shown=shown, code=code)


def labels(text: str) -> set[str]:
    """The words that lines begin with, indented ones aside."""
    return set(re.findall(r"^[A-Za-z_]+", text, re.MULTILINE))


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as code-hosting pages make them."""
    text = _FENCE.sub("", path.read_text())
    seen: dict[str, int] = {}
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+?)\s*#*$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = seen.get(anchor, 0)
        seen[anchor] = number + 1
        found.add(f"{anchor}-{number}" if number else anchor)
    return found


def links(path: Path) -> list[str]:
    """Where a document's links lead, those into the web aside."""
    text = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", path.read_text()))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]
