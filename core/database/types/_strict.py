"""What the strict column types share: one check before anything is sent, and an error that names the field."""

from datetime import timedelta
from typing import Any, NoReturn, TypeVar, cast

from sqlalchemy import Column
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.base import SchemaEventTarget
from sqlalchemy.sql.operators import OperatorType
from sqlalchemy.types import TypeDecorator

from core.database.errors import InvalidInput

T = TypeVar("T")


class StrictType(TypeDecorator[T]):
    """A column type whose values pass `convert` on their way in.

    A subclass gives `convert(value)` for values other than None: it returns what the driver is to send, or raises
    `InvalidInput`, which then leaves with the column's name. It holds for rows and comparisons alike. Values that come
    back need no work unless a subclass says so.
    """

    cache_ok = True
    column: Column[Any] | None = None
    """The column that this type stands in."""

    def convert(self, value: Any) -> Any:
        raise NotImplementedError

    def refuse(self, reason: str) -> NoReturn:
        """Raise `InvalidInput` for the column that this type stands in; the value itself is never repeated."""
        column = None if self.column is None else self.column.name
        table: Any = None if self.column is None else self.column.table
        prefix = "" if column is None else f"{column}: "
        raise InvalidInput(f"{prefix}{reason}", column=column, table=getattr(table, "name", None)) from None

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        if value is None:
            return None
        try:
            return self.convert(value)
        except InvalidInput as fault:
            self.refuse(fault.message)

    def bind_processor(self, dialect: Dialect) -> Any:
        # The same as process_bind_param with fewer calls around each value: this is the hot path.
        inner = self.impl_instance.bind_processor(dialect)
        convert = self.convert
        refuse = self.refuse

        def process(value: Any) -> Any:
            if value is None:
                return None
            try:
                return convert(value) if inner is None else inner(convert(value))
            except InvalidInput as fault:
                refuse(fault.message)

        return process

    def coerce_compared_value(self, op: OperatorType | None, value: Any) -> Any:
        if isinstance(value, timedelta):
            return self.impl_instance.coerce_compared_value(op, value)
        return self

    def _set_parent(self, parent: SchemaEventTarget, outer: bool = False, **kw: Any) -> None:
        if isinstance(parent, Column):
            # The name is read when it is needed: a declarative column learns it after its type.
            self.column = parent
        super()._set_parent(cast("Any", parent), outer=outer, **kw)
