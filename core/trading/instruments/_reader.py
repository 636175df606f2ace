"""A broker's file, read piece by piece: valid rows as CSV text on one side, rejected rows with a reason on the other."""

# pyright: reportUnknownMemberType=false
# The types of polars name numpy's, which is not installed.

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from core.trading.instruments._columns import BEYOND, LINE, Layout, canonical, tidied, translated
from core.trading.instruments._errors import (
    InstrumentFileCorrupt,
    InstrumentFileEmpty,
    InstrumentFileHeader,
    InstrumentFileTruncated,
    InstrumentMappingInvalid,
)
from core.trading.instruments._faults import judged, may_hold_controls
from core.trading.instruments._file import InstrumentInput, content_of, intake
from core.trading.instruments._mapping import FormatMapping, checked_header, load_mapping, recognised, shipped
from core.trading.instruments._report import RejectedRow

_TEXT = 'text COLLATE "C"'  # the collation of the tables: two that differ cannot be compared

STAGED: dict[str, str] = {
    "instrument_token": "bigint",
    "broker_key": _TEXT,
    "exchange": _TEXT,
    "exchange_token": _TEXT,
    "trading_symbol": _TEXT,
    "name": _TEXT,
    "segment": _TEXT,
    "instrument_type": _TEXT,
    "option_type": _TEXT,
    "underlying": _TEXT,
    "expiry": "date",
    "strike": "numeric",
    "tick_size": "numeric",
    "lot_size": "bigint",
    "attributes": "jsonb",
    "last_price": "numeric",
    "line": "integer",
}
"""The columns of a valid row and the SQL types that they are staged in; `line` is where the row stands in the file."""

_CHUNK = 4 * 1024 * 1024
"""Bytes of CSV, about forty thousand rows: the memory that a load takes beyond the file itself goes by it."""
_FIRST = 1 * 1024 * 1024
"""The first pieces are smaller, so that the server has something to do while the rest is read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A piece of the file. `csv` holds `count` valid rows in the order of `STAGED`, without a header, empty for NULL."""

    csv: bytes
    count: int
    rows: int
    duplicates: int
    """Rows equal in every field to an earlier one, of this piece or of one before it."""
    exchanges: tuple[str, ...]
    rejected: tuple[RejectedRow, ...]
    refused_tokens: tuple[int, ...]
    refused_keys: tuple[str, ...]
    refused_symbols: tuple[tuple[str, str], ...]
    """What rejected rows name, as far as it can be read: tokens, keys, and (exchange, symbol) pairs. The file has them, so
    they are not gone."""


class MasterFile:
    """A file that is whole text in a format known; its rows are judged as they are read."""

    def __init__(self, data: bytes, header: tuple[str, ...], mapping: FormatMapping, *, name: str) -> None:
        self.name = name
        self.mapping = mapping
        self.digest = hashlib.sha256(data).hexdigest()
        """SHA-256 of the unpacked content, in hexadecimal."""
        self.reading = hashlib.sha256(f"1 {mapping.model_dump_json()}".encode()).hexdigest()
        """What the rows are made by: this reader's version and the mapping."""
        self._data = data
        self._layout = Layout(mapping, header)
        self._seen: pl.DataFrame | None = None

    @property
    def format(self) -> str:
        return self.mapping.format

    @property
    def ignored_columns(self) -> tuple[str, ...]:
        """Columns of the file that are kept nowhere."""
        return self._layout.ignored

    def chunks(self) -> Iterator[Chunk]:
        """Read the file, from its beginning each time. Blocking. Raises an `InstrumentFileError` where it turns out to be no CSV, or cut off."""
        self._seen = None
        suspicious = may_hold_controls(self._data)
        venues: set[str] = set()
        last: pl.DataFrame | None = None
        for start, end, line in _pieces(self._data):
            text = self._data[start:end]
            frame = self._read(text, line)
            if frame.is_empty():
                continue
            last = frame
            plain = not suspicious and b'"' not in text and b"\r" not in text
            chunk = self._chunk(frame, suspicious=suspicious, plain=plain)
            if end == len(self._data):
                self._check_end(frame, venues)
            venues.update(chunk.exchanges)
            yield chunk
        if last is None:
            raise InstrumentFileEmpty(f"{self.name} holds a header and no rows")

    def _chunk(self, frame: pl.DataFrame, *, suspicious: bool, plain: bool) -> Chunk:
        rows = frame.height
        layout = self._layout
        read = translated(tidied(frame, layout, plain=plain), layout)
        good, bad, rejected = judged(read, layout, suspicious=suspicious)
        staged, duplicates, clashes = self._distinct(canonical(good, layout))
        named = bad.select("exchange", "trading_symbol").drop_nulls()
        return Chunk(
            csv=_written(staged, plain=plain),
            count=staged.height,
            rows=rows,
            duplicates=duplicates,
            exchanges=tuple(sorted(staged["exchange"].unique().to_list())),
            rejected=tuple(sorted((*rejected, *clashes), key=lambda row: row.line)),
            refused_tokens=tuple(bad["instrument_token"].drop_nulls().to_list()),
            refused_keys=tuple(bad["broker_key"].drop_nulls().to_list()),
            refused_symbols=tuple(named.iter_rows()),
        )

    def _read(self, data: bytes, line: int) -> pl.DataFrame:
        """Every field as text, with the number of its line; blank lines are left out."""
        names = [*self._layout.columns, BEYOND]
        try:
            frame = pl.read_csv(
                data,
                has_header=False,
                schema=dict.fromkeys(names, pl.String),
                row_index_name=LINE,
                row_index_offset=line,
                missing_columns="insert",
                truncate_ragged_lines=True,
            )
        except pl.exceptions.NoDataError:
            return pl.DataFrame(schema={LINE: pl.UInt32, **dict.fromkeys(names, pl.String)})
        except (pl.exceptions.ComputeError, pl.exceptions.SchemaError):
            raise InstrumentFileCorrupt(
                f'{self.name} is not CSV: a quotation mark (") is opened and not closed'
            ) from None
        if b'"' in data and frame.select(pl.any_horizontal(pl.col(names).str.contains("\n").any())).item():
            # What looks like one field has swallowed whole rows, which would then count as gone.
            raise InstrumentFileCorrupt(
                f'{self.name} is not CSV: a field in quotation marks (") runs over several lines'
            )
        return frame.filter(pl.any_horizontal(pl.col(names).is_not_null()))

    def _check_end(self, frame: pl.DataFrame, earlier: set[str]) -> None:
        """A last line without its end is the mark of a broken download, unless it is a row like the others."""
        data, layout = self._data, self._layout
        if data.endswith((b"\n", b"\r")):
            return
        venue = layout.place(layout.mapping.exchange.column)
        last = frame.row(-1, named=True)
        others = set(frame[venue].head(frame.height - 1).unique())
        alike = (frame.height == 1 and not earlier) or last[venue] in others or last[venue] in earlier
        if last[venue] is None or data[data.rfind(b"\n") + 1 :].count(b",") < len(layout.header) - 1 or not alike:
            raise InstrumentFileTruncated(f"{self.name} ends in the middle of line {last[LINE]}")

    def _distinct(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, int, list[RejectedRow]]:
        """One row per key: equal rows are counted, rows that contradict an earlier one are rejected."""
        key = "instrument_token" if self.mapping.token.integer is not None else "broker_key"
        content = [column for column in rows.columns if column != LINE]
        marked = rows.select(key, LINE).with_columns(rows.select(content).hash_rows().alias("content"))
        seen = marked.clear() if self._seen is None else self._seen
        keys = marked[key]
        # The greater of the two is not hashed anew for every piece.
        if keys.n_unique() == len(keys) and not seen[key].is_in(keys.implode()).any():
            self._seen = pl.concat([seen, marked])
            return rows, 0, []
        first = keys.is_first_distinct() & ~keys.is_in(seen[key].implode())
        self._seen = pl.concat([seen, marked.filter(first)])
        again = marked.filter(~first).join(self._seen, on=key, suffix=" first")
        clashing = again.filter(pl.col("content") != pl.col("content first"))
        clashes = [
            RejectedRow(
                line=row[LINE],
                field=self.mapping.token.column,
                reason=f"{row[key]} stands in line {row[f'{LINE} first']} for another instrument",
            )
            for row in clashing.iter_rows(named=True)
        ]
        return rows.filter(first), again.height - clashing.height, clashes


def _written(rows: pl.DataFrame, *, plain: bool) -> bytes:
    """As CSV. Of plain text no field holds what must be quoted, save for the JSON that we make."""
    bare = plain and rows["attributes"].null_count() == rows.height
    text = io.BytesIO()
    rows.write_csv(text, include_header=False, quote_style="never" if bare else "necessary")
    return text.getvalue()


def open_master(
    file: InstrumentInput,
    *,
    format: str = "auto",
    mapping: Path | str | Mapping[str, Any] | None = None,
    name: str | None = None,
) -> MasterFile:
    """Take a file in and find out its format. Blocking.

    `format` is `auto` or the name of a shipped format; `mapping` is a TOML file or its tables and goes before it. Raises an
    `InstrumentFileError` for a file that cannot be used at all.
    """
    shown = name or (str(file) if isinstance(file, str | Path) else "the file")
    known = _mapping(format, mapping)
    data = content_of(file, name=shown)
    header = intake().columns(data, name=shown)
    if bad := [column for column in header if not column.isprintable()]:
        raise InstrumentFileHeader(f"{shown} has a column whose name holds a control character: {bad[0]!r}")
    known = known or recognised(header, name=shown)
    checked_header(known, header, name=shown)
    return MasterFile(data, header, known, name=shown)


def _mapping(format: str, mapping: Path | str | Mapping[str, Any] | None) -> FormatMapping | None:
    if mapping is not None:
        return load_mapping(mapping)
    if format == "auto":
        return None
    if format not in shipped():
        raise InstrumentMappingInvalid(
            f"format: {format!r} is none of auto, {', '.join(shipped())}", hint="Give a mapping for any other format."
        )
    return shipped()[format]


def _pieces(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Start, end and first line number of pieces that end with a line; the header is line 1 and in none of them."""
    start = data.find(b"\n") + 1 or len(data)
    line = 2
    while start < len(data):
        end = data.find(b"\n", start + min(_CHUNK, max(_FIRST, start))) + 1 or len(data)
        yield start, end, line
        line += data.count(b"\n", start, end)
        start = end
