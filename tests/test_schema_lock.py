import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import event
from sqlalchemy.util import await_only

from core.config.options import Timeouts
from core.database import schema
from core.database.engine import DatabaseUrl, EngineOptions, build_engine
from core.database.errors import MigrationFailed, SchemaLockTimeout
from tests.small_schema import QUICK, checked_out, engine_on, metadata, revision, write
from tests.waiting import wait_for

ROOT = Path(__file__).parent.parent

# One process imports everything and forks: ten real processes at the price of one start.
TEN_PROCESSES = """
import asyncio, json, os, sys
from pathlib import Path
from core.database import schema
from tests.small_schema import QUICK, checked_out, engine_on, metadata
import core.database.schema._alembic

async def prepare(url, versions, mode):
    async with engine_on(url, size=1, max_overflow=0) as engine:
        state = await schema.prepare(
            engine, mode=mode, environment="testing", metadata=metadata(), versions=Path(versions), timeouts=QUICK
        )
        return state.status

def child(pipe):
    try:
        said = asyncio.run(prepare(*sys.argv[1:]))
    except BaseException as error:
        said = repr(error)
    os.write(pipe, (json.dumps(said) + "\\n").encode())
    os._exit(0)

reading, writing = os.pipe()
for _ in range(10):
    if os.fork() == 0:
        child(writing)
os.close(writing)
print(os.fdopen(reading).read())
for _ in range(10):
    os.wait()
"""

MIGRATE = """
import asyncio, sys
from pathlib import Path
from core.database import schema
from tests.small_schema import QUICK, checked_out, engine_on, metadata

async def work(url, versions):
    async with engine_on(url) as engine:
        await schema.upgrade(engine, metadata=metadata(), versions=Path(versions), timeouts=QUICK)

asyncio.run(work(*sys.argv[1:]))
"""


def python(source: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@asynccontextmanager
async def second_database(url: str) -> AsyncGenerator[str]:
    """A further empty database beside the one of `url`."""
    name = url.rsplit("/", 1)[1] if "?" not in url else url.split("?", 1)[0].rsplit("/", 1)[1]
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"CREATE DATABASE {name}_too")
        yield url.replace(f"/{name}", f"/{name}_too", 1)
        await connection.execute(f"DROP DATABASE {name}_too WITH (FORCE)")
    finally:
        await connection.close()


@asynccontextmanager
async def holding_the_lock(url: str, key: int = 1) -> AsyncGenerator[int]:
    """Another connection holds one of the two keys; gives its process id on the server."""
    connection = await asyncpg.connect(url, server_settings={"application_name": "the other one"})
    try:
        async with connection.transaction():
            await connection.execute(f"SELECT pg_advisory_xact_lock({0x50414E44}, {key})")
            yield connection.get_server_pid()
    finally:
        await connection.close()


@pytest.mark.parametrize("mode", ["auto", "create_all"])
async def test_ten_processes_starting_on_an_empty_database_all_succeed(mode, empty_database, tmp_path):
    versions = write(tmp_path / "versions")
    parent = python(TEN_PROCESSES, empty_database, str(versions), mode)

    out, err = await asyncio.to_thread(parent.communicate, timeout=180)

    assert err == ""
    assert [json.loads(line) for line in out.split("\n") if line] == ["at_head"] * 10


async def test_three_upgrades_in_one_event_loop_on_two_databases_all_succeed(empty_database, tmp_path):
    versions = write(tmp_path / "versions")
    async with second_database(empty_database) as other:
        async with (
            engine_on(empty_database) as first,
            engine_on(empty_database) as again,
            engine_on(other) as second,
            asyncio.timeout(60),
        ):
            states = await asyncio.gather(
                *(
                    schema.upgrade(engine, metadata=metadata(), versions=versions, timeouts=QUICK)
                    for engine in (first, again, second)
                )
            )
    assert [state.status for state in states] == ["at_head"] * 3


async def test_previews_beside_an_upgrade_do_not_disturb_it(empty_database, tmp_path):
    versions = write(tmp_path / "versions", fourth=revision("0004", "0003", 'op.execute("SELECT pg_sleep(0.3)")'))
    async with engine_on(empty_database) as engine:
        options: dict[str, Any] = {"metadata": metadata(), "versions": versions, "timeouts": QUICK}
        upgrading = asyncio.create_task(schema.upgrade(engine, **options))
        previews = [await schema.preview(engine, "head", start="base", **options) for _ in range(3)]
        assert (await upgrading).status == "at_head"
    assert len(set(previews)) == 1
    assert "CREATE TABLE entry" in previews[0]


async def test_upgrades_in_several_threads_with_loops_of_their_own_all_succeed(empty_database, tmp_path):
    versions = write(tmp_path / "versions")
    found = []

    async def work() -> None:
        async with engine_on(empty_database) as engine:
            state = await schema.upgrade(engine, metadata=metadata(), versions=versions, timeouts=QUICK)
            found.append(state.status)

    threads = [threading.Thread(target=asyncio.run, args=(work(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert found == ["at_head"] * 4


async def test_who_waits_does_not_hold_back_an_index_that_is_built_concurrently(empty_database, tmp_path):
    """A waiter with a snapshot and CREATE INDEX CONCURRENTLY would wait for each other, unseen by the server."""
    versions = write(
        tmp_path / "versions",
        upto=2,
        third=revision(
            "0003",
            "0002",
            "time.sleep(0.3)\nwith op.get_context().autocommit_block():\n"
            '    op.execute("CREATE INDEX CONCURRENTLY ix_entry_account_id ON entry (account_id)")',
        ),
    )
    parent = python(TEN_PROCESSES, empty_database, str(versions), "auto")
    started = time.monotonic()
    out, err = await asyncio.to_thread(parent.communicate, timeout=180)
    assert err == ""
    assert [json.loads(line) for line in out.split("\n") if line] == ["at_head"] * 10
    assert time.monotonic() - started < QUICK.migration


@pytest.mark.parametrize("key", [1, 2])
async def test_a_lock_that_is_held_too_long_ends_the_wait_and_names_its_holder(key, empty_database, tmp_path):
    limits = Timeouts(migration_lock=0.4)
    versions = write(tmp_path / "versions")
    async with engine_on(empty_database) as engine, holding_the_lock(empty_database, key) as holder:
        started = time.monotonic()
        with pytest.raises(SchemaLockTimeout) as refused:
            await schema.upgrade(engine, metadata=metadata(), versions=versions, timeouts=limits)
        assert 0.35 < time.monotonic() - started < 20
        assert f"process {holder} of the server (the other one)" in str(refused.value)
        assert "0.4 s" in str(refused.value)
        assert "DATABASE__TIMEOUTS__MIGRATION_LOCK" in str(refused.value)
        for mode in ("auto", "create_all"):
            with pytest.raises(SchemaLockTimeout):
                await schema.prepare(
                    engine,
                    mode=mode,
                    environment="testing",
                    verify=False,
                    metadata=metadata(),
                    versions=versions,
                    timeouts=limits,
                )


async def test_a_schema_at_head_is_prepared_although_the_lock_is_held(empty_database, tmp_path):
    versions = write(tmp_path / "versions")
    async with engine_on(empty_database) as engine:
        options: dict[str, Any] = {
            "metadata": metadata(),
            "versions": versions,
            "timeouts": Timeouts(migration_lock=0.2),
        }
        await schema.upgrade(engine, **options)
        async with holding_the_lock(empty_database):
            for mode in ("auto", "create_all", "migrations_only"):
                state = await schema.prepare(engine, mode=mode, environment="testing", **options)
                assert state.status == "at_head"


async def test_the_wait_ends_as_soon_as_the_lock_is_free(empty_database, tmp_path):
    versions = write(tmp_path / "versions")
    async with engine_on(empty_database) as engine:
        async with holding_the_lock(empty_database):
            waiting = asyncio.create_task(
                schema.upgrade(engine, metadata=metadata(), versions=versions, timeouts=QUICK)
            )
            await asyncio.sleep(0.5)
            assert not waiting.done()
        async with asyncio.timeout(60):
            assert (await waiting).status == "at_head"


async def test_a_wait_that_is_cancelled_leaves_no_connection(empty_database, tmp_path):
    versions = write(tmp_path / "versions")
    async with engine_on(empty_database) as engine, holding_the_lock(empty_database):
        waiting = asyncio.create_task(schema.upgrade(engine, metadata=metadata(), versions=versions, timeouts=QUICK))
        await asyncio.sleep(0.3)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await wait_for(
            empty_database,
            "NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'schema-test' AND datname = current_database()"
            " AND state LIKE 'idle in transaction%')",
        )
        assert checked_out(engine) == 0


async def test_a_process_killed_inside_a_migration_does_not_block_the_next(empty_database, tmp_path):
    sleeper = 'op.execute("CREATE TABLE half (id int)")\nop.execute("SELECT pg_sleep(60)")'
    versions = write(tmp_path / "versions", upto=2, third=revision("0003", "0002", sleeper))
    killed = python(MIGRATE, empty_database, str(versions))
    try:
        await wait_for(
            empty_database,
            "EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND state = 'active'"
            " AND pid <> pg_backend_pid() AND datname = current_database()) AND (SELECT string_agg(objid::text, ' ' ORDER BY objid) FROM pg_locks"
            " WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname ="
            " current_database())) = '1 2'",
        )
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    started = time.monotonic()
    mended = write(tmp_path / "mended")
    async with engine_on(empty_database) as engine:
        before = await schema.inspect(engine, metadata=metadata(), versions=mended)
        state = await schema.upgrade(engine, metadata=metadata(), versions=mended, timeouts=QUICK)

    assert before.current == ("0002",)
    assert state.status == "at_head"
    assert time.monotonic() - started < 30


async def test_a_keeper_that_is_lost_takes_nothing_back_and_hides_no_failure(empty_database, tmp_path):
    lose = (
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND state = 'idle in transaction'"
    )
    done = write(tmp_path / "done", upto=1, second=revision("0002", "0001", f'op.execute("{lose}")'))
    failing = write(tmp_path / "failing", upto=1, second=revision("0002", "0001", f'op.execute("{lose}")\n1 / 0'))
    async with engine_on(empty_database) as engine:
        options: dict[str, Any] = {"timeouts": QUICK, "metadata": metadata()}
        with pytest.raises(MigrationFailed, match="division by zero"):
            await schema.upgrade(engine, versions=failing, **options)
        assert (await schema.upgrade(engine, versions=done, **options)).current == ("0002",)
        assert checked_out(engine) == 0


async def test_a_migration_that_commits_between_the_two_looks_is_no_contradiction(empty_database, tmp_path):
    # A tree without concurrent indexes, which would wait for the transaction that looks.
    versions = write(tmp_path / "versions")
    next(versions.glob("*0003*")).unlink()
    tree: dict[str, Any] = {"metadata": metadata(), "versions": versions}
    engine, other = (build_engine(DatabaseUrl.parse(empty_database), EngineOptions()) for _ in range(2))
    await schema.upgrade(engine, **tree)
    await schema.downgrade(engine, "base", **tree)
    looks = []

    def migrate_after_the_first(connection, cursor, statement, *rest):
        if not looks:
            await_only(schema.upgrade(other, **tree))
        looks.append(statement)

    async with engine.connect() as connection:
        event.listen(connection.sync_connection, "after_cursor_execute", migrate_after_the_first)
        state = await schema.inspect(connection, **tree)
    await engine.dispose()
    await other.dispose()

    assert state.status == "at_head"
    assert len(looks) == 4
