"""JSON that loses nothing: exact numbers, text keys, bounded depth, nothing that PostgreSQL or Python would change."""

import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from json.encoder import encode_basestring  # pyright: ignore[reportUnknownVariableType]
from math import isfinite
from typing import Any, cast

from core.database.errors import InvalidInput
from core.database.types._text import checked_text

MAX_JSON_DEPTH = 64
"""Lists and objects within one another; at some thousands Python's and the server's stacks end."""
_MAX_DIGITS = 1_000
"""Digits of a number written out, on either side of the point: far above any use, far below the limits of NUMERIC and int()."""
_MAX_BITS = (10**_MAX_DIGITS).bit_length() - 1

_quoted = cast("Callable[[str], str]", encode_basestring)

type_name = "dict[str, Any] | list[Any] | str | int | Decimal | bool | None"


class _Fault(Exception):  # noqa: N818
    """Why a node is refused; the path is gathered on the way up."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path: list[str] = []

    def told(self) -> InvalidInput:
        path = "".join(reversed(self.path))
        return InvalidInput(f"{self.args[0]} (at ${path})")


def checked_key(key: object) -> str:
    """A key of a JSON object; raises `_Fault`."""
    if not isinstance(key, str):
        raise _Fault(f"keys must be str, not {type(key).__name__}")
    return checked_string(key)
