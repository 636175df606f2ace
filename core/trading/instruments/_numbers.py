"""Decimal numbers as text, exactly."""

# pyright: reportUnknownMemberType=false
# The types of polars name numpy's, which is not installed.

import re
from decimal import Decimal, InvalidOperation

import polars as pl

from core.database.types import MONEY_PRECISION, MONEY_SCALE

WHOLE, FRACTION = MONEY_PRECISION - MONEY_SCALE, MONEY_SCALE
_PLAIN_DECIMAL = rf"^[0-9]{{1,{WHOLE}}}(?:\.[0-9]{{1,{FRACTION}}})?$"
_MAX_EXPONENT = 40
_WHOLE_NUMBER = r"^([0-9]{1,18})(?:\.0*)?$"
_MOST_DIGITS = 18


def whole_numbers(series: pl.Series) -> pl.Series:
    """Each number of at most 18 digits as an integer, `75.0` too, or NULL where it is none.

    The cast is several times as quick as the pattern, but takes signs as well.
    """
    numbers = series.cast(pl.Int64, strict=False)
    plain = (
        numbers.is_not_null()
        & (series.str.len_bytes() <= _MOST_DIGITS)
        & ~series.str.starts_with("-")
        & ~series.str.starts_with("+")
    )
    if (plain | series.is_null()).all():
        return numbers
    return series.str.extract(_WHOLE_NUMBER).cast(pl.Int64)


def canonical_decimals(series: pl.Series) -> pl.Series:
    """Each number as plain digits, exactly, or NULL where it is none that NUMERIC(28,10) holds.

    Nearly all match the pattern and are taken as they are; the few others (`1.0E-4`, `0.050000000000`) go through
    Decimal once per distinct text.
    """
    odd = series.drop_nulls().unique()
    odd = odd.filter(~odd.str.contains(_PLAIN_DECIMAL))
    if odd.is_empty():
        return series
    texts = odd.to_list()
    return series.replace_strict(texts, [exact_decimal(text) for text in texts], default=series, return_dtype=pl.String)


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
    if -exponent > FRACTION or len(digits) + exponent > WHOLE:
        return None
    return format(Decimal((sign, digits, exponent)), "f")
