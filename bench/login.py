"""`python -m bench.login`: does the time of a refused login tell whether there is such a user?

In each round every kind of login is tried once, in another order each time, through a manager on its own, with the real
Argon2id. Ratios are formed within a round. BENCH_DATABASE_URL is that of `python -m bench`.
"""

import argparse
import asyncio
import os
import random
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from bench import panda
from bench.__main__ import positive
from bench.machine import describe, headline
from bench.samples import interval, quantile, ratios
from bench.server import Target, opened_target

if TYPE_CHECKING:
    from core.database.connection import DatabaseManager

__all__ = ["REFERENCE", "main", "measured", "render"]

REFERENCE = "a wrong password"
_PASSWORD = "correct horse battery"
_KINDS = {
    REFERENCE: ("asha", "wrong"),
    "an unknown name": ("nobody", "wrong"),
    "a user who is disabled": ("gone", _PASSWORD),
    "an outdated hash": ("old", "wrong"),
    "the right password": ("asha", _PASSWORD),
}
_ROUNDS = 200


async def prepare(target: Target) -> None:
    """The users that are tried."""
    from pwdlib import PasswordHash
    from pwdlib.hashers.argon2 import Argon2Hasher
    from sqlalchemy import update

    from core.database.models import User
    from core.trading import accounts

    await panda.migrate(target)
    outdated = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=19_456, parallelism=1),)).hash(_PASSWORD)
    async with panda.opened_manager(target) as manager:
        async with manager.transaction() as session:
            for name in ("asha", "gone", "old"):
                await accounts.register(session, name, _PASSWORD)
            await session.execute(update(User).where(User.username == "old").values(hashed_password=outdated))
        await accounts.disable(manager, "gone", actor="bench")


async def measured(manager: "DatabaseManager", rounds: int) -> dict[str, list[float]]:
    """Seconds of every login, by its kind, after a round that is not counted."""
    taken: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    order = list(_KINDS)
    for number in range(rounds + 1):
        random.shuffle(order)
        for kind in order:
            seconds = await _timed(manager, *_KINDS[kind])
            if number:
                taken[kind].append(seconds)
    return taken


async def _timed(manager: "DatabaseManager", name: str, password: str) -> float:
    from core.trading import accounts

    delays = accounts.LoginDelays(free=1_000_000)
    start = time.perf_counter()
    try:
        await accounts.authenticate(manager, name, password, delays=delays)
    except accounts.InvalidCredentials:
        pass
    return time.perf_counter() - start


def render(taken: Mapping[str, Sequence[float]]) -> str:
    """A table in milliseconds, and of the ratios to a wrong password the median and where it lies with 95 % confidence."""
    said = [f"{'':24}{'median':>9}{'p5':>9}{'p95':>9}   x {REFERENCE}"]
    for kind, seconds in taken.items():
        figures = (median(seconds), quantile(seconds, 0.05), quantile(seconds, 0.95))
        shares = ratios(seconds, taken[REFERENCE])
        low, high = interval(shares)
        cells = "".join(f"{each * 1e3:9.2f}" for each in figures)
        said.append(f"{kind:24}{cells}   {median(shares):.3f} ({low:.3f} - {high:.3f})")
    return "\n".join(said)


async def _run(rounds: int) -> None:
    async with opened_target() as target:
        print(headline(await describe(target)), flush=True)
        await prepare(target)
        async with panda.opened_manager(target) as manager:
            taken = await measured(manager, rounds)
    print(f"\nlogin: {rounds} of each kind, one at a time, ms\n\n{render(taken)}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.login", description="Does the time of a login tell anything?"
    )
    default = os.environ.get("RUNS") or str(_ROUNDS)
    parser.add_argument("--runs", type=positive, default=default, help="how many of each kind")
    asyncio.run(_run(parser.parse_args().runs))


if __name__ == "__main__":
    main()
