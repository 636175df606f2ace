"""`panda strategy watch`: a line for each change as it is committed."""

import json
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo

import typer

from core.cli._output import Output
from core.cli._portfolio_read import ZONE, Zone, clock_of
from core.cli._strategy_print import shown

if TYPE_CHECKING:
    from core.trading.strategies import StrategyChange

After = Annotated[str | None, typer.Option("--after", metavar="N", help="After this change; else from now.")]
Count = Annotated[int | None, typer.Option("--count", "-n", min=1, help="End after that many.")]


def watch(out: Output, *, after: After = None, count: Count = None, zone: Zone = ZONE) -> None:
    """Print a line for each change of a strategy as it is committed.

    Ctrl-C ends it. A lost connection or a restart of the server loses nothing; to go on from where it ended, give
    the last number as --after. With --json a line is a JSON object; its cursor as --after also tells whether the
    database is still the one that was watched.
    """
    import contextlib

    from core.cli._database import connected, run, settings_in_force
    from core.trading import strategies

    clock = clock_of(zone)

    async def work() -> None:
        left = count
        async with (
            connected(settings_in_force(), out, verify=True) as manager,
            contextlib.aclosing(strategies.watch(manager, after=after)) as feed,
        ):
            async for change in feed:
                _print(out, change, clock)
                left = left - 1 if left is not None else None
                if left == 0:
                    return

    run(work())


def _print(out: Output, change: "StrategyChange", clock: ZoneInfo) -> None:
    if out.as_json:
        # A line each, where a command otherwise has one object as its result.
        fields = {name: getattr(change, name) for name in change.__dataclass_fields__}
        Output(quiet=out.quiet).raw(json.dumps(fields | {"changed_at": change.changed_at.isoformat()}))
        return
    at = f"{change.changed_at.astimezone(clock):%Y-%m-%d %H:%M:%S}"
    who = shown(change.changed_by) if change.changed_by is not None else "-"
    why = f"  {shown(change.note)}" if change.note else ""
    name = f"{shown(change.strategy_id)} v{change.version}"
    out.raw(f"{change.change_id:>6}  {at}  {name}  {who}: {_what(change)}{why}")


def _what(change: "StrategyChange") -> str:
    if change.version == 1:
        return "defined"
    words = [field for field in change.fields if field != "is_active"]
    if "is_active" in change.fields:
        words.insert(0, "enabled" if change.is_active else "disabled")
    return ", ".join(words)
