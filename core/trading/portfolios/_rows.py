"""What makes a row of a file a snapshot: valid rows as CSV to be staged, the others with their first fault. Blocking."""

# pyright: reportUnknownMemberType=false
# The types of polars name numpy's, which is not installed.

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from functools import cached_property

import polars as pl
from pydantic import TypeAdapter, ValidationError

from core.database.errors import InvalidInput
from core.database.records import PortfolioSnapshotCreate, Position
from core.database.types import MONEY_PRECISION, MONEY_SCALE, invalid_input
from core.trading.portfolios._amounts import ReadColumn, read_column
from core.trading.portfolios._file_reports import RejectedSnapshot
from core.trading.portfolios._frames import SNAPSHOT_COLUMNS, STAGED
from core.trading.portfolios._intake import BEYOND, LINE
from core.trading.portfolios._moments import read_moments

STAGED_LINES: dict[str, str] = {**STAGED, "line": "integer"}

_MONEY = SNAPSHOT_COLUMNS[4:]
_EXACT = pl.Decimal(38, MONEY_SCALE)
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_SHOWN = 40
_LONGEST_REASON = 300
_NOT_FINITE = r"(?i)^[+-]?(?:inf|infinity|nan)$"
_POSITIONS = TypeAdapter(list[Position])
_UNIT = Decimal(1).scaleb(-MONEY_SCALE)
_sum = Context(prec=200).add


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the columns of one file become snapshots."""

    header: tuple[str, ...]
    columns: Mapping[str, str]
    """Our fields that the file has, to its own names."""
    portfolio_id: str | None
    broker: str | None
    zone: str
    form: str | None
    rounding: bool
    known: Mapping[str, str]
    """Each portfolio that there is, to its broker."""

    @cached_property
    def places(self) -> dict[str, str]:
        where = {name: f"c{index}" for index, name in enumerate(self.header)}
        return {ours: where[theirs] for ours, theirs in self.columns.items()}

    def label(self, ours: str) -> str:
        return self.columns.get(ours, ours)


@dataclass
class Piece:
    """What a piece of the file comes to; `csv` holds its valid rows in the order of `STAGED_LINES`, without a header."""

    csv: bytes = b""
    rows: int = 0
    count: int = 0
    rejected: list[RejectedSnapshot] = field(default_factory=list[RejectedSnapshot])
    rejected_count: int = 0
    rounded: dict[str, tuple[int, Decimal]] = field(default_factory=dict[str, tuple[int, Decimal]])
    oddities: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict[tuple[str, str], tuple[int, int]])
    """Column and kind to rows and first line."""
    portfolios: set[str] = field(default_factory=set[str])
    months: set[date] = field(default_factory=set[date])
    period: tuple[datetime, datetime] | None = None


def judge(cells: pl.DataFrame, reading: Reading, *, keep: int) -> Piece:
    """A piece of the file, judged; of its rejected rows at most `keep` are named."""
    names = [name for name in cells.columns if name != LINE]
    cells = cells.with_columns(pl.col(names).str.strip_chars())
    cells = cells.with_columns(pl.when(pl.col(name) != "").then(pl.col(name)).alias(name) for name in names)
    piece = Piece(rows=cells.height, oddities=_oddities(cells, reading))
    frame = _read(cells, reading, piece)
    good = frame.filter(pl.col("reason").is_null())
    bad = frame.filter(pl.col("reason").is_not_null())
    good, further = _with_positions(good, reading)
    piece.rejected_count = bad.height + len(further)
    piece.rejected = sorted([*_told(bad, keep), *further], key=lambda row: row.line)[:keep]
    piece.count = good.height
    if good.height:
        piece.csv = good.select(list(STAGED_LINES)).write_csv(include_header=False, datetime_format=_TIME).encode()
        piece.portfolios = set(good["portfolio_id"].unique())
        times = good["snapshot_time"]
        piece.months = set(times.dt.date().dt.month_start().unique())
        first, last = times.min(), times.max()
        assert isinstance(first, datetime)
        assert isinstance(last, datetime)
        piece.period = first.astimezone(UTC), last.astimezone(UTC)
    return piece


_TIME = "%Y-%m-%d %H:%M:%S%.6f+00"


def _oddities(cells: pl.DataFrame, reading: Reading) -> dict[tuple[str, str], tuple[int, int]]:
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for index, name in enumerate(reading.header):
        column = cells[f"c{index}"]
        for kind, mask in (
            ("empty", column.is_null()),
            ("not finite", column.str.contains(_NOT_FINITE).fill_null(value=False)),
        ):
            lines = cells[LINE].filter(mask)
            if len(lines):
                found[name, kind] = len(lines), int(lines[0])
    return found


def _read(cells: pl.DataFrame, reading: Reading, piece: Piece) -> pl.DataFrame:
    """Our columns, with `field`, `reason` and `value` of the first fault of each row."""
    nothing = pl.lit(None, pl.String)
    amounts: dict[str, ReadColumn] = {
        name: read_column(cells[reading.places[name]], rounding=reading.rounding)
        for name in _MONEY
        if name in reading.places
    }
    moments = read_moments(cells[reading.places["snapshot_time"]], zone=reading.zone, form=reading.form)
    frame = cells.with_columns(
        moments["time"].alias("snapshot_time"),
        moments["fault"].alias("time fault"),
        *(read.text.alias(name) for name, read in amounts.items()),
        *(read.fault.alias(f"{name} fault") for name, read in amounts.items()),
        _of_places(reading, "portfolio_id", reading.portfolio_id),
        pl.col(reading.places["positions"]).alias("positions")
        if "positions" in reading.places
        else pl.lit("[]").alias("positions"),
    )
    frame = _portfolios(frame, reading)
    frame = _derived(frame, amounts, reading, piece)
    faults: list[tuple[str, pl.Expr]] = [
        ("", pl.when(pl.col(BEYOND).is_not_null()).then(pl.lit("has more cells than the header"))),
        *(
            (name, pl.when(pl.col(place).is_null()).then(pl.lit("is missing")))
            for name, place in reading.places.items()
        ),
        ("portfolio_id", pl.col("portfolio fault")),
        ("broker", pl.col("broker fault")),
        ("snapshot_time", pl.col("time fault")),
        ("snapshot_time", _beyond_the_calendar()),
        *((name, pl.col(f"{name} fault")) for name in amounts),
        ("total_pnl", pl.col("total fault")),
    ]
    told = [reason.is_not_null() for _, reason in faults]
    shown = [pl.col(reading.places[name]) if name in reading.places else nothing for name, _ in faults]
    return frame.with_columns(
        pl.coalesce(*(reason for _, reason in faults)).alias("reason"),
        pl.coalesce(
            *(
                pl.when(bad).then(pl.lit(reading.label(name) if name else "line"))
                for bad, (name, _) in zip(told, faults, strict=True)
            )
        ).alias("field"),
        pl.coalesce(*(pl.when(bad).then(value.fill_null("")) for bad, value in zip(told, shown, strict=True))).alias(
            "value"
        ),
    )


def _of_places(reading: Reading, name: str, constant: str | None) -> pl.Expr:
    return (pl.col(reading.places[name]) if name in reading.places else pl.lit(constant, pl.String)).alias(name)


def _beyond_the_calendar() -> pl.Expr:
    time = pl.col("snapshot_time")
    return pl.when((time <= _FIRST) | (time >= _LAST)).then(pl.lit("lies at the end of the calendar"))


def _portfolios(frame: pl.DataFrame, reading: Reading) -> pl.DataFrame:
    """With the broker of each row's portfolio, and what is wrong with either."""
    ids: list[str] = frame["portfolio_id"].drop_nulls().unique().to_list()
    brokers = [reading.known.get(one) for one in ids]
    faults = [_portfolio_fault(one, reading) for one in ids]
    column = pl.col("portfolio_id")
    frame = frame.with_columns(
        column.replace_strict(ids, brokers, default=None, return_dtype=pl.String).alias("known broker"),
        column.replace_strict(ids, faults, default=None, return_dtype=pl.String).alias("portfolio fault"),
    )
    said = _of_places(reading, "broker", reading.broker)
    known = pl.col("known broker")
    return frame.with_columns(
        known.alias("broker"),
        pl.when(said != known).then(pl.concat_str(pl.lit("is not the portfolio's, "), known)).alias("broker fault"),
    )


def _portfolio_fault(portfolio_id: str, reading: Reading) -> str | None:
    if reading.portfolio_id is not None and portfolio_id != reading.portfolio_id:
        return f"is not {reading.portfolio_id}, which was asked for"
    return None if portfolio_id in reading.known else "is no portfolio here; create it first"


def _derived(frame: pl.DataFrame, amounts: Mapping[str, ReadColumn], reading: Reading, piece: Piece) -> pl.DataFrame:
    """With the amounts that the file does not have, the sum of the P&L checked, and what rounding changed noted."""
    for name, read in amounts.items():
        if read.difference:
            changed = frame[reading.places[name]].filter(frame[reading.places[name]].is_in(list(read.difference)))
            piece.rounded[name] = len(changed), max(read.difference.values())
    frame = frame.with_columns(
        pl.col("cash" if "cash" in amounts else "equity").alias("cash"),
        (pl.col("unrealized_pnl") if "unrealized_pnl" in amounts else pl.lit("0")).alias("unrealized_pnl"),
    )
    total, unrealized = pl.col("total_pnl").cast(_EXACT), pl.col("unrealized_pnl").cast(_EXACT)
    if "realized_pnl" not in amounts:
        realized = (total - unrealized).cast(pl.String) if "total_pnl" in amounts else pl.lit("0")
        frame = frame.with_columns(realized.alias("realized_pnl"))
    whole = pl.col("realized_pnl").cast(_EXACT) + unrealized
    frame = frame.with_columns(whole.alias("sum"), (total if "total_pnl" in amounts else whole).alias("total"))
    if reading.rounding and "total_pnl" in amounts:
        frame = _refitted(frame, amounts["total_pnl"], reading, piece)
    limit = Decimal(10) ** (MONEY_PRECISION - MONEY_SCALE)
    beyond = (pl.col("sum") >= limit) | (pl.col("sum") <= -limit)
    return frame.with_columns(
        pl.col("total").cast(pl.String).alias("total_pnl"),
        pl.when(pl.col("total") != pl.col("sum"))
        .then(pl.lit("is not realized_pnl + unrealized_pnl"))
        .when(beyond)
        .then(pl.lit(f"has more than {MONEY_PRECISION - MONEY_SCALE} digits before the point"))
        .alias("total fault"),
    )


def _refitted(frame: pl.DataFrame, read: ReadColumn, reading: Reading, piece: Piece) -> pl.DataFrame:
    """Where rounding the parts has moved their sum by one place, the total follows it."""
    off = ((pl.col("total") - pl.col("sum")).abs() == pl.lit(_UNIT)).fill_null(value=False)
    moved = frame.filter(off).select(pl.col(reading.places["total_pnl"]).alias("text"), pl.col("sum"))
    rows, largest = piece.rounded.get("total_pnl", (0, Decimal(0)))
    for text, stored in moved.iter_rows():
        largest = max(largest, abs(Decimal(text) - stored))
        rows += text not in read.difference
    if moved.height:
        piece.rounded["total_pnl"] = rows, largest
    return frame.with_columns(pl.when(off).then(pl.col("sum")).otherwise(pl.col("total")).alias("total"))


def _told(bad: pl.DataFrame, keep: int) -> list[RejectedSnapshot]:
    rejected: list[RejectedSnapshot] = []
    for line, name, value, reason in bad.head(keep).select(LINE, "field", "value", "reason").iter_rows():
        shown = f"{value[:_SHOWN]!r} " if value else ""
        rejected.append(RejectedSnapshot(line=line, field=name, reason=f"{shown}{reason}"))
    return rejected


def _with_positions(good: pl.DataFrame, reading: Reading) -> tuple[pl.DataFrame, list[RejectedSnapshot]]:
    """Rows that have positions go through the record, which checks them and what they come to."""
    if (good["positions"] == "[]").all():
        return good, []
    texts: list[str | None] = []
    rejected: list[RejectedSnapshot] = []
    for row in good.select(*SNAPSHOT_COLUMNS, LINE).iter_rows(named=True):
        if row["positions"] == "[]":
            texts.append("[]")
            continue
        try:
            texts.append(_checked_positions(row))
        except InvalidInput as fault:
            texts.append(None)
            label = reading.label(fault.column or "positions")
            rejected.append(RejectedSnapshot(line=row[LINE], field=label, reason=fault.message))
    checked = good.with_columns(pl.Series("positions", texts, dtype=pl.String))
    return checked.filter(pl.col("positions").is_not_null()), rejected


def _checked_positions(row: Mapping[str, object]) -> str:
    """The positions of a row as they are stored."""
    try:
        positions = _POSITIONS.validate_json(str(row["positions"]))
    except ValidationError as fault:
        raise InvalidInput(invalid_input(fault).message[:_LONGEST_REASON], column="positions") from None
    if _comes_to(positions, Decimal(str(row["cash"]))) == Decimal(str(row["equity"])):
        return _POSITIONS.dump_json(positions).decode()
    # What differs may still be right, rounded: the record knows, and says what is wrong. It is left aside above, being dear.
    values: dict[str, object] = {name: Decimal(str(row[name])) for name in _MONEY}
    try:
        PortfolioSnapshotCreate.model_validate(
            values | {name: row[name] for name in SNAPSHOT_COLUMNS[:3]} | {"positions": positions}
        )
    except ValidationError as fault:
        found = invalid_input(fault)
        # What belongs to no single field is the sum of cash and positions, which the equity must be.
        raise InvalidInput(found.message[:_LONGEST_REASON], column=found.column or "equity") from None
    return _POSITIONS.dump_json(positions).decode()


def _comes_to(positions: list[Position], cash: Decimal) -> Decimal:
    total = cash
    for position in positions:
        total = _sum(total, position.worth())
    return total
