"""Sessions that expire: ended once by whoever comes first, told of before, and the feed that misses none of it."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from sqlalchemy import delete, event, func, insert, select, text, update

from core.config.brokers import FixedLifetime
from core.config.options import Timeouts
from core.database.connection import DatabaseManager
from core.database.embedded import EmbeddedServer
from core.database.encryption import KeyRing
from core.database.errors import ConfigurationError, ConnectionFailed, SessionMisuse
from core.database.health import with_parts
from core.database.metrics import DatabaseMetrics
from core.database.models import TradingSession
from core.database.notify import Listener, Notification
from core.testing import make_user
from core.trading import sessions
from core.trading.sessions import (
    BrokerSessions,
    OpenedSession,
    SessionEnded,
    SessionEvent,
    SessionExpired,
    SessionExpiring,
    SessionOpened,
    SessionRenewed,
    SessionWatch,
    _watch,
)
from core.trading.sessions._events import CHANNEL, read, written
from core.trading.sessions._expiry import _expire, _warn
from core.trading.sessions._known import KnownSessions
from tests.cluster.proxy import fault_proxy
from tests.test_metrics import value
from tests.test_trading_sessions import opened, overdue, stored
from tests.waiting import paced, wait_for

SOON = FixedLifetime(timedelta(minutes=10))
HOUR = timedelta(hours=1)
HERE = " AND datname = current_database()"


@pytest.fixture
async def user_id(manager: DatabaseManager) -> int:
    async with manager.transaction() as session:
        session.add(user := make_user())
        await session.flush()
        return user.id


async def many(manager: DatabaseManager, user_id: int, number: int, **columns: Any) -> None:
    """Active sessions with so many brokers, that began two hours ago."""
    async with manager.transaction() as session:
        clock = await session.scalar(select(func.clock_timestamp()))
        assert clock is not None
        rows = [
            {"session_id": f"s{n}", "user_id": user_id, "broker": f"b{n}", "start_time": clock - 2 * HOUR}
            for n in range(number)
        ]
        await session.execute(insert(TradingSession), rows)
        if columns:
            await session.execute(update(TradingSession).values(**columns))


def utc_now() -> datetime:
    return datetime.now(UTC)


async def next_of(events: AsyncIterator[SessionEvent], *, within: float = 30.0) -> SessionEvent:
    async with asyncio.timeout(within):
        return await anext(events)


async def silence(events: AsyncIterator[SessionEvent], *, seconds: float = 0.3) -> None:
    with pytest.raises(TimeoutError):
        await next_of(events, within=seconds)


async def until(true: Callable[[], object], *, within: float = 30.0) -> None:
    async with asyncio.timeout(within):
        while not true():
            await asyncio.sleep(0.02)


async def forgotten(manager: DatabaseManager) -> None:
    """No session is left of an attempt before this one."""
    async with manager.transaction() as session:
        await session.execute(delete(TradingSession))


# expire_due


async def test_what_is_due_ends_when_it_expired_and_its_credentials_are_erased(manager, user_id):
    ring = KeyRing.parse(f"k1:{KeyRing.generate_key()}")
    due = await opened(manager, user_id, "kite", policy=SOON, credentials="token", ring=ring)
    await overdue(manager)
    near = await opened(manager, user_id, "zerodha", policy=SOON)
    later = await opened(manager, user_id, "paper", policy=FixedLifetime(timedelta(hours=8)))
    never = await opened(manager, user_id, "x")
    report = await sessions.expire_due(manager)
    assert [(e.session_id, e.reason) for e in report.expired] == [(due.session.session_id, "expired")]
    assert [e.session_id for e in report.warned] == [near.session.session_id]
    assert {item.broker: item.active for item in report.brokers} == {"paper": 1, "x": 1, "zerodha": 1}
    assert report.next_due == near.session.expires_at, "it has been told, so that its end is next"
    rows = await stored(manager)
    row = rows[due.session.session_id]
    assert (row.is_active, row.end_reason, row.end_time, row.credentials) == (False, "expired", row.expires_at, None)
    assert {rows[made.session.session_id].is_active for made in (near, later, never)} == {True}
    again = await sessions.expire_due(manager)
    assert (again.expired, again.warned) == ((), ())
    all_told = await sessions.expire_due(manager, warn_before=timedelta(hours=9), batch=1)
    assert [e.session_id for e in all_told.warned] == [later.session.session_id]


async def test_when_there_is_nothing_there_is_a_clock(manager):
    report = await sessions.expire_due(manager)
    assert (report.expired, report.warned, report.brokers, report.next_due) == ((), (), (), None)
    assert abs(report.now - datetime.now(UTC)) < timedelta(minutes=1)
    for wrong in ({"batch": 0}, {"warn_before": timedelta(seconds=-1)}, {"warn_before": timedelta.max}):
        options: dict[str, Any] = wrong
        with pytest.raises(ConfigurationError):
            await sessions.expire_due(manager, **options)


async def test_processes_that_expire_at_once_share_the_work(manager, user_id):
    clock = func.clock_timestamp()
    await many(manager, user_id, 60, expires_at=clock - HOUR)
    reports = await asyncio.gather(*(sessions.expire_due(manager, batch=7) for _ in range(4)))
    ended = [event.session_id for report in reports for event in report.expired]
    assert len(ended) == len(set(ended)) == 60
    async with manager.transaction() as session:
        await session.execute(
            update(TradingSession).values(
                is_active=True, end_time=None, end_reason=None, expires_at=clock + timedelta(minutes=5)
            )
        )
    reports = await asyncio.gather(*(sessions.expire_due(manager, batch=7) for _ in range(4)))
    told = [event.session_id for report in reports for event in report.warned]
    assert len(told) == len(set(told)) == 60


async def test_what_another_transaction_holds_is_passed_over_and_left_to_the_next_round(manager, user_id):
    await many(manager, user_id, 3, expires_at=func.clock_timestamp() - HOUR)
    async with manager.get_session() as other:
        await other.execute(select(TradingSession).where(TradingSession.session_id == "s1").with_for_update())
        report = await sessions.expire_due(manager)
        assert {event.session_id for event in report.expired} == {"s0", "s2"}
        assert report.next_due is not None and report.next_due < report.now, "one is still due"
    assert [event.session_id for event in (await sessions.expire_due(manager)).expired] == ["s1"]


async def test_expiry_and_resuming_at_once_never_give_out_what_has_expired(manager, user_id):
    await asyncio.gather(*(sessions.expire_due(manager) for _ in range(4)))  # the pool's connections are there
    made = await opened(manager, user_id, policy=FixedLifetime(timedelta(seconds=1.2)))
    end = made.session.expires_at
    assert end is not None

    async def resume() -> int:
        taken = 0
        while True:
            async with manager.get_session() as session:
                before = await session.scalar(select(func.clock_timestamp()))
                try:
                    await sessions.touch(session, bearer=made.bearer)
                except SessionExpired:
                    return taken
                await session.commit()
                assert before is not None and before < end
            taken += 1

    async def expire() -> int:
        found = 0
        while utc_now() < end + timedelta(milliseconds=100):
            found += len((await sessions.expire_due(manager)).expired)
        return found

    async with asyncio.timeout(60):
        first, second, *ended = await asyncio.gather(resume(), resume(), expire(), expire())
    late = len((await sessions.expire_due(manager)).expired)
    assert first + second and sum(ended) + late == 1


async def test_the_search_for_what_is_due_reads_the_index_of_ends(manager, user_id):
    await many(manager, user_id, 1)
    seen: list[tuple[str, Any]] = []
    async with manager.get_session() as session:
        connection = await session.connection()
        raw = await connection.get_raw_connection()
        driver: Any = raw.driver_connection

        def note(_c: Any, _u: Any, statement: str, parameters: Any, _x: Any, _m: Any) -> None:
            seen.append((statement, parameters))

        event.listen(connection.sync_connection, "before_cursor_execute", note)
        await _expire(session, 5)
        await _warn(session, HOUR, 5)
        await session.execute(text("SET LOCAL enable_seqscan = off"))
        await session.execute(text("SET LOCAL enable_sort = off"))
        for statement, parameters in seen[:2]:
            plan = [line[0] for line in await driver.fetch(f"EXPLAIN {statement}", *parameters)]
            assert any("Index Cond" in line and "expires_at" in line for line in plan), plan


async def test_what_is_told_is_json_without_a_secret(manager, user_id):
    ring = KeyRing.parse(f"k1:{KeyRing.generate_key()}")
    async with Listener(manager.engine, [CHANNEL]) as listener:
        events = aiter(listener)
        await anext(events)
        made = await opened(manager, user_id, policy=SOON, credentials="secret-token", ring=ring)
        await sessions.expire_due(manager)
        async with manager.transaction() as session:
            await sessions.revoke(session, bearer=made.bearer)
        heard = [await anext(events) for _ in range(3)]
        async with manager.get_session() as session:
            await sessions.open(session, user_id=user_id, broker="never")  # and no commit
        await opened(manager, user_id, "paper")
        heard.append(await anext(events))
    told = [json.loads(event.payload) for event in heard if isinstance(event, Notification)]
    fields = {
        "session_id": made.session.session_id,
        "user_id": user_id,
        "broker": "zerodha",
        "expires_at": made.session.expires_at.isoformat() if made.session.expires_at else None,
    }
    assert told[:3] == [
        {"kind": "opened", **fields},
        {"kind": "expiring", **fields},
        {"kind": "ended", **fields, "reason": "revoked"},
    ]
    assert told[3]["broker"] == "paper"
    assert "secret-token" not in repr(heard) and made.bearer not in repr(heard)


INSTANTS = st.none() | st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))
FIELDS = (st.uuids().map(str), st.integers(1, 2**63 - 1), st.sampled_from(["kite", "paper"]), INSTANTS)
EVENTS = st.one_of(
    st.builds(SessionOpened, *FIELDS),
    st.builds(SessionRenewed, *FIELDS),
    st.builds(SessionExpiring, *FIELDS),
    st.builds(SessionEnded, *FIELDS, st.sampled_from(["replaced", "ended", "revoked", "expired"])),
)


@given(EVENTS)
def test_an_event_comes_back_as_it_was_sent(event: SessionEvent) -> None:
    assert read(written(event)) == event


@pytest.mark.parametrize(
    "payload",
    ["", "x", "[]", "null", "{}", '{"kind": "opened"}', '{"kind": "gone", "session_id": "s"}', '{"kind": ["x"]}',
     '{"kind": "ended", "session_id": "s", "user_id": 1, "broker": "b", "expires_at": null, "reason": "x"}',
     '{"kind": "opened", "session_id": "s", "user_id": 1, "broker": "b", "expires_at": "soon"}',
     '{"kind": "opened", "session_id": "s", "user_id": 1, "broker": "b", "expires_at": "2026-11-30T00:00:00"}',
     '{"kind": "opened", "session_id": "s", "user_id": 1, "broker": "b", "expires_at": "0001-01-01T00:00:00+09:00"}',
     '{"kind": "opened", "session_id": ["s"], "user_id": 1, "broker": "b", "expires_at": null}',
     '{"kind": "opened", "session_id": "s\\u0000", "user_id": 1, "broker": "b", "expires_at": null}',
     '{"kind": "opened", "session_id": "s", "user_id": true, "broker": "b", "expires_at": null}',
     '{"kind": "opened", "session_id": "s", "user_id": 1, "broker": 2, "expires_at": null}',
     '{"kind": "opened", "session_id": "s", "user_id": 1, "broker": "b\\n", "expires_at": null}', "[" * 3_000],
)  # fmt: skip
def test_words_of_others_on_the_channel_are_passed_over(payload: str) -> None:
    assert read(payload) is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 1)), max_size=30))
def test_what_is_known_tells_of_each_change_once(steps: list[tuple[str, int, int]]) -> None:
    """Whatever is heard, and however often: a session opens before it ends, and no end is told twice in a row."""
    known, ends, warned = KnownSessions(), dict[str, datetime | None](), dict[str, datetime | None]()
    for session_id, kind, hour in steps:
        fields = (session_id, 1, "paper", datetime(2026, 11, 30, hour, tzinfo=UTC))
        event = [
            SessionOpened(*fields),
            SessionRenewed(*fields),
            SessionExpiring(*fields),
            SessionEnded(*fields, "ended"),
        ][kind]
        for _ in range(2):
            for news in known.heard(event):
                match news:
                    case SessionOpened():
                        assert session_id not in ends
                        ends[session_id] = news.expires_at
                    case SessionExpiring():
                        assert ends[session_id] == news.expires_at != warned.get(session_id)
                        warned[session_id] = news.expires_at
                    case SessionEnded():
                        ends.pop(session_id)
                        warned.pop(session_id, None)
                    case _:
                        assert ends[session_id] != news.expires_at
                        ends[session_id] = news.expires_at
        expiries = [end for end in ends.values() if end is not None]
        standing = [BrokerSessions("paper", len(ends), min(expiries), None)] if expiries else []
        assert not known.differs(standing)


# SessionWatch


async def test_the_watch_tells_of_all_that_becomes_of_sessions(manager, user_id):
    near = await opened(manager, user_id, "near", policy=SOON)
    async with SessionWatch(manager, interval=30) as watch:
        events = aiter(watch)
        first = await next_of(events)
        assert first == SessionExpiring(near.session.session_id, user_id, "near", near.session.expires_at)
        made = await opened(manager, user_id, policy=FixedLifetime(HOUR))
        fields = (made.session.session_id, user_id, "zerodha")
        assert await next_of(events) == SessionOpened(*fields, made.session.expires_at)
        async with manager.transaction() as session:
            row = await sessions.renew(session, made.session.session_id, policy=FixedLifetime(2 * HOUR))
        assert await next_of(events) == SessionRenewed(*fields, row.expires_at)
        again = await opened(manager, user_id, policy=FixedLifetime(HOUR))
        assert await next_of(events) == SessionEnded(*fields, row.expires_at, "replaced")
        assert isinstance(await next_of(events), SessionOpened)
        async with manager.transaction() as session:
            await sessions.end(session, bearer=again.bearer)
        ended = await next_of(events)
        assert isinstance(ended, SessionEnded) and ended.reason == "ended"
        await silence(events)


@paced
async def test_a_session_opened_while_the_watch_sleeps_is_told_and_ended_on_time(manager, user_id, pace):
    await forgotten(manager)
    async with SessionWatch(manager, interval=60, warn_before=pace * timedelta(milliseconds=200)) as watch:
        events = aiter(watch)
        made = await opened(manager, user_id, policy=FixedLifetime(pace * timedelta(milliseconds=500)))
        end = made.session.expires_at
        assert end is not None
        assert [type(await next_of(events)) for _ in range(2)] == [SessionOpened, SessionExpiring]
        assert datetime.now(UTC) < end
        ended = await next_of(events)
        assert isinstance(ended, SessionEnded) and ended.reason == "expired"
        assert timedelta(0) <= datetime.now(UTC) - end < timedelta(seconds=1), (
            "on time, though the interval is a minute"
        )


async def test_what_is_written_past_the_functions_is_told_of_too(manager, user_id):
    """Plain writes notify nobody: a round finds them, or the warning of a session that nobody has told to be opened."""
    async with SessionWatch(manager, interval=0.2) as watch:
        async with manager.get_session() as session:
            clock = await session.scalar(select(func.clock_timestamp()))
            assert clock is not None
            session.add(TradingSession(session_id="plain", user_id=user_id, expires_at=clock + timedelta(minutes=5)))
            session.add(TradingSession(session_id="endless", user_id=user_id, broker="kite"))
            await session.commit()
        heard = [await next_of(watch) for _ in range(3)]
        assert sorted((e.session_id, type(e)) for e in heard if e.session_id == "endless") == [
            ("endless", SessionOpened)
        ]
        assert [type(e) for e in heard if e.session_id == "plain"] == [SessionOpened, SessionExpiring]
        async with manager.get_session() as session:
            row = await session.get_one(TradingSession, "plain")
            row.expires_at = clock + timedelta(minutes=10)
            await session.commit()
        assert [type(await next_of(watch)) for _ in range(2)] == [SessionRenewed, SessionExpiring], "it is another end"
        async with manager.get_session() as session:
            for row in await session.scalars(select(TradingSession)):
                row.is_active, row.end_time = False, datetime.now(UTC) + timedelta(seconds=1)
            await session.commit()
        ended = [await next_of(watch) for _ in range(2)]
        assert {(e.session_id, e.reason) for e in ended if isinstance(e, SessionEnded)} == {
            ("plain", "ended"),
            ("endless", "ended"),
        }
        await silence(watch)


async def test_an_end_is_told_once_and_another_again_whoever_sets_it(manager, user_id):
    made = await opened(manager, user_id, policy=SOON)
    which = TradingSession.session_id == made.session.session_id
    for times, change in (
        (1, {}),
        (0, {"session_data": {"note": "x"}}),
        (1, {"expires_at": SOON.expires_at(utc_now())}),
    ):
        if change:
            async with manager.transaction() as session:
                await session.execute(update(TradingSession).where(which).values(**change))
        told = [len((await sessions.expire_due(manager)).warned) for _ in range(2)]
        assert told == [times, 0], change
    async with manager.transaction() as session:
        row = await sessions.renew(session, made.session.session_id, expires_at=utc_now() + timedelta(minutes=9))
    assert [e.expires_at for e in (await sessions.expire_due(manager)).warned] == [row.expires_at]


@paced
async def test_of_two_watches_each_hears_each_event_once(manager, user_id, pace):
    await forgotten(manager)
    async with SessionWatch(manager, interval=0.1) as one, SessionWatch(manager, interval=0.1) as other:
        await opened(manager, user_id, policy=FixedLifetime(pace * timedelta(milliseconds=400)))
        for watch in (one, other):
            events = aiter(watch)
            kinds = [type(await next_of(events)) for _ in range(3)]
            assert kinds == [SessionOpened, SessionExpiring, SessionEnded]
            await silence(events, seconds=0.2)


async def test_what_happens_while_the_connection_is_lost_is_told_once(manager, user_id, database_url):
    """Every ending, warning, opening and renewal that the feed cannot hear, it finds when it is back."""
    gone = await opened(manager, user_id, "gone", policy=FixedLifetime(HOUR))
    longer = await opened(manager, user_id, "longer", policy=FixedLifetime(HOUR))
    near = await opened(manager, user_id, "near", policy=FixedLifetime(HOUR))
    admin = await asyncpg.connect(database_url)
    try:
        async with SessionWatch(manager, interval=60, heartbeat=60) as watch:
            events = aiter(watch)
            assert watch._listener is not None
            connect, back = watch._listener._connect, asyncio.Event()

            async def delayed(reason: Any) -> None:
                await back.wait()
                await connect(reason)

            watch._listener._connect = delayed  # type: ignore[method-assign]
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'" + HERE
            )
            await until(lambda: not watch.connected)
            assert watch.health()["status"] == "stale"
            async with manager.transaction() as session:
                await sessions.end(session, bearer=gone.bearer)
                await sessions.renew(session, longer.session.session_id, policy=FixedLifetime(2 * HOUR))
            async with manager.transaction() as session:
                end = func.clock_timestamp() + timedelta(minutes=5)
                which = TradingSession.session_id == near.session.session_id
                await session.execute(update(TradingSession).where(which).values(expires_at=end))
            assert len((await sessions.expire_due(manager)).warned) == 1
            new = await opened(manager, user_id, "new")
            await silence(events)
            back.set()
            heard = [await next_of(events) for _ in range(5)]
            named = {
                made.session.session_id: name
                for made, name in ((gone, "gone"), (longer, "longer"), (near, "near"), (new, "new"))
            }
            assert sorted((named[e.session_id], type(e).__name__) for e in heard) == [
                ("gone", "SessionEnded"),
                ("longer", "SessionRenewed"),
                ("near", "SessionExpiring"),
                ("near", "SessionRenewed"),
                ("new", "SessionOpened"),
            ]
            assert next(e.reason for e in heard if isinstance(e, SessionEnded)) == "ended"
            await silence(events)
            await opened(manager, user_id, "after")
            assert (await next_of(events)).broker == "after"
            assert watch.health()["status"] == "fresh"
    finally:
        await admin.close()


@paced
async def test_when_the_server_has_been_away_the_watch_goes_on(manager, user_id, database_url, pace):
    """Every connection breaks, and for a while none can be made: for the listener and for the rounds."""
    await forgotten(manager)
    async with fault_proxy(database_url) as proxy:
        url = proxy.url
        limits = Timeouts(connect=30, probe=30)
        async with DatabaseManager(url, "testing", "migrations_only", timeouts=limits) as far:
            async with SessionWatch(far, interval=0.1, heartbeat=0.2) as watch:
                due = await opened(manager, user_id, policy=FixedLifetime(pace * timedelta(milliseconds=500)))
                assert [type(await next_of(watch)) for _ in range(2)] == [SessionOpened, SessionExpiring]
                proxy.freeze()
                proxy.cut()
                await until(lambda: not watch.connected)
                new = await opened(manager, user_id, "paper")
                proxy.thaw()
                heard = {type(event): event.session_id for event in [await next_of(watch) for _ in range(2)]}
                assert heard == {SessionEnded: due.session.session_id, SessionOpened: new.session.session_id}
                await until(lambda: watch.health()["status"] == "fresh")
                await silence(watch, seconds=0.2)


@pytest.fixture
def server(open_folder: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(open_folder / "sessions", settings={"fsync": "off"})
    try:
        yield server
    finally:
        server.stop()


async def test_over_a_restart_of_the_server_each_watch_tells_everything_once(server: EmbeddedServer) -> None:
    """One session was told of before, one becomes due to be told and one expires while the server is away."""
    url = await asyncio.to_thread(server.ensure)
    minute = timedelta(minutes=1)
    async with DatabaseManager(url, "testing", "auto", timeouts=Timeouts(connect=1.0)) as manager:
        async with manager.transaction() as session:
            session.add(user := make_user())
        async with contextlib.AsyncExitStack() as stack:
            watches = [SessionWatch(manager, warn_before=minute, interval=0.5, heartbeat=0.5) for _ in range(3)]
            for watch in watches:
                await stack.enter_async_context(watch)
            lives = {"told": 30.0, "near": 60.6, "over": 0.9, "goes on": 3_600.0}
            made = {
                name: await opened(manager, user.id, f"b{n}", policy=FixedLifetime(timedelta(seconds=seconds)))
                for n, (name, seconds) in enumerate(lives.items())
            }
            names = {item.session.session_id: name for name, item in made.items()}
            heard = [Counter[tuple[str, str]]() for _ in watches]

            async def follow(watch: SessionWatch, into: Counter[tuple[str, str]]) -> None:
                async for event in watch:
                    into[names.get(event.session_id, "after"), type(event).__name__.removeprefix("Session")] += 1

            tasks = [asyncio.create_task(follow(*item)) for item in zip(watches, heard, strict=True)]
            before = {(name, "Opened") for name in lives} | {("told", "Expiring"), ("over", "Expiring")}
            await until(lambda: all(before <= events.keys() for events in heard))
            await asyncio.to_thread(server.stop)
            await until(lambda: not any(watch.connected for watch in watches))
            assert [watch.health()["status"] for watch in watches] == ["stale"] * 3
            end = made["over"].session.expires_at
            await until(lambda: end is not None and utc_now() > end)
            await asyncio.to_thread(server.ensure)
            after = {("near", "Expiring"), ("over", "Ended")}
            await until(lambda: all(before | after <= set(events) for events in heard), within=20)
            await until(lambda: all(watch.health()["status"] == "fresh" for watch in watches), within=10)
            await opened(manager, user.id, "after")
            await until(lambda: all(("after", "Opened") in events for events in heard))
            assert heard == [Counter(before | after | {("after", "Opened")})] * 3
            for task in tasks:
                task.cancel()


@paced
async def test_behind_pgbouncer_it_compares_instead_of_listening(manager, user_id, database_url, pace):
    await forgotten(manager)
    options: dict[str, Any] = {"pgbouncer": True, "verify_migrations": False}
    async with DatabaseManager(database_url, "testing", "migrations_only", **options) as pooled:
        async with SessionWatch(pooled, interval=0.1) as watch:
            events = aiter(watch)
            made = await opened(manager, user_id, policy=FixedLifetime(pace * timedelta(milliseconds=400)))
            kinds = [type(await next_of(events)) for _ in range(3)]
            assert kinds == [SessionOpened, SessionExpiring, SessionEnded]
            assert (await stored(manager))[made.session.session_id].end_reason == "expired"
            assert (watch.connected, watch.health()["status"]) == (False, "fresh")


@paced
async def test_while_the_database_is_away_the_watch_tries_again(manager, user_id, monkeypatch, pace):
    await forgotten(manager)
    rounds: list[bool] = []
    real = sessions.expire_due

    async def sometimes(*arguments: Any, **options: Any) -> Any:
        rounds.append(len(rounds) % 3 != 1)
        if not rounds[-1]:
            raise ConnectionFailed("away")
        return await real(*arguments, **options)

    monkeypatch.setattr(_watch, "expire_due", sometimes)
    async with SessionWatch(manager, interval=0.1) as watch:
        await opened(manager, user_id, policy=FixedLifetime(pace * timedelta(milliseconds=300)))
        events = aiter(watch)
        assert [type(await next_of(events)) for _ in range(3)] == [SessionOpened, SessionExpiring, SessionEnded]
        assert False in rounds


async def test_a_slow_consumer_holds_the_watch_up_and_misses_nothing(manager, user_id):
    async with SessionWatch(manager, interval=0.1, capacity=1) as watch:
        made = [await opened(manager, user_id, f"b{n}") for n in range(5)]
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert len(watch._events) == 1
        events = aiter(watch)
        heard = [await next_of(events) for _ in range(5)]
        assert [e.session_id for e in heard] == [item.session.session_id for item in made]


async def test_leaving_ends_the_stream_and_a_watch_is_entered_once(manager, database_url):
    watch = SessionWatch(manager)
    heard: list[SessionEvent] = []

    async def consume() -> None:
        heard.extend([event async for event in watch])

    async with watch:
        task = asyncio.create_task(consume())
        await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await task
    assert heard == []
    with pytest.raises(SessionMisuse, match="entered before"):
        async with watch:
            pass
    for wrong in ({"interval": 0.0}, {"capacity": 0}):
        options: dict[str, Any] = wrong
        with pytest.raises(ConfigurationError):
            SessionWatch(manager, **options)
    await wait_for(
        database_url,
        "NOT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE 'LISTEN%'" + HERE + " AND pid <> pg_backend_pid())",
    )


async def test_prometheus_reads_how_many_are_active_and_when_the_next_expires(manager, user_id):
    registry = CollectorRegistry()
    watch = SessionWatch(manager, interval=0.1)
    async with DatabaseMetrics(manager, registry=registry, sources=[watch]):
        assert value(registry, "trading_sessions_active", broker="zerodha") is None, "nothing before it is entered"
        assert watch.health()["status"] == "stale"
        near: OpenedSession = await opened(manager, user_id, policy=FixedLifetime(timedelta(minutes=20)))
        await opened(manager, user_id, "paper")
        async with watch:
            assert value(registry, "trading_sessions_active", broker="zerodha") == 1
            assert value(registry, "trading_sessions_active", broker="paper") == 1
            left = value(registry, "trading_session_expires_in_seconds", broker="zerodha")
            assert left is not None and 1100 < left <= 1200
            assert value(registry, "trading_session_expires_in_seconds", broker="paper") is None
            assert value(registry, "trading_sessions_warned_total", broker="zerodha") == 1
            assert watch.health() | {"next_expiry": None} == {
                "status": "fresh",
                "connected": True,
                "active": 2,
                "next_expiry": None,
                "error": None,
            }
            assert near.session.expires_at is not None
            assert watch.health()["next_expiry"] == near.session.expires_at.isoformat()
            await overdue(manager)
            await until(lambda: value(registry, "trading_sessions_expired_total", broker="zerodha") == 1)
            await until(lambda: value(registry, "trading_sessions_active", broker="zerodha") == 0)
            report = with_parts(await manager.health_check(), sessions=watch.health())
            assert (report["status"], report["parts"]["sessions"]["status"]) == ("healthy", "fresh")
        assert with_parts(await manager.health_check(), sessions=watch.health())["status"] == "degraded"


async def test_at_six_oclock_thousands_expire_in_batches(manager, user_id):
    await many(manager, user_id, 1_200, expires_at=func.clock_timestamp() - timedelta(seconds=1))
    began = time.perf_counter()
    report = await sessions.expire_due(manager)
    print(f"1,200 sessions ended in {time.perf_counter() - began:.2f} s")
    assert len(report.expired) == 1_200 and report.brokers == ()
