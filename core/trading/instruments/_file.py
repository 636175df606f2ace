"""From whatever holds a master to text that is whole: UTF-8 CSV with a header line, out of gzip or zip if need be."""

# pyright: reportUnknownMemberType=false
# The types of polars name numpy's, which is not installed.

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, TypeAlias

import polars as pl

from core.database.errors import InvalidInput
from core.trading._files import FileIntake
from core.trading.instruments._errors import (
    InstrumentFileCorrupt,
    InstrumentFileEmpty,
    InstrumentFileHeader,
    InstrumentFileMissing,
    InstrumentFileTooLarge,
    InstrumentFileTruncated,
    InstrumentFileUnreadable,
)

MAX_BYTES = 512 * 1024 * 1024
"""Unpacked; the largest master known to us, of ten exchanges, is 30 MB."""

InstrumentInput: TypeAlias = Path | str | bytes | IO[bytes] | pl.DataFrame | Sequence[Mapping[str, Any]]
"""A path, a file's content, a binary stream, a frame, or rows as a broker's client library gives them."""


def content_of(file: InstrumentInput, *, name: str) -> bytes:
    """UTF-8 CSV with a header. Blocking. Raises an `InstrumentFileError`, and `InvalidInput` for rows that are no rows."""
    match file:
        case bytes():
            return intake().unpacked(file, name=name)
        case str() | Path():
            return read_file(Path(file))
        case pl.DataFrame():
            return _from_frame(file, name)
        case Sequence():
            return _from_rows(file, name)
        case _:
            taking = intake()
            return taking.unpacked(taking.read_stream(file, name=name), name=name)


def read_file(path: Path) -> bytes:
    """The file's bytes, unpacked if they are gzip whatever its name. Blocking."""
    taking = intake()
    return taking.unpacked(taking.read(path), name=str(path))


def intake() -> FileIntake:
    """How a master is taken in."""
    return FileIntake(
        max_bytes=MAX_BYTES,
        missing=InstrumentFileMissing,
        unreadable=InstrumentFileUnreadable,
        empty=InstrumentFileEmpty,
        truncated=InstrumentFileTruncated,
        corrupt=InstrumentFileCorrupt,
        too_large=InstrumentFileTooLarge,
        header=InstrumentFileHeader,
    )


def _from_frame(frame: pl.DataFrame, name: str) -> bytes:
    if nested := [column for column, kind in frame.schema.items() if kind.is_nested()]:
        raise InvalidInput(f"file: column {nested[0]} of the frame holds lists or structures", column="file")
    if frame.is_empty():
        raise InstrumentFileEmpty(f"{name} holds no rows")
    return intake().unpacked(frame.write_csv().encode(), name=name)


def _from_rows(rows: Sequence[Mapping[str, Any]], name: str) -> bytes:
    if not rows:
        raise InstrumentFileEmpty(f"{name} holds no rows")
    if not all(isinstance(row, Mapping) for row in rows):  # pyright: ignore[reportUnnecessaryIsInstance] - a caller's
        raise InvalidInput("file: takes a list of dictionaries, a row each", column="file")
    columns = dict.fromkeys(str(column) for row in rows for column in row)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_as_text(row.get(column), column) for column in columns] for row in rows)
    try:
        return intake().unpacked(text.getvalue().encode(), name=name)
    except UnicodeEncodeError:
        raise InstrumentFileCorrupt(f"{name} holds a lone surrogate, which is no text") from None


def _as_text(value: Any, column: str) -> str:
    if value is None:
        return ""
    if isinstance(value, date):  # a datetime too
        return value.isoformat()
    if isinstance(value, str | int | float | Decimal):
        return str(value)
    raise InvalidInput(f"file: {column} holds a {type(value).__name__}", column="file")
