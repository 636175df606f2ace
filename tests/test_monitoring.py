"""What is measured is what happened; what is logged holds no parameter; a bad hook harms nothing."""

import asyncio
import gc
import json
import logging
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from contextvars import ContextVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from core.config.options import MonitoringOptions, PoolOptions, RetryOptions, Timeouts
from core.database import bulk
from core.database.connection import DatabaseManager, internals
from core.database.errors import (
    CommitOutcomeUnknown,
    ConfigurationError,
    ConnectionLost,
    PoolExhausted,
    ReadOnlyViolation,
    SerializationFailure,
    StatementFault,
    TransactionAborted,
    UniqueViolation,
)
from core.database.monitoring import (
    SHOWN,
    CheckoutEvent,
    Delivery,
    Event,
    Hook,
    QueryEvent,
    QueryMonitor,
    RetryEvent,
    SessionEvent,
    Tally,
    TransactionEvent,
    operation,
    without_literals,
)
from tests.cluster.proxy import fault_proxy
from tests.waiting import wait_for_session

INSERT = text("INSERT INTO users (username, hashed_password) VALUES (:name, 'h')")


def monitor(**options) -> QueryMonitor:
    return QueryMonitor(MonitoringOptions(**options))


def settled(subject: QueryMonitor) -> None:
    """Wait, without an event loop, until the hooks have been told everything."""
    assert asyncio.run(subject.drained(60))


def watched(url: str, seen: list[Event], **options) -> DatabaseManager:
    """A manager whose every event lands in `seen`."""
    return DatabaseManager(url, "testing", "migrations_only", hooks=[Hook(seen.append)], **options)


@settings(deadline=None)
@given(st.lists(st.floats(min_value=1e-6, max_value=300), min_size=1, max_size=200))
def test_figures_agree_with_the_exact_ones(times: list[float]) -> None:
    subject = monitor()
    for seconds in times:
        subject.record("S", seconds, None)
    (row,) = subject.statistics()
    ordered = sorted(times)
    assert row.count == len(times)
    assert row.total == pytest.approx(sum(times))
    assert row.mean == pytest.approx(sum(times) / len(times))
    assert row.max == ordered[-1]
    for share, value in ((0.5, row.p50), (0.95, row.p95), (0.99, row.p99)):
        exact = ordered[max(0, -int(-share * len(times) // 1) - 1)]
        assert value <= max(exact * 1.1, 10e-6) + 1e-12
        assert value >= min(exact / 1.1, row.max) - 1e-12 or exact < 10e-6


def test_memory_is_bounded_and_the_least_recent_statement_goes() -> None:
    subject = monitor(max_statements=3)
    for name in ("a", "b", "c", "a", "d"):
        subject.record(name, 0.1, None)
    assert {row.statement for row in subject.statistics()} == {"a", "c", "d"}
    subject.reset()
    assert subject.statistics() == ()


def test_errors_are_counted_and_told_to_hooks_by_name() -> None:
    seen: list[QueryEvent] = []
    subject = QueryMonitor(MonitoringOptions(), [seen.append])
    subject.record("  select 1", 0.1, ValueError("secret"))
    settled(subject)
    assert subject.statistics()[0].errors == 1
    assert (seen[0].error, seen[0].operation) == ("ValueError", "SELECT")
    assert "secret" not in repr(seen)


def test_a_hook_that_raises_is_logged_once_and_the_others_go_on(caplog) -> None:
    seen: list[QueryEvent] = []

    def broken(event: QueryEvent) -> None:
        raise RuntimeError("boom")

    subject = QueryMonitor(MonitoringOptions(), [broken, seen.append])
    with caplog.at_level(logging.WARNING, "core.database"):
        subject.record("S", 0.1, None)
        subject.record("S", 0.1, None)
        settled(subject)
    assert len(seen) == 2
    assert subject.hook_figures()[broken.__qualname__] == (0, 2)
    assert [record.message for record in caplog.records] == ["query hook failed"]
    subject.remove_hook(broken)
    subject.add_hook(broken)


async def test_every_kind_of_statement_of_a_manager_is_seen(database_url: str) -> None:
    seen: list[QueryEvent] = []
    subject = QueryMonitor(MonitoringOptions(), [seen.append])
    async with DatabaseManager(database_url, "testing", "migrations_only", monitor=subject) as manager:
        subject.reset()
        seen.clear()
        async with manager.get_session(read_only=True) as session:
            await session.execute(text("SELECT 1"))
        async with manager.transaction() as session:
            await session.execute(
                text("INSERT INTO users (username, hashed_password) VALUES (:n, 'h')"), [{"n": "a"}, {"n": "b"}]
            )
            table = await bulk.stage(session, {"a": "int"})
            await bulk.copy_records(session, table, [(1,), (2,)], columns=["a"])
        async with manager.get_session() as session:
            with pytest.raises(StatementFault):
                await session.execute(text("SELECT nonsense"))
    assert [(event.failure, event.sqlstate) for event in seen if event.error] == [("StatementFault", "42703")]
    kinds = [(event.operation, event.read_only) for event in seen]
    for expected in [("SELECT", True), ("BEGIN", False), ("INSERT", False), ("COPY", False), ("COMMIT", False)]:
        assert expected in kinds
    statements = {row.statement: row for row in subject.statistics()}
    assert statements["SELECT 1"].count == 1
    assert statements["SELECT 1"].total > 0


async def test_the_slow_query_log_names_the_statement_and_no_parameter(database_url: str, caplog) -> None:
    options = MonitoringOptions(slow_query=0.05)
    async with DatabaseManager(database_url, "testing", "migrations_only", monitoring=options) as manager:
        with caplog.at_level(logging.WARNING, "core.database"):
            async with manager.get_session() as session:
                statement = text("SELECT pg_sleep(0.1),\n :canary")
                await session.execute(statement.bindparams(canary="c4n4ry"))
                await session.execute(text("SELECT pg_sleep(0.1) /* n0te */, 'l1teral', 4711"))
    record, raw = [item for item in caplog.records if item.message == "slow query"]
    assert record.statement.startswith("SELECT pg_sleep(?), $1")
    assert record.seconds >= 0.1
    assert "c4n4ry" not in repr(vars(record))
    assert raw.statement == "SELECT pg_sleep(?) , ?, ?"
    assert not {"l1teral", "n0te", "4711"} & set(repr(vars(raw)).split("'"))


async def test_monitoring_can_be_turned_off(database_url: str) -> None:
    subject = monitor(enabled=False)
    options = MonitoringOptions(enabled=False)
    async with DatabaseManager(
        database_url, "testing", "migrations_only", monitoring=options, monitor=subject
    ) as manager:
        async with manager.get_session() as session:
            await session.execute(text("SELECT 1"))
    assert subject.statistics() == ()


class TestStatements:
    @pytest.mark.parametrize(
        ("statement", "shown"),
        [
            ("SELECT 'it''s', E'a\\'b', $$c$$, $t$ d $$ $t$, 1.5e-3, 0xFF, $1", "SELECT ?, …, $1"),
            ('SELECT "a\'b", col1 FROM t2 WHERE x=-5', 'SELECT "a\'b", col1 FROM t2 WHERE x=-?'),
            ("SELECT 1 -- 'x\n, 2 /* a /* b */ 'c' */ + 3", "SELECT ? , ? + ?"),
            ("SELECT 'never ends", "SELECT ? …"),
            ("SELECT $x$never ends", "SELECT ? …"),
            ("SELECT 'standard\\', c4n4ry, '", "SELECT ? …"),
            ("SET app.token = hunter2", "SET app.token = ?"),
            ("SELECT /* never ends 'a'", "SELECT"),
            ("SELECT U&'\\0061', b'01', n'x'", "SELECT ?, …"),
            ("ALTER ROLE x PASSWORD 'hunter2'", "ALTER ROLE x PASSWORD ?"),
        ],
    )
    def test_literals_and_comments_are_not_shown(self, statement: str, shown: str) -> None:
        assert without_literals(statement) == shown

    @settings(deadline=None)
    @given(st.text(max_size=40))
    def test_no_text_of_a_string_survives(self, secret: str) -> None:
        marked = f"s3cret{secret}s3cret"
        quoted = marked.replace("'", "''")
        escaped = marked.replace("\\", "\\\\").replace("'", "\\'")
        for literal in (f"'{quoted}'", f"E'{escaped}'", f"$q9${marked.replace('$q9$', '')}$q9$"):
            assert (
                without_literals(f"SELECT a FROM t WHERE b = {literal} AND c = 1")
                == "SELECT a FROM t WHERE b = ? AND c = ?"
            )

    @settings(deadline=None)
    @given(st.text(alphabet="'\"$-/*eE1aU& \n\\;()", max_size=60))
    def test_any_text_at_all_comes_back_on_one_line(self, statement: str) -> None:
        shown = without_literals(statement)
        assert "\n" not in shown
        assert without_literals(shown).count("'") <= shown.count("'")

    def test_a_long_literal_takes_no_long_time(self) -> None:
        start = time.process_time()
        without_literals(f"SELECT '{'x' * 1_000_000}', '{chr(39) * 100_000}")
        assert time.process_time() - start < 1

    @pytest.mark.parametrize(
        ("statement", "word"),
        [
            ("  (select 1)", "SELECT"), ("-- hi\n/* x */ COMMIT;", "COMMIT"), ("frobnicate 1", "OTHER"), ("", "OTHER"),
            ("with a as (select 1) select", "WITH"),
        ],
    )  # fmt: skip
    def test_operations_are_of_a_bounded_set(self, statement: str, word: str) -> None:
        assert operation(statement) == word


class TestTallies:
    @settings(deadline=None)
    @given(st.lists(st.floats(min_value=1e-6, max_value=900), max_size=100))
    def test_a_histogram_counts_each_run_below_its_bound(self, times: list[float]) -> None:
        tally = Tally()
        for seconds in times:
            tally.add(seconds)
        shown = tally.histogram()
        assert list(shown.cumulative) == [sum(seconds <= bound for seconds in times) for bound in SHOWN]
        assert (shown.count, shown.total) == (len(times), pytest.approx(sum(times)))

    def test_bounds_are_those_that_people_write(self) -> None:
        assert [str(bound) for bound in SHOWN[:5]] == ["0.0001", "0.00025", "0.0005", "0.001", "0.0025"]
        assert SHOWN[-1] == 100

    def test_what_is_forgotten_is_still_counted_by_operation(self) -> None:
        subject = monitor(max_statements=2)
        for number in range(10):
            subject.record(f"SELECT {number}", 0.1, None)
        subject.reset()
        subject.record("INSERT 1", 0.1, None)
        totals = subject.operations()
        assert {name: tally.count for name, tally in totals.items()} == {"SELECT": 10, "INSERT": 1}

    def test_reset_from_another_thread_does_not_disturb(self) -> None:
        subject = monitor(max_statements=20)
        stop = threading.Event()

        def disturb() -> None:
            while not stop.is_set():
                subject.reset()
                subject.statistics()
                subject.operations()

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            for number in range(20_000):
                subject.record(f"SELECT {number % 30}", 0.1, None)
        finally:
            stop.set()
            thread.join()
        assert subject.operations()["SELECT"].count <= 20_000


class TestHooks:
    async def test_a_hook_that_sleeps_holds_up_neither_statements_nor_close_nor_other_hooks(self, database_url) -> None:
        seen: list[QueryEvent] = []
        entered, over = threading.Event(), threading.Event()

        def sleeper(event: QueryEvent) -> None:
            entered.set()
            over.wait(120)

        start = time.perf_counter()
        async with DatabaseManager(database_url, "testing", "migrations_only", hooks=[sleeper, seen.append]) as manager:
            for _ in range(20):
                async with manager.transaction() as session:
                    await session.execute(text("SELECT 1"))
            assert await asyncio.to_thread(entered.wait, 60)
        assert time.perf_counter() - start < 60  # close gives the hooks a second
        over.set()
        assert sum(event.operation == "COMMIT" for event in seen) == 20

    @pytest.mark.parametrize(
        "error", [RuntimeError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]
    )
    async def test_whatever_a_hook_raises_touches_no_transaction(self, database_url, caplog, error) -> None:
        seen: list[QueryEvent] = []

        def broken(event: QueryEvent) -> None:
            raise error("boom")

        subject = QueryMonitor(MonitoringOptions(), [broken, seen.append])
        with caplog.at_level(logging.WARNING, "core.database"):
            async with DatabaseManager(database_url, "testing", "migrations_only", monitor=subject) as manager:
                async with manager.transaction() as session:
                    await session.execute(INSERT, {"name": "a"})
                async with manager.get_session(read_only=True) as session:
                    assert await session.scalar(text("SELECT count(*) FROM users")) == 1
        (record,) = [item for item in caplog.records if item.message == "query hook failed"]
        assert (record.hook, record.error) == (broken.__qualname__, error.__name__)
        assert subject.hook_figures()[broken.__qualname__][1] == len(seen) > 3

    async def test_a_hook_that_uses_the_database_is_not_told_of_that(self, database_url: str) -> None:
        seen: list[str] = []
        loop = asyncio.get_running_loop()

        async def note(manager: DatabaseManager) -> None:
            async with manager.transaction() as session:
                await session.execute(text("SELECT 'from the hook'"))

        def recursive(event: QueryEvent) -> None:
            seen.append(event.statement)
            asyncio.run_coroutine_threadsafe(note(manager), loop).result(5)

        async with DatabaseManager(database_url, "testing", "migrations_only") as manager:
            subject = internals(manager).monitor
            assert subject is not None
            subject.add_hook(recursive)
            others: list[QueryEvent] = []
            subject.add_hook(others.append)
            async with manager.get_session(read_only=True) as session:
                await session.execute(text("SELECT 1"))
            assert await subject.drained(60)
            await asyncio.sleep(0.1)
            assert await subject.drained(60)
        assert seen == ["SELECT 1"]
        assert "SELECT 'from the hook'" in [event.statement for event in others]

    def test_two_hooks_that_cause_events_for_each_other_come_to_rest(self) -> None:
        calls: list[str] = []

        def first(event: QueryEvent) -> None:
            calls.append("first")
            subject.record("FROM FIRST", 0.1, None)

        def second(event: QueryEvent) -> None:
            calls.append("second")
            subject.record("FROM SECOND", 0.1, None)

        subject = QueryMonitor(MonitoringOptions(), [first, second])
        subject.record("S", 0.1, None)
        for _ in range(4):
            settled(subject)
        assert sorted(calls) == ["first", "first", "second", "second"]

    def test_what_does_not_fit_is_dropped_and_counted_and_the_order_kept(self) -> None:
        seen: list[QueryEvent] = []
        gate, entered = threading.Event(), threading.Event()

        def slow(event: QueryEvent) -> None:
            entered.set()
            gate.wait(60)
            seen.append(event)

        subject = QueryMonitor(MonitoringOptions(slow_query=0), [slow])  # 12,000 lines of a log are not its subject
        for number in range(12_000):
            subject.record(f"S {number % 7}", float(number), None)
        assert entered.wait(60)
        dropped, _ = subject.hook_figures()[slow.__qualname__]
        assert 1_990 <= dropped <= 2_000
        gate.set()
        settled(subject)
        assert len(seen) == 12_000 - dropped
        assert [event.seconds for event in seen] == sorted(event.seconds for event in seen)

    def test_hooks_come_and_go_while_events_flow(self) -> None:
        subject = monitor()
        stop = threading.Event()

        def flow() -> None:
            while not stop.wait(0.0005):
                subject.record("S", 0.1, None)

        thread = threading.Thread(target=flow)
        thread.start()
        try:
            for _ in range(15):
                seen: list[QueryEvent] = []
                subject.add_hook(seen.append)
                deadline = time.monotonic() + 60
                while not seen and time.monotonic() < deadline:
                    time.sleep(0.001)
                assert seen
                subject.remove_hook(seen.append)
        finally:
            stop.set()
            thread.join()
        with pytest.raises(ValueError, match="not added"):
            subject.remove_hook(print)

    def test_a_hook_sees_the_context_of_the_code_that_caused_the_event(self) -> None:
        variable: ContextVar[str] = ContextVar("variable")
        seen: list[str] = []
        subject = QueryMonitor(MonitoringOptions(), [lambda event: seen.append(variable.get())])
        for value in ("a", "b"):
            variable.set(value)
            subject.record("S", 0.1, None)
        settled(subject)
        assert seen == ["a", "b"]

    def test_an_event_says_when_it_ended(self) -> None:
        seen: list[QueryEvent] = []
        subject = QueryMonitor(MonitoringOptions(), [seen.append])
        before = time.time()
        subject.record("S", 0.1, None)
        after = time.time()
        time.sleep(0.05)
        settled(subject)
        assert before - 0.01 <= seen[0].ended_at <= after + 0.01

    def test_a_thread_ends_when_nothing_happens_and_another_takes_over(self, monkeypatch) -> None:
        from core.database.monitoring import _delivery

        monkeypatch.setattr(_delivery, "_IDLE", 0.05)
        seen: list[str] = []
        subject = QueryMonitor(
            MonitoringOptions(), [Hook(lambda event: seen.append(threading.current_thread().name), name="idle")]
        )
        for _ in range(3):
            subject.record("S", 0.1, None)
            settled(subject)
            deadline = time.monotonic() + 60
            while any(t.name == "panda-hook-idle" for t in threading.enumerate()) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not any(t.name == "panda-hook-idle" for t in threading.enumerate())
        assert seen == ["panda-hook-idle"] * 3

    def test_a_delivery_is_forgotten_with_its_monitor(self, monkeypatch) -> None:
        from core.database.monitoring import _delivery

        monkeypatch.setattr(_delivery, "_IDLE", 0.05)
        delivery = Delivery(Hook(print))
        gone = weakref.ref(delivery)
        del delivery
        gc.collect()
        assert gone() is None

    def test_a_forked_child_has_hooks_of_its_own(self) -> None:
        program = """
            import os, time, asyncio
            from core.config.options import MonitoringOptions
            from core.database.monitoring import QueryMonitor

            seen = []
            subject = QueryMonitor(MonitoringOptions(), [lambda event: (time.sleep(0.2), seen.append(event.statement))])
            subject.record("parent", 0.1, None)
            time.sleep(0.1)  # the hook's thread is inside a call
            child = os.fork()
            if child == 0:
                subject.record("child", 0.1, None)
                done = asyncio.run(subject.drained(60))
                os._exit(0 if done and seen == ["child"] else 1)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            assert asyncio.run(subject.drained(60)) and seen == ["parent"]
        """
        subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)], check=True, timeout=60)

    def test_what_can_never_be_called_is_refused(self) -> None:
        async def coroutine(event: QueryEvent) -> None: ...

        class Callable_:
            async def __call__(self, event: QueryEvent) -> None: ...

        for wrong in (coroutine, Callable_()):
            with pytest.raises(ConfigurationError, match="coroutine"):
                QueryMonitor(MonitoringOptions(), [wrong])  # type: ignore[list-item]
        with pytest.raises(ConfigurationError, match="no kind of event"):
            Hook(print, str)  # type: ignore[arg-type]


class TestTransactions:
    async def test_each_end_of_a_transaction_is_told_apart(self, database_url: str) -> None:
        seen: list[TransactionEvent] = []
        hook = Hook(seen.append, TransactionEvent)
        async with DatabaseManager(database_url, "testing", "migrations_only", hooks=[hook]) as manager:
            subject = internals(manager).monitor
            assert subject is not None
            await subject.drained(60)
            seen.clear()
            begun = time.perf_counter()
            async with manager.transaction() as session:
                await session.execute(INSERT, {"name": "a"})
                await asyncio.sleep(0.05)
            took = time.perf_counter() - begun
            async with manager.get_session() as session:
                await session.execute(text("SELECT 1"))
            with pytest.raises(UniqueViolation):
                async with manager.transaction() as session:
                    await session.execute(INSERT, {"name": "a"})
            async with manager.get_session() as session:
                with pytest.raises(UniqueViolation):
                    await session.execute(INSERT, {"name": "a"})
                with pytest.raises(TransactionAborted):
                    await session.commit()
            async with manager.transaction() as session:  # a savepoint is no transaction of its own
                with pytest.raises(UniqueViolation):
                    async with manager.transaction(session=session):
                        await session.execute(INSERT, {"name": "a"})
            async with manager.transaction(read_only=True) as session:
                await session.execute(text("SELECT 1"))
        told = [(event.outcome, event.read_only) for event in seen]
        assert told == [
            ("committed", False), ("rolled_back", False), ("aborted", False), ("aborted", False), ("committed", False),
            ("committed", True),
        ]  # fmt: skip
        assert 0.05 <= seen[0].seconds <= took
        assert subject.errors["UniqueViolation"] == 3
        assert subject.errors["TransactionAborted"] == 1

    async def test_cancelled_in_a_statement_or_between_two_is_cancelled(self, database_url: str) -> None:
        seen: list[Event] = []

        async def work(manager: DatabaseManager, statement: str) -> None:
            async with manager.transaction() as session:
                await session.execute(text(statement))
                await asyncio.sleep(60)

        async with watched(database_url, seen) as manager:
            for statement, state in (("SELECT 1", "idle in transaction"), ("SELECT pg_sleep(60)", "active")):
                task = asyncio.create_task(work(manager, statement))
                await wait_for_session(database_url, state, statement)
                await asyncio.sleep(0.05)  # the answer has come
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            async with manager.get_session() as session:  # a time limit inside of the session that was handled there
                await session.execute(text("SELECT 1"))
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await asyncio.sleep(1)
        ends = [event.outcome for event in seen if isinstance(event, TransactionEvent)]
        assert ends[-3:] == ["cancelled", "cancelled", "rolled_back"]
        assert [event.cancelled for event in seen if isinstance(event, QueryEvent) and event.error] == [True]

    @pytest.mark.builtin_server(reason="the proxy must see the COMMIT that it loses, and TLS hides it")
    async def test_a_lost_connection_is_aborted_and_a_lost_answer_to_commit_unknown(self, database_url, caplog) -> None:
        seen: list[Event] = []
        names: list[str] = []
        async with fault_proxy(database_url) as proxy:
            async with watched(proxy.url, seen) as manager:
                subject = internals(manager).monitor
                assert subject is not None
                async with manager.get_session() as session:
                    await session.execute(text("SELECT 1"))
                    proxy.cut()
                    await asyncio.sleep(0.1)  # the driver knows by now, and has another error for it
                    with pytest.raises(ConnectionLost):
                        await session.execute(text("SELECT 1"))
                proxy.lose_commit_reply = True
                with caplog.at_level(logging.WARNING, "core.database"), pytest.raises(CommitOutcomeUnknown):
                    async with manager.transaction() as session:
                        await session.execute(INSERT, {"name": "a"})
                        names.append(session.log_id)  # type: ignore[attr-defined]
                proxy.lose_commit_reply = False
        ends = [event.outcome for event in seen if isinstance(event, TransactionEvent)]
        assert ends[-2:] == ["aborted", "unknown"]
        assert (subject.errors["ConnectionLost"], subject.errors["CommitOutcomeUnknown"]) == (1, 1)
        (record,) = [item for item in caplog.records if item.message == "commit outcome unknown"]
        assert [record.session_id] == names

    async def test_a_write_in_a_read_only_session_is_that_error_in_either_kind(self, manager: DatabaseManager) -> None:
        subject = internals(manager).monitor
        assert subject is not None
        for consistent in (False, True):
            async with manager.get_session(read_only=True, consistent=consistent) as session:
                with pytest.raises(ReadOnlyViolation):
                    await session.execute(INSERT, {"name": "a"})
        assert subject.errors == {"ReadOnlyViolation": 2}


class TestCheckouts:
    async def test_waiting_for_a_connection_is_timed_and_being_refused_one_counted(self, database_url: str) -> None:
        seen: list[Event] = []
        pool = PoolOptions(size=1, max_overflow=0, read_size=1, wait=1.0)
        async with watched(database_url, seen, pool=pool) as manager:
            subject = internals(manager).monitor
            assert subject is not None
            figures = subject.pools["read_write"]

            async def hold(had: asyncio.Event, over: asyncio.Event) -> None:
                async with manager.get_session() as session:
                    await session.execute(text("SELECT 1"))
                    had.set()
                    await over.wait()

            async def waiting(number: int) -> None:
                async with asyncio.timeout(60):
                    while figures.waiting != number:
                        await asyncio.sleep(0)

            had, over, had_too, over_too = (asyncio.Event() for _ in range(4))
            begun = time.perf_counter()
            first = asyncio.create_task(hold(had, over))
            await had.wait()
            second = asyncio.create_task(hold(had_too, over_too))
            await waiting(1)
            await asyncio.sleep(0.05)
            over.set()
            await first
            await had_too.wait()
            took = time.perf_counter() - begun
            assert figures.waiting == 0
            with pytest.raises(PoolExhausted):
                await hold(had, over)
            third = asyncio.create_task(hold(had, over))
            await waiting(1)
            third.cancel()
            over_too.set()
            await asyncio.gather(second, third, return_exceptions=True)
            assert figures.waiting == 0
        told = [(event.result, event.failure) for event in seen if isinstance(event, CheckoutEvent)]
        assert told[-4:] == [("ok", None), ("ok", None), ("exhausted", "PoolExhausted"), ("cancelled", None)]
        assert figures.refusals == {"exhausted": 1, "cancelled": 1}
        assert subject.errors["PoolExhausted"] == 1
        assert 0.04 <= figures.taken.longest <= took

    async def test_a_server_that_is_away_is_a_failed_checkout(self, database_url: str) -> None:
        seen: list[Event] = []
        async with fault_proxy(database_url) as proxy:
            manager = watched(proxy.url, seen, timeouts=Timeouts(connect=30))
            await manager.connect()
        try:
            with pytest.raises(ConnectionError):
                async with manager.get_session(read_only=True) as session:
                    await session.execute(text("SELECT 1"))
        finally:
            await manager.close()
        (failed,) = [event for event in seen if isinstance(event, CheckoutEvent) and event.result == "failed"]
        assert (failed.pool, failed.failure) == ("read_only", "HostUnreachable")


class TestRetries:
    async def test_each_further_attempt_is_told_with_its_cause_and_the_session_that_failed(
        self, database_url, caplog, capsys
    ) -> None:
        seen: list[Event] = []
        names: list[str] = []

        async def work(session) -> int:
            names.append(session.log_id)
            if len(names) < 3:
                raise SerializationFailure("again")
            return 7

        retry = RetryOptions(backoff=0.01)
        async with watched(database_url, seen, retry=retry) as manager:
            with caplog.at_level(logging.INFO, "core.database"):
                assert await manager.run_transaction(work) == 7
            subject = internals(manager).monitor
            assert subject is not None
            with pytest.raises(SerializationFailure):
                await manager.run_transaction(self.fail, max_attempts=1)
        told = [event for event in seen if isinstance(event, RetryEvent)]
        assert [(event.attempt, event.failure) for event in told] == [
            (2, "SerializationFailure"),
            (3, "SerializationFailure"),
        ]
        assert all(0 <= event.wait <= 0.02 for event in told)
        assert subject.retries == {"SerializationFailure": 2}
        records = [record for record in caplog.records if record.message == "transaction retried"]
        assert [record.session_id for record in records] == names[:2]
        assert capsys.readouterr().out == ""  # nobody has configured structlog, and stdout is the application's

    async def fail(self, session: object) -> None:
        raise SerializationFailure("again")

    async def test_what_has_been_committed_is_not_run_again(self, manager: DatabaseManager) -> None:
        calls: list[int] = []

        async def work(session) -> None:
            calls.append(1)
            await session.commit()
            raise SerializationFailure("afterwards")

        with pytest.raises(SerializationFailure):
            await manager.run_transaction(work)
        assert len(calls) == 1

    async def test_attempts_end_with_the_deadline(self, database_url: str) -> None:
        calls: list[int] = []

        async def work(session) -> None:
            calls.append(1)
            raise SerializationFailure("again")

        retry = RetryOptions(max_attempts=100, deadline=0.4, backoff=0.3, backoff_max=0.3)
        async with DatabaseManager(database_url, "testing", "migrations_only", retry=retry) as manager:
            start = time.monotonic()
            with pytest.raises(SerializationFailure):
                await manager.run_transaction(work)
            assert time.monotonic() - start < 7  # without it about fifteen
        assert 2 <= len(calls) < 50


class TestSessions:
    async def test_a_session_that_was_long_open_is_logged_and_told(self, database_url, caplog) -> None:
        seen: list[SessionEvent] = []
        options = MonitoringOptions(long_session=0.05)
        hook = Hook(seen.append, SessionEvent)
        async with DatabaseManager(
            database_url, "testing", "migrations_only", monitoring=options, hooks=[hook]
        ) as manager:
            with caplog.at_level(logging.WARNING, "core.database"):
                async with manager.get_session(read_only=True) as session:
                    await asyncio.sleep(0.06)
                    name = session.log_id  # type: ignore[attr-defined]
                async with manager.get_session():
                    pass
        (record,) = [item for item in caplog.records if item.message == "long session"]
        assert record.session_id == name
        assert [event.read_only for event in seen] == [True, False]
        assert seen[0].seconds >= 0.06
        assert seen[0].opened_at[0] == __file__

    async def test_records_carry_the_session_whose_call_is_under_way(self, database_url, caplog) -> None:
        options = MonitoringOptions(slow_query=0.01)
        slow = text("SELECT pg_sleep(0.02)")
        async with DatabaseManager(database_url, "testing", "migrations_only", monitoring=options) as manager:
            with caplog.at_level(logging.WARNING, "core.database"):
                async with manager.get_session(read_only=True) as outer:
                    await outer.execute(slow)
                    async with manager.get_session() as inner:
                        await inner.execute(slow)
                        await outer.execute(slow)
                    await outer.execute(slow)
                    task = asyncio.create_task(self.later(manager, slow))
                await task
        a, b = outer.log_id, inner.log_id  # type: ignore[attr-defined]
        records = [item for item in caplog.records if "pg_sleep" in getattr(item, "statement", "")]
        assert [record.session_id for record in records[:4]] == [a, b, a, a]
        assert records[4].session_id not in (a, b)
        assert not hasattr(records[5], "session_id")

    async def later(self, manager: DatabaseManager, slow) -> None:
        """In a task that began inside a session which has ended."""
        await asyncio.sleep(0.05)
        async with manager.get_session(read_only=True) as session:
            await session.execute(slow)
        async with manager.engine.connect() as connection:
            await connection.execute(slow)

    async def test_no_session_is_given_a_name_that_nothing_asks_for(self, manager: DatabaseManager) -> None:
        async with manager.get_session(read_only=True) as session:
            await session.execute(text("SELECT 1"))
        assert session._log_id is None  # type: ignore[attr-defined]

    async def test_a_session_may_be_left_in_another_context_than_it_was_entered_in(self, manager) -> None:
        scope = manager.get_session()
        await asyncio.create_task(scope.__aenter__())
        await asyncio.create_task(scope.__aexit__(None, None, None))

    async def test_a_failing_hook_is_logged_with_the_session_of_the_event(self, database_url, caplog) -> None:
        def broken(event: QueryEvent) -> None:
            raise RuntimeError

        async with DatabaseManager(database_url, "testing", "migrations_only") as manager:
            subject = internals(manager).monitor
            assert subject is not None
            subject.add_hook(broken)
            with caplog.at_level(logging.WARNING, "core.database"):
                async with manager.get_session(read_only=True) as session:
                    await session.execute(text("SELECT 1"))
                    assert await subject.drained(60)
        (record,) = [item for item in caplog.records if item.message == "query hook failed"]
        assert record.session_id == session.log_id  # type: ignore[attr-defined]


class TestBulk:
    async def test_bulk_work_has_a_limit_of_its_own(self, database_url: str, caplog) -> None:
        for limit, told in ((60.0, []), (0.1, ["slow query"])):
            options = MonitoringOptions(slow_query=0.03, slow_bulk=limit)
            async with DatabaseManager(database_url, "testing", "migrations_only", monitoring=options) as manager:
                with caplog.at_level(logging.WARNING, "core.database"):
                    for _ in range(2):  # a statement that is known already counts as bulk too
                        async with manager.get_session() as session:
                            await session.execute(text("CREATE TEMPORARY TABLE staged (a int) ON COMMIT DROP"))
                            caplog.clear()
                            await bulk.copy_records(session, "staged", [(1,)], columns=["a"])
                            await session.execute(text("SELECT pg_sleep(0.12) FROM staged"))
                            assert [record.message for record in caplog.records][-1:] == told
                            await session.commit()
                            caplog.clear()
                            await session.execute(text("SELECT pg_sleep(0.05)"))
                            assert [record.message for record in caplog.records][-1:] == ["slow query"]


def test_records_as_json_carry_session_and_trace(database_url_sync: str) -> None:
    program = """
        import asyncio, sys
        from sqlalchemy import text
        from core.cli._logging import configure
        from core.config.options import MonitoringOptions
        from core.database.connection import DatabaseManager

        configure(verbosity=0, as_json=True)
        if sys.argv[2] == "traced":
            from opentelemetry import trace
            from opentelemetry.sdk.trace import TracerProvider
            trace.set_tracer_provider(TracerProvider())
            span = trace.get_tracer("t").start_as_current_span("s")
        else:
            import contextlib
            span = contextlib.nullcontext()

        async def main():
            options = MonitoringOptions(slow_query=0.2)
            async with DatabaseManager(sys.argv[1], "testing", "migrations_only", monitoring=options) as manager:
                with span:
                    async with manager.get_session(read_only=True) as session:
                        await session.execute(text("SELECT pg_sleep(0.3), 's3cret'"))
            assert ("opentelemetry" in sys.modules) == (sys.argv[2] == "traced")

        asyncio.run(main())
    """
    for kind, extra in (("plain", set[str]()), ("traced", {"trace_id", "span_id"})):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), database_url_sync, kind],
            check=True, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        (line,) = [line for line in done.stderr.splitlines() if "pg_sleep" in line]
        record = json.loads(line)
        assert set(record) >= {"event", "session_id", "statement", "seconds", "level", "timestamp"} | extra
        assert ("trace_id" in record) == (kind == "traced")
        assert record["event"] == "slow query"
        assert "s3cret" not in done.stderr
        assert done.stdout == ""
