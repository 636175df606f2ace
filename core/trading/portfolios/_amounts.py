"""Amounts written as text: taken exactly, or rounded to the scale where that is asked for and told."""

# pyright: reportUnknownMemberType=false
# The types of polars name numpy's, which is not installed.

import re
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from typing import NamedTuple

import polars as pl

from core.database.types import MONEY_PRECISION, MONEY_SCALE

_WHOLE = MONEY_PRECISION - MONEY_SCALE
_PLAIN = rf"^-?[0-9]{{1,{_WHOLE}}}(?:\.[0-9]{{1,{MONEY_SCALE}}})?$"
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_NO_NUMBER = re.compile(r"[+-]?(inf|infinity|nan)", re.IGNORECASE)
_QUANTUM = Decimal(1).scaleb(-MONEY_SCALE)
_LONGEST = 200  # characters; a float of 1e-308 written out has more, and rounds to nothing
_exact = Context(prec=_LONGEST * 2 + MONEY_PRECISION)
_round = Context(prec=_LONGEST * 2, rounding=ROUND_HALF_EVEN).quantize


class Amount(NamedTuple):
    """What a text means: plain digits that NUMERIC(28,10) holds, or why not."""

    text: str | None
    difference: Decimal = Decimal(0)
    """What rounding changed, without its sign."""
    fault: str | None = None


def read_amount(text: str, *, rounding: bool) -> Amount:
    """`1.50E3` is `1500`; digits beyond the tenth place are refused, or with `rounding` rounded half to even."""
    if _NO_NUMBER.fullmatch(text):
        return Amount(None, fault="is not finite")
    if len(text) > _LONGEST or _NUMBER.fullmatch(text) is None:
        return Amount(None, fault="is not a number")
    try:
        number = Decimal(text)
        if number and number.adjusted() >= _WHOLE:
            return Amount(None, fault=f"has more than {_WHOLE} digits before the point")
        stored = Decimal(0) if number and number.adjusted() < -_LONGEST else _round(number, _QUANTUM)
        difference = abs(_exact.subtract(number, stored))
    except InvalidOperation:
        return Amount(None, fault="is not a number")
    if difference and not rounding:
        return Amount(None, fault=f"has more than {MONEY_SCALE} digits after the point")
    if stored.adjusted() >= _WHOLE and stored:
        return Amount(None, fault=f"has more than {_WHOLE} digits before the point")
    return Amount(_plain(stored), difference)


def _plain(number: Decimal) -> str:
    """Without zeros at the end, and no zero with a sign."""
    text = format(number, "f").rstrip("0").rstrip(".")
    return "0" if text in {"", "-", "-0"} else text


class ReadColumn(NamedTuple):
    """A column of amounts: exact text or NULL, why it is NULL, and what rounding changed where it changed something."""

    text: pl.Series
    fault: pl.Series
    difference: dict[str, Decimal]
    """By the text of the file."""


def read_column(cells: pl.Series, *, rounding: bool) -> ReadColumn:
    """Nearly all texts match the pattern and are taken as they are; the others are read once each."""
    odd = cells.drop_nulls().unique()
    odd = odd.filter(~odd.str.contains(_PLAIN)).to_list()
    if not odd:
        return ReadColumn(cells, pl.Series(cells.name, [None], dtype=pl.String).new_from_index(0, len(cells)), {})
    read = {text: read_amount(text, rounding=rounding) for text in odd}
    return ReadColumn(
        cells.replace_strict(odd, [read[text].text for text in odd], default=cells, return_dtype=pl.String),
        cells.replace_strict(odd, [read[text].fault for text in odd], default=None, return_dtype=pl.String),
        {text: amount.difference for text, amount in read.items() if amount.difference},
    )
