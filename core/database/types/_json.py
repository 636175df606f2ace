"""JSON that loses nothing: exact numbers, text keys, bounded depth, nothing that PostgreSQL or Python would change."""

import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from json.encoder import encode_basestring
from math import isfinite
from typing import Any, Final, NoReturn, TypeAlias, cast

from pydantic import BaseModel

from core.database.errors import InvalidInput
from core.database.types._text import checked_text

JsonValue: TypeAlias = "dict[str, JsonValue] | list[JsonValue] | str | int | Decimal | bool | None"
"""What JSON is in Python here: a number with a point or an exponent is a Decimal."""

MAX_JSON_DEPTH = 64
"""Lists and objects within one another. At some thousands the stacks of Python and of the server end."""

_MAX_DIGITS = 1_000  # of a number written out, on either side of the point; NUMERIC and int() have limits further off
_PATH_SHOWN = 8
_MAX_BITS = (10**_MAX_DIGITS).bit_length() - 1


class _Refused(Exception):
    """Why a node is refused, and its path, gathered on the way up."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: list[str] = []

    def as_invalid_input(self) -> InvalidInput:
        if not self.path:
            return InvalidInput(self.reason)
        where = "".join(self.path[: -_PATH_SHOWN - 1 : -1]) + ("..." if len(self.path) > _PATH_SHOWN else "")
        return InvalidInput(f"{self.reason} (at ${where})")


def strict_json_dumps(value: object) -> str:
    """`value` as JSON text that reads back as the same value, here and in JSONB.

    Takes None, bool, int, Decimal, finite float, str, lists and tuples, mappings with str keys and Pydantic models (by
    their JSON form). int and Decimal are written as exact numbers, a float as the shortest decimal that means it.
    Raises `InvalidInput`, with the path of the culprit, for NaN, infinity, other types, keys that are not str, NUL, lone
    surrogates, numbers of more than 1,000 digits and more than `MAX_JSON_DEPTH` levels.
    """
    parts: list[str] = []
    try:
        _write(value, MAX_JSON_DEPTH, parts.append)
    except _Refused as fault:
        raise fault.as_invalid_input() from None
    return "".join(parts)


def strict_json_loads(text: str | bytes) -> Any:
    """The `JsonValue` that JSON text stands for: integers are int of any size, other numbers Decimal, digit for digit.

    Raises `InvalidInput` for NaN and Infinity, text that is not JSON, numbers beyond Python's limits, and more than
    `MAX_JSON_DEPTH` levels.
    """
    try:
        value = _DECODER.decode(
            text if isinstance(text, str) else text.decode(json.detect_encoding(text), "surrogatepass")
        )
    except RecursionError:
        raise InvalidInput(_too_deep().reason) from None
    except (ValueError, ArithmeticError):
        # The parser's own words may quote what is stored.
        raise InvalidInput("is not JSON, or holds NaN, infinity or a number out of range") from None
    brackets = text.count("[") + text.count("{") if isinstance(text, str) else text.count(b"[") + text.count(b"{")
    if brackets > MAX_JSON_DEPTH:  # cannot be too deep with fewer, and counting is cheaper than walking
        checked_json(value)
    return value


def checked_json(value: object) -> Any:
    """A deep copy of `value` made of `JsonValue`s: a float becomes the shortest Decimal that means it, a tuple a list.

    Raises what `strict_json_dumps` does.
    """
    try:
        return _node(value, MAX_JSON_DEPTH)
    except _Refused as fault:
        raise fault.as_invalid_input() from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


_DECODER: Final = json.JSONDecoder(parse_float=Decimal, parse_constant=_refuse_constant)
"""Made once: `json.loads` makes one for each document, which for a small one costs more than reading it."""


def _too_deep() -> _Refused:
    return _Refused(f"has more than {MAX_JSON_DEPTH} levels of lists and objects")


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise _Refused(f"keys must be str, not {type(key).__name__}")
    return _string(key)


def _string(value: str) -> str:
    if value.isascii() and "\x00" not in value:
        return value
    try:
        return checked_text(value)
    except InvalidInput as fault:
        raise _Refused(fault.message) from None


def _number(value: object) -> int | Decimal:
    if isinstance(value, int):
        if value.bit_length() > _MAX_BITS:
            raise _Refused(f"has more than {_MAX_DIGITS} digits")
        return int(value)
    if isinstance(value, float):
        if not isfinite(value):
            raise _Refused("must be a finite number")
        return Decimal(float.__repr__(value))
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise _Refused("must be a finite number")
        _, digits, exponent = value.as_tuple()
        if len(digits) > _MAX_DIGITS or abs(cast("int", exponent)) > _MAX_DIGITS:
            raise _Refused(f"has more than {_MAX_DIGITS} digits")
        return value if type(value) is Decimal else Decimal(value)
    raise _Refused(f"takes JSON values, not {type(value).__name__}")


def _node(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return _string(value)
    if value is None or value is True or value is False:
        return value
    if isinstance(value, Mapping):
        if not depth:
            raise _too_deep()
        members: dict[str, Any] = {}
        for key, member in cast("Mapping[Any, Any]", value).items():
            try:
                members[_key(key)] = _node(member, depth - 1)
            except _Refused as fault:
                fault.path.append(f"[{key!r}]")
                raise
        return members
    if isinstance(value, (list, tuple)):
        if not depth:
            raise _too_deep()
        elements: list[Any] = []
        for index, element in enumerate(cast("list[Any]", value)):
            try:
                elements.append(_node(element, depth - 1))
            except _Refused as fault:
                fault.path.append(f"[{index}]")
                raise
        return elements
    if isinstance(value, BaseModel):
        return _node(value.model_dump(mode="json"), depth)
    return _number(value)


def _write(value: Any, depth: int, out: Callable[[str], None]) -> None:
    # A writer of our own, since json.dumps cannot be made to write a Decimal as a number.
    if isinstance(value, str):
        out(encode_basestring(_string(value)))
    elif value is None:
        out("null")
    elif value is True:
        out("true")
    elif value is False:
        out("false")
    elif isinstance(value, Mapping):
        _write_object(cast("Mapping[Any, Any]", value), depth, out)
    elif isinstance(value, (list, tuple)):
        _write_array(cast("list[Any]", value), depth, out)
    elif isinstance(value, BaseModel):
        _write(value.model_dump(mode="json"), depth, out)
    else:
        out(str(_number(value)))


def _write_object(value: Mapping[Any, Any], depth: int, out: Callable[[str], None]) -> None:
    if not depth:
        raise _too_deep()
    before = "{"
    for key, member in value.items():
        try:
            out(before)
            out(encode_basestring(_key(key)))
            out(":")
            _write(member, depth - 1, out)
        except _Refused as fault:
            fault.path.append(f"[{key!r}]")
            raise
        before = ","
    out("{}" if before == "{" else "}")


def _write_array(value: list[Any], depth: int, out: Callable[[str], None]) -> None:
    if not depth:
        raise _too_deep()
    before = "["
    for index, element in enumerate(value):
        try:
            out(before)
            _write(element, depth - 1, out)
        except _Refused as fault:
            fault.path.append(f"[{index}]")
            raise
        before = ","
    out("[]" if before == "[" else "]")
