"""A strategy as a file declares it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from core.database.errors import InvalidInput
from core.database.models import Strategy
from core.database.models.revisions import Path, plain
from core.database.records import StrategyConfig, StrategyParameters
from core.trading.strategies._rules import Problem, document_of, near, refusal

Place = tuple[int, int]
"""Line and position in it, from 1."""


@dataclass(frozen=True, slots=True)
class StrategyDocument:
    """What a strategy is to be. What is left out has its default, but `is_active`: left out, it stays as it is.

    So applying a file again starts no strategy that somebody has stopped. `version`, if given, is the version that the
    document was written for. `name` left out is the id.
    """

    strategy_id: str
    name: str
    strategy_type: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    active_brokers: Sequence[str] = ()
    is_active: bool | None = None
    version: int | None = None
    places: Mapping[Path, Place] = field(default_factory=dict[Path, Place], repr=False, compare=False)
    """Where in a file its parts stand."""

    @classmethod
    def of(cls, members: Mapping[str, Any], places: Mapping[Path, Place] | None = None) -> "StrategyDocument":
        """Of a mapping by these names. Raises `InvalidInput` for all that is no part of a strategy or of another type."""
        problems = [
            Problem((str(key),), f"is no part of a strategy{near(str(key), KEYS)}")
            for key in members
            if key not in KEYS
        ]
        if "strategy_id" not in members:
            problems.append(Problem(("strategy_id",), "is missing"))
        for key, (kinds, words) in _KINDS.items():
            if key in members and not (isinstance(members[key], kinds) and _fits(members[key], kinds)):
                problems.append(Problem((key,), f"must be {words}"))
        if problems:
            raise refusal_at(problems, _id(members), places or {})
        given = {key: value for key, value in members.items() if value is not None}
        return cls(**{"name": members["strategy_id"], **given}, places=places or {})

    @classmethod
    def from_strategy(cls, strategy: Strategy, *, version: bool = False) -> "StrategyDocument":
        """One that changes nothing when it is applied. An active strategy leaves `is_active` out."""
        return cls(
            strategy_id=strategy.strategy_id,
            name=strategy.name,
            strategy_type=strategy.strategy_type,
            config=plain(strategy.config.root),
            parameters=plain(strategy.parameters.root),
            active_brokers=tuple(strategy.active_brokers),
            is_active=None if strategy.is_active else False,
            version=strategy.version if version else None,
        )

    def members(self) -> dict[str, Any]:
        """By name, without what is left out."""
        given = {key: getattr(self, key) for key in KEYS}
        given["active_brokers"] = list(self.active_brokers)
        return {key: value for key, value in given.items() if value is not None and value not in ({}, [])}

    def state(self, *, is_active: bool) -> dict[str, Any]:
        """The columns; `is_active` where it is left out. Raises `InvalidInput` for what JSON cannot hold."""
        return {
            "name": self.name,
            "strategy_type": self.strategy_type,
            "config": document_of(StrategyConfig, self.config),
            "parameters": document_of(StrategyParameters, self.parameters),
            "active_brokers": list(self.active_brokers),
            "is_active": is_active if self.is_active is None else self.is_active,
        }

    def refusal(self, problems: Sequence[Problem]) -> InvalidInput:
        return refusal_at(problems, self.strategy_id, self.places)


KEYS: Final = (
    "strategy_id",
    "version",
    "name",
    "strategy_type",
    "is_active",
    "active_brokers",
    "config",
    "parameters",
)
"""In the order in which they are written."""

_NONE = type(None)
_KINDS: Final[dict[str, tuple[Any, str]]] = {
    "strategy_id": (str, "text; put a number in quotes"),
    "version": ((int, _NONE), "a whole number"),
    "name": ((str, _NONE), "text; put a number in quotes"),
    "strategy_type": ((str, _NONE), "text"),
    "is_active": ((bool, _NONE), "true or false"),
    "active_brokers": ((list, tuple, _NONE), "a list of brokers' names"),
    "config": ((Mapping, _NONE), "an object"),
    "parameters": ((Mapping, _NONE), "an object"),
}


def refusal_at(problems: Sequence[Problem], strategy_id: str | None, places: Mapping[Path, Place]) -> InvalidInput:
    """An error that tells the strategy and, of a file, the lines."""
    whose = f"strategy {strategy_id!r}" if strategy_id is not None else "a strategy"
    told = [
        f"line {place[0]}: {problem}" if (place := _place(problem.path, places)) else str(problem)
        for problem in problems
    ]
    column = refusal(problems).column
    return InvalidInput(f"{whose}: {'; '.join(told)}", column=column if column in KEYS else None)


def _place(path: Path, places: Mapping[Path, Place]) -> Place | None:
    """Of the nearest part that the file has."""
    return next((places[path[:end]] for end in range(len(path), -1, -1) if path[:end] in places), None)


def _id(members: Mapping[str, Any]) -> str | None:
    found = members.get("strategy_id")
    return found if isinstance(found, str) else None


def _fits(value: Any, kinds: Any) -> bool:
    """True is no whole number."""
    if isinstance(value, list | tuple):
        return all(isinstance(element, str) for element in cast("list[Any]", value))
    return kinds != (int, _NONE) or not isinstance(value, bool)
