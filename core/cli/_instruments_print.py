"""Instruments and reports as rows of text and as JSON."""

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from core.cli._failure import USAGE, CommandError
from core.cli._output import WIDTH, Output

if TYPE_CHECKING:
    from core.trading.instruments import RejectedRow

SHOWN = 10
"""Rejected rows that people are shown; JSON has them all."""

_COUNTS = (
    ("rows", ""),
    ("added", ""),
    ("changed", ""),
    ("attributes_changed", "the broker's other columns alone"),
    ("reactivated", "back after an absence"),
    ("unchanged", ""),
    ("duplicates", "equal to an earlier row"),
)
_SPOKEN = (
    (re.compile(r" \(allow_shrink=True\)"), ""),
    (re.compile(r"`format`"), "--format"),
    (re.compile(r"source='([^']*)'"), r"--source \1"),
    (re.compile(r"Give a mapping"), "Give a --mapping"),
)
"""Arguments in the hints of the library, and what they are called here."""
COLUMNS = ("token", "instrument", "type", "expiry", "strike", "lot", "source")


@contextmanager
def hints() -> Generator[None]:
    """Errors about files say options where they say arguments."""
    from core.trading.instruments import InstrumentFileError

    try:
        yield
    except InstrumentFileError as error:
        for argument, option in _SPOKEN:
            error.hint = argument.sub(option, error.hint or "") or None
        raise


def print_folded(out: Output, text: str, *, indent: str = "") -> None:
    """In lines of at most 80 columns, broken behind a blank or a slash; further ones two columns to the right."""
    line = indent
    for piece in re.findall(r"[^ /]*[ /]?", text):
        if line.strip() and len(line) + len(piece.rstrip()) > WIDTH:
            out.line(line.rstrip())
            line = f"{indent}  "
        line += piece
    out.line(line.rstrip())


def as_json(value: Any) -> dict[str, Any]:
    """A report, or a row of the database, with its fields by their names."""
    from dataclasses import asdict, is_dataclass

    from sqlalchemy import inspect

    if is_dataclass(value) and not isinstance(value, type):
        found = {name: _plain(item) for name, item in asdict(value).items()}
        if "seconds" in found:
            found["seconds"] = {stage: round(seconds, 4) for stage, seconds in found["seconds"].items()}
        return found
    names: list[str] = [column.key for column in inspect(value).mapper.column_attrs]
    return {name: _plain(getattr(value, name)) for name in names}


def shown_date(text: str) -> date:
    """Of an option. Raises CommandError."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise CommandError(f"{text!r} is no date", hint="Write it as 2026-08-25.", code=USAGE) from None


def shown_price(text: str) -> Decimal:
    """Of an option. Raises CommandError."""
    if not re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,10})?", text):
        raise CommandError(f"{text!r} is no price", hint="Write it as 25000 or 92.75.", code=USAGE)
    return Decimal(text)


def print_counts(out: Output, report: Any, more: Sequence[tuple[str, str]]) -> None:
    """The figures of a report, those that are not nought."""
    rows: list[tuple[str, str, str]] = []
    notes = {"changed": f"{report.renamed:,} of them renamed"} if report.renamed else {}
    if report.repriced:
        notes["unchanged"] = f"{report.repriced:,} of them with another last price"
    for name, meaning in (*_COUNTS, *more):
        number = getattr(report, name, 0)
        if not number and name not in ("rows", "added", "changed", *(item for item, _ in more)):
            continue
        rows.append((f"  {name}", f"{number:>9,}", notes.get(name, meaning)))
    out.table([*rows, ("  rejected", f"{len(report.rejected):>9,}", "")])


def print_rejected(out: Output, rejected: Sequence["RejectedRow"]) -> None:
    """The first rejected rows, and how many more there are."""
    if not rejected:
        return
    out.line("  rejected rows:")
    for row in rejected[:SHOWN]:
        print_folded(out, f"line {row.line}, {row.field}: {row.reason}", indent="    ")
    if len(rejected) > SHOWN:
        out.line(f"    and {len(rejected) - SHOWN:,} more, all of them with --json")


def row_of(item: Any) -> tuple[str, ...]:
    """An instrument under `COLUMNS`."""
    return (
        str(item.instrument_token),
        f"{item.exchange}:{item.trading_symbol}",
        item.option_type or item.instrument_type,
        str(item.expiry or ""),
        number(item.strike),
        str(item.lot_size if item.lot_size is not None else ""),
        item.source if item.is_active else f"{item.source}, gone",
    )


def number(value: Decimal | None) -> str:
    """Without the zeros that the column pads it with; exact."""
    if value is None:
        return ""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if dump is not None else value
