"""A broker's CSV, validated by column: canonical rows as CSV text on one side, rejected rows with a reason on the other.

Numbers are never floats here. They are read as text, checked as text and sent as text, so that PostgreSQL is the first to
make numbers of them: exactly (`polars` would round when casting to Decimal).
"""

# pyright: reportUnknownMemberType=false
# The types of polars name numpy's, which is not installed.

from dataclasses import dataclass

import polars as pl

from core.trading.instruments._checks import (
    DECIMALS,
    EXTRA,
    INTEGER,
    INTEGERS,
    LINE,
    canonical_decimals,
    checks_of,
    may_hold_controls,
)
from core.trading.instruments._errors import (
    InstrumentFileCorrupt,
    InstrumentFileEmpty,
    InstrumentFileHeader,
    InstrumentFileRejected,
    InstrumentFileTruncated,
)
from core.trading.instruments._file import header_of
from core.trading.instruments._report import RejectedRow

KITE_COLUMNS = (
    "instrument_token",
    "exchange_token",
    "tradingsymbol",
    "name",
    "last_price",
    "expiry",
    "strike",
    "tick_size",
    "lot_size",
    "instrument_type",
    "segment",
    "exchange",
)

_TEXT = 'text COLLATE "C"'  # the collation of the tables: two that differ cannot be compared

STAGED: dict[str, str] = {
    "instrument_token": "bigint",
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
    "last_price": "numeric",
    "line": "integer",
}
"""The columns of a parsed row and the SQL types that they are staged in; `line` is where the row stands in the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parsed:
    """`csv` holds `count` valid rows in the order of `STAGED`, without a header, empty for NULL."""

    csv: bytes
    count: int
    rows: int
    duplicates: int
    exchanges: tuple[str, ...]
    rejected: tuple[RejectedRow, ...]
    refused_tokens: tuple[int, ...]
    refused_symbols: tuple[tuple[str, str], ...]
    """What rejected rows name, as far as it can be read: tokens, and (exchange, symbol) pairs. The file has them, so they
    are not gone."""
    ignored_columns: tuple[str, ...]


def parse_kite(data: bytes, *, name: str) -> Parsed:
    """Parse Kite's twelve columns, in any order. Raises an `InstrumentFileError` if the file cannot be used at all."""
    header = header_of(data)
    ignored = _checked_header(header, name)
    frame = _read(data, header, name)
    if frame.is_empty():
        raise InstrumentFileEmpty(f"{name} holds a header and no rows")
    _check_end(data, frame, name)
    rows = frame.height
    frame = frame.with_columns(pl.col(column).str.strip_chars() for column in KITE_COLUMNS)
    frame = frame.with_columns(
        pl.when(pl.col(column) != "").then(pl.col(column)).alias(column) for column in KITE_COLUMNS
    )
    frame = frame.with_columns(
        *(canonical_decimals(frame[column]) for column in DECIMALS),
        *(pl.col(column).str.extract(INTEGER).cast(pl.Int64).alias(f"{column} number") for column in INTEGERS),
    )
    good, bad, rejected = _judged(frame, suspicious=may_hold_controls(data))
    staged, duplicates, clashes = _without_duplicates(good)
    rejected.extend(clashes)
    if staged.is_empty():
        raise InstrumentFileRejected(_none_left(name, rejected))
    return Parsed(
        csv=staged.write_csv(include_header=False).encode(),
        count=staged.height,
        rows=rows,
        duplicates=duplicates,
        exchanges=tuple(sorted(staged["exchange"].unique().to_list())),
        rejected=tuple(sorted(rejected, key=lambda row: row.line)),
        refused_tokens=tuple(bad["instrument_token number"].drop_nulls().to_list()),
        refused_symbols=tuple(bad.select("exchange", "tradingsymbol").drop_nulls().iter_rows()),
        ignored_columns=ignored,
    )


def _checked_header(header: tuple[str, ...], name: str) -> tuple[str, ...]:
    """The columns that are not Kite's."""
    missing = [column for column in KITE_COLUMNS if column not in header]
    if missing:
        raise InstrumentFileHeader(f"{name} is not in Kite's format: its header lacks {', '.join(missing)}")
    if len(set(header)) < len(header):
        raise InstrumentFileHeader(f"{name} names a column twice in its header")
    return tuple(column for column in header if column not in KITE_COLUMNS)


def _read(data: bytes, header: tuple[str, ...], name: str) -> pl.DataFrame:
    """Every field as text, with the number of its line; blank lines are left out."""
    names = [*header, EXTRA]
    try:
        frame = pl.read_csv(
            data,
            has_header=False,
            skip_lines=1,
            schema=dict.fromkeys(names, pl.String),
            row_index_name=LINE,
            row_index_offset=2,
            missing_columns="insert",
            truncate_ragged_lines=True,
        )
    except pl.exceptions.NoDataError:
        raise InstrumentFileEmpty(f"{name} holds a header and no rows") from None
    except (pl.exceptions.ComputeError, pl.exceptions.SchemaError):
        raise InstrumentFileCorrupt(f'{name} is not CSV: a quotation mark (") is opened and not closed') from None
    if b'"' in data and frame.select(pl.any_horizontal(pl.col(names).str.contains("\n").any())).item():
        # What looks like one field has swallowed whole rows, which would then count as gone.
        raise InstrumentFileCorrupt(f'{name} is not CSV: a field in quotation marks (") runs over several lines')
    return frame.filter(pl.any_horizontal(pl.col(names).is_not_null()))


def _check_end(data: bytes, frame: pl.DataFrame, name: str) -> None:
    """A last line without its end is the mark of a broken download, unless it is a row like the others."""
    if data.endswith((b"\n", b"\r")):
        return
    last = frame.row(-1, named=True)
    venue: str | None = last["exchange"]
    alike = frame.height == 1 or venue in set(frame["exchange"].head(frame.height - 1).unique())
    if venue is None or data.rpartition(b"\n")[2].count(b",") < frame.width - 3 or not alike:
        raise InstrumentFileTruncated(f"{name} ends in the middle of line {last[LINE]}")


def _judged(frame: pl.DataFrame, *, suspicious: bool) -> tuple[pl.DataFrame, pl.DataFrame, list[RejectedRow]]:
    """The valid rows, the others, and the first fault of each of these."""
    checks = checks_of(frame, suspicious=suspicious)
    faults = [pl.when(bad).then(pl.lit(number, pl.Int16)) for number, (_, _, bad) in enumerate(checks)]
    judged = frame.with_columns(pl.coalesce(*faults).alias("verdict"))
    bad = judged.filter(pl.col("verdict").is_not_null())
    if bad.is_empty():
        return judged, bad, []
    rejected: list[RejectedRow] = []
    for row in bad.iter_rows(named=True):
        verdict: int = row["verdict"]
        field, reason, _ = checks[verdict]
        value: str | None = row.get(field)
        shown = f"{value[:40]!r} " if value else ""
        rejected.append(RejectedRow(line=row[LINE], field=field, reason=f"{shown}{reason}"))
    return judged.filter(pl.col("verdict").is_null()), bad, rejected


def _canonical(good: pl.DataFrame) -> pl.DataFrame:
    """The columns of `STAGED`, and the line."""
    column = pl.col
    kind = column("instrument_type")
    option = kind.is_in(["CE", "PE"])
    index = column("segment").str.contains(r"(?:^|-)INDICES$")
    return good.select(
        column("instrument_token number").alias("instrument_token"),
        column("exchange"),
        column("exchange_token number").alias("exchange_token"),
        column("tradingsymbol").alias("trading_symbol"),
        column("name"),
        column("segment"),
        pl.when(option)
        .then(pl.lit("OPT"))
        .when(index & (kind == "EQ"))
        .then(pl.lit("IDX"))
        .otherwise(kind)
        .alias("instrument_type"),
        pl.when(option).then(kind).alias("option_type"),
        pl.when(option | (kind == "FUT")).then(column("name")).alias("underlying"),
        column("expiry"),
        pl.when(option).then(column("strike number")).alias("strike"),
        column("tick_size number").alias("tick_size"),
        column("lot_size number").alias("lot_size"),
        column("last_price number").alias("last_price"),
        column(LINE),
    )


def _without_duplicates(good: pl.DataFrame) -> tuple[pl.DataFrame, int, list[RejectedRow]]:
    """One row per token: equal rows are counted, rows that contradict an earlier one are rejected."""
    rows = _canonical(good)
    first = rows["instrument_token"].is_first_distinct()
    if first.all():
        return rows, 0, []
    content = [column for column in rows.columns if column != LINE]
    kept = rows.filter(first)
    distinct = rows.filter(rows.select(content).is_unique() | pl.struct(content).is_first_distinct())
    clashing = distinct.join(kept.select("instrument_token", pl.col(LINE).alias("earlier")), on="instrument_token")
    clashing = clashing.filter(pl.col(LINE) != pl.col("earlier"))
    clashes = [
        RejectedRow(
            line=row[LINE],
            field="instrument_token",
            reason=f"{row['instrument_token']} stands in line {row['earlier']} for another instrument",
        )
        for row in clashing.iter_rows(named=True)
    ]
    return kept, rows.height - kept.height - len(clashes), clashes


def _none_left(name: str, rejected: list[RejectedRow]) -> str:
    first = min(rejected, key=lambda row: row.line)
    return f"not one of {name}'s {len(rejected):,} rows is valid; line {first.line}: {first.field} {first.reason}"
