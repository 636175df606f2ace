"""Columns that hold documents and text arrays."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from pydantic import ValidationError
from sqlalchemy import types as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.engine import Dialect
from sqlalchemy.sql import operators
from sqlalchemy.sql.operators import OperatorType
from sqlalchemy.types import TypeDecorator

from core.database.errors import InvalidInput
from core.database.types._documents import TrackedModel, adopt, invalid_input
from core.database.types._strict import StrictType
from core.database.types._text import checked_text
from core.database.types._tracking import Signal, TrackedList

D = TypeVar("D", bound=TrackedModel)
_EQUALITY = {operators.eq, operators.ne, operators.is_distinct_from, operators.is_not_distinct_from}


class TrackedType(StrictType[Any]):
    """A column type whose values tell of their changes."""

    cache_ok = True

    def coerce(self, value: Any) -> Any:
        """The tracked value for one that is assigned or loaded; raises `InvalidInput` naming the column."""
        raise NotImplementedError


class _DocumentComparator(TypeDecorator.Comparator[Any], JSONB.Comparator[Any]):
    def _setup_getitem(self, index: Any) -> Any:
        operator, index, _ = cast("Any", super())._setup_getitem(index)  # noqa: SLF001 - the hook for it
        return operator, index, JSONB(none_as_null=True)  # a part of a document is plain JSON


class Document(TrackedType, Generic[D]):
    """JSONB that holds `model`: validated on the way in and out, changes at any depth seen by the session.

    `model` is a `DocumentModel`, a `DocumentList` or a `JsonObject`. Where the model takes it, a plain dict or list may be
    given; what is read is always the model. A misfit raises `InvalidInput` when it is assigned (ORM) or bound (Core), and
    stored JSON that does not fit raises it when read. None is SQL NULL. Parts (`column["key"]`) are plain JSONB.
    """

    impl = JSONB
    cache_ok = True

    comparator_factory = _DocumentComparator  # type: ignore[assignment]

    def __init__(self, model: type[D]) -> None:
        super().__init__(none_as_null=True)
        self.model = model

    def coerce(self, value: Any) -> D:
        if isinstance(value, self.model):
            return value
        try:
            return self.model.model_validate(value)
        except ValidationError as fault:
            self.refuse(invalid_input(fault).message)

    def convert(self, value: Any) -> str:
        try:
            return self.coerce(value).to_stored()
        except ValidationError as fault:
            raise invalid_input(fault) from None

    def bind_processor(self, dialect: Dialect) -> Any:
        # JSONB's own processor would make JSON of the JSON text.
        def process(value: Any) -> Any:
            return self.process_bind_param(value, dialect)

        return process

    def literal_processor(self, dialect: Dialect) -> Any:
        quote = cast("Callable[[str], str]", sa.String().literal_processor(dialect))

        def process(value: Any) -> str:
            return quote(self.process_bind_param(value, dialect))

        return process

    def result_processor(self, dialect: Dialect, coltype: Any) -> Any:
        model = self.model

        def process(value: Any) -> Any:
            if value is None:
                return None
            try:
                return model.from_stored(value)
            except ValidationError as fault:
                self.refuse(f"what is stored does not fit {model.__name__}: {invalid_input(fault).message}")

        return process

    def coerce_compared_value(self, op: OperatorType | None, value: Any) -> Any:
        if op in _EQUALITY:
            return self
        return self.impl_instance.coerce_compared_value(op, value)


class TextArray(TrackedType):
    """TEXT[] of one dimension: a list of str, without None. Changes to the list are seen by the session.

    `max_length` holds for each element; the rest is said at `checked_text`.
    """

    impl = ARRAY
    cache_ok = True

    def __init__(self, max_length: int | None = None) -> None:
        super().__init__(sa.Text(), dimensions=1)
        self.max_length = max_length

    def coerce(self, value: Any) -> TrackedList:
        try:
            return cast("TrackedList", adopt(self.convert(value), Signal(adopt)))
        except InvalidInput as fault:
            self.refuse(fault.message)

    def convert(self, value: Any) -> list[str]:
        if not isinstance(value, (list, tuple)):
            raise InvalidInput(f"takes a list of str, not {type(value).__name__}")
        return [checked_text(element, self.max_length) for element in cast("list[Any]", value)]

    def coerce_compared_value(self, op: OperatorType | None, value: Any) -> Any:
        if op in _EQUALITY or isinstance(value, (list, tuple)):
            return self
        return self.impl_instance.coerce_compared_value(op, value)
