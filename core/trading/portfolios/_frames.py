"""A data frame of snapshots, checked by column and made into CSV."""

# pyright: reportUnknownMemberType=false
# The types of polars name numpy's, which is not installed.

from datetime import datetime
from typing import Final

import polars as pl

from core.database.errors import InvalidInput
from core.database.types import MONEY_PRECISION, MONEY_SCALE

SNAPSHOT_COLUMNS: Final = (
    "portfolio_id",
    "snapshot_time",
    "broker",
    "positions",
    "cash",
    "realized_pnl",
    "unrealized_pnl",
    "total_pnl",
    "equity",
)
"""The columns of `portfolio_snapshots`, in order."""

_MONEY = SNAPSHOT_COLUMNS[4:]
_TEXT = ("portfolio_id", "broker", "positions")

STAGED: Final = {
    column: "timestamptz" if column == "snapshot_time" else "numeric" if column in _MONEY else 'text COLLATE "C"'
    for column in SNAPSHOT_COLUMNS
}

_WHOLE = MONEY_PRECISION - MONEY_SCALE
_EXACT = rf"^-?[0-9]{{1,{_WHOLE}}}(?:\.[0-9]{{1,{MONEY_SCALE}}})?$"


def checked_frame(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with exactly `SNAPSHOT_COLUMNS`, money as text; raises `InvalidInput` naming the column.

    What the table's constraints say better (unknown portfolios, sums, JSON) is left to them.
    """
    if set(frame.columns) != set(SNAPSHOT_COLUMNS):
        wrong = sorted(set(frame.columns) ^ set(SNAPSHOT_COLUMNS))
        raise InvalidInput(
            f"a frame of snapshots has the columns {', '.join(SNAPSHOT_COLUMNS)}; check {', '.join(wrong)}"
        )
    for column in SNAPSHOT_COLUMNS:
        if frame[column].null_count():
            _refuse(column, "holds NULL")
    for column in _TEXT:
        if not isinstance(frame.schema[column], pl.String | pl.Categorical | pl.Enum):
            _refuse(column, f"must be text, not {frame.schema[column]}")
    time = frame.schema["snapshot_time"]
    if not isinstance(time, pl.Datetime) or time.time_zone is None:
        _refuse("snapshot_time", "must be times with a time zone")
    if isinstance(time, pl.Datetime) and time.time_unit == "ns":
        cut = frame["snapshot_time"].cast(pl.Datetime("us", time.time_zone)).cast(time)
        if not (cut == frame["snapshot_time"]).all():
            _refuse("snapshot_time", "has nanoseconds, which PostgreSQL would round away")
    return frame.select(
        *(pl.col(column).cast(pl.String) for column in _TEXT[:1]),
        pl.col("snapshot_time").dt.convert_time_zone("UTC"),
        *(pl.col(column).cast(pl.String) for column in _TEXT[1:]),
        *(_money(frame[column]) for column in _MONEY),
    )


def period_of(frame: pl.DataFrame) -> tuple[datetime, datetime]:
    """The first and the last time of a checked frame that has rows."""
    first, last = frame.select(first=pl.col("snapshot_time").min(), last=pl.col("snapshot_time").max()).row(0)
    return first, last


def frame_csv(frame: pl.DataFrame) -> bytes:
    """A checked frame as CSV in the order of `SNAPSHOT_COLUMNS`."""
    text = frame.write_csv(include_header=False, datetime_format="%Y-%m-%d %H:%M:%S%.6f+00", quote_style="non_numeric")
    return text.encode()


def _money(amounts: pl.Series) -> pl.Series:
    kind = amounts.dtype
    if not (kind.is_integer() or kind.is_decimal() or kind == pl.String):
        _refuse(amounts.name, f"must be Decimal, integer or text, not {kind}")
    text = amounts.cast(pl.String)
    if kind.is_decimal() and isinstance(kind, pl.Decimal) and (kind.scale or 0) > MONEY_SCALE:
        # Zeros behind the tenth place are no excess.
        text = text.str.replace(rf"(\.[0-9]{{{MONEY_SCALE}}})0+$", "$1")
    if not text.str.contains(_EXACT).all():
        _refuse(
            amounts.name, f"holds what is no number of at most {_WHOLE} digits before and {MONEY_SCALE} after the point"
        )
    return text


def _refuse(column: str, reason: str) -> None:
    raise InvalidInput(f"{column}: {reason}", column=column)
