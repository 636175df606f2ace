"""Calendar days of a time zone."""

from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from core.database.errors import InvalidInput
from core.database.types import checked_date, checked_utc

DEFAULT_ZONE = "Asia/Kolkata"
"""Where a trading day begins and ends unless the caller says otherwise."""

_DAY = timedelta(days=1)


def day_start(day: date, zone: str = DEFAULT_ZONE) -> datetime:
    """The instant (UTC) at which a calendar day of an IANA time zone begins.

    A day lasts until the next one begins, whatever clocks do: 23 or 25 hours where they change, none at all for a day that a
    place has skipped. Raises `InvalidInput` for an unknown zone.
    """
    try:
        return _edge(checked_date(day), zone_of(zone))
    except InvalidInput as fault:
        raise InvalidInput(fault.message, hint=fault.hint, column=fault.column or "day") from None


def day_of(moment: datetime, zone: str = DEFAULT_ZONE) -> date:
    """The calendar day of an IANA time zone to which an aware moment belongs. Raises `InvalidInput`."""
    return Days(zone).of(checked_utc(moment))


def zone_of(name: str) -> ZoneInfo:
    """The zone of an IANA name, such as Asia/Kolkata; raises `InvalidInput`."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError):
        raise InvalidInput(
            "zone: no such time zone",
            hint="Give an IANA name such as Asia/Kolkata; on a system without a time zone database, pip install tzdata.",
            column="zone",
        ) from None


class Days:
    """The days of a zone, quick for moments that come in order."""

    def __init__(self, zone: str) -> None:
        self._zone = zone_of(zone)
        self._day = date.min
        self._begin = self._end = datetime.min.replace(tzinfo=UTC)

    def of(self, moment: datetime) -> date:
        """The day of a moment in UTC."""
        if not self._begin <= moment < self._end:
            self._seek(moment)
        return self._day

    def edges(self, start: datetime, end: datetime) -> tuple[list[date], list[datetime]]:
        """The days of a period in UTC and where they begin, the period's own start for the first; one more edge than days,
        the last being the period's end.
        """
        days, edges = [self.of(start)], [start]
        while self._end < end:
            moment = self._end
            days.append(self.of(moment))
            edges.append(moment)
        return days, [*edges, end]

    def _seek(self, moment: datetime) -> None:
        """Where clocks go back over midnight a local date comes twice; a day ends when the next one first begins."""
        try:
            day = moment.astimezone(self._zone).date()
            while (begin := _edge(day, self._zone)) > moment:
                day -= _DAY
            while (end := _edge(day + _DAY, self._zone)) <= moment:
                day, begin = day + _DAY, end
        except OverflowError:
            raise InvalidInput("a time at the end of the calendar belongs to no day of this zone") from None
        self._day, self._begin, self._end = day, begin, end


@lru_cache(maxsize=4_096)
def _edge(day: date, zone: ZoneInfo) -> datetime:
    midnight = datetime.combine(day, time(), tzinfo=zone)
    try:
        late, early = midnight.astimezone(UTC), midnight.replace(fold=1).astimezone(UTC)
    except OverflowError:
        raise InvalidInput("a day at the end of the calendar has no beginning in this zone", column="day") from None
    if early >= late:  # once, as nearly always, or twice: the first
        return late
    # Clocks were put forward over midnight: the day begins at that moment.
    while late - early > timedelta(seconds=1):
        middle = early + timedelta(seconds=(late - early) // timedelta(seconds=2))
        early, late = (early, middle) if middle.astimezone(zone).date() >= day else (middle, late)
    return late
