import asyncio
import itertools
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any, cast, get_args

import asyncpg
import pytest
from sqlalchemy import Column, Integer, MetaData, Table, event, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine

from core.config.options import Environment, SchemaManagement, Timeouts
from core.database import schema
from core.database.errors import (
    LockTimeout,
    MigrationFailed,
    SchemaAhead,
    SchemaBehind,
    SchemaError,
    SchemaMissing,
    SchemaMultipleHeads,
    SchemaTablesMissing,
    SchemaUnknownRevision,
    SchemaUnstamped,
    StatementTimeout,
)
from tests.small_schema import QUICK, checked_out, engine_on, metadata, revision, write

STATES = ["at_head", "empty", "unstamped", "behind", "ahead", "unknown_revision", "multiple_heads", "tables_missing"]
REFUSALS = {
    "empty": SchemaMissing,
    "unstamped": SchemaUnstamped,
    "behind": SchemaBehind,
    "ahead": SchemaAhead,
    "unknown_revision": SchemaUnknownRevision,
    "multiple_heads": SchemaMultipleHeads,
    "tables_missing": SchemaTablesMissing,
}
SPOILERS = {
    "unstamped": "DELETE FROM alembic_version",
    "ahead": "UPDATE alembic_version SET version_num = '0004'",
    "unknown_revision": "UPDATE alembic_version SET version_num = 'ae1027a6acf'",
    "multiple_heads": "INSERT INTO alembic_version VALUES ('0002')",
    "tables_missing": "DROP TABLE entry",
}


@pytest.fixture
def tables() -> MetaData:
    return metadata()


@pytest.fixture
def versions(tmp_path: Path) -> Path:
    return write(tmp_path / "versions")


@pytest.fixture
async def engine(empty_database: str):
    async with engine_on(empty_database) as engine:
        yield engine


async def execute(engine: AsyncEngine, *statements: str) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def scalar(engine: AsyncEngine, statement: str) -> Any:
    async with engine.connect() as connection:
        return (await connection.execute(text(statement))).scalar()


async def catalog_of(engine: AsyncEngine) -> schema.Catalog:
    async with engine.connect() as connection:
        return await schema.catalog(connection)


async def bring_to(status: str, engine: AsyncEngine, tables: MetaData, versions: Path) -> None:
    """A database in the state that `status` names."""
    if status == "empty":
        return
    target = "0001" if status == "behind" else "head"
    await schema.upgrade(engine, target, timeouts=QUICK, metadata=tables, versions=versions)
    if status in SPOILERS:
        await execute(engine, SPOILERS[status])


class TestInspect:
    @pytest.mark.parametrize("status", STATES)
    async def test_each_state_is_told_apart_described_and_refused_by_its_own_error(
        self, status, engine, tables, versions
    ):
        await bring_to(status, engine, tables, versions)

        state = await schema.inspect(engine, metadata=tables, versions=versions)

        assert state.status == status
        assert state.head == "0003"
        assert state.describe().endswith(".")
        assert "\n" not in state.describe()
        if status == "at_head":
            assert await schema.verify(engine, metadata=tables, versions=versions) == state
        else:
            with pytest.raises(SchemaError) as refused:
                await schema.verify(engine, metadata=tables, versions=versions)
            assert type(refused.value) is REFUSALS[status]
            assert refused.value.message == state.describe()

    async def test_a_state_names_revisions_tables_and_what_is_pending(self, engine, tables, versions):
        await bring_to("behind", engine, tables, versions)

        state = await schema.inspect(engine, metadata=tables, versions=versions)

        assert state.current == ("0001",)
        assert state.present_tables == ("account",)
        assert state.missing_tables == ("entry",)
        assert state.pending == ("0002", "0003")
        assert state.describe() == "The schema is at revision 0001, 2 migrations behind head 0003."

    async def test_every_refusal_has_a_message_and_a_hint_of_its_own(self, engine, tables, versions):
        said = []
        await schema.upgrade(engine, timeouts=QUICK, metadata=tables, versions=versions)
        for spoiler in SPOILERS.values():
            async with engine.connect() as connection:
                await connection.execute(text(spoiler))
                with pytest.raises(SchemaError) as refused:
                    await schema.verify(connection, metadata=tables, versions=versions)
                said.append((refused.value.message, refused.value.hint))
        assert len({message for message, _ in said}) == len(said)
        assert len({hint for _, hint in said}) == len(said)

    async def test_hints_name_only_commands_that_exist(self):
        states = [
            schema.SchemaState(cast("schema.Status", status), ("0001",), "0002", ("a",), ("0002",))
            for status in REFUSALS
        ]
        states.append(schema.SchemaState("multiple_heads", (), "0002, 0003", (), ()))
        named = set()
        for state in states:
            with pytest.raises(SchemaError) as refused:
                state.raise_unless_at_head()
            named |= set(re.findall(r"`panda (\w+ \w+)", refused.value.hint or ""))
        commands = {
            f"migrate {verb}" for verb in ("upgrade", "downgrade", "verify", "check", "adopt", "plan", "history")
        }
        assert named
        assert named <= commands

    async def test_verify_returns_the_state_at_head(self, engine, tables, versions):
        await bring_to("at_head", engine, tables, versions)

        state = await schema.verify(engine, metadata=tables, versions=versions)

        assert state == schema.SchemaState("at_head", ("0003",), "0003", (), (), ("account", "entry"))

    async def test_at_head_it_is_one_statement_outside_a_transaction(self, engine, tables, versions):
        await bring_to("at_head", engine, tables, versions)
        sent = []
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
        async with engine.connect() as connection:
            raw = await connection.get_raw_connection()
            raw.driver_connection.add_query_logger(lambda record: sent.append(record.query))

        await schema.inspect(engine, metadata=tables, versions=versions)

        assert len(sent) == 1, sent
        assert "alembic_version" in sent[0]
        assert "to_regclass" in sent[0]

    async def test_on_a_connection_it_does_not_spoil_the_callers_transaction(self, engine, tables, versions):
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE kept (id int)"))
            state = await schema.inspect(connection, metadata=tables, versions=versions)
        assert state.status == "empty"
        assert await scalar(engine, "SELECT to_regclass('kept')::text") == "kept"

    async def test_a_strangers_tables_do_not_count_and_names_are_taken_as_they_are(self, engine, versions):
        tables = MetaData()
        Table('a "B".c', tables, Column("id", Integer))
        await execute(engine, "CREATE TABLE strangers (id int)", "CREATE SCHEMA a", "CREATE TABLE a.b (id int)")
        assert (await schema.inspect(engine, metadata=tables, versions=versions)).status == "empty"
        await execute(engine, 'CREATE TABLE "a ""B"".c" (id int)')
        assert (await schema.inspect(engine, metadata=tables, versions=versions)).present_tables == ('a "B".c',)

    async def test_a_number_past_the_head_is_a_newer_release_and_another_name_is_not(self, engine, tables, versions):
        await bring_to("at_head", engine, tables, versions)
        found = {}
        for recorded in ("0004", "0100", "9999", "00004", "x004", "0000", "4"):
            await execute(engine, f"UPDATE alembic_version SET version_num = '{recorded}'")
            found[recorded] = (await schema.inspect(engine, metadata=tables, versions=versions)).status
        assert [name for name, status in found.items() if status == "ahead"] == ["0004", "0100", "9999"]
        assert {found["00004"], found["x004"], found["0000"], found["4"]} == {"unknown_revision"}

    async def test_two_heads_among_the_files_are_reported_before_anything_else(self, engine, tables, tmp_path):
        versions = write(tmp_path / "forked", also=revision("0003b", "0002", "pass"))

        state = await schema.inspect(engine, metadata=tables, versions=versions)

        assert state.status == "multiple_heads"
        assert "0003, 0003b" in state.describe()
        with pytest.raises(SchemaMultipleHeads):
            await schema.upgrade(engine, metadata=tables, versions=versions)
        assert await scalar(engine, "SELECT to_regclass('account')") is None

    async def test_a_server_error_is_translated(self, engine, tables, versions):
        await bring_to("at_head", engine, tables, versions)
        async with engine.connect() as connection:
            with pytest.raises(ProgrammingError):
                await connection.execute(text("SELECT nonsense"))
            with pytest.raises(SchemaError.__mro__[1]):
                await schema.inspect(connection, metadata=tables, versions=versions)


class TestFast:
    def test_a_start_at_head_imports_no_alembic(self, empty_database, versions, tables):
        async def make() -> None:
            async with engine_on(empty_database) as engine:
                await bring_to("at_head", engine, tables, versions)

        asyncio.run(make())
        source = (
            "import asyncio, sys; from pathlib import Path\n"
            "from tests.small_schema import engine_on, metadata\n"
            "from core.database import schema\n"
            "async def work():\n"
            f"    async with engine_on({str(empty_database)!r}) as engine:\n"
            f"        options = dict(metadata=metadata(), versions=Path({str(versions)!r}))\n"
            "        for mode in ('auto', 'create_all', 'migrations_only'):\n"
            "            state = await schema.prepare(engine, mode=mode, environment='testing', **options)\n"
            "            assert state.status == 'at_head'\n"
            "asyncio.run(work())\n"
            "print(*[name for name in sys.modules if name.split('.')[0] == 'alembic'])\n"
        )
        root = Path(__file__).parent.parent
        ran = subprocess.run(
            [sys.executable, "-W", "error", "-c", source],
            cwd=root,
            env={"PYTHONPATH": str(root), "PATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.stdout.strip(), ran.stderr) == ("", "")


def _changes(mode: str, environment: str, status: str) -> bool:
    """The whole table of the schema modes."""
    if mode == "auto":
        return environment in ("development", "testing") and status in ("empty", "behind")
    return mode == "create_all" and status == "empty"


class TestPrepare:
    @pytest.mark.parametrize("status", STATES)
    async def test_what_a_mode_does_not_change_it_verifies(self, status, engine, tables, versions):
        await bring_to(status, engine, tables, versions)
        before = await catalog_of(engine)
        for mode, environment in itertools.product(get_args(SchemaManagement), get_args(Environment)):
            if _changes(mode, environment, status):
                continue
            options: dict[str, Any] = {
                "mode": mode,
                "environment": environment,
                "metadata": tables,
                "versions": versions,
            }
            if status != "at_head":
                with pytest.raises(REFUSALS[status]):
                    await schema.prepare(engine, **options)
            assert (await schema.prepare(engine, verify=status == "at_head", **options)).status == status
        assert await catalog_of(engine) == before

    @pytest.mark.parametrize(
        ("mode", "environment", "status"),
        [
            (mode, environment, status)
            for mode in get_args(SchemaManagement)
            for environment in get_args(Environment)
            for status in STATES
            if _changes(mode, environment, status)
        ],
    )
    async def test_what_a_mode_changes_is_at_head_afterwards(self, mode, environment, status, engine, tables, versions):
        await bring_to(status, engine, tables, versions)
        for _ in range(2):
            state = await schema.prepare(
                engine, mode=mode, environment=environment, metadata=tables, versions=versions, timeouts=QUICK
            )
            assert state.status == "at_head"
        assert await scalar(engine, "SELECT string_agg(version_num, ' ') FROM alembic_version") == "0003"

    async def test_create_all_creates_what_the_migrations_create(self, empty_database, engine, tables, versions):
        await schema.prepare(
            engine, mode="create_all", environment="production", metadata=tables, versions=versions, timeouts=QUICK
        )
        created = await catalog_of(engine)
        await execute(engine, "DROP TABLE entry, account, alembic_version")
        await schema.upgrade(engine, timeouts=QUICK, metadata=tables, versions=versions)

        assert schema.differences(created, await catalog_of(engine)) == ()
        assert len(created.entries) > 10

    async def test_create_all_replaces_the_stamp_of_tables_that_are_gone(self, engine, tables, versions):
        await bring_to("behind", engine, tables, versions)
        await execute(engine, "DROP TABLE account")

        state = await schema.prepare(
            engine, mode="create_all", environment="testing", metadata=tables, versions=versions, timeouts=QUICK
        )

        assert state.status == "at_head"
        assert await scalar(engine, "SELECT string_agg(version_num, ' ') FROM alembic_version") == "0003"

    async def test_create_all_leaves_nothing_when_it_fails(self, engine, tables, versions):
        event.listen(tables, "after_create", lambda target, connection, **_: connection.exec_driver_sql("SELECT 1/0"))

        with pytest.raises(Exception, match="division"):
            await schema.prepare(
                engine, mode="create_all", environment="testing", metadata=tables, versions=versions, timeouts=QUICK
            )

        assert (await schema.inspect(engine, metadata=tables, versions=versions)).status == "empty"


class TestUpgradeAndDowngrade:
    async def test_up_down_up_gives_the_same_catalog(self, engine, tables, versions):
        options: dict[str, Any] = {"timeouts": QUICK, "metadata": tables, "versions": versions}
        await schema.upgrade(engine, **options)
        first = await catalog_of(engine)
        state = await schema.downgrade(engine, "base", **options)
        assert state.status == "empty"
        assert {entry.table for entry in (await catalog_of(engine)).entries} == {"", "alembic_version"}
        await schema.upgrade(engine, **options)

        assert schema.differences(first, await catalog_of(engine)) == ()

    @pytest.mark.parametrize(
        ("moves", "reached"),
        [
            (["+1"], ("0001",)),
            (["0002"], ("0002",)),
            (["+2", "+1"], ("0003",)),
            (["head", "-1"], ("0002",)),
            (["head", "-3"], ()),
            (["head", "0001", "0003"], ("0003",)),
            (["head", "0001", "+1", "base"], ()),
        ],
    )
    async def test_a_target_is_a_revision_or_a_number_of_steps(self, moves, reached, engine, tables, versions):
        options: dict[str, Any] = {"timeouts": QUICK, "metadata": tables, "versions": versions}
        state = None
        for target in moves:
            down = target in ("base", "0001") or target.startswith("-")
            state = await (schema.downgrade if down else schema.upgrade)(engine, target, **options)
        assert state is not None
        assert state.current == reached

    async def test_a_target_on_the_other_side_changes_nothing(self, engine, tables, versions):
        options: dict[str, Any] = {"timeouts": QUICK, "metadata": tables, "versions": versions}
        await schema.upgrade(engine, "0002", **options)

        assert (await schema.upgrade(engine, "0001", **options)).current == ("0002",)
        assert (await schema.downgrade(engine, "0003", **options)).current == ("0002",)

    @pytest.mark.parametrize("target", ["0009", "nonsense", "+4", "-1", "", "heads", "000"])
    async def test_an_unknown_target_is_refused_and_changes_nothing(self, target, engine, tables, versions):
        for move in (schema.upgrade, schema.downgrade):
            with pytest.raises(SchemaUnknownRevision, match="panda migrate history"):
                await move(engine, target, timeouts=QUICK, metadata=tables, versions=versions)
        assert await scalar(engine, "SELECT to_regclass('alembic_version')") is None

    @pytest.mark.parametrize("status", sorted(SPOILERS))
    async def test_no_migration_runs_in_a_state_that_none_leads_out_of(self, status, engine, tables, versions):
        await bring_to(status, engine, tables, versions)
        before = await catalog_of(engine)
        options: dict[str, Any] = {"metadata": tables, "versions": versions}

        for refused in (
            schema.upgrade(engine, timeouts=QUICK, **options),
            schema.downgrade(engine, "base", timeouts=QUICK, **options),
            schema.preview(engine, timeouts=QUICK, **options),
            schema.plan(engine, **options),
        ):
            with pytest.raises(REFUSALS[status]):
                await refused
        assert await catalog_of(engine) == before

    async def test_progress_names_each_revision_as_it_begins_and_ends(self, engine, tables, versions):
        said = []
        options: dict[str, Any] = {"timeouts": QUICK, "metadata": tables, "versions": versions, "progress": said.append}

        await schema.upgrade(engine, "0002", **options)
        await schema.downgrade(engine, "0001", **options)

        assert [re.sub(r"\d+\.\d\d s", "N s", line) for line in said] == [
            "applying 0001 Create the accounts.",
            "applied 0001 in N s",
            "applying 0002 Create the entries.",
            "applied 0002 in N s",
            "reverting 0002 Create the entries.",
            "reverted 0002 in N s",
        ]

    async def test_one_pooled_connection_is_enough(self, empty_database, tables, versions):
        async with engine_on(empty_database, size=1, max_overflow=0) as engine:
            state = await schema.upgrade(engine, timeouts=QUICK, metadata=tables, versions=versions)
            assert state.status == "at_head"
            assert checked_out(engine) == 0

    async def test_no_connection_and_no_setting_is_left_behind(self, engine, tables, versions):
        await schema.upgrade(engine, timeouts=QUICK, metadata=tables, versions=versions)
        await schema.downgrade(engine, "base", timeouts=QUICK, metadata=tables, versions=versions)
        async with asyncio.timeout(60):
            while await scalar(engine, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()") > 1:
                await asyncio.sleep(0.02)
        assert await scalar(engine, "SHOW lock_timeout") == "2s"
        assert await scalar(engine, "SHOW statement_timeout") == "5s"

    async def test_folder_names_may_hold_blanks_and_percent_signs(self, engine, tables, tmp_path):
        versions = write(tmp_path / "100%(home)s of mine, yours:ours")
        state = await schema.upgrade(engine, timeouts=QUICK, metadata=tables, versions=versions)
        assert state.status == "at_head"


class TestLimits:
    async def test_a_migration_has_its_own_limits_also_outside_a_transaction(self, engine, tables, tmp_path):
        note = "op.execute(\"INSERT INTO limits VALUES (current_setting('lock_timeout'), current_setting('statement_timeout'))\")"
        versions = write(
            tmp_path / "limits",
            upto=1,
            second=revision(
                "0002",
                "0001",
                f'op.execute("CREATE TABLE limits (lock text, statement text)")\n{note}\n'
                f"with op.get_context().autocommit_block():\n    {note}\n{note}",
            ),
        )
        await schema.upgrade(
            engine,
            timeouts=Timeouts(lock=0.3, migration=7.0, statement=1.0),
            metadata=MetaData(),
            versions=versions,
        )
        assert await scalar(engine, "SELECT string_agg(lock || '/' || statement, ' ' ORDER BY ctid) FROM limits") == (
            "300ms/7s 7s/7s 300ms/7s"
        )

    async def test_limits_hold_where_the_engine_sets_its_own_in_each_transaction(self, empty_database, tmp_path):
        from core.database.engine import DatabaseUrl, EngineOptions, build_engine

        versions = write(tmp_path / "limits", upto=0, first=FIRST_LIMITS)
        engine = build_engine(DatabaseUrl.parse(empty_database), EngineOptions(pgbouncer=True))
        await schema.upgrade(engine, timeouts=Timeouts(lock=0.4, migration=8.0), metadata=MetaData(), versions=versions)
        assert await scalar(engine, "SELECT lock || '/' || statement FROM limits") == "400ms/8s"
        await engine.dispose()

    async def test_a_migration_gives_up_soon_when_a_table_is_locked(self, engine, tables, tmp_path):
        versions = write(
            tmp_path / "v", upto=2, third=revision("0003", "0002", 'op.execute("ALTER TABLE account ADD note text")')
        )
        options: dict[str, Any] = {"timeouts": QUICK, "metadata": tables, "versions": versions}
        await schema.upgrade(engine, "0002", **options)
        async with engine.begin() as other:
            await other.execute(text("SELECT * FROM account"))
            with pytest.raises(MigrationFailed, match="DATABASE__TIMEOUTS__LOCK") as failed:
                await schema.upgrade(engine, **options)
        assert failed.value.sqlstate == "55P03"
        assert isinstance(failed.value.__cause__, LockTimeout)
        assert (await schema.upgrade(engine, **options)).status == "at_head"

    async def test_a_statement_that_takes_too_long_fails_its_migration(self, engine, tables, tmp_path):
        versions = write(tmp_path / "v", upto=1, second=revision("0002", "0001", 'op.execute("SELECT pg_sleep(20)")'))
        with pytest.raises(MigrationFailed, match="DATABASE__TIMEOUTS__MIGRATION") as failed:
            await schema.upgrade(engine, timeouts=Timeouts(migration=0.2), metadata=tables, versions=versions)
        assert isinstance(failed.value.__cause__, StatementTimeout)


FIRST_LIMITS = '''"""Note the limits."""
from alembic import op
revision: str = "0001"
down_revision: str | None = None

def upgrade():
    op.execute("CREATE TABLE limits AS SELECT current_setting('lock_timeout') AS lock, current_setting('statement_timeout') AS statement")

def downgrade():
    op.execute("DROP TABLE limits")
'''


class TestFailure:
    BROKEN = revision("0003", "0002", 'op.execute("CREATE TABLE half (id int)")\nop.execute("SELECT 1/0")')

    async def test_a_failing_migration_is_named_and_leaves_the_revision_before_it(self, engine, tables, tmp_path):
        versions = write(tmp_path / "v", upto=2, third=self.BROKEN)
        said = []

        with pytest.raises(MigrationFailed) as failed:
            await schema.upgrade(engine, timeouts=QUICK, progress=said.append, metadata=tables, versions=versions)

        message = str(failed.value)
        assert "migration 0003 (third.py) failed; the database is left at 0002: division by zero" in message
        assert failed.value.sqlstate == "22012"
        assert said[-1] == "applying 0003 Do 0003."
        assert (await schema.inspect(engine, metadata=tables, versions=versions)).current == ("0002",)
        assert await scalar(engine, "SELECT to_regclass('half')") is None

    async def test_it_goes_on_from_there_once_mended(self, engine, tables, tmp_path):
        versions = write(tmp_path / "v", upto=2, third=self.BROKEN)
        with pytest.raises(MigrationFailed):
            await schema.upgrade(engine, timeouts=QUICK, metadata=tables, versions=versions)
        mended = write(tmp_path / "mended")

        assert (await schema.upgrade(engine, timeouts=QUICK, metadata=tables, versions=mended)).status == "at_head"

    async def test_an_error_of_the_migrations_own_is_a_failed_migration_too(self, engine, tables, tmp_path):
        versions = write(tmp_path / "v", upto=1, second=revision("0002", "0001", 'raise KeyError("balance")'))
        with pytest.raises(MigrationFailed, match=r"0002.*left at 0001.*balance") as failed:
            await schema.upgrade(engine, timeouts=QUICK, metadata=tables, versions=versions)
        assert isinstance(failed.value.__cause__, KeyError)

    async def test_a_failing_downgrade_leaves_its_revision(self, engine, tables, tmp_path):
        broken = revision("0003", "0002", "pass", 'op.execute("DROP TABLE entry"); op.execute("SELECT 1/0")')
        versions = write(tmp_path / "v", upto=2, third=broken)
        options: dict[str, Any] = {"timeouts": QUICK, "metadata": tables, "versions": versions}
        await schema.upgrade(engine, **options)

        with pytest.raises(MigrationFailed, match="left at 0003"):
            await schema.downgrade(engine, "base", **options)

        assert (await schema.inspect(engine, metadata=tables, versions=versions)).status == "at_head"

    async def test_a_cancelled_migration_leaves_nothing_behind(self, engine, tables, tmp_path):
        sleeper = 'op.execute("CREATE TABLE half (id int)")\nop.execute("SELECT pg_sleep(30)")'
        versions = write(tmp_path / "v", upto=2, third=revision("0003", "0002", sleeper))
        started = asyncio.Event()

        def watch(line: str) -> None:
            if line.startswith("applying 0003"):
                started.set()

        work = asyncio.create_task(
            schema.upgrade(engine, timeouts=QUICK, progress=watch, metadata=tables, versions=versions)
        )
        async with asyncio.timeout(60):
            await started.wait()
            await asyncio.sleep(0.2)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
        assert (await schema.inspect(engine, metadata=tables, versions=versions)).current == ("0002",)
        assert await scalar(engine, "SELECT to_regclass('half')") is None
        async with asyncio.timeout(60):
            state = await schema.upgrade(engine, timeouts=QUICK, metadata=tables, versions=write(tmp_path / "mended"))
        assert state.status == "at_head"
        held = (
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        assert await scalar(engine, held) == 0


async def run_by_hand(url: str, sql: str) -> None:
    """As psql does: statement by statement."""
    connection = await asyncpg.connect(url)
    try:
        bodies = re.split(r"(\$\$.*?\$\$)", sql, flags=re.DOTALL)  # what is between $$ holds semicolons of its own
        whole = "".join(part if number % 2 else part.replace(";\n", "\0") for number, part in enumerate(bodies))
        for statement in whole.split("\0"):
            if statement.strip():
                await connection.execute(statement)
    finally:
        await connection.close()


class TestPreview:
    async def test_it_executes_nothing(self, engine, tables, versions):
        sql = await schema.preview(engine, metadata=tables, versions=versions)

        assert "CREATE TABLE account" in sql
        assert (
            await scalar(engine, "SELECT count(*) FROM pg_class WHERE relname IN ('account', 'alembic_version')") == 0
        )

    async def test_run_by_hand_it_does_what_upgrade_does(self, empty_database, engine, tables, versions):
        sql = await schema.preview(engine, metadata=tables, versions=versions)
        await run_by_hand(empty_database, sql)
        by_hand = await catalog_of(engine)
        assert (await schema.inspect(engine, metadata=tables, versions=versions)).status == "at_head"

        await run_by_hand(empty_database, await schema.preview(engine, "base", metadata=tables, versions=versions))
        assert (await schema.inspect(engine, metadata=tables, versions=versions)).status == "empty"
        await schema.upgrade(engine, timeouts=QUICK, metadata=tables, versions=versions)

        assert schema.differences(by_hand, await catalog_of(engine)) == ()

    async def test_it_starts_from_where_the_database_is(self, engine, tables, versions):
        await bring_to("behind", engine, tables, versions)

        sql = await schema.preview(engine, "0002", metadata=tables, versions=versions)

        assert "CREATE TABLE entry" in sql
        assert "CREATE TABLE account" not in sql
        assert "ix_entry" not in sql
        assert "SET version_num='0002'" in sql

    async def test_a_range_is_taken_as_given_and_downwards_too(self, engine, tables, versions):
        assert "CREATE TABLE entry" in await schema.preview(
            engine, "0002", start="0001", metadata=tables, versions=versions
        )
        down = await schema.preview(engine, "base", start="head", metadata=tables, versions=versions)
        assert down.index("DROP TABLE entry") < down.index("DROP TABLE account")

    async def test_each_transaction_begins_with_its_limits(self, engine, tables, versions):
        limits = Timeouts(lock=1.5, migration=60)
        sql = await schema.preview(engine, "0002", timeouts=limits, metadata=tables, versions=versions)
        assert sql.count("BEGIN;") == 2
        assert (
            sql.count("BEGIN;\n\nSET LOCAL lock_timeout = '1500ms';\n\nSET LOCAL statement_timeout = '60000ms';") == 2
        )

    async def test_with_nothing_to_do_it_is_empty(self, engine, tables, versions):
        await bring_to("at_head", engine, tables, versions)
        assert await schema.preview(engine, metadata=tables, versions=versions) == ""

    async def test_a_migration_that_cannot_be_previewed_says_so(self, engine, tables, tmp_path):
        reader = revision("0002", "0001", 'op.get_bind().exec_driver_sql("SELECT 1").scalar()')
        versions = write(tmp_path / "v", upto=1, second=reader)
        with pytest.raises(MigrationFailed, match="cannot be previewed"):
            await schema.preview(engine, metadata=tables, versions=versions)
        assert (await schema.upgrade(engine, metadata=tables, versions=versions)).current == ("0002",)


class TestHistory:
    def test_it_lists_every_revision_oldest_first(self, versions):
        listed = schema.history(versions=versions)
        assert [(item.revision, item.down_revision, item.message) for item in listed] == [
            ("0001", None, "Create the accounts."),
            ("0002", "0001", "Create the entries."),
            ("0003", "0002", "Index the entries without blocking writers."),
        ]
        assert listed[1].file == "2026_02_05_0002_entries.py"
        assert listed[1].date == date(2026, 2, 5)

    async def test_the_plan_is_what_is_pending(self, engine, tables, versions):
        await bring_to("behind", engine, tables, versions)
        planned = await schema.plan(engine, metadata=tables, versions=versions)
        assert planned == schema.history(versions=versions)[1:]

    def test_a_new_file_is_seen_by_a_process_that_has_read_the_folder(self, tmp_path):
        versions = write(tmp_path / "v", upto=1)
        assert len(schema.history(versions=versions)) == 1
        write(versions, upto=2)
        assert len(schema.history(versions=versions)) == 2

    @pytest.mark.parametrize(
        ("files", "what"),
        [
            ({}, "there is none"),
            ({"a": revision("0001", "0000", "pass")}, "follows 0000"),
            ({"a": revision("0001", "0002", "pass"), "b": revision("0002", "0001", "pass")}, "circle"),
            (
                {
                    "a": revision("0001", "0002", "pass"),
                    "b": revision("0002", "0001", "pass"),
                    "c": revision("0003", "0002", "pass"),
                },
                "circle",
            ),
            ({"a": "revision = '0001'", "b": "revision = '0001'"}, "same revision"),
            ({"a": "down_revision = None"}, "must name one revision"),
            ({"a": "revision = '0003'\ndown_revision = ('0001', '0002')"}, "at most one before it"),
        ],
    )
    def test_files_that_are_no_history_are_refused(self, files, what, tmp_path):
        with pytest.raises(SchemaError, match=what):
            schema.history(versions=write(tmp_path / "v", upto=0, **files))

    async def test_the_template_makes_a_file_that_is_read_and_runs(self, engine, tables, tmp_path):
        versions = write(tmp_path / "v")
        draft = schema.Draft(upgrade='    op.execute("SELECT 1")', downgrade='    op.execute("SELECT 2")')
        made = schema.new("Add what is missing.", versions=versions, draft=draft)
        assert schema.history(versions=versions)[-1].message == "Add what is missing."
        linted = subprocess.run(
            [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "I,W,UP", str(versions / made.file)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert linted.returncode == 0, linted.stdout
        state = await schema.upgrade(engine, timeouts=QUICK, metadata=tables, versions=versions)
        assert state.current == ("0004",)
        assert (await schema.downgrade(engine, "0003", timeouts=QUICK, metadata=tables, versions=versions)).current == (
            "0003",
        )


class TestProject:
    """This project's own models and migrations."""

    async def test_the_models_and_the_migrations_make_the_same_schema(self, engine):
        await schema.prepare(engine, mode="create_all", environment="production", timeouts=QUICK)
        modelled = await catalog_of(engine)
        await execute(
            engine, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public", "GRANT USAGE ON SCHEMA public TO public"
        )
        await schema.prepare(engine, mode="auto", environment="testing", timeouts=QUICK)
        migrated = await catalog_of(engine)

        assert schema.differences(modelled, migrated, left_name="the models", right_name="the migrations") == ()
        assert len({entry.table for entry in migrated.entries}) > 8

    async def test_down_to_base_leaves_nothing_and_up_again_gives_the_same(self, engine):
        await schema.upgrade(engine, timeouts=QUICK)
        first = await catalog_of(engine)

        await schema.downgrade(engine, "base", timeouts=QUICK)
        left = await catalog_of(engine)
        await schema.upgrade(engine, timeouts=QUICK)

        assert {entry.table or entry.name for entry in left.entries} == {
            "alembic_version",
            "on schema public for public",
        }
        assert schema.differences(first, await catalog_of(engine)) == ()

    async def test_each_revision_comes_back_from_the_one_before_it(self, engine):
        for step in schema.history():
            await schema.upgrade(engine, step.revision, timeouts=QUICK)
            first = await catalog_of(engine)
            await schema.downgrade(engine, "-1", timeouts=QUICK)
            await schema.upgrade(engine, "+1", timeouts=QUICK)
            assert schema.differences(first, await catalog_of(engine)) == (), step.file

    async def test_the_previewed_sql_makes_the_same_schema_by_hand(self, empty_database, engine):
        await run_by_hand(empty_database, await schema.preview(engine))
        by_hand = await catalog_of(engine)
        assert (await schema.verify(engine)).status == "at_head"
        await run_by_hand(empty_database, await schema.preview(engine, "base"))
        await schema.upgrade(engine, timeouts=QUICK)
        assert schema.differences(by_hand, await catalog_of(engine)) == ()

    async def test_an_ordinary_role_is_enough(self, engine):
        assert await scalar(engine, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
        assert (await schema.upgrade(engine, timeouts=QUICK)).status == "at_head"

    def test_the_files_are_numbered_in_a_line_and_named_by_their_date(self):
        for number, step in enumerate(schema.history(), start=1):
            assert step.revision == f"{number:04}"
            assert step.down_revision == (f"{number - 1:04}" if number > 1 else None)
            assert re.fullmatch(rf"\d{{4}}_\d\d_\d\d_{step.revision}_[a-z0-9_]+\.py", step.file)
            assert step.date is not None
            assert step.message

    def test_a_migration_imports_nothing_of_ours(self):
        from core.database import migrations

        for path in (Path(migrations.__file__).parent / "versions").glob("*.py"):
            assert not re.search(r"^\s*(from|import)\s+core\b", path.read_text(), re.MULTILINE), path.name
