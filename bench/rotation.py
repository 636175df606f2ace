"""`python -m bench.rotation`: a rotation of the keys under load, and one that is killed again and again.

A hundred thousand active sessions, four of each user, have credentials that an older key sealed. Tasks resume sessions by
their bearers and open new ones with credentials, first by themselves and then while `panda keys rotate`, in a process of its
own, seals everything anew; then one rotation is killed with SIGKILL again and again and finished. After each, every envelope is
opened and compared with what was sealed. BENCH_DATABASE_URL is that of `python -m bench`.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench import panda
from bench.__main__ import positive
from bench.machine import describe, headline
from bench.measure import expect
from bench.samples import quantile
from bench.server import Target, opened_target
from bench.snapshots import connected

if TYPE_CHECKING:
    from core.database.connection import DatabaseManager
    from core.database.encryption import KeyRing

__all__ = ["main"]

_BROKERS = 4
_SESSIONS = """
    INSERT INTO trading_sessions (session_id, user_id, broker, bearer_hash, credentials)
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::bytea[], $5::bytea[])
"""
_LEFT = (
    r"SELECT count(*) FROM trading_sessions WHERE is_active AND substring(credentials, 1, 4) <> '\x01026b33'"  # of k3
)
_OPENS = 0.1
"""The share of openings among what the tasks do."""


@dataclass
class Load:
    """Seconds that each resuming and each opening took."""

    resumed: list[float] = field(default_factory=list[float])
    opened: list[float] = field(default_factory=list[float])

    def told(self, seconds: float) -> str:
        parts = [f"{(len(self.resumed) + len(self.opened)) / seconds:7,.0f} a second"]
        for name, taken in (("resume", self.resumed), ("open", self.opened)):
            figures = (
                f"p50 {quantile(taken, 0.5) * 1e3:6.2f}  p99 {quantile(taken, 0.99) * 1e3:6.2f} ms" if taken else "-"
            )
            parts.append(f"{name} {figures}")
        return "   ".join(parts)


def _ring(*ids: str, keys: dict[str, str]) -> str:
    return ",".join(f"{key_id}:{keys[key_id]}" for key_id in ids)


async def _fill(target: Target, ring: "KeyRing", rows: int) -> list[str]:
    """So many sealed sessions; their bearers."""
    from core.database.canaries import keep_canary
    from core.trading import sessions
    from core.trading.sessions._bearer import bearer_hash, new_bearer

    await panda.migrate(target)
    async with panda.opened_manager(target) as manager, manager.transaction() as session:
        await keep_canary(session, ring)
    bearers = [new_bearer() for _ in range(rows)]
    records = [
        (key := f"s{n:07}", n // _BROKERS + 1, f"b{n % _BROKERS}", bearer_hash(bearer),
         sessions.seal_credentials(f"token of {key}", session_id=key, ring=ring))
        for n, bearer in enumerate(bearers)
    ]  # fmt: skip
    async with connected(target) as connection:
        await connection.execute(
            "INSERT INTO users (username, hashed_password) SELECT 'u' || n, 'x' FROM generate_series(1, $1::integer) AS n",
            rows // _BROKERS + 1,
        )
        await connection.execute(_SESSIONS, *map(list, zip(*records, strict=True)))
        await connection.execute("VACUUM (ANALYZE) trading_sessions, users")
    return bearers


async def _checked(manager: "DatabaseManager", ring: "KeyRing", rows: int, *, key_id: str | None = None) -> None:
    """Every session that was filled in or opened since has what was sealed, under `key_id` if one is given."""
    from sqlalchemy import text

    from core.trading import sessions

    found = 0
    async with manager.get_session() as session:
        await session.execute(text("SET LOCAL statement_timeout = 0"))
        stored = await session.execute(text("SELECT session_id, credentials FROM trading_sessions WHERE is_active"))
        for key, envelope in stored:
            place: dict[str, str] = {"table": "trading_sessions", "column": "credentials", "row_key": key}
            expect(ring.open_text(envelope, **place), f"token of {key}" if key.startswith("s") else "a new token")
            found += 1
    expect(found, rows)
    report = await sessions.verify(manager, ring)
    if key_id is not None:
        expect(dict(report.envelopes), {key_id: rows})


async def _work(
    manager: "DatabaseManager",
    bearers: list[str],
    ring: "KeyRing",
    given: argparse.Namespace,
    until: Callable[[], bool],
) -> Load:
    """Tasks that resume and open until told to stop. What one opens replaces a session of its own user and no other's."""
    from core.trading import sessions

    load, turns = Load(), itertools.count()

    async def task(number: int) -> None:
        dice = random.Random(number)
        while not until():
            begun = time.perf_counter()
            if dice.random() < _OPENS:
                turn = next(turns) * 7 + number
                user, broker = turn % (len(bearers) // _BROKERS // 10) + 1, f"b{turn % _BROKERS}"
                async with manager.transaction() as session:
                    await sessions.open(session, user_id=user, broker=broker, credentials="a new token", ring=ring)
                load.opened.append(time.perf_counter() - begun)
            else:
                # Users above a tenth open nothing, so that their bearers stay.
                bearer = bearers[dice.randrange(len(bearers) // 5, len(bearers))]
                async with manager.get_session(read_only=True) as session:
                    await sessions.resume(session, bearer)
                load.resumed.append(time.perf_counter() - begun)
            await asyncio.sleep(given.rest)

    await asyncio.gather(*(task(number) for number in range(given.tasks)))
    return load


async def _rotate(target: Target, ring: str, *options: str) -> asyncio.subprocess.Process:
    names = {"DATABASE__POSTGRES_URL": target.url, "DATABASE__ENCRYPTION_KEYS": ring}
    command = (sys.executable, "-m", "core.cli.main", "keys", "rotate", "--json", "--quiet", *options)
    return await asyncio.create_subprocess_exec(*command, env={**os.environ, **names}, stdout=asyncio.subprocess.PIPE)


async def _result(process: asyncio.subprocess.Process) -> dict[str, Any]:
    out, _ = await process.communicate()
    expect(process.returncode, 0)
    return json.loads(out)


async def _timed(work: Callable[[Callable[[], bool]], Awaitable[Load]], seconds: float) -> tuple[Load, float]:
    begun = time.perf_counter()
    load = await work(lambda: time.perf_counter() - begun > seconds)
    return load, time.perf_counter() - begun


async def _under_load(
    target: Target, manager: "DatabaseManager", keys: dict[str, str], given: argparse.Namespace
) -> None:
    from core.database.encryption import KeyRing

    ring = _ring("k1", keys=keys)
    both = _ring("k2", "k1", keys=keys)
    bearers = await _fill(target, KeyRing.parse(ring), given.rows)
    ring_now = KeyRing.parse(both)

    async def work(until: Callable[[], bool]) -> Load:
        return await _work(manager, bearers, ring_now, given, until)

    await _timed(work, 1.0)
    before, seconds = await _timed(work, given.seconds)
    print(f"by itself          {before.told(seconds)}", flush=True)
    process = await _rotate(target, both, "--batch", str(given.batch), "--pause", str(given.pause))
    rotation = asyncio.create_task(_result(process))
    begun = time.perf_counter()
    meanwhile = await work(rotation.done)
    print(f"while it rotates   {meanwhile.told(time.perf_counter() - begun)}")
    report = await rotation
    rate = report["rotated"] / report["seconds"]
    print(
        f"rotation           {report['rotated']:,} rows in {report['seconds']:.1f} s, {rate:,.0f} rows a second,",
        end=" ",
    )
    print(f"{report['batches']} transactions of {given.batch}")
    await _checked(manager, ring_now, given.rows, key_id="k2")
    alone = await _result(await _rotate(target, _ring("k1", "k2", keys=keys), "--batch", str(given.batch)))
    print(f"nobody else        {alone['rotated']:,} rows in {alone['seconds']:.1f} s, ", end="")
    print(f"{alone['rotated'] / alone['seconds']:,.0f} rows a second")


async def _killed(target: Target, manager: "DatabaseManager", keys: dict[str, str], given: argparse.Namespace) -> None:
    from core.database.encryption import KeyRing

    ring = _ring("k3", "k1", "k2", keys=keys)
    left: list[int] = []
    for _ in range(given.kills):
        process = await _rotate(target, ring, "--batch", "100")
        async with connected(target) as connection:
            while process.returncode is None and await connection.fetchval(_LEFT) == (left[-1] if left else given.rows):
                await asyncio.sleep(0.02)
            await asyncio.sleep(random.uniform(0, 0.5))
            if process.returncode is None:
                process.kill()
            await process.wait()
            left.append(await connection.fetchval(_LEFT))
        await _checked(manager, KeyRing.parse(ring), given.rows)
    last = await _result(await _rotate(target, ring))
    await _checked(manager, KeyRing.parse(_ring("k3", keys=keys)), given.rows, key_id="k3")
    print(
        f"killed {given.kills} times     left after each: {', '.join(f'{n:,}' for n in left)}; the last run did ",
        end="",
    )
    print(f"{last['rotated']:,}; all {given.rows:,} open, none is lost")


async def _run(given: argparse.Namespace) -> None:
    from core.database.encryption import KeyRing

    keys = {key_id: KeyRing.generate_key() for key_id in ("k1", "k2", "k3")}
    async with opened_target() as target:
        print(headline(await describe(target)), flush=True)
        print(f"\n{given.rows:,} sealed sessions; {given.tasks} tasks, of ten calls one opens and nine resume\n")
        async with panda.opened_manager(target) as manager:
            await _under_load(target, manager, keys, given)
            await _killed(target, manager, keys, given)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.rotation", description=__doc__)
    parser.add_argument("--rows", type=positive, default=100_000)
    parser.add_argument("--tasks", type=positive, default=4)
    parser.add_argument("--rest", type=float, default=0.01, help="seconds that a task rests between two calls")
    parser.add_argument("--seconds", type=float, default=8.0, help="of the load by itself")
    parser.add_argument("--batch", type=positive, default=500)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two transactions")
    parser.add_argument("--kills", type=positive, default=5)
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
