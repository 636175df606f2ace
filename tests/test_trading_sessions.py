"""Trading sessions on a real server: opened, taken up again, ended; whose clock counts; what each refusal says."""

import asyncio
import contextlib
import copy
import functools
import itertools
import pickle
import re
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from typing import Any
from unittest import mock
from zoneinfo import ZoneInfo

import asyncpg
import pytest
from sqlalchemy import event, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from core.config.brokers import DailyExpiry, FixedLifetime, NoExpiry
from core.database.connection import DatabaseManager
from core.database.encryption import KeyRing
from core.database.errors import (
    CommitOutcomeUnknown,
    ConfigurationError,
    ConnectionFailed,
    ConnectionLost,
    EnvelopeTampered,
    ForeignKeyViolation,
    HostUnreachable,
    InvalidInput,
    InvalidKey,
    PandaDatabaseError,
    ReadOnlyViolation,
    SerializationFailure,
)
from core.database.models import TradingSession, User
from core.database.notify import Listener
from core.testing import make_user
from core.trading import sessions
from core.trading.sessions import (
    OpenedSession,
    SessionExpired,
    SessionNotFound,
    SessionOpened,
    SessionRevoked,
    TradingSessionError,
    UserDisabled,
)
from core.trading.sessions._bearer import bearer_hash, new_bearer
from core.trading.sessions._events import CHANNEL, read
from tests.cluster.proxy import fault_proxy

LATER = timedelta(hours=8)


@pytest.fixture
async def user_id(manager: DatabaseManager) -> int:
    async with manager.transaction() as session:
        session.add(user := make_user())
        await session.flush()
        return user.id


async def stored(manager: DatabaseManager) -> dict[str, TradingSession]:
    async with manager.get_session() as session:
        rows = await session.scalars(select(TradingSession).order_by(TradingSession.start_time))
        return {row.session_id: row for row in rows}


async def opened(manager: DatabaseManager, user_id: int, broker: str = "zerodha", **options: Any) -> OpenedSession:
    async with manager.transaction() as session:
        return await sessions.open(session, user_id=user_id, broker=broker, **options)


async def change(manager: DatabaseManager, **columns: Any) -> None:
    async with manager.transaction() as session:
        await session.execute(update(TradingSession).values(**columns))


async def overdue(manager: DatabaseManager) -> None:
    """All sessions began two hours ago, and expired one hour ago."""
    now = func.clock_timestamp()
    await change(manager, start_time=now - timedelta(hours=2), expires_at=now - timedelta(hours=1))


async def refusal(manager: DatabaseManager, bearer: str) -> tuple[type[BaseException], str | None]:
    with pytest.raises(TradingSessionError) as caught:
        async with manager.get_session(read_only=True) as session:
            await sessions.resume(session, bearer)
    assert bearer not in str(caught.value)
    return type(caught.value), getattr(caught.value, "reason", None)


# Opening


async def test_an_opened_session_is_the_active_one_and_its_bearer_takes_it_up_again(manager, user_id):
    expires = datetime.now(UTC) + LATER
    made = await opened(manager, user_id, expires_at=expires, session_data={"note": "morning"})
    assert len(bytes.fromhex(made.session.session_id)) == 16
    assert re.fullmatch("panda_session_[A-Za-z0-9_-]{43}", made.bearer)
    async with manager.get_session(read_only=True) as session:
        active = await sessions.active(session, user_id=user_id, broker="zerodha")
        resumed = await sessions.resume(session, made.bearer)
        assert active is not None and active is resumed and active.session_id == made.session.session_id
        assert (active.expires_at, active.end_time, active.end_reason) == (expires, None, None)
        assert dict(active.session_data.root) == {"note": "morning"}
        assert active.bearer_hash == bearer_hash(made.bearer)
        assert await sessions.active(session, user_id=user_id, broker="paper") is None
        assert await sessions.active(session, user_id=user_id + 1, broker="zerodha") is None


async def test_each_opening_has_an_id_and_a_bearer_of_its_own(manager, user_id):
    made = [await opened(manager, user_id, broker) for broker in ("kite", "paper", "zerodha")]
    assert len({item.bearer for item in made} | {item.session.session_id for item in made}) == 6
    assert len({new_bearer() for _ in range(1_000)}) == 1_000


async def test_a_bearer_is_shown_by_nothing_and_stored_by_nobody(manager, user_id, database_url):
    made = await opened(manager, user_id, session_data={"device": "desk"})
    random = made.bearer.removeprefix("panda_session_")
    assert random not in f"{made!r} {made} {made.session!r} {vars(made.session)!r}"
    for refused in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="holds the bearer"):
            refused(made)
    assert random.encode() not in pickle.dumps(made.session)
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch("SELECT t::text FROM trading_sessions AS t")
        assert len(rows) == 1 and random not in rows[0][0] and random.encode().hex() not in rows[0][0]
    finally:
        await connection.close()


async def test_the_servers_clock_says_when_a_session_begins_and_by_its_policy_ends(manager, user_id):
    six = DailyExpiry(time(6), ZoneInfo("Asia/Kolkata"))
    async with manager.transaction() as session:
        before = await session.scalar(select(func.clock_timestamp()))
        assert before is not None
        with mock.patch("core.database.records._accounts._now", return_value=before - timedelta(hours=5)):
            daily = (await sessions.open(session, user_id=user_id, broker="zerodha", policy=six)).session
            fixed = await sessions.open(session, user_id=user_id, broker="x", policy=FixedLifetime(timedelta(hours=24)))
            never = await sessions.open(session, user_id=user_id, broker="paper", policy=NoExpiry())
        after = await session.scalar(select(func.clock_timestamp()))
    assert after is not None and before <= daily.start_time <= fixed.session.start_time <= after
    assert daily.expires_at == six.expires_at(daily.start_time)
    assert fixed.session.expires_at == fixed.session.start_time + timedelta(hours=24)
    assert never.session.expires_at is None


async def test_a_new_session_ends_the_old_one_of_that_broker_only(manager, user_id):
    ring = KeyRing.parse(f"k1:{KeyRing.generate_key()}")
    async with manager.transaction() as session:
        first = await sessions.open(session, user_id=user_id, broker="zerodha", credentials="token", ring=ring)
        paper = await sessions.open(session, user_id=user_id, broker="paper")
    second = await opened(manager, user_id)
    rows = await stored(manager)
    old = rows[first.session.session_id]
    assert (old.is_active, old.end_time, old.end_reason, old.credentials) == (
        False,
        second.session.start_time,
        "replaced",
        None,
    )
    assert sorted(row.broker for row in rows.values() if row.is_active) == ["paper", "zerodha"]
    assert await refusal(manager, first.bearer) == (SessionRevoked, "replaced")
    async with manager.get_session(read_only=True) as session:
        for made in (paper, second):
            assert (await sessions.resume(session, made.bearer)).session_id == made.session.session_id


async def test_opening_leaves_the_commit_to_the_caller(manager, user_id):
    first = await opened(manager, user_id)
    async with manager.get_session() as session:
        never = await sessions.open(session, user_id=user_id, broker="zerodha")
    (row,) = (await stored(manager)).values()
    assert row.session_id == first.session.session_id and row.is_active
    assert await refusal(manager, never.bearer) == (SessionNotFound, None)


async def test_of_many_that_open_at_once_the_last_stays_active_and_they_follow_one_another(manager, user_id):
    made = await asyncio.gather(*(opened(manager, user_id) for _ in range(8)))
    assert len({item.session.session_id for item in made}) == 8
    rows = list((await stored(manager)).values())
    assert [row.is_active for row in rows] == [False] * 7 + [True]
    for row, following in itertools.pairwise(rows):
        assert row.end_time == following.start_time, "who waited for the lock begins when the lock was had"


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
async def test_whoever_opens_at_the_same_moment_is_replaced_and_not_in_the_way(manager, user_id, level):
    """A plain write takes no lock on the user, and a snapshot does not see it: the unit of work is run again."""

    async def work(session: AsyncSession) -> OpenedSession:
        return await sessions.open(session, user_id=user_id, broker="paper")

    run = functools.partial(manager.run_transaction, work, isolation_level=level, max_attempts=30)
    async with manager.get_session() as plain:
        plain.add(TradingSession(session_id="plain", user_id=user_id))
        await plain.flush()
        opening = asyncio.create_task(run())
        await asyncio.sleep(0.1)
        await plain.commit()
    first = await opening
    made = await asyncio.gather(*(run() for _ in range(4)))
    rows = await stored(manager)
    assert rows["plain"].end_reason == rows[first.session.session_id].end_reason == "replaced"
    assert sum(rows[item.session.session_id].is_active for item in made) == 1
    async with manager.get_session() as plain:
        plain.add(TradingSession(session_id="late", user_id=user_id, broker="kite"))
        await plain.flush()
        opening = asyncio.create_task(opened(manager, user_id, "kite"))
        await asyncio.sleep(0.1)
        await plain.commit()
    with pytest.raises(SerializationFailure, match="opened at the same moment") as caught:
        await opening
    assert caught.value.retryable


@pytest.mark.builtin_server(reason="the proxy must see the COMMIT that it loses, and TLS hides it")
async def test_who_does_not_know_whether_it_was_opened_opens_again(manager, user_id, database_url):
    """Nobody ever learns the first one's bearer; it is never run again unasked, and the second takes its place."""
    attempts: list[OpenedSession] = []
    async with fault_proxy(database_url) as proxy, DatabaseManager(proxy.url, "testing", "migrations_only") as far:

        async def work(session: AsyncSession) -> OpenedSession:
            attempts.append(await sessions.open(session, user_id=user_id, broker="kite", policy=FixedLifetime(LATER)))
            return attempts[-1]

        proxy.lose_commit_reply = True
        with pytest.raises(CommitOutcomeUnknown):
            await far.run_transaction(work)
        proxy.lose_commit_reply = False
        assert len(attempts) == 1
        again = await far.run_transaction(work)
    rows = await stored(manager)
    first = attempts[0].session.session_id
    assert {key: row.end_reason for key, row in rows.items()} == {first: "replaced", again.session.session_id: None}
    async with manager.get_session(read_only=True) as session:
        assert await sessions.resume(session, again.bearer)


async def test_an_opening_that_is_rolled_back_leaves_the_old_one_as_it_was(manager, user_id):
    ring = KeyRing.parse(f"k1:{KeyRing.generate_key()}")
    old = await opened(manager, user_id, credentials="token", ring=ring)
    heard: list[Any] = []
    async with Listener(manager.engine, [CHANNEL]) as listener:
        events = aiter(listener)
        await anext(events)
        async with manager.get_session() as session:
            await sessions.open(session, user_id=user_id, broker="zerodha", credentials="newer", ring=ring)
            await session.rollback()
        async with manager.transaction() as session:
            with contextlib.suppress(InvalidInput):
                async with session.begin_nested():
                    await sessions.open(session, user_id=user_id, broker="zerodha")
                    raise InvalidInput("what came after it")
            current = await sessions.resume(session, old.bearer)
            assert sessions.credentials_of(current, ring=ring) == "token"
        await opened(manager, user_id, "paper")
        heard.append(await anext(events))
    assert [read(item.payload) for item in heard] == [SessionOpened(mock.ANY, user_id, "paper", None)]


async def test_who_waits_to_open_begins_when_the_wait_is_over(manager, user_id):
    async with manager.get_session() as first:
        await sessions.open(first, user_id=user_id, broker="zerodha")
        waiting = asyncio.create_task(opened(manager, user_id, policy=FixedLifetime(LATER)))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        clock = await first.scalar(select(func.clock_timestamp()))
        await first.commit()
    second = (await waiting).session
    assert clock is not None and second.start_time > clock and second.expires_at == second.start_time + LATER


async def test_a_session_opens_under_the_restricted_role(manager, user_id):
    ring = KeyRing.parse(f"k1:{KeyRing.generate_key()}")
    async with manager.transaction(broker="paper") as session:
        first = await sessions.open(session, user_id=user_id, broker="paper", credentials="token", ring=ring)
        made = await sessions.open(session, user_id=user_id, broker="paper", credentials="token", ring=ring)
        assert (await sessions.touch(session, bearer=made.bearer)).session_id == made.session.session_id
        with pytest.raises(SessionRevoked):
            await sessions.resume(session, first.bearer)
        renewed = await sessions.renew(
            session, made.session.session_id, policy=NoExpiry(), credentials="new", ring=ring
        )
        assert sessions.credentials_of(renewed, ring=ring) == "new"
        assert [item.state for item in await sessions.find(session)] == ["active", "replaced"]
    async with manager.transaction(broker="zerodha") as session:
        with pytest.raises(SessionNotFound):
            await sessions.resume(session, made.bearer)
        assert not await sessions.end(session, session_id=made.session.session_id)
        assert await sessions.revoke_all(session, user_id) == 0
    async with manager.transaction(broker="paper") as session:
        assert await sessions.end(session, bearer=made.bearer)


MISFITS: list[tuple[dict[str, Any], type[PandaDatabaseError], str]] = [
    ({"broker": "Zerodha"}, InvalidInput, "broker"),
    ({"expires_at": datetime(2026, 1, 1, tzinfo=UTC)}, InvalidInput, "expires_at must be after start_time.*database's"),
    ({"expires_at": datetime(2099, 1, 1)}, InvalidInput, "expires_at.*naive"),
    ({"expires_at": datetime.max.replace(tzinfo=UTC)}, InvalidInput, "expires_at"),
    ({"user_id": 0}, InvalidInput, "user_id"),
    ({"session_data": {"x": float("nan")}}, InvalidInput, "x"),
    ({"credentials": "token"}, ConfigurationError, "sealed"),
    ({"policy": NoExpiry(), "expires_at": datetime(2099, 1, 1, tzinfo=UTC)}, ConfigurationError, "either"),
]


async def test_values_that_do_not_fit_are_refused_before_anything_is_written(manager, user_id):
    first = await opened(manager, user_id)
    async with manager.get_session() as session:
        for arguments, kind, words in MISFITS:
            fields: dict[str, Any] = {"user_id": user_id, "broker": "zerodha"} | arguments
            with pytest.raises(kind, match=words):
                await sessions.open(session, **fields)
        with pytest.raises(ForeignKeyViolation, match="no user 42") as caught:
            await sessions.open(session, user_id=42, broker="zerodha")
        assert caught.value.constraint == "fk_trading_sessions_user_id"
        await session.commit()
    async with manager.get_session(read_only=True) as session:
        assert await sessions.resume(session, first.bearer)


async def test_a_disabled_user_neither_opens_nor_goes_on(manager, user_id):
    made = await opened(manager, user_id)
    async with manager.transaction() as session:
        await session.execute(update(User).values(is_active=False))
    assert await refusal(manager, made.bearer) == (SessionRevoked, "revoked")
    async with manager.get_session() as session:
        with pytest.raises(UserDisabled, match="disabled"):
            await sessions.open(session, user_id=user_id, broker="paper")
        with pytest.raises(SessionRevoked):
            await sessions.touch(session, bearer=made.bearer)
        with pytest.raises(SessionRevoked):
            await sessions.renew(session, made.session.session_id, policy=NoExpiry())
        assert await sessions.active(session, user_id=user_id, broker="zerodha") is None
        assert [item.state for item in await sessions.find(session)] == ["disabled"]


# Taking up again


@pytest.mark.parametrize(
    "bearer",
    ["", "x", "panda_session_", "panda_session_" + "a" * 42, "panda_session_" + "ä" * 43, None, b"x", "\0" * 57],
)
async def test_what_is_no_bearer_is_not_found_without_a_question(manager, bearer):
    async with manager.get_session(read_only=True) as session:
        with mock.patch.object(session, "execute", side_effect=AssertionError("the database was asked")):
            with pytest.raises(SessionNotFound):
                await sessions.resume(session, bearer)
            with pytest.raises(SessionNotFound):
                await sessions.touch(session, bearer=bearer or "")


async def test_never_there_expired_ended_and_no_database_are_four_errors(manager, user_id):
    assert await refusal(manager, new_bearer()) == (SessionNotFound, None)
    made = await opened(manager, user_id, policy=FixedLifetime(timedelta(hours=1)))
    await overdue(manager)
    assert await refusal(manager, made.bearer) == (SessionExpired, None)
    for by, reason in ((sessions.end, "ended"), (sessions.revoke, "revoked")):
        made = await opened(manager, user_id)
        async with manager.transaction() as session:
            assert await by(session, session_id=made.session.session_id)
        assert await refusal(manager, made.bearer) == (SessionRevoked, reason)
    away = DatabaseManager("postgresql://u:p@127.0.0.1:1/d", "testing", "migrations_only", verify_migrations=False)
    with pytest.raises(ConnectionFailed):
        async with away, away.get_session(read_only=True) as session:
            await sessions.resume(session, made.bearer)
    assert not issubclass(ConnectionFailed, TradingSessionError)


WAYS: dict[str, Callable[[AsyncSession, OpenedSession], Any]] = {
    "resume": lambda session, made: sessions.resume(session, made.bearer),
    "touch": lambda session, made: sessions.touch(session, bearer=made.bearer, every=timedelta(0)),
    "renew": lambda session, made: sessions.renew(session, made.session.session_id, policy=NoExpiry()),
    "end": lambda session, made: sessions.end(session, bearer=made.bearer),
    "revoke": lambda session, made: sessions.revoke(session, session_id=made.session.session_id),
}


async def outcome(manager: DatabaseManager, way: str, made: OpenedSession, *, read_only: bool = False) -> Any:
    """Its class where it raises, with a text that names what to do and not the bearer."""
    try:
        async with manager.get_session(read_only=read_only) as session:
            done = await WAYS[way](session, made)
    except PandaDatabaseError as error:
        assert error.hint and made.bearer not in "".join(traceback.format_exception(error))
        return type(error)
    return done if isinstance(done, bool) else type(done)


async def test_by_every_way_each_state_has_its_own_answer(manager, user_id, database_url):
    """Nothing is committed between, so that each way meets the session in the same state."""
    made = await opened(manager, user_id)
    never = OpenedSession(TradingSession(session_id="never"), new_bearer())

    async def answers(item: OpenedSession = made, on: DatabaseManager = manager, **options: bool) -> list[Any]:
        return [await outcome(on, way, item, **options) for way in WAYS]

    assert await answers() == [TradingSession] * 3 + [True, True]
    assert await answers(read_only=True) == [TradingSession, *[ReadOnlyViolation] * 4]
    assert await answers(never) == [SessionNotFound] * 3 + [False, False]
    await change(manager, start_time=func.clock_timestamp() - LATER, expires_at=func.clock_timestamp())
    assert await answers() == [SessionExpired] * 3 + [True, True], "that it has expired is noted by who ends it"
    await sessions.expire_due(manager)
    assert await answers() == [SessionExpired] * 3 + [False, False]
    async with manager.transaction() as session:
        await session.execute(update(User).values(is_active=False))
    assert await answers() == [SessionExpired] * 3 + [False, False]
    await change(manager, is_active=True, end_time=None, end_reason=None, expires_at=None)
    assert await answers() == [SessionRevoked] * 3 + [True, True], "the user is disabled"
    await change(manager, is_active=False, end_time=func.clock_timestamp(), end_reason="replaced")
    assert await answers() == [SessionRevoked] * 3 + [False, False]
    async with contextlib.AsyncExitStack() as stack:
        async with fault_proxy(database_url) as proxy:
            far = await stack.enter_async_context(DatabaseManager(proxy.url, "testing", "migrations_only"))
        assert set(await answers(on=far)) <= {HostUnreachable, ConnectionLost}, "the database has gone"


def test_the_errors_pickle_with_what_they_know():
    at = datetime(2026, 11, 30, tzinfo=UTC)
    for error, name, value in (
        (SessionExpired("over", expired_at=at), "expired_at", at),
        (SessionRevoked("over", reason="replaced"), "reason", "replaced"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (getattr(again, name), str(again)) == (value, str(error))


async def test_an_expired_session_is_expired_whoever_comes_across_it(manager, user_id):
    """Before anybody has noted it, and after: by the next opening, by the user's logging out."""
    for closing in ("open", "end"):
        made = await opened(manager, user_id, policy=FixedLifetime(timedelta(hours=1)))
        await overdue(manager)
        async with manager.transaction() as session:
            assert await sessions.active(session, user_id=user_id, broker="zerodha") is None
            if closing == "open":
                await sessions.open(session, user_id=user_id, broker="zerodha")
            else:
                assert await sessions.end(session, bearer=made.bearer)
        row = (await stored(manager))[made.session.session_id]
        assert (row.end_reason, row.end_time) == ("expired", row.expires_at)
        with pytest.raises(SessionExpired) as caught:
            async with manager.get_session(read_only=True) as session:
                await sessions.resume(session, made.bearer)
        assert caught.value.expired_at == row.expires_at


async def test_a_clock_that_is_hours_off_here_changes_nothing(manager, user_id, monkeypatch):
    """Nothing of it asks this machine: every way to its clock is hours off, either way."""

    class Clock(datetime):
        ahead = timedelta(0)

        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + cls.ahead

    rooms = [f"core.trading.sessions._{name}" for name in ("open", "resume", "end", "expiry", "find", "standing")]
    for room in (*rooms, "core.database.records._accounts"):
        monkeypatch.setattr(f"{room}.datetime", Clock)
    for ahead in (timedelta(hours=-7), timedelta(hours=7)):
        Clock.ahead = ahead
        made = await opened(manager, user_id, policy=FixedLifetime(timedelta(hours=1)))
        assert abs(made.session.start_time - datetime.now(UTC)) < timedelta(minutes=1)
        async with manager.transaction() as session:
            assert await sessions.touch(session, bearer=made.bearer)
            assert await sessions.active(session, user_id=user_id, broker="zerodha")
        assert (await sessions.expire_due(manager)).expired == ()
        await overdue(manager)
        assert await refusal(manager, made.bearer) == (SessionExpired, None)
        assert len((await sessions.expire_due(manager)).expired) == 1


async def test_resuming_is_one_statement_by_the_index_of_bearers(manager, user_id):
    made = await opened(manager, user_id)
    seen: list[tuple[str, Any]] = []

    def note(_c: Any, _u: Any, statement: str, parameters: Any, _x: Any, _m: Any) -> None:
        seen.append((statement, parameters))

    async with manager.get_session() as session:
        connection = await session.connection()
        event.listen(connection.sync_connection, "before_cursor_execute", note)
        await sessions.resume(session, made.bearer)
        ((statement, parameters),) = seen
        await session.execute(text("SET LOCAL enable_seqscan = off"))
        raw = await connection.get_raw_connection()
        assert raw.driver_connection is not None
        plan = await raw.driver_connection.fetch(f"EXPLAIN {statement}", *parameters)
        assert any("uq_trading_sessions_bearer_hash" in line[0] for line in plan), plan
        assert made.bearer not in repr(seen)


async def test_what_another_has_ended_is_seen_by_a_session_that_knows_the_row(manager, user_id):
    made = await opened(manager, user_id)
    async with manager.get_session() as session:
        known = await sessions.resume(session, made.bearer)
        async with manager.transaction() as other:
            renewed = await sessions.renew(other, made.session.session_id, policy=FixedLifetime(LATER))
        assert (await sessions.resume(session, made.bearer)) is known and known.expires_at == renewed.expires_at
        async with manager.transaction() as other:
            await sessions.revoke(other, bearer=made.bearer)
        with pytest.raises(SessionRevoked):
            await sessions.resume(session, made.bearer)


async def test_touching_is_noted_once_a_minute_however_many_do_it(manager, user_id):
    made = await opened(manager, user_id)

    async def touch() -> datetime | None:
        async with manager.transaction() as session:
            return (await sessions.touch(session, bearer=made.bearer)).last_seen_at

    async def written() -> int:
        async with manager.get_session() as session:
            return int(await session.scalar(text("SELECT xmin::text::bigint FROM trading_sessions")) or 0)

    before = await written()
    times = await asyncio.gather(*(touch() for _ in range(6)))
    first = await written()
    assert len(set(times)) == 1 and None not in times and first != before
    assert await touch() == times[0] and await written() == first
    await change(manager, last_seen_at=func.clock_timestamp() - timedelta(seconds=61))
    again = await touch()
    assert again is not None and times[0] is not None and again >= times[0] and await written() != first
    async with manager.transaction() as session:
        by_id = await sessions.touch(session, session_id=made.session.session_id, every=timedelta(0))
        assert by_id.last_seen_at is not None and by_id.last_seen_at >= again
        both: list[dict[str, Any]] = [{}, {"bearer": made.bearer, "session_id": "x"}]
        for arguments in both:
            with pytest.raises(ConfigurationError, match="either"):
                await sessions.touch(session, **arguments)
        with pytest.raises(SessionNotFound):
            await sessions.touch(session, session_id="unknown")


async def test_touching_while_the_session_is_ended_says_so(manager, user_id):
    made = await opened(manager, user_id)
    async with manager.get_session() as ending:
        assert await sessions.revoke(ending, bearer=made.bearer)

        async def touch() -> None:
            async with manager.transaction() as session:
                await sessions.touch(session, bearer=made.bearer)

        waiting = asyncio.create_task(touch())
        await asyncio.sleep(0.2)
        assert not waiting.done(), "it waits for who is ending the session"
        await ending.commit()
        with pytest.raises(SessionRevoked):
            await waiting


async def test_touching_never_goes_on_with_what_expires_while_it_waits(manager, user_id):
    made = await opened(manager, user_id, policy=FixedLifetime(timedelta(milliseconds=300)))
    async with manager.get_session() as holding:
        await holding.execute(select(TradingSession).with_for_update())

        async def touch() -> None:
            async with manager.transaction() as session:
                await sessions.touch(session, bearer=made.bearer)

        waiting = asyncio.create_task(touch())
        await asyncio.sleep(0.4)
        assert not waiting.done()
    with pytest.raises(SessionExpired):
        await waiting
    assert (await stored(manager))[made.session.session_id].last_seen_at is None


# Ending


async def test_a_session_ends_once(manager, user_id):
    made = await opened(manager, user_id)
    async with manager.transaction() as session:
        assert await sessions.end(session, session_id=made.session.session_id)
        assert not await sessions.end(session, bearer=made.bearer)
        assert not await sessions.revoke(session, session_id="unknown")
        assert not await sessions.end(session, bearer="what is no bearer")
        assert await sessions.active(session, user_id=user_id, broker="zerodha") is None
    (row,) = (await stored(manager)).values()
    assert row.end_time is not None and row.end_time >= row.start_time and row.end_reason == "ended"


async def test_all_of_a_user_are_revoked_and_nobody_elses(manager, user_id):
    ring = KeyRing.parse(f"k1:{KeyRing.generate_key()}")
    for broker in ("kite", "paper", "zerodha"):
        await opened(manager, user_id, broker, credentials="token", ring=ring)
    async with manager.transaction() as session:
        session.add(other := make_user())
    theirs = await opened(manager, other.id)
    async with manager.transaction() as session:
        assert await sessions.revoke_all(session, user_id, broker="paper") == 1
        assert await sessions.revoke_all(session, user_id) == 2
        assert await sessions.revoke_all(session, user_id) == 0
        assert await sessions.revoke_all(session, 999) == 0
    rows = (await stored(manager)).values()
    assert {(row.end_reason, row.credentials) for row in rows if row.user_id == user_id} == {("revoked", None)}
    async with manager.get_session(read_only=True) as session:
        assert await sessions.resume(session, theirs.bearer)


async def test_a_session_that_is_being_opened_is_revoked_too(manager, user_id):
    async with manager.get_session() as opening:
        made = await sessions.open(opening, user_id=user_id, broker="zerodha")

        async def revoke() -> int:
            async with manager.transaction() as session:
                return await sessions.revoke_all(session, user_id)

        waiting = asyncio.create_task(revoke())
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await opening.commit()
        assert await waiting == 1
    assert await refusal(manager, made.bearer) == (SessionRevoked, "revoked")


async def test_a_session_opened_by_a_clock_ahead_of_the_servers_can_be_ended(manager, user_id):
    made = await opened(manager, user_id)
    await change(manager, start_time=func.clock_timestamp() + timedelta(minutes=5))
    async with manager.transaction() as session:
        assert await sessions.end(session, session_id=made.session.session_id)
        await sessions.open(session, user_id=user_id, broker="zerodha")


async def test_a_row_that_was_written_plainly_is_worked_with_by_its_id(manager, user_id):
    async with manager.get_session() as session:
        session.add(TradingSession(session_id="plain", user_id=user_id, session_data={"device": "desk"}))
        started = datetime.now(UTC) - LATER
        session.add(
            TradingSession(
                session_id="old", user_id=user_id, broker="kite", start_time=started, expires_at=started + LATER / 2
            )
        )
        await session.commit()
    async with manager.transaction() as session:
        assert (await sessions.touch(session, session_id="plain")).last_seen_at is not None
        assert (await sessions.renew(session, "plain", policy=FixedLifetime(LATER))).expires_at is not None
        current = await sessions.active(session, user_id=user_id, broker="paper")
        assert current is not None and current.session_id == "plain"
        with pytest.raises(SessionExpired):
            await sessions.touch(session, session_id="old")
        assert {(info.session_id, info.state) for info in await sessions.find(session)} == {
            ("plain", "active"),
            ("old", "expired"),
        }
    assert [e.session_id for e in (await sessions.expire_due(manager)).expired] == ["old"]
    async with manager.transaction() as session:
        assert await sessions.revoke(session, session_id="plain")
    assert {row.end_reason for row in (await stored(manager)).values()} == {"expired", "revoked"}


async def test_what_ended_before_reasons_were_kept_has_ended(manager, user_id):
    made = await opened(manager, user_id)
    await change(manager, is_active=False, end_time=func.clock_timestamp())
    assert await refusal(manager, made.bearer) == (SessionRevoked, "ended")
    async with manager.get_session(read_only=True) as session:
        info = await sessions.get(session, made.session.session_id)
        assert info is not None and info.state == "ended"


# Credentials


@pytest.mark.parametrize(
    ("notes", "named"),
    [
        ({"access_token": "x"}, "access_token"), ({"kite": {"apiSecret": "x"}}, "kite.apiSecret"),
        ({"tokens": [None, {"of": "x"}]}, "tokens.of"), ({"a": ["x", "Bearer the-broker-token"]}, "a"),
        ({"the-broker-token": 1}, "a name"), ({"n": {"x the-broker-token": 1}}, "n"),
        ({"resume": new_bearer()}, "resume"), ({"n": {new_bearer(): 1}}, "n"),
    ],
)  # fmt: skip
async def test_what_looks_like_a_secret_is_refused_among_the_notes(manager, user_id, notes, named):
    ring = KeyRing.parse(f"k1:{KeyRing.generate_key()}")
    with pytest.raises(InvalidInput, match="looks like a secret") as caught:
        await opened(manager, user_id, session_data=notes, credentials="the-broker-token", ring=ring)
    told = str(caught.value)
    assert f"'{named}'" in told and "the-broker-token" not in told and "panda_session_" not in told
    assert not await stored(manager)


async def test_what_only_sounds_like_a_secret_stands_among_the_notes(manager, user_id):
    notes = {"instrument_token": 256265, "instrument_tokens": ["x"], "has_token": True, "token_count": 3, "password": "",
             "token_expires_at": "06:00", "secrets": [], "tokens": [1, None], "device": "ring"}  # fmt: skip
    ring = KeyRing.parse(f"k1:{KeyRing.generate_key()}")
    made = await opened(manager, user_id, session_data=notes, credentials="ring", ring=ring)
    assert made.session.session_data.root == notes


async def test_credentials_are_stored_sealed_for_their_row_and_erased_at_the_end(manager, user_id):
    ring = KeyRing.parse(f"k1:{KeyRing.generate_key()}")
    first = (await opened(manager, user_id, credentials="access-token-1", ring=ring)).session
    second = (await opened(manager, user_id, "paper", credentials="access-token-2", ring=ring)).session
    rows = await stored(manager)
    for made, token in ((first, "access-token-1"), (second, "access-token-2")):
        row = rows[made.session_id]
        assert row.credentials is not None and b"access-token" not in row.credentials
        assert sessions.credentials_of(row, ring=ring) == token
    rows[first.session_id].credentials = rows[second.session_id].credentials
    with pytest.raises(EnvelopeTampered):
        sessions.credentials_of(rows[first.session_id], ring=ring)
    async with manager.transaction() as session:
        await sessions.end(session, session_id=first.session_id)
    ended = (await stored(manager))[first.session_id]
    assert ended.credentials is None and sessions.credentials_of(ended, ring=ring) is None


async def test_a_refresh_brings_new_credentials_and_another_end(manager, user_id):
    ring = KeyRing.parse(f"k1:{KeyRing.generate_key()}")
    made = await opened(manager, user_id, policy=FixedLifetime(timedelta(minutes=10)), credentials="old", ring=ring)
    assert len((await sessions.expire_due(manager)).warned) == 1
    async with manager.transaction() as session:
        row = await sessions.renew(
            session, made.session.session_id, policy=FixedLifetime(LATER), credentials="new", ring=ring
        )
        assert sessions.credentials_of(row, ring=ring) == "new"
        assert row.expires_at is not None and row.expires_at > made.session.start_time + LATER
        assert row.told_expiry != row.expires_at, "the new end will be told as it nears"
        refused: list[tuple[dict[str, Any], type[PandaDatabaseError]]] = [
            ({}, ConfigurationError),
            ({"credentials": "x"}, ConfigurationError),
            ({"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, InvalidInput),
            ({"credentials": "x", "ring": KeyRing.parse(f"k1:{KeyRing.generate_key()}")}, InvalidKey),
        ]
        for arguments, kind in refused:
            with pytest.raises(kind):
                await sessions.renew(session, made.session.session_id, **arguments)
        with pytest.raises(SessionNotFound):
            await sessions.renew(session, "unknown", policy=NoExpiry())
    await overdue(manager)
    async with manager.get_session() as session:
        with pytest.raises(SessionExpired):
            await sessions.renew(session, made.session.session_id, policy=NoExpiry())


# Looking at them


async def test_sessions_are_listed_the_latest_first_without_anything_secret(manager, user_id):
    ring = KeyRing.parse(f"k1:{KeyRing.generate_key()}")
    first = await opened(manager, user_id, credentials="access-token", ring=ring, session_data={"device": "desk"})
    paper = await opened(manager, user_id, "paper")
    second = await opened(manager, user_id)
    ids = [made.session.session_id for made in (second, paper, first)]
    async with manager.get_session(read_only=True) as session:

        async def found(**options: Any) -> list[str]:
            return [item.session_id for item in await sessions.find(session, **options)]

        assert await found() == ids
        assert await found(active_only=True) == ids[:2]
        assert await found(broker="zerodha", user_id=user_id) == [ids[0], ids[2]]
        assert await found(user_id=user_id + 1) == []
        assert await found(limit=1) == ids[:1]
        assert await found(before=second.session.start_time) == ids[1:]
        with pytest.raises(InvalidInput, match="limit"):
            await found(limit=0)
        info = await sessions.get(session, ids[2])
        assert info is not None
        assert (info.state, info.session_data, info.has_credentials) == ("replaced", {"device": "desk"}, False)
        assert info.username.startswith("user-")
        assert await sessions.get(session, "unknown") is None
        shown = repr(await sessions.find(session))
    assert "credentials=b" not in shown and "hash" not in shown


INJECTIONS = ["'; DROP TABLE users; --", '" OR 1=1', "%s %(x)s :x $1", "\\'; SELECT pg_sleep(9)", "x\ny", "\x1b[31m"]


@pytest.mark.parametrize("words", INJECTIONS)
async def test_no_text_is_more_than_a_text(manager: DatabaseManager, user_id: int, words: str) -> None:
    made = await opened(manager, user_id, session_data={words: words})
    async with manager.transaction() as session:
        with pytest.raises(InvalidInput):
            await sessions.open(session, user_id=user_id, broker=words)
        by_id: list[Callable[..., Any]] = [sessions.end, sessions.revoke]
        assert [await work(session, session_id=words) for work in by_id] == [False, False]
        with pytest.raises(SessionNotFound):
            await sessions.resume(session, words)
        assert await sessions.get(session, words) is None
        assert await sessions.find(session, broker=words) == []
        assert await sessions.active(session, user_id=user_id, broker=words) is None
        assert (await sessions.resume(session, made.bearer)).session_data.root == {words: words}
        assert await sessions.revoke_all(session, user_id, broker=words) == 0
