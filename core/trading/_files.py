"""From whatever holds a table to text that is whole: UTF-8 CSV with a header line, out of gzip or zip if need be.

Blocking throughout. Each room gives the errors that its files are refused with.
"""

import csv
import io
import stat
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from core.database.errors import InvalidInput, PandaDatabaseError

_GZIP = b"\x1f\x8b"
_ZIP = b"PK\x03\x04"
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_SMALL = 16 * 1024 * 1024
"""Up to this size nothing is a bomb."""
_MAX_RATIO = 100
"""Tables pack to a tenth; beyond this ratio a packed file is made to fill the memory."""
_PIECE = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class FileIntake:
    """How files are taken in: at most `max_bytes` of them, packed and unpacked, and the error class of each refusal."""

    max_bytes: int
    missing: type[PandaDatabaseError]
    unreadable: type[PandaDatabaseError]
    empty: type[PandaDatabaseError]
    truncated: type[PandaDatabaseError]
    corrupt: type[PandaDatabaseError]
    too_large: type[PandaDatabaseError]
    header: type[PandaDatabaseError]

    def read(self, path: Path) -> bytes:
        """The bytes of a regular file as they are."""
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
                raise self.unreadable(f"{path} is {kind}")
            if status.st_size > self.max_bytes:
                raise self.too_large(f"{path} holds {status.st_size:,} bytes; the limit is {self.max_bytes:,}")
            return path.read_bytes()
        except FileNotFoundError:
            raise self.missing(f"{path} does not exist") from None
        except PandaDatabaseError:
            raise
        except (OSError, ValueError) as error:  # a ValueError is a NUL in the path
            raise self.unreadable(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None

    def read_stream(self, stream: IO[bytes], *, name: str) -> bytes:
        """All that a binary stream gives."""
        try:
            data = stream.read(self.max_bytes + 1)
        except OSError as error:
            raise self.unreadable(f"{name} cannot be read: {error.strerror or error}") from None
        if not isinstance(data, bytes):  # pyright: ignore[reportUnnecessaryIsInstance] - a text stream of a caller
            raise InvalidInput("file: the stream must be binary", hint="Open it with mode 'rb'.", column="file")
        if len(data) > self.max_bytes:
            raise self.too_large(f"{name} holds more than {self.max_bytes:,} bytes")
        return data

    def unpacked(self, data: bytes, *, name: str) -> bytes:
        """UTF-8 text: gzip and the one file of a zip archive unpacked to their ends, a byte order mark taken off."""
        if data.startswith(_GZIP):
            data = self._bounded(self._gzip_pieces(data, name), packed=len(data), name=name)
        elif data.startswith(_ZIP):
            data = self._unzip(data, name)
        data = data.removeprefix(_BOM)
        if data.startswith(_UTF16):
            raise self.corrupt(f"{name} is UTF-16 text", hint="Save it as UTF-8.")
        if not data.strip():
            raise self.empty(f"{name} is empty")
        self._check_text(data, name)
        return data

    def columns(self, data: bytes, *, name: str) -> tuple[str, ...]:
        """The column names of the first line, in order; a name may stand there once."""
        first = data.partition(b"\n")[0].decode().rstrip("\r")
        try:
            header = tuple(column.strip() for row in csv.reader([first]) for column in row)
        except csv.Error:  # a carriage return in the middle, or a name without end
            raise self.header(f"{name} has a first line that is no CSV header") from None
        named = [column for column in header if column]
        if len(set(named)) < len(named):
            raise self.header(f"{name} names a column twice in its header")
        return header

    def _check_text(self, data: bytes, name: str) -> None:
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
                raise self.corrupt(f"{name} is not UTF-8 text: byte 0x{data[place]:02x} in line {line}") from None
            start = end

    def _unzip(self, data: bytes, name: str) -> bytes:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                files = [
                    item
                    for item in archive.infolist()
                    if not item.is_dir() and not item.filename.startswith("__MACOSX/")
                ]
                if len(files) != 1:
                    raise self.corrupt(f"{name} is a zip archive of {len(files)} files; it must hold one")
                if files[0].flag_bits & 1:
                    raise self.unreadable(f"{name} is a zip archive with a password")
                with archive.open(files[0]) as member:
                    return self._bounded(iter(lambda: member.read(_PIECE), b""), packed=len(data), name=name)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
            raise self.corrupt(f"{name} is a damaged zip archive, or ends in the middle") from None

    def _bounded(self, pieces: Iterator[bytes], *, packed: int, name: str) -> bytes:
        """The pieces as one, unless they grow beyond what such a file can be."""
        parts: list[bytes] = []
        size = 0
        for piece in pieces:
            size += len(piece)
            if size > self.max_bytes or (size > _SMALL and size > packed * _MAX_RATIO):
                limit = min(self.max_bytes, max(_SMALL, packed * _MAX_RATIO))
                raise self.too_large(f"{name} unpacks to more than {limit:,} bytes")
            parts.append(piece)
        return b"".join(parts)

    def _gzip_pieces(self, data: bytes, name: str) -> Iterator[bytes]:
        """Every member of a gzip file. zlib tells a file that ends early from one that is damaged; `gzip` does not always."""
        while data:
            unpacker = zlib.decompressobj(wbits=31)
            waiting = data
            while not unpacker.eof:
                try:
                    piece = unpacker.decompress(waiting, _PIECE)
                except zlib.error:
                    raise self.corrupt(f"{name} is a damaged gzip file") from None
                waiting = unpacker.unconsumed_tail
                if not piece and not waiting and not unpacker.eof:
                    raise self.truncated(f"{name} is a gzip file that ends in the middle")
                yield piece
            # Some tools pad the last member with zeros.
            data = unpacker.unused_data.lstrip(b"\x00")
