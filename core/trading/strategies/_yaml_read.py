"""The values that YAML text stands for, made of the scanner's events, each with its place."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

from core.database.models.revisions import Path
from core.trading.strategies._document import Place
from core.trading.strategies._errors import StrategyFileError

STR_TAG: Final = "tag:yaml.org,2002:str"
MERGE: Final = "<<"

_MOST_NODES = 200_000  # an alias counts as what it stands for
_DEEPEST = 70  # beyond what JSON here may have, which tells it better
_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?")
_OTHER = re.compile(r"[-+]?(?:[0-9][0-9_]*|\.inf|\.Inf|\.INF|0[xob][0-9a-fA-F_]+)|\.nan|\.NaN|\.NAN")
"""Numbers that readers of YAML do not agree on: 010 is ten or eight or text."""


def is_plain(text: str) -> bool:
    """Whether it is read as text without quotes."""
    return (
        text != MERGE
        and text.isprintable()
        and not any(rule.fullmatch(text) for rule in (_NULL, _BOOL, _INT, _FLOAT, _OTHER))
    )


@dataclass(slots=True)
class Node:
    """A value, how many it holds, and where its parts stand, by their paths from it."""

    value: Any
    size: int
    place: Place
    places: dict[Path, Place] = field(default_factory=dict[Path, Place])


class _Refused(Exception):
    def __init__(self, reason: str, mark: Any) -> None:
        super().__init__(reason)
        self.reason = reason
        self.mark = mark


class Composer:
    """Values of the scanner's events."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._anchors: dict[str, Node | None] = {}
        self._nodes = 0

    def read(self, text: str) -> Node:
        try:
            return self._document(iter(cast("Any", YAML(typ="safe", pure=True)).parse(text)))
        except _Refused as fault:
            raise self._error(fault.reason, fault.mark) from None
        except ReaderError:
            raise StrategyFileError(f"{self._name} holds a character that YAML does not allow") from None
        except MarkedYAMLError as error:
            fault: Any = error
            reason = " ".join(str(part) for part in (fault.context, fault.problem) if part)
            raise self._error(reason, fault.problem_mark or fault.context_mark) from None
        except RecursionError:
            raise StrategyFileError(f"{self._name} is too deep") from None
        except (YAMLError, ValueError, TypeError, AttributeError, IndexError, KeyError, AssertionError):
            # The library's scanner fails in many ways on what is no YAML, and its words may quote the file.
            raise StrategyFileError(f"{self._name} is no YAML") from None

    def _error(self, reason: str, mark: Any) -> StrategyFileError:
        if mark is None:
            return StrategyFileError(f"{self._name}: {reason}")
        line, position = mark.line + 1, mark.column + 1
        where = f"{self._name}, line {line}, position {position}"
        return StrategyFileError(f"{where}: {reason}", line=line, position=position)

    def _document(self, events: Iterator[Any]) -> Node:
        node: Node | None = None
        for event in events:
            kind = type(event).__name__
            if kind == "DocumentStartEvent":
                if node is not None:
                    raise _Refused("a second document begins; keep all strategies in one list", event.start_mark)
                if event.version is not None and tuple(event.version) != (1, 2):
                    raise _Refused("is not YAML 1.2; leave the %YAML line out", event.start_mark)
                node = self._node(next(events), events, 0)
        if node is None:
            raise StrategyFileError(f"{self._name} is empty", hint="It has a list: strategies: [...]")
        return node

    def _node(self, event: Any, events: Iterator[Any], depth: int) -> Node:
        self._nodes += 1
        if depth > _DEEPEST:
            raise _Refused("is too deep", event.start_mark)
        kind = type(event).__name__
        if kind == "AliasEvent":
            node = self._alias(event)
        else:
            if event.anchor is not None:
                self._anchors[event.anchor] = None  # known and not whole: it may not hold itself
            if kind == "ScalarEvent":
                node = Node(_scalar(event), 1, _place(event))
            elif event.tag is not None:
                raise _Refused("a tag is not understood here", event.start_mark)
            else:
                node = (self._list if kind == "SequenceStartEvent" else self._object)(event, events, depth)
            if event.anchor is not None:
                self._anchors[event.anchor] = node
        if self._nodes > _MOST_NODES:
            raise _Refused(f"comes to more than {_MOST_NODES:,} values", event.start_mark)
        return node

    def _alias(self, event: Any) -> Node:
        node = self._anchors.get(event.anchor)
        if node is None:
            known = event.anchor in self._anchors
            reason = "an anchor holds itself" if known else "there is no such anchor above"
            raise _Refused(reason, event.start_mark)
        self._nodes += node.size
        return Node(node.value, node.size, _place(event))

    def _list(self, event: Any, events: Iterator[Any], depth: int) -> Node:
        made = Node([], 1, _place(event))
        while type(inner := next(events)).__name__ != "SequenceEndEvent":
            self._add(made, len(made.value), self._node(inner, events, depth + 1))
        return made

    def _object(self, event: Any, events: Iterator[Any], depth: int) -> Node:
        made = Node({}, 1, _place(event))
        merged: list[Mapping[str, Any]] = []
        while type(inner := next(events)).__name__ != "MappingEndEvent":
            key, is_merge = self._key(inner)
            node = self._node(next(events), events, depth + 1)
            if is_merge:
                merged += _mergeable(node, inner)
                made.size += node.size
            elif key in made.value:
                raise _Refused(f"the key {key[:60]!r} stands there twice", inner.start_mark)
            else:
                self._add(made, key, node)
        for mapping in merged:
            for key, value in mapping.items():
                made.value.setdefault(key, value)
        return made

    def _key(self, event: Any) -> tuple[str, bool]:
        self._nodes += 1
        if type(event).__name__ != "ScalarEvent" or event.anchor is not None:
            raise _Refused("a key must be plain text", event.start_mark)
        if event.value == MERGE and event.implicit[0] and event.tag is None:
            return MERGE, True
        key = _scalar(event)
        if not isinstance(key, str):
            raise _Refused("a key must be text; put it in quotes", event.start_mark)
        return key, False

    @staticmethod
    def _add(made: Node, key: Any, node: Node) -> None:
        if isinstance(key, int):
            made.value.append(node.value)
        else:
            made.value[key] = node.value
        made.size += node.size
        made.places[key,] = node.place
        made.places.update({(key, *path): place for path, place in node.places.items()})


def _scalar(event: Any) -> Any:
    text = str(event.value)
    if event.tag is not None:
        if event.tag == STR_TAG:
            return text
        raise _Refused("a tag is not understood here", event.start_mark)
    if not event.implicit[0]:  # in quotes, or a block
        return text
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text[0] in "tT"
    if _INT.fullmatch(text) or _FLOAT.fullmatch(text):
        return _number(text, event)
    if _OTHER.fullmatch(text):
        raise _Refused(f"{text[:40]} is no plain number; write it out, or put text in quotes", event.start_mark)
    return text


def _number(text: str, event: Any) -> int | Decimal:
    if len(text) > 1_000:
        raise _Refused("a number has more than 1,000 digits", event.start_mark)
    return int(text) if _INT.fullmatch(text) else Decimal(text)


def _mergeable(node: Node, key: Any) -> list[Mapping[str, Any]]:
    value: Any = node.value
    found = cast("list[Any]", value) if isinstance(value, list) else [value]
    if not all(isinstance(item, dict) for item in found):
        raise _Refused("<< takes an object, or a list of them", key.start_mark)
    return cast("list[Mapping[str, Any]]", found)


def _place(event: Any) -> Place:
    return event.start_mark.line + 1, event.start_mark.column + 1
