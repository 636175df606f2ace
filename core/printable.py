"""Text of others made harmless for a log, a terminal or an error's words: what is not seen, or steers, becomes a visible escape.

Names, cells of files and a server's messages come from others. A line break in one of them forges a line of a log, an escape
sequence steers the terminal, a bidi control turns the reading order round, a lone surrogate makes the write fail. The original
text is never needed there: what is stored and what is printed as JSON stays as it was given.
"""

import unicodedata
from pathlib import PurePath
from typing import Any, cast

__all__ = ["printable", "printable_value"]

_UNSEEN = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})
"""Unicode's categories of controls, format characters, line and paragraph separators and surrogates."""
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_DEEPEST = 20


class _Escapes(dict[int, str]):
    """For `str.translate`; asked for one character at a time, and grows by none."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if unicodedata.category(char) not in _UNSEEN:
            return char
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


_ESCAPES = _Escapes({ord(char): escape for char, escape in _SHORT.items()})


def printable(text: str) -> str:
    r"""`text` on one line, each control, format, separator and surrogate character as its escape: `\n`, `\x1b`, `\u202e`."""
    return text if text.isprintable() else text.translate(_ESCAPES)


def printable_value(value: Any, depth: int = 0) -> Any:
    """The same for all text in a value, in dicts, lists, tuples and sets too; other values are handed back as they are.

    An exception or a path whose text is not printable becomes its text.
    """
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, BaseException | PurePath):
        text = str(value)
        return value if text.isprintable() else printable(text)
    if not isinstance(value, dict | list | tuple | set | frozenset):
        return value
    if depth == _DEEPEST:  # it holds itself, or is deeper than anybody reads
        return "..."
    held: Any = cast("Any", value)
    if isinstance(value, dict):
        return {printable_value(key, depth + 1): printable_value(item, depth + 1) for key, item in held.items()}
    parts = [printable_value(part, depth + 1) for part in held]
    return parts if isinstance(value, list) else tuple(parts) if isinstance(value, tuple) else set(parts)
