"""What a command writes: its result on stdout, everything else on stderr.

With `--json` the result is one JSON object and the words for people are left out. Colours and spinners appear on a
terminal only, and never when NO_COLOR is set. rich is imported when something is drawn with it, not before.

Names and files come from others: what is written for people is made printable, so that nothing in it steers the terminal or
looks like a line of ours. `raw` alone writes what it is given.
"""

import io
import json
import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from core.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 80
"""Columns of what is drawn into a file or pipe. Lines and tables are never cut or wrapped there."""


class OutputClosed(Exception):
    """Who read our output has gone: `panda ... | head`."""


class Output:
    """The two streams of one command. `quiet` silences notes and warnings, never results and errors."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet

    @cached_property
    def stdout(self) -> "Console":
        return _console(sys.stdout)

    @cached_property
    def stderr(self) -> "Console":
        return _console(sys.stderr)

    def data(self, result: Mapping[str, Any]) -> None:
        """The result for machines: printed with `--json`, else left out. A command calls this once."""
        if self.as_json:
            _write(as_json_text(result, indent=2, default=_plain))

    def raw(self, text: str) -> None:
        """A result for people that is meant for another program, byte for byte."""
        if not self.as_json:
            _write(text)

    def line(self, text: str = "", style: str = "") -> None:
        """A line of the result for people, never broken: it may be copied or piped."""
        if not self.as_json:
            self.stdout.print(printable(text), style=style, soft_wrap=True)

    def table(self, rows: Sequence[Sequence[str]], *, columns: Sequence[str] = ()) -> None:
        """Rows of the result for people, under `columns` if given; on a terminal long cells are folded."""
        if not self.as_json:
            shown = [[printable(cell) for cell in row] for row in rows]
            _print_table(self.stdout, shown, [printable(name) for name in columns])

    def note(self, text: str) -> None:
        """Progress and advice."""
        if not self.quiet:
            self.stderr.print(printable(text), soft_wrap=not self.stderr.is_terminal)

    def warn(self, text: str) -> None:
        if not self.quiet:
            _print_labelled(self.stderr, "warning", "yellow", text)

    def error(
        self, text: str, *, lines: Sequence[str] = (), reasons: Sequence[str] = (), hint: str | None = None
    ) -> None:
        """Always printed: what failed, in further `lines` where it takes them, why, and what to do."""
        _print_labelled(self.stderr, "error", "bold red", text, lines)
        for reason in reasons:
            _print_labelled(self.stderr, "  because", "default", reason)
        if hint:
            _print_labelled(self.stderr, "  hint", "cyan", hint)

    @contextmanager
    def status(self, text: str) -> Generator[None]:
        """A spinner with `text` while the block runs, on a terminal; nothing elsewhere."""
        if self.quiet or not self.stderr.is_terminal:
            yield
            return
        with self.stderr.status(printable(text)):
            yield


def _write(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise OutputClosed from None


def _console(stream: TextIO | None) -> "Console":
    from rich.console import Console

    class Pipe(Console):
        def on_broken_pipe(self) -> None:
            raise OutputClosed

    terminal = stream is not None and stream.isatty()
    return Pipe(
        file=stream or io.StringIO(),  # a stream that was closed before the start must not become the other one
        # NO_COLOR counts by being set to anything; by itself rich would still print bold and dim.
        color_system=None if os.environ.get("NO_COLOR") or not terminal else "auto",
        force_terminal=terminal,
        highlight=False,
        markup=False,
        emoji=False,
        width=None if terminal else WIDTH,
    )


def _print_table(console: "Console", rows: Sequence[Sequence[str]], columns: Sequence[str]) -> None:
    from rich.cells import cell_len, set_cell_size
    from rich.table import Table
    from rich.text import Text

    if console.is_terminal:
        table = Table(box=None, show_header=bool(columns), pad_edge=False, padding=(0, 2, 0, 0))
        for name in columns or [""] * max(map(len, rows), default=0):
            table.add_column(name, overflow="fold", header_style="bold")
        for row in rows:
            table.add_row(*(Text(cell, overflow="fold") for cell in row))
        console.print(table)
        return
    lines = [columns, *rows] if columns else rows
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        text = "  ".join(set_cell_size(cell, width) for cell, width in zip(line, widths, strict=True))
        console.print(text.rstrip(), soft_wrap=True)


def _print_labelled(console: "Console", label: str, style: str, text: str, more: Sequence[str] = ()) -> None:
    """`label: text`, more lines below the text; on a terminal wrapped between words."""
    from rich.padding import Padding
    from rich.text import Text

    console.print(Text.assemble((f"{label}:", style), f" {printable(text)}"), soft_wrap=not console.is_terminal)
    for line in map(printable, more):
        if console.is_terminal:
            console.print(Padding(Text(line), (0, 0, 0, 2)))
        else:
            console.print(f"  {line}", soft_wrap=True)


def as_json_text(value: Any, **options: Any) -> str:
    """JSON in ASCII alone: every control, format and line character of its texts is an escape of JSON's."""
    return json.dumps(value, **options).replace("\x7f", "\\u007f")


def _plain(value: object) -> str:
    """Exact text for what JSON has no type for; a Decimal never becomes a float."""
    if isinstance(value, Decimal | Path):
        return str(value)
    if isinstance(value, date | datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no form in JSON")
