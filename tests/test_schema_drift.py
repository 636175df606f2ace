"""Drift in words, and the adoption of databases that are ours without their stamp."""

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from core.config.options import Timeouts
from core.database import schema
from core.database.errors import (
    SchemaAhead,
    SchemaError,
    SchemaLockTimeout,
    SchemaMissing,
    SchemaTablesMissing,
    SchemaUnstamped,
)
from core.database.models import Base
from core.database.schema._scripts import MIGRATIONS
from tests.cluster.debian import DebianServer, binaries, debian_server
from tests.expected_catalogs import write_all
from tests.small_schema import QUICK, engine_on, metadata, write
from tests.test_cli import answer, panda

pytestmark = pytest.mark.usefixtures("clean")

# What is done to a database at head, what is said of it, and the mend, which must work where it is a statement.
DRIFT = {
    "DROP INDEX ix_trading_sessions_user_id": (
        "index ix_trading_sessions_user_id of table trading_sessions is missing",
        "CREATE INDEX ix_trading_sessions_user_id ON public.trading_sessions USING btree (user_id)",
    ),
    "CREATE INDEX ix_more ON users (created_at)": (
        "index ix_more of table users is not in head (CREATE INDEX ix_more ON public.users USING btree (created_at))",
        "DROP INDEX ix_more, if no query needs it",
    ),
    "ALTER TABLE strategies ALTER version TYPE bigint": (
        "column strategies.version is bigint, head has integer",
        "ALTER TABLE strategies ALTER COLUMN version TYPE integer",
    ),
    "ALTER TABLE users ALTER created_at DROP DEFAULT": (
        "column users.created_at has no default, head has now()",
        "ALTER TABLE users ALTER COLUMN created_at SET DEFAULT now()",
    ),
    "ALTER TABLE users ALTER is_active SET DEFAULT false": (
        "column users.is_active has the default false, head has true",
        "ALTER TABLE users ALTER COLUMN is_active SET DEFAULT true",
    ),
    "ALTER TABLE portfolios ALTER strategy_id SET DEFAULT 'x'": (
        "column portfolios.strategy_id has the default 'x'::text, head has none",
        "ALTER TABLE portfolios ALTER COLUMN strategy_id DROP DEFAULT",
    ),
    "ALTER TABLE users ALTER hashed_password DROP NOT NULL": (
        "column users.hashed_password may be NULL, in head it is NOT NULL",
        "ALTER TABLE users ALTER COLUMN hashed_password SET NOT NULL",
    ),
    "ALTER TABLE users DROP COLUMN is_active": (
        "column users.is_active is missing, head has boolean not null default true",
        "ALTER TABLE users ADD COLUMN is_active boolean not null default true",
    ),
    "ALTER TABLE users ADD email text": (
        "column email of table users is not in head (text null)",
        "ALTER TABLE users DROP COLUMN email, if nothing needs it",
    ),
    "ALTER TABLE users DROP CONSTRAINT uq_users_username": (
        "constraint uq_users_username of table users is missing",
        "ALTER TABLE users ADD CONSTRAINT uq_users_username UNIQUE (username)",
    ),
    "ALTER TABLE strategies DROP CONSTRAINT ck_strategies_version,"
    " ADD CONSTRAINT ck_strategies_version CHECK (version >= 1) NOT VALID": (
        "constraint ck_strategies_version of table strategies is NOT VALID, so rows from before it are unchecked",
        "ALTER TABLE strategies VALIDATE CONSTRAINT ck_strategies_version",
    ),
    "ALTER TABLE strategies DROP CONSTRAINT ck_strategies_version,"
    " ADD CONSTRAINT ck_strategies_version CHECK (version >= 0)": (
        "constraint ck_strategies_version of table strategies is CHECK ((version >= 0)), head has CHECK ((version >= 1))",
        "ALTER TABLE strategies DROP CONSTRAINT ck_strategies_version, ADD CONSTRAINT ck_strategies_version CHECK ((version >= 1))",
    ),
    "CREATE TABLE rest PARTITION OF portfolio_snapshots DEFAULT": (
        "partition rest of portfolio_snapshots is a default partition, which slows reads and blocks new months",
        "move its rows, then ALTER TABLE portfolio_snapshots DETACH PARTITION rest",
    ),
    "CREATE TABLE portfolio_snapshots_y2026m03 PARTITION OF portfolio_snapshots FOR VALUES FROM ('2026-04-01Z') TO ('2026-05-01Z')": (
        (
            "partition portfolio_snapshots_y2026m03 of portfolio_snapshots holds 2026-04-01 00:00:00+00 to"
            " 2026-05-01 00:00:00+00, not the UTC month of its name"
        ),
        "rename it: ALTER TABLE portfolio_snapshots_y2026m03 RENAME TO ...",
    ),
    "CREATE UNLOGGED TABLE portfolio_snapshots_y2026m12 PARTITION OF portfolio_snapshots FOR VALUES FROM ('2026-12-01Z') TO ('2027-01-01Z')": (
        "partition portfolio_snapshots_y2026m12 of portfolio_snapshots is unlogged: a crash empties it",
        "ALTER TABLE portfolio_snapshots_y2026m12 SET LOGGED",
    ),
    "DROP TABLE instrument_versions": ("table instrument_versions is missing", "restore it from a backup"),
    "ALTER TABLE users ENABLE ROW LEVEL SECURITY": (
        "table users is plain, row security enabled, head has plain",
        None,
    ),
    "CREATE POLICY mine ON users USING (id > 1)": (
        "policy mine of table users is not in head (permissive for all to public using ((id > 1)))",
        "DROP POLICY mine ON users, if nothing needs it",
    ),
}
NOTES = {
    "CREATE TABLE foo (id int PRIMARY KEY, n int DEFAULT 3); CREATE INDEX ON foo (n)": "table foo is not one of this project's",
    "CREATE VIEW names AS SELECT username FROM users": "view names is not one of this project's",
    "GRANT SELECT ON users TO pg_monitor": "privileges on users for pg_monitor are not head's: select",
    "COMMENT ON TABLE users IS 'People'": "comment on table public.users is not head's",
    "CREATE TABLE portfolio_snapshots_y2020m01 (id int)": (
        "table portfolio_snapshots_y2020m01 is named as a partition of portfolio_snapshots and is not attached to it"
    ),
}
SILENT = [
    "CREATE TABLE portfolio_snapshots_y2026m12 PARTITION OF portfolio_snapshots FOR VALUES FROM ('2026-12-01Z') TO ('2027-01-01Z')",
    "GRANT CREATE ON SCHEMA public TO PUBLIC",
    "ALTER DATABASE {} SET TimeZone = 'Asia/Kolkata'",
    "ALTER DATABASE {} SET DateStyle = 'German'",
]


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement.replace("{}", connection._params.database))
    finally:
        await connection.close()


async def everything(url: str) -> Any:
    """What a database holds: tables, stamps and settings of its own."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetch(
            "SELECT c.oid, c.relname, c.relfilenode, c.xmin::text FROM pg_class c"
            " WHERE relnamespace NOT IN ('pg_catalog'::regnamespace, 'pg_toast'::regnamespace) ORDER BY 1"
        )
    finally:
        await connection.close()


@pytest.fixture
async def engine(database_url: str):
    async with engine_on(database_url) as engine:
        yield engine


class TestExpectedCatalogs:
    async def test_they_are_what_the_migrations_make(self, empty_database: str, tmp_path: Path):
        versions = tmp_path / "versions"
        shutil.copytree(MIGRATIONS / "versions", versions)
        written = await write_all(empty_database, versions)
        assert [file.name for file in written] == [f"{item.revision}.jsonl" for item in schema.history()]
        for file in written:
            stored = MIGRATIONS / "catalogs" / file.name
            assert stored.read_text() == file.read_text(), "run `python -m tests.expected_catalogs`"

    async def test_a_revision_without_one_is_told_with_the_command(self, empty_database: str, tmp_path: Path):
        async with engine_on(empty_database) as engine:
            with pytest.raises(SchemaError, match=r"no catalog of revision 0003.*expected_catalogs"):
                await schema.drift(engine, metadata=metadata(), versions=write(tmp_path / "versions"))


class TestDrift:
    async def test_a_database_at_head_has_none(self, engine: AsyncEngine):
        found = await schema.drift(engine)
        assert (found.clean, found.differences, found.compared_with) == (True, (), found.state.head)

    @pytest.mark.parametrize("change", DRIFT)
    async def test_each_kind_is_told_in_words_with_its_mend(self, change: str, engine: AsyncEngine, database_url: str):
        await execute(database_url, change)
        found = await schema.drift(engine)
        says, mend = DRIFT[change]
        assert [(item.says, item.mend) for item in found.drift] == [(says, mend)]
        assert not found.clean
        assert not found.notes

        statement = (mend or "").partition(", if ")[0]
        if statement.startswith(("ALTER", "CREATE", "DROP")) and "..." not in statement and "indisvalid" not in change:
            await execute(database_url, statement)
            assert (await schema.drift(engine)).differences == ()

    @pytest.mark.parametrize("change", NOTES)
    async def test_what_harms_nothing_is_a_note(self, change: str, engine: AsyncEngine, database_url: str):
        await execute(database_url, change)
        found = await schema.drift(engine)
        assert [item.says for item in found.differences] == [NOTES[change]]
        assert found.clean

    @pytest.mark.parametrize("change", SILENT)
    async def test_what_belongs_to_no_migration_is_not_told(self, change: str, engine: AsyncEngine, database_url: str):
        await execute(database_url, change)
        found = await schema.drift(engine)
        assert (found.clean, found.differences) == (True, ())

    async def test_a_database_behind_is_compared_with_its_own_revision(self, empty_database: str):
        async with engine_on(empty_database) as engine:
            await schema.upgrade(engine, "0001")
            found = await schema.drift(engine)
        assert (found.compared_with, found.drift, found.clean) == ("0001", (), False)

    async def test_an_empty_database_lacks_every_table_and_nothing_else_is_said(self, empty_database: str):
        async with engine_on(empty_database) as engine:
            found = await schema.drift(engine)
        assert {item.name for item in found.drift} == {*Base.metadata.tables, "alembic_version"}

    async def test_a_number_column_is_compared_with_its_precision(self, engine: AsyncEngine, database_url: str):
        await execute(database_url, "ALTER TABLE instruments ALTER tick_size TYPE numeric(18, 4)")
        (told,) = (await schema.drift(engine)).drift
        assert told.says == "column instruments.tick_size is numeric(18,4), head has numeric(28,10)"
        assert told.mend == "ALTER TABLE instruments ALTER COLUMN tick_size TYPE numeric(28,10)"

    async def test_an_index_that_was_not_built_to_its_end_is_invalid(self, engine: AsyncEngine, database_url: str):
        await execute(database_url, "DROP INDEX ix_portfolios_strategy_id")
        writer = await asyncpg.connect(database_url)
        builder = await asyncpg.connect(database_url)
        try:
            async with writer.transaction():
                await writer.execute("LOCK TABLE portfolios IN ROW EXCLUSIVE MODE")
                await builder.execute("SET lock_timeout = '100ms'")
                with pytest.raises(asyncpg.LockNotAvailableError):
                    await builder.execute(
                        "CREATE INDEX CONCURRENTLY ix_portfolios_strategy_id ON portfolios (strategy_id)"
                    )
        finally:
            await builder.close()
            await writer.close()
        (told,) = (await schema.drift(engine)).drift
        assert told.says == (
            "index ix_portfolios_strategy_id of table portfolios is INVALID:"
            " it was not built to its end and no query uses it"
        )
        await execute(database_url, str(told.mend))
        assert (await schema.drift(engine)).differences == ()

    async def test_it_works_in_another_schema_than_public(self, empty_database: str):
        await execute(empty_database, 'CREATE SCHEMA "Our"; ALTER DATABASE {} SET search_path = "Our"')
        async with engine_on(empty_database) as engine:
            await schema.upgrade(engine)
            assert (await schema.drift(engine)).differences == ()
            await execute(empty_database, "DROP INDEX ix_trading_sessions_user_id")
            assert 'ON "Our".trading_sessions' in str((await schema.drift(engine)).drift[0].mend)

    async def test_a_role_that_may_only_look_is_enough_and_nothing_is_changed(self, engine, database_url: str):
        role = f"looker_{os.getpid()}"
        await execute(
            database_url,
            f"CREATE ROLE {role}; GRANT {role} TO CURRENT_USER; REVOKE ALL ON SCHEMA public FROM PUBLIC;"
            f" GRANT USAGE ON SCHEMA public TO {role}; GRANT SELECT ON alembic_version TO {role}",
        )
        before = await everything(database_url)
        try:
            await execute(database_url, f"ALTER DATABASE {{}} SET role = {role}")
            async with engine_on(database_url) as looking:
                found = await schema.drift(looking)
                async with looking.connect() as connection:
                    assert (await connection.exec_driver_sql("SELECT current_user")).scalar() == role
            assert (found.clean, found.drift) == (True, ())
        finally:
            await execute(
                database_url, f"SET ROLE NONE; ALTER DATABASE {{}} RESET role; DROP OWNED BY {role}; DROP ROLE {role}"
            )
        after = await everything(database_url)
        assert [row[:3] for row in after] == [row[:3] for row in before]

    async def test_it_does_not_wait_for_writers(self, database_url: str):
        other = await asyncpg.connect(database_url)
        try:
            async with other.transaction():
                await other.execute("LOCK TABLE users, portfolio_snapshots IN EXCLUSIVE MODE")
                async with engine_on(database_url) as engine:
                    assert (await schema.drift(engine)).clean
        finally:
            await other.close()


class TestAdopt:
    @pytest.mark.parametrize(
        "spoil",
        [
            "DELETE FROM alembic_version",
            "DROP TABLE alembic_version",
            "CREATE TABLE our_versions AS TABLE alembic_version; DROP TABLE alembic_version",
            "UPDATE alembic_version SET version_num = 'ae1027a6acf'",
            "INSERT INTO alembic_version VALUES ('0001')",
        ],
    )
    async def test_a_database_of_ours_without_its_stamp_is_stamped(self, spoil: str, engine, database_url: str):
        await execute(database_url, spoil)
        dry = await schema.adopt(engine, dry_run=True)
        assert (dry.stamped, (await schema.inspect(engine)).status != "at_head") == (True, True)
        done = await schema.adopt(engine)
        assert (done.stamped, done.drift, done.pending) == (True, (), False)
        assert (await schema.verify(engine)).current == (done.revision,)
        assert not (await schema.adopt(engine)).stamped

    async def test_what_create_all_has_made_is_stamped_at_head(self, empty_database: str):
        async with engine_on(empty_database) as engine:
            async with engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
            done = await schema.adopt(engine)
            assert (done.stamped, done.revision) == (True, done.before.head)
            assert (await schema.drift(engine)).clean

    async def test_one_of_an_older_revision_is_stamped_with_that_and_can_be_upgraded(self, empty_database: str):
        async with engine_on(empty_database) as engine:
            await schema.upgrade(engine, "0001")
            await execute(empty_database, "DROP TABLE alembic_version")
            done = await schema.adopt(engine)
            assert (done.stamped, done.revision, done.pending) == (True, "0001", True)
            await schema.upgrade(engine)
            assert (await schema.drift(engine)).clean

    @pytest.mark.parametrize("stamped", [True, False])
    async def test_one_that_has_drifted_is_left_as_it_is(self, stamped: bool, engine, database_url: str):
        if not stamped:
            await execute(database_url, "DELETE FROM alembic_version")
        await execute(database_url, "DROP INDEX ix_trading_sessions_user_id")
        before = await everything(database_url)
        done = await schema.adopt(engine)
        assert not done.stamped
        assert [item.name for item in done.drift] == ["trading_sessions.ix_trading_sessions_user_id"]
        assert await everything(database_url) == before
        assert (await schema.inspect(engine)).status == ("at_head" if stamped else "unstamped")

    async def test_half_a_restore_is_told_as_one(self, engine, database_url: str):
        await execute(database_url, "DROP TABLE alembic_version, instrument_versions, strategy_revisions")
        with pytest.raises(SchemaTablesMissing, match="missing: instrument_versions, strategy_revisions"):
            await schema.adopt(engine)

    async def test_tables_of_others_with_our_names_are_told_as_such(self, empty_database: str):
        await execute(empty_database, "CREATE TABLE users (id int, first_name text, is_active bool)")
        async with engine_on(empty_database) as engine:
            with pytest.raises(SchemaUnstamped, match="users has first_name and lacks created_at, hashed_password"):
                await schema.adopt(engine)

    async def test_an_empty_database_and_a_newer_one_are_refused(self, engine, database_url: str, empty_database: str):
        async with engine_on(empty_database) as nothing:
            with pytest.raises(SchemaMissing, match="panda migrate upgrade"):
                await schema.adopt(nothing)
        await execute(database_url, "UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(SchemaAhead):
            await schema.adopt(engine)

    async def test_it_waits_for_who_is_migrating(self, engine):
        async with schema.migration_lock(engine, timeouts=QUICK):
            with pytest.raises(SchemaLockTimeout):
                await schema.adopt(engine, timeouts=Timeouts(migration_lock=0.2))


class TestCommands:
    def test_check_says_so_and_exits_with_0_or_3(self, database_url_sync: str):
        clean_run = panda("migrate", "check", url=database_url_sync)
        assert (clean_run.returncode, "Nothing in the catalog differs from" in clean_run.stdout) == (0, True)
        asyncio.run(execute(database_url_sync, "DROP INDEX ix_trading_sessions_user_id; CREATE TABLE foo (id int)"))
        drifted = panda("migrate", "check", url=database_url_sync)
        assert drifted.returncode == 3
        assert "- index ix_trading_sessions_user_id of table trading_sessions is missing" in drifted.stdout
        assert "note: table foo is not one of this project's" in drifted.stdout
        found = panda("migrate", "check", "--json", url=database_url_sync)
        assert found.returncode == 3
        assert [item["kind"] for item in answer(found)["drift"]] == ["index"]
        assert [item["name"] for item in answer(found)["notes"]] == ["foo"]

    def test_adopt_stamps_or_says_why_not(self, database_url_sync: str):
        asyncio.run(execute(database_url_sync, "DELETE FROM alembic_version"))
        dry = panda("migrate", "adopt", "--dry-run", url=database_url_sync)
        assert (dry.returncode, "would be recorded" in dry.stdout) == (0, True)
        assert panda("migrate", "verify", url=database_url_sync).returncode == 3
        assert "panda migrate adopt" in panda("migrate", "verify", url=database_url_sync).stderr
        done = panda("migrate", "adopt", url=database_url_sync)
        assert (done.returncode, "is recorded now" in done.stdout) == (0, True)
        assert panda("migrate", "verify", url=database_url_sync).returncode == 0
        asyncio.run(execute(database_url_sync, "DELETE FROM alembic_version; ALTER TABLE users ADD email text"))
        refused = panda("migrate", "adopt", "--json", url=database_url_sync)
        assert (refused.returncode, answer(refused)["stamped"]) == (3, False)
        assert [item["name"] for item in answer(refused)["drift"]] == ["users.email"]


@pytest.fixture(scope="module")
def debian(component) -> Iterator[DebianServer]:
    component(binaries() is not None, "apt-get install postgresql")
    with debian_server(tls=False) as server:
        yield server


@pytest.mark.component
async def test_foreign_keys_that_a_superuser_has_switched_off_are_told(debian: DebianServer):
    change = "ALTER TABLE trading_sessions DISABLE TRIGGER ALL"
    async with engine_on(debian.url()) as engine:
        await schema.upgrade(engine)
        superuser = await asyncpg.connect(host=str(debian.folder), port=debian.port, user="postgres", database="panda")
        await superuser.execute(change)
        (told,) = (await schema.drift(engine)).drift
        assert told.says == (
            "foreign key fk_trading_sessions_user_id is not enforced on table trading_sessions: its triggers are disabled"
        )
        await superuser.execute(str(told.mend))
        await superuser.close()
        assert (await schema.drift(engine)).differences == ()
