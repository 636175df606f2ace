"""`panda user events | prune-events`: what happened to accounts and was tried with their names."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.cli._failure import FAILED, USAGE, CommandError
from core.cli._output import Output
from core.cli._portfolio_print import moment
from core.cli._portfolio_read import ZONE, Zone, clock_of, instant

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from core.database.models import AuthEvent
    from core.trading.accounts import PruneReport

OfName = Annotated[str | None, typer.Argument(metavar="NAME", help="What was tried with this name; else all.")]
Kind = Annotated[list[str] | None, typer.Option("--kind", help="Such as login_refused; may be repeated.")]
Since = Annotated[str | None, typer.Option("--since", metavar="WHEN", help="2026-01-31, a time, or 12h.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=100_000, help="At most so many, the newest.")]
OlderThan = Annotated[int, typer.Option("--older-than", min=1, max=36_500, metavar="DAYS", help="Such as 365.")]


def events(
    out: Output, name: OfName = None, *, kind: Kind = None, since: Since = None, limit: Limit = 50, zone: Zone = ZONE
) -> int | None:
    """List what happened to accounts, newest first.

    And what was tried with their names. Names that are nobody's are kept as a digest only, since a password is typed for one now and then. Exit code 1 if there
    is nothing.
    """
    from core.cli._database import read
    from core.trading import accounts

    clock = clock_of(zone)
    start = instant(since, clock) if since else None
    wanted = _kinds(kind or ())

    async def work(session: "AsyncSession") -> "tuple[Sequence[AuthEvent], dict[int, str]]":
        found = await accounts.events(session, user=name, kinds=wanted, since=start, limit=limit)
        return found, await _names(session, found)

    found, names = read(out, work)
    out.data({"events": [_json(item, names) for item in found]})
    if not found:
        out.note("there are no such events" if name or kind or since else "there are no events yet")
        return 1
    rows = [
        (
            moment(item.occurred_at.replace(microsecond=0), clock),
            _what(item),
            names.get(item.user_id or 0, ""),
            shown(item.source),
            shown(item.actor),
        )
        for item in found
    ]
    out.table(rows, columns=(f"time ({clock.key})", "event", "user", "from", "by"))
    return None


def prune_events(out: Output, *, older_than: OlderThan) -> None:
    """Remove old events, delays and sources.

    Delays that are forgotten and sources that are not known any more, whatever their age. In batches, and safe to interrupt. The application's role may only add to the record: connect as the owner.
    """
    from core.cli._database import connected, run, settings_in_force
    from core.database.errors import PermissionDenied
    from core.trading import accounts

    async def work() -> "PruneReport":
        async with connected(settings_in_force(), out, verify=True) as manager:
            return await accounts.prune_events(manager, older_than=timedelta(days=older_than))

    try:
        report = run(work())
    except PermissionDenied as error:
        hint = "The application's role only adds to the record: connect as the owner of the tables."
        raise CommandError(error.message, hint=hint, code=FAILED) from None
    figures = {"events": report.events, "delays": report.delays, "sources": report.sources}
    out.data(figures)
    out.line("removed: " + ", ".join(f"{count:,} {what}" for what, count in figures.items()))


def shown(text: str | None) -> str:
    """What cannot be seen, and could make another line or turn this one round, as an escape."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text or "")


def _what(item: "AuthEvent") -> str:
    words = f"{item.kind}: {item.reason}" if item.reason else item.kind
    return words.removeprefix("login_").replace("_", " ")


def _kinds(given: Sequence[str]) -> Any:
    from typing import get_args

    from core.database.records import AuthEventKind

    known = get_args(AuthEventKind)
    for kind in given:
        if kind not in known:
            raise CommandError(f"there are no events {kind!r}", hint=f"There are {', '.join(known)}.", code=USAGE)
    return tuple(given)


async def _names(session: "AsyncSession", found: "Sequence[AuthEvent]") -> dict[int, str]:
    from sqlalchemy import select

    from core.database.models import User

    ids = sorted({item.user_id for item in found if item.user_id is not None})
    return {
        row.id: row.username for row in await session.execute(select(User.id, User.username).where(User.id.in_(ids)))
    }


def _json(item: "AuthEvent", names: dict[int, str]) -> dict[str, Any]:
    fields = ("event_id", "occurred_at", "kind", "reason", "user_id", "source", "actor")
    values: dict[str, datetime | int | str | None] = {name: getattr(item, name) for name in fields}
    return values | {"username": names.get(item.user_id or 0), "name_sha256": item.name_digest.hex()}
