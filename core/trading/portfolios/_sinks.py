"""Files that a stream of rows is written to: beside their place, under another name, until they are whole."""

# pyright: reportUnknownMemberType=false
# The types of polars name numpy's, which is not installed.

import asyncio
import gzip
import os
import queue
import secrets
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import polars as pl
from polars.io.plugins import register_io_source

from core.trading.portfolios._file_errors import SnapshotFileNotWritten
from core.trading.portfolios._read_frame import parsed

_BLOCK = 1024 * 1024
_BATCH = 8 * 1024 * 1024
"""Bytes of CSV that become rows of Parquet at once."""
_ROW_GROUP = 100_000
_PATIENCE = 0.005
"""Seconds between two looks at a full queue."""


class Sink(Protocol):
    """Takes whole lines of CSV without a header, as they come."""

    async def write(self, lines: bytes) -> None: ...

    async def finish(self) -> None:
        """Everything is in the file then, though not yet on the disk."""
        ...

    async def abort(self) -> None:
        """Nothing works on the file any more."""
        ...


@contextmanager
def unfinished(target: Path, *, overwrite: bool) -> Generator[Path]:
    """A new file beside `target` that takes its name on leaving, when it is on the disk; after an error it is removed.

    Raises `SnapshotFileNotWritten`, and gives that for any `OSError` inside.
    """
    _check(target, overwrite=overwrite)
    path = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        yield path
        _sync(path)
        if overwrite:
            path.replace(target)
        else:
            _link(path, target)
        _sync(target.parent)
    except FileExistsError:
        raise _exists(target) from None
    except OSError as error:
        if isinstance(error, SnapshotFileNotWritten):
            raise
        raise SnapshotFileNotWritten(f"{target} cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _check(target: Path, *, overwrite: bool) -> None:
    try:
        if b"\x00" in os.fsencode(target):
            raise ValueError
        is_folder = target.is_dir()
    except ValueError:  # UnicodeEncodeError too
        raise SnapshotFileNotWritten(f"{str(target)!r} is no path") from None
    except OSError as error:
        raise SnapshotFileNotWritten(f"{target} cannot be written: {error.strerror or error}") from None
    if is_folder:
        raise SnapshotFileNotWritten(f"{target} is a folder", hint="Name a file in it.")
    if not overwrite and (target.exists() or target.is_symlink()):
        raise _exists(target)
    if not target.parent.is_dir():
        raise SnapshotFileNotWritten(f"there is no folder {target.parent}", hint=f"Make it: mkdir -p {target.parent}")


def _exists(target: Path) -> SnapshotFileNotWritten:
    return SnapshotFileNotWritten(f"{target} exists", hint="Name a new file, or say overwrite=True (--force).")


def _link(path: Path, target: Path) -> None:
    """Never in the place of another file."""
    try:
        target.hardlink_to(path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: a moment is left in which another may be replaced
        if target.is_symlink() or target.exists():
            raise FileExistsError from None
        path.rename(target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class CsvSink:
    """Plain, or packed by gzip without a name or time inside, so that equal rows make equal files."""

    def __init__(self, path: Path, header: str, *, packed: bool) -> None:
        self._buffer = bytearray(header.encode())
        self._file: Any = path.open("wb")
        self._packer: Any = (
            gzip.GzipFile(filename="", mode="wb", fileobj=self._file, compresslevel=6, mtime=0)
            if packed
            else self._file
        )

    async def write(self, lines: bytes) -> None:
        self._buffer += lines
        if len(self._buffer) >= _BLOCK:
            data, self._buffer = bytes(self._buffer), bytearray()
            await asyncio.to_thread(self._packer.write, data)

    async def finish(self) -> None:
        await asyncio.to_thread(self._finish)

    def _finish(self) -> None:
        self._packer.write(bytes(self._buffer))
        self._packer.close()
        self._file.close()

    async def abort(self) -> None:
        with suppress(OSError):
            self._file.close()


class ParquetSink:
    """Fed by a queue, since polars pulls the rows that it writes, in a thread of its own; two batches are under way."""

    def __init__(self, path: Path, schema: dict[str, pl.DataType]) -> None:
        self._path = path
        self._schema = schema
        self._buffer = bytearray()
        self._queue: queue.Queue[bytes | None] = queue.Queue(maxsize=2)
        self._aborted = False
        self._writing = asyncio.create_task(asyncio.to_thread(self._write_all))

    async def write(self, lines: bytes) -> None:
        self._buffer += lines
        if len(self._buffer) >= _BATCH:
            cut = self._buffer.rfind(b"\n") + 1  # no value holds a line break
            batch, self._buffer = bytes(self._buffer[:cut]), self._buffer[cut:]
            await self._send(batch)

    async def finish(self) -> None:
        if self._buffer:
            await self._send(bytes(self._buffer))
        await self._send(None)
        await self._writing

    async def abort(self) -> None:
        self._aborted = True
        with suppress(pl.exceptions.PolarsError, OSError):
            await self._send(None)
            await self._writing

    async def _send(self, batch: bytes | None) -> None:
        """Waits while the queue is full; raises what ended the writing."""
        while True:
            if self._writing.done():
                self._writing.result()
                return
            with suppress(queue.Full):
                self._queue.put_nowait(batch)
                return
            await asyncio.sleep(_PATIENCE)

    def _batches(self) -> Iterator[pl.DataFrame]:
        while (batch := self._queue.get()) is not None:
            if not self._aborted:
                yield parsed(batch, self._schema)

    def _write_all(self) -> None:
        def source(columns: Any, predicate: Any, rows: Any, size: Any) -> Iterator[pl.DataFrame]:
            return self._batches()

        try:
            rows = register_io_source(source, schema=self._schema)
            rows.sink_parquet(self._path, compression="zstd", row_group_size=_ROW_GROUP, engine="streaming")
        except pl.exceptions.PolarsError as error:
            raise SnapshotFileNotWritten(f"the rows cannot be written: {error}") from None
