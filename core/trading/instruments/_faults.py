"""What makes a row of a broker's file valid, column by column."""

# pyright: reportUnknownMemberType=false
# The types of polars name numpy's, which is not installed.

import re
from collections.abc import Sequence

import polars as pl

from core.database.records import LABEL_RULE, VENUE_RULE
from core.trading.instruments._columns import BEYOND, DECIMALS, LINE, Layout
from core.trading.instruments._mapping import Field_
from core.trading.instruments._numbers import FRACTION, WHOLE
from core.trading.instruments._report import RejectedRow

_ZERO = r"^0+(?:\.0*)?$"
_CONTROL = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"
_LONGEST_ATTRIBUTE = 4_000  # characters
_SHOWN = 40
_LABELS: tuple[Field_, ...] = ("trading_symbol", "name", "underlying", "exchange_token")
_CONTROL_BYTES = [bytes([byte]) for byte in (*range(0x20), 0x7F) if byte not in b"\r\n"]

Fault = tuple[str, str, pl.Expr, str]
"""The file's word for the field, the reason, an expression that is true for a bad row, and the column that holds the value."""


def may_hold_controls(data: bytes) -> bool:
    """Whether the text has any control character but the ends of its lines, or characters beyond ASCII that may be some."""
    if not data.isascii() or any(byte in data for byte in _CONTROL_BYTES):
        return True
    return b"\r" in data and data.count(b"\r") != data.count(b"\r\n")


def judged(
    frame: pl.DataFrame, layout: Layout, *, suspicious: bool
) -> tuple[pl.DataFrame, pl.DataFrame, list[RejectedRow]]:
    """The valid rows, the others, and the first fault of each of these.

    Control characters are looked for only in a `suspicious` file: searching a hundred thousand texts is dear.
    """
    faults = _faults(frame, layout, suspicious=suspicious)
    met = frame.select(bad.any().alias(str(number)) for number, (_, _, bad, _) in enumerate(faults)).row(0)
    verdicts = [pl.when(fault[2]).then(pl.lit(number, pl.Int16)) for number, fault in enumerate(faults) if met[number]]
    if not verdicts:
        return frame, frame.clear(), []
    frame = frame.with_columns(pl.coalesce(*verdicts).alias("verdict"))
    bad = frame.filter(pl.col("verdict").is_not_null())
    rejected: list[RejectedRow] = []
    for row in bad.iter_rows(named=True):
        verdict: int = row["verdict"]
        field, reason, _, place = faults[verdict]
        value = row.get(place)
        shown = f"{str(value)[:_SHOWN]!r} " if value is not None else ""
        rejected.append(RejectedRow(line=row[LINE], field=field, reason=f"{shown}{reason}"))
    return frame.filter(pl.col("verdict").is_null()), bad, rejected


def _faults(frame: pl.DataFrame, layout: Layout, *, suspicious: bool) -> Sequence[Fault]:
    """In the order in which they are told."""
    return [
        ("line", "has more fields than the header", pl.col(BEYOND).is_not_null(), ""),
        *_token_faults(layout, suspicious=suspicious),
        *_text_faults(layout, suspicious=suspicious),
        *_word_faults(frame, layout),
        *_number_faults(layout),
        *_derivative_faults(layout),
    ]


def _token_faults(layout: Layout, *, suspicious: bool) -> list[Fault]:
    name = layout.mapping.token.column
    place = layout.place(name)
    raw = pl.col(place)
    missing: Fault = (name, "is missing", raw.is_null(), place)
    if layout.mapping.token.text is not None:
        return [missing, *_label_faults(name, place, suspicious=suspicious)]
    number = pl.col("instrument_token")
    return [
        missing,
        (name, "is not a whole number", number.is_null(), place),
        (name, "must be above 0", number < 1, place),
    ]


def _text_faults(layout: Layout, *, suspicious: bool) -> list[Fault]:
    faults: list[Fault] = []
    for field in _LABELS:
        label = layout.label(field)
        if field == "trading_symbol":
            faults.append((label, "is missing", pl.col(field).is_null(), field))
        if suspicious:
            bad = ~pl.col(field).str.contains(f"^(?:{LABEL_RULE.pattern})$") | pl.col(field).str.contains(_CONTROL)
            faults.append((label, "holds a control character", bad, field))
        long = _length(field, suspicious=suspicious) > LABEL_RULE.max_length
        faults.append((label, f"is longer than {LABEL_RULE.max_length} characters", long, field))
    for name in (*layout.extra, *layout.mapping.attributes.keep):
        if not layout.has(name):
            continue
        place = layout.place(name)
        if suspicious:
            faults.append((name, "holds a control character", pl.col(place).str.contains(_CONTROL), place))
        long = _length(place, suspicious=suspicious) > _LONGEST_ATTRIBUTE
        faults.append((name, f"is longer than {_LONGEST_ATTRIBUTE:,} characters", long, place))
    return faults


def _label_faults(name: str, place: str, *, suspicious: bool) -> list[Fault]:
    long = _length(place, suspicious=suspicious) > LABEL_RULE.max_length
    faults: list[Fault] = [(name, f"is longer than {LABEL_RULE.max_length} characters", long, place)]
    if suspicious:
        faults.insert(0, (name, "holds a control character", pl.col(place).str.contains(_CONTROL), place))
    return faults


def _length(column: str, *, suspicious: bool) -> pl.Expr:
    """In characters; what is not suspicious is ASCII."""
    text = pl.col(column).str
    return text.len_chars() if suspicious else text.len_bytes()


def _word_faults(frame: pl.DataFrame, layout: Layout) -> list[Fault]:
    """Types and venues: few distinct words, so that patterns are tried on these alone."""
    kinds = layout.mapping.instrument_type
    names = ", ".join(repr(name) for name in kinds.names)
    exchange = layout.mapping.exchange
    place = layout.place(exchange.column)
    unknown = f"is none of {', '.join(exchange.names)}" if exchange.names else VENUE_RULE.reason
    return [
        (
            kinds.column,
            f"is none of {names}",
            pl.col("instrument_type").is_null(),
            layout.place(kinds.column),
        ),
        (exchange.column, "is missing", pl.col(place).is_null(), place),
        (exchange.column, unknown, pl.col("exchange").is_null() | _no_venue(frame, "exchange"), place),
        (layout.label("segment"), "is missing", pl.col("segment").is_null(), "segment"),
        (layout.label("segment"), VENUE_RULE.reason, _no_venue(frame, "segment"), "segment"),
    ]


def _no_venue(frame: pl.DataFrame, column: str) -> pl.Expr:
    misfits = [word for word in frame[column].unique().drop_nulls().to_list() if not _is_venue(word)]
    return pl.col(column).is_in(misfits)


def _is_venue(text: str) -> bool:
    return len(text) <= VENUE_RULE.max_length and re.fullmatch(VENUE_RULE.pattern, text) is not None


def _number_faults(layout: Layout) -> list[Fault]:
    faults: list[Fault] = []
    option = pl.col("instrument_type") == "OPT"
    for field in ("lot_size", *DECIMALS):
        picked = layout.mapping.picked(field)
        if picked is None or not layout.has(picked.column):
            continue
        label, place, number = picked.column, layout.place(picked.column), pl.col(f"number {field}")
        given = pl.col(place).is_not_null()
        if field == "strike":  # what others write there means none: 0, -1, -0.01
            given &= option
        if field == "lot_size":
            faults.append((label, "is not a whole number", given & number.is_null(), place))
            continue
        reason = f"is not a number of at most {WHOLE} digits before and {FRACTION} after the point"
        faults.append((label, reason, given & number.is_null(), place))
        faults.append((label, "is negative", given & number.str.starts_with("-"), place))
    return faults


def _derivative_faults(layout: Layout) -> list[Fault]:
    kind = pl.col("instrument_type")
    option, derivative = kind == "OPT", kind.is_in(["FUT", "OPT"])
    faults: list[Fault] = []
    rule = layout.mapping.expiry
    name, place = "expiry", ""
    if rule is not None and layout.has(rule.column):
        name, place = rule.column, layout.place(rule.column)
        unread = pl.col(place).is_not_null() & pl.col("expiry").is_null()
        faults.append((name, f"is not a date of the form {' or '.join(rule.dates)}", unread, place))
    strike = pl.col("number strike")
    option_column = layout.mapping.option_type.column if layout.mapping.option_type is not None else "option_type"
    return [
        *faults,
        (name, "is missing on a derivative", derivative & pl.col("expiry").is_null(), place),
        (name, "is given on what does not expire", ~derivative & pl.col("expiry").is_not_null(), place),
        (
            layout.label("strike"),
            "is missing on an option",
            option & (strike.is_null() | strike.str.contains(_ZERO)),
            "",
        ),
        (option_column, "is neither CE nor PE", option & pl.col("option_type").is_null(), option_column),
    ]
