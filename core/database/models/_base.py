"""The declarative base and the CHECK constraints that the tables have in common."""

from datetime import UTC, datetime
from typing import ClassVar

from sqlalchemy import CheckConstraint, MetaData, inspect
from sqlalchemy.orm import DeclarativeBase

from core.database.records import TextRule

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Base of every table. A repr shows the key only: no hash, envelope or document ends in a log."""

    metadata: ClassVar[MetaData] = MetaData(naming_convention=NAMING_CONVENTION)

    def __repr__(self) -> str:
        keys = ", ".join(
            f"{column.name}={self.__dict__.get(column.name)!r}" for column in inspect(type(self)).primary_key
        )
        return f"{type(self).__name__}({keys})"


def now() -> datetime:
    """The application's clock: values of updated_at come from here, since no table has a trigger."""
    return datetime.now(UTC)


def text_check(column: str, rule: TextRule) -> CheckConstraint:
    return CheckConstraint(f"{column} ~ '^{rule.pattern}$' AND length({column}) <= {rule.max_length}", name=column)


def instant_check(column: str) -> CheckConstraint:
    """Finite and within Python's calendar; its two ends are what the driver takes for infinity."""
    return CheckConstraint(
        f"{column} > '0001-01-01 00:00:00+00' AND {column} < '9999-12-31 23:59:59.999999+00'", name=column
    )


def date_check(column: str) -> CheckConstraint:
    return CheckConstraint(f"{column} > '0001-01-01' AND {column} < '9999-12-31'", name=column)


def money_check(column: str, further: str = "") -> CheckConstraint:
    """NUMERIC(28,10) refuses infinity by itself, but not NaN, which it also takes for greater than any number."""
    return CheckConstraint(f"{column} <> 'NaN'{further}", name=column)


def object_check(column: str) -> CheckConstraint:
    return CheckConstraint(f"jsonb_typeof({column}) = 'object'", name=column)
