"""Rotation of the keys: everything is sealed anew while all go on, nothing is lost however it ends, and what is wrong is told.

PANDA_SOAK_ROUNDS says how often a rotation is killed; `make soak` sets 30.
"""

import asyncio
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import structlog
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from core.config.options import RetryOptions, Timeouts
from core.database.canaries import check_ring, keep_canary
from core.database.connection import DatabaseManager
from core.database.encryption import KeyRing
from core.database.errors import (
    ConfigurationError,
    DeadlockDetected,
    EnvelopeTampered,
    InvalidKey,
    LockTimeout,
    UnknownKey,
)
from core.database.models import EncryptionCanary, TradingSession
from core.testing import make_user
from core.trading import sessions
from core.trading.sessions import RotationReport, SessionRevoked
from tests.test_trading_sessions import opened

ROUNDS = int(os.environ.get("PANDA_SOAK_ROUNDS", "2"))
KEYS = {key_id: KeyRing.generate_key() for key_id in ("k0", "k1", "k2", "lost")}


def ring(*ids: str) -> KeyRing:
    return KeyRing.parse(text_of(*ids))


def text_of(*ids: str) -> str:
    return ",".join(f"{key_id}:{KEYS[key_id]}" for key_id in ids)


OLD, BOTH, NEW = ring("k1"), ring("k2", "k1"), ring("k2")


@pytest.fixture
async def user_id(manager: DatabaseManager) -> int:
    async with manager.transaction() as session:
        session.add(user := make_user())
        await session.flush()
        return user.id


async def fill(manager: DatabaseManager, user_id: int, number: int, keys: KeyRing = OLD, *, first: int = 0) -> None:
    """Sessions s00000, s00001, ... whose credentials are token-00000, token-00001, ..."""
    async with manager.transaction() as session:
        await keep_canary(session, keys)
        await session.execute(
            sa.insert(TradingSession),
            [
                {
                    "session_id": f"s{n:05}",
                    "user_id": user_id,
                    "broker": f"b{n}",
                    "credentials": sessions.seal_credentials(f"token-{n:05}", session_id=f"s{n:05}", ring=keys),
                }
                for n in range(first, first + number)
            ],
        )


async def rows(manager: DatabaseManager) -> dict[str, TradingSession]:
    async with manager.get_session() as session:
        return {row.session_id: row for row in await session.scalars(select(TradingSession))}


async def opens(manager: DatabaseManager, keys: KeyRing) -> int:
    """Every stored envelope opens with these keys and holds what was sealed; how many there are."""
    found = [row for row in (await rows(manager)).values() if row.credentials is not None]
    for row in found:
        assert sessions.credentials_of(row, ring=keys) == row.session_id.replace("s", "token-")
    return len(found)


async def store(manager: DatabaseManager, session_id: str, envelope: bytes) -> None:
    async with manager.transaction() as session:
        which = TradingSession.session_id == session_id
        await session.execute(update(TradingSession).where(which).values(credentials=envelope))


def envelope(session_id: str, keys: KeyRing) -> bytes:
    return sessions.seal_credentials(session_id.replace("s", "token-"), session_id=session_id, ring=keys)


async def test_everything_is_sealed_anew_and_a_second_run_finds_nothing_to_do(manager, user_id):
    await fill(manager, user_id, 25)
    await fill(manager, user_id, 5, BOTH, first=25)
    before = await rows(manager)
    told: list[tuple[int, int]] = []
    report = await sessions.rotate(manager, BOTH, batch=10, progress=lambda done, total: told.append((done, total)))
    assert (report.key_id, report.rotated, report.faults, report.busy) == ("k2", 25, (), ())
    assert report.is_whole and told == [(10, 25), (20, 25), (25, 25)]
    assert await opens(manager, NEW) == 30
    after = await rows(manager)
    assert all(after[key].credentials == before[key].credentials for key in list(before)[25:]), "k2's are left alone"
    for name in ("session_data", "start_time", "is_active", "broker"):
        assert all(getattr(after[key], name) == getattr(before[key], name) for key in before)
    again = await sessions.rotate(manager, BOTH)
    assert (again.rotated, again.batches, again.is_whole) == (0, 0, True)
    async with manager.get_session() as session:
        check = await check_ring(session, NEW)
        assert (check.right, check.missing, check.retired) == (("k2",), (), ("k1",)), "the old key may leave the ring"


async def test_with_no_secret_there_is_nothing_to_do(manager, user_id):
    await opened(manager, user_id)
    report = await sessions.rotate(manager, NEW)
    assert (report.rotated, report.is_whole) == (0, True)
    async with manager.get_session() as session:
        assert (await session.scalars(select(EncryptionCanary.key_id))).all() == []
    wrong: list[dict[str, Any]] = [{"batch": 0}, {"batch": 10_001}, {"pause": -1.0}, {"patience": -1.0}]
    for options in wrong:
        with pytest.raises(ConfigurationError):
            await sessions.rotate(manager, NEW, **options)


async def test_what_does_not_open_is_told_by_its_session_and_never_written_over(manager, user_id):
    await fill(manager, user_id, 12)
    stored = (await rows(manager))["s00000"].credentials
    assert stored is not None
    swapped, damaged, lost = (
        envelope("s00000", OLD),
        stored[:-1] + bytes([stored[-1] ^ 1]),
        envelope("s00003", ring("lost")),
    )
    bad = {"s00001": swapped, "s00002": damaged, "s00003": lost}
    for session_id, value in bad.items():
        await store(manager, session_id, value)
    with structlog.testing.capture_logs() as logs:
        report = await sessions.rotate(manager, BOTH, batch=2)
    found = {fault.session_id: type(fault.error) for fault in report.faults}
    assert found == {"s00001": EnvelopeTampered, "s00002": EnvelopeTampered, "s00003": UnknownKey}
    assert "'lost'" in str(report.faults[2].error)
    assert report.rotated == 9 and not report.is_whole
    with pytest.raises(EnvelopeTampered):
        report.raise_unless_whole()
    after = await rows(manager)
    assert {key: after[key].credentials for key in bad} == bad
    told = repr(report) + repr(logs)
    assert "token-" not in told and not any(key in told for key in KEYS.values())
    # With the lost key in the ring that row is done too, and nothing else is touched.
    more = await sessions.rotate(manager, ring("k2", "k1", "lost"))
    assert (more.rotated, [fault.session_id for fault in more.faults]) == (1, ["s00001", "s00002"])


async def test_a_wrong_key_is_refused_before_anything_is_written(manager, user_id):
    await fill(manager, user_id, 3)
    before = {key: row.credentials for key, row in (await rows(manager)).items()}
    other = KeyRing.generate_key()
    for keys in (f"k2:{KEYS['k2']},k1:{other}", f"k1:{other}"):
        with pytest.raises(InvalidKey, match="'k1'"):
            await sessions.rotate(manager, KeyRing.parse(keys))
    await fill(manager, user_id, 1, NEW, first=3)
    with pytest.raises(InvalidKey, match="'k2'"):
        await sessions.rotate(manager, KeyRing.parse(f"k2:{other},k1:{KEYS['k1']}"))
    after = await rows(manager)
    assert {key: after[key].credentials for key in before} == before


@pytest.mark.parametrize("way", ["rotate", "renew"])
async def test_who_opens_a_keys_first_session_and_who_seals_anew_do_not_wait_for_each_other(
    manager, user_id, database_url, way
):
    """Both want the session's row and the new key's canary: in one order, so that nobody is the victim of a deadlock."""
    made = await opened(manager, user_id, credentials="x", ring=OLD)

    async def seal() -> None:
        if way == "rotate":
            once = RetryOptions(max_attempts=1)  # who is a victim says so
            async with DatabaseManager(database_url, "testing", "migrations_only", retry=once) as other:
                assert (await sessions.rotate(other, BOTH)).is_whole
            return
        with pytest.raises(SessionRevoked):
            async with manager.transaction() as session:
                await sessions.renew(session, made.session.session_id, credentials="y", ring=NEW)

    async with manager.get_session() as opening:
        await keep_canary(opening, NEW)
        sealing = asyncio.create_task(seal())
        await asyncio.sleep(0.3)
        await sessions.open(opening, user_id=user_id, broker="zerodha", credentials="z", ring=NEW)
        await opening.commit()
    await sealing
    assert (await sessions.verify(manager, NEW, deep=True)).opened == 1


async def test_a_row_that_another_holds_is_come_back_to(manager, user_id):
    await fill(manager, user_id, 6)
    async with manager.get_session() as other:
        which = TradingSession.session_id == "s00002"
        await other.execute(select(TradingSession.session_id).where(which).with_for_update())
        report = await sessions.rotate(manager, BOTH, patience=0)
        assert (report.rotated, report.busy) == (5, ("s00002",))
        with pytest.raises(LockTimeout, match=r"1 session.*again"):
            report.raise_unless_whole()
        waiting = asyncio.create_task(sessions.rotate(manager, BOTH))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await other.rollback()
    assert ((await waiting).rotated, await opens(manager, NEW)) == (1, 6)


async def test_what_is_written_between_is_not_written_over(manager, user_id, monkeypatch):
    """The envelope that was read must still be there: here somebody gets in without taking the row's lock into account."""
    await fill(manager, user_id, 4)
    newer = envelope("s00001", BOTH)
    real = keep_canary

    async def meanwhile(session: AsyncSession, keys: KeyRing) -> None:
        await real(session, keys)
        await session.execute(
            update(TradingSession).where(TradingSession.session_id == "s00001").values(credentials=newer)
        )
        await session.execute(
            update(TradingSession)
            .where(TradingSession.session_id == "s00002")
            .values(credentials=None, is_active=False, end_time=sa.func.clock_timestamp())
        )

    monkeypatch.setattr("core.trading.sessions._rotation.keep_canary", meanwhile)
    report = await sessions.rotate(manager, BOTH)
    assert (report.rotated, report.is_whole) == (2, True)
    after = await rows(manager)
    assert (after["s00001"].credentials, after["s00002"].credentials) == (newer, None)
    assert await opens(manager, NEW) == 3


async def test_a_batch_that_fails_for_a_moment_is_done_again(manager, user_id, monkeypatch):
    await fill(manager, user_id, 6)
    calls = Counter[str]()
    real = keep_canary

    async def failing(session: AsyncSession, keys: KeyRing) -> None:
        calls["canary"] += 1
        if calls["canary"] == 3:
            raise DeadlockDetected("deadlock")
        await real(session, keys)

    monkeypatch.setattr("core.trading.sessions._rotation.keep_canary", failing)
    report = await sessions.rotate(manager, BOTH, batch=3)
    assert (report.rotated, calls["canary"], await opens(manager, NEW)) == (6, 4, 6)


async def test_a_cancelled_rotation_loses_nothing_and_the_next_goes_on(manager, user_id):
    await fill(manager, user_id, 600)
    for turn in range(4):
        begun = asyncio.Event()
        task = asyncio.create_task(sessions.rotate(manager, BOTH, batch=5, progress=_setting(begun)))
        await begun.wait()
        await asyncio.sleep(random.Random(turn).uniform(0, 0.02))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await opens(manager, BOTH) == 600
    report = await sessions.rotate(manager, BOTH)
    assert 0 < report.rotated < 600 and report.is_whole and await opens(manager, NEW) == 600


def _setting(event: asyncio.Event) -> Callable[[int, int], None]:
    return lambda done, total: event.set()


async def go_on(manager: DatabaseManager, user_id: int, stop: asyncio.Event, task: int) -> Counter[str]:
    """Openings, refreshes and endings by a process that has the new keys; what it did."""
    done = Counter[str]()
    dice = random.Random(task)
    number = 10_000 * task
    while not stop.is_set():
        number += 1
        session_id = f"s{dice.randrange(200):05}"
        works: list[tuple[str, Callable[[AsyncSession], Awaitable[Any]]]] = [
            ("opened", lambda s, n=number: _open(s, user_id, n)),
            ("renewed", lambda s, key=session_id: _renew(s, key)),
            ("ended", lambda s, key=session_id: sessions.end(s, session_id=key)),
        ]
        name, work = dice.choices(works, (2, 6, 1))[0]
        async with manager.transaction() as session:
            try:
                await work(session)
            except sessions.TradingSessionError:
                continue
        done[name] += 1
    return done


async def _open(session: AsyncSession, user_id: int, number: int) -> None:
    made = await sessions.open(session, user_id=user_id, broker=f"b{number}")
    credentials = made.session.session_id.replace("s", "token-")
    made.session.credentials = sessions.seal_credentials(credentials, session_id=made.session.session_id, ring=BOTH)
    await keep_canary(session, BOTH)


async def _renew(session: AsyncSession, session_id: str) -> None:
    await sessions.renew(session, session_id, credentials=session_id.replace("s", "token-"), ring=BOTH)


async def test_readers_and_writers_go_on_meanwhile(manager, user_id):
    await fill(manager, user_id, 400)
    stop = asyncio.Event()
    work = [asyncio.create_task(go_on(manager, user_id, stop, task)) for task in (1, 2)]
    report = await sessions.rotate(manager, BOTH, batch=20)
    stop.set()
    done = sum(await asyncio.gather(*work), Counter[str]())
    assert report.is_whole and report.rotated > 0
    assert done["opened"] and done["renewed"], done
    assert await opens(manager, NEW) == 400 + done["opened"] - done["ended"]


async def test_two_rotations_at_once_do_each_row_once(manager, user_id):
    await fill(manager, user_id, 100)
    reports: list[RotationReport] = list(
        await asyncio.gather(*(sessions.rotate(manager, BOTH, batch=7) for _ in range(2)))
    )
    assert sum(report.rotated for report in reports) == 100 and all(report.is_whole for report in reports)
    assert await opens(manager, NEW) == 100


async def test_a_rotation_that_is_killed_is_finished_by_the_next(manager, user_id, database_url):
    """kill -9 at any moment: at every one of them each secret opens, and none is gone."""
    number = 1_200
    await fill(manager, user_id, number)
    cycle = [("k2", "k1"), ("k1", "k2")]
    for turn in range(ROUNDS):
        keys = cycle[turn % 2]
        command = [sys.executable, "-m", "tests.rotation_client", database_url, text_of(*keys)]
        process = subprocess.Popen(command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            first = await asyncio.to_thread(process.stdout.readline)
            assert first.split() == [b"20", b"%d" % number], first
            await asyncio.sleep(random.uniform(0, 0.1))
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        assert await opens(manager, BOTH) == number, "after the kill"
        report = await sessions.rotate(manager, ring(*keys))
        assert report.is_whole
        assert await opens(manager, ring(keys[0])) == number
        print(f"rotation killed {turn + 1}/{ROUNDS}: {number - report.rotated} of {number} were done", flush=True)


async def test_verifying_opens_everything_and_changes_nothing(manager, user_id):
    await fill(manager, user_id, 7)
    await fill(manager, user_id, 2, NEW, first=7)
    quick = await sessions.verify(manager, BOTH)
    assert (dict(quick.envelopes), quick.opened, quick.faults, quick.is_whole) == ({"k1": 7, "k2": 2}, None, (), True)
    deep = await sessions.verify(manager, BOTH, deep=True, batch=2)
    assert (deep.opened, deep.is_whole) == (9, True)
    deep.raise_unless_whole()
    await store(manager, "s00004", envelope("s00005", OLD))
    deep = await sessions.verify(manager, BOTH, deep=True, batch=4)
    assert (deep.opened, [fault.session_id for fault in deep.faults], deep.is_whole) == (8, ["s00004"], False)
    assert (await sessions.verify(manager, BOTH)).is_whole, "a swapped row is seen by opening it alone"
    with pytest.raises(EnvelopeTampered):
        deep.raise_unless_whole()
    lacking = await sessions.verify(manager, NEW, deep=True)
    assert (lacking.ring.missing, lacking.opened, len(lacking.faults)) == (("k1",), 2, 7)
    with pytest.raises(UnknownKey, match="'k1'"):
        lacking.raise_unless_whole()


async def test_a_hurried_statement_timeout_does_not_stop_it(database_url, manager, user_id):
    await fill(manager, user_id, 3)
    trickle = sa.text("CREATE POLICY slow ON trading_sessions AS RESTRICTIVE USING (pg_sleep(0.2) IS NOT NULL)")
    async with manager.transaction() as session:
        await session.execute(trickle)
    hurried = Timeouts(statement=0.1)
    async with DatabaseManager(database_url, "testing", "migrations_only", timeouts=hurried) as quick:
        report = await sessions.rotate(quick, BOTH, batch=1)
        assert (report.rotated, (await sessions.verify(quick, NEW, deep=True)).opened) == (3, 3)


async def test_pages_are_read_by_the_key_and_not_sorted(manager, user_id):
    await fill(manager, user_id, 3)
    from core.trading.sessions._rotation import _page

    async with manager.get_session() as session:
        await session.execute(text("SET LOCAL enable_seqscan = off"))
        statement = str(
            _page("", 5).compile(dialect=session.get_bind().dialect, compile_kwargs={"literal_binds": True})
        )
        plan = (await session.scalars(text(f"EXPLAIN {statement}"))).all()
    assert any("pk_trading_sessions" in line for line in plan) and not any("Sort" in line for line in plan), plan
