"""Instants in UTC and calendar dates, without the values that turn into infinity on the way."""

from datetime import UTC, date, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect

from core.database.errors import InvalidInput
from core.database.types._strict import StrictType

_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)


def checked_utc(value: object) -> datetime:
    """An aware datetime of any zone, in UTC.

    Naive datetimes, other types and the two ends of the calendar (`datetime.min` and `datetime.max`, which the driver
    sends as -infinity and infinity) raise `InvalidInput`.
    """
    if not isinstance(value, datetime):
        raise InvalidInput(f"takes an aware datetime, not {type(value).__name__}")
    if value.tzinfo is not UTC:
        if value.utcoffset() is None:
            raise InvalidInput("takes an aware datetime; this one is naive: give it a time zone")
        try:
            value = value.astimezone(UTC)
        except OverflowError:
            raise InvalidInput("lies outside the calendar once in UTC") from None
    if not _FIRST < value < _LAST:
        raise InvalidInput("lies at the end of the calendar, which the database takes for infinity")
    return value


def checked_date(value: object) -> date:
    """A calendar date; datetimes, other types, `date.min` and `date.max` (infinity to the driver) raise `InvalidInput`."""
    if not isinstance(value, date) or isinstance(value, datetime):
        raise InvalidInput(f"takes a date, not {type(value).__name__}")
    if not date.min < value < date.max:
        raise InvalidInput("lies at the end of the calendar, which the database takes for infinity")
    return value


class UtcDateTime(StrictType[datetime]):
    """An instant: TIMESTAMP WITH TIME ZONE, aware and in UTC both ways, to the microsecond.

    What is refused is said at `checked_utc`. A stored infinity raises `InvalidInput` when it is read.
    """

    impl = sa.DateTime
    cache_ok = True

    def __init__(self) -> None:
        super().__init__(timezone=True)

    def convert(self, value: Any) -> datetime:
        return checked_utc(value)

    def result_processor(self, dialect: Dialect, coltype: Any) -> Any:
        def process(value: Any) -> Any:
            if value is None or value.tzinfo is UTC:
                return value
            if value.tzinfo is None:
                self.refuse("holds infinity or a time without a zone")
            return value.astimezone(UTC)

        return process


class Date(StrictType[date]):
    """A calendar date: DATE. What is refused is said at `checked_date`."""

    impl = sa.Date
    cache_ok = True

    def convert(self, value: Any) -> date:
        return checked_date(value)

    def coerce_compared_value(self, op: Any, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return self.impl_instance.coerce_compared_value(op, value)  # expiry - 3, in days
        return super().coerce_compared_value(op, value)
