"""The document of free form: any JSON object, its numbers exact."""

from collections.abc import Iterator, Mapping, MutableMapping
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Self, cast

from pydantic import Field, PlainValidator, RootModel

from core.database.errors import InvalidInput
from core.database.types._documents import TrackedModel
from core.database.types._json import checked_json, strict_json_dumps, strict_json_loads
from core.database.types._tracking import Signal, TrackedDict, TrackedList, signal_of


def _free_form(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidInput(f"takes an object, not {type(value).__name__}")
    return checked_json(cast("Mapping[str, Any]", value))


def _adopt_json(value: Any, signal: Signal) -> Any:
    """As `adopt` for what JSON can be, where a float can only come from another deserializer than ours."""
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return TrackedDict(signal, {key: _adopt_json(member, signal) for key, member in members.items()})
    if isinstance(value, list):
        return TrackedList(signal, [_adopt_json(element, signal) for element in cast("list[Any]", value)])
    return Decimal(repr(value)) if isinstance(value, float) else value


class JsonObject(TrackedModel, RootModel[dict[str, Any]], MutableMapping[str, Any]):
    """A free-form document: a JSON object that is used, and compared, like a dict.

    Numbers are exact: int of any size, every other number a Decimal, stored as a JSON number and read back as the same
    number. A float is taken as the shortest decimal that means it, so `doc["x"] = 0.1` holds `Decimal("0.1")`. NaN,
    infinity, keys that are not str, other types and more than 64 levels raise `InvalidInput` at once, with their path.
    What is put in is copied: change it through the document.
    """

    root: Annotated[dict[str, Any], PlainValidator(_free_form, json_schema_input_type=dict[str, Any])] = Field(
        default_factory=dict[str, Any], validate_default=True
    )

    if TYPE_CHECKING:

        def __init__(self, root: Mapping[str, Any] = ..., /, **members: Any) -> None: ...

    @staticmethod
    def _fit(value: Any, signal: Signal) -> Any:
        return _adopt_json(checked_json(value), signal)

    @classmethod
    def from_stored(cls, value: Any) -> Self:
        # What strict_json_loads has read needs no validation, and this stands on the path of every row.
        if type(value) is not dict:
            return cls.model_validate(value)
        document = cls.__new__(cls)
        signal = Signal(cls._fit)
        object.__setattr__(document, "_signal", signal)
        object.__setattr__(document, "__dict__", {"root": _adopt_json(value, signal)})
        object.__setattr__(document, "__pydantic_fields_set__", {"root"})
        return document

    def part_of(self, signal: Signal) -> Self:
        raise TypeError("a JsonObject must be the whole document: inside a typed one its numbers lose digits")

    def _adopt_members(self) -> None:
        if signal_of(self.root) is not self._signal:
            cast("dict[str, Any]", self.__dict__)["root"] = _adopt_json(self.root, self._signal)

    def to_stored(self) -> str:
        return strict_json_dumps(self.root)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """As `model_validate` of what `strict_json_loads` reads: Pydantic's own parser would round long numbers."""
        return cls.model_validate(
            strict_json_loads(bytes(json_data) if isinstance(json_data, bytearray) else json_data)
        )

    def __getitem__(self, key: str) -> Any:
        return self.root[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.root[key] = value

    def __delitem__(self, key: str) -> None:
        del self.root[key]

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]
        return iter(self.root)

    def __len__(self) -> int:
        return len(self.root)

    def update(self, *args: Any, **members: Any) -> None:
        """All of it or, when something is refused, nothing."""
        self.root.update(*args, **members)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, JsonObject):
            return self.root == other.root
        if not isinstance(other, Mapping):
            return NotImplemented
        try:
            return self.root == checked_json(cast("Mapping[Any, Any]", other))
        except InvalidInput:
            return False

    __hash__ = None  # type: ignore[assignment]
