"""Money and integers that are refused rather than changed."""

from decimal import (
    ROUND_05UP,
    ROUND_CEILING,
    ROUND_DOWN,
    ROUND_FLOOR,
    ROUND_HALF_DOWN,
    ROUND_HALF_EVEN,
    ROUND_HALF_UP,
    ROUND_UP,
    Context,
    Decimal,
    Inexact,
    InvalidOperation,
)
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.operators import OperatorType, is_comparison

from core.database.errors import InvalidInput
from core.database.types._strict import StrictType

MONEY_PRECISION = 28
MONEY_SCALE = 10

_ROUNDINGS = (
    ROUND_HALF_EVEN, ROUND_HALF_UP, ROUND_HALF_DOWN, ROUND_UP, ROUND_DOWN, ROUND_CEILING, ROUND_FLOOR, ROUND_05UP,
)  # fmt: skip
_QUANTUM = Decimal(1).scaleb(-MONEY_SCALE)
_ZERO = Decimal(0)
_EXACT = Context(prec=MONEY_PRECISION, traps=[Inexact, InvalidOperation])
_fits = _EXACT.quantize


def checked_money(value: object) -> Decimal:
    """`value` as the Decimal that it is, if NUMERIC(28,10) holds it exactly.

    Decimal and int are taken. float, bool, str, NaN, infinity, more than 10 places after the point or more than 18 before
    it raise `InvalidInput`; `round_money` rounds where that is meant.
    """
    try:
        if type(value) is Decimal:
            if _fits(value, _QUANTUM) == value:  # NaN equals nothing
                return value or _ZERO  # a zero may carry any exponent
        elif isinstance(value, int) and not isinstance(value, bool):
            exact = Decimal(value)
            _fits(exact, _QUANTUM)
            return exact
        elif isinstance(value, Decimal):
            return checked_money(Decimal(value))
    except (Inexact, InvalidOperation):
        pass
    raise InvalidInput(_money_fault(value))


def _money_fault(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (Decimal, int)):
        return f"takes Decimal or int, not {type(value).__name__}"
    if isinstance(value, Decimal) and not value.is_finite():
        return "must be a finite number"
    if Decimal(value).adjusted() >= MONEY_PRECISION - MONEY_SCALE:
        return f"has more than {MONEY_PRECISION - MONEY_SCALE} digits before the point"
    return f"has more than {MONEY_SCALE} digits after the point; round it first with round_money()"


def round_money(value: Decimal | int, rounding: str = ROUND_HALF_EVEN) -> Decimal:
    """`value` rounded to 10 places by one of the `decimal.ROUND_...` modes.

    Raises `InvalidInput` for anything but a finite Decimal or int that then fits, and for another mode.
    """
    if rounding not in _ROUNDINGS:
        raise InvalidInput(f"rounding: there is no mode {rounding!r}", hint=f"Give one of {', '.join(_ROUNDINGS)}.")
    if isinstance(value, bool) or not isinstance(value, (Decimal, int)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput(_money_fault(value))
    try:
        rounded = Context(prec=MONEY_PRECISION, rounding=rounding, traps=[InvalidOperation]).quantize(value, _QUANTUM)
    except InvalidOperation:
        raise InvalidInput(_money_fault(value)) from None
    return checked_money(rounded)


class Money(StrictType[Decimal]):
    """An amount, price, strike, tick or quantity: NUMERIC(28,10), `decimal.Decimal` both ways, in the row's currency.

    What is refused is said at `checked_money`.
    """

    impl = sa.Numeric
    cache_ok = True

    def __init__(self) -> None:
        super().__init__(MONEY_PRECISION, MONEY_SCALE)

    def convert(self, value: Any) -> Decimal:
        return checked_money(value)


class _Integer(StrictType[int]):
    impl = sa.Integer
    cache_ok = True
    _low: int
    _high: int

    def convert(self, value: Any) -> int:
        # bool is a subclass of int, so the type is compared, not the ancestry.
        if type(value) is int:
            if self._low <= value <= self._high:
                return value
            raise InvalidInput(f"must be from {self._low} to {self._high}")
        if isinstance(value, int) and not isinstance(value, bool):
            return self.convert(int(value))
        raise InvalidInput(f"takes int, not {type(value).__name__}")

    def coerce_compared_value(self, op: OperatorType | None, value: Any) -> Any:
        # `lots * Decimal("0.5")` is arithmetic with another type; `lots == 5.7` is a mistake.
        if op is not None and not is_comparison(op) and not isinstance(value, (int, float)):
            return self.impl_instance.coerce_compared_value(op, value)
        return self


class Integer32(_Integer):
    """A whole number in INTEGER. True, 5.7, "5" and what does not fit raise `InvalidInput`."""

    impl = sa.Integer
    cache_ok = True
    _low, _high = -(2**31), 2**31 - 1


class Integer64(_Integer):
    """A whole number in BIGINT. True, 5.7, "5" and what does not fit raise `InvalidInput`."""

    impl = sa.BigInteger
    cache_ok = True
    _low, _high = -(2**63), 2**63 - 1


class Boolean(StrictType[bool]):
    """True or False; 0, 1 and "true" raise `InvalidInput`."""

    impl = sa.Boolean
    cache_ok = True

    def convert(self, value: Any) -> bool:
        if value is True or value is False:
            return value
        raise InvalidInput(f"takes bool, not {type(value).__name__}")
