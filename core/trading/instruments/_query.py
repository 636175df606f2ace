"""What somebody who types a line is looking for: a symbol, words of a name, a contract by its terms."""

import re
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from core.database.errors import InvalidInput
from core.database.types import checked_text

_LONGEST = 200
_LONGEST_NUMBER = 18
"""Digits before the point, as the column for strikes holds."""
_SIDES = {"CE": "CE", "CALL": "CE", "CALLS": "CE", "PE": "PE", "PUT": "PE", "PUTS": "PE"}
_KINDS = {"FUT": "FUT", "FUTURE": "FUT", "FUTURES": "FUT", "OPT": "OPT", "OPTION": "OPT", "OPTIONS": "OPT"}
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_MONTH = (
    "(?:JAN(?:UARY)?|FEB(?:RUARY)?|MAR(?:CH)?|APR(?:IL)?|MAY|JUNE?|JULY?|AUG(?:UST)?|SEP(?:T|TEMBER)?|OCT(?:OBER)?"
    "|NOV(?:EMBER)?|DEC(?:EMBER)?)"
)
_DATE = re.compile(rf"(\d{{1,2}})?[-/]?({_MONTH})[-/]?(20\d\d|\d{{1,2}})?")
_ISO = re.compile(r"\d{4}-\d\d-\d\d")
_STRIKE = re.compile(rf"([0-9]{{1,{_LONGEST_NUMBER}}}(?:\.[0-9]{{1,10}})?)(CE|PE)?")
_WORD = re.compile("[A-Z0-9]+")
_SHORTEST_PREFIX = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """A typed line, in capitals and with single blanks, and what its parts may mean.

    `name` is what is left of it when strikes, sides, kinds and expiries are taken out, without blanks: the underlying's.
    """

    text: str
    words: tuple[str, ...]
    """Runs of letters and digits; of three characters and more they are beginnings, shorter ones whole words."""
    name: str = ""
    strike: Decimal | None = None
    option_type: str | None = None
    kind: str | None = None
    expiry: date | None = None
    month: int | None = None
    numbers: tuple[int, ...] = ()
    """Beside a month: its day, or a year of this century."""

    @property
    def squeezed(self) -> str:
        """The text without blanks."""
        return self.text.replace(" ", "")

    @property
    def has_terms(self) -> bool:
        """It says more of a contract than whose it is."""
        return any(term is not None for term in (self.strike, self.option_type, self.kind, self.expiry, self.month))

    @property
    def lexemes(self) -> str:
        """The words as PostgreSQL's tsquery; they hold nothing that it takes for an operator."""
        return " & ".join(f"{word}:*" if len(word) >= _SHORTEST_PREFIX else word for word in self.words)


def parse(text: str) -> Query:
    """Read a line. Raises `InvalidInput` if it is blank, too long, or no text at all."""
    try:
        line = " ".join(upper(checked_text(text, _LONGEST)).split())
    except InvalidInput as fault:
        raise InvalidInput(f"text: {fault.message}", column="text") from None
    if not line:
        raise InvalidInput("text: must not be empty", column="text")
    terms = _Terms()
    for part in line.split(" "):
        terms.read(part)
    strikes, numbers = terms.numbers()
    return Query(
        text=line,
        words=tuple(dict.fromkeys(_WORD.findall(line))),
        name="".join(terms.names),
        strike=strikes[-1] if strikes else None,
        option_type=terms.option_type,
        kind=terms.kind or ("OPT" if terms.option_type or strikes else None),
        expiry=terms.expiry,
        month=terms.month,
        numbers=numbers,
    )


def upper(text: str) -> str:
    """In capitals as PostgreSQL has it in collation "C": a to z alone."""
    return re.sub("[a-z]+", lambda found: found[0].upper(), text)


def after(prefix: str) -> str:
    """The least text that is above all those that begin with `prefix`, in the order of collation "C"."""
    for end in range(len(prefix) - 1, -1, -1):
        code = ord(prefix[end]) + 1
        if code <= 0x10FFFF:
            return prefix[:end] + chr(0xE000 if 0xD800 <= code <= 0xDFFF else code)
    return chr(0x10FFFF) * (_LONGEST + 1)


class _Terms:
    """The parts of a line, by what each can be."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.option_type: str | None = None
        self.kind: str | None = None
        self.expiry: date | None = None
        self.month: int | None = None
        self._read: list[tuple[str, Decimal | None]] = []
        """Numbers and, as None, the month, in their order."""
        self._given: tuple[int, ...] = ()

    def read(self, part: str) -> None:
        if part in _SIDES:
            self.option_type = _SIDES[part]
        elif part in _KINDS:
            self.kind = _KINDS[part]
        elif _ISO.fullmatch(part) and (day := _day(part)) is not None:
            self.expiry = day
        elif found := _DATE.fullmatch(part):
            self.month = _MONTHS.index(found[2][:3]) + 1
            self._given = tuple(int(number) for number in (found[1], found[3]) if number)
            self._read.append((part, None))
        elif found := _STRIKE.fullmatch(part):
            self._read.append((part, Decimal(found[1])))
            self.option_type = found[2] or self.option_type
        else:
            self.names.append(part)

    def numbers(self) -> tuple[list[Decimal], tuple[int, ...]]:
        """Strikes, and what stands beside a month and belongs to it."""
        strikes: list[Decimal] = []
        numbers = list(self._given)
        for place, (part, number) in enumerate(self._read):
            if number is None:
                continue
            beside = any(0 <= near < len(self._read) and self._read[near][1] is None for near in (place - 1, place + 1))
            if beside and re.fullmatch(r"20\d\d|\d\d?", part):
                numbers.append(int(part))
            elif number > 0:
                strikes.append(number)
        return strikes, tuple(numbers)


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None
