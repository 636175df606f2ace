"""Text and bytes that the server will store as they are."""

import functools
import re
import sys
import unicodedata
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.sql.operators import OperatorType

from core.database.errors import InvalidInput
from core.database.types._strict import StrictType

_LONGEST_FOLDED = 1_000  # a name has 150 characters at the most, and no form of it four times as many
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def checked_text(value: object, max_length: int | None = None) -> str:
    """`value`, if it is a str that PostgreSQL can hold, of at most `max_length` characters.

    NUL, lone surrogates and other types raise `InvalidInput`.
    """
    if not isinstance(value, str):
        raise InvalidInput(f"takes str, not {type(value).__name__}")
    if type(value) is not str:
        value = str.__str__(value)
    if max_length is not None and len(value) > max_length:
        raise InvalidInput(f"is longer than {max_length} characters")
    # Not by the error of encoding it, which would hang on ours and holds the whole of it.
    if not value.isascii() and _SURROGATE.search(value) is not None:
        raise InvalidInput("holds a lone surrogate, which is not text")
    if "\x00" in value:
        raise InvalidInput("holds a NUL character, which PostgreSQL cannot store")
    return value


def folded(value: str) -> str:
    """The one form of a name that is the same however it was typed: Unicode NFKC, case-folded.

    Full-width and other compatibility forms, composed and decomposed accents, and the case of letters make no difference.
    What is far too long for a name is given back as it is: the time that normalising takes grows with the square.
    """
    if len(value) > _LONGEST_FOLDED:
        return value
    while (next_form := unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", value).casefold())) != value:
        value = next_form
    return value


@functools.cache
def folding_sql(expression: str) -> str:
    """What `folded` does as a SQL expression over another one, for rows that are in the database already; it is long."""
    single: dict[str, str] = {}
    plain = f"normalize({expression}, NFKC)"
    for character in map(chr, (*range(0xD800), *range(0xE000, sys.maxunicode + 1))):
        if character == unicodedata.normalize("NFKC", character) and (form := folded(character)) != character:
            if len(form) == 1:
                single[character] = form
            else:
                plain = f"replace({plain}, '{character}', '{form}')"
    return f"normalize(translate({plain}, '{''.join(single)}', '{''.join(single.values())}'), NFKC)"


class Text(StrictType[str]):
    """TEXT in collation "C": byte order, the same on every server, so an index never goes stale with the system's locale.

    `max_length` is counted in characters (code points, as PostgreSQL's length() does) and holds for what is stored, not
    for what is compared: a name that is too long is simply not found. Sorting for people is the reader's business.
    """

    impl = sa.Text
    cache_ok = True

    def __init__(self, max_length: int | None = None) -> None:
        super().__init__(collation="C")
        self.max_length = max_length
        self._compared: Self | None = None

    def convert(self, value: Any) -> str:
        return checked_text(value, self.max_length)

    def coerce_compared_value(self, op: OperatorType | None, value: Any) -> Any:
        if self.max_length is None:
            return self
        if self._compared is None or self._compared.column is not self.column:
            self._compared = type(self)()
            self._compared.column = self.column
        return self._compared


class FoldedText(Text):
    """TEXT that holds a name in the form of `folded`, in rows and comparisons alike: `column == "TRADER"` finds trader."""

    cache_ok = True

    def convert(self, value: Any) -> str:
        return checked_text(folded(checked_text(value)), self.max_length)


class Bytes(StrictType[bytes]):
    """BYTEA; only `bytes` is taken. `max_length` is in bytes."""

    impl = sa.LargeBinary
    cache_ok = True

    def __init__(self, max_length: int | None = None) -> None:
        super().__init__()
        self.max_length = max_length

    def convert(self, value: Any) -> bytes:
        if not isinstance(value, bytes):
            raise InvalidInput(f"takes bytes, not {type(value).__name__}")
        if self.max_length is not None and len(value) > self.max_length:
            raise InvalidInput(f"is longer than {self.max_length} bytes")
        return value
