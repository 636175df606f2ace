"""What Prometheus reads is what happened, under names that it approves of; and reading never waits for the database."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from core.config.options import MonitoringOptions, PoolOptions, RetryOptions, Timeouts
from core.database import metrics
from core.database.connection import DatabaseManager, internals
from core.database.errors import ConfigurationError, PoolExhausted, SerializationFailure, UniqueViolation
from core.database.metrics import DatabaseMetrics, Exporter
from core.database.monitoring import QueryEvent
from core.trading import instruments, sessions
from tests.cluster.debian import DebianServer, binaries, debian_server
from tests.cluster.proxy import fault_proxy
from tests.commands import panda

INSERT = text("INSERT INTO users (username, hashed_password) VALUES (:name, 'h')")
PREFIX = "alpha_panda_database_"
Figures = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def figures(registry: CollectorRegistry) -> Figures:
    """Every sample by its name, without the prefix and the database, and its labels."""
    found: Figures = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "database"}
            found[sample.name.removeprefix(PREFIX), tuple(sorted(labels.items()))] = sample.value
    return found


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return figures(registry).get((name, tuple(sorted(labels.items()))))


async def eventually(condition, *, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it has not come about in time"
        await asyncio.sleep(0.02)


async def busy(manager: DatabaseManager) -> None:
    """One of everything that is counted."""
    async with manager.transaction() as session:
        await session.execute(INSERT, {"name": "a"})
    with pytest.raises(UniqueViolation):
        async with manager.transaction() as session:
            await session.execute(INSERT, {"name": "a"})
    for _ in range(3):
        async with manager.get_session(read_only=True) as session:
            await session.execute(text("SELECT 1"))
    tries: list[int] = []

    async def work(session) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise SerializationFailure("again")

    await manager.run_transaction(work)


class TestManager:
    async def test_everything_that_happened_is_there(self, database_url: str) -> None:
        def broken(event: QueryEvent) -> None:
            raise RuntimeError

        registry = CollectorRegistry()
        options = MonitoringOptions(slow_query=60)
        async with DatabaseManager(
            database_url, "testing", "migrations_only", hooks=[broken], monitoring=options,
            retry=RetryOptions(backoff=0.001), pool=PoolOptions(size=2, max_overflow=1, read_size=3),
        ) as manager, DatabaseMetrics(manager, registry=registry):  # fmt: skip
            before, begun = figures(registry), time.perf_counter()
            await busy(manager)
            async with manager.get_session(read_only=True) as session:
                await session.execute(text("SELECT pg_sleep(0.1)"))
                subject = internals(manager).monitor
                assert subject is not None
                subject.record("SELECT 2", 75.0, None)
                await subject.drained(60)
                after = figures(registry)
            took = time.perf_counter() - begun

        def grown(name: str, **labels: str) -> float:
            key = (name, tuple(sorted(labels.items())))
            return after[key] - before.get(key, 0)

        assert grown("query_duration_seconds_count", operation="SELECT") == 5
        assert grown("query_duration_seconds_bucket", operation="SELECT", le="+Inf") == 5
        assert grown("query_duration_seconds_bucket", operation="SELECT", le="50.0") == 4
        assert grown("query_duration_seconds_bucket", operation="SELECT", le="0.05") < 4
        assert 75.1 <= grown("query_duration_seconds_sum", operation="SELECT") <= 75 + took
        assert grown("query_duration_seconds_count", operation="INSERT") == 2
        assert grown("errors_total", error="UniqueViolation") == 1
        assert grown("transaction_duration_seconds_count", outcome="committed") == 1
        assert grown("transaction_duration_seconds_count", outcome="aborted") == 1
        assert grown("commits_unknown_total") == 0
        assert grown("retries_total", error="SerializationFailure") == 1
        assert grown("slow_queries_total") == 1
        assert grown("queries_cancelled_total") == 0
        assert grown("hook_failures_total", hook=broken.__qualname__) >= 6
        assert grown("events_dropped_total", hook=broken.__qualname__) == 0
        assert grown("pool_checkout_wait_seconds_count", pool="read_only") == 4
        assert after["pool_connections_max", (("pool", "read_write"),)] == 3
        assert after["pool_connections", (("pool", "read_only"), ("state", "used"))] == 1
        assert after["pool_connections", (("pool", "read_write"), ("state", "idle"))] == 1
        assert after["pool_waiting", (("pool", "read_write"),)] == 0
        assert after["up", ()] == 1
        assert after["in_recovery", ()] == 0
        assert after["schema_state", (("state", "at_head"),)] == 1
        assert sum(figure for (name, _), figure in after.items() if name == "schema_state") == 1
        assert [labels for name, labels in after if name == "schema_info"]
        assert figures(registry) == {}

    async def test_waiting_and_refused_tasks_are_seen_while_they_wait(self, database_url: str) -> None:
        registry = CollectorRegistry()
        pool = PoolOptions(size=1, max_overflow=0, read_size=1, wait=1.0)
        async with (
            DatabaseManager(database_url, "testing", "migrations_only", pool=pool) as manager,
            DatabaseMetrics(manager, registry=registry),
            manager.get_session() as holder,
        ):
            await holder.execute(text("SELECT 1"))

            async def refused() -> None:
                with pytest.raises(PoolExhausted):
                    async with manager.get_session() as session:
                        await session.execute(text("SELECT 1"))

            tasks = [asyncio.create_task(refused()) for _ in range(2)]
            await eventually(lambda: value(registry, "pool_waiting", pool="read_write") == 2)
            await asyncio.gather(*tasks)
            assert value(registry, "pool_waiting", pool="read_write") == 0
            assert value(registry, "pool_checkout_failures_total", pool="read_write", reason="exhausted") == 2
            assert value(registry, "errors_total", error="PoolExhausted") == 2

    async def test_two_managers_in_one_registry_are_told_apart(self, database_url: str) -> None:
        registry = CollectorRegistry(auto_describe=True)
        async with (
            DatabaseManager(database_url, "testing", "migrations_only") as first,
            DatabaseManager(database_url, "testing", "migrations_only") as second,
        ):
            async with DatabaseMetrics(first, registry=registry):
                with pytest.raises(ConfigurationError, match="already"):
                    await DatabaseMetrics(second, registry=registry).start()
                async with DatabaseMetrics(second, registry=registry, database="other"):
                    shown = generate_latest(registry).decode()
                    assert shown.count("# TYPE alpha_panda_database_up ") == 1
                    assert len(re.findall(r"^alpha_panda_database_up\{", shown, re.MULTILINE)) == 2
                assert 'database="other"' not in generate_latest(registry).decode()
            assert generate_latest(registry) == b""
            async with DatabaseMetrics(first, registry=registry) as again:
                await again.start()
            await again.close()

    async def test_without_monitoring_there_are_health_and_pools(self, database_url: str) -> None:
        registry = CollectorRegistry()
        options = MonitoringOptions(enabled=False)
        async with (
            DatabaseManager(database_url, "testing", "migrations_only", monitoring=options) as manager,
            DatabaseMetrics(manager, registry=registry),
        ):
            names = {name for name, _ in figures(registry)}
        assert {"up", "pool_connections", "schema_state"} <= names
        assert "query_duration_seconds_count" not in names

    async def test_a_database_that_is_behind_is_up_and_says_so(self, empty_database: str) -> None:
        registry = CollectorRegistry()
        async with (
            DatabaseManager(empty_database, "testing", "migrations_only", verify_migrations=False) as manager,
            DatabaseMetrics(manager, registry=registry),
        ):
            assert value(registry, "up") == 1
            assert value(registry, "schema_state", state="empty") == 1
            assert value(registry, "schema_state", state="at_head") == 0

    async def test_a_frozen_database_is_not_up_and_a_scrape_does_not_wait_for_it(self, database_url: str) -> None:
        registry = CollectorRegistry()
        limits = Timeouts(health=0.3, cleanup=0.5, connect=30)
        async with fault_proxy(database_url) as proxy:
            async with (
                DatabaseManager(proxy.url, "testing", "migrations_only", timeouts=limits) as manager,
                DatabaseMetrics(manager, registry=registry, interval=0.1),
            ):
                await eventually(lambda: value(registry, "up") == 1)
                proxy.freeze()
                await eventually(lambda: value(registry, "up") == 0)
                took, names = list[float](), set[str]()
                for _ in range(3):
                    start = time.perf_counter()
                    names = {name for name, _ in figures(registry)}
                    took.append(time.perf_counter() - start)
                assert min(took) < 0.5
                assert not {"schema_state", "in_recovery", "replica_lag_seconds"} & names
                proxy.thaw()
                await eventually(lambda: value(registry, "up") == 1)

    async def test_a_check_that_never_ends_makes_it_not_up(self, manager: DatabaseManager, monkeypatch) -> None:
        registry = CollectorRegistry()
        async with DatabaseMetrics(manager, registry=registry, interval=0.05):
            monkeypatch.setattr(manager, "health_check", lambda: asyncio.sleep(60))
            assert value(registry, "up") == 1
            await eventually(lambda: value(registry, "up") == 0)

    async def test_labels_stay_few_whatever_the_statements_are(self, database_url: str) -> None:
        registry = CollectorRegistry()
        options = MonitoringOptions(max_statements=10)
        async with (
            DatabaseManager(database_url, "testing", "migrations_only", monitoring=options) as manager,
            DatabaseMetrics(manager, registry=registry),
        ):
            subject = internals(manager).monitor
            assert subject is not None
            for number in range(2_000):
                subject.record(f"WORD{number}x 's3cret'", 0.1, RuntimeError(f"{number}"))
            shown = generate_latest(registry).decode()
        assert value_of(shown, "query_duration_seconds_count", operation="OTHER") == 2_000
        assert value_of(shown, "errors_total", error="OTHER") == 2_000
        assert len(shown.splitlines()) < 400
        assert "s3cret" not in shown


def value_of(shown: str, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(shown):
        for sample in family.samples:
            if sample.name == PREFIX + name and labels.items() <= sample.labels.items():
                return sample.value
    return None


class TestExporter:
    async def test_it_tells_what_the_server_counts(self, database_url: str) -> None:
        registry = CollectorRegistry()
        async with DatabaseManager(database_url, "testing", "migrations_only") as manager:
            async with manager.transaction() as session:
                for name in ("a", "b"):
                    await session.execute(INSERT, {"name": name})
            async with manager.transaction() as session:
                await session.execute(text("SELECT pg_stat_force_next_flush()"))
                await session.execute(text("DELETE FROM users WHERE username = 'a'"))
            async with manager.get_session() as session:
                await session.execute(text("SELECT 1"))
                await asyncio.sleep(0.1)
                await Exporter(lambda: plain(database_url), registry=registry, database="x").once()
        found = figures(registry)
        assert found["up", ()] == 1
        assert found["server_connections", (("state", "idle_in_transaction"),)] >= 1
        assert 0.1 <= found["server_longest_transaction_seconds", ()] < 60
        assert found["server_max_connections", ()] == 200
        assert found["server_size_bytes", ()] > 1e6
        assert found["server_wal_bytes_total", ()] > 1e6
        assert found["server_transactions_total", (("outcome", "committed"),)] > 0
        assert ("server_table_rows", (("state", "dead"), ("table", "users"))) in found
        assert ("server_table_rows", (("state", "live"), ("table", "portfolio_snapshots"))) in found
        assert all(count == 0 for (name, _), count in found.items() if name == "server_question_failures_total")
        assert not [name for name, _ in found if name.startswith(("query_", "pool_"))]

    async def test_a_question_that_the_server_refuses_leaves_the_others(self, database_url: str) -> None:
        registry = CollectorRegistry()
        async with DatabaseManager(database_url, "testing", "migrations_only") as manager:
            # A search path that hides one catalog view behind a wrong one: that question fails, the others do not.
            async with manager.get_session() as session:
                await session.execute(text("CREATE SCHEMA decoy"))
                await session.execute(text("CREATE VIEW decoy.pg_replication_slots AS SELECT 1 AS wrong"))
                await session.commit()
        url = f"{database_url}&options=-c%20search_path%3Ddecoy,pg_catalog,public"
        await Exporter(lambda: plain(url), registry=registry, database="x").once()
        found = figures(registry)
        assert found["server_question_failures_total", (("question", "slots"),)] == 1
        assert found["up", ()] == 1
        assert ("server_size_bytes", ()) in found

    async def test_up_follows_the_database_down_and_up_again(self, database_url: str) -> None:
        registry = CollectorRegistry()
        async with fault_proxy(database_url) as proxy:
            port, url = proxy.port, proxy.url
            exporter = Exporter(lambda: plain(url, limit=0.5), registry=registry, database="x", interval=0.05)
            task = asyncio.create_task(exporter.run())
            await eventually(lambda: value(registry, "up") == 1)
            assert ("server_size_bytes", ()) in figures(registry)
            proxy.freeze()
            await eventually(lambda: value(registry, "up") == 0)
            assert ("server_size_bytes", ()) not in figures(registry)
            proxy.thaw()
            await eventually(lambda: value(registry, "up") == 1)
            proxy.cut()
            await eventually(lambda: value(registry, "up") == 1)
        await eventually(lambda: value(registry, "up") == 0)  # nobody listens on that port any more
        assert port
        task.cancel()
        await asyncio.wait([task], timeout=60)
        assert task.cancelled()
        assert generate_latest(registry) == b""

    async def test_it_starts_before_the_database(self) -> None:
        registry = CollectorRegistry()
        found: list[DatabaseManager | None] = [None]
        exporter = Exporter(lambda: found[0], registry=registry, database="x", interval=60)
        await exporter.once()
        assert value(registry, "up") == 0
        found[0] = plain("postgresql://panda@127.0.0.1:1/panda")
        await exporter.poll()
        assert value(registry, "up") == 0

    async def test_over_http_a_scrape_of_a_frozen_database_is_quick(self, database_url: str) -> None:
        registry = CollectorRegistry()
        async with fault_proxy(database_url) as proxy:
            exporter = Exporter(lambda: plain(proxy.url, limit=0.5), registry=registry, database="x", interval=0.05)
            server, thread = start_http_server(0, "127.0.0.1", registry)
            task = asyncio.create_task(exporter.run())
            try:
                await eventually(lambda: value(registry, "up") == 1)
                proxy.freeze()
                took: list[float] = []
                for _ in range(5):
                    start = time.perf_counter()
                    await asyncio.to_thread(fetch, server.server_port)
                    took.append(time.perf_counter() - start)
                assert sorted(took)[2] < 1
            finally:
                task.cancel()
                proxy.thaw()
                await asyncio.wait([task], timeout=60)
                server.shutdown()
                server.server_close()
                thread.join()


def plain(url: str, *, limit: float = 30.0) -> DatabaseManager:
    limits = Timeouts(health=limit, cleanup=limit, connect=limit)
    return DatabaseManager(url, "testing", "migrations_only", verify_migrations=False, timeouts=limits)


def fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        return answer.read().decode()


@pytest.mark.usefixtures("clean")
class TestCommand:
    @contextmanager
    def served(self, url: str, *arguments: str) -> "Generator[tuple[subprocess.Popen[str], int]]":
        process = subprocess.Popen(
            [sys.executable, "-m", "core.cli.main", "metrics", "serve", "--port", "0", "--interval", "0.2", *arguments],
            env=os.environ | {"DATABASE__POSTGRES_URL": url},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:(\d+)/metrics", line)
            assert found, (line, process.stderr.read() if process.stderr and process.poll() is not None else "")
            yield process, int(found[1])
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()

    @pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
    def test_serve_answers_until_it_is_told_to_end(self, database_url_sync: str, ending: int) -> None:
        with self.served(database_url_sync) as (process, port):
            deadline = time.monotonic() + 60
            while value_of(fetch(port), "up") != 1:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert value_of(fetch(port), "server_max_connections") == 200
            process.send_signal(ending)
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            assert (out, err) == ("", "")

    def test_serve_ends_quickly_though_the_server_says_nothing(self) -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            url = f"postgresql://panda:s3cret-word@127.0.0.1:{silent.getsockname()[1]}/panda"
            with self.served(url) as (process, port):
                shown = fetch(port)
                assert value_of(shown, "up") == 0
                time.sleep(0.5)
                process.send_signal(signal.SIGTERM)
                out, err = process.communicate(timeout=10)
                assert process.returncode == 0
                assert "s3cret-word" not in shown + out + err

    def test_a_port_that_is_taken_is_one_message(self, database_url_sync: str) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            done = panda("metrics", "serve", "--port", port, url=database_url_sync)
        assert done.returncode == 1
        assert f"port {port}" in done.stderr
        assert "--port" in done.stderr
        assert "Traceback" not in done.stderr

    def test_show_prints_once(self, database_url_sync: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "core.cli.main", "metrics", "show"],
            env=os.environ | {"DATABASE__POSTGRES_URL": database_url_sync},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert value_of(done.stdout, "up") == 1
        assert value_of(done.stdout, "schema_state", state="at_head") == 1
        as_json = panda("metrics", "show", "--json", url=database_url_sync)
        report = json.loads(as_json.stdout)
        assert report["up"] is True
        names = {family["name"] for family in report["metrics"]}
        assert {"alpha_panda_database_up", "alpha_panda_database_server_wal_bytes"} <= names

    def test_show_of_an_unreachable_server_is_exit_code_4_and_up_0(self) -> None:
        done = panda("metrics", "show", url="postgresql://panda:s3cret-word@127.0.0.1:1/panda")
        assert done.returncode == 4
        assert value_of(done.stdout, "up") == 0
        assert "s3cret-word" not in done.stdout + done.stderr

    def test_nothing_is_started_for_a_built_in_server_that_does_not_run(self, tmp_path: Path) -> None:
        folder = tmp_path / "server"
        done = panda("metrics", "show", url=f"embedded://{folder}")
        assert done.returncode == 4
        assert value_of(done.stdout, "up") == 0
        assert not folder.exists()

    def test_a_url_that_cannot_work_is_refused_before_anything_is_served(self) -> None:
        for verb in ("show", "serve"):
            done = panda("metrics", verb, url="mysql://x/y")
            assert done.returncode == 2
            assert done.stdout == ""


@pytest.mark.component
async def test_promtool_has_nothing_to_say_against_any_of_it(component, database_url: str) -> None:
    component(shutil.which("promtool") is not None, "apt-get install prometheus")
    registry = CollectorRegistry()
    async with (
        DatabaseManager(database_url, "testing", "migrations_only", hooks=[lambda event: None]) as manager,
        DatabaseMetrics(manager, registry=registry),
    ):
        await busy(manager)
        await Exporter(lambda: plain(database_url), registry=registry, database="server").once()
        shown = generate_latest(registry)
    done = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=shown, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), done.stderr.decode()


@pytest.fixture
def debian(component) -> Generator[DebianServer]:
    component(binaries() is not None, "apt-get install postgresql")
    with debian_server(tls=False) as server:
        yield server


@pytest.mark.component
async def test_slots_are_told_and_a_plain_role_sees_all_that_it_may_on_postgresql_15(debian) -> None:
    registry, poor = CollectorRegistry(), CollectorRegistry()
    administrator = f"postgresql://postgres@/panda?host={debian.folder}&port={debian.port}"
    admin = await asyncpg.connect(administrator)
    try:
        await admin.execute("SELECT pg_create_physical_replication_slot('left_behind', true)")
        await Exporter(lambda: plain(administrator), registry=registry, database="x").once()
        await Exporter(lambda: plain(debian.url()), registry=poor, database="x").once()
    finally:
        await admin.close()
    assert value(registry, "server_slot_active", slot="left_behind") == 0
    assert value(registry, "server_slot_retained_bytes", slot="left_behind") is not None
    assert (value(poor, "server_connections", state="other") or 0) >= 1
    for each in (registry, poor):
        assert not [
            labels for (name, labels), n in figures(each).items() if name == "server_question_failures_total" and n
        ]


ALERTS = Path(__file__).parents[1] / "docs" / "alerts.yml"


@pytest.mark.component
def test_the_alert_rules_are_rules(component) -> None:
    component(shutil.which("promtool") is not None, "apt-get install prometheus")
    done = subprocess.run(["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_alert_rules_speak_of_metrics_that_there_are() -> None:
    rooms = [Path(str(room.__file__)).parent for room in (metrics, instruments, sessions)]
    source = "".join(path.read_text() for room in rooms for path in room.glob("*.py"))
    named = set(re.findall(rf"{PREFIX}(\w+)", ALERTS.read_text()))
    assert len(named) > 10
    for name in named:
        whole = name.removesuffix("_bucket")
        parts = (whole, whole.removeprefix("server_"), whole.removeprefix("instrument_cache_"))
        assert any(f'"{part}"' in source for part in parts), name
