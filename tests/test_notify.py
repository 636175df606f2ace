"""LISTEN and NOTIFY: in the caller's transaction, over lost connections, never silently behind."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config.options import PoolOptions, Timeouts
from core.database.connection import DatabaseManager
from core.database.engine import DatabaseUrl, EngineOptions, build_engine
from core.database.errors import ConfigurationError, HostUnreachable, InvalidInput
from core.database.notify import Listener, Notification, Resync, notify
from tests.cluster.proxy import FaultProxy
from tests.waiting import paced

CHANNEL = "panda test"


async def told(url: str, payload: str, channel: str = CHANNEL) -> None:
    """Notify from a connection that is not ours."""
    connection = await asyncpg.connect(url)
    await connection.execute("SELECT pg_notify($1, $2)", channel, payload)
    await connection.close()


async def next_of(events: AsyncIterator[Notification | Resync], *, within: float = 30.0) -> Notification | Resync:
    async with asyncio.timeout(within):
        return await anext(events)


async def test_a_notification_arrives_when_its_transaction_commits_and_not_before(manager: DatabaseManager) -> None:
    async with Listener(manager.engine, [CHANNEL]) as listener:
        events = aiter(listener)
        assert await next_of(events) == Resync("connected")
        async with manager.get_session() as session:
            await notify(session, CHANNEL, "kept back")
            with pytest.raises(TimeoutError):
                await next_of(aiter(listener), within=0.1)
            await session.commit()
        event = await next_of(aiter(listener))
        assert isinstance(event, Notification)
        assert (event.channel, event.payload) == (CHANNEL, "kept back")


async def test_a_transaction_that_is_rolled_back_tells_nobody(manager: DatabaseManager, database_url: str) -> None:
    async with Listener(manager.engine, [CHANNEL]) as listener:
        events = aiter(listener)
        await next_of(events)
        async with manager.get_session() as session:
            await notify(session, CHANNEL, "never")
        await told(database_url, "after")
        event = await next_of(events)
        assert isinstance(event, Notification) and event.payload == "after"


async def test_a_killed_connection_is_made_anew_and_says_that_something_may_be_missing(
    manager: DatabaseManager, database_url: str
) -> None:
    async with Listener(manager.engine, [CHANNEL]) as listener:
        events = aiter(listener)
        await next_of(events)
        admin = await asyncpg.connect(database_url)
        killed = await admin.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
        )
        assert len(killed) == 1
        assert await next_of(events) == Resync("reconnected")
        assert listener.connected
        assert listener.reconnects == 1
        await told(database_url, "seen again")
        event = await next_of(events)
        assert isinstance(event, Notification) and event.payload == "seen again"
        await admin.close()


@paced
async def test_a_silent_network_is_found_by_the_heartbeat(database_url: str, pace: int) -> None:
    async with FaultProxy(database_url) as proxy:
        limits = Timeouts(connect=30, probe=0.2 * pace)
        async with DatabaseManager(proxy.url, "testing", "migrations_only", timeouts=limits) as manager:
            async with Listener(manager.engine, [CHANNEL], heartbeat=0.2 * pace, timeouts=limits) as listener:
                events = aiter(listener)
                await next_of(events)
                proxy.freeze()
                async with asyncio.timeout(30):
                    while listener.connected:
                        await asyncio.sleep(0.02)
                proxy.cut()
                proxy.thaw()
                assert await next_of(events, within=30.0) == Resync("reconnected")
                await told(database_url, "through")
                event = await next_of(events)
                assert isinstance(event, Notification) and event.payload == "through"


async def test_a_slow_consumer_is_told_that_it_has_missed_some(manager: DatabaseManager, database_url: str) -> None:
    async with Listener(manager.engine, [CHANNEL], capacity=5) as listener:
        events = aiter(listener)
        await next_of(events)
        connection = await asyncpg.connect(database_url)
        for number in range(8):
            await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, str(number))
        await connection.close()
        async with asyncio.timeout(60):
            while not any(isinstance(event, Notification) and event.payload == "7" for event in listener._events):
                await asyncio.sleep(0.01)
        seen = [await next_of(events) for _ in range(3)]
        assert seen[0] == Resync("overflow")
        assert [event.payload for event in seen[1:] if isinstance(event, Notification)] == ["6", "7"]


async def test_listening_takes_no_slot_of_the_pool(database_url: str) -> None:
    tight = PoolOptions(size=1, max_overflow=0, wait=0.5)
    async with DatabaseManager(database_url, "testing", "migrations_only", pool=tight) as manager:
        async with Listener(manager.engine, [CHANNEL]) as listener:
            async with manager.transaction() as session:
                await notify(session, CHANNEL, "one slot is enough")
            events = aiter(listener)
            await next_of(events)
            event = await next_of(events)
            assert isinstance(event, Notification) and event.payload == "one slot is enough"


async def test_leaving_ends_the_stream_and_closes_the_connection(manager: DatabaseManager, database_url: str) -> None:
    seen: list[Notification | Resync] = []

    async def follow(listener: Listener) -> None:
        async for event in listener:
            seen.append(event)  # noqa: PERF401  # each as it comes

    async with Listener(manager.engine, [CHANNEL]) as listener:
        follower = asyncio.create_task(follow(listener))
        async with asyncio.timeout(30):
            while not seen:
                await asyncio.sleep(0.01)
    async with asyncio.timeout(30):
        await follower
    assert seen == [Resync("connected")]
    admin = await asyncpg.connect(database_url)
    listening = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
    async with asyncio.timeout(30):
        while await admin.fetchval(listening):
            await asyncio.sleep(0.02)
    await admin.close()


async def test_entering_says_why_the_first_connection_failed() -> None:
    engine = build_engine(DatabaseUrl.parse("postgresql://panda@127.0.0.1:1/panda?sslmode=disable"), EngineOptions())
    with pytest.raises(HostUnreachable):
        async with Listener(engine, [CHANNEL]):
            pytest.fail("nobody listens on port 1")
    await engine.dispose()


async def test_behind_pgbouncer_listening_is_refused(database_url: str) -> None:
    engine = build_engine(DatabaseUrl.parse(database_url), EngineOptions(pgbouncer=True))
    with pytest.raises(ConfigurationError, match="carries no notifications"):
        Listener(engine, [CHANNEL])
    await engine.dispose()


@pytest.mark.parametrize("payload", ["x" * 8_000, "a\0b", "\ud800"])
async def test_a_payload_that_cannot_be_sent_is_refused_before_anything_is(
    manager: DatabaseManager, payload: str
) -> None:
    async with manager.transaction() as session:
        with pytest.raises(InvalidInput, match="payload"):
            await notify(session, CHANNEL, payload)
        await notify(session, CHANNEL, "the transaction is whole")


@pytest.mark.parametrize("channel", ["", "c" * 64, "a\0b"])
async def test_a_channel_that_the_server_would_cut_is_refused(manager: DatabaseManager, channel: str) -> None:
    with pytest.raises(InvalidInput, match="channel"):
        Listener(manager.engine, [channel])


@given(st.text(max_size=80))
def test_every_channel_is_taken_whole_or_refused(channel: str) -> None:
    engine = build_engine(DatabaseUrl.parse("postgresql://panda@127.0.0.1/panda"), EngineOptions())
    try:
        fits = 0 < len(channel.encode()) <= 63 and "\0" not in channel
    except UnicodeEncodeError:
        fits = False
    if fits:
        Listener(engine, [channel])
    else:
        with pytest.raises(InvalidInput):
            Listener(engine, [channel])
