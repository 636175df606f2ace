"""Strategies as YAML 1.2, read without losing a digit and without doing what a file might ask for.

    strategies:
      - strategy_id: momentum
        strategy_type: momentum
        active_brokers: [paper, zerodha]
        config: {universe: [NIFTY 50]}
        parameters: {lookback: 20, risk: 0.015}

One document with the list `strategies`, so that anchors serve all of them. JSON is YAML too. The library's scanner is
used, and nothing of what it constructs: a scalar is text, null, true or false, an int or a Decimal, by the core schema of
YAML 1.2, so that `no` and `2026-11-30` are text. Any other tag, a key twice, more than one document, and what would
expand beyond its bounds are refused with line and position.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from decimal import Decimal
from io import StringIO
from typing import Any, Final, cast

from ruamel.yaml import YAML
from ruamel.yaml.representer import SafeRepresenter

from core.database.errors import InvalidInput
from core.database.models.revisions import Path
from core.trading.strategies._document import Place, StrategyDocument
from core.trading.strategies._errors import StrategyFileError
from core.trading.strategies._rules import near, told
from core.trading.strategies._yaml_read import STR_TAG, Composer, Node, is_plain

LARGEST_FILE: Final = 4 * 2**20
"""Characters; what is declared by hand is far below."""


def read_documents(text: str | bytes, *, name: str = "the file") -> tuple[StrategyDocument, ...]:
    """The strategies that YAML or JSON text declares. Raises `StrategyFileError` and `InvalidInput`, each with the line."""
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise StrategyFileError(f"{name} is no UTF-8") from None
    if len(decoded) > LARGEST_FILE:
        raise StrategyFileError(
            f"{name} is larger than {LARGEST_FILE >> 20} MB", hint="Keep strategies in several files."
        )
    decoded = decoded.removeprefix("\ufeff")
    if not decoded.strip():
        raise StrategyFileError(f"{name} is empty", hint="It begins with a line: strategies:")
    return _documents(Composer(name).read(decoded), name)


def write_documents(documents: Iterable[StrategyDocument]) -> str:
    """YAML that `read_documents` reads as those documents."""
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 100
    yaml.allow_unicode = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    out = StringIO()
    yaml.dump({"strategies": [document.members() for document in documents]}, out)
    return out.getvalue()


def _documents(root: Node, name: str) -> tuple[StrategyDocument, ...]:
    documents: list[StrategyDocument] = []
    refused: list[InvalidInput] = []
    for item, places in _items(root, name):
        try:
            documents.append(StrategyDocument.of(item, places))
        except InvalidInput as fault:
            refused.append(fault)
    if refused:
        message, lines = told(refused)
        raise StrategyFileError(f"{name}: {message}", lines=lines, column=refused[0].column)
    return tuple(documents)


def _items(root: Node, name: str) -> Iterator[tuple[dict[str, Any], dict[Path, Place]]]:
    """The objects in the list, each with the places of its parts."""
    top: Any = root.value
    if not isinstance(top, dict) or "strategies" not in top:
        raise StrategyFileError(f"{name} has no list of strategies", hint="It begins with a line: strategies:")
    members = cast("dict[str, Any]", top)
    for key in members.keys() - {"strategies"}:
        place = root.places.get((key,), root.place)
        raise _at(name, place, f"{key[:60]!r} is no part of it{near(key, ['strategies'])}")
    listed = members["strategies"]
    if not isinstance(listed, list):
        raise _at(name, root.places["strategies",], "strategies: takes a list of objects")
    places: dict[int, dict[Path, Place]] = defaultdict(dict)
    for path, place in root.places.items():
        if len(path) > 1:
            places[cast("int", path[1])][path[2:]] = place
    for index, item in enumerate(cast("list[Any]", listed)):
        if not isinstance(item, dict):
            raise _at(name, places[index].get((), root.place), "strategies: takes a list of objects")
        yield cast("dict[str, Any]", item), places[index]


def _at(name: str, place: Place, reason: str) -> StrategyFileError:
    line, position = place
    return StrategyFileError(f"{name}, line {line}, position {position}: {reason}", line=line, position=position)


_Scalars: Any = SafeRepresenter  # the library has no types


class _Representer(_Scalars):
    """Values as they are read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, data: str) -> Any:
        return self.represent_scalar(STR_TAG, data, style=None if is_plain(data) else '"')

    def number(self, data: Decimal) -> Any:
        written = f"{data:f}"
        kind = "float" if "." in written else "int"
        return self.represent_scalar(f"tag:yaml.org,2002:{kind}", written)


_Representer.add_representer(str, _Representer.text)
_Representer.add_representer(Decimal, _Representer.number)
