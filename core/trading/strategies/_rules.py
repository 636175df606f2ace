"""Which configurations are right: a Pydantic model for each type of strategy, and the brokers that there are."""

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from core.database.errors import ConfigurationError, InvalidInput
from core.database.models import Strategy, StrategyRevision
from core.database.models.revisions import Path, written
from core.database.records import StrategyConfig, StrategyParameters
from core.database.types import checked_json, strict_json_dumps

Model = TypeVar("Model", bound=BaseModel)

_FLOATS = {"float_type", "float_parsing", "int_type", "int_parsing", "int_from_float", "finite_number"}
_LONGEST_NAME = 200
_LONGEST_NUMBER = 8_192  # bits
_AUTHORED = {"value_error", "assertion_error"}
"""Errors whose words may quote the value."""


@dataclass(frozen=True, slots=True)
class StrategyModels:
    """What `config` and `parameters` of a type of strategy are; None takes any JSON object."""

    config: type[BaseModel] | None = None
    parameters: type[BaseModel] | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong where, without the value."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{written(self.path)}: {self.reason}" if self.path else self.reason


class StrategyRules:
    """What strategies may be. An application makes one value and gives it to the functions that write.

    `types` are the models by `strategy_type`; once there is one, a strategy of no or another type is refused. `brokers`
    are the configured ones, as `Settings.trading.broker_policies` has them; None does not check them.

    What is stored is the model's JSON: the defaults that it fills in too, so that history tells what was in force and a
    changed default changes no strategy unasked; a Decimal as text, digit for digit.
    """

    def __init__(
        self, types: Mapping[str, StrategyModels] | None = None, *, brokers: Collection[str] | None = None
    ) -> None:
        self._types: dict[str, StrategyModels] = dict(types or {})
        self.brokers = None if brokers is None else tuple(brokers)

    def __repr__(self) -> str:
        return f"StrategyRules(types={sorted(self._types)}, brokers={self.brokers})"

    @property
    def types(self) -> Mapping[str, StrategyModels]:
        """The registered ones."""
        return dict(self._types)

    def register(
        self,
        strategy_type: str,
        *,
        config: type[BaseModel] | None = None,
        parameters: type[BaseModel] | None = None,
    ) -> None:
        """Say what strategies of a type take. Raises `ConfigurationError` if that was said before."""
        if strategy_type in self._types:
            raise ConfigurationError(f"strategy type {strategy_type!r} is registered already")
        self._types[strategy_type] = StrategyModels(config, parameters)

    def with_brokers(self, brokers: Collection[str]) -> "StrategyRules":
        """These rules, for those brokers."""
        return StrategyRules(self._types, brokers=brokers)

    def config_of(self, strategy: Strategy | StrategyRevision, model: type[Model] | None = None) -> Model:
        """The strategy's `config` as its registered model, or as `model`. Raises `InvalidInput` and `ConfigurationError`."""
        return cast("Model", self._read(strategy, "config", model))

    def parameters_of(self, strategy: Strategy | StrategyRevision, model: type[Model] | None = None) -> Model:
        """The strategy's `parameters`, likewise."""
        return cast("Model", self._read(strategy, "parameters", model))

    def _read(self, strategy: Strategy | StrategyRevision, field: str, model: type[BaseModel] | None) -> BaseModel:
        kind = model or getattr(self._types.get(strategy.strategy_type or ""), field, None)
        if kind is None:
            raise ConfigurationError(
                f"no model is registered for the {field} of strategies of type {strategy.strategy_type!r}"
            )
        found = _validated(kind, getattr(strategy, field).root, field)
        if isinstance(found, BaseModel):
            return found
        raise refusal(found)

    def problems(self, state: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        """The state of a strategy as it is to be stored, and all that is wrong with it."""
        checked, found = dict(state), self._of_brokers(state["active_brokers"])
        models = self._types.get(state["strategy_type"] or "")
        if models is None:
            if self._types:
                found.append(Problem(("strategy_type",), self._unknown_type(state["strategy_type"])))
            return checked, found
        for field, document in (("config", StrategyConfig), ("parameters", StrategyParameters)):
            model: type[BaseModel] | None = getattr(models, field)
            if model is not None:
                made = _validated(model, state[field].root, field)
                if isinstance(made, BaseModel):
                    checked[field] = document_of(document, made)
                else:
                    found += made
        return checked, found

    def _of_brokers(self, brokers: Sequence[str]) -> list[Problem]:
        if self.brokers is None:
            return self._twice(brokers)
        known = f"; there are {', '.join(self.brokers) or 'none'}"
        return [
            Problem(
                ("active_brokers", index),
                f"{name!r} is not configured{near(name, self.brokers) or known}",
            )
            for index, name in enumerate(brokers)
            if name not in self.brokers
        ] + self._twice(brokers)

    @staticmethod
    def _twice(brokers: Sequence[str]) -> list[Problem]:
        """Who starts one run for each of them would start two."""
        first = {name: index for index, name in reversed(list(enumerate(brokers)))}
        return [
            Problem(("active_brokers", index), f"{name!r} is there already")
            for index, name in enumerate(brokers)
            if first[name] != index
        ]

    def _unknown_type(self, name: str | None) -> str:
        known = ", ".join(sorted(self._types))
        if name is None:
            return f"is missing; there are {known}"
        return f"{name!r} is not registered{near(name, self._types) or f'; there are {known}'}"


def near(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` where a known one is."""
    found = difflib.get_close_matches(name, list(known), n=1) if len(name) <= _LONGEST_NAME else ()
    return f", did you mean {found[0]!r}?" if found else ""


def refusal(problems: Iterable[Problem]) -> InvalidInput:
    found = list(problems)
    first = found[0].path
    return InvalidInput("; ".join(map(str, found)), column=str(first[0]) if first else None)


def told(refused: Sequence[InvalidInput]) -> tuple[str, Sequence[str]]:
    """The message and the lines of one error for all of them."""
    if len(refused) == 1:
        return refused[0].message, ()
    return f"{len(refused)} strategies are refused", [fault.message for fault in refused]


def document_of(kind: type[StrategyConfig | StrategyParameters], value: Any) -> StrategyConfig | StrategyParameters:
    """A free document of a mapping or a model. Raises `InvalidInput`."""
    field = "config" if kind is StrategyConfig else "parameters"
    if isinstance(value, StrategyConfig | StrategyParameters):
        value = value.root
    elif isinstance(value, BaseModel):
        value = _stored(value, field)
    try:
        return kind.model_validate(dict(cast("Mapping[str, Any]", value)) if isinstance(value, Mapping) else value)
    except ValidationError as fault:
        raise refusal(_told(fault, (field,))) from None


def _validated(model: type[BaseModel], value: Any, field: str) -> BaseModel | list[Problem]:
    """As Python's values and, for what a strict model takes from JSON only (dates as text, lists as tuples), as JSON."""
    try:
        return model.model_validate(value)
    except ValidationError:
        pass
    try:
        return model.model_validate_json(strict_json_dumps(_spelled(value)))
    except ValidationError as fault:
        numbers = {tuple(e["loc"]) for e in fault.errors(include_url=False) if e["type"] in _FLOATS}
    try:
        return model.model_validate_json(strict_json_dumps(_spelled(value, numbers)))
    except ValidationError as fault:
        return _told(fault, (field,))


def _spelled(value: Any, numbers: Collection[Path] = (), path: Path = ()) -> Any:
    """With Decimals as text, which loses nothing, but at the places that take a number only."""
    if isinstance(value, Mapping):
        members = cast("Mapping[str, Any]", value)
        return {key: _spelled(member, numbers, (*path, key)) for key, member in members.items()}
    if isinstance(value, list):
        elements = cast("list[Any]", value)
        return [_spelled(element, numbers, (*path, index)) for index, element in enumerate(elements)]
    if isinstance(value, Decimal) and not any(_leads(place, path) for place in numbers):
        return str(value)
    return value


def _leads(place: Path, path: Path) -> bool:
    """Whether an error's place, which may name members of unions besides keys, is that path."""
    rest = iter(place)
    return all(part in rest for part in path)


def _stored(made: BaseModel, field: str) -> dict[str, Any]:
    """The model's JSON. Raises `InvalidInput` for what JSON cannot hold, and `ConfigurationError` if it cannot be read back."""
    kind = type(made)
    try:
        stored = checked_json(made.model_dump(mode="json", by_alias=True, round_trip=True))
    except InvalidInput as fault:
        raise InvalidInput(f"{field}: {fault.message}", column=field) from None
    again = _validated(kind, stored, field)
    if not isinstance(again, BaseModel) or again.model_dump() != made.model_dump():
        raise ConfigurationError(
            f"{field}: {kind.__name__} does not read back what it writes as JSON",
            hint="Give its fields one name for both ways, and no SecretStr: secrets belong into no strategy.",
        )
    return stored


def _told(fault: ValidationError, at: Path) -> list[Problem]:
    return [
        Problem((*at, *error["loc"]), _reason(cast("Mapping[str, Any]", error)))
        for error in fault.errors(include_url=False, include_context=False)
    ]


def _reason(error: Mapping[str, Any]) -> str:
    text = str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if error["type"] == "union_tag_invalid":
        return "is of a kind that is none of those expected"
    if error["type"] in _AUTHORED:
        for value in sorted(_scalars(error.get("input"), 1), key=len, reverse=True):
            if len(value) > _LONGEST_NAME:  # no word of ours; as a pattern it would take a second to compile
                text = text.replace(value, "...")
            elif value in text:
                text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", "...", text)
    return text


def _scalars(value: Any, shortest: int) -> Iterator[str]:
    """The values in an input; of one inside a container only what is too long to be a word of the message by chance."""
    if isinstance(value, Mapping):
        for member in cast("Mapping[Any, Any]", value).values():
            yield from _scalars(member, 4)
    elif isinstance(value, list | tuple):
        for element in cast("list[Any]", value):
            yield from _scalars(element, 4)
    elif isinstance(value, int) and value.bit_length() > _LONGEST_NUMBER:
        return  # Python writes none of these, so nobody has quoted it
    elif isinstance(value, str | int | float | Decimal) and len(str(value)) >= shortest:
        yield str(value)
