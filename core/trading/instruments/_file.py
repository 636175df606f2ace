"""From whatever holds a master to text that is whole: UTF-8 CSV with a header line, out of gzip or zip if need be."""

# pyright: reportUnknownMemberType=false
# The types of polars name numpy's, which is not installed.

import csv
import io
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, TypeAlias

import polars as pl

from core.database.errors import InvalidInput
from core.trading.instruments._errors import (
    InstrumentFileCorrupt,
    InstrumentFileEmpty,
    InstrumentFileMissing,
    InstrumentFileTooLarge,
    InstrumentFileTruncated,
    InstrumentFileUnreadable,
)

MAX_BYTES = 512 * 1024 * 1024
"""Unpacked; the largest master known to us, of ten exchanges, is 30 MB."""

InstrumentInput: TypeAlias = Path | str | bytes | IO[bytes] | pl.DataFrame | Sequence[Mapping[str, Any]]
"""A path, a file's content, a binary stream, a frame, or rows as a broker's client library gives them."""

_GZIP = b"\x1f\x8b"
_ZIP = b"PK\x03\x04"
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_SMALL = 16 * 1024 * 1024
"""Up to this size nothing is a bomb."""
_MAX_RATIO = 100
"""Masters pack to a tenth; beyond this ratio a packed file is made to fill the memory."""
_PIECE = 1024 * 1024


def content_of(file: InstrumentInput, *, name: str) -> bytes:
    """UTF-8 CSV with a header. Blocking. Raises an `InstrumentFileError`, and `InvalidInput` for rows that are no rows."""
    match file:
        case bytes():
            return unpacked(file, name=name)
        case str() | Path():
            return read_file(Path(file))
        case pl.DataFrame():
            return _from_frame(file, name)
        case Sequence():
            return _from_rows(file, name)
        case _:
            return unpacked(_from_stream(file, name), name=name)


def read_file(path: Path) -> bytes:
    """The file's bytes, unpacked if they are gzip whatever its name. Blocking."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise InstrumentFileUnreadable(f"{path} is {kind}")
        if status.st_size > MAX_BYTES:
            raise InstrumentFileTooLarge(f"{path} holds {status.st_size:,} bytes; the limit is {MAX_BYTES:,}")
        data = path.read_bytes()
    except FileNotFoundError:
        raise InstrumentFileMissing(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InstrumentFileUnreadable | InstrumentFileTooLarge):
            raise
        # A ValueError is a NUL in the path.
        raise InstrumentFileUnreadable(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return unpacked(data, name=str(path))


def unpacked(data: bytes, *, name: str) -> bytes:
    """Plain bytes as they are, gzip unpacked to its end, a byte order mark taken off."""
    if data.startswith(_GZIP):
        data = _gunzip(data, name)
    elif data.startswith(_ZIP):
        data = _unzip(data, name)
    data = data.removeprefix(_BOM)
    if data.startswith(_UTF16):
        raise InstrumentFileCorrupt(f"{name} is UTF-16 text", hint="Save it as UTF-8.")
    if not data.strip():
        raise InstrumentFileEmpty(f"{name} is empty")
    _check_text(data, name)
    return data


def _check_text(data: bytes, name: str) -> None:
    """Piece by piece, since a decoded copy of the whole may take four times its memory."""
    if data.isascii():
        return
    start = 0
    while start < len(data):
        end = data.find(b"\n", start + _PIECE) + 1 or len(data)
        try:
            data[start:end].decode()
        except UnicodeDecodeError as error:
            place = start + error.start
            line = data.count(b"\n", 0, place) + 1
            raise InstrumentFileCorrupt(f"{name} is not UTF-8 text: byte 0x{data[place]:02x} in line {line}") from None
        start = end


def _from_stream(stream: IO[bytes], name: str) -> bytes:
    try:
        data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InstrumentFileUnreadable(f"{name} cannot be read: {error.strerror or error}") from None
    if not isinstance(data, bytes):  # pyright: ignore[reportUnnecessaryIsInstance] - a text stream of a caller
        raise InvalidInput("file: the stream must be binary", hint="Open it with mode 'rb'.", column="file")
    if len(data) > MAX_BYTES:
        raise InstrumentFileTooLarge(f"{name} holds more than {MAX_BYTES:,} bytes")
    return data


def _from_frame(frame: pl.DataFrame, name: str) -> bytes:
    if nested := [column for column, kind in frame.schema.items() if kind.is_nested()]:
        raise InvalidInput(f"file: column {nested[0]} of the frame holds lists or structures", column="file")
    if frame.is_empty():
        raise InstrumentFileEmpty(f"{name} holds no rows")
    return unpacked(frame.write_csv().encode(), name=name)


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
        return unpacked(text.getvalue().encode(), name=name)
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


def _unzip(data: bytes, name: str) -> bytes:
    """The one file of a zip archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = [
                item for item in archive.infolist() if not item.is_dir() and not item.filename.startswith("__MACOSX/")
            ]
            if len(files) != 1:
                raise InstrumentFileCorrupt(f"{name} is a zip archive of {len(files)} files; it must hold one")
            if files[0].flag_bits & 1:
                raise InstrumentFileUnreadable(f"{name} is a zip archive with a password")
            with archive.open(files[0]) as member:
                return _bounded(iter(lambda: member.read(_PIECE), b""), packed=len(data), name=name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
        raise InstrumentFileCorrupt(f"{name} is a damaged zip archive, or ends in the middle") from None


def _bounded(pieces: Iterator[bytes], *, packed: int, name: str) -> bytes:
    """The pieces as one, unless they grow beyond what a master can be."""
    parts: list[bytes] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_BYTES or (size > _SMALL and size > packed * _MAX_RATIO):
            raise InstrumentFileTooLarge(
                f"{name} unpacks to more than {min(MAX_BYTES, max(_SMALL, packed * _MAX_RATIO)):,} bytes"
            )
        parts.append(piece)
    return b"".join(parts)


def _gunzip(data: bytes, name: str) -> bytes:
    return _bounded(_gzip_pieces(data, name), packed=len(data), name=name)


def _gzip_pieces(data: bytes, name: str) -> Iterator[bytes]:
    """Every member of a gzip file. zlib tells a file that ends early from one that is damaged; `gzip` does not always."""
    while data:
        unpacker = zlib.decompressobj(wbits=31)
        waiting = data
        while not unpacker.eof:
            try:
                piece = unpacker.decompress(waiting, _PIECE)
            except zlib.error:
                raise InstrumentFileCorrupt(f"{name} is a damaged gzip file") from None
            waiting = unpacker.unconsumed_tail
            if not piece and not waiting and not unpacker.eof:
                raise InstrumentFileTruncated(f"{name} is a gzip file that ends in the middle")
            yield piece
        # Some tools pad the last member with zeros.
        data = unpacker.unused_data.lstrip(b"\x00")


def header_of(data: bytes) -> tuple[str, ...]:
    """The column names of the first line, in order."""
    first = data.partition(b"\n")[0].decode().rstrip("\r")
    return tuple(name.strip() for row in csv.reader([first]) for name in row)
