"""From a path to text that is whole: plain or gzip, UTF-8, with a header line."""

import csv
import stat
import zlib
from pathlib import Path

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

_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"


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
    data = data.removeprefix(_BOM)
    if not data.strip():
        raise InstrumentFileEmpty(f"{name} is empty")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InstrumentFileCorrupt(
            f"{name} is not UTF-8 text: byte 0x{data[error.start]:02x} in line {line}"
        ) from None
    return data


def _gunzip(data: bytes, name: str) -> bytes:
    """Every member of a gzip file. zlib tells a file that ends early from one that is damaged; `gzip` does not always."""
    parts: list[bytes] = []
    size = 0
    while data:
        unpacker = zlib.decompressobj(wbits=31)
        try:
            part = unpacker.decompress(data, MAX_BYTES - size + 1)
        except zlib.error:
            raise InstrumentFileCorrupt(f"{name} is a damaged gzip file") from None
        parts.append(part)
        size += len(part)
        if size > MAX_BYTES:
            raise InstrumentFileTooLarge(f"{name} unpacks to more than {MAX_BYTES:,} bytes")
        if not unpacker.eof:
            raise InstrumentFileTruncated(f"{name} is a gzip file that ends in the middle")
        # Some tools pad the last member with zeros.
        data = unpacker.unused_data.lstrip(b"\x00")
    return b"".join(parts)


def header_of(data: bytes) -> tuple[str, ...]:
    """The column names of the first line, in order."""
    first = data.partition(b"\n")[0].decode().rstrip("\r")
    return tuple(name.strip() for row in csv.reader([first]) for name in row)
