"""The brokers that an installation works with, and when a login with each of them ends.

    paper=never, zerodha=daily 06:00 Asia/Kolkata, alpaca=24h

A broker's tokens die by the broker's own rule, not by ours: Zerodha's at six in the morning, Indian time, whenever they were
made. `expires_at` is computed from the moment of the login, which the database's clock tells.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from types import MappingProxyType
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

__all__ = ["DEFAULT_BROKERS", "DailyExpiry", "ExpiryPolicy", "FixedLifetime", "NoExpiry", "parse_brokers"]

DEFAULT_BROKERS = (
    "paper=never, zerodha=daily 06:00 Asia/Kolkata, kite=daily 06:00 Asia/Kolkata, upstox=daily 03:30 Asia/Kolkata"
)

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_DAILY = re.compile(r"daily ([0-9]{2}):([0-9]{2}) ([A-Za-z0-9_+/-]{1,64})")
_LIFETIME = re.compile(r"([1-9][0-9]{0,6})(s|m|h|d)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_LONGEST = timedelta(days=3_660)


@dataclass(frozen=True, slots=True)
class DailyExpiry:
    """Every login ends at the next `at` of the clocks in `zone`; a login at that very moment at the one after."""

    at: time
    zone: ZoneInfo

    def __post_init__(self) -> None:
        if self.at.tzinfo is not None:
            raise ValueError("the time of the day is one of the clocks in `zone`, and has no zone of its own")

    def expires_at(self, login: datetime) -> datetime:
        """In UTC, after `login`, which is aware.

        Where the clocks are set forward over `at`, it is the moment at which they are; where they show it twice, the first.
        """
        day = login.astimezone(self.zone).date()
        for ahead in range(-1, 3):
            moment = self._on(datetime.combine(day + timedelta(days=ahead), self.at))
            if moment > login:
                return moment
        raise AssertionError("a day has no end")  # pragma: no cover - no zone skips two days

    def _on(self, wall: datetime) -> datetime:
        local = wall.replace(tzinfo=self.zone, fold=0)
        moment = local.astimezone(UTC)
        if moment.astimezone(self.zone).replace(tzinfo=None) == wall:
            return moment
        # The clocks skip it. With fold=0 the offset is the one before the gap and with fold=1 the one after: read by the
        # other one, the two ends of the gap's length lie around the moment at which it begins.
        before, after = local.utcoffset(), local.replace(fold=1).utcoffset()
        assert before is not None
        assert after is not None
        low, high = (wall - max(before, after)).replace(tzinfo=UTC), (wall - min(before, after)).replace(tzinfo=UTC)
        while high - low > timedelta(microseconds=1):
            middle = low + (high - low) / 2
            if middle.astimezone(self.zone).utcoffset() == before:
                low = middle
            else:
                high = middle
        return high

    def __str__(self) -> str:
        return f"daily {self.at:%H:%M} {self.zone.key}"


@dataclass(frozen=True, slots=True)
class FixedLifetime:
    """Every login ends a fixed time after it began."""

    lifetime: timedelta

    def __post_init__(self) -> None:
        if not timedelta(0) < self.lifetime <= _LONGEST:
            raise ValueError("a login lasts longer than no time and no longer than ten years")

    def expires_at(self, login: datetime) -> datetime:
        """In UTC."""
        return login.astimezone(UTC) + self.lifetime

    def __str__(self) -> str:
        return f"{round(self.lifetime.total_seconds())}s"


@dataclass(frozen=True, slots=True)
class NoExpiry:
    """A login lasts until it is ended."""

    def expires_at(self, login: datetime) -> None:
        """None."""
        return

    def __str__(self) -> str:
        return "never"


ExpiryPolicy = DailyExpiry | FixedLifetime | NoExpiry


def parse_brokers(text: str) -> Mapping[str, ExpiryPolicy]:
    """The policies by broker, read from the form at the top; raises `ValueError` that names what is wrong."""
    found: dict[str, ExpiryPolicy] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, equals, rule = (part.strip() for part in entry.partition("="))
        if _NAME.fullmatch(name) is None:
            raise ValueError("a broker's name is a small letter, then letters, digits, - or _, at most 32 of them")
        if not equals:
            raise ValueError(f"{name} has no rule; write {name}=never, {name}=24h or {name}=daily 06:00 Asia/Kolkata")
        if name in found:
            raise ValueError(f"{name} stands there twice")
        found[name] = _policy(name, " ".join(rule.split()))
    if not found:
        raise ValueError("no broker is named; write paper=never")
    return MappingProxyType(found)


def _policy(name: str, rule: str) -> ExpiryPolicy:
    if rule == "never":
        return NoExpiry()
    if (lifetime := _LIFETIME.fullmatch(rule)) is not None:
        length = timedelta(**{_UNITS[lifetime[2]]: int(lifetime[1])})
        if length > _LONGEST:
            raise ValueError(f"the logins of {name} last longer than ten years; write never")
        return FixedLifetime(length)
    if (daily := _DAILY.fullmatch(rule)) is None:
        raise ValueError(f"the rule of {name} is none of never, 24h (s, m, h, d) and daily 06:00 Asia/Kolkata")
    try:
        return DailyExpiry(time(int(daily[1]), int(daily[2])), ZoneInfo(daily[3]))
    except (ZoneInfoNotFoundError, IsADirectoryError, PermissionError):
        raise ValueError(f"{name}: there is no time zone {daily[3]}") from None
    except ValueError:
        raise ValueError(f"{name}: {daily[1]}:{daily[2]} is no time of the day") from None
