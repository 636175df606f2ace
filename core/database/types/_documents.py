"""What stands in a JSONB column: Pydantic models, strict and typed, that know when they change."""

import json
from collections.abc import Iterable, Iterator, MutableSequence
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast, overload

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, RootModel, ValidationError

from core.database.errors import InvalidInput
from core.database.types._json import strict_json_dumps
from core.database.types._tracking import Signal, TrackedDict, TrackedList, signal_of

Item = TypeVar("Item")

_ATOMS = frozenset({str, int, bool, type(None), Decimal, float, datetime, date})


def invalid_input(fault: ValidationError) -> InvalidInput:
    """A validation error as one of ours: each place and what is wrong there, never the value."""
    lines: list[str] = []
    errors = fault.errors(include_url=False, include_context=False, include_input=False)
    for error in errors:
        if error["type"] == "default_factory_not_called" and len(errors) > 1:
            continue  # it only says that there are others
        place = ".".join(str(part) for part in error["loc"])
        reason = error["msg"].removeprefix("Value error, ")
        lines.append(f"{place}: {reason}" if place else reason)
    first = errors[0]["loc"]
    return InvalidInput("; ".join(lines), column=str(first[0]) if first else None)


class TrackedModel(BaseModel):
    """The tracking that every document shares; what `DocumentModel`, `DocumentList` and `JsonObject` have in common."""

    model_config = ConfigDict(
        strict=True,
        validate_assignment=True,
        revalidate_instances="always",
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )
    # A slot, since private attributes of Pydantic are set up once for each class of the hierarchy.
    __slots__ = ("_signal",)
    if TYPE_CHECKING:
        _signal: Signal = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        self._signal = Signal(self._fit)
        self._adopt_members()

    @classmethod
    def from_stored(cls, value: Any) -> Self:
        """The document that stored JSON stands for, given as `strict_json_loads` reads it."""
        # JSON mode is what lets a strict model take text for a Decimal or a date; only the JSON parser offers it.
        try:
            text = json.dumps(value)
        except TypeError:  # a Decimal, which a typed document seldom has as a number
            text = strict_json_dumps(_spelled(value))
        return cls.model_validate_json(text)

    def to_stored(self) -> str:
        """The JSON text to store, validated again, since a list or dict inside takes anything."""
        return strict_json_dumps(type(self).model_validate(self).model_dump(mode="json"))

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
            return
        self._signal.changing()
        super().__setattr__(name, value)
        self._adopt_members()

    def __delattr__(self, name: str) -> None:
        self._signal.changing()
        super().__delattr__(name)

    def __copy__(self) -> Self:
        return self.__deepcopy__()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return type(self).model_validate(self)  # validating copies throughout

    def __getstate__(self) -> dict[Any, Any]:
        return super().__getstate__() | {"_signal": self._signal}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        self._signal = state.pop("_signal")
        super().__setstate__(state)

    @staticmethod
    def _fit(value: Any, signal: Signal) -> Any:
        return adopt(value, signal)

    def part_of(self, signal: Signal) -> Self:
        """A copy that is part of another document. Raises `TypeError` where it must be the whole."""
        part = self.model_copy()
        part._signal = signal  # noqa: SLF001 - one of its own class
        part._adopt_members()  # noqa: SLF001 - the same
        return part

    def _adopt_members(self) -> None:
        _adopt_into(cast("dict[str, Any]", self.__dict__), self._signal)
        extra = self.model_extra
        if extra:
            _adopt_into(extra, self._signal)


def _spelled(value: Any) -> Any:
    """Stored JSON with each number that a float would change as text: Pydantic's parser reads numbers as floats."""
    if isinstance(value, dict):
        return {key: _spelled(member) for key, member in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_spelled(element) for element in cast("list[Any]", value)]
    if isinstance(value, Decimal) and Decimal(repr(float(value))) != value:
        return str(value)
    return value


def adopt(value: Any, signal: Signal) -> Any:
    """`value` with every container inside tracked by `signal`.

    Raises `TypeError` for what could change unseen: sets, and models that are neither frozen nor documents.
    """
    if type(value) in _ATOMS:  # nearly every value, found with one look
        return value
    if isinstance(value, (TrackedDict, TrackedList)) and signal_of(value) is signal:
        return value
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return TrackedDict(signal, {key: adopt(member, signal) for key, member in members.items()})
    if isinstance(value, list):
        return TrackedList(signal, [adopt(element, signal) for element in cast("list[Any]", value)])
    if isinstance(value, tuple):
        return tuple(adopt(element, signal) for element in cast("tuple[Any, ...]", value))
    if isinstance(value, BaseModel):
        return _adopt_model(value, signal)
    if isinstance(value, (set, bytearray)):
        raise TypeError(f"a document cannot hold a {type(cast('object', value)).__name__}: its changes would go unseen")
    return value


def _adopt_model(value: BaseModel, signal: Signal) -> BaseModel:
    if isinstance(value, TrackedModel):
        return value if signal_of(value) is signal else value.part_of(signal)
    if not value.model_config.get("frozen"):
        raise TypeError(f"{type(value).__name__} inside a document must be frozen or a DocumentModel")
    members = dict(value.__dict__)
    return value.model_copy(update=members) if _adopt_into(members, signal) else value


def _adopt_into(members: dict[str, Any], signal: Signal) -> bool:
    """Whether a member had to be replaced."""
    adopted = {name: adopt(member, signal) for name, member in members.items() if type(member) not in _ATOMS}
    changed = any(members[name] is not member for name, member in adopted.items())
    if changed:
        members.update(adopted)
    return changed


class DocumentModel(TrackedModel):
    """Base of a typed document, or of a part of one that may change.

    Strict, no unknown fields, assignment validated. A change at any depth (attribute, list, dict) is seen by the session
    that holds the row. What is put in is copied: change it through the document.
    """

    model_config = ConfigDict(extra="forbid")


class DocumentList(TrackedModel, RootModel[list[Item]], MutableSequence[Item], Generic[Item]):
    """A document that is a JSON array of `Item`, used, and compared, like a list. Each item is validated when put in."""

    root: list[Item] = Field(default_factory=list)  # pyright: ignore[reportUnknownVariableType]

    def _validated(self, items: Iterable[Any]) -> list[Item]:
        return type(self).model_validate(list(items)).root

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self.root[index]

    @overload
    def __setitem__(self, index: int, value: Item) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Iterable[Item]) -> None: ...
    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(index, slice):
            self.root[index] = self._validated(value)
        else:
            self.root[index] = self._validated([value])[0]

    def __delitem__(self, index: int | slice) -> None:
        del self.root[index]

    def __iter__(self) -> Iterator[Item]:  # type: ignore[override]
        return iter(self.root)

    def __len__(self) -> int:
        return len(self.root)

    def insert(self, index: int, value: Item) -> None:
        self.root.insert(index, self._validated([value])[0])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, DocumentList):
            return self.root == cast("DocumentList[Any]", other).root
        if not isinstance(other, (list, tuple)):
            return NotImplemented
        try:
            return self.root == self._validated(cast("list[Any]", other))
        except ValidationError:
            return False

    __hash__ = None  # type: ignore[assignment]
