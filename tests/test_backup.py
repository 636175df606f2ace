"""Backups: the file that is whole or not there, the restore that is proven equal or did not happen."""

import asyncio
import contextlib
import dataclasses
import datetime as dt
import hashlib
import io
import json
import logging
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import asyncpg
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.cli.main import main
from core.config.options import Timeouts
from core.config.settings import get_settings
from core.database import schema
from core.database.backup import (
    Contents,
    Manifest,
    SequenceValue,
    Step,
    TableDigest,
    backup,
    compare,
    differences,
    restore,
    verify_backup,
)
from core.database.backup._container import BLOCK, opened_backup
from core.database.backup._manifest import written
from core.database.backup._part import SUFFIX, check_target, part_file
from core.database.backup._script import Script, parsed_copy, without_psql
from core.database.backup._target import opened
from core.database.backup._tools import available_tools, find_tools, running
from core.database.connection import DatabaseManager
from core.database.embedded import EmbeddedServer, client_folders
from core.database.engine import DatabaseUrl, EngineOptions, build_engine
from core.database.errors import (
    BackupDamaged,
    BackupDiffers,
    BackupRefused,
    BackupToolFailed,
    HostUnreachable,
    LockTimeout,
    PandaDatabaseError,
    PermissionDenied,
    SchemaLockTimeout,
    SchemaMissing,
)
from tests.cluster.debian import PASSWORD, DebianServer, binaries, debian_server, pgbouncer, pooled

SECRET = "s3cret:with\\odd 'signs@%"
NOWHERE = "postgresql://panda:geheim@127.0.0.1:1/panda"
QUICK = EngineOptions(timeouts=Timeouts(migration_lock=0.5, lock=0.5))

FILL = """
INSERT INTO users (username, hashed_password) SELECT 'trader ' || i, 'argon2-' || i FROM generate_series(1, 30) i;
INSERT INTO portfolios (portfolio_id, broker, currency, name) VALUES ('p1', 'paper', 'INR', 'one'), ('p2', 'paper', 'INR', 'two');
CREATE TABLE portfolio_snapshots_y2026m01 PARTITION OF portfolio_snapshots
    FOR VALUES FROM ('2026-01-01 00:00:00+00') TO ('2026-02-01 00:00:00+00');
CREATE TABLE portfolio_snapshots_y2026m02 PARTITION OF portfolio_snapshots
    FOR VALUES FROM ('2026-02-01 00:00:00+00') TO ('2026-03-01 00:00:00+00');
INSERT INTO portfolio_snapshots (portfolio_id, snapshot_time, broker, cash, realized_pnl, unrealized_pnl, total_pnl, equity)
    SELECT 'p1', timestamptz '2026-01-01 03:00+00' + i * interval '1 hour', 'paper', 1000 + i, i, 0.0000000001, i + 0.0000000001, 2000
    FROM generate_series(0, 1000) i;
"""
ODD = r"""
CREATE SCHEMA "odd ""place";
CREATE TYPE mood AS ENUM ('calm', 'wild');
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE FUNCTION doubled(integer) RETURNS integer LANGUAGE sql IMMUTABLE AS $f$
/*
\restrict me
SET transaction_timeout = 0;
*/
SELECT $1 * 2
$f$;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN RAISE EXCEPTION 'never'; END $f$;
CREATE TABLE "odd ""place"."Ta, (ble" (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "a ""b, c;" text, feeling mood, size positive,
    twice integer GENERATED ALWAYS AS (doubled(7)) STORED,
    whole double precision, span interval, at timestamptz, raw bytea, list text[], doc jsonb, gone integer);
INSERT INTO "odd ""place"."Ta, (ble" ("a ""b, c;", feeling, size, whole, span, at, raw, list, doc)
    SELECT E'tab\t line\n back\\slash \\. end', 'wild', 3, 0.1::float8 + i, '1 mon 2 days 03:04:05.000006', '2026-03-29 01:30+00',
        '\x00ff5c2e', ARRAY['a', NULL, E'\\.'], '{"b": 1.10, "a": [null, "\u20b9"]}' FROM generate_series(1, 5) i;
INSERT INTO "odd ""place"."Ta, (ble" ("a ""b, c;") VALUES (E'\\.'), (''), (NULL), (E'\n\\.\n');
ALTER TABLE "odd ""place"."Ta, (ble" DROP COLUMN gone;
CREATE TABLE "odd ""place".nothing ();
CREATE VIEW glance AS SELECT username FROM users;
CREATE MATERIALIZED VIEW kept AS SELECT count(*) AS n FROM users;
CREATE TRIGGER refuse BEFORE DELETE ON users FOR EACH ROW EXECUTE FUNCTION refuse();
CREATE SEQUENCE steps START 100 INCREMENT 5;
SELECT nextval('steps'), nextval('steps');
CREATE POLICY mine ON trading_sessions FOR SELECT USING (broker = current_setting('panda.broker', true));
ALTER TABLE trading_sessions ENABLE ROW LEVEL SECURITY;
COMMENT ON TABLE users IS 'who may trade';
GRANT SELECT ON users TO pg_monitor;
"""


@asynccontextmanager
async def sql(url: str) -> AsyncGenerator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def execute(url: str, statement: str) -> None:
    async with sql(url) as connection:
        await connection.execute(statement)


async def value(url: str, query: str):
    async with sql(url) as connection:
        return await connection.fetchval(query)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def superuser(url: str) -> str:
    return url.replace("//panda", "//postgres", 1)


def engine_of(url: str):
    return build_engine(DatabaseUrl.parse(url), EngineOptions())


async def equal(left: str, right: str) -> tuple[str, ...]:
    one, two = engine_of(superuser(left)), engine_of(superuser(right))
    try:
        return await compare(one, two)
    finally:
        await one.dispose()
        await two.dispose()


async def catalog_of(url: str) -> schema.Catalog:
    engine = engine_of(url)
    async with engine.connect() as connection:
        found = await schema.catalog(connection)
    await engine.dispose()
    return found


@pytest.fixture
async def filled(database_url: str) -> str:
    """The URL of a database at head with rows in it."""
    await execute(database_url, FILL)
    return database_url


@pytest.fixture
async def another(empty_database: str) -> str:
    """The URL of an empty database besides `filled`."""
    return empty_database


@pytest.fixture
async def made(filled: str, tmp_path: Path) -> Path:
    """A backup of `filled`."""
    return (await backup(filled, tmp_path / "made.backup")).file


def manifest_of(dump: bytes = b"", **changes) -> Manifest:
    contents = Contents(tables=(TableDigest(name="public.users", rows=3, digest="0" * 32),), sequences=())
    values: dict[str, Any] = {
        "created_at": dt.datetime(2026, 11, 22, 3, 0, tzinfo=dt.UTC), "release": "0.1.0", "database": "panda",
        "system_identifier": "7", "server_version": "18.4", "server_version_num": 180004, "dump_version": "18.4",
        "revision": "0001", "roles": (), "catalog": (), "contents": contents, "dump_bytes": len(dump),
        "dump_sha256": hashlib.sha256(dump).hexdigest(),
    }  # fmt: skip
    return Manifest(**{**values, **changes})


def container(path: Path, dump: bytes, manifest: Manifest) -> Path:
    """A backup file with that dump and manifest, in order by itself."""
    with part_file(path) as part:
        part.write(dump)
        part.finish(written(manifest), mtime=int(manifest.created_at.timestamp()))
        part.publish(path, force=True)
    return path


def rewritten(path: Path, target: Path, **changes) -> Path:
    """The backup with another manifest: whole by its checksums, false in what it says."""
    with opened_backup(path) as source:
        dump = os.pread(source.descriptor, source.manifest.dump_bytes, BLOCK)
        return container(target, dump, dataclasses.replace(source.manifest, **changes))


def check(path: Path) -> None:
    with opened_backup(path) as source:
        source.check_dump(lambda _: None)


# The file


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dump = b"PGDMP" + os.urandom(700)
    return container(tmp_path_factory.mktemp("small") / "small.backup", dump, manifest_of(dump))


def test_every_truncation_is_found(small: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copyfile(small, cut)
    for size in reversed(range(small.stat().st_size)):
        os.truncate(cut, size)
        with pytest.raises(BackupDamaged, match=r"cut off|is empty"):
            check(cut)


@settings(
    max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(data=st.data())
def test_every_altered_bit_is_found(small: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(small.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "flipped").write_bytes(content)
    with pytest.raises(BackupDamaged):
        check(tmp_path / "flipped")


@settings(
    max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(junk=st.binary(max_size=3000), keep=st.integers(0, 1024))
def test_junk_is_refused_in_words(small: Path, tmp_path: Path, junk: bytes, keep: int) -> None:
    (tmp_path / "junk").write_bytes(small.read_bytes()[:keep] + junk)
    with pytest.raises(BackupDamaged):
        check(tmp_path / "junk")


def test_bytes_after_the_end_are_found(small: Path, tmp_path: Path) -> None:
    (tmp_path / "longer").write_bytes(small.read_bytes() + b"\0" * 512)
    with pytest.raises(BackupDamaged, match="surrounds"):
        check(tmp_path / "longer")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"PGDMP\x01\x10", "plain dump of pg_dump"),
        (b"--\n-- PostgreSQL database dump\n--\n", "plain SQL script"),
        (b"\x1f\x8b\x08", "compressed by another program"),
        (b"hello", "not a backup"),
    ],
)
def test_another_kind_of_file_is_named_for_what_it_is(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(BackupDamaged, match=said):
        check(tmp_path / "file")


def test_a_newer_format_is_told_from_damage(small: Path, tmp_path: Path) -> None:
    with part_file(tmp_path / "newer") as part:
        part.write(b"x")
        text = written(manifest_of(b"x")).replace(b'"format_version": 1', b'"format_version": 2')
        part.finish(text, mtime=1)
        part.publish(tmp_path / "newer", force=False)
    with pytest.raises(BackupDamaged, match="format that this release does not know"):
        check(tmp_path / "newer")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place, said in (
        (tmp_path, "a folder"),
        (tmp_path / "pipe", "no regular file"),
        (tmp_path / "no", "cannot be read"),
    ):
        with pytest.raises(BackupRefused, match=said):
            check(place)


def test_tar_and_sha256sum_alone_can_read_it(small: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "xf", small], cwd=tmp_path, check=True)
    folder = tmp_path / "alpha-panda-backup"
    assert (folder / "database.dump").read_bytes().startswith(b"PGDMP")
    assert json.loads((folder / "manifest.json").read_text())["format"] == "alpha-panda-backup"
    said = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, check=True, capture_output=True, text=True)
    assert said.stdout.count("OK") == 2


# Writing it


def test_a_file_is_never_replaced_without_force(tmp_path: Path) -> None:
    target = tmp_path / "there"
    target.write_text("old")
    with pytest.raises(BackupRefused, match="exists"):
        check_target(target, force=False)
    with part_file(target) as part:
        part.write(b"new")
        with pytest.raises(BackupRefused, match="exists"):
            part.publish(target, force=False)
    assert target.read_text() == "old"
    assert names_in(tmp_path) == ["there"]


def test_a_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = container(tmp_path / "private", b"", manifest_of())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_a_killed_run_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path: Path) -> None:
    target = tmp_path / "x.backup"
    leftover = tmp_path / f"x.backup{SUFFIX}"
    leftover.write_bytes(b"half")
    with part_file(target):
        assert leftover.stat().st_size == 0
        with pytest.raises(BackupRefused, match="another process"), part_file(target):
            pass
        assert leftover.exists()
    assert names_in(tmp_path) == []


def test_a_run_that_was_killed_in_its_last_step_has_left_a_whole_backup(small: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.backup"
    shutil.copyfile(small, target)
    (tmp_path / f"x.backup{SUFFIX}").hardlink_to(target)
    with part_file(target) as part:
        part.write(b"a new one, which fails")
    check(target)


def test_a_folder_or_a_link_is_no_target(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    cases = ((tmp_path, "is a folder"), (tmp_path / "link", "no regular file"), (tmp_path / "no" / "x", "no folder"))
    for place, said in cases:
        with pytest.raises(BackupRefused, match=said):
            check_target(place, force=True)


async def test_a_folder_that_may_not_be_written_is_refused_before_anything_is_done() -> None:
    with pytest.raises(BackupRefused, match="no file can be made"):
        await backup(NOWHERE, Path("/proc/x.backup"))


# pg_restore's script


@given(
    rows=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n")).filter(lambda row: row != "\\.")),
    sizes=st.lists(st.integers(1, 40), min_size=1),
)
async def test_rows_come_out_of_a_script_whole_however_it_is_cut(rows: list[str], sizes: list[int]) -> None:
    body = "".join(f"{row}\n" for row in rows)
    text = f"--\n-- x\n--\n\\restrict A\n\nSET a = 1;\nCOPY public.t (a) FROM stdin;\n{body}\\.\n\n\nSELECT setval('s', 1);\n"
    left = text.encode()
    turn = iter(range(1 << 30))

    async def read() -> bytes:
        nonlocal left
        size = sizes[next(turn) % len(sizes)]
        chunk, left = left[:size], left[size:]
        return chunk

    script = Script(read)
    assert await script.statement() == "SET a = 1;"
    assert await script.statement() == "COPY public.t (a) FROM stdin;"
    assert b"".join([chunk async for chunk in script.rows()]) == body.encode()
    assert await script.statement() == "SELECT setval('s', 1);"
    assert await script.statement() is None


async def test_a_script_that_ends_among_the_rows_is_an_error() -> None:
    parts = iter([b"COPY public.t (a) FROM stdin;\n1\n2\n", b""])

    async def read() -> bytes:
        return next(parts, b"")

    script = Script(read)
    await script.statement()
    with pytest.raises(BackupToolFailed, match="middle of a table's rows"):
        _ = [chunk async for chunk in script.rows()]


def test_names_of_a_copy_are_read_with_their_quotes() -> None:
    found = parsed_copy('COPY "odd ""place"."Ta, (ble" (id, "a ""b, c;", "x)") FROM stdin;')
    assert found is not None
    assert (found.schema, found.table, found.columns) == ('odd "place', "Ta, (ble", ("id", 'a "b, c;', "x)"))
    assert parsed_copy("COPY public.nothing  FROM stdin;") is not None
    assert parsed_copy("SELECT 1;") is None


def test_only_the_header_and_the_last_line_are_freed_of_what_a_server_does_not_take() -> None:
    body = "CREATE FUNCTION f() AS $$\n\\unrestrict abc\nSET transaction_timeout = 0;\n$$;\n"
    text = f"\\restrict abc\nSET transaction_timeout = 0;\nSET row_security = off;\n{body}\n\\unrestrict abc\n\n"
    assert without_psql(text) == f"\n\nSET row_security = off;\n{body}\n"


# Digests


async def test_two_databases_are_compared_row_by_row(filled: str, another: str, tmp_path: Path) -> None:
    await restore(another, (await backup(filled, tmp_path / "b")).file)
    assert await equal(filled, another) == ()
    snapshot = "public.portfolio_snapshots_y2026m01"
    one = "portfolio_id = 'p1' AND snapshot_time = '2026-01-01 04:00+00'"

    await execute(another, f"UPDATE portfolio_snapshots SET cash = cash + 0.0000000001 WHERE {one}")
    assert await equal(filled, another) == (f"table {snapshot}: 741 rows in both, but not the same ones",)
    await execute(another, f"UPDATE portfolio_snapshots SET cash = cash - 0.0000000001 WHERE {one}")
    assert await equal(filled, another) == ()  # though that row now stands elsewhere in the table

    await execute(another, f"DELETE FROM portfolio_snapshots WHERE {one}")
    assert await equal(filled, another) == (f"table {snapshot}: the first has 741 rows, the second 740",)
    await execute(another, "INSERT INTO portfolios VALUES ('p3', 'paper', NULL, 'INR', 'three', now())")
    assert "table public.portfolios: the first has 2 rows, the second 3" in await equal(filled, another)
    await execute(another, "SELECT setval('users_id_seq', 31)")
    assert "sequence public.users_id_seq: the first stands at 30, the second at 31" in await equal(filled, another)


async def test_a_row_that_stands_twice_is_told_from_two_others(filled: str, another: str) -> None:
    """Where a digest by exclusive or would not see it."""
    await execute(filled, "CREATE TABLE t AS SELECT * FROM (VALUES (1), (1), (2)) v (n)")
    await execute(another, "CREATE TABLE t AS SELECT * FROM (VALUES (2), (3), (3)) v (n)")
    assert "table public.t: 3 rows in both, but not the same ones" in await equal(filled, another)


async def test_settings_of_the_database_do_not_change_a_digest(filled: str, another: str, tmp_path: Path) -> None:
    await execute(filled, ODD)
    await restore(another, (await backup(superuser(filled), tmp_path / "b")).file)
    name = await value(another, "SELECT current_database()")
    for setting in ("DateStyle = 'German, DMY'", "TimeZone = 'Asia/Kolkata'", "extra_float_digits = -5",
                    "IntervalStyle = 'iso_8601'", "bytea_output = 'escape'"):  # fmt: skip
        await execute(superuser(another), f"ALTER DATABASE {name} SET {setting}")
    assert await equal(filled, another) == ()


@given(st.integers(0, 2**31), st.booleans(), st.booleans())
def test_differences_name_what_is_on_one_side_only(last: int, called: bool, swapped: bool) -> None:
    one = Contents(tables=(TableDigest(name="a", rows=1, digest="00"),), sequences=())
    two = Contents(tables=(), sequences=(SequenceValue(name="s", last_value=last, is_called=called),))
    left, right = (two, one) if swapped else (one, two)
    said = differences(left, right)
    assert said == tuple(
        sorted(
            [
                f"table a is only in the {'second' if swapped else 'first'}",
                f"sequence s is only in the {'first' if swapped else 'second'}",
            ]
        )
    )
    assert differences(one, one) == ()


# There and back


async def test_everything_comes_back_into_an_empty_database(filled: str, another: str, tmp_path: Path) -> None:
    await execute(filled, ODD)
    report = await backup(superuser(filled), tmp_path / "all.backup")
    assert (report.revision, report.replaced, report.warnings) == (schema.history()[-1].revision, False, ())
    assert report.size == report.file.stat().st_size
    assert stat.S_IMODE(report.file.stat().st_mode) == 0o600

    restored = await restore(another, report.file)  # as the role panda, no superuser
    assert (restored.rows, restored.tables, restored.removed) == (report.rows, report.tables, 0)
    assert restored.catalog_compared
    assert await equal(filled, another) == ()
    assert schema.differences(await catalog_of(filled), await catalog_of(another)) == ()
    assert await value(another, "SELECT nextval('steps')") == 110
    assert await value(another, "SELECT n FROM kept") == 30
    assert await value(another, "SELECT reltuples FROM pg_class WHERE relname = 'users'") == 30  # analyzed
    assert await value(another, "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'users'") == "panda"
    with pytest.raises(asyncpg.RaiseError, match="never"):
        await execute(another, "DELETE FROM users")
    async with DatabaseManager(another, "production", "migrations_only") as manager:
        assert (await manager.health_check())["status"] == "healthy"


async def test_replacing_leaves_what_the_backup_holds_and_nothing_else(filled: str, made: Path) -> None:
    await execute(
        filled,
        "DELETE FROM portfolio_snapshots; CREATE VIEW later AS SELECT 1; CREATE SCHEMA later;"
        "CREATE TABLE portfolio_snapshots_y2026m03 PARTITION OF portfolio_snapshots"
        " FOR VALUES FROM ('2026-03-01 00:00:00+00') TO ('2026-04-01 00:00:00+00');",
    )
    report = await restore(filled, made, replace=True)
    assert report.removed > 0
    assert (await verify_backup(made, against=filled)).differences == ()
    assert await value(
        filled, "SELECT to_regclass('portfolio_snapshots_y2026m03') IS NULL AND to_regnamespace('later') IS NULL"
    )


async def test_rows_written_during_a_backup_are_in_both_dump_and_digest_or_in_neither(
    filled: str, another: str, tmp_path: Path
) -> None:
    stop = asyncio.Event()

    async def write() -> int:
        count = 0
        async with sql(filled) as connection:
            while not stop.is_set():
                count += 1
                await connection.execute(
                    "INSERT INTO users (username, hashed_password) VALUES ($1, 'x')", f"busy {count}"
                )
        return count

    writer = asyncio.ensure_future(write())
    report = await backup(filled, tmp_path / "busy.backup")
    stop.set()
    assert await writer > 0
    assert (await restore(another, report.file)).rows == report.rows
    await execute(
        another, "INSERT INTO users (username, hashed_password) VALUES ('next', 'x')"
    )  # the sequence is past all rows


async def test_a_backup_of_an_older_revision_is_restored_and_says_what_to_do(
    filled: str, another: str, made: Path, tmp_path: Path
) -> None:
    older = rewritten(made, tmp_path / "older", revision="0001", catalog=())
    with pytest.raises(BackupDiffers):  # it is not what it says
        await restore(another, older)
    report = await restore(another, rewritten(made, tmp_path / "older", revision="0001"))
    assert any("panda migrate upgrade" in warning for warning in report.warnings)


# Restores that must not happen


async def test_a_database_that_is_not_empty_is_refused(filled: str, made: Path) -> None:
    with pytest.raises(BackupRefused, match=r"not empty.*--replace"):
        await restore(filled, made)
    assert (await verify_backup(made, against=filled)).differences == ()


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("CREATE TABLE ledger (n integer)", "neither this release's nor in the backup: table public.ledger"),
        ("UPDATE alembic_version SET version_num = 'deadbeef'", "not recognised"),
        ("DROP TABLE alembic_version", "not recognised"),
    ],
)
async def test_what_is_not_ours_is_never_replaced(filled: str, made: Path, statement: str, said: str) -> None:
    await execute(filled, statement)
    with pytest.raises(BackupRefused, match=said):
        await restore(filled, made, replace=True)
    assert await value(filled, "SELECT count(*) FROM users") == 30


async def test_a_foreign_database_is_refused(another: str, made: Path) -> None:
    await execute(another, "CREATE TABLE users (name text); INSERT INTO users VALUES ('theirs')")
    with pytest.raises(BackupRefused, match="not recognised"):
        await restore(another, made, replace=True)
    assert await value(another, "SELECT name FROM users") == "theirs"


async def test_a_damaged_file_does_not_reach_the_database(made: Path) -> None:
    with made.open("r+b") as file:
        file.seek(2000)
        byte = file.read(1)
        file.seek(2000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(BackupDamaged, match="SHA-256"):
        await restore(NOWHERE, made)


async def test_a_newer_revision_server_or_dump_is_refused(another: str, made: Path, tmp_path: Path) -> None:
    cases = (
        ({"revision": "9999"}, "newer than .* the head of this release"),
        ({"revision": "deadbeef"}, "none of this project's"),
        ({"server_version": "19.1", "server_version_num": 190001}, "which is older"),
        ({"dump_version": "97.1"}, "of PostgreSQL 97 or newer are needed"),
        ({"roles": ("panda_gone",)}, "roles that this server does not have: panda_gone"),
    )
    for changes, said in cases:
        with pytest.raises(BackupRefused, match=said):
            await restore(another, rewritten(made, tmp_path / "changed", **changes))
    assert await value(another, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == 0


@pytest.mark.parametrize("change", ["digest", "sequence", "catalog"])
async def test_a_restore_that_is_not_equal_is_rolled_back(filled: str, made: Path, tmp_path: Path, change: str) -> None:
    with opened_backup(made) as source:
        manifest = source.manifest
    contents, tables = manifest.contents, list(manifest.contents.tables)
    index = next(i for i, table in enumerate(tables) if table.name == "public.users")
    digest = tables[index].digest
    tables[index] = dataclasses.replace(tables[index], digest=("0" if digest[0] != "0" else "1") + digest[1:])
    changes = {
        "digest": {"contents": dataclasses.replace(contents, tables=tuple(tables))},
        "sequence": {"contents": dataclasses.replace(contents, sequences=())},
        "catalog": {"catalog": manifest.catalog[1:]},
    }[change]
    await execute(filled, "INSERT INTO users (username, hashed_password) VALUES ('later', 'x')")
    with pytest.raises(BackupDiffers, match="rolled back"):
        await restore(filled, rewritten(made, tmp_path / "false", **changes), replace=True)
    assert await value(filled, "SELECT count(*) FROM users") == 31


async def test_tables_in_use_and_a_running_migration_stop_a_restore_soon(filled: str, made: Path) -> None:
    async with sql(filled) as connection, connection.transaction():
        await connection.fetch("SELECT * FROM users")
        with pytest.raises(LockTimeout):
            await restore(filled, made, replace=True, options=QUICK)
    engine = engine_of(filled)
    async with schema.migration_lock(engine, timeouts=Timeouts()):
        with pytest.raises(SchemaLockTimeout):
            await restore(filled, made, replace=True, options=QUICK)
    await engine.dispose()
    assert await value(filled, "SELECT count(*) FROM users") == 30


class Interruption(Exception):
    """Raised out of a progress callback, in the middle of the work."""


@pytest.mark.parametrize("activity", ["restoring", "comparing rows", "building indexes"])
@pytest.mark.parametrize("how", ["raises", "cancelled", "connection lost"])
async def test_whatever_ends_a_restore_the_old_content_stays(filled: str, made: Path, activity: str, how: str) -> None:
    await execute(filled, "INSERT INTO users (username, hashed_password) VALUES ('later', 'x')")
    kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()"
    task: asyncio.Task[object]

    def end(step: Step) -> None:
        if step.activity != activity:
            return
        if how == "raises":
            raise Interruption
        if how == "cancelled":
            task.cancel()
        else:
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, execute(superuser(filled), kill)).result()

    task = asyncio.ensure_future(restore(filled, made, replace=True, progress=end))
    with pytest.raises((Interruption, asyncio.CancelledError, PandaDatabaseError)):
        await task
    assert await value(filled, "SELECT count(*) FROM users") == 31
    assert await value(filled, "SELECT count(*) FROM portfolio_snapshots") == 1001


async def test_a_full_disk_of_the_server_leaves_the_old_content(open_folder: Path, tmp_path: Path) -> None:
    """No file may grow beyond a limit, which a server meets as it meets a full disk: in the middle of a table."""
    server = EmbeddedServer(open_folder / "full", settings={"fsync": "off"})
    url = server.ensure()
    try:
        engine = engine_of(url)
        await schema.upgrade(engine)
        await engine.dispose()
        await execute(
            url, FILL + "CREATE TABLE big AS SELECT i, repeat('x', 500) AS filler FROM generate_series(1, 80000) i"
        )
        report = await backup(url, tmp_path / "b")
        await execute(url, "DELETE FROM big WHERE i > 10")
        server.stop()
        limit = 17 * 1024 * 1024  # above a segment of the log

        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        code = f"from pathlib import Path; from core.database.embedded import EmbeddedServer as S; s = S(Path({str(server.directory)!r})); s.ensure(); s.keep()"
        subprocess.run([sys.executable, "-c", code], check=True, preexec_fn=limited)
        with pytest.raises(PandaDatabaseError, match="extend file"):
            await restore(url, report.file, replace=True)
        assert await value(url, "SELECT count(*) FROM big") == 10
    finally:
        server.stop()
        shutil.rmtree(open_folder / "full", ignore_errors=True)


# Backups that must not happen


async def test_an_empty_or_foreign_database_is_not_backed_up(another: str, tmp_path: Path) -> None:
    await execute(another, "CREATE TABLE theirs (n integer)")
    with pytest.raises(SchemaMissing, match="none of this project's tables"):
        await backup(another, tmp_path / "b")
    assert names_in(tmp_path) == []


async def test_an_unreachable_database_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(HostUnreachable):
        await backup(NOWHERE, tmp_path / "b")
    with pytest.raises(HostUnreachable, match="none of the 2 hosts"):
        await backup("postgresql://panda@127.0.0.1:1,127.0.0.1:2/panda", tmp_path / "b")
    with pytest.raises(BackupRefused, match="no database in"):
        await backup(f"embedded://{tmp_path}/nowhere", tmp_path / "b")
    assert names_in(tmp_path) == []


async def test_tables_that_may_not_be_read_are_named(filled: str, tmp_path: Path) -> None:
    await execute(superuser(filled), "CREATE TABLE closed (n integer); CREATE TABLE shut (n integer)")
    with pytest.raises(PermissionDenied, match=r"role panda may not read public.closed, public.shut\. GRANT SELECT"):
        await backup(filled, tmp_path / "b")
    assert names_in(tmp_path) == []


async def test_rows_that_a_policy_hides_are_never_left_out_silently(filled: str, another: str, tmp_path: Path) -> None:
    await execute(
        filled,
        "ALTER TABLE strategies ENABLE ROW LEVEL SECURITY; ALTER TABLE strategies FORCE ROW LEVEL SECURITY;"
        "CREATE POLICY few ON strategies USING (strategy_id = 's1');"
        "CREATE POLICY fewer ON portfolios AS RESTRICTIVE USING (portfolio_id = 'p1')",
    )
    with pytest.raises(PermissionDenied, match=r"policies may hide rows of public.portfolios, public.strategies"):
        await backup(filled, tmp_path / "b")
    report = await backup(superuser(filled), tmp_path / "b")
    await restore(another, report.file)  # though the policy is forced on its owner once it is there
    assert await value(superuser(another), "SELECT count(*) FROM portfolios") == 2
    assert await value(another, "SELECT count(*) FROM portfolios") == 1


async def test_a_table_that_is_being_changed_is_waited_for_a_while(filled: str, tmp_path: Path) -> None:
    async with sql(filled) as connection, connection.transaction():
        await connection.execute("ALTER TABLE users ADD COLUMN later integer")
        with pytest.raises(LockTimeout):
            await backup(filled, tmp_path / "b", options=QUICK)
    assert names_in(tmp_path) == []


async def test_pgbouncer_and_large_objects_are_refused(filled: str, tmp_path: Path) -> None:
    with pytest.raises(BackupRefused, match=r"PgBouncer.*DATABASE__PGBOUNCER=false"):
        await backup(filled, tmp_path / "b", options=EngineOptions(pgbouncer=True))
    await execute(filled, "SELECT lo_create(0)")
    with pytest.raises(BackupRefused, match="1 large objects"):
        await backup(filled, tmp_path / "b")


def fake_tools(folder: Path, version: str, body: str = "exit 1") -> Path:
    folder.mkdir(exist_ok=True)
    for name in ("pg_dump", "pg_restore"):
        program = folder / name
        program.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && {{ echo "{name} (PostgreSQL) {version}"; exit 0; }}\n{body}\n'
        )
        program.chmod(0o755)
    return folder


@pytest.mark.builtin_server(reason="the text names its major version")
async def test_tools_older_than_the_server_are_refused_with_what_to_install(filled: str, tmp_path: Path) -> None:
    old = fake_tools(tmp_path / "old", "14.1")
    with pytest.raises(BackupRefused, match=r"PostgreSQL 18 or newer are needed; found: 14.1 in .*postgresql.?-?.*18"):
        await backup(filled, tmp_path / "b", programs=old)
    with pytest.raises(BackupRefused, match="found: none at all"):
        await backup(filled, tmp_path / "b", programs=tmp_path)


async def test_the_words_of_a_failed_program_are_told_and_the_old_file_stays(
    filled: str, made: Path, tmp_path: Path
) -> None:
    before = made.read_bytes()
    broken = fake_tools(
        tmp_path / "broken", "18.9", "head -c 100000 /dev/zero; echo 'pg_dump: error: no luck' >&2; exit 3"
    )
    with pytest.raises(BackupToolFailed, match=r"pg_dump failed with status 3: pg_dump: error: no luck"):
        await backup(filled, made, force=True, programs=broken)
    assert made.read_bytes() == before
    assert names_in(tmp_path) == ["broken", "made.backup"]


async def test_a_pg_restore_that_fails_among_the_rows_is_quoted_and_nothing_is_stored(
    another: str, made: Path, tmp_path: Path
) -> None:
    real = client_folders()[0] / "pg_restore"
    body = f'case "$*" in *=data*) {real} "$@" | head -c 6000; echo \'pg_restore: error: no luck\' >&2; exit 1;; esac; exec {real} "$@"'
    with pytest.raises(BackupToolFailed, match=r"status 1: pg_restore: error: no luck"):
        await restore(another, made, programs=fake_tools(tmp_path / "broken", "18.9", body))
    assert await value(another, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == 0


def test_the_oldest_tools_that_are_new_enough_are_taken() -> None:
    found = available_tools()
    assert {tools.major for tools in found} >= {18}
    assert all(tools.pg_dump.resolve().name == "pg_dump" for tools in found), "a wrapper that only starts another"
    assert find_tools(at_least=18).major == min(tools.major for tools in found if tools.major >= 18)
    for tools in found:
        if str(tools.folder).startswith(str(client_folders()[0].parent.parent)):
            assert not tools.speaks_tls()


async def test_a_program_is_ended_with_the_block_that_reads_it(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            async with running(["/bin/sleep", "60"], environment={}) as output:
                await output.read(1)
    assert time.monotonic() - started < 30


# Secrets


@pytest.mark.builtin_server(reason="it lets the role in whatever the password")
async def test_neither_command_line_nor_environment_shows_the_password(filled: str, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    spy = fake_tools(
        tmp_path / "spy", "18.9", f'{{ echo "$@"; env; stat -c %a "$PGPASSFILE"; cat "$PGPASSFILE"; }} > {seen}; exit 1'
    )
    url = filled.replace("panda@", "panda:s3cret%3Awith%5Codd%20%27signs%40%25@", 1)
    with pytest.raises(BackupToolFailed) as caught:
        await backup(url, tmp_path / "b", programs=spy)
    assert "s3cret" not in str(caught.value)
    *shown, mode, passwords = seen.read_text().splitlines()
    assert "s3cret" not in "\n".join(shown)
    assert mode == "600"
    assert passwords == "*:*:*:*:" + SECRET.replace("\\", "\\\\").replace(":", "\\:")
    place = next(line.partition("=")[2] for line in shown if line.startswith("PGPASSFILE="))
    assert not Path(place).parent.exists()


# Verifying


async def test_verifying_says_what_was_proven(made: Path, filled: str) -> None:
    shallow = await verify_backup(made)
    assert len(shallow.proven) == 2
    assert shallow.not_proven != ()
    made.chmod(0o644)
    assert "chmod 600" in (await verify_backup(made)).warnings[0]
    await execute(filled, "UPDATE users SET hashed_password = 'other' WHERE id = 3")
    found = await verify_backup(made, against=filled)
    assert found.differences == ("table public.users: 30 rows in both, but not the same ones",)


async def test_a_deep_check_restores_it_elsewhere_and_leaves_nothing(
    filled: str, made: Path, open_folder: Path, tmp_path: Path
) -> None:
    scratch = open_folder / "scratch"
    scratch.mkdir(mode=0o755)
    report = await verify_backup(made, deep=True, scratch=scratch)
    assert report.not_proven == ()
    assert "equal row by row" in report.proven[2]
    with opened_backup(made) as source:
        contents = source.manifest.contents
    fewer = dataclasses.replace(contents, tables=contents.tables[1:])
    with pytest.raises(BackupDiffers):
        await verify_backup(rewritten(made, tmp_path / "false", contents=fewer), deep=True, scratch=scratch)
    assert names_in(scratch) == []
    with pytest.raises(BackupRefused, match="--scratch"):
        await verify_backup(made, deep=True, scratch=tmp_path / "no")


# The command


@pytest.fixture
def environment(filled: str, tmp_path: Path) -> dict[str, str]:
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("DATABASE", "ENVIRONMENT"))}
    return clean | {"DATABASE__POSTGRES_URL": filled, "COLUMNS": "80"}


def panda(environment: dict[str, str], folder: Path, *arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "core.cli.main", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, env=environment, cwd=folder, **options,
    )  # fmt: skip


@pytest.fixture
def quickly(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """The command in this process: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    loggers = [logging.getLogger(name) for name in ("", "core")]
    before = [(list(logger.handlers), logger.level) for logger in loggers]

    def run(*arguments: str, **changes: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        get_settings.cache_clear()
        with mock.patch.dict(os.environ, environment | changes, clear=True), warnings.catch_warnings():
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(arguments)
        return code, out.getvalue(), err.getvalue()

    yield run
    get_settings.cache_clear()
    structlog.reset_defaults()
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.level = handlers, level


def test_the_commands_tell_people_and_programs(quickly: Callable[..., Any], another: str, tmp_path: Path) -> None:
    code, out, _ = quickly("backup", "b", "--json")
    assert (code, json.loads(out)["rows"] > 1000) == (0, True)
    code, out, err = quickly("backup", "b")
    assert (code, out, "--force" in err) == (2, "", True)
    code, out, err = quickly("backup", "b", "--force")
    assert (code, "password hashes" in err) == (0, True)
    assert max(map(len, out.replace(str(tmp_path), "").splitlines())) <= 80

    code, out, _ = quickly("verify-backup", "b", "--against-database")
    assert (code, out.count("  proven: ")) == (0, 3)
    code, _, err = quickly("restore", "b")
    assert (code, "not empty" in err) == (2, True)
    code, _, err = quickly("restore", "b", "--replace")
    assert (code, "Say --yes" in err) == (2, True)
    code, out, _ = quickly("restore", "b", "--replace", "--json", ENVIRONMENT="production")
    assert (code, "in production" in json.loads(out)["error"]["message"]) == (2, True)
    code, out, _ = quickly("restore", "b", "--replace", "--yes", "--json")
    assert (code, json.loads(out)["catalog_compared"]) == (0, True)
    code, out, _ = quickly("restore", "b", DATABASE__POSTGRES_URL=another)
    assert (code, "equal row by row" in out) == (0, True)
    asyncio.run(execute(another, "DELETE FROM users WHERE id = 1"))
    code, out, _ = quickly("verify-backup", "b", "--against-database", DATABASE__POSTGRES_URL=another)
    assert (code, "differs: table public.users: the backup has 30 rows, the database 29" in out) == (1, True)

    os.truncate(tmp_path / "b", 5000)
    assert quickly("verify-backup", "b")[0] == 6
    for name in ("backup", "restore", "verify-backup"):
        assert quickly(name, "-")[0] == 2


def test_a_terminal_sees_bars_and_a_question(environment: dict[str, str], tmp_path: Path) -> None:
    code = "import pty, sys; sys.exit(pty.spawn([sys.executable, '-m', 'core.cli.main', *sys.argv[1:]]) >> 8)"
    command = [sys.executable, "-c", code, "backup", "b"]
    done = subprocess.run(command, cwd=tmp_path, env=environment | {"TERM": "xterm"}, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)  # fmt: skip
    assert (done.returncode, "dumping" in done.stdout, "Traceback" in done.stdout) == (0, True, False)
    check(tmp_path / "b")


def test_a_full_disk_ends_a_backup_in_words_and_leaves_the_old_one(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "b").write_text("the old one")

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    done = panda(environment, tmp_path, "backup", "b", "--force", preexec_fn=small)
    assert (done.returncode, "cannot be written" in done.stderr, "Traceback" in done.stderr) == (1, True, False)
    assert names_in(tmp_path) == ["b"]
    assert (tmp_path / "b").read_text() == "the old one"


@pytest.mark.builtin_server(reason="the stand-in for pg_dump speaks no TLS")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_no_half_backup(environment: dict[str, str], tmp_path: Path, how: signal.Signals) -> None:
    slow = fake_tools(tmp_path / "slow", "18.9", "echo PGDMP; exec sleep 60")
    command = [sys.executable, "-m", "core.cli.main", "backup", "b", "--programs", slow]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    part = tmp_path / f"b{SUFFIX}"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > BLOCK) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert not (tmp_path / "b").exists()
    assert part.exists() == (how is signal.SIGKILL)
    assert process.returncode == (-9 if how is signal.SIGKILL else 130), said
    done = panda(environment, tmp_path, "backup", "b")
    assert (done.returncode, names_in(tmp_path)) == (0, ["b", "slow"])


# Debian's PostgreSQL 15, over TLS, with passwords


@pytest.fixture(scope="module")
def tls_server(component) -> Iterator[DebianServer]:
    component(binaries() is not None, "apt-get install postgresql")
    with debian_server() as server:
        yield server


@asynccontextmanager
async def database_on(server: DebianServer, name: str) -> AsyncGenerator[str]:
    query = f"?sslmode=verify-full&sslrootcert={server.authority}"
    await execute(server.url(query="?sslmode=require"), f"CREATE DATABASE {name}")
    yield server.url(database=name, query=query)
    await execute(server.url(query="?sslmode=require"), f"DROP DATABASE {name} WITH (FORCE)")


def plain(url: str) -> str:
    """For a driver that has the authority in another place."""
    return url.partition("?")[0] + "?sslmode=require"


@pytest.mark.component
async def test_a_server_15_over_tls_goes_there_and_back_and_into_18(
    tls_server: DebianServer, another: str, tmp_path: Path
) -> None:
    async with database_on(tls_server, "source") as url, database_on(tls_server, "target") as target:
        async with DatabaseManager(url, "testing", "auto"):
            await execute(plain(url), FILL)
        report = await backup(url, tmp_path / "b", options=EngineOptions(environment="production"))
        assert report.server_version.startswith("15.")
        assert (await restore(target, report.file, options=EngineOptions(environment="production"))).catalog_compared
        await restore(another, report.file)
        one, two, three = engine_of(plain(url)), engine_of(plain(target)), engine_of(another)
        assert await compare(one, two) == ()
        assert await compare(one, three) == ()
        for engine in (one, two, three):
            await engine.dispose()
        deep = await verify_backup(report.file, deep=True)
        assert deep.not_proven == ()


@pytest.mark.component
async def test_the_rows_of_odd_types_have_one_digest_on_15_and_18(tls_server: DebianServer, another: str) -> None:
    table = ODD[ODD.index("CREATE TABLE") : ODD.index("ALTER TABLE")]
    statements = ODD[: ODD.index("CREATE FUNCTION refuse")] + table
    async with database_on(tls_server, "odd") as url:
        await execute(plain(url), statements)
        await execute(another, statements)
        one, two = engine_of(plain(url)), engine_of(another)
        assert await compare(one, two) == ()
        await one.dispose()
        await two.dispose()


@pytest.mark.component
async def test_a_dump_of_18_is_refused_by_a_server_15(tls_server: DebianServer, made: Path) -> None:
    async with database_on(tls_server, "older") as url:
        with pytest.raises(BackupRefused, match=r"comes from PostgreSQL 18.* version 18 or newer"):
            await restore(url, made)
        assert await value(plain(url), "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == 0


@pytest.mark.component
async def test_the_scripts_of_newer_tools_run_on_an_older_server(tls_server: DebianServer, tmp_path: Path) -> None:
    async with database_on(tls_server, "source") as url, database_on(tls_server, "target") as target:
        async with DatabaseManager(url, "testing", "auto"):
            await execute(plain(url), FILL)
        report = await backup(url, tmp_path / "b")
        await restore(target, report.file, programs=client_folders()[0])
        assert (await verify_backup(report.file, against=target)).differences == ()


@pytest.mark.component
async def test_tools_without_tls_are_not_taken_where_the_connection_is_encrypted(
    tls_server: DebianServer, tmp_path: Path
) -> None:
    async with database_on(tls_server, "source") as url:
        async with DatabaseManager(url, "testing", "auto"):
            pass
        with pytest.raises(BackupRefused, match="newer with TLS are needed"):
            await backup(url, tmp_path / "b", programs=client_folders()[0])
        with pytest.raises(BackupRefused, match="newer with TLS are needed"):
            await backup(url.partition("?")[0], tmp_path / "b", programs=client_folders()[0])
        async with opened(url, EngineOptions(), create=False) as target, asyncio.timeout(60):
            assert target.encrypted
            with target.client_environment() as names:
                assert names["PGSSLMODE"] == "verify-full"
                assert PASSWORD not in str(names)


@pytest.mark.component
async def test_a_pgbouncer_that_nobody_told_of_is_refused(component, tls_server: DebianServer, tmp_path: Path) -> None:
    component(pgbouncer() is not None, "apt-get install pgbouncer")
    with pooled(tls_server) as url:
        with pytest.raises(BackupRefused, match="DATABASE__PGBOUNCER=false"):
            await backup(url, tmp_path / "b")
