"""A file or a frame of snapshots as pieces in which every cell is text. Blocking throughout."""

# pyright: reportUnknownMemberType=false
# The types of polars name numpy's, which is not installed.

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

import polars as pl

from core.database.errors import InvalidInput
from core.trading._files import FileIntake
from core.trading.portfolios._file_errors import (
    SnapshotFileCorrupt,
    SnapshotFileEmpty,
    SnapshotFileHeader,
    SnapshotFileMissing,
    SnapshotFileTooLarge,
    SnapshotFileTruncated,
    SnapshotFileUnreadable,
)

SnapshotInput: TypeAlias = Path | str | bytes | IO[bytes] | pl.DataFrame
"""A path, a file's content, a binary stream, or a frame."""

LINE = "line"
BEYOND = "beyond the last column"
MAX_BYTES = 2 * 1024 * 1024 * 1024
"""Of a file, packed and unpacked."""

_PARQUET = b"PAR1"
_CHUNK = 12 * 1024 * 1024
"""Bytes of CSV in a piece, about a hundred thousand rows."""
_ROWS = 100_000
"""Rows of a frame in a piece."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Named columns, called `c0`, `c1`... in the pieces, beside `line` and `BEYOND`, which is not null where a row of a CSV
    has more cells than the header. Nothing is trimmed.
    """

    name: str
    header: tuple[str, ...]
    floats: frozenset[str]
    """Columns that are binary floats, whose text is the shortest that means the same float."""
    source: bytes | pl.LazyFrame

    def pieces(self) -> Iterator[pl.DataFrame]:
        """From the beginning each time. Raises a `SnapshotFileError` where a CSV turns out to be none, or cut off."""
        if isinstance(self.source, bytes):
            return self._csv_pieces(self.source)
        return self._frame_pieces(self.source)

    def _csv_pieces(self, data: bytes) -> Iterator[pl.DataFrame]:
        start = data.find(b"\n") + 1 or len(data)
        line = 2
        while start < len(data):
            end = data.find(b"\n", start + _CHUNK) + 1 or len(data)
            piece = self._read(data[start:end], line)
            if end == len(data):
                self._check_end(data, piece)
            yield piece
            line += data.count(b"\n", start, end)
            start = end

    def _read(self, data: bytes, line: int) -> pl.DataFrame:
        names = [*(f"c{index}" for index in range(len(self.header))), BEYOND]
        kinds: dict[str, type[pl.DataType]] = dict.fromkeys(names, pl.String)
        try:
            frame = pl.read_csv(
                data,
                has_header=False,
                schema=kinds,
                row_index_name=LINE,
                row_index_offset=line,
                missing_columns="insert",
                truncate_ragged_lines=True,
            )
        except pl.exceptions.NoDataError:
            return pl.DataFrame(schema={LINE: pl.UInt32, **kinds})
        except (pl.exceptions.ComputeError, pl.exceptions.SchemaError):
            raise SnapshotFileCorrupt(
                f'{self.name} is not CSV: a quotation mark (") is opened and not closed'
            ) from None
        if b'"' in data and frame.select(pl.any_horizontal(pl.col(names).str.contains("\n").any())).item():
            # What looks like one cell has swallowed whole rows.
            raise SnapshotFileCorrupt(f'{self.name} is not CSV: a cell in quotation marks (") runs over several lines')
        return frame.filter(pl.any_horizontal(pl.col(names).is_not_null()))

    def _check_end(self, data: bytes, piece: pl.DataFrame) -> None:
        """A last line that has fewer cells than the header and no end is the mark of a broken download."""
        if data.endswith((b"\n", b"\r")) or piece.is_empty():
            return
        if data[data.rfind(b"\n") + 1 :].count(b",") < len(self.header) - 1:
            raise SnapshotFileTruncated(f"{self.name} ends in the middle of line {piece[LINE][-1]}")

    def _frame_pieces(self, source: pl.LazyFrame) -> Iterator[pl.DataFrame]:
        begin = 0
        while True:
            try:
                piece = source.slice(begin, _ROWS).collect()
            except pl.exceptions.PolarsError as error:
                raise SnapshotFileCorrupt(f"{self.name} is damaged: {error}") from None
            if piece.is_empty():
                return
            cells = [_as_text(piece[name]).alias(f"c{index}") for index, name in enumerate(self.header)]
            yield pl.DataFrame(cells).with_columns(
                pl.int_range(begin + 1, begin + 1 + piece.height, dtype=pl.UInt32).alias(LINE),
                pl.lit(None, pl.String).alias(BEYOND),
            )
            begin += piece.height


def open_table(file: SnapshotInput, *, name: str | None) -> Table:
    """Take a file in. Raises a `SnapshotFileError`, and `InvalidInput` for what is no file at all."""
    shown = name or (str(file) if isinstance(file, str | Path) else "the file")
    if isinstance(file, pl.DataFrame):
        return _of_frame(file.lazy(), file.schema, shown)
    data = _bytes_of(file, shown)
    if data.startswith(_PARQUET):
        return _of_parquet(data, shown)
    data = _intake().unpacked(data, name=shown)
    header = _intake().columns(data, name=shown)
    if data.find(b"\n") in {-1, len(data) - 1}:
        raise SnapshotFileEmpty(f"{shown} holds a header and no rows")
    return Table(name=shown, header=header, floats=frozenset(), source=data)


def _bytes_of(file: Path | str | bytes | IO[bytes], name: str) -> bytes:
    match file:
        case bytes():
            return file
        case str() | Path():
            return _intake().read(Path(file))
        case _:
            return _intake().read_stream(file, name=name)


def _of_parquet(data: bytes, name: str) -> Table:
    if not data.endswith(_PARQUET):
        raise SnapshotFileTruncated(f"{name} is a Parquet file that ends in the middle")
    try:
        frame = pl.scan_parquet(io.BytesIO(data))
        return _of_frame(frame, frame.collect_schema(), name)
    except pl.exceptions.PolarsError:
        raise SnapshotFileCorrupt(f"{name} is a damaged Parquet file") from None


def _of_frame(frame: pl.LazyFrame, schema: pl.Schema, name: str) -> Table:
    if frame.select(pl.len()).collect().item() == 0:
        raise SnapshotFileEmpty(f"{name} holds no rows")
    floats = frozenset(column for column, kind in schema.items() if kind.is_float())
    return Table(name=name, header=tuple(schema), floats=floats, source=frame)


def _as_text(cells: pl.Series) -> pl.Series:
    kind = cells.dtype
    if isinstance(kind, pl.Datetime):
        if kind.time_zone is not None:
            return cells.dt.convert_time_zone("UTC").dt.strftime("%Y-%m-%dT%H:%M:%S%.9f+00:00")
        return cells.dt.strftime("%Y-%m-%dT%H:%M:%S%.9f")
    if kind == pl.Date:
        return cells.dt.strftime("%Y-%m-%d")
    if kind.is_nested() or isinstance(kind, pl.Binary | pl.Object):
        raise InvalidInput(
            f"file: column {cells.name} holds {kind}, not text",
            hint="Leave it out, or give positions as JSON text.",
            column="file",
        )
    return cells.cast(pl.String)


def _intake() -> FileIntake:
    return FileIntake(
        max_bytes=MAX_BYTES,
        missing=SnapshotFileMissing,
        unreadable=SnapshotFileUnreadable,
        empty=SnapshotFileEmpty,
        truncated=SnapshotFileTruncated,
        corrupt=SnapshotFileCorrupt,
        too_large=SnapshotFileTooLarge,
        header=SnapshotFileHeader,
    )
