"""The feed of changes of strategies: in order, each once, over lost connections and a server that restarts."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import update

from core.config.options import PoolOptions, Timeouts
from core.database.connection import DatabaseManager
from core.database.embedded import EmbeddedServer
from core.database.errors import (
    AuthenticationFailed,
    CommitOutcomeUnknown,
    ConnectionFailed,
    HostUnreachable,
    InvalidInput,
    PandaDatabaseError,
    PoolExhausted,
    SessionMisuse,
)
from core.database.models import Strategy
from core.trading import strategies
from core.trading.strategies import FeedRewound, StrategyChange, VersionConflict, _watch, watch
from tests.cluster.debian import binaries, debian_server, pgbouncer, pooled

LISTENING = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"


async def define(manager: DatabaseManager, strategy_id: str = "s") -> None:
    async with manager.transaction() as session:
        await strategies.define(session, strategy_id=strategy_id, name=strategy_id, parameters={"n": 0})


async def revise(manager: DatabaseManager, version: int, strategy_id: str = "s", **fields: Any) -> None:
    given: dict[str, Any] = {"parameters": {"n": version}} | fields
    async with manager.transaction() as session:
        await strategies.revise(session, strategy_id, expected_version=version, **given)


async def taken(feed: AsyncGenerator[StrategyChange], count: int, *, within: float = 30.0) -> list[StrategyChange]:
    async with asyncio.timeout(within):
        return [await anext(feed) for _ in range(count)]


async def test_changes_arrive_in_order_with_what_they_changed_and_from_any_cursor(manager: DatabaseManager) -> None:
    await define(manager)
    async with contextlib.aclosing(watch(manager, after=0)) as feed:
        [first] = await taken(feed, 1)
        assert (first.strategy_id, first.version, first.is_active, first.note) == ("s", 1, True, None)
        assert first.fields == ("name", "strategy_type", "config", "parameters", "active_brokers", "is_active")
        await revise(manager, 1, name="T", changed_by="asha", note="why")
        async with manager.transaction() as session:
            await strategies.disable(session, "s")
        second, third = await taken(feed, 2)
    assert (second.version, second.changed_by, second.note) == (2, "asha", "why")
    assert second.fields == ("name", "parameters")
    assert (third.fields, third.is_active) == (("is_active",), False)
    assert first.change_id < second.change_id < third.change_id
    for cursor in (first.change_id, str(first.change_id), first.cursor):
        async with contextlib.aclosing(watch(manager, after=cursor)) as feed:
            assert await taken(feed, 2) == [second, third]
    async with manager.get_session() as session:
        assert await strategies.last_change(session) == third.change_id


async def test_without_a_cursor_it_begins_now_and_a_commit_is_seen_within_a_second(
    manager: DatabaseManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    await define(manager)
    begun, begin = asyncio.Event(), _watch._begin

    async def noted(*arguments: Any) -> Any:
        try:
            return await begin(*arguments)
        finally:
            begun.set()

    monkeypatch.setattr(_watch, "_begin", noted)
    async with contextlib.aclosing(watch(manager)) as feed:
        waiting = asyncio.create_task(taken(feed, 1))
        await begun.wait()
        await asyncio.sleep(0.1)
        assert not waiting.done()
        async with manager.get_session() as session:
            await strategies.disable(session, "s")
            await session.rollback()
        took: list[float] = []
        for version in range(1, 4):
            started = time.monotonic()
            await revise(manager, version)
            [change] = await waiting
            took.append(time.monotonic() - started)
            assert change.version == version + 1
            waiting = asyncio.create_task(taken(feed, 1))
        waiting.cancel()
        await asyncio.wait([waiting])
    assert sorted(took)[1] < 1.0


async def test_a_change_waits_for_the_one_begun_before_it_so_that_no_cursor_skips_any(manager: DatabaseManager) -> None:
    await define(manager, "a")
    await define(manager, "b")
    async with manager.get_session() as session:
        begun = await strategies.last_change(session)
    async with contextlib.aclosing(watch(manager, after=begun)) as feed:
        async with manager.get_session() as slow:
            await strategies.disable(slow, "a")
            other = asyncio.create_task(revise(manager, 1, "b"))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await asyncio.shield(other)
            await slow.commit()
        await other
        assert [change.strategy_id for change in await taken(feed, 2)] == ["a", "b"]


async def test_changes_beyond_a_page_and_of_many_writers_all_arrive_in_order(
    manager: DatabaseManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_watch, "_PAGE", 3)

    async def write(name: str) -> None:
        await define(manager, name)
        for version in range(1, 5):
            await revise(manager, version, name)

    first, second = watch(manager, after=0), watch(manager, after=0)
    async with contextlib.aclosing(first), contextlib.aclosing(second):
        names = [f"s{n}" for n in range(6)]
        results: list[Any] = await asyncio.gather(taken(first, 30), taken(second, 30), *map(write, names))
    changes, others = results[:2]
    assert changes == others
    ids = [change.change_id for change in changes]
    assert ids == sorted(set(ids))
    for name in names:
        assert [change.version for change in changes if change.strategy_id == name] == [1, 2, 3, 4, 5]


async def test_a_killed_connection_is_made_anew_and_nothing_is_missed(
    manager: DatabaseManager, database_url: str
) -> None:
    await define(manager)
    async with contextlib.aclosing(watch(manager, after=0)) as feed:
        await taken(feed, 1)
        admin = await asyncpg.connect(database_url)
        took: list[float] = []
        for version in range(1, 4):
            async with asyncio.timeout(60):
                while len(found := await admin.fetch(LISTENING)) != 1:
                    await asyncio.sleep(0.01)
            await admin.execute("SELECT pg_terminate_backend($1)", found[0][0])
            started = time.monotonic()
            await revise(manager, version)
            assert [change.version for change in await taken(feed, 1)] == [version + 1]
            took.append(time.monotonic() - started)
        await admin.close()
    assert sorted(took)[1] < 2.0


async def test_a_feed_that_is_closed_or_cancelled_leaves_no_connection(
    manager: DatabaseManager, database_url: str
) -> None:
    async def follow() -> None:
        async for _ in watch(manager):
            pass

    task = asyncio.create_task(follow())
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await define(manager)
    async with contextlib.aclosing(watch(manager, after=0)) as feed:
        await taken(feed, 1)
    admin = await asyncpg.connect(database_url)
    async with asyncio.timeout(30):
        while await admin.fetch(LISTENING):
            await asyncio.sleep(0.02)
    await admin.close()


async def test_a_cursor_that_is_none_of_this_database_is_refused(manager: DatabaseManager, database_url: str) -> None:
    await define(manager)
    with pytest.raises(FeedRewound, match="stands at change 1000000, and the last one of the database is 1"):
        await anext(watch(manager, after=1_000_000))
    async with contextlib.aclosing(watch(manager, after=0)) as feed:
        await taken(feed, 1)
        admin = await asyncpg.connect(database_url)  # as a standby that lacks the last changes takes over
        await admin.execute("DELETE FROM strategy_revisions")
        await admin.execute(f"SELECT pg_terminate_backend(pid) FROM ({LISTENING}) AS listening")
        await admin.close()
        with pytest.raises(FeedRewound):
            await taken(feed, 1)


FAILOVER = """
    WITH gone AS (DELETE FROM strategy_revisions WHERE change_id > 1),
        back AS (UPDATE strategies SET version = 1, is_active = true)
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()
"""
WRITTEN_SINCE = """
    INSERT INTO strategy_revisions (strategy_id, version, name, change_id) OVERRIDING SYSTEM VALUE
    SELECT strategy_id, n, 'other', n FROM strategies, generate_series(2, 5) AS n
"""


@pytest.mark.parametrize("since", [WRITTEN_SINCE, WRITTEN_SINCE.replace("n, 'other', n", "n, 'other', n + 32")])
async def test_a_failover_that_lost_changes_is_noticed_though_others_were_written_past_them(
    manager: DatabaseManager, database_url: str, since: str
) -> None:
    """A standby that lacks versions 2 and 3 takes over, and is written to before the feed looks again; ids may jump."""
    await define(manager)
    async with contextlib.aclosing(watch(manager, after=0)) as feed:
        await revise(manager, 1)
        await revise(manager, 2)
        first, _, third = await taken(feed, 3)
        admin = await asyncpg.connect(database_url)
        await admin.execute("BEGIN")
        await admin.execute(FAILOVER)
        await admin.execute(since)
        await admin.execute("COMMIT")
        await admin.close()
        with pytest.raises(FeedRewound, match="stands at change 3, and the database, whose last one is"):
            await taken(feed, 1)
    with pytest.raises(FeedRewound):
        await anext(watch(manager, after=third.cursor))
    async with contextlib.aclosing(watch(manager, after=first.cursor)) as feed:  # which the standby had
        assert [change.version for change in await taken(feed, 4)] == [2, 3, 4, 5]


async def test_what_is_no_cursor_is_refused(manager: DatabaseManager) -> None:
    given: list[Any] = [-1, "", "1:", "1:abc", "x", "1" * 20, "1:0123456789AB", True, 1.5, "1\n"]
    for after in given:
        with pytest.raises(InvalidInput, match="after: takes 0, the cursor") as caught:
            await anext(watch(manager, after=after))
        assert caught.value.column == "after"


async def test_what_passes_is_waited_for_and_what_does_not_is_raised() -> None:
    met: list[type[PandaDatabaseError]] = [HostUnreachable, PoolExhausted, AuthenticationFailed]

    async def work() -> int:
        raise met.pop(0)("no")

    with pytest.raises(AuthenticationFailed):
        await _watch._patiently(work)
    assert met == []


async def test_a_closed_manager_ends_the_feed_with_an_error(database_url: str) -> None:
    manager = DatabaseManager(database_url, "testing", "migrations_only")
    await manager.connect()
    await define(manager)
    feed = watch(manager, after=0)
    await taken(feed, 1)
    await manager.close()
    with pytest.raises(SessionMisuse):
        await taken(feed, 1)


async def test_where_no_notification_comes_through_it_looks_for_itself(database_url: str) -> None:
    one = PoolOptions(size=1, max_overflow=0)
    async with (
        DatabaseManager(database_url, "testing", "migrations_only", pgbouncer=True, pool=one) as polling,
        DatabaseManager(database_url, "testing", "migrations_only") as manager,
    ):
        await define(manager)
        async with contextlib.aclosing(watch(polling, after=0)) as feed:
            await taken(feed, 1)
            took: list[float] = []
            for version in range(1, 4):
                started = time.monotonic()
                await revise(manager, version)
                assert [change.version for change in await taken(feed, 1)] == [version + 1]
                took.append(time.monotonic() - started)
        assert sorted(took)[1] < 1.0


@pytest.fixture
def bouncer_url(component: Any) -> Iterator[str]:
    component(binaries() is not None, "apt-get install postgresql")
    component(pgbouncer() is not None, "apt-get install pgbouncer")
    with debian_server() as server, pooled(server) as url:
        yield url


@pytest.mark.component
async def test_behind_pgbouncer_writers_keep_their_order_and_the_feed_polls(bouncer_url: str) -> None:
    async with DatabaseManager(bouncer_url, "testing", "auto", pgbouncer=True) as manager:
        async with contextlib.aclosing(watch(manager, after=0)) as feed:
            await asyncio.gather(*(define(manager, f"s{n}") for n in range(8)))
            changes = await taken(feed, 8)
            assert sorted(change.strategy_id for change in changes) == [f"s{n}" for n in range(8)]
            outcomes = await asyncio.gather(revise(manager, 1, "s1"), revise(manager, 1, "s1"), return_exceptions=True)
            assert sum(isinstance(outcome, VersionConflict) for outcome in outcomes) == 1
            assert [(one.strategy_id, one.version) for one in await taken(feed, 1)] == [("s1", 2)]
            async with manager.transaction() as session:
                (await session.get_one(Strategy, "s2")).is_active = False
                await session.flush()
                await session.execute(update(Strategy).where(Strategy.strategy_id == "s3").values(name="t"))
            assert [(one.strategy_id, one.version) for one in await taken(feed, 2)] == [("s2", 2), ("s3", 2)]


@pytest.fixture
def server(open_folder: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(open_folder / "feed", settings={"fsync": "off"})
    try:
        yield server
    finally:
        server.stop()


async def test_over_a_restart_of_the_server_every_change_arrives_once_and_in_order(server: EmbeddedServer) -> None:
    total, limits = 40, Timeouts(connect=30, lock=30, statement=60)
    url = await asyncio.to_thread(server.ensure)
    committed: dict[int, float] = {}
    received: list[tuple[StrategyChange, float]] = []
    done = asyncio.Event()

    async def follow(manager: DatabaseManager) -> None:
        async for change in watch(manager, after=0):
            received.append((change, time.monotonic()))
            if len(received) == total + 1:
                done.set()

    async def write(manager: DatabaseManager) -> None:
        for version in range(1, total + 1):
            while version + 1 not in committed:
                try:
                    await revise(manager, version, note=f"change {version}")
                except (CommitOutcomeUnknown, ConnectionFailed):
                    await asyncio.sleep(0.05)
                    continue
                except VersionConflict as conflict:  # the COMMIT whose answer was lost had arrived
                    assert [change.note for change in conflict.changes] == [f"change {version}"]
                committed[version + 1] = time.monotonic()
            await asyncio.sleep(0.01)

    async with DatabaseManager(url, "testing", "auto", timeouts=limits) as manager:
        await define(manager)
        follower, writer = asyncio.create_task(follow(manager)), asyncio.create_task(write(manager))
        while len(committed) < 10:
            await asyncio.sleep(0.01)
        before = len(committed)
        await asyncio.to_thread(server.stop)
        await asyncio.sleep(0.3)
        assert not writer.done()
        await asyncio.to_thread(server.ensure)
        back = time.monotonic()
        async with asyncio.timeout(60):
            await writer
            await done.wait()
        follower.cancel()
    assert before < total
    assert [change.version for change, _ in received] == list(range(1, total + 2))
    ids = [change.change_id for change, _ in received]
    assert ids == sorted(set(ids))
    late = [at - committed[change.version] for change, at in received[1:] if committed[change.version] > back + 1.0]
    assert not late or sorted(late)[len(late) // 2] < 1.0
