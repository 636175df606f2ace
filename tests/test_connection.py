"""What leaves a session: everything or nothing, and the connection clean; under errors, cancellation and faults."""

import asyncio
import inspect
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from core.config.options import MonitoringOptions, PoolOptions, RetryOptions, Timeouts
from core.database import schema
from core.database.connection import DatabaseManager
from core.database.embedded import EmbeddedServer
from core.database.errors import (
    AuthenticationFailed,
    CommitOutcomeUnknown,
    ConfigurationError,
    ConnectionLost,
    DatabaseNotFound,
    HostUnreachable,
    InvalidInput,
    InvalidUrl,
    LockTimeout,
    ManagerNotConnected,
    PandaDatabaseError,
    PoolExhausted,
    ReadOnlyViolation,
    SchemaMissing,
    SerializationFailure,
    SessionShared,
    StalePlan,
    StatementFault,
    StatementTimeout,
    TlsRefused,
    TransactionAborted,
    UniqueViolation,
    WrongEventLoop,
)
from core.database.health import pool_figures
from tests.cluster.proxy import fault_proxy
from tests.waiting import wait_for

INSERT = text("INSERT INTO users (username, hashed_password) VALUES (:name, 'h')")
COUNT = text("SELECT count(*) FROM users")


async def count(manager: DatabaseManager) -> int:
    async with manager.get_session(read_only=True) as session:
        return (await session.execute(COUNT)).scalar_one()


def in_use(manager: DatabaseManager) -> int:
    return pool_figures(manager.engine)["in_use"]


def test_the_whole_surface_is_the_documented_one() -> None:
    public = {name for name in vars(DatabaseManager) if not name.startswith("_")}
    assert public == {
        "connect", "close", "engine", "from_settings", "get_postgres_session", "get_session", "health_check", "init",
        "run_transaction", "shutdown", "transaction", "verify_connection", "wait_for_ready",
    }  # fmt: skip
    assert list(inspect.signature(DatabaseManager).parameters)[:3] == ["db_url", "environment", "schema_management"]


@pytest.mark.parametrize(
    ("kwargs", "choices"),
    [({"environment": "Production"}, "production"), ({"schema_management": "migration_only"}, "migrations_only")],
)
def test_a_mode_is_never_guessed(kwargs, choices) -> None:
    with pytest.raises(ConfigurationError, match=choices):
        DatabaseManager("postgresql://h/d", **kwargs)


class TestSessions:
    async def test_leaving_without_commit_stores_nothing(self, manager: DatabaseManager) -> None:
        async with manager.get_session() as session:
            await session.execute(INSERT, {"name": "a"})
        assert await count(manager) == 0
        assert in_use(manager) == 0

    async def test_commit_stores_and_the_session_goes_on(self, manager: DatabaseManager) -> None:
        async with manager.get_session() as session:
            await session.execute(INSERT, {"name": "a"})
            await session.commit()
            await session.execute(INSERT, {"name": "b"})
            await session.commit()
        assert await count(manager) == 2

    async def test_an_exception_rolls_back_and_passes_untouched(self, manager: DatabaseManager) -> None:
        with pytest.raises(KeyError):
            async with manager.get_session() as session:
                await session.execute(INSERT, {"name": "a"})
                raise KeyError("mine")
        assert await count(manager) == 0

    async def test_a_swallowed_error_never_commits(self, manager: DatabaseManager) -> None:
        async with manager.get_session() as session:
            await session.execute(INSERT, {"name": "a"})
            with pytest.raises(UniqueViolation) as caught:
                await session.execute(INSERT, {"name": "a"})
            assert caught.value.constraint is not None
            assert caught.value.table == "users"
            with pytest.raises(TransactionAborted):
                await session.commit()
        assert await count(manager) == 0
        assert in_use(manager) == 0

    async def test_an_error_swallowed_by_the_raw_driver_never_commits(self, manager: DatabaseManager) -> None:
        async with manager.get_session() as session:
            await session.execute(INSERT, {"name": "a"})
            raw = (await (await session.connection()).get_raw_connection()).driver_connection
            assert raw is not None
            with pytest.raises(Exception, match="does not exist"):
                await raw.execute("SELECT nothing FROM nowhere")
            with pytest.raises(TransactionAborted):
                await session.commit()
        assert await count(manager) == 0

    async def test_an_error_of_the_client_alone_refuses_the_commit_too(self, manager: DatabaseManager) -> None:
        async with manager.get_session() as session:
            await session.execute(INSERT, {"name": "a"})
            with pytest.raises(InvalidInput):
                await session.execute(text("SELECT CAST(:x AS integer)"), {"x": "not a number"})
            with pytest.raises(TransactionAborted):
                await session.commit()
        assert await count(manager) == 0

    async def test_rolling_back_to_a_savepoint_clears_the_error(self, manager: DatabaseManager) -> None:
        async with manager.get_session() as session:
            await session.execute(INSERT, {"name": "a"})
            with pytest.raises(UniqueViolation):
                async with manager.transaction(session=session):
                    await session.execute(INSERT, {"name": "a"})
            async with session.begin_nested():
                await session.execute(INSERT, {"name": "b"})
            await session.commit()
        assert await count(manager) == 2

    async def test_after_rollback_the_session_works_again(self, manager: DatabaseManager) -> None:
        async with manager.get_session() as session:
            with pytest.raises(StatementFault):
                await session.execute(text("SELECT nonsense"))
            await session.rollback()
            await session.execute(INSERT, {"name": "a"})
            await session.commit()
        assert await count(manager) == 1

    async def test_a_flush_that_failed_refuses_the_commit(self, manager: DatabaseManager) -> None:
        from core.database.models import User

        async with manager.get_session() as session:
            session.add_all([User(username="same", hashed_password="h"), User(username="same", hashed_password="h")])
            with pytest.raises(UniqueViolation):
                await session.flush()
            with pytest.raises(TransactionAborted):
                await session.commit()
        assert await count(manager) == 0

    async def test_two_tasks_in_one_session_get_one_clear_error_and_no_leak(self, manager: DatabaseManager) -> None:
        for _ in range(2):  # a cold pool, then a warm one
            with pytest.raises(SessionShared):
                async with manager.get_session() as session:
                    await asyncio.gather(*(session.execute(text("SELECT pg_sleep(0.1)")) for _ in range(3)))
            async with asyncio.timeout(60):
                while in_use(manager):
                    await asyncio.sleep(0.02)

    async def test_a_session_may_be_handed_to_another_task(self, manager: DatabaseManager) -> None:
        async with manager.get_session() as session:
            assert await asyncio.wait_for(session.scalar(text("SELECT 1")), 5) == 1
            assert await asyncio.create_task(session.scalar(text("SELECT 2"))) == 2

    async def test_an_error_in_the_handler_of_another_is_itself(self, manager: DatabaseManager) -> None:
        with pytest.raises(StatementFault) as first:
            async with manager.get_session() as session:
                await session.execute(text("SELECT nonsense"))
        with pytest.raises(InvalidInput):
            try:
                raise first.value
            except StatementFault:
                async with manager.get_session() as session:
                    await session.execute(INSERT, {"name": object()})


class TestReadOnly:
    async def test_a_write_is_a_typed_refusal(self, manager: DatabaseManager) -> None:
        for consistent in (False, True):
            async with manager.get_session(read_only=True, consistent=consistent) as session:
                with pytest.raises(ReadOnlyViolation):
                    await session.execute(INSERT, {"name": "a"})
        async with manager.get_session() as session:
            await session.execute(INSERT, {"name": "a"})
            await session.commit()

    async def test_single_reads_see_each_commit_and_consistent_ones_one_snapshot(self, manager) -> None:
        options = {"read_only": True, "isolation_level": "REPEATABLE READ"}
        async with manager.get_session(read_only=True) as single, manager.transaction(**options) as snapshot:
            assert await single.scalar(COUNT) == await snapshot.scalar(COUNT) == 0
            async with manager.transaction() as writer:
                await writer.execute(INSERT, {"name": "a"})
            assert await single.scalar(COUNT) == 1
            assert await snapshot.scalar(COUNT) == 0

    async def test_a_failed_read_leaves_the_session_usable(self, manager: DatabaseManager) -> None:
        async with manager.get_session(read_only=True) as session:
            with pytest.raises(StatementFault):
                await session.execute(text("SELECT nonsense"))
            assert await session.scalar(text("SELECT 1")) == 1

    async def test_nothing_of_an_isolation_level_stays_on_the_connection(self, manager: DatabaseManager) -> None:
        async with manager.transaction(isolation_level="SERIALIZABLE", read_only=True) as session:
            assert await session.scalar(text("SHOW transaction_isolation")) == "serializable"
        async with manager.get_session() as session:
            assert await session.scalar(text("SHOW transaction_isolation")) == "read committed"
            assert await session.scalar(text("SHOW transaction_read_only")) == "off"


class TestTransactions:
    async def test_commits_on_success_and_rolls_back_otherwise(self, manager: DatabaseManager) -> None:
        async with manager.transaction() as session:
            await session.execute(INSERT, {"name": "a"})
        with pytest.raises(ZeroDivisionError):
            async with manager.transaction() as session:
                await session.execute(INSERT, {"name": "b"})
                _ = 1 / 0
        assert await count(manager) == 1

    async def test_swallowing_an_error_inside_is_told_at_the_end(self, manager: DatabaseManager) -> None:
        with pytest.raises(TransactionAborted):
            async with manager.transaction() as session:
                await session.execute(INSERT, {"name": "a"})
                with pytest.raises(StatementFault):
                    await session.execute(text("SELECT nonsense"))
        assert await count(manager) == 0

    async def test_a_savepoint_takes_no_isolation_level(self, manager: DatabaseManager) -> None:
        async with manager.get_session() as session:
            with pytest.raises(ConfigurationError):
                manager.transaction(session=session, isolation_level="SERIALIZABLE")

    async def test_increments_under_serializable_are_all_counted(self, manager: DatabaseManager) -> None:
        async with manager.transaction() as session:
            await session.execute(text("CREATE TABLE counter (n int)"))
            await session.execute(text("INSERT INTO counter VALUES (0)"))

        async def increment(session: AsyncSession) -> None:
            value = await session.scalar(text("SELECT n FROM counter"))
            await asyncio.sleep(0.005)
            await session.execute(text("UPDATE counter SET n = :n"), {"n": value + 1})

        work = (manager.run_transaction(increment, isolation_level="SERIALIZABLE", max_attempts=50) for _ in range(10))
        await asyncio.gather(*work)
        async with manager.get_session() as session:
            assert await session.scalar(text("SELECT n FROM counter")) == 10

    async def test_attempts_are_bounded_and_the_last_error_comes_out(self, manager: DatabaseManager) -> None:
        attempts = 0

        async def work(session: AsyncSession) -> None:
            nonlocal attempts
            attempts += 1
            await session.execute(INSERT, {"name": f"n{attempts}"})
            await session.execute(text("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$"))

        with pytest.raises(SerializationFailure):
            await manager.run_transaction(work, max_attempts=3)
        assert attempts == 3
        assert await count(manager) == 0

    async def test_what_is_not_retryable_runs_once(self, manager: DatabaseManager) -> None:
        attempts = 0

        async def work(session: AsyncSession) -> None:
            nonlocal attempts
            attempts += 1
            await session.execute(text("SELECT nonsense"))

        with pytest.raises(StatementFault):
            await manager.run_transaction(work)
        assert attempts == 1

    async def test_work_that_committed_itself_is_never_run_again(self, manager: DatabaseManager) -> None:
        async def work(session: AsyncSession) -> None:
            await session.execute(INSERT, {"name": "once"})
            await session.commit()
            await session.execute(text("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$"))

        with pytest.raises(SerializationFailure):
            await manager.run_transaction(work)
        assert await count(manager) == 1

    async def test_a_plan_gone_stale_is_retried(self, manager: DatabaseManager, database_url: str) -> None:
        async with manager.transaction() as session:
            await session.execute(text("CREATE TABLE shape (a int)"))

        async def read(session: AsyncSession) -> int:
            return len((await session.execute(text("SELECT * FROM shape"))).keys())

        assert await manager.run_transaction(read) == 1
        async with DatabaseManager(database_url, "testing", "migrations_only") as other:
            async with other.transaction() as session:
                await session.execute(text("ALTER TABLE shape ADD COLUMN b int"))
        assert await manager.run_transaction(read) == 2

    async def test_a_stale_plan_outside_a_retry_is_typed(self, manager: DatabaseManager, database_url: str) -> None:
        async with manager.transaction() as session:
            await session.execute(text("CREATE TABLE shape (a int)"))
        async with manager.get_session() as session:
            await session.execute(text("SELECT * FROM shape"))
        async with DatabaseManager(database_url, "testing", "migrations_only") as other:
            async with other.transaction() as session:
                await session.execute(text("ALTER TABLE shape ADD COLUMN b int"))
        async with manager.get_session() as session:
            with pytest.raises(StalePlan):
                await session.execute(text("SELECT * FROM shape"))


class TestLimits:
    async def test_statement_lock_and_pool_limits_are_typed(self, database_url: str) -> None:
        limits = Timeouts(statement=0.3, lock=0.1)
        pool = PoolOptions(size=2, max_overflow=0, wait=0.2)
        async with DatabaseManager(database_url, "testing", "migrations_only", timeouts=limits, pool=pool) as manager:
            async with manager.get_session() as session:
                with pytest.raises(StatementTimeout):
                    await session.execute(text("SELECT pg_sleep(5)"))
            async with manager.get_session() as holder, manager.get_session() as waiter:
                await holder.execute(text("LOCK TABLE users"))
                with pytest.raises(LockTimeout):
                    await waiter.execute(text("LOCK TABLE users"))
                with pytest.raises(PoolExhausted):
                    async with manager.get_session() as third:
                        await third.execute(text("SELECT 1"))
            assert in_use(manager) == 0

    async def test_an_idle_transaction_is_ended_and_its_commit_refused(self, database_url: str) -> None:
        limits = Timeouts(idle_in_transaction=0.2)
        async with DatabaseManager(database_url, "testing", "migrations_only", timeouts=limits) as manager:
            async with manager.get_session() as session:
                await session.execute(INSERT, {"name": "a"})
                async with asyncio.timeout(60), manager.get_session(read_only=True) as other:
                    while await other.scalar(text("SELECT count(*) FROM pg_locks WHERE relation = 'users'::regclass")):
                        await asyncio.sleep(0.02)
                with pytest.raises(ConnectionLost):
                    await session.commit()
            assert await count(manager) == 0

    async def test_a_pool_beyond_the_servers_limit_is_refused_where_money_is_real(self, database_url: str) -> None:
        pool = PoolOptions(size=100, processes=8)
        with pytest.raises(ConfigurationError, match="920"):
            await DatabaseManager(database_url, "production", "migrations_only", pool=pool).connect()
        async with DatabaseManager(database_url, "testing", "migrations_only", pool=pool) as manager:
            assert any("connections" in warning for warning in (await manager.health_check())["warnings"])

    async def test_a_session_open_for_long_is_logged_with_its_place(self, database_url, caplog) -> None:
        options = MonitoringOptions(long_session=0.05)
        async with DatabaseManager(database_url, "testing", "migrations_only", monitoring=options) as manager:
            with caplog.at_level(logging.WARNING, "core.database"):
                async with manager.get_session():
                    await asyncio.sleep(0.1)
        record = next(item for item in caplog.records if item.message == "long session")
        assert "test_connection.py" in record.opened_at


@pytest.mark.usefixtures("settled")
class TestConnecting:
    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (lambda url: re.sub("//[^@]+@", "//nobody_here:wrong@", url), AuthenticationFailed),
            (lambda url: url.replace("/panda_test_", "/gone_"), DatabaseNotFound),
            (lambda url: "postgresql://panda@/panda?host=/nowhere", HostUnreachable),
            (lambda url: "postgresql://u:secretpw@127.0.0.1:1/d", HostUnreachable),
            (lambda url: "postgresql://u:secretpw@no-such-host.invalid/d", HostUnreachable),
        ],
    )
    async def test_each_way_to_fail_has_its_class_and_a_mend(self, database_url, change, expected) -> None:
        manager = DatabaseManager(change(database_url), "testing", "migrations_only")
        with pytest.raises(expected) as caught:
            await manager.connect()
        assert caught.value.hint
        assert "secretpw" not in str(caught.value)
        assert (await manager.health_check())["status"] == "unhealthy"

    async def test_a_url_that_cannot_work_is_refused_before_anything_is_sent(self) -> None:
        with pytest.raises(InvalidUrl):
            DatabaseManager("postgresql://u:p@ss@h/d")

    async def test_before_connect_and_after_close_sessions_are_refused(self, database_url: str) -> None:
        manager = DatabaseManager(database_url, "testing", "migrations_only")
        for _ in range(2):
            with pytest.raises(ManagerNotConnected):
                manager.get_session()
            assert (await manager.health_check())["status"] == "unhealthy"
            await manager.connect()
            await manager.connect()
            assert await manager.verify_connection()
            await manager.close()
            await manager.close()

    async def test_the_originals_names_work(self, database_url: str) -> None:
        manager = DatabaseManager(database_url, "testing", "migrations_only")
        await manager.init()
        async with manager.get_postgres_session() as session:
            assert await session.scalar(text("SELECT 1")) == 1
        assert await manager.verify_connection()
        await manager.shutdown()
        assert not await manager.verify_connection()

    async def test_waiting_for_ready_is_really_bounded(self) -> None:
        manager = DatabaseManager("postgresql://127.0.0.1:1/d", "testing", "migrations_only")
        started = time.monotonic()
        with pytest.raises(HostUnreachable):
            await manager.wait_for_ready(timeout=0.5)
        assert time.monotonic() - started < 20

    async def test_waiting_for_ready_does_not_wait_for_a_wrong_password(self, database_url: str) -> None:
        manager = DatabaseManager(
            re.sub("//[^@]+@", "//nobody_here:wrong@", database_url), "testing", "migrations_only"
        )
        started = time.monotonic()
        with pytest.raises(AuthenticationFailed):
            await manager.wait_for_ready(timeout=120)
        assert time.monotonic() - started < 60

    @pytest.mark.parametrize(
        ("answer", "expected"), [(b"", HostUnreachable), (b"E", HostUnreachable), (b"N", TlsRefused)]
    )
    async def test_a_server_that_goes_away_while_tls_is_asked_for_has_not_refused_it(self, answer, expected) -> None:
        """Only a server that says no will say so again; one that is being restarted is waited for."""

        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(8)
            writer.write(answer)
            writer.close()

        async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            url = f"postgresql://panda:x@127.0.0.1:{port}/panda?sslmode=require"
            with pytest.raises(expected) as caught:
                await DatabaseManager(url, "testing", "migrations_only").connect()
        assert caught.value.retryable == (expected is HostUnreachable)

    async def test_waiting_for_ready_sees_the_schema_arrive(self, empty_database: str) -> None:
        waiter = DatabaseManager(empty_database, "testing", "migrations_only")
        with pytest.raises(SchemaMissing):
            await waiter.connect()
        task = asyncio.create_task(waiter.wait_for_ready(timeout=30))
        async with DatabaseManager(empty_database, "testing", "auto"):
            await task
        await waiter.close()

    async def test_connecting_leaves_nothing_open_when_it_fails(self, empty_database, server_url) -> None:
        for _ in range(3):
            with pytest.raises(SchemaMissing):
                await DatabaseManager(empty_database, "production", "auto").connect()
        name = empty_database.split("/")[3].split("?")[0]
        await wait_for(server_url, f"NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = '{name}')")

    async def test_nothing_is_open_to_use_before_connect_is_done_or_left_by_a_close_meanwhile(
        self, database_url, monkeypatch
    ) -> None:
        preparing, go_on = asyncio.Event(), asyncio.Event()
        prepare = schema.prepare

        async def held_up(*args: Any, **options: Any) -> None:
            preparing.set()
            await go_on.wait()
            await prepare(*args, **options)

        monkeypatch.setattr(schema, "prepare", held_up)
        manager = DatabaseManager(database_url, "testing", "migrations_only")
        connecting = asyncio.create_task(manager.connect())
        await preparing.wait()
        assert (await manager.health_check())["status"] == "unhealthy"
        with pytest.raises(ManagerNotConnected):
            manager.get_session()
        made = manager._life._made
        assert made is not None
        await manager.close()
        go_on.set()
        with pytest.raises(ManagerNotConnected, match="closed while it was connecting"):
            await connecting
        assert pool_figures(made.writer)["open"] == 0
        await manager.connect()
        assert await manager.verify_connection()
        await manager.close()

    async def test_another_event_loop_is_refused_at_once(self, manager: DatabaseManager) -> None:
        engine = manager.engine
        outcomes: list[object] = []

        async def use() -> None:
            for attempt in (manager.get_session, lambda: engine.connect()):
                try:
                    async with attempt() as session:
                        await session.execute(text("SELECT 1"))
                except PandaDatabaseError as error:
                    outcomes.append(type(error))

        thread = threading.Thread(target=lambda: asyncio.run(use()))
        thread.start()
        await asyncio.to_thread(thread.join)
        assert outcomes == [WrongEventLoop, WrongEventLoop]
        assert await count(manager) == 0

    def test_a_forked_child_is_refused_and_the_parent_unharmed(self, database_url_sync: str) -> None:
        script = """
            import asyncio, os, sys
            from sqlalchemy import text
            from core.database.connection import DatabaseManager
            from core.database.errors import ForkedProcess

            manager = DatabaseManager(sys.argv[1], "testing", "migrations_only")

            async def child():
                try:
                    manager.get_session()
                except ForkedProcess:
                    pass
                else:
                    return 1
                await manager.connect()
                async with manager.get_session() as session:
                    answer = await session.scalar(text("SELECT 7"))
                await manager.close()
                return 0 if answer == 7 else 2

            async def parent():
                await manager.connect()
                async with manager.get_session() as session:
                    await session.execute(text("SELECT 1"))
                pid = os.fork()
                if pid == 0:
                    code = 3
                    asyncio.events._set_running_loop(None)
                    try:
                        code = asyncio.run(child())
                    finally:
                        os._exit(code)
                _, status = await asyncio.to_thread(os.waitpid, pid, 0)
                async with manager.get_session() as session:
                    assert await session.scalar(text("SELECT 8")) == 8
                await manager.close()
                return os.waitstatus_to_exitcode(status)

            sys.exit(asyncio.run(parent()))
        """
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(script), database_url_sync]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")


class TestFaults:
    @pytest.mark.builtin_server(reason="the proxy must see the COMMIT that it loses, and TLS hides it")
    async def test_a_lost_reply_to_commit_is_an_unknown_outcome_and_never_retried(self, database_url: str) -> None:
        async with fault_proxy(database_url) as proxy:
            async with DatabaseManager(proxy.url, "testing", "migrations_only") as manager:
                runs = 0

                async def work(session: AsyncSession) -> None:
                    nonlocal runs
                    runs += 1
                    proxy.lose_commit_reply = True
                    await session.execute(INSERT, {"name": "unknown"})

                with pytest.raises(CommitOutcomeUnknown):
                    await manager.run_transaction(work)
                proxy.lose_commit_reply = False
                assert (runs, proxy.commits_lost) == (1, 1)
                assert await count(manager) == 1  # the server did store it: a retry would have stored two
                assert in_use(manager) == 0

    async def test_a_connection_cut_before_commit_is_retried_and_stored_once(self, database_url: str) -> None:
        async with fault_proxy(database_url) as proxy:
            async with DatabaseManager(proxy.url, "testing", "migrations_only") as manager:
                runs = 0

                async def work(session: AsyncSession) -> None:
                    nonlocal runs
                    runs += 1
                    await session.execute(INSERT, {"name": "once"})
                    if runs == 1:
                        proxy.cut()
                    await session.execute(text("SELECT 1"))

                await manager.run_transaction(work)
                assert runs == 2
                assert await count(manager) == 1

    async def test_killed_while_idle_is_not_noticed_by_the_next_session(self, database_url: str) -> None:
        async with fault_proxy(database_url) as proxy:
            async with DatabaseManager(proxy.url, "testing", "migrations_only") as manager:
                assert await count(manager) == 0
                proxy.cut()
                await asyncio.sleep(0.05)
                assert await count(manager) == 0
                async with manager.transaction() as session:
                    await session.execute(INSERT, {"name": "a"})

    async def test_leaving_over_a_frozen_network_is_bounded_and_leaks_nothing(self, database_url: str) -> None:
        limits = Timeouts(cleanup=0.3, idle_in_transaction=60)
        async with fault_proxy(database_url) as proxy:
            async with DatabaseManager(proxy.url, "testing", "migrations_only", timeouts=limits) as manager:
                started = time.monotonic()
                async with manager.get_session() as session:
                    await session.execute(INSERT, {"name": "a"})
                    proxy.freeze()
                assert time.monotonic() - started < 4.5  # where nothing else is said it is five
                assert in_use(manager) == 0
                proxy.thaw()
                assert await count(manager) == 0

    async def test_an_idle_connection_on_a_dead_network_is_probed_and_replaced(self, database_url: str) -> None:
        async with fault_proxy(database_url) as proxy, fault_proxy(database_url) as other:
            url = proxy.url.replace(f":{proxy.port}", f":{proxy.port},localhost:{other.port}")
            url += "&target_session_attrs=any"
            pool = PoolOptions(probe_after=0)
            limits = Timeouts(probe=0.2, connect=1.0)
            async with DatabaseManager(url, "testing", "migrations_only", timeouts=limits, pool=pool) as manager:
                assert await count(manager) == 0
                proxy.freeze()
                started = time.monotonic()
                assert await count(manager) == 0  # by the other host
                assert time.monotonic() - started < 20
                proxy.thaw()

    async def test_one_frozen_host_does_not_hide_the_healthy_one(self, database_url: str) -> None:
        async with fault_proxy(database_url) as frozen, fault_proxy(database_url) as healthy:
            frozen.freeze()
            url = frozen.url.replace(f":{frozen.port}", f":{frozen.port},localhost:{healthy.port}")
            started = time.monotonic()
            async with DatabaseManager(url, "testing", "migrations_only", timeouts=Timeouts(connect=1.0)) as manager:
                assert await count(manager) == 0
            assert time.monotonic() - started < 4.5
            frozen.thaw()

    async def test_health_answers_in_time_over_a_frozen_network(self, database_url: str) -> None:
        limits = Timeouts(health=0.3, cleanup=0.3)
        async with fault_proxy(database_url) as proxy:
            async with DatabaseManager(proxy.url, "testing", "migrations_only", timeouts=limits) as manager:
                await self.healthy(manager)
                proxy.freeze()
                started = time.monotonic()
                report = await manager.health_check()
                assert (report["status"], report["error"]) == ("unhealthy", "no answer within 0.3 s")
                assert time.monotonic() - started < 15
                proxy.thaw()
                await self.healthy(manager)

    async def healthy(self, manager: DatabaseManager) -> None:
        """In three tenths of a second, as soon as the machine leaves it that."""
        async with asyncio.timeout(60):
            while (await manager.health_check())["status"] != "healthy":
                await asyncio.sleep(0.02)

    async def test_a_storm_of_cancellations_loses_no_slot_and_no_acknowledged_row(self, manager) -> None:
        acknowledged: list[str] = []

        async def write(name: str, patience: float) -> None:
            try:
                async with asyncio.timeout(patience):
                    async with manager.transaction() as session:
                        await session.execute(INSERT, {"name": name})
                    acknowledged.append(name)
            except (TimeoutError, PoolExhausted):
                pass

        for batch in range(8):
            if batch < 4 or not acknowledged:  # more patiently where the machine has let none through
                await asyncio.gather(
                    *(write(f"w{batch}-{n}", 0.005 + n * 0.02 * 2 ** max(0, batch - 3)) for n in range(40))
                )
        async with asyncio.timeout(60):
            while in_use(manager):
                await asyncio.sleep(0.02)
        async with manager.get_session(read_only=True) as session:
            stored = set((await session.scalars(text("SELECT username FROM users"))).all())
        assert set(acknowledged) <= stored
        assert acknowledged

    async def test_cancellation_passes_as_itself(self, manager: DatabaseManager) -> None:
        async def sleep() -> None:
            async with manager.get_session() as session:
                await session.execute(text("SELECT pg_sleep(10)"))

        task = asyncio.create_task(sleep())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert in_use(manager) == 0

    async def test_the_callers_own_timeout_passes_as_itself(self, manager: DatabaseManager) -> None:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.1), manager.get_session() as session:
                await session.execute(text("SELECT pg_sleep(10)"))
        assert not isinstance(caught.value, PandaDatabaseError)
        assert in_use(manager) == 0

    async def test_a_blip_of_the_whole_server_is_survived_by_retrying(self, database_url: str) -> None:
        retry = RetryOptions(max_attempts=20, deadline=20)
        async with fault_proxy(database_url) as proxy:
            async with DatabaseManager(proxy.url, "testing", "migrations_only", retry=retry) as manager:
                assert await count(manager) == 0

                async def blip() -> None:
                    proxy.freeze()
                    proxy.cut()
                    await asyncio.sleep(0.3)
                    proxy.thaw()

                async def work(session: AsyncSession) -> None:
                    await session.execute(INSERT, {"name": "after"})

                await asyncio.gather(blip(), manager.run_transaction(work))
                assert await count(manager) == 1


class TestCancelledCleanup:
    async def test_cancelling_the_rollback_itself_is_bounded_and_leaks_nothing(self, database_url: str) -> None:
        limits = Timeouts(cleanup=60, idle_in_transaction=60)
        pool = PoolOptions(size=1, max_overflow=0, wait=30)
        async with fault_proxy(database_url) as proxy:
            async with DatabaseManager(proxy.url, "testing", "migrations_only", timeouts=limits, pool=pool) as manager:
                for _ in range(3):

                    async def leave() -> None:
                        async with manager.get_session() as session:
                            await session.execute(INSERT, {"name": "a"})
                            proxy.freeze()

                    started = time.monotonic()
                    task = asyncio.create_task(leave())
                    await asyncio.sleep(0.3)
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                    assert time.monotonic() - started < 30
                    assert in_use(manager) == 0
                    proxy.thaw()
                assert await count(manager) == 0

    async def test_cancelling_during_commit_is_cancellation_and_leaks_nothing(self, database_url: str) -> None:
        async with fault_proxy(database_url) as proxy:
            async with DatabaseManager(proxy.url, "testing", "migrations_only") as manager:

                async def write() -> None:
                    async with manager.transaction() as session:
                        await session.execute(INSERT, {"name": "a"})
                        proxy.freeze()

                task = asyncio.create_task(write())
                await asyncio.sleep(0.3)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert in_use(manager) == 0
                proxy.thaw()


class TestBuiltInServer:
    async def test_a_manager_survives_kill_9_of_its_server_and_finds_its_rows(self, open_folder: Path) -> None:
        server = EmbeddedServer(open_folder / "killed")
        url = f"embedded://{server.directory}"
        try:
            async with DatabaseManager(url, "testing", "auto") as manager:
                async with manager.transaction() as session:
                    await session.execute(INSERT, {"name": "before"})
                pid = server.status().pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)

                async def work(session: AsyncSession) -> None:
                    await session.execute(INSERT, {"name": "after"})

                await manager.run_transaction(work)
                assert await count(manager) == 2
                assert server.status().pid != pid
            assert not server.status().running  # the last user has left
        finally:
            server.stop()

    async def test_two_managers_share_it_and_the_last_one_stops_it(self, open_folder: Path) -> None:
        server = EmbeddedServer(open_folder / "shared")
        url = f"embedded://{server.directory}"
        async with DatabaseManager(url, "testing", "auto") as first:
            async with DatabaseManager(url, "testing", "auto") as second:
                assert await count(second) == 0
            assert await count(first) == 0
            assert server.status().running
        assert not server.status().running

        async def given_up() -> None:
            connecting = asyncio.create_task(DatabaseManager(url, "testing", "auto").connect())
            await asyncio.sleep(0.02)  # the server takes several times as long to start
            connecting.cancel()

        await asyncio.to_thread(asyncio.run, given_up())
        assert not server.status().running
