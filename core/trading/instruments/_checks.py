"""What makes a row of Kite's file valid, column by column."""

# pyright: reportUnknownMemberType=false
# The types of polars name numpy's, which is not installed.

import re
from collections.abc import Callable, Sequence
from datetime import date
from decimal import Decimal, InvalidOperation

import polars as pl

from core.database.records import LABEL_RULE, VENUE_RULE
from core.database.types import MONEY_PRECISION, MONEY_SCALE, checked_date

EXTRA = "beyond the last column"
LINE = "line number"
DECIMALS = ("last_price", "strike", "tick_size")
INTEGERS = ("instrument_token", "exchange_token", "lot_size")
INTEGER = r"^([0-9]{1,18})(?:\.0*)?$"

_NEEDED = ("instrument_token", "tradingsymbol", "instrument_type", "segment", "exchange")
_KINDS = ("EQ", "FUT", "CE", "PE")
_ZERO = r"^0+(?:\.0*)?$"
_DAY = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_CONTROL_BYTES = [bytes([byte]) for byte in (*range(0x20), 0x7F) if byte not in b"\r\n"]

_WHOLE, _FRACTION = MONEY_PRECISION - MONEY_SCALE, MONEY_SCALE
_PLAIN_DECIMAL = rf"^[0-9]{{1,{_WHOLE}}}(?:\.[0-9]{{1,{_FRACTION}}})?$"
_MAX_EXPONENT = 40


def may_hold_controls(data: bytes) -> bool:
    """Whether the file has any control character but the ends of its lines, or characters beyond ASCII that may be some."""
    if not data.isascii() or any(byte in data for byte in _CONTROL_BYTES):
        return True
    return data.count(b"\r") != data.count(b"\r\n")


def checks_of(frame: pl.DataFrame, *, suspicious: bool) -> Sequence[tuple[str, str, pl.Expr]]:
    """(field, reason, expression that is true for a bad row), in the order in which they are told.

    Control characters are looked for only in a `suspicious` file: searching a hundred thousand texts is dear. Where a column
    has few distinct values the patterns are tried on these.
    """
    column = pl.col
    option = column("instrument_type").is_in(["CE", "PE"])
    derivative = option | (column("instrument_type") == "FUT")
    label = f"^(?:{LABEL_RULE.pattern})$"
    return [
        ("line", "has more fields than the header", column(EXTRA).is_not_null()),
        *((field, "is missing", column(field).is_null()) for field in _NEEDED),
        *(
            (
                field,
                "holds a control character",
                ~column(field).str.contains(label) | column(field).str.contains("\0", literal=True),
            )
            for field in ("tradingsymbol", "name")
            if suspicious
        ),
        *(
            (
                field,
                f"is longer than {LABEL_RULE.max_length} characters",
                column(field).str.len_chars() > LABEL_RULE.max_length,
            )
            for field in ("tradingsymbol", "name")
        ),
        *(
            (field, "is not a whole number", column(field).is_not_null() & column(f"{field} number").is_null())
            for field in INTEGERS
        ),
        ("instrument_token", "must be above 0", column("instrument_token number") < 1),
        *(
            (
                field,
                f"is not a number of at most {_WHOLE} digits before and {_FRACTION} after the point",
                column(field).is_not_null() & column(f"{field} number").is_null(),
            )
            for field in DECIMALS
        ),
        *((field, "is negative", column(f"{field} number").str.starts_with("-")) for field in DECIMALS),
        *_among(frame, "instrument_type", f"is none of {', '.join(_KINDS)}", lambda kind: kind in _KINDS),
        *(_among(frame, "segment", VENUE_RULE.reason, _is_venue)),
        *(_among(frame, "exchange", VENUE_RULE.reason, _is_venue)),
        *_among(frame, "expiry", "is not a date such as 2026-11-26", _is_day),
        ("expiry", "is missing on a derivative", derivative & column("expiry").is_null()),
        ("expiry", "is given on what does not expire", ~derivative & column("expiry").is_not_null()),
        (
            "strike",
            "is missing on an option",
            option & (column("strike").is_null() | column("strike").str.contains(_ZERO)),
        ),
    ]


def _among(frame: pl.DataFrame, field: str, reason: str, fits: Callable[[str], bool]) -> list[tuple[str, str, pl.Expr]]:
    """A check of a column with few distinct values; none if all of them fit."""
    misfits = [value for value in frame[field].unique().drop_nulls().to_list() if not fits(value)]
    return [(field, reason, pl.col(field).is_in(misfits))] if misfits else []


def _is_venue(text: str) -> bool:
    return len(text) <= VENUE_RULE.max_length and re.fullmatch(VENUE_RULE.pattern, text) is not None


def _is_day(text: str) -> bool:
    try:
        return re.fullmatch(_DAY, text) is not None and bool(checked_date(date.fromisoformat(text)))
    except ValueError:
        return False


def canonical_decimals(series: pl.Series) -> pl.Series:
    """Each number as plain digits, exactly, or NULL where it is none that NUMERIC(28,10) holds.

    Nearly all match the pattern and are taken as they are; the few others (`1.0E-4`, `0.050000000000`) go through
    Decimal once per distinct text.
    """
    named = series.alias(f"{series.name} number")
    odd = series.drop_nulls().unique()
    odd = odd.filter(~odd.str.contains(_PLAIN_DECIMAL))
    if odd.is_empty():
        return named
    texts = odd.to_list()
    return named.replace_strict(texts, [exact_decimal(text) for text in texts], default=named, return_dtype=pl.String)


def exact_decimal(text: str) -> str | None:
    """A decimal number written plainly (`1.0E-4` is `0.0001`), or None if NUMERIC(28,10) cannot hold it exactly."""
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text, flags=re.ASCII):
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    if number == 0:
        return "0"
    if abs(number.adjusted()) > _MAX_EXPONENT:
        return None
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    while digits and digits[-1] == 0:
        digits, exponent = digits[:-1], exponent + 1
    if -exponent > _FRACTION or len(digits) + exponent > _WHOLE:
        return None
    return format(Decimal((sign, digits, exponent)), "f")
