"""`panda strategy enable`, `disable`, `rollback`, and what every writing command of strategies shares."""

import importlib
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from core.cli._failure import USAGE, CommandError
from core.cli._output import Output
from core.cli._strategy_print import as_json, shown

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from core.database.models import Strategy
    from core.trading.strategies import StrategyRules

T = TypeVar("T")

_PATIENCE = 30.0
"""Seconds for which a stop tries again while another writer holds the lock: it must not be the one that gives up."""

Which = Annotated[str, typer.Argument(metavar="STRATEGY", help="Its id.")]
Many = Annotated[list[str], typer.Argument(metavar="STRATEGY...", help="Their ids.")]
Stopped = Annotated[list[str] | None, typer.Argument(metavar="STRATEGY...", help="Their ids.")]
Everything = Annotated[bool, typer.Option("--all", help="Every active one, of --broker alone if that is given.")]
OfBroker = Annotated[str | None, typer.Option("--broker", help="With --all: those that trade with this one.")]
To = Annotated[int, typer.Argument(metavar="VERSION", min=1, help="The one to go back to.")]
At = Annotated[int | None, typer.Option("--at", metavar="VERSION", min=1, help="Only if it is at this version.")]
By = Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who changes it; else this system's user.")]
Note = Annotated[str | None, typer.Option("--note", help="Why.")]
Rules = Annotated[
    str | None,
    typer.Option(
        "--rules", metavar="MODULE:NAME", help="The application's StrategyRules; else TRADING__STRATEGY_RULES."
    ),
]


def enable(out: Output, strategy: Many, *, by: By = None, note: Note = None, rules: Rules = None) -> None:
    """Let strategies trade. All of them or none."""
    from core.trading import strategies

    held = rules_in_force(rules)
    origin: dict[str, Any] = {"changed_by": by or system_user(), "note": note}
    _switch(out, strategy, lambda session, one: strategies.enable(session, one, rules=held, **origin))


def disable(
    out: Output,
    strategy: Stopped = None,
    *,
    every: Everything = False,
    broker: OfBroker = None,
    by: By = None,
    note: Note = None,
) -> None:
    """Stop strategies, whatever version they are at. All of them or none."""
    from core.trading import strategies

    if every == bool(strategy) or (broker is not None and not every):
        hint = "Name strategies, or say --all, or --all --broker NAME."
        raise CommandError("it is not clear which strategies to stop", hint=hint, code=USAGE)
    origin: dict[str, Any] = {"changed_by": by or system_user(), "note": note}
    if strategy:
        _switch(out, strategy, lambda session, one: strategies.disable(session, one, **origin), patience=_PATIENCE)
        return

    async def stop(session: "AsyncSession") -> "list[tuple[bool, Strategy]]":
        done = await strategies.disable_all(session, broker=broker, **origin)
        for one in done:
            await session.refresh(one)
        return [(True, one) for one in done]

    _tell(out, write(out, stop, patience=_PATIENCE))


def rollback(
    out: Output, strategy: Which, version: To, *, at: At = None, by: By = None, note: Note = None, rules: Rules = None
) -> None:
    """Make an earlier version the next one. Whether the strategy is active stays as it is.

    Exit code 6 if it has no such version, if --at names another than the present one, or if the rules refuse what
    was right then.
    """
    from core.trading import strategies
    from core.trading.strategies import StrategyNotFound

    held = rules_in_force(rules)
    origin: dict[str, Any] = {"changed_by": by or system_user(), "note": note}

    async def work(session: "AsyncSession") -> "tuple[int, Strategy]":
        present = await strategies.get(session, strategy)
        if present is None:
            raise StrategyNotFound(f"there is no strategy {strategy!r}")
        before = present.version
        done = await strategies.rollback(
            session, strategy, to_version=version, expected_version=at or before, rules=held, **origin
        )
        await session.refresh(done)
        return before, done

    before, done = write(out, work)
    out.data({"strategy": as_json(done), "changed": done.version != before})
    words = f"version {done.version} is what version {version} was" if done.version != before else "is so already"
    out.line(f"{shown(strategy)}: {words}")


def _switch(
    out: Output,
    strategy_ids: list[str],
    change: "Callable[[AsyncSession, str], Awaitable[Strategy]]",
    *,
    patience: float = 0.0,
) -> None:
    from core.trading import strategies

    async def work(session: "AsyncSession") -> "list[tuple[bool, Strategy]]":
        done: list[tuple[bool, Strategy]] = []
        for one in dict.fromkeys(strategy_ids):
            present = await strategies.get(session, one)
            before = present.version if present is not None else 0
            after = await change(session, one)
            await session.refresh(after)
            done.append((after.version != before, after))
        return done

    _tell(out, write(out, work, patience=patience))


def _tell(out: Output, done: "list[tuple[bool, Strategy]]") -> None:
    out.data({"strategies": [as_json(one) | {"changed": changed} for changed, one in done]})
    if not done:
        out.note("none of them is active")
    for changed, one in done:
        state = "active" if one.is_active else "disabled"
        out.line(f"{shown(one.strategy_id)}: {state}{f', version {one.version}' if changed else ' already'}")


def write(out: Output, work: "Callable[[AsyncSession], Awaitable[T]]", *, patience: float = 0.0) -> T:
    """Run it in a transaction that commits, on the database of the settings in force; its schema must be at head.

    For so many seconds it is tried again while another writer holds the lock.
    """
    from core.cli._database import connected, run, settings_in_force
    from core.database.errors import LockTimeout

    async def writing() -> T:
        end = time.monotonic() + patience
        async with connected(settings_in_force(), out, verify=True) as manager:
            while True:
                try:
                    return await manager.run_transaction(work)
                except LockTimeout:
                    if time.monotonic() >= end:
                        raise
                    out.note("another writer of strategies holds the lock; trying again")

    return run(writing())


def system_user() -> str | None:
    """Who runs the command, where the system knows."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return None


def rules_in_force(place: str | None) -> "StrategyRules":
    """Those of the option, else of the setting, with the configured brokers unless they name some. Raises CommandError."""
    from core.cli._database import settings_in_force
    from core.trading.strategies import StrategyRules

    trading = settings_in_force().trading
    place = place or trading.strategy_rules
    rules = _loaded(place) if place else StrategyRules()
    return rules if rules.brokers is not None else rules.with_brokers(trading.broker_policies)


def _loaded(place: str) -> "StrategyRules":
    from core.trading.strategies import StrategyRules

    module, colon, name = place.partition(":")
    if not (module and colon and name):
        raise CommandError(f"{place!r} is no place of rules", hint="Write --rules module:name.", code=USAGE)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` has it: the application's modules lie here
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise CommandError(f"the rules {place} cannot be loaded: {error}", code=USAGE) from error
    if not isinstance(found, StrategyRules):
        raise CommandError(f"{place} is no StrategyRules but {type(found).__name__}", code=USAGE)
    return found
