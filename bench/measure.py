"""Runs a work: every entrant in every round, in rotating order, each result checked by the entrant itself."""

import asyncio
import gc
import math
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass, field

from bench.server import Target

__all__ = [
    "Entrant",
    "Goal",
    "Prepare",
    "Result",
    "SelfTimed",
    "Unavailable",
    "Unit",
    "Work",
    "expect",
    "rotated",
    "run_work",
]

Unit = Callable[[], Awaitable[None]]
"""Does the work once and checks what came back."""

Prepare = Callable[[Target], Awaitable[None]]


class Unavailable(Exception):
    """An entrant cannot take part here; the text says why, and how to get it."""


@dataclass(frozen=True, slots=True)
class SelfTimed:
    """What an entrant yields that keeps its own time, because not all it does belongs to the work."""

    sample: Callable[[int], Awaitable[float]]
    """Does that many units and returns the seconds they took together."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """One way of doing a work. `open` yields it ready to be called; what it opened is closed when the work is over."""

    name: str
    open: Callable[[Target], AbstractAsyncContextManager[Unit | SelfTimed]]


@dataclass(frozen=True, slots=True)
class Goal:
    """`entrant` shall cost at most `at_most` times what `against` costs, by the median of the rounds' ratios.

    A goal without a bound is a comparison that is worth printing.
    """

    entrant: str
    against: str
    at_most: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One thing that people do with a database, and everybody who does it here."""

    name: str
    title: str
    entrants: tuple[Entrant, ...]
    limit: str
    """The entrant that all others are divided by."""
    goals: tuple[Goal, ...] = ()
    units: int
    """How many units make one sample."""
    runs: int
    """How many rounds."""
    tasks: int = 1
    """How many tasks do the units of a sample between them."""
    prepare: Prepare | None = None
    """Makes the data that the entrants read, once, before the first of them is opened."""
    sized: Callable[[int], "Work"] | None = None
    """The same work on that many rows, for a work whose size is that of its data: ROWS= then means these."""
    alone: bool = False
    """Open each entrant for its own sample only: their connections together would be more than a server takes."""

    def __post_init__(self) -> None:
        """Every name that a goal speaks of must be an entrant's."""
        names = [entrant.name for entrant in self.entrants]
        if len(set(names)) != len(names):
            raise ValueError(f"Two entrants of {self.name} have the same name")
        spoken = {self.limit, *(goal.entrant for goal in self.goals), *(goal.against for goal in self.goals)}
        if unknown := spoken.difference(names):
            raise ValueError(f"{self.name} has no entrant named {', '.join(sorted(unknown))}")


@dataclass(frozen=True, slots=True)
class Result:
    """What a work came to: seconds per unit, by entrant, one for each round in order."""

    work: Work
    units: int
    seconds: Mapping[str, Sequence[float]]
    absent: Mapping[str, str] = field(default_factory=dict[str, str])
    """Entrants that could not take part, and why."""


def expect(got: object, wanted: object) -> None:
    """An entrant that answers wrongly has not done the work: AssertionError."""
    if got != wanted:
        raise AssertionError(f"Expected {wanted!r}, got {got!r}")


def rotated(entrants: Sequence[Entrant], turn: int) -> list[Entrant]:
    """The order of round `turn`: everybody begins in turn, and every second time around the order is reversed."""
    start = turn % len(entrants)
    order = [*entrants[start:], *entrants[:start]]
    return order[::-1] if turn // len(entrants) % 2 else order


async def run_work(work: Work, target: Target, *, units: int | None = None, runs: int | None = None) -> Result:
    """Measure `work`; `units` and `runs` override what the work itself proposes. Unavailable without its limit."""
    if units and work.sized is not None:
        work, units = work.sized(units), None
    count = math.ceil((units or work.units) / work.tasks) * work.tasks
    turns = runs or work.runs
    seconds: dict[str, list[float]] = {entrant.name: [] for entrant in work.entrants}
    absent: dict[str, str] = {}
    if work.prepare is not None:
        await work.prepare(target)
    rounds = _alone if work.alone else _together
    await rounds(work, target, count, turns, seconds, absent)
    if work.limit in absent:
        raise Unavailable(f"{work.name} has nothing to be compared with: {absent[work.limit]}")
    return Result(work, count, {name: tuple(taken) for name, taken in seconds.items() if taken}, absent)


async def _together(
    work: Work, target: Target, units: int, turns: int, seconds: dict[str, list[float]], absent: dict[str, str]
) -> None:
    async with AsyncExitStack() as stack:
        ready: dict[str, Unit | SelfTimed] = {}
        for entrant in work.entrants:
            with _absence_noted(entrant, absent):
                unit = await stack.enter_async_context(entrant.open(target))
                await _warm_up(unit, units, work.tasks)
                ready[entrant.name] = unit
        with _settled_heap():
            for turn in range(turns):
                for entrant in rotated(work.entrants, turn):
                    if entrant.name in ready:
                        taken = await _sample(ready[entrant.name], units, work.tasks)
                        seconds[entrant.name].append(taken)


async def _alone(
    work: Work, target: Target, units: int, turns: int, seconds: dict[str, list[float]], absent: dict[str, str]
) -> None:
    for turn in range(turns):
        for entrant in rotated(work.entrants, turn):
            if entrant.name in absent:
                continue
            with _absence_noted(entrant, absent):
                async with entrant.open(target) as unit:
                    await _warm_up(unit, units, work.tasks)
                    with _settled_heap():
                        taken = await _sample(unit, units, work.tasks)
                seconds[entrant.name].append(taken)


@contextmanager
def _absence_noted(entrant: Entrant, absent: dict[str, str]) -> Generator[None]:
    try:
        yield
    except Unavailable as error:
        absent[entrant.name] = str(error)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in {"bench", "core"}:
            raise
        absent[entrant.name] = f"{error.name} is not installed: pip install -r requirements/bench.lock"


@contextmanager
def _settled_heap() -> Generator[None]:
    """What the entrants have imported and built is left out of every collection that falls into a sample."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def _warm_up(unit: Unit | SelfTimed, units: int, tasks: int) -> None:
    await _sample(unit, max(units // 4 // tasks, 1) * tasks, tasks)


async def _sample(unit: Unit | SelfTimed, units: int, tasks: int) -> float:
    """Seconds per unit. The collector runs before, for everybody, and stays on during the sample as it does in life."""
    gc.collect()
    if isinstance(unit, SelfTimed):
        return await unit.sample(units) / units
    start = time.perf_counter()
    if tasks == 1:
        await _repeat(unit, units)
    else:
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(_repeat(unit, units // tasks))
    return (time.perf_counter() - start) / units


async def _repeat(unit: Unit, times: int) -> None:
    for _ in range(times):
        await unit()
