"""The values that columns and records share, each with the rule that its CHECK constraint states too."""

import re
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from core.database.errors import InvalidInput
from core.database.types import checked_date, checked_money, checked_text, checked_utc, folded

_EDGE = r"[^\u0001-\u0020\u007f-\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_INNER = r"[^\u0001-\u001f\u007f-\u009f\u2028\u2029]"
_PLAIN = f"{_EDGE}({_INNER}*{_EDGE})?"
# Invisible, or changing the direction of what follows: in a name they would make two that look the same, or forge a line.
_HIDDEN = (
    r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    r"\ufeff\uffa0\ufff0-\uffff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_NAME_EDGE = f"{_EDGE[:-1]}A-Z{_HIDDEN}]"
_NAME_INNER = f"{_INNER[:-1]}A-Z{_HIDDEN}]"
_NUMBER = re.compile(r"-?[0-9]{1,100}(\.[0-9]{1,100})?([eE][+-]?[0-9]{1,4})?")


@dataclass(frozen=True, slots=True)
class TextRule:
    """A shape of text: the whole of it matches `pattern`, in at most `max_length` characters.

    `pattern` is written in what Python's `re` and PostgreSQL's `~` read alike (no class whose meaning depends on the
    locale), so that a record and the table's CHECK constraint hold the same rule.
    """

    pattern: str
    max_length: int
    reason: str

    def __call__(self, value: str) -> str:
        """`value`, or `InvalidInput`."""
        value = checked_text(value, self.max_length)
        if re.fullmatch(self.pattern, value) is None:
            raise InvalidInput(self.reason)
        return value


def _plain(max_length: int) -> TextRule:
    reason = "must not be empty, begin or end with a blank, or hold control characters"
    return TextRule(_PLAIN, max_length, reason)


USERNAME_RULE = TextRule(
    f"{_NAME_EDGE}({_NAME_INNER}*{_NAME_EDGE})?",
    150,
    "must not be empty, begin or end with a blank, or hold control or invisible characters",
)
"""Of a name that is `folded` already."""
PASSWORD_HASH_RULE = _plain(1_024)
IDENTIFIER_RULE = _plain(128)
LABEL_RULE = _plain(200)
NOTE_RULE = _plain(1_000)
BROKER_RULE = TextRule("[a-z][a-z0-9_-]*", 32, "must be a lower-case name: a letter, then letters, digits, - or _")
VENUE_RULE = TextRule("[A-Z][A-Z0-9_-]*", 32, "must be an upper-case name: a letter, then letters, digits, - or _")
CURRENCY_RULE = TextRule("[A-Z]{3}", 3, "must be a currency code of three capitals, such as INR")


def checked_username(value: str) -> str:
    """The name as it is stored, `folded`; raises `InvalidInput` for one that is none."""
    return USERNAME_RULE(folded(checked_text(value)))


Username: TypeAlias = Annotated[str, AfterValidator(checked_username)]
"""Whatever form it is given in, it is held as `folded`."""
PasswordHash: TypeAlias = Annotated[str, AfterValidator(PASSWORD_HASH_RULE), Field(repr=False)]
Identifier: TypeAlias = Annotated[str, AfterValidator(IDENTIFIER_RULE)]
"""A key made by the application: of a session, a strategy, a portfolio."""
Label: TypeAlias = Annotated[str, AfterValidator(LABEL_RULE)]
Note: TypeAlias = Annotated[str, AfterValidator(NOTE_RULE)]
Symbol: TypeAlias = Annotated[str, AfterValidator(LABEL_RULE)]
BrokerName: TypeAlias = Annotated[str, AfterValidator(BROKER_RULE)]
Venue: TypeAlias = Annotated[str, AfterValidator(VENUE_RULE)]
"""An exchange or a segment, such as NSE, NFO-OPT or INDICES."""
Currency: TypeAlias = Annotated[str, AfterValidator(CURRENCY_RULE)]

InstrumentType: TypeAlias = Literal["EQ", "FUT", "OPT", "IDX"]
OptionType: TypeAlias = Literal["CE", "PE"]
UserId: TypeAlias = Annotated[int, Field(ge=1, le=2**63 - 1)]
InstrumentToken: TypeAlias = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
LotSize: TypeAlias = Annotated[int, Field(ge=0, le=2**63 - 1)]
Version: TypeAlias = Annotated[int, Field(ge=1, le=2**31 - 1)]


def _money(value: Any, info: ValidationInfo) -> Decimal:
    if info.mode == "json" and isinstance(value, str):
        if _NUMBER.fullmatch(value) is None:
            raise InvalidInput("must be a decimal number")
        try:
            value = Decimal(value)
        except InvalidOperation:
            raise InvalidInput("is out of range") from None
    return checked_money(value)


def _not_negative(value: Decimal) -> Decimal:
    if value < 0:
        raise InvalidInput("must not be negative")
    return value


def _positive(value: Decimal) -> Decimal:
    if value <= 0:
        raise InvalidInput("must be above 0")
    return value


MoneyValue: TypeAlias = Annotated[Decimal, BeforeValidator(_money)]
"""Decimal or int that NUMERIC(28,10) holds exactly; text in JSON, where a number with a point is refused as a float."""
TickSize: TypeAlias = Annotated[MoneyValue, AfterValidator(_not_negative)]
Strike: TypeAlias = Annotated[MoneyValue, AfterValidator(_positive)]
AwareUtc: TypeAlias = Annotated[datetime, AfterValidator(checked_utc)]
"""An aware datetime of any zone, held in UTC."""
CalendarDate: TypeAlias = Annotated[date, AfterValidator(checked_date)]
