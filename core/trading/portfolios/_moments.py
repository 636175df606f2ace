"""Times written as text, of a zone where they say none."""

# pyright: reportUnknownMemberType=false
# The types of polars name numpy's, which is not installed.

import warnings
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import polars as pl

from core.database.errors import InvalidInput

_ISO = (
    r"^(?<day>[0-9]{4}-[0-9]{2}-[0-9]{2})(?:[T ](?<minute>[0-9]{2}:[0-9]{2})(?::(?<second>[0-5][0-9])"
    r"(?:[.,](?<part>[0-9]{1,9}))?)?\s*(?<offset>[Zz]|UTC|[+-][0-9]{2}(?::?[0-9]{2})?)?)?$"
)
_CANONICAL = "%Y-%m-%dT%H:%M:%S%.6f"
_EPOCHS = {"epoch": 1_000_000, "epoch_ms": 1_000, "epoch_us": 1}
_DAY = 86_400_000_000


def checked_zone(zone: str, *, column: str = "time_zone") -> str:
    """The name of a time zone that there is; raises `InvalidInput`."""
    try:
        ZoneInfo(zone)
        pl.Series([datetime(2000, 1, 1)], dtype=pl.Datetime("us")).dt.replace_time_zone(zone)  # noqa: DTZ001 - of no zone
    except (ZoneInfoNotFoundError, ValueError, OSError, pl.exceptions.PolarsError):
        raise InvalidInput(
            f"{column}: {zone!r} is no time zone", hint="Give a name such as Asia/Kolkata or UTC.", column=column
        ) from None
    return zone


def checked_format(time_format: str | None) -> str | None:
    """The format as polars reads it; raises `InvalidInput` for one that reads nothing."""
    if time_format is None or time_format in _EPOCHS:
        return time_format
    form = time_format.replace(".%f", "%.f")  # Python's way to say it
    try:
        pl.Series([datetime(2000, 1, 1, tzinfo=UTC)]).dt.strftime(form)
        pl.Series([""]).str.to_datetime(form, strict=False)
    except (pl.exceptions.PolarsError, UnicodeEncodeError):
        form = ""
    if "%" not in form:
        raise InvalidInput(
            f"time_format: {time_format!r} is no format of times",
            hint=f"Give one such as '%d/%m/%Y %H:%M:%S', or {', '.join(_EPOCHS)}.",
            column="time_format",
        )
    return form


def read_moments(cells: pl.Series, *, zone: str, form: str | None) -> pl.DataFrame:
    """Columns `time` (UTC, microseconds, or NULL) and `fault` (why it is NULL).

    Without a format ISO 8601 is read: a day, or a day and a time, with an offset or of `zone`.
    """
    if form is None:
        return _iso(cells, zone)
    if form in _EPOCHS:
        return _epoch(cells, form)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the format's own style
        found = cells.str.to_datetime(form, strict=False, time_unit="us")
    fault = pl.when(pl.col("found").is_null()).then(pl.lit(f"is no time of the form {form}"))
    frame = pl.DataFrame({"found": found}).with_columns(fault.alias("fault"))
    kind = found.dtype
    if isinstance(kind, pl.Datetime) and kind.time_zone is not None:
        return frame.select(pl.col("found").dt.convert_time_zone("UTC").alias("time"), "fault")
    return _placed(frame, zone)


def _iso(cells: pl.Series, zone: str) -> pl.DataFrame:
    parts = cells.to_frame("text").select(
        pl.col("text").str.extract_groups(_ISO).struct.unnest(), pl.col("text").str.len_chars().alias("length")
    )
    part = pl.col("part").fill_null("")
    text = pl.concat_str(
        "day",
        pl.lit("T"),
        pl.col("minute").fill_null("00:00"),
        pl.lit(":"),
        pl.col("second").fill_null("00"),
        pl.lit("."),
        part.str.slice(0, 6).str.pad_end(6, "0"),
    )
    frame = parts.select(
        text.str.to_datetime(_CANONICAL, strict=False, time_unit="us").alias("found"),
        (part.str.slice(6).str.strip_chars("0") != "").alias("finer"),
        _offset().alias("offset"),
    )
    fault = (
        pl.when(pl.col("found").is_null())
        .then(pl.lit("is no time of the form 2026-11-23T09:15:00 (say time_format)"))
        .when("finer")
        .then(pl.lit("has parts of a microsecond, which would be rounded away"))
    )
    frame = frame.with_columns(fault.alias("fault"))
    placed = _placed(frame, zone)
    with_offset = (pl.col("found") - pl.duration(minutes="offset")).dt.replace_time_zone("UTC")
    exact = frame.select(with_offset.alias("exact"), pl.col("offset").is_not_null().alias("says"))
    return pl.concat([placed, exact, frame.select(pl.col("fault").alias("own"))], how="horizontal").select(
        pl.when("says").then("exact").otherwise("time").alias("time"),
        pl.when("says").then("own").otherwise("fault").alias("fault"),
    )


def _offset() -> pl.Expr:
    """Minutes east of UTC, or NULL where the text says nothing."""
    digits = pl.col("offset").str.extract(r"^[+-](.+)$").str.replace(":", "").str.pad_end(4, "0")
    minutes = digits.str.slice(0, 2).cast(pl.Int64) * 60 + digits.str.slice(2, 2).cast(pl.Int64)
    signed = pl.when(pl.col("offset").str.starts_with("-")).then(-minutes).otherwise(minutes)
    return pl.when(pl.col("offset").str.contains("^(?:[Zz]|UTC)$")).then(pl.lit(0, pl.Int64)).otherwise(signed)


def _placed(frame: pl.DataFrame, zone: str) -> pl.DataFrame:
    """Wall times of the zone; one that a change of the clocks skips or repeats is a fault."""
    wall = pl.col("found").dt.replace_time_zone(zone, ambiguous="null", non_existent="null")
    frame = frame.with_columns(wall.dt.convert_time_zone("UTC").alias("time"))
    odd = pl.col("time").is_null() & pl.col("found").is_not_null()
    reason = pl.lit(f"is skipped or repeated by a change of the clocks in {zone}; give it with an offset")
    return frame.select("time", pl.when(odd).then(reason).otherwise("fault").alias("fault"))


def _epoch(cells: pl.Series, form: str) -> pl.DataFrame:
    factor = _EPOCHS[form]
    digits = len(str(factor)) - 1
    whole = cells.str.extract(r"^(-?[0-9]{1,17})(?:\.[0-9]*)?$").cast(pl.Int64, strict=False)
    part = cells.str.extract(r"^-?[0-9]+\.([0-9]*)$").fill_null("")
    frame = pl.DataFrame({"whole": whole, "part": part, "negative": cells.str.starts_with("-")}).with_columns(
        pl.col("part")
        .str.slice(0, digits)
        .str.pad_end(digits, "0")
        .str.replace("^$", "0")
        .cast(pl.Int64)
        .alias("rest"),
        (pl.col("part").str.slice(digits).str.strip_chars("0") != "").alias("finer"),
        (pl.col("whole").abs() <= 300_000_000_000_000_000 // factor).alias("near"),
    )
    signed = pl.when("negative").then(-pl.col("rest")).otherwise("rest")
    value = pl.when(pl.col("near") & ~pl.col("finer")).then(pl.col("whole") * factor + signed)
    return frame.select(
        value.cast(pl.Datetime("us", "UTC")).alias("time"),
        pl.when(value.is_null()).then(pl.lit(f"is no whole number of microseconds as {form}")).alias("fault"),
    )
