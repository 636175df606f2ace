"""Ties tracked values to the rows that hold them, for every class that maps a tracked column."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import InstanceState, Mapper, QueryableAttribute
from sqlalchemy.sql import ClauseElement

from core.database.types._columns import TrackedType
from core.database.types._tracking import signal_of

_PICKLED = "core.database.types"


def watch_documents() -> None:
    """Watch the tracked columns of every class that is mapped from now on; done once, when the types are imported."""
    event.listen(Mapper, "mapper_configured", _watch_mapper)


def _watch_mapper(mapper: Mapper[Any], class_: type[Any]) -> None:
    for prop in mapper.column_attrs:
        kind = prop.columns[0].type
        inherited = mapper.inherits is not None and mapper.inherits.has_property(prop.key)
        if isinstance(kind, TrackedType) and not inherited:
            _watch(class_, getattr(class_, prop.key), kind)


def _watch(class_: type[Any], attribute: QueryableAttribute[Any], kind: TrackedType) -> None:
    key = attribute.key

    def loaded(row: InstanceState[Any], *_: Any) -> None:
        value = row.dict.get(key)
        if value is not None:
            if signal_of(value) is None:
                value = row.dict[key] = kind.coerce(value)
            _hold(row, key, value)

    def refreshed(row: InstanceState[Any], _: Any, names: Iterable[str] | None) -> None:
        if not names or key in names:
            loaded(row)

    def assigned(row: InstanceState[Any], value: Any, old: Any, _: Any) -> Any:
        if value is old:
            return value
        if value is not None and not isinstance(value, ClauseElement) and not hasattr(value, "__clause_element__"):
            value = kind.coerce(value)
            _hold(row, key, value)
        signal = signal_of(old)
        if signal is not None:
            signal.release(row, key)
        return value

    def pickled(row: InstanceState[Any], state: dict[str, Any]) -> None:
        state.setdefault(_PICKLED, {})[key] = row.dict.get(key)

    def unpickled(row: InstanceState[Any], state: dict[str, Any]) -> None:
        _hold(row, key, state.get(_PICKLED, {}).get(key))  # the row's own attributes are not filled yet

    event.listen(class_, "_sa_event_merge_wo_load", loaded, raw=True, propagate=True)  # merge(load=False)
    event.listen(class_, "load", loaded, raw=True, propagate=True)
    event.listen(class_, "refresh", refreshed, raw=True, propagate=True)
    event.listen(class_, "refresh_flush", refreshed, raw=True, propagate=True)
    event.listen(attribute, "set", assigned, raw=True, retval=True, propagate=True)
    event.listen(class_, "pickle", pickled, raw=True, propagate=True)
    event.listen(class_, "unpickle", unpickled, raw=True, propagate=True)


def _hold(row: InstanceState[Any], key: str, value: Any) -> None:
    signal = signal_of(value)
    if signal is not None:
        signal.hold(row, key)
