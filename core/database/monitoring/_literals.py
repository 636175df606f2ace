"""SQL as it may be shown: with every literal blanked."""

import re
from functools import lru_cache

from core.database.monitoring._tokens import SqlToken, sql_tokens

_LONGEST_NAME = 63  # what is longer is no name, though it stands in double quotes
_LIST = re.compile(r"\?(?:, ?\?){2,}")
_BLANK = "?"
_MORE = "…"


@lru_cache(maxsize=1_000)
def without_literals(sql: str) -> str:
    """The statement on one line, its strings, numbers and comments replaced or dropped; names and $1 stay.

    For text that others wrote: a literal may be a secret. What cannot be told for certain is blanked: an unfinished
    string, all after a quote whose end is doubtful, and every value in SET. Never fails; the result holds no control
    character.
    """
    pieces: list[str] = []
    setting, blank = _Setting(), False
    for token in sql_tokens(sql):
        again, blank = blank, setting.holds_value(token)
        if blank:
            pieces.append("" if again else f" {_BLANK}")
        elif token.kind in ("space", "comment"):
            pieces.append(" ")
        else:
            pieces.append(_shown(token))
    text = " ".join("".join(pieces).split())
    return _LIST.sub(f"{_BLANK}, {_MORE}", text)


def _shown(token: SqlToken) -> str:
    match token.kind:
        case "string":
            return _BLANK if token.whole else f"{_BLANK} {_MORE}"
        case "number":
            return _BLANK
        case "quoted":
            short = token.whole and len(token.text) <= _LONGEST_NAME + 2
            return _printable(token.text) if short else f'"{_BLANK}"'
        case _:
            return _printable(token.text)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else _BLANK for char in text)


class _Setting:
    """Whether a piece is the value in `SET name = value`, where a bare word may be a password too."""

    def __init__(self) -> None:
        self._first = ""
        self._set = False
        self._value = False

    def holds_value(self, token: SqlToken) -> bool:
        if token.kind in ("space", "comment"):
            return self._value
        if token.text == ";":
            self._first, self._set, self._value = "", False, False
            return False
        if self._value:
            return True
        word = token.text.upper() if token.kind == "word" else ""
        self._first = self._first or word or token.text
        self._set = self._set or (word == "SET" and self._first in ("SET", "ALTER"))
        self._value = self._set and (word == "TO" or token.text == "=")
        return False
