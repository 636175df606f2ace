"""What differs between two JSON values, path by path."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import SequenceMatcher
from enum import Enum
from typing import Any, Final, TypeAlias, TypeGuard, cast

Path: TypeAlias = tuple[str | int, ...]

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_COMPARED = 250_000  # pairs of elements, equal ends aside; beyond that one list has become another


class _Absent(Enum):
    ABSENT = "absent"

    def __repr__(self) -> str:
        return "ABSENT"

    def __bool__(self) -> bool:
        return False


ABSENT: Final = _Absent.ABSENT
"""Stands for what is not there, where None is JSON's null."""


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One place that is not the same: `before` is `ABSENT` where something came, `after` where something went.

    In a list a number of `path` counts the elements that are there after the change, or, of an element that went, those
    that were there before it.
    """

    path: Path
    before: Any
    after: Any

    @property
    def where(self) -> str:
        """The path as text: `parameters.risk`, `config.legs[0].side`."""
        return written(self.path)


def written(path: Path) -> str:
    """`parameters.risk`, `config.legs[0].side`; keys that are no plain words in quotes."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_KEY.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{json.dumps(part)}]"
    return text


def same(before: Any, after: Any) -> bool:
    """Whether they are one JSON value. Numbers are compared by what they are worth; true is not 1."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        a, b = cast("Mapping[str, Any]", before), cast("Mapping[str, Any]", after)
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if _is_list(before) and _is_list(after):
        return len(before) == len(after) and all(map(same, before, after))
    if isinstance(before, bool) or isinstance(after, bool):
        return before is after
    return before == after


def differences(before: Any, after: Any, path: Path = ()) -> Iterator[FieldChange]:
    """Every place in which `after` differs, objects by key and lists by the elements that came, went and changed."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        yield from _of_objects(cast("Mapping[str, Any]", before), cast("Mapping[str, Any]", after), path)
    elif _is_list(before) and _is_list(after):
        yield from _of_lists(before, after, path)
    elif not same(before, after):
        yield FieldChange(path, plain(before), plain(after))


def plain(value: Any) -> Any:
    """A copy without the tracking of a stored document."""
    if isinstance(value, Mapping):
        return {key: plain(member) for key, member in cast("Mapping[str, Any]", value).items()}
    if _is_list(value):
        return [plain(element) for element in value]
    return value


def _of_objects(before: Mapping[str, Any], after: Mapping[str, Any], path: Path) -> Iterator[FieldChange]:
    for key, value in before.items():
        if key not in after:
            yield FieldChange((*path, key), plain(value), ABSENT)
        else:
            yield from differences(value, after[key], (*path, key))
    for key, value in after.items():
        if key not in before:
            yield FieldChange((*path, key), ABSENT, plain(value))


def _of_lists(before: Sequence[Any], after: Sequence[Any], path: Path) -> Iterator[FieldChange]:
    for old, new in _aligned(before, after):
        if len(old) * len(new) > _COMPARED and len(old) != len(new):
            yield FieldChange(path, plain(before), plain(after))
            return
        common = min(len(old), len(new))
        for index in range(common):
            yield from differences(before[old[index]], after[new[index]], (*path, new[index]))
        for index in old[common:]:
            yield FieldChange((*path, index), plain(before[index]), ABSENT)
        for index in new[common:]:
            yield FieldChange((*path, index), ABSENT, plain(after[index]))


def _aligned(before: Sequence[Any], after: Sequence[Any]) -> Iterator[tuple[range, range]]:
    """The stretches that differ. Lists of one length are compared in place: their elements changed, and did not move."""
    if len(before) == len(after):
        yield range(len(before)), range(len(after))
        return
    old, new = list(map(_token, before)), list(map(_token, after))
    shorter = min(len(old), len(new))
    start = next((n for n in range(shorter) if old[n] != new[n]), shorter)
    left = shorter - start
    end = next((n for n in range(left) if old[-1 - n] != new[-1 - n]), left)
    old, new = old[start : len(old) - end], new[start : len(new) - end]
    if len(old) * len(new) > _COMPARED:
        yield range(start, start + len(old)), range(start, start + len(new))
        return
    for kind, i1, i2, j1, j2 in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind != "equal":
            yield range(start + i1, start + i2), range(start + j1, start + j2)


def _token(value: Any) -> str:
    """One text for all that is the same."""
    return json.dumps(_normal(value))


def _normal(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _normal(member) for key, member in sorted(cast("Mapping[str, Any]", value).items())}
    if _is_list(value):
        return [_normal(element) for element in value]
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return f"number {_digits(Decimal(value))}"
    return f"text {value}" if isinstance(value, str) else value


def _digits(value: Decimal) -> str:
    """Exact, whatever the caller's decimal context is."""
    sign, digits, exponent = value.as_tuple()
    text = "".join(map(str, digits)).lstrip("0")
    kept = text.rstrip("0")
    return f"{'-' * sign}{kept}e{cast('int', exponent) + len(text) - len(kept)}" if kept else "0"


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str)
