"""SnapshotWriter on a real server: what is acknowledged is stored, and nobody's trouble is another's."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import event, select, text

from core.config.options import PoolOptions, Timeouts
from core.database.connection import DatabaseManager
from core.database.errors import (
    CheckViolation,
    CommitOutcomeUnknown,
    ConfigurationError,
    ConnectionFailed,
    ForeignKeyViolation,
    InvalidInput,
    LockTimeout,
    ManagerNotConnected,
    PandaDatabaseError,
    PartitionMissing,
    PermissionDenied,
    PoolExhausted,
    ServerFault,
    SnapshotConflict,
    WriterClosed,
    WriterOverloaded,
    WrongEventLoop,
)
from core.database.models import Portfolio, PortfolioSnapshot
from core.database.records import PortfolioSnapshotCreate
from core.trading import portfolios
from core.trading.portfolios import SnapshotWriter, _sender
from tests.cluster.debian import DebianServer, binaries, debian_server, free_port, pgbouncer, pooled
from tests.cluster.proxy import FaultProxy, fault_proxy
from tests.waiting import wait_for, wait_for_lock

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
POSITION = {
    "instrument_token": 5633,
    "quantity": Decimal(-3),
    "average_price": Decimal("1834.5000000001"),
    "last_price": Decimal("1850.75"),
    "pnl": Decimal("-48.7499999997"),
}


def snapshot(number: int = 0, portfolio_id: str = "p1", **fields: Any) -> PortfolioSnapshotCreate:
    values: dict[str, Any] = {
        "broker": "paper",
        "snapshot_time": NOON + timedelta(seconds=number),
        "cash": Decimal("6000.1234567891"),
        "realized_pnl": Decimal("0.1"),
        "unrealized_pnl": Decimal("-0.3"),
        "positions": [POSITION],
    }
    return PortfolioSnapshotCreate(portfolio_id=portfolio_id, **(values | fields))


@pytest.fixture(autouse=True)
async def portfolio(manager: DatabaseManager) -> None:
    async with manager.transaction() as session:
        await portfolios.create(session, portfolio_id="p1", broker="paper", currency="INR", name="Paper")


async def stored(manager: DatabaseManager) -> list[PortfolioSnapshot]:
    async with manager.get_session() as session:
        return list(await session.scalars(select(PortfolioSnapshot).order_by(PortfolioSnapshot.snapshot_time)))


async def execute(manager: DatabaseManager, *statements: str) -> None:
    async with manager.transaction() as session:
        for statement in statements:
            await session.execute(text(statement))


async def outcomes(*writes: Awaitable[bool]) -> list[Any]:
    return await asyncio.gather(*writes, return_exceptions=True)


async def reached(condition: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def blocked(manager: DatabaseManager) -> AsyncGenerator[None]:
    """Batches wait, as for another transaction, until the block is left."""
    async with manager.get_session() as session:
        await session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        await session.execute(text("LOCK TABLE portfolio_snapshots IN SHARE MODE"))
        yield


class TestWriting:
    async def test_a_row_is_stored_exactly_and_once(self, manager: DatabaseManager):
        async with SnapshotWriter(manager) as writer:
            assert await writer.write(snapshot())
            assert await writer.write(snapshot()) is False
            (row,) = await stored(manager)
            assert writer.statistics.added == writer.statistics.present == 1
        given = snapshot()
        for name in PortfolioSnapshotCreate.model_fields:
            assert getattr(row, name) == getattr(given, name), name

    @pytest.mark.parametrize("connections", [1, 2, 3])
    async def test_many_tasks_share_commits_and_all_their_rows_are_there(
        self, manager: DatabaseManager, connections: int
    ):
        async with SnapshotWriter(manager, connections=connections, max_batch=50) as writer:

            async def task(number: int) -> None:
                for step in range(10):
                    assert await writer.write(snapshot(number * 10 + step, positions=[POSITION] * (number % 3 + 1)))

            await asyncio.gather(*(task(number) for number in range(64)))
            statistics = writer.statistics
        rows = await stored(manager)
        assert [row.snapshot_time for row in rows] == [snapshot(number).snapshot_time for number in range(640)]
        assert [len(row.positions) for row in rows] == [number // 10 % 3 + 1 for number in range(640)]
        assert (statistics.added, statistics.refused, statistics.pending, statistics.retries) == (640, 0, 0, 0)
        assert statistics.batches < 200

    async def test_the_month_of_a_row_is_made_first_once_for_all(self, manager: DatabaseManager):
        months = [datetime(2031, month, 28, tzinfo=UTC) for month in range(1, 7)]
        async with SnapshotWriter(manager) as writer:
            given = [snapshot(snapshot_time=at + timedelta(hours=hour)) for at in months for hour in range(20)]
            assert all(await asyncio.gather(*(writer.write(one) for one in given)))
        assert len(await stored(manager)) == 120

    async def test_a_month_that_was_pruned_under_the_writer_is_made_again(self, manager: DatabaseManager):
        async with SnapshotWriter(manager) as writer:
            assert await writer.write(snapshot())
            await execute(manager, "DROP TABLE portfolio_snapshots_y2026m11")
            await asyncio.gather(*(writer.write(snapshot(number)) for number in range(1, 9)))
        assert len(await stored(manager)) == 8

    async def test_commits_are_durable_where_the_server_would_not_wait_for_the_disk(self, manager: DatabaseManager):
        async with SnapshotWriter(manager) as writer:
            await writer.write(snapshot())
            connection = await writer._senders[0].lane.connect()
            (row,) = await connection.fetch("SELECT current_setting('synchronous_commit')", timeout=60)
            assert row[0] != "off"
        async with manager.get_session() as session:  # and no connection of the pool is left changed
            assert await session.scalar(text("SELECT source FROM pg_settings WHERE name = 'synchronous_commit'")) != (
                "session"
            )

    async def test_behind_a_pooler_each_statement_has_a_transaction_and_settings_of_its_own(
        self, database_url: str, manager: DatabaseManager
    ):
        async with DatabaseManager(database_url, "testing", "migrations_only", pgbouncer=True) as pooled:
            async with SnapshotWriter(pooled) as writer:
                found = await outcomes(
                    *(writer.write(snapshot(number)) for number in range(30)), writer.write(snapshot(1, "unknown"))
                )
                assert found[:30] == [True] * 30
                assert isinstance(found[30], ForeignKeyViolation)
                assert await writer.write(snapshot(3)) is False
                connection = await writer._senders[0].lane.connect()
                (row,) = await connection.fetch("SELECT current_setting('synchronous_commit')", timeout=60)
                assert row[0] != "off"
        assert len(await stored(manager)) == 30

    async def test_limits_that_make_no_sense_are_refused(self, manager: DatabaseManager):
        for wrong in ({"max_batch": 0}, {"max_pending": 5}, {"deadline": 0}, {"flush": -1}, {"connections": 0}):
            with pytest.raises(ConfigurationError):
                SnapshotWriter(manager, **wrong)


class TestBadRows:
    async def test_each_error_reaches_its_own_caller_and_the_others_are_stored(self, manager: DatabaseManager):
        await execute(
            manager,
            "INSERT INTO portfolios (portfolio_id, broker, currency, name) VALUES ('p2', 'kite', 'INR', 'K')",
        )
        async with SnapshotWriter(manager, connections=1) as writer:
            await writer.write(snapshot(1))
            good = [writer.write(snapshot(number)) for number in range(10, 40)]
            faulty = snapshot(8).model_copy(update={"total_pnl": Decimal(5)})
            nul = snapshot(9).model_copy(update={"broker": "pa\0per"})
            wrong = [
                writer.write(snapshot(2, "unknown")),
                writer.write(snapshot(3, "p2")),
                writer.write(snapshot(1, cash=Decimal(1), realized_pnl=Decimal(7))),
                writer.write(faulty),
                writer.write(nul),
                writer.write("no snapshot"),  # type: ignore[arg-type]
            ]
            found = await outcomes(*good[:15], *wrong, *good[15:])
            assert found[:15] == found[21:] == [True] * 15
            assert [type(each) for each in found[15:21]] == [
                ForeignKeyViolation, ForeignKeyViolation, SnapshotConflict, CheckViolation, InvalidInput, InvalidInput,
            ]  # fmt: skip
            assert (writer.statistics.refused, writer.statistics.added) == (6, 31)
        assert found[15].constraint == found[16].constraint is not None
        assert found[17].differing == ("cash", "realized_pnl", "total_pnl", "equity")
        assert "6000" not in str(found[17])
        assert len(await stored(manager)) == 31

    async def test_a_single_bad_row_is_told_what_a_batch_would_be_told(self, manager: DatabaseManager):
        async with SnapshotWriter(manager) as writer:
            with pytest.raises(ForeignKeyViolation) as alone:
                await writer.write(snapshot(1, "unknown"))
            together = await outcomes(*(writer.write(snapshot(number, "unknown")) for number in range(9)))
            assert {each.constraint for each in together} == {alone.value.constraint}

    async def test_rows_of_one_key_are_served_in_their_order(self, manager: DatabaseManager):
        async with SnapshotWriter(manager) as writer:
            first, again, other, last = await outcomes(
                writer.write(snapshot(1)),
                writer.write(snapshot(1)),
                writer.write(snapshot(1, cash=Decimal(1))),
                writer.write(snapshot(1)),
            )
        assert (first, again, last) == (True, False, False)
        assert isinstance(other, SnapshotConflict)
        assert other.differing == ("cash", "equity")

    async def test_a_key_stays_with_the_connection_that_it_has_had_alone(self, manager: DatabaseManager):
        number = next(n for n in range(100) if hash(("p1", snapshot(n).snapshot_time)) % 2)  # else it would by chance
        async with SnapshotWriter(manager, connections=2) as writer:
            await writer.write(snapshot(-1))
            async with blocked(manager):
                lone = asyncio.create_task(writer.write(snapshot(number)))
                await reached(lambda: writer.statistics.pending == 1)
                others = [asyncio.create_task(writer.write(snapshot(number, cash=Decimal(n)))) for n in range(3)]
                await asyncio.sleep(0)
                assert [len(sender._queue) for sender in writer._senders] == [3, 0]
            assert await lone
            assert {type(each) for each in await outcomes(*others)} == {SnapshotConflict}

    async def test_a_lone_row_is_sent_by_its_own_caller(self, manager: DatabaseManager):
        async with SnapshotWriter(manager) as writer:
            await writer.write(snapshot(0))
            for sender in writer._senders:
                sender.put = None  # type: ignore[assignment,method-assign]
            assert await writer.write(snapshot(1))
            assert await writer.write(snapshot(1)) is False
            with pytest.raises(SnapshotConflict):
                await writer.write(snapshot(1, cash=Decimal(1)))
            with pytest.raises(ForeignKeyViolation):
                await writer.write(snapshot(2, "unknown"))
            statistics = writer.statistics
        assert (statistics.added, statistics.present, statistics.refused, statistics.batches) == (2, 1, 2, 2)

    async def test_positions_that_were_changed_after_the_check_are_checked_again(self, manager: DatabaseManager):
        changed = snapshot()
        changed.positions.append(changed.positions[0])
        async with SnapshotWriter(manager) as writer:
            with pytest.raises(InvalidInput, match="equity is"):
                await writer.write(changed)

    async def test_a_fault_that_no_row_is_to_blame_for_reaches_all_at_once(self, manager: DatabaseManager):
        async with SnapshotWriter(manager, connections=1) as writer:
            await writer.write(snapshot(100))
            await execute(
                manager,
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE insufficient_privilege USING MESSAGE = 'no'; END $$",
                "CREATE TRIGGER refuse BEFORE INSERT ON portfolio_snapshots FOR EACH ROW EXECUTE FUNCTION refuse()",
            )
            found = await outcomes(*(writer.write(snapshot(number)) for number in range(5)))
            assert {type(each) for each in found} == {PermissionDenied}
            assert len({id(each) for each in found}) == 5  # each has a traceback of its own
            await execute(manager, "DROP TRIGGER refuse ON portfolio_snapshots")
            assert await writer.write(snapshot(0))


class TestCancellation:
    async def test_a_row_that_no_batch_has_taken_is_withdrawn(self, manager: DatabaseManager):
        async with SnapshotWriter(manager, connections=1) as writer:
            await writer.write(snapshot(0))
            async with blocked(manager):
                first = asyncio.create_task(writer.write(snapshot(1)))
                await asyncio.sleep(0.05)
                waiting = [asyncio.create_task(writer.write(snapshot(number))) for number in range(2, 8)]
                await asyncio.sleep(0.05)
                for task in waiting[:3]:
                    task.cancel()
                await asyncio.wait(waiting[:3])
            assert await asyncio.gather(first, *waiting[3:]) == [True] * 4
        times = [row.snapshot_time for row in await stored(manager)]
        assert times == [snapshot(number).snapshot_time for number in (0, 1, 5, 6, 7)]

    async def test_cancelling_one_of_a_batch_leaves_the_batch_alone(self, manager: DatabaseManager):
        async with SnapshotWriter(manager, connections=1) as writer:
            await writer.write(snapshot(0))
            async with blocked(manager):
                first, *tasks = [asyncio.create_task(writer.write(snapshot(number))) for number in range(1, 10)]
                await asyncio.sleep(0.05)
                first.cancel()  # it went alone; now the others make up a batch, which waits as well
                await reached(lambda: len(writer._senders[0]._on_wire) == 8)
                tasks[0].cancel()
                tasks[3].cancel()
                await asyncio.sleep(0)
            found = await outcomes(*tasks)
            assert sum(each is True for each in found) == 6
            assert writer.statistics.retries == 0
        times = {row.snapshot_time for row in await stored(manager)}
        assert {snapshot(number).snapshot_time for number in (3, 4, 6, 7, 8, 9)} <= times

    async def test_a_caller_who_is_cancelled_while_alone_ends_the_connection_and_no_other_row(
        self, manager: DatabaseManager
    ):
        async with SnapshotWriter(manager, connections=1) as writer:
            await writer.write(snapshot(0))
            lane = writer._senders[0].lane
            before = lane.ready
            async with blocked(manager):
                lone = asyncio.create_task(writer.write(snapshot(1)))
                await asyncio.sleep(0.05)
                later = [asyncio.create_task(writer.write(snapshot(number))) for number in range(2, 6)]
                await asyncio.sleep(0)
                assert writer.statistics.pending == 5
                lone.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await lone
                assert before is not None
                assert not before.usable  # what the server makes of the row is unknown: nobody may read its answer
            assert await asyncio.gather(*later) == [True] * 4
            assert lane.ready is not before
            assert await writer.write(snapshot(6))
            assert (writer.statistics.refused, writer.statistics.pending) == (0, 0)
        assert {snapshot(n).snapshot_time for n in (0, 2, 3, 4, 5, 6)} <= {
            one.snapshot_time for one in await stored(manager)
        }

    async def test_a_storm_of_cancelled_calls_loses_no_acknowledged_row(self, manager: DatabaseManager):
        acknowledged: list[datetime] = []
        async with SnapshotWriter(manager, max_pending=32, max_batch=16) as writer:

            async def task(number: int) -> None:
                for step in range(20):
                    one = snapshot(number * 100 + step)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(0.002 * (number % 5)):
                            await writer.write(one)
                            acknowledged.append(one.snapshot_time)

            await asyncio.gather(*(task(number) for number in range(40)))
            assert await writer.write(snapshot(99_999))
            assert writer.statistics.pending == 0
        assert set(acknowledged) <= {row.snapshot_time for row in await stored(manager)}


class TestPressure:
    async def test_writers_wait_for_room_in_their_order(self, manager: DatabaseManager):
        order: list[int] = []
        async with SnapshotWriter(manager, connections=1, max_batch=2, max_pending=2) as writer:

            async def task(number: int) -> None:
                await writer.write(snapshot(number))
                order.append(number)

            await asyncio.gather(*(task(number) for number in range(30)))
        assert order == list(range(30))
        assert len(await stored(manager)) == 30

    async def test_who_finds_no_room_until_the_deadline_is_told_that_nothing_is_stored(self, manager: DatabaseManager):
        async with SnapshotWriter(manager, connections=1, max_batch=1, max_pending=1) as writer:
            await writer.write(snapshot(0))
            async with blocked(manager):
                writer._deadline = 0.3
                sent, waiting = await outcomes(writer.write(snapshot(1)), writer.write(snapshot(2)))
                writer._deadline = 60
            assert isinstance(sent, CommitOutcomeUnknown)
            assert isinstance(waiting, WriterOverloaded)
            await reached(lambda: writer._senders[0]._batch == ())
            assert await writer.write(snapshot(3))
        assert snapshot(2).snapshot_time not in {row.snapshot_time for row in await stored(manager)}

    async def test_a_row_whose_time_is_up_while_a_connection_is_made_is_not_sent(
        self, manager: DatabaseManager, monkeypatch: pytest.MonkeyPatch
    ):
        async with SnapshotWriter(manager, connections=1) as writer:
            await writer.write(snapshot(0))
            writer._deadline = 0.3
            sender = writer._senders[0]
            await sender.lane.release()  # as after a lost connection
            connect = sender.lane.connect

            async def slow():
                await asyncio.sleep(0.5)
                return await connect()

            monkeypatch.setattr(sender.lane, "connect", slow)
            with pytest.raises(WriterOverloaded):
                await writer.write(snapshot(1))
            monkeypatch.undo()
            writer._deadline = 60
            await reached(lambda: sender._batch == ())
            assert await writer.write(snapshot(2))
        assert snapshot(1).snapshot_time not in {row.snapshot_time for row in await stored(manager)}

    async def test_a_lock_that_passes_costs_time_and_no_row(self, database_url: str, manager: DatabaseManager):
        async with DatabaseManager(
            database_url, "testing", "migrations_only", timeouts=Timeouts(lock=0.1)
        ) as hasty, SnapshotWriter(hasty) as writer:  # fmt: skip
            await writer.write(snapshot(0))
            async with blocked(manager):
                tasks = [asyncio.create_task(writer.write(snapshot(number))) for number in range(1, 9)]
                await reached(lambda: writer.statistics.last_error == LockTimeout.__name__)
            assert await asyncio.gather(*tasks) == [True] * 8
            assert writer.statistics.retries

    async def test_a_pool_without_a_free_connection_is_waited_for(self, database_url: str):
        pool = PoolOptions(size=2, max_overflow=0, wait=0.05)
        async with DatabaseManager(database_url, "testing", "migrations_only", pool=pool) as small:
            await portfolios.ensure_partitions(small, NOON, NOON)
            async with SnapshotWriter(small, connections=2) as writer:
                await writer.write(snapshot(0))
                async with small.get_session() as session:
                    await session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
                    tasks = [asyncio.create_task(writer.write(snapshot(number))) for number in range(1, 40)]
                    await reached(lambda: writer.statistics.last_error == PoolExhausted.__name__)
                    assert any(task.done() for task in tasks)  # one connection is enough for some of them
                assert await asyncio.gather(*tasks) == [True] * 39


class TestClosing:
    async def test_what_was_given_is_stored_before_it_closes(self, manager: DatabaseManager):
        async with SnapshotWriter(manager, max_batch=5, max_pending=10) as writer:
            tasks = [asyncio.create_task(writer.write(snapshot(number))) for number in range(40)]
            await asyncio.sleep(0)
        assert await asyncio.gather(*tasks) == [True] * 40
        assert len(await stored(manager)) == 40
        with pytest.raises(WriterClosed):
            await writer.write(snapshot(41))
        await writer.close()
        with pytest.raises(WriterClosed):
            await writer.__aenter__()
        async with manager.get_session() as session:
            assert (await session.scalar(text("SELECT 1"))) == 1
        assert manager.engine.pool.status().count("Current Checked out connections: 0") == 1

    async def test_what_cannot_be_stored_in_time_fails_with_what_is_known_of_it(self, manager: DatabaseManager):
        writer = SnapshotWriter(manager, connections=1, max_batch=3, flush=0.2)
        async with writer, blocked(manager):
            tasks = [asyncio.create_task(writer.write(snapshot(number))) for number in range(6)]
            await asyncio.sleep(0.1)
            await writer.close()
            found = await outcomes(*tasks)
        kinds = [type(each) for each in found]
        assert kinds[0] in (CommitOutcomeUnknown, WriterClosed)
        assert kinds.count(CommitOutcomeUnknown) <= 3
        assert set(kinds) <= {CommitOutcomeUnknown, WriterClosed}

    async def test_a_writer_that_was_not_entered_writes_nothing(self, manager: DatabaseManager):
        with pytest.raises(WriterClosed):
            await SnapshotWriter(manager).write(snapshot())

    async def test_callers_get_an_answer_when_the_task_behind_the_writer_dies(
        self, manager: DatabaseManager, monkeypatch: pytest.MonkeyPatch
    ):
        async def broken(*args: Any, **options: Any) -> None:
            await asyncio.sleep(0)
            raise ZeroDivisionError

        async with SnapshotWriter(manager, connections=1) as writer:
            await writer.write(snapshot(0))
            monkeypatch.setattr(_sender, "insert", broken)
            async with asyncio.timeout(60):
                own, *found = await outcomes(*(writer.write(snapshot(number)) for number in range(1, 4)))
                assert type(own) is ZeroDivisionError  # it went alone, in its caller's own task
                assert {type(each) for each in found} <= {ServerFault, CommitOutcomeUnknown}
                with pytest.raises(WriterClosed):
                    await writer.write(snapshot(9))

    async def test_callers_get_an_answer_when_the_task_behind_the_writer_is_cancelled(self, manager: DatabaseManager):
        async with SnapshotWriter(manager, connections=1) as writer:
            await writer.write(snapshot(0))
            async with blocked(manager):
                task = asyncio.create_task(writer.write(snapshot(1)))
                await asyncio.sleep(0.05)
                writer._tasks[0].cancel()
                with pytest.raises(CommitOutcomeUnknown):
                    async with asyncio.timeout(60):
                        await task

    async def test_the_managers_own_errors_come_at_once(self, database_url: str):
        manager = DatabaseManager(database_url, "testing", "migrations_only")
        with pytest.raises(ManagerNotConnected):
            await SnapshotWriter(manager).__aenter__()
        await manager.connect()
        writer = SnapshotWriter(manager)
        async with writer:
            await writer.write(snapshot(0))

            def elsewhere() -> None:
                async def work() -> None:
                    with pytest.raises(WrongEventLoop):
                        await writer.write(snapshot(1))
                    with pytest.raises(WrongEventLoop):
                        await writer.close()
                    writer._closing = False

                asyncio.run(work())

            await asyncio.to_thread(elsewhere)
            assert await writer.write(snapshot(2))
        await manager.close()

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    async def test_the_child_of_a_fork_is_refused_and_the_parent_goes_on(self, manager: DatabaseManager):
        async with SnapshotWriter(manager) as writer:
            await writer.write(snapshot(0))
            child = os.fork()
            if child == 0:
                code = 1
                with suppress(StopIteration):
                    try:
                        writer.write(snapshot(1)).send(None)
                    except PandaDatabaseError as error:
                        code = 0 if type(error).__name__ == "ForkedProcess" else 2
                os._exit(code)
            assert os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, child, 0))[1]) == 0
            assert await writer.write(snapshot(2))


async def through(proxy: FaultProxy) -> DatabaseManager:
    manager = DatabaseManager(proxy.url, "testing", "migrations_only", timeouts=Timeouts(connect=30, probe=30, lock=30))
    await manager.connect()
    return manager


class TestBrokenConnections:
    async def test_rows_are_stored_once_however_often_the_connection_breaks(
        self, database_url: str, manager: DatabaseManager
    ):
        async with fault_proxy(database_url) as proxy:
            away = await through(proxy)
            async with SnapshotWriter(away) as writer:
                over = asyncio.Event()

                async def task(number: int) -> int:
                    step = 0
                    while not over.is_set():
                        await writer.write(snapshot(number * 10_000 + step))
                        step += 1
                    return step

                async def trouble() -> int:
                    async with asyncio.timeout(60):
                        while writer.statistics.retries < 5:
                            await asyncio.sleep(0.05)
                            proxy.cut()
                    over.set()
                    return 1

                await writer.write(snapshot(-1))
                written = sum(await asyncio.gather(trouble(), *(task(number) for number in range(16))))
                assert writer.statistics.refused == 0
            await away.close()
        assert len(await stored(manager)) == written

    async def test_an_answer_that_is_lost_is_asked_for_again(self, database_url: str, manager: DatabaseManager):
        """The statement is carried out and its caller does not hear of it."""
        async with fault_proxy(database_url) as proxy:
            away = await through(proxy)
            async with SnapshotWriter(away, connections=1) as writer:
                await writer.write(snapshot(0))
                async with blocked(manager):
                    task = asyncio.create_task(writer.write(snapshot(1)))
                    await wait_for_lock(database_url)  # it is on the server
                    proxy.freeze()
                await wait_for(
                    database_url, "(SELECT count(*) FROM portfolio_snapshots) = 2"
                )  # and the answer held back
                proxy.cut()
                proxy.thaw()
                assert await task is False
                assert (writer.statistics.retries, writer.statistics.present) == (1, 1)
            await away.close()
        assert len(await stored(manager)) == 2

    async def test_after_the_deadline_the_caller_knows_what_can_be_known(
        self, database_url: str, manager: DatabaseManager
    ):
        async with fault_proxy(database_url) as proxy:
            away = await through(proxy)
            async with SnapshotWriter(away, connections=1) as writer:
                await writer.write(snapshot(0))
                writer._deadline = 0.6
                proxy.freeze()
                loop = asyncio.get_running_loop()
                start = loop.time()
                (sent,) = await outcomes(writer.write(snapshot(1)))
                assert isinstance(sent, CommitOutcomeUnknown)
                assert 0.5 < loop.time() - start < 20
                proxy.cut()
                never = await outcomes(writer.write(snapshot(2)), writer.write(snapshot(3)))
                assert all(isinstance(each, ConnectionFailed | WriterOverloaded) for each in never), never
                assert not any(isinstance(each, CommitOutcomeUnknown) for each in never)
                proxy.thaw()
                writer._deadline = 60
                assert await writer.write(snapshot(4))
            await away.close()

    async def test_backends_that_are_ended_by_an_administrator_cost_no_row(self, manager: DatabaseManager):
        async with SnapshotWriter(manager) as writer:

            async def task(number: int) -> None:
                for step in range(20):
                    await writer.write(snapshot(number * 100 + step))

            async def trouble() -> None:
                for _ in range(5):
                    await asyncio.sleep(0.03)
                    with suppress(PandaDatabaseError):
                        await execute(
                            manager,
                            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                            " AND datname = current_database()",
                        )

            await asyncio.gather(trouble(), *(task(number) for number in range(16)))
        assert len(await stored(manager)) == 320

    async def test_two_writers_of_the_same_rows_store_each_once(self, manager: DatabaseManager):
        async with SnapshotWriter(manager) as one, SnapshotWriter(manager) as other:
            found = await asyncio.gather(
                *(writer.write(snapshot(number)) for number in range(200) for writer in (one, other))
            )
        assert found.count(True) == 200
        assert len(await stored(manager)) == 200


@pytest.fixture(scope="module")
def debian(component) -> Iterator[DebianServer]:
    component(binaries() is not None, "apt-get install postgresql")
    component(pgbouncer() is not None, "apt-get install pgbouncer")
    with debian_server(further={"synchronous_commit": "off"}) as server:
        yield server


@pytest.mark.component
class TestBehindPgBouncer:
    async def test_rows_are_stored_once_and_durably_while_it_is_killed_and_comes_again(self, debian: DebianServer):
        port = free_port()
        bouncer = pooled(debian, size=3, port=port, end=signal.SIGKILL)
        url = await asyncio.to_thread(bouncer.__enter__)
        timeouts = Timeouts(connect=1, probe=1)
        try:
            async with DatabaseManager(url, "testing", "auto", pgbouncer=True, timeouts=timeouts) as away:
                async with away.transaction() as session:
                    await portfolios.create(session, portfolio_id="p1", broker="paper", currency="INR", name="P")
                async with SnapshotWriter(away) as writer:
                    assert await writer.write(snapshot(-1))
                    assert await writer.write(snapshot(-1)) is False
                    (row,) = await (await writer._senders[0].lane.connect()).fetch(
                        "SELECT current_setting('synchronous_commit')", timeout=60
                    )
                    assert row[0] == "on"  # where the server's own setting is off
                    over = asyncio.Event()
                    working = [asyncio.create_task(write_until(over, writer, number)) for number in range(8)]
                    for _ in range(2):
                        await reached_more(writer, 100)
                        await asyncio.to_thread(bouncer.__exit__, None, None, None)
                        await reached(lambda: writer.statistics.last_error is not None)
                        bouncer = pooled(debian, size=3, port=port, end=signal.SIGKILL)
                        await asyncio.to_thread(bouncer.__enter__)
                    await reached_more(writer, 100)
                    over.set()
                    written = sum(await asyncio.gather(*working))
                    assert (writer.statistics.refused, writer.statistics.pending) == (0, 0)
                    assert writer.statistics.retries >= 2
                    # alone, and it goes while the row is under way
                    async with blocked(away):
                        lone = asyncio.create_task(writer.write(snapshot(-2)))
                        await asyncio.sleep(0.1)
                        await asyncio.to_thread(bouncer.__exit__, None, None, None)
                    bouncer = pooled(debian, size=3, port=port, end=signal.SIGKILL)
                    await asyncio.to_thread(bouncer.__enter__)
                    await lone
                assert len(await stored(away)) == written + 2
        finally:
            await asyncio.to_thread(bouncer.__exit__, None, None, None)


async def write_until(over: asyncio.Event, writer: SnapshotWriter, number: int) -> int:
    step = 0
    while not over.is_set():
        await writer.write(snapshot(number * 10_000 + step))
        step += 1
    return step


async def reached_more(writer: SnapshotWriter, rows: int) -> None:
    goal = writer.statistics.added + rows
    await reached(lambda: writer.statistics.added >= goal)


class TestRecord:
    async def test_one_statement_stores_a_row_of_a_month_that_is_there(self, manager: DatabaseManager):
        seen: list[str] = []
        async with manager.transaction() as session:
            assert await portfolios.record(session, snapshot())
            sync = (await session.connection()).sync_connection
            assert sync is not None
            event.listen(sync, "before_cursor_execute", lambda *given: seen.append(given[2]))
            assert await portfolios.record(session, snapshot(1))
        assert len(seen) == 1
        assert seen[0].startswith("INSERT INTO portfolio_snapshots")

    async def test_a_month_without_its_partition_is_made_in_the_callers_transaction(self, manager: DatabaseManager):
        later = snapshot(snapshot_time=datetime(2034, 2, 28, 23, tzinfo=UTC))
        async with manager.get_session() as one:
            assert await portfolios.record(one, snapshot())
            assert await portfolios.record(one, later)
            assert await portfolios.record(one, later) is False
            await one.rollback()
        assert await stored(manager) == []
        async with manager.get_session() as one:
            assert await one.scalar(text("SELECT to_regclass('portfolio_snapshots_y2034m02')")) is None

    async def test_a_detached_partition_is_told_and_the_transaction_goes_on(self, manager: DatabaseManager):
        await portfolios.ensure_partitions(manager, NOON, datetime(2026, 12, 1, tzinfo=UTC))
        await execute(manager, "ALTER TABLE portfolio_snapshots DETACH PARTITION portfolio_snapshots_y2026m12")
        async with manager.transaction() as session:
            with pytest.raises(PartitionMissing, match="detached"):
                await portfolios.record(session, snapshot(snapshot_time=datetime(2026, 12, 5, tzinfo=UTC)))
            assert await portfolios.record(session, snapshot())
        assert len(await stored(manager)) == 1

    async def test_a_portfolio_that_waits_to_be_flushed_is_there_for_its_snapshot(self, manager: DatabaseManager):
        async with manager.transaction() as session:
            session.add(Portfolio(portfolio_id="p9", broker="paper", currency="INR", name="Later"))
            assert await portfolios.record(session, snapshot(0, "p9"))

    async def test_the_same_snapshot_twice_is_one_row(self, manager: DatabaseManager):
        async with manager.transaction() as session:
            assert await portfolios.record(session, snapshot())
            assert await portfolios.record(session, snapshot()) is False
        async with manager.transaction() as session:
            assert await portfolios.record(session, snapshot()) is False
        assert len(await stored(manager)) == 1

    async def test_another_one_of_that_time_is_a_conflict_and_the_transaction_goes_on(self, manager: DatabaseManager):
        flat = {**POSITION, "market_value": POSITION["quantity"] * POSITION["last_price"]}
        async with manager.transaction() as session:
            await portfolios.record(session, snapshot())
            for other, differing in (
                (snapshot(cash=Decimal(1)), ("cash", "equity")),
                (snapshot(positions=[flat]), ("positions",)),
            ):
                with pytest.raises(SnapshotConflict) as refused:
                    await portfolios.record(session, other)
                assert refused.value.differing == differing
            assert await portfolios.record(session, snapshot(1))
        assert len(await stored(manager)) == 2

    async def test_a_conflict_says_no_amount(self, manager: DatabaseManager):
        async with manager.transaction() as session:
            await portfolios.record(session, snapshot())
            with pytest.raises(SnapshotConflict) as refused:
                await portfolios.record(session, snapshot(cash=Decimal("12345.678")))
        assert not re.search(r"\d{3}", refused.value.message)
