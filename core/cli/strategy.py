"""`panda strategy ...`: strategies, what they were, who changed them."""

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

import typer

from core.cli._command import command
from core.cli._failure import REFUSED, CommandError
from core.cli._output import Output
from core.cli._portfolio_read import ZONE, Zone, clock_of
from core.cli._strategy_change import disable, enable, rollback
from core.cli._strategy_file import apply, export
from core.cli._strategy_print import as_json, change_lines, named, print_strategy, shown
from core.cli._strategy_watch import watch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncSession

    from core.database.models import Strategy, StrategyRevision
    from core.trading.strategies import FieldChange

__all__ = ["register"]

Which = Annotated[str, typer.Argument(metavar="STRATEGY", help="Its id.")]
OfBroker = Annotated[str | None, typer.Option("--broker", help="That trade with this broker.")]
Active = Annotated[bool, typer.Option("--active", help="That may trade.")]
Version = Annotated[int | None, typer.Option("--version", min=1, help="As it was then; else as it is.")]
From = Annotated[int | None, typer.Argument(metavar="FROM", min=1, help="A version; else the one before TO.")]
To = Annotated[int | None, typer.Argument(metavar="TO", min=1, help="A version; else the present one.")]

_HELP = "Strategies: who changed what, files, the feed."


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(help=_HELP, no_args_is_help=True)
    verbs = {"list": list_, "show": show, "history": history, "diff": diff, "enable": enable, "disable": disable}
    verbs |= {"rollback": rollback, "apply": apply, "export": export, "watch": watch}
    for name, function in verbs.items():
        group.command(name)(command(function))
    app.add_typer(group, name="strategy")


def list_(out: Output, *, broker: OfBroker = None, active: Active = False, zone: Zone = ZONE) -> None:
    """List the strategies, and how each stands."""
    from core.cli._database import read
    from core.trading import strategies

    clock = clock_of(zone)

    async def work(session: "AsyncSession") -> "Sequence[Strategy]":
        found = await strategies.listing(session, broker=broker, active_only=active)
        return sorted(found, key=lambda one: one.strategy_id)

    found = read(out, work)
    out.data({"strategies": [as_json(item) for item in found]})
    if not found:
        out.note("there are no strategies" + (" of these" if broker or active else " yet"))
        return
    out.table(
        [
            (
                shown(item.strategy_id),
                shown(item.strategy_type or ""),
                "active" if item.is_active else "disabled",
                str(item.version).rjust(7),
                f"{item.updated_at.astimezone(clock):%Y-%m-%d %H:%M}",
                ", ".join(item.active_brokers),
            )
            for item in found
        ],
        columns=("strategy", "type", "state", "version", f"since ({clock.key})", "brokers"),
    )


def show(out: Output, strategy: Which, *, version: Version = None, zone: Zone = ZONE) -> None:
    """Show a strategy, as it is or as it was at a version."""
    from core.cli._database import read

    clock = clock_of(zone)

    async def work(session: "AsyncSession") -> "tuple[Strategy, StrategyRevision | None]":
        found, revisions = await _with_history(session, strategy)
        wanted = version or found.version
        revision = next((one for one in revisions if one.version == wanted), None)
        if version is not None and revision is None:
            raise _no_version(strategy, version)
        return found, revision

    found, revision = read(out, work)
    out.data(as_json(found if revision is None or version is None else revision))
    print_strategy(out, found, revision, clock, past=version is not None)


def history(out: Output, strategy: Which, *, zone: Zone = ZONE) -> None:
    """List a strategy's versions: when, by whom, what changed, why."""
    from core.cli._database import read
    from core.trading.strategies import changes_between

    clock = clock_of(zone)

    async def work(session: "AsyncSession") -> "Sequence[StrategyRevision]":
        return (await _with_history(session, strategy))[1]

    found = read(out, work)
    told: list[list[str]] = [[] for _ in found[:1]]  # the first one changed nothing
    told += [[change.where for change in changes_between(a, b)] for a, b in pairwise(found)]
    out.data({"versions": [as_json(one) | {"changed": paths} for one, paths in zip(found, told, strict=True)]})
    if not found:
        out.note(f"nothing of {strategy} is on record: it was written by something else than these commands")
    for one, paths in zip(found, told, strict=True):
        who = shown(one.changed_by) if one.changed_by is not None else "-"
        at = f"{one.created_at.astimezone(clock):%Y-%m-%d %H:%M:%S}"
        out.line(f"{one.version:>4}  {at}  {who}{f'  {shown(one.note)}' if one.note else ''}")
        out.line(f"      {shown(', '.join(paths)) if one is not found[0] else 'defined'}")


def diff(out: Output, strategy: Which, from_: From = None, to: To = None) -> None:
    """Show what changed between two versions, by default the last two."""
    from core.cli._database import read
    from core.trading import strategies

    async def work(session: "AsyncSession") -> "tuple[int, int, tuple[FieldChange, ...]]":
        present = (await _with_history(session, strategy))[0].version
        last = to or (present if from_ is None or from_ < present else from_)
        first = from_ or max(last - 1, 1)
        return first, last, await strategies.diff(session, strategy, first, last)

    first, last, changes = read(out, work)
    out.data({"strategy_id": strategy, "from": first, "to": last, "changes": [as_json(one) for one in changes]})
    out.line(f"{shown(strategy)}: version {first} to {last}, {named(len(changes), 'change')}")
    for line in change_lines(changes):
        out.line(f"  {line}")


async def _with_history(session: "AsyncSession", strategy_id: str) -> "tuple[Strategy, Sequence[StrategyRevision]]":
    """Raises CommandError."""
    from core.trading import strategies

    found = await strategies.get(session, strategy_id)
    if found is None:
        hint = "`panda strategy list` shows those there are."
        raise CommandError(f"there is no strategy {strategy_id!r}", hint=hint, code=REFUSED)
    return found, await strategies.history(session, strategy_id)


def _no_version(strategy_id: str, version: int) -> CommandError:
    hint = f"`panda strategy history {strategy_id}` shows those there are."
    return CommandError(f"strategy {strategy_id!r} has no version {version} on record", hint=hint, code=REFUSED)
