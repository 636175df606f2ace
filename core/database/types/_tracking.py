"""Containers and a signal through which a change deep inside a document reaches the row that holds it."""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any, Self, SupportsIndex, cast
from weakref import WeakKeyDictionary

from sqlalchemy.orm import InstanceState
from sqlalchemy.orm.attributes import flag_modified

from core.database.errors import SessionMisuse


class Signal:
    """One per document: knows the rows that hold it, and is told of every change just before it is made.

    `convert` makes what is put into a container fit for it: tracked containers throughout, values checked where the
    document is free-form.
    """

    __slots__ = ("convert", "rows")

    def __init__(self, convert: "Callable[[Any, Signal], Any]") -> None:
        self.convert = convert
        self.rows: WeakKeyDictionary[InstanceState[Any], set[str]] | None = None

    def __reduce__(self) -> Any:
        return Signal, (self.convert,)  # rows tie themselves again when they are unpickled

    def hold(self, row: InstanceState[Any], key: str) -> None:
        if self.rows is None:
            self.rows = WeakKeyDictionary()
        self.rows.setdefault(row, set()).add(key)

    def release(self, row: InstanceState[Any], key: str) -> None:
        if self.rows is None or row not in self.rows:
            return
        self.rows[row].discard(key)
        if not self.rows[row]:
            del self.rows[row]
        if not self.rows:
            self.rows = None  # it is free again

    def changing(self) -> None:
        """Mark every row that holds the document as changed.

        Raises `SessionMisuse` if one no longer holds it, or where its row is gone, to which nobody can store it.
        """
        if self.rows is not None and not self.rows:
            raise SessionMisuse(
                "the row of this document is gone, so that the change could not be stored",
                hint="Keep the row in a variable while its document is changed, or change a deep copy.",
            )
        for row, keys in list(self.rows.items()) if self.rows is not None else ():
            entity = row.obj()
            if entity is None:
                continue
            for key in keys:
                if signal_of(row.dict.get(key)) is not self:
                    raise SessionMisuse(
                        f"this {key} is no longer the one of its row, which was expired or read again since",
                        hint="Read the attribute again and change that.",
                    )
                flag_modified(entity, key)


def signal_of(value: object) -> Signal | None:
    """The signal of a document or a tracked container."""
    return getattr(value, "_signal", None)


class TrackedDict(dict[str, Any]):
    """A dict that tells its document of every change; made of members that are fit as they are. A copy is a plain dict."""

    __slots__ = ("_signal",)

    def __init__(self, signal: Signal, members: Mapping[str, Any]) -> None:
        super().__init__(members)
        self._signal = signal

    def __reduce__(self) -> Any:
        return TrackedDict, (self._signal, dict(self))

    def __copy__(self) -> dict[str, Any]:
        return dict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return deepcopy(dict(self), memo)

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def __delitem__(self, key: str) -> None:
        self._signal.changing()
        super().__delitem__(key)

    def clear(self) -> None:
        self._signal.changing()
        super().clear()

    def pop(self, *args: Any) -> Any:
        self._signal.changing()
        return super().pop(*args)

    def popitem(self) -> tuple[str, Any]:
        self._signal.changing()
        return super().popitem()

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *args: Any, **kwargs: Any) -> None:
        members = self._signal.convert(dict(*args, **kwargs), self._signal)
        self._signal.changing()
        super().update(members)

    def __ior__(self, other: Any) -> Self:  # type: ignore[override, misc]
        self.update(other)
        return self


class TrackedList(list[Any]):
    """A list that tells its document of every change; made of elements that are fit as they are. A copy is a plain list."""

    __slots__ = ("_signal",)

    def __init__(self, signal: Signal, elements: Iterable[Any]) -> None:
        super().__init__(elements)
        self._signal = signal

    def __reduce__(self) -> Any:
        return TrackedList, (self._signal, list(self))

    def __copy__(self) -> list[Any]:
        return list(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
        return deepcopy(list(self), memo)

    def _fit(self, values: Iterable[Any]) -> list[Any]:
        fitted = self._signal.convert(list(values), self._signal)
        self._signal.changing()
        return fitted

    def __setitem__(self, index: SupportsIndex | slice, value: Any) -> None:
        if isinstance(index, slice):
            super().__setitem__(index, self._fit(value))
        else:
            super().__setitem__(index, self._fit([value])[0])

    def __delitem__(self, index: SupportsIndex | slice) -> None:
        self._signal.changing()
        super().__delitem__(index)

    def append(self, value: Any) -> None:
        super().append(self._fit([value])[0])

    def extend(self, values: Iterable[Any]) -> None:
        super().extend(self._fit(values))

    def insert(self, index: SupportsIndex, value: Any) -> None:
        super().insert(index, self._fit([value])[0])

    def pop(self, index: SupportsIndex = -1) -> Any:
        self._signal.changing()
        return super().pop(index)

    def remove(self, value: Any) -> None:
        self._signal.changing()
        super().remove(value)

    def clear(self) -> None:
        self._signal.changing()
        super().clear()

    def sort(self, *, key: Callable[[Any], Any] | None = None, reverse: bool = False) -> None:
        self._signal.changing()
        super().sort(key=cast("Callable[[Any], Any]", key), reverse=reverse)

    def reverse(self) -> None:
        self._signal.changing()
        super().reverse()

    def __iadd__(self, values: Iterable[Any]) -> Self:  # type: ignore[override, misc]
        self.extend(values)
        return self

    def __imul__(self, times: SupportsIndex) -> Self:  # type: ignore[override, misc]
        self[:] = list(self) * times
        return self
