"""`panda session watch`."""

import json
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.cli._output import Output
from core.cli._portfolio_read import ZONE, Zone, clock_of

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from core.trading.sessions import SessionEvent

WarnBefore = Annotated[
    int, typer.Option("--warn-before", metavar="MINUTES", min=0, max=10_080, help="Tell so long before the end.")
]
Interval = Annotated[float, typer.Option("--interval", min=0.1, max=3_600, help="Seconds between two rounds.")]
Count = Annotated[int | None, typer.Option("--count", min=1, help="End after so many events.")]


def watch(
    out: Output, *, warn_before: WarnBefore = 30, interval: Interval = 15.0, count: Count = None, zone: Zone = ZONE
) -> None:
    """Print what becomes of sessions, and end those that expire, until Ctrl-C.

    With --json a JSON object a line.
    """
    from core.cli._database import connected, run, settings_in_force
    from core.trading.sessions import SessionWatch

    clock = clock_of(zone)

    async def work() -> None:
        seen = 0
        async with (
            connected(settings_in_force(), out, verify=True) as manager,
            SessionWatch(manager, warn_before=timedelta(minutes=warn_before), interval=interval) as events,
        ):
            out.note("watching; Ctrl-C ends it")
            async for event in events:
                _print(out, event, clock)
                seen += 1
                if seen == count:
                    return

    run(work())


def _print(out: Output, event: "SessionEvent", clock: "ZoneInfo") -> None:
    kind = type(event).__name__.removeprefix("Session").lower()
    reason: str | None = getattr(event, "reason", None)
    if out.as_json:
        fields: dict[str, Any] = {"kind": kind, "session_id": event.session_id, "user_id": event.user_id}
        fields |= {"broker": event.broker, "reason": reason}
        end = event.expires_at.astimezone(UTC).isoformat() if event.expires_at else None
        print(json.dumps(fields | {"expires_at": end}), flush=True)
        return
    end = f"{event.expires_at.astimezone(clock):%m-%d %H:%M:%S}" if event.expires_at else "never"
    out.line(f"{reason or kind:9} {event.session_id}  user {event.user_id}  {event.broker}  {end}")
