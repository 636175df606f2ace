"""Which portfolio, which period, by whose clock: what the commands that read a history share."""

import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer

from core.cli._failure import REFUSED, USAGE, CommandError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from core.database.models import Portfolio
    from core.trading.portfolios import Flow

T = TypeVar("T")

Which = Annotated[str, typer.Argument(metavar="PORTFOLIO", help="Its id.")]
Start = Annotated[
    str | None, typer.Option("--start", metavar="WHEN", help="2026-01-31, a time, or 30d; else the first.")
]
End = Annotated[str | None, typer.Option("--end", metavar="WHEN", help="A day is included; else the last.")]
Zone = Annotated[str, typer.Option("--zone", help="Whose days and times.")]
Flows = Annotated[
    list[str] | None,
    typer.Option("--flow", metavar="WHEN=AMOUNT", help="A deposit, or with - a withdrawal; may be repeated."),
]

ZONE = "Asia/Kolkata"
"""The rooms' own default, which is not imported for the sake of a quick start; a test compares."""

_AGO = re.compile(r"([0-9]{1,6})([hdw])")
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def clock_of(zone: str) -> ZoneInfo:
    """Of an option. Raises CommandError."""
    try:
        return ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # a folder of the database, and a path, are no zones either
        raise CommandError(
            f"there is no time zone {zone!r}", hint="Name one such as UTC or Asia/Kolkata.", code=USAGE
        ) from None


def instant(text: str, clock: ZoneInfo, *, until: bool = False) -> datetime:
    """In UTC, of an option: a day (with `until` its end), a time, or how long ago. Raises CommandError."""
    try:
        if ago := _AGO.fullmatch(text):
            return datetime.now(UTC) - int(ago[1]) * _UNITS[ago[2]]
        if len(text) == len("2026-01-31"):
            day = date.fromisoformat(text) + timedelta(days=int(until))
            return datetime.combine(day, time(), clock).astimezone(UTC)
        given = datetime.fromisoformat(text)
        return (given if given.tzinfo else given.replace(tzinfo=clock)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise CommandError(
            f"{text!r} is neither a day, nor a time, nor how long ago",
            hint="Write 2026-01-31, 2026-01-31T15:30, 2026-01-31T10:00Z, or 12h, 30d, 8w.",
            code=USAGE,
        ) from None


def limits(start: str | None, end: str | None, clock: ZoneInfo) -> tuple[datetime | None, datetime | None]:
    """Of `Start` and `End`. Raises CommandError."""
    return instant(start, clock) if start else None, instant(end, clock, until=True) if end else None


def flows_of(given: list[str] | None, clock: ZoneInfo) -> "list[Flow]":
    """Of `Flows`. Raises CommandError."""
    from core.trading.portfolios import Flow

    flows: list[Flow] = []
    for text in given or ():
        at, _, amount = text.rpartition("=")
        try:
            flows.append(Flow(instant(at, clock), Decimal(amount.replace(",", ""))))
        except InvalidOperation:
            hint = "Write --flow 2026-03-01=250000, or -250000 for a withdrawal."
            raise CommandError(f"{text!r} is no deposit or withdrawal", hint=hint, code=USAGE) from None
    return flows


async def portfolio_of(session: "AsyncSession", portfolio_id: str) -> "Portfolio":
    """Raises CommandError."""
    from core.trading import portfolios

    found = await portfolios.get(session, portfolio_id)
    if found is None:
        raise unknown(portfolio_id)
    return found


async def period_of(
    session: "AsyncSession", portfolio_ids: "Iterable[str] | None", start: datetime | None, end: datetime | None
) -> tuple[datetime, datetime]:
    """From `start` until just before `end`; what is not given is all that there is. Raises CommandError if empty."""
    from core.trading import portfolios

    if start is not None and end is not None and start >= end:
        raise CommandError("--end must be after --start", hint="A day as --end is included.", code=USAGE)
    recorded = await portfolios.recorded_period(session, portfolio_ids)
    if recorded is None:
        raise CommandError(
            "there are no snapshots yet",
            hint="`panda portfolio record` and `panda portfolio import` add some.",
            code=REFUSED,
        )
    first, last = start or recorded.first, end or recorded.last + timedelta(microseconds=1)
    if first > recorded.last or last <= recorded.first:
        raise empty(recorded)
    return first, last


def empty(recorded: "tuple[datetime, datetime] | None" = None) -> CommandError:
    reach = f"What is recorded reaches from {_text(recorded[0])} to {_text(recorded[1])}." if recorded else None
    return CommandError("there are no snapshots in that period", hint=reach, code=REFUSED)


def unknown(portfolio_id: str) -> CommandError:
    return CommandError(
        f"there is no portfolio {portfolio_id!r}",
        hint="`panda portfolio list` shows those there are; `panda portfolio create` adds one.",
        code=REFUSED,
    )


def _text(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
