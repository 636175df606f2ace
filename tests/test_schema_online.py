"""Migrations on a database in use: limits of their own, locks held by others, concurrent indexes that are interrupted."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import MetaData, text

from core.database import schema
from core.database.engine import DatabaseUrl, EngineOptions, build_engine
from core.database.errors import ConfigurationError, LockTimeout, MigrationFailed, SchemaError
from core.database.schema._index_steps import child_name
from tests.cluster.debian import binaries, debian_server, pgbouncer, pooled
from tests.commands import panda
from tests.small_schema import QUICK, engine_on, metadata, revision, write
from tests.test_schema import run_by_hand
from tests.test_schema_lock import python
from tests.waiting import wait_for

ROOT = Path(__file__).parent.parent

INDEX = 'op.create_index("ix_entry_amount", "entry", ["amount"], postgresql_concurrently=True)'
DROP = 'op.drop_index("ix_entry_amount", "entry", postgresql_concurrently=True)'
ADD = 'op.execute("ALTER TABLE account ADD note text")'

UPGRADE = """
import asyncio, sys
from pathlib import Path
from sqlalchemy import MetaData
from core.database import schema
from tests.small_schema import QUICK, engine_on

async def work(url, versions, verb):
    async with engine_on(url) as engine:
        move = schema.upgrade(engine, "0003", metadata=MetaData(), versions=Path(versions), timeouts=QUICK, progress=print)
        if verb == "downgrade":
            move = schema.downgrade(engine, "0002", metadata=MetaData(), versions=Path(versions), timeouts=QUICK)
        print((await move).current)

asyncio.run(work(*sys.argv[1:]))
"""

BUILDING = (
    "EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%INDEX CONCURRENTLY%' AND state = 'active'"
    " AND pid <> pg_backend_pid() AND datname = current_database())"
)

HELD = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


@pytest.fixture
async def engine(empty_database: str):
    async with engine_on(empty_database) as engine:
        yield engine


def options(versions: Path, **more: Any) -> dict[str, Any]:
    return {"timeouts": QUICK, "metadata": MetaData(), "versions": versions, **more}


def third(folder: Path, up: str, down: str = "pass", head: str = "", upto: int = 2) -> Path:
    """Two tables, and a third revision that does `up` and has `head` among its declarations."""
    source = revision(f"000{upto + 1}", f"000{upto}", up, down).replace(
        "\n\ndef upgrade", f"\n{head}\n\ndef upgrade", 1
    )
    return write(folder, upto=upto, third=source)


@asynccontextmanager
async def other_transaction(url: str, statement: str, name: str = "the other one"):
    """Another session has run the statement and keeps its transaction open; gives its process id."""
    connection = await asyncpg.connect(url, server_settings={"application_name": name})
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(statement)
    try:
        yield connection.get_server_pid()
    finally:
        await connection.close()


async def upgrading_in_vain(engine: Any, versions: Path, said: list[str], *, until: str) -> asyncio.Task[Any]:
    """An upgrade under way, which has said `until` and goes on trying, 20 times at the most."""
    upgrading = asyncio.create_task(schema.upgrade(engine, **options(versions, attempts=20, progress=said.append)))
    async with asyncio.timeout(60):
        while not any(until in line for line in said):
            await asyncio.sleep(0.02)
    return upgrading


async def indexes(url: str, table: str = "entry") -> dict[str, bool]:
    """Name to validity, those of constraints left out."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            "SELECT indexrelid::regclass::text, indisvalid FROM pg_index WHERE indrelid = $1::text::regclass AND NOT indisprimary",
            table,
        )
        return {name: valid for name, valid in rows}
    finally:
        await connection.close()


async def leave_invalid(url: str, table: str, statement: str) -> None:
    """As an interrupted build does."""
    connection = await asyncpg.connect(url)
    async with other_transaction(url, f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE"):
        building = asyncio.ensure_future(connection.execute(statement))
        await wait_for(url, f"EXISTS (SELECT FROM pg_index WHERE NOT indisvalid AND indrelid = '{table}'::regclass)")
        await wait_for(url, f"pg_cancel_backend({connection.get_server_pid()})")
        with pytest.raises(asyncpg.QueryCanceledError):
            await building
    await connection.close()


async def current(engine: Any, versions: Path) -> tuple[str, ...]:
    return (await schema.inspect(engine, metadata=MetaData(), versions=versions)).current


class TestDeclaredLimits:
    NOTE = "op.execute(\"CREATE TABLE limits AS SELECT current_setting('lock_timeout') || '/' || current_setting('statement_timeout') AS l\")"

    @pytest.mark.parametrize(
        ("head", "expected"),
        [
            ("", "300ms/30s"),
            ("lock_timeout: float = 1.5", "1500ms/30s"),
            ("lock_timeout = 4  # long", "4s/30s"),
            ("statement_timeout: float | None = 0", "300ms/0"),
            ("lock_timeout = 0\nstatement_timeout = 86_400", "0/1d"),
            ("lock_timeout: float | None = None", "300ms/30s"),
        ],
    )
    async def test_they_hold_for_that_migration_alone(self, head, expected, engine, tmp_path):
        versions = third(tmp_path / "v", self.NOTE, 'op.execute("DROP TABLE limits")', head)
        write(versions, upto=0, fourth=revision("0004", "0003", self.NOTE.replace("TABLE limits", "TABLE later")))
        await schema.upgrade(engine, **options(versions))
        async with engine.connect() as connection:
            found = (await connection.execute(text("SELECT (SELECT l FROM limits), (SELECT l FROM later)"))).one()
        assert tuple(found) == (expected, "300ms/30s")
        declared = schema.history(versions=versions)[2]
        sql = await schema.preview(engine, "0003", start="0002", **options(versions))
        lock, statement = declared.limits(QUICK)
        assert f"SET LOCAL lock_timeout = '{lock * 1000:.0f}ms';" in sql
        assert f"SET LOCAL statement_timeout = '{statement * 1000:.0f}ms';" in sql

    @pytest.mark.parametrize("value", ["-1", "'2s'", "True", "86401", "1e400", "nan", "float('nan')", "[1]", "2 +"])
    def test_what_is_no_number_of_seconds_is_refused_with_the_files_name(self, value, tmp_path):
        versions = third(tmp_path / "v", "pass", head=f"lock_timeout = {value}")
        with pytest.raises(SchemaError, match=r"third\.py must give lock_timeout"):
            schema.history(versions=versions)

    async def test_the_hint_names_the_file_where_the_file_sets_the_limit(self, engine, tmp_path):
        versions = third(tmp_path / "v", 'op.execute("SELECT pg_sleep(9)")', head="statement_timeout = 0.1")
        with pytest.raises(MigrationFailed, match=r"raise statement_timeout in third\.py"):
            await schema.upgrade(engine, **options(versions))


class TestLockedTables:
    @pytest.fixture
    async def versions(self, engine, tmp_path) -> Path:
        versions = third(tmp_path / "v", f'op.execute("CREATE TABLE half (id int)")\n{ADD}', head="lock_timeout = 0.2")
        await schema.upgrade(engine, "0002", **options(versions))
        return versions

    async def test_it_fails_fast_names_who_blocks_and_leaves_nothing(self, engine, empty_database, versions):
        secret = "SELECT 'hunter2' FROM account"
        async with other_transaction(empty_database, secret) as holder:
            started = time.monotonic()
            with pytest.raises(MigrationFailed) as failed:
                await schema.upgrade(engine, **options(versions, attempts=1))
            assert 0.2 <= time.monotonic() - started < 20
        error = failed.value
        assert isinstance(error.__cause__, LockTimeout)
        assert (error.revision, error.sqlstate) == ("0003", "55P03")
        assert re.search(
            rf"process {holder} \(the other one, idle in transaction, last statement began \d\.\d s ago\)", str(error)
        )
        assert f"pg_terminate_backend({holder})" in str(error)
        assert "lock_timeout in third.py" in str(error)
        assert "hunter2" not in repr(error)
        assert await current(engine, versions) == ("0002",)
        async with engine.connect() as connection:
            assert (await connection.execute(text("SELECT to_regclass('half')"))).scalar() is None

    async def test_it_is_tried_again_until_the_lock_is_free(self, engine, empty_database, versions):
        said: list[str] = []
        async with other_transaction(empty_database, "SELECT FROM account"):
            upgrading = await upgrading_in_vain(engine, versions, said, until="attempt 3 of 20")
        async with asyncio.timeout(60):
            assert (await upgrading).current == ("0003",)
        assert any(line.startswith("waiting for process") for line in said)
        assert "0003 got no lock within 0.2 s and was rolled back; attempt 2 of 20 in" in "\n".join(said)

    async def test_the_attempts_are_counted_and_others_get_through_between_them(self, engine, empty_database, versions):
        said: list[str] = []
        connection = await asyncpg.connect(empty_database)
        async with other_transaction(empty_database, "SELECT FROM account"):
            upgrading = asyncio.create_task(
                schema.upgrade(engine, **options(versions, attempts=3, progress=said.append))
            )
            through: set[int] = set()
            while not upgrading.done():
                await connection.fetch("SELECT FROM account")  # queues behind the waiting ALTER TABLE
                through.add(len([line for line in said if "got no lock" in line]))
                await asyncio.sleep(0.01)
            with pytest.raises(MigrationFailed, match="after 3 attempts"):
                await upgrading
        await connection.close()
        assert len([line for line in said if "got no lock" in line]) == 2
        assert through >= {1, 2}

    async def test_what_left_its_transaction_by_hand_is_not_tried_again(
        self, engine, empty_database, tmp_path, versions
    ):
        body = 'with op.get_context().autocommit_block():\n    op.execute("CREATE TABLE twice (id int)")\n' + ADD
        other = third(tmp_path / "by hand", body, head="lock_timeout = 0.2")
        said: list[str] = []
        async with other_transaction(empty_database, "SELECT FROM account"):
            with pytest.raises(MigrationFailed) as failed:
                await schema.upgrade(engine, **options(other, progress=said.append))
        assert isinstance(failed.value.__cause__, LockTimeout)
        assert not [line for line in said if "attempt" in line]

    async def test_no_attempt_at_all_is_refused(self, engine, versions):
        with pytest.raises(ConfigurationError):
            await schema.upgrade(engine, **options(versions, attempts=0))

    async def test_a_blocked_migration_needs_no_further_connection_of_the_pool(self, empty_database, versions):
        async with engine_on(empty_database, size=1, max_overflow=0) as small:
            async with other_transaction(empty_database, "SELECT FROM account") as holder:
                with pytest.raises(MigrationFailed, match=f"process {holder}"):
                    await schema.upgrade(small, **options(versions, attempts=1))


def test_a_failed_migration_keeps_its_revision_when_it_is_pickled():
    import pickle

    error = pickle.loads(pickle.dumps(MigrationFailed("no", hint="yes", sqlstate="55P03", revision="0003")))
    assert (error.message, error.hint, error.sqlstate, error.revision) == ("no", "yes", "55P03", "0003")


class TestConcurrentIndexes:
    async def test_up_and_down_need_no_autocommit_block_and_others_write_meanwhile(
        self, engine, empty_database, tmp_path
    ):
        versions = third(tmp_path / "v", INDEX, DROP)
        await schema.upgrade(engine, "0002", **options(versions))
        assert (await schema.upgrade(engine, **options(versions))).current == ("0003",)
        assert await indexes(empty_database) == {"ix_entry_amount": True}
        await schema.downgrade(engine, "0002", **options(versions))
        assert await indexes(empty_database) == {}
        assert await current(engine, versions) == ("0002",)

    async def test_kill_9_while_it_waits_leaves_the_stamp_and_the_next_run_finishes(
        self, engine, empty_database, tmp_path
    ):
        versions = third(tmp_path / "v", INDEX, DROP)
        await schema.upgrade(engine, "0002", **options(versions))
        async with other_transaction(
            empty_database, "INSERT INTO account (name) VALUES ('x'); LOCK TABLE entry IN ROW EXCLUSIVE MODE"
        ):
            killed = python(UPGRADE, empty_database, str(versions), "upgrade")
            try:
                await wait_for(empty_database, BUILDING + " AND EXISTS (SELECT FROM pg_index WHERE NOT indisvalid)")
            finally:
                killed.send_signal(signal.SIGKILL)
                await asyncio.to_thread(killed.communicate)
            assert await current(engine, versions) == ("0002",)
            assert await indexes(empty_database) == {"ix_entry_amount": False}
            said: list[str] = []
            again = asyncio.create_task(schema.upgrade(engine, **options(versions, progress=said.append)))
            await wait_for(empty_database, "true")
            await asyncio.sleep(1.5)  # the dead one's server process notices within a second
            assert not again.done()
        async with asyncio.timeout(60):
            assert (await again).current == ("0003",)
        assert await indexes(empty_database) == {"ix_entry_amount": True}
        assert any("left by an interrupted build: building it anew" in line for line in said)
        assert any(line.startswith("waiting for process") and "the other one" in line for line in said)

    async def test_kill_9_while_dropping_is_finished_by_the_next_run(self, engine, empty_database, tmp_path):
        versions = third(tmp_path / "v", INDEX, DROP)
        await schema.upgrade(engine, **options(versions))
        async with other_transaction(empty_database, "SELECT FROM entry"):
            killed = python(UPGRADE, empty_database, str(versions), "downgrade")
            try:
                await wait_for(empty_database, BUILDING + " AND EXISTS (SELECT FROM pg_index WHERE NOT indisvalid)")
            finally:
                killed.send_signal(signal.SIGKILL)
                await asyncio.to_thread(killed.communicate)
        assert await current(engine, versions) == ("0003",)
        async with asyncio.timeout(60):
            assert (await schema.downgrade(engine, "0002", **options(versions))).current == ("0002",)
        assert await indexes(empty_database) == {}
        assert (await schema.upgrade(engine, **options(versions))).current == ("0003",)

    async def test_a_valid_one_left_without_its_stamp_is_kept(self, engine, empty_database, tmp_path):
        body = (
            'op.create_index("ix_entry_amount", "entry", [sa.text("(amount % 10)"), "account_id"], unique=True,'
            ' postgresql_where=sa.text("amount > 0"), postgresql_concurrently=True)'
        )
        versions = third(tmp_path / "v", "import sqlalchemy as sa\n" + body)
        await schema.upgrade(engine, **options(versions))
        async with engine.begin() as connection:
            before = (await connection.execute(text("SELECT 'ix_entry_amount'::regclass::oid"))).scalar()
            await connection.execute(text("UPDATE alembic_version SET version_num = '0002'"))
        said: list[str] = []
        assert (await schema.upgrade(engine, **options(versions, progress=said.append))).current == ("0003",)
        async with engine.connect() as connection:
            assert (await connection.execute(text("SELECT 'ix_entry_amount'::regclass::oid"))).scalar() == before
            assert (await connection.execute(text("SELECT to_regclass('pg_temp.panda_index_shape')"))).scalar() is None
        assert "index ix_entry_amount is there already" in said

    @pytest.mark.parametrize(
        "made",
        [
            "CREATE INDEX ix_entry_amount ON entry (account_id)",
            "CREATE UNIQUE INDEX ix_entry_amount ON entry (amount)",
            "CREATE INDEX ix_entry_amount ON entry (amount DESC)",
            "CREATE INDEX ix_entry_amount ON entry (amount) WHERE amount > 0",
            "CREATE INDEX ix_entry_amount ON account (name)",
            "CREATE TABLE ix_entry_amount (id int)",
        ],
    )
    async def test_another_thing_of_its_name_is_an_error_and_is_left_alone(
        self, made, engine, empty_database, tmp_path
    ):
        versions = third(tmp_path / "v", INDEX)
        await schema.upgrade(engine, "0002", **options(versions))
        async with engine.begin() as connection:
            await connection.execute(text(made))
        before = await indexes(empty_database)
        with pytest.raises(MigrationFailed, match="not the index that is wanted") as failed:
            await schema.upgrade(engine, **options(versions))
        assert "Drop or rename" in str(failed.value)
        assert await indexes(empty_database) == before
        assert await current(engine, versions) == ("0002",)

    async def test_a_unique_one_that_finds_duplicates_fails_and_can_be_mended(self, engine, empty_database, tmp_path):
        unique = INDEX.replace("postgresql_concurrently", "unique=True, postgresql_concurrently")
        versions = third(tmp_path / "v", unique)
        await schema.upgrade(engine, "0002", **options(versions))
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO account (name) VALUES ('a')"))
            await connection.execute(text("INSERT INTO entry (account_id, amount) VALUES (1, 7), (1, 7)"))
        with pytest.raises(MigrationFailed) as failed:
            await schema.upgrade(engine, **options(versions))
        assert failed.value.sqlstate == "23505"
        assert "7.0000" not in repr(failed.value)
        async with engine.begin() as connection:
            await connection.execute(text("DELETE FROM entry WHERE id = 2"))
        assert (await schema.upgrade(engine, **options(versions))).current == ("0003",)
        assert await indexes(empty_database) == {"ix_entry_amount": True}

    async def test_after_other_work_of_the_migration_it_is_refused_and_before_it_is_not(
        self, engine, empty_database, tmp_path
    ):
        bad = third(tmp_path / "bad", f"{ADD}\n{INDEX}")
        await schema.upgrade(engine, "0002", **options(bad))
        with pytest.raises(MigrationFailed, match=r"after other work of its migration.*migration of its own"):
            await schema.upgrade(engine, **options(bad))
        assert await current(engine, bad) == ("0002",)
        assert await indexes(empty_database) == {}
        good = third(tmp_path / "good", f"{INDEX}\n{ADD}")
        assert (await schema.upgrade(engine, **options(good))).current == ("0003",)

    async def test_in_an_autocommit_block_it_resumes_too(self, engine, empty_database, tmp_path):
        versions = third(tmp_path / "v", f"with op.get_context().autocommit_block():\n    {INDEX}")
        await schema.upgrade(engine, "0002", **options(versions))
        await leave_invalid(empty_database, "entry", "CREATE INDEX CONCURRENTLY ix_entry_amount ON entry (amount)")
        assert await indexes(empty_database) == {"ix_entry_amount": False}
        assert (await schema.upgrade(engine, **options(versions))).current == ("0003",)
        assert await indexes(empty_database) == {"ix_entry_amount": True}

    async def test_two_processes_at_once_build_it_once(self, engine, empty_database, tmp_path):
        versions = third(tmp_path / "v", INDEX, DROP)
        await schema.upgrade(engine, "0002", **options(versions))
        both = [python(UPGRADE, empty_database, str(versions), "upgrade") for _ in range(2)]
        said = [await asyncio.to_thread(process.communicate, timeout=180) for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        assert sorted("applied 0003" in out for out, _ in said) == [False, True]
        assert await indexes(empty_database) == {"ix_entry_amount": True}

    async def test_a_build_of_somebody_elses_is_waited_for_and_kept(self, engine, empty_database, tmp_path):
        versions = third(tmp_path / "v", INDEX)
        await schema.upgrade(engine, "0002", **options(versions))
        builder = await asyncpg.connect(empty_database, server_settings={"application_name": "by hand"})
        said: list[str] = []
        async with other_transaction(empty_database, "LOCK TABLE entry IN ROW EXCLUSIVE MODE"):
            building = asyncio.create_task(
                builder.execute("CREATE INDEX CONCURRENTLY ix_entry_amount ON entry (amount)")
            )
            await wait_for(empty_database, "EXISTS (SELECT FROM pg_index WHERE NOT indisvalid)")
            upgrading = asyncio.create_task(schema.upgrade(engine, **options(versions, progress=said.append)))
            async with asyncio.timeout(60):
                while not any("(by hand), which is building" in line for line in said):
                    await asyncio.sleep(0.02)
        await building
        async with asyncio.timeout(60):
            assert (await upgrading).current == ("0003",)
        await builder.close()
        assert not any("building it anew" in line for line in said)

    async def test_it_gives_up_at_the_statement_limit_and_says_who_blocks(self, engine, empty_database, tmp_path):
        versions = third(tmp_path / "v", INDEX, head="statement_timeout = 0.5")
        await schema.upgrade(engine, "0002", **options(versions))
        async with other_transaction(empty_database, "LOCK TABLE entry IN ROW EXCLUSIVE MODE") as holder:
            started = time.monotonic()
            with pytest.raises(MigrationFailed, match=rf"It waited for process {holder} .*raise statement_timeout in"):
                await schema.upgrade(engine, **options(versions))
            assert time.monotonic() - started < 20
        versions = third(tmp_path / "unhurried", INDEX)
        assert (await schema.upgrade(engine, **options(versions))).current == ("0003",)

    async def test_behind_a_pooler_the_limit_is_the_clients_and_told_the_same(self, empty_database, tmp_path):
        versions = third(tmp_path / "v", INDEX, head="statement_timeout = 0.2")
        behind = build_engine(DatabaseUrl.parse(empty_database), EngineOptions(pgbouncer=True))
        await schema.upgrade(behind, "0002", **options(versions))
        async with other_transaction(empty_database, "LOCK TABLE entry IN ROW EXCLUSIVE MODE"):
            with pytest.raises(MigrationFailed, match=r"not ended within 0\.2 s.*raise statement_timeout in"):
                await schema.upgrade(behind, **options(versions))
        versions = third(tmp_path / "unhurried", INDEX)
        assert (await schema.upgrade(behind, **options(versions))).current == ("0003",)
        await behind.dispose()

    async def test_the_sql_by_hand_does_the_same(self, engine, empty_database, tmp_path):
        versions = third(tmp_path / "v", INDEX, DROP)
        sql = await schema.preview(engine, **options(versions))
        assert re.search(
            r"COMMIT;\s+SET lock_timeout.*?CREATE INDEX CONCURRENTLY ix_entry_amount.*?RESET lock_timeout;\s+BEGIN;",
            sql,
            re.DOTALL,
        )
        await run_by_hand(empty_database, sql)
        assert await current(engine, versions) == ("0003",)
        assert await indexes(empty_database) == {"ix_entry_amount": True}
        await run_by_hand(empty_database, await schema.preview(engine, "0002", **options(versions)))
        assert await indexes(empty_database) == {}
        block = third(
            tmp_path / "b",
            f"with op.get_context().autocommit_block():\n    {INDEX}\n    {INDEX.replace('amount', 'account_id')}",
        )
        sql = await schema.preview(engine, **options(block))
        assert (sql.count("BEGIN;"), sql.count("COMMIT;"), sql.count("INDEX CONCURRENTLY")) == (2, 2, 2)


PARTITIONED = """
op.execute("CREATE TABLE tick (id int, at date) PARTITION BY RANGE (at)")
for month in (1, 2, 3):
    op.execute(f"CREATE TABLE tick_{month} PARTITION OF tick FOR VALUES FROM ('2026-0{month}-01') TO ('2026-0{month + 1}-01')")
""".strip()
TICK = 'op.create_index("ix_tick_id", "tick", ["id"], postgresql_concurrently=True)'
DROP_TICK = 'op.drop_index("ix_tick_id", "tick", postgresql_concurrently=True)'


class TestPartitionedTables:
    @pytest.fixture
    async def versions(self, engine, tmp_path) -> Path:
        tables = revision("0002", "0001", PARTITIONED, 'op.execute("DROP TABLE tick")')
        versions = write(tmp_path / "v", upto=1, second=tables, third=revision("0003", "0002", TICK, DROP_TICK))
        await schema.upgrade(engine, "0002", **options(versions))
        return versions

    async def test_each_partition_is_indexed_and_attached(self, engine, empty_database, versions):
        assert (await schema.upgrade(engine, **options(versions))).current == ("0003",)
        assert await indexes(empty_database, "tick") == {"ix_tick_id": True}
        for month in (1, 2, 3):
            assert await indexes(empty_database, f"tick_{month}") == {f"tick_{month}_ix_tick_id": True}
        await schema.downgrade(engine, "0002", **options(versions))
        assert await indexes(empty_database, "tick") == await indexes(empty_database, "tick_2") == {}

    async def test_kill_9_between_two_partitions_is_picked_up(self, engine, empty_database, versions):
        async with other_transaction(empty_database, "LOCK TABLE tick_2 IN ROW EXCLUSIVE MODE"):
            killed = python(UPGRADE, empty_database, str(versions), "upgrade")
            try:
                await wait_for(empty_database, BUILDING + " AND EXISTS (SELECT FROM pg_index WHERE NOT indisvalid)")
            finally:
                killed.send_signal(signal.SIGKILL)
                await asyncio.to_thread(killed.communicate)
        assert await indexes(empty_database, "tick_1") == {"tick_1_ix_tick_id": True}
        assert await indexes(empty_database, "tick") == {}
        assert await current(engine, versions) == ("0002",)
        async with engine.begin() as connection:
            await connection.execute(
                text("CREATE TABLE tick_4 PARTITION OF tick FOR VALUES FROM ('2026-04-01') TO ('2026-05-01')")
            )
        said: list[str] = []
        async with asyncio.timeout(60):
            assert (await schema.upgrade(engine, **options(versions, progress=said.append))).current == ("0003",)
        assert "index tick_1_ix_tick_id is there already" in said
        assert await indexes(empty_database, "tick") == {"ix_tick_id": True}
        assert await indexes(empty_database, "tick_4") == {"tick_4_ix_tick_id": True}

    async def test_the_last_step_gets_its_lock_or_is_tried_again(self, engine, empty_database, versions):
        async with other_transaction(empty_database, "LOCK TABLE ONLY tick IN ROW EXCLUSIVE MODE"):
            upgrading = await upgrading_in_vain(engine, versions, [], until="attempt 2 of 20")
        async with asyncio.timeout(60):
            assert (await upgrading).current == ("0003",)
        assert await indexes(empty_database, "tick") == {"ix_tick_id": True}

    async def test_the_sql_names_the_partitions_that_there_are(self, engine, empty_database, versions):
        await run_by_hand(empty_database, await schema.preview(engine, **options(versions)))
        assert await indexes(empty_database, "tick") == {"ix_tick_id": True}
        assert await current(engine, versions) == ("0003",)
        await run_by_hand(empty_database, await schema.preview(engine, "0002", **options(versions)))
        assert await indexes(empty_database, "tick_1") == {}

    async def test_what_cannot_be_done_says_how_to_do_it(self, engine, versions, tmp_path):
        async with engine.begin() as connection:
            await connection.execute(
                text(
                    "CREATE TABLE tick_5 PARTITION OF tick FOR VALUES FROM ('2026-05-01') TO ('2026-06-01') PARTITION BY LIST (id)"
                )
            )
        with pytest.raises(MigrationFailed, match=r"tick_5 is no ordinary table.*attach them level by level"):
            await schema.upgrade(engine, **options(versions))
        second = (versions / "second.py").read_text()
        block = f"with op.get_context().autocommit_block():\n    {TICK}"
        by_hand = write(tmp_path / "b", upto=1, second=second, third=revision("0003", "0002", block))
        with pytest.raises(MigrationFailed, match="Take it out of the autocommit block"):
            await schema.upgrade(engine, **options(by_hand))

    @given(st.text(min_size=1, max_size=80), st.text(min_size=1, max_size=80))
    def test_a_partitions_index_has_one_name_that_the_server_can_hold(self, table, index):
        name = child_name(table, index)
        assert len(name.encode()) <= 63
        assert name == child_name(table, index)
        assert child_name(table + "x", index) != name


BACKFILL = """
import sqlalchemy as sa
batch = sa.text("UPDATE account SET note = name WHERE id IN (SELECT id FROM account WHERE note IS NULL ORDER BY id LIMIT 10)")
with op.get_context().autocommit_block():
    while op.get_bind().execute(batch).rowcount:
        pass
""".strip()


class TestBackfill:
    """The recipe of the guide: batches that are committed one by one, found again by what is still empty."""

    async def test_it_goes_on_where_it_was_interrupted(self, engine, tmp_path):
        add = revision("0002", "0001", ADD)
        versions = write(tmp_path / "v", upto=1, second=add, third=revision("0003", "0002", BACKFILL))
        await schema.upgrade(engine, "0002", **options(versions))
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO account (name) SELECT 'n' || i FROM generate_series(1, 45) i"))
            await connection.execute(text("ALTER TABLE account ADD CHECK (id < 30 OR note IS NULL)"))
        with pytest.raises(MigrationFailed):
            await schema.upgrade(engine, **options(versions))
        count = text("SELECT count(note) FROM account")
        async with engine.begin() as connection:
            assert (await connection.execute(count)).scalar() == 20
            await connection.execute(text("ALTER TABLE account DROP CONSTRAINT account_check"))
        assert (await schema.upgrade(engine, **options(versions))).current == ("0003",)
        async with engine.connect() as connection:
            assert (await connection.execute(count)).scalar() == 45


class TestDirections:
    @pytest.fixture
    async def versions(self, engine, tmp_path) -> Path:
        versions = write(tmp_path / "v")
        await schema.upgrade(engine, "0002", timeouts=QUICK, metadata=metadata(), versions=versions)
        return versions

    @pytest.mark.parametrize(
        ("direction", "target", "command"),
        [
            ("up", "0001", "downgrade 0001 --sql"),
            ("up", "base", "downgrade base --sql"),
            ("down", "head", "upgrade 0003 --sql"),
        ],
    )
    async def test_a_preview_of_the_other_way_is_refused_with_the_right_command(
        self, direction, target, command, engine, versions
    ):
        with pytest.raises(ConfigurationError, match=f"panda migrate {command}"):
            await schema.preview(engine, target, direction=direction, **options(versions))
        assert await schema.preview(engine, target, **options(versions))
        assert await schema.preview(engine, "0002", direction=direction, **options(versions)) == ""


class TestCommands:
    def panda(self, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "core.cli.main", "migrate", *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "DATABASE__POSTGRES_URL": url,
                "DATABASE__TIMEOUTS__LOCK": "0.2",
            },
            capture_output=True,
            text=True,
            check=False,
        )

    @pytest.mark.usefixtures("clean")
    def test_upgrade_does_not_print_the_sql_of_a_downgrade_nor_downgrade_that_of_an_upgrade(self, database_url_sync):
        refused = panda("migrate", "upgrade", "--sql", "base", url=database_url_sync)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "`panda migrate downgrade base --sql` prints its SQL." in refused.stderr
        assert "DROP TABLE" in panda("migrate", "downgrade", "base", "--sql", url=database_url_sync).stdout

    async def test_plan_shows_the_limits_and_a_failure_names_its_revision(self, empty_database):
        table = await asyncio.to_thread(self.panda, empty_database, "plan")
        assert re.search(r"^revision  lock   statement  what it does$", table.stdout, re.MULTILINE), table.stdout
        assert re.search(r"^0001 +0\.2 s +600 s +The first tables", table.stdout, re.MULTILINE)
        async with other_transaction(empty_database, "CREATE TABLE users (id int)"):
            # The name is taken by a table that nobody sees yet: CREATE TABLE waits for its fate.
            failed = await asyncio.to_thread(self.panda, empty_database, "upgrade", "--json", "--attempts", "2")
        error = json.loads(failed.stdout)["error"]
        assert (failed.returncode, error["type"], error["revision"]) == (1, "MigrationFailed", "0001")
        assert "after 2 attempts" in error["message"]
        assert "the other one" in error["hint"]


@pytest.fixture(scope="module")
def server(component):
    component(binaries() is not None, "apt-get install postgresql")
    component(pgbouncer() is not None, "apt-get install pgbouncer")
    with debian_server() as server, pooled(server) as url:
        yield server, url


@pytest.mark.component
class TestOtherServers:
    """PostgreSQL 15, directly and through PgBouncer, where a session is not one's own."""

    @pytest.mark.parametrize("through", [False, True])
    async def test_concurrent_indexes_are_built_resumed_and_dropped(self, through, server, tmp_path):
        debian, bouncer = server
        url = bouncer if through else debian.url()
        tables = revision(
            "0002",
            "0001",
            PARTITIONED + '\nop.execute("CREATE TABLE entry (amount int)")',
            'op.execute("DROP TABLE tick, entry")',
        )
        versions = write(
            tmp_path / "v",
            upto=1,
            second=tables,
            third=revision("0003", "0002", f"{INDEX}\n{TICK}", f"{DROP}; {DROP_TICK}"),
        )
        engine = build_engine(DatabaseUrl.parse(url), EngineOptions(pgbouncer=through))
        direct = build_engine(DatabaseUrl.parse(debian.url()), EngineOptions())
        try:
            await schema.upgrade(engine, "0002", **options(versions))
            await leave_invalid(debian.url(), "entry", "CREATE INDEX CONCURRENTLY ix_entry_amount ON entry (amount)")
            await leave_invalid(debian.url(), "tick_2", "CREATE INDEX CONCURRENTLY tick_2_ix_tick_id ON tick_2 (id)")
            assert (await schema.upgrade(engine, **options(versions))).current == ("0003",)
            async with direct.connect() as connection:
                found = await connection.execute(
                    text("SELECT count(*) FROM pg_index WHERE indexrelid::regclass::text LIKE '%ix_%' AND indisvalid")
                )
                assert found.scalar() == 5
            await schema.downgrade(engine, "base", **options(versions))
            async with direct.connect() as connection:
                held = await connection.execute(text(HELD))
                assert held.scalar() == 0, "a lock was left with the pooler"
            for _ in range(8 if through else 0):
                client = await asyncpg.connect(url.replace("?sslmode=disable", ""), ssl=False, statement_cache_size=0)
                assert await client.fetchval("SHOW statement_timeout") == "0", "a limit leaked to another client"
                await client.close()
        finally:
            async with direct.begin() as connection:
                await connection.execute(text("DROP TABLE IF EXISTS alembic_version"))
            await engine.dispose()
            await direct.dispose()
