"""The days and minutes on which the demo's exchange trades, and when its contracts expire.

A simplified Indian calendar: weekends and the holidays of fixed date are closed, those that follow the moon are not known.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone

__all__ = [
    "AS_OF",
    "IST",
    "is_trading_day",
    "monthly_expiry",
    "months_from",
    "session_times",
    "trading_days",
    "weekly_expiries",
]

AS_OF = date(2026, 11, 20)
"""The demo's "today": fixed, so that every run shows the same numbers."""

IST = timezone(timedelta(hours=5, minutes=30), "IST")

_HOLIDAYS = frozenset({(1, 26), (5, 1), (8, 15), (10, 2), (12, 25)})
_OPEN, _CLOSE = time(9, 15), time(15, 30)


def is_trading_day(day: date) -> bool:
    return day.weekday() < 5 and (day.month, day.day) not in _HOLIDAYS


def trading_days(first: date, last: date) -> Iterator[date]:
    """The trading days from `first` to `last`, both included."""
    for offset in range((last - first).days + 1):
        day = first + timedelta(days=offset)
        if is_trading_day(day):
            yield day


def session_times(day: date, *, minutes: int) -> Iterator[datetime]:
    """The session of `day` from open to close every `minutes`, in UTC."""
    moment = datetime.combine(day, _OPEN, tzinfo=IST)
    end = datetime.combine(day, _CLOSE, tzinfo=IST)
    while moment <= end:
        yield moment.astimezone(UTC)
        moment += timedelta(minutes=minutes)


def _on_or_before(day: date) -> date:
    while not is_trading_day(day):
        day -= timedelta(days=1)
    return day


def months_from(day: date, count: int) -> list[tuple[int, int]]:
    """`count` (year, month) pairs beginning with the month of `day`."""
    start = day.year * 12 + day.month - 1
    return [divmod(index, 12) for index in range(start, start + count)]


def monthly_expiry(year: int, month: int, *, weekday: int) -> date:
    """The last `weekday` (Monday is 0) of a month, or the trading day before it. `month` counts from 0."""
    following = date(year + (month + 1) // 12, (month + 1) % 12 + 1, 1)
    last = following - timedelta(days=1)
    return _on_or_before(last - timedelta(days=(last.weekday() - weekday) % 7))


def weekly_expiries(after: date, count: int, *, weekday: int) -> list[date]:
    """The next `count` `weekday`s on or after `after`, each moved back to a trading day."""
    first = after + timedelta(days=(weekday - after.weekday()) % 7)
    return [_on_or_before(first + timedelta(weeks=week)) for week in range(count)]
