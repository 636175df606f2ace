"""New migration files, and what is said against those that would hurt a database in use."""

import ast
import asyncio
import datetime as dt
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import DDL, BigInteger, Column, Index, MetaData, Text, event, text

from core.cli.main import main
from core.database import schema
from core.database.errors import (
    ConfigurationError,
    MigrationFailed,
    SchemaError,
    SchemaMultipleHeads,
    SchemaUnknownRevision,
)
from core.database.schema._lint import read_squawk
from core.database.schema._lint_rules import exemptions
from core.database.schema._new import slug
from tests.small_schema import QUICK, engine_on, metadata, revision, write

ROOT = Path(__file__).parent.parent
PROJECT = ROOT / "core" / "database" / "migrations"
DAY = dt.date(2026, 4, 5)


def lint(versions: Path, *revisions: str, **more: Any) -> tuple[schema.Finding, ...]:
    return asyncio.run(schema.lint(revisions, metadata=MetaData(), versions=versions, **more))


def rules(versions: Path, *revisions: str) -> set[str]:
    return {item.rule for item in lint(versions, *revisions)}


def fourth(folder: Path, up: str, down: str = 'op.execute("SELECT 1")', head: str = "") -> Path:
    source = revision("0004", "0003", up, down)
    return write(folder, fourth=source.replace("\n\ndef upgrade", f"\n{head}\n\ndef upgrade", 1))


HARMFUL = {
    'op.alter_column("entry", "amount", type_=sa.Float())': "changing-column-type",
    'op.add_column("entry", sa.Column("kind", sa.Text(), nullable=False))': "adding-required-field",
    'op.create_index("ix_entry_amount", "entry", ["amount"])': "require-concurrent-index-creation",
    'op.drop_index("ix_entry_account_id", "entry")': "require-concurrent-index-deletion",
    'op.drop_column("entry", "amount")': "ban-drop-column",
    'op.drop_table("entry")': "ban-drop-table",
    'op.alter_column("entry", "amount", new_column_name="sum")': "renaming-column",
    'op.rename_table("entry", "line")': "renaming-table",
    'op.alter_column("entry", "amount", nullable=False)': "adding-not-nullable-field",
    'op.create_check_constraint("ck", "entry", "amount > 0")': "constraint-missing-not-valid",
    'op.create_unique_constraint("uq", "entry", ["amount"])': "disallowed-unique-constraint",
    'op.create_foreign_key("fk", "entry", "account", ["id"], ["id"])': "adding-foreign-key-constraint",
    'op.execute("UPDATE entry SET amount = 0")': "changes-rows",
    'op.execute("delete from only entry")': "changes-rows",
    'op.execute("CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON entry (id)")': "concurrent-index-by-hand",
    'op.execute("CREATE TABL entry")': "syntax-error",
    'op.get_bind().execute(sa.text("SELECT 1")).scalar()': "not-renderable",
    'raise NotImplementedError("later")': "not-written",
    'op.add_column("entry", sa.Column("n", sa.Text()))\n'
    'op.create_index("i", "entry", ["id"], postgresql_concurrently=True)': "work-before-concurrent-index",
}
HARMLESS = [
    'op.add_column("entry", sa.Column("note", sa.Text()))',
    'op.create_index("i", "entry", ["amount"], postgresql_concurrently=True)',
    'op.drop_index("i", "entry", postgresql_concurrently=True)',
    'op.create_check_constraint("ck", "entry", "amount > 0", postgresql_not_valid=True)',
    'op.execute("ALTER TABLE entry VALIDATE CONSTRAINT ck")',
    (
        'op.create_table("fresh", sa.Column("id", sa.BigInteger(), sa.Identity(), primary_key=True))\n'
        'op.create_index("i", "fresh", ["id"])\nop.execute("UPDATE fresh SET id = 1")'
    ),
]
INCOMPLETE = [
    ("from core.database import models", "op.f('x')", "foreign-import"),
    ("if False:\n    from . import other", "op.f('x')", "foreign-import"),
    ("if False:\n    import numpy.linalg", "op.f('x')", "foreign-import"),
    ("", "pass", "no-downgrade"),
    ("", '"""Nothing."""', "no-downgrade"),
    ("", "raise NotImplementedError", "not-written"),
    ("lock_timeout = 0", "op.f('x')", "lock-timeout-off"),
    ("lock_timeout: float = 600.0", "op.f('x')", "lock-timeout-off"),
]


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> dict[str, tuple[schema.Finding, ...]]:
    """All of these, each after 0003, in one run: by the number of its case."""
    folder = tmp_path_factory.mktemp("judged")
    (folder / ".squawk.toml").write_text((PROJECT / ".squawk.toml").read_text())
    cases = [(f"import sqlalchemy as sa\n{up}", "op.f('x')", "") for up in (*HARMFUL, *HARMLESS)]
    cases += [("op.f('x')", down, head) for head, down, _ in INCOMPLETE]
    versions = write(folder / "v")
    for number, (up, down, head) in enumerate(cases):
        source = revision(f"c{number}", "0003", up, down).replace("\n\ndef upgrade", f"\n{head}\n\ndef upgrade", 1)
        write(versions, upto=0, **{f"c{number}": source})
    found = lint(versions)
    names = [f"c{number}" for number in range(len(cases))]
    return {name: tuple(item for item in found if item.revision == name) for name in names}


class TestRules:
    @pytest.mark.parametrize(("number", "rule"), list(enumerate(HARMFUL.values())))
    def test_what_hurts_a_table_in_use_is_found(self, number, rule, judged):
        named = [item for item in judged[f"c{number}"] if item.rule == rule]
        assert named, judged[f"c{number}"]
        assert all(item.message and item.mend and item.file == f"c{number}.py" for item in named)
        if named[0].sql:
            assert named[0].sql.split(maxsplit=1)[0] in ("ALTER", "CREATE", "DROP", "UPDATE", "delete")

    @pytest.mark.parametrize("number", range(len(HARMLESS)))
    def test_what_hurts_nobody_is_not(self, number, judged):
        assert judged[f"c{len(HARMFUL) + number}"] == ()

    @pytest.mark.parametrize(("number", "rule"), [(number, rule) for number, (*_, rule) in enumerate(INCOMPLETE)])
    def test_what_the_file_itself_lacks_is_found(self, number, rule, judged):
        found = {item.rule: item for item in judged[f"c{len(HARMFUL) + len(HARMLESS) + number}"]}
        assert rule in found
        assert found[rule].line

    def test_the_projects_own_migrations_have_nothing_against_them(self):
        assert asyncio.run(schema.lint()) == ()

    def test_the_first_migration_is_judged_by_all_rules(self):
        """Its tables are new: the rules know that, none is off for it but by name."""
        first = (PROJECT / "versions" / schema.history()[0].file).read_text()
        assert {rule for item in exemptions(first) for rule in item.rules} == {"prefer-bigint-over-int"}
        excluded = re.findall(r'^ +"([a-z-]+)"', (PROJECT / ".squawk.toml").read_text(), re.MULTILINE)
        assert excluded == ["prefer-robust-stmts"]

    def test_only_the_revisions_that_are_named_are_read(self, tmp_path):
        versions = fourth(tmp_path / "v", 'op.execute("DROP TABLE entry")')
        assert lint(versions, "0001") == ()
        assert {item.revision for item in lint(versions, "0004", "0002")} == {"0004"}
        with pytest.raises(SchemaUnknownRevision):
            lint(versions, "0009")

    def test_two_heads_do_not_hide_each_other(self, tmp_path):
        versions = fourth(tmp_path / "v", 'op.execute("DROP TABLE entry")')
        write(versions, upto=0, fork=revision("0004b", "0003", 'op.execute("DROP TABLE account")', "op.f('x')"))
        found = {(item.revision, item.rule) for item in lint(versions)}
        assert {("0004", "ban-drop-table"), ("0004b", "ban-drop-table")} <= found


class TestExemptions:
    def test_one_with_its_reason_takes_its_rules_out_in_that_file_alone(self, tmp_path):
        drop = 'op.drop_table("entry")\nop.drop_column("account", "name")'
        versions = fourth(tmp_path / "v", drop, head="# lint: allow ban-drop-table, ban-drop-column - unused since 2.1")
        write(versions, upto=0, fifth=revision("0005", "0004", 'op.drop_table("account")', "op.f('x')"))
        assert rules(versions, "0004") == set()
        assert rules(versions, "0005") == {"ban-drop-table"}

    @pytest.mark.parametrize("reason", ["", " -", " - ", "  -  "])
    def test_one_without_a_reason_exempts_nothing_and_is_a_finding(self, reason, tmp_path):
        versions = fourth(tmp_path / "v", 'op.drop_table("entry")', head=f"# lint: allow ban-drop-table{reason}")
        assert rules(versions, "0004") == {"ban-drop-table", "exemption-without-reason"}

    def test_one_that_is_not_needed_is_a_finding(self, tmp_path):
        versions = fourth(tmp_path / "v", 'op.execute("SELECT 1")', head="# lint: allow ban-drop-table - once it did")
        (found,) = lint(versions, "0004")
        assert (found.rule, found.mend) == ("exemption-unused", "Delete it.")
        assert "allow ban-drop-table" in (versions / "fourth.py").read_text().splitlines()[(found.line or 0) - 1]

    @given(
        names=st.lists(st.from_regex(r"[a-z]{2,8}(-[a-z]{2,8}){0,3}", fullmatch=True), min_size=1, max_size=4),
        reason=st.text(st.characters(exclude_categories=["C", "Z"]), max_size=30),
        before=st.lists(st.sampled_from(["x = 1", "# a note", ""]), max_size=4),
    )
    def test_they_are_read_as_they_are_written(self, names, reason, before):
        source = "\n".join([*before, f"  # lint: allow {', '.join(names)} - {reason}", "y = 2"])
        (found,) = exemptions(source)
        assert found.rules == set(names)
        assert found.reason == reason
        assert found.line == len(before) + 1


class TestSquawk:
    def test_without_it_the_error_names_the_command_that_installs_it(self, monkeypatch, tmp_path):
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(ConfigurationError, match="pip install squawk-cli"):
            lint(write(tmp_path / "v"))

    def test_a_configuration_that_it_refuses_is_named(self, tmp_path):
        (tmp_path / ".squawk.toml").write_text("excluded_rules = [nonsense")
        with pytest.raises(ConfigurationError, match=r"squawk failed: .*\.squawk\.toml"):
            lint(write(tmp_path / "v"))

    def test_the_nearest_configuration_above_the_files_is_taken_wherever_it_is_run(self, tmp_path, monkeypatch):
        versions = fourth(tmp_path / "app" / "v", 'op.drop_table("entry")')
        monkeypatch.chdir(tmp_path)
        (tmp_path / ".squawk.toml").write_text('excluded_rules = ["ban-drop-table"]')
        assert rules(versions, "0004") == set()
        (tmp_path / "app" / ".squawk.toml").write_text("")
        assert rules(versions, "0004") == {"ban-drop-table"}

    def test_a_program_that_says_something_else_is_refused(self, tmp_path):
        for said in ("echo nonsense", "echo '{}'", "echo '[{}]'", "exit 3"):
            program = tmp_path / "squawk"
            program.write_text(f"#!/bin/sh\n{said}\n")
            program.chmod(0o755)
            with pytest.raises((SchemaError, ConfigurationError)) as refused:
                lint(write(tmp_path / "v"), squawk=program)
            assert "squawk" in refused.value.message

    ITEM = st.fixed_dictionaries(
        {},
        optional={
            "file": st.sampled_from(["a", "b", "c", 1]),
            "line": st.one_of(st.integers(0, 99), st.text(max_size=3), st.none()),
            "rule_name": st.one_of(st.text(max_size=9), st.none()),
            "message": st.one_of(st.text(max_size=9), st.integers()),
            "help": st.one_of(st.none(), st.text(max_size=9), st.integers()),
        },
    )

    @given(
        st.one_of(st.text(max_size=40), st.lists(ITEM, max_size=4).map(json.dumps), st.from_type(int).map(json.dumps))
    )
    def test_an_answer_is_read_whole_or_refused(self, output):
        try:
            found = read_squawk(output, {"a": "0001", "b": "0002"})
        except SchemaError:
            return
        assert found.keys() == {"0001", "0002"}
        assert sum(map(len, found.values())) == len(json.loads(output or "[]"))
        assert all(item.sql_line and item.sql_line >= 1 for items in found.values() for item in items)


class TestCommand:
    def test_findings_are_readable_at_80_columns_and_exit_code_1(self, tmp_path, capsys):
        alter = (
            "ALTER TABLE entry ALTER COLUMN amount TYPE bigint, ALTER COLUMN account_id SET DEFAULT 1, DROP COLUMN id"
        )
        up = f'op.execute("{alter}")\nop.create_index("i", "entry", ["amount"])'
        versions = fourth(tmp_path / "v", up)
        assert main(["migrate", "lint", "--directory", str(versions), "0004"]) == 1
        said = capsys.readouterr().out
        assert max(map(len, said.splitlines())) <= 80
        assert said.splitlines()[0] == "fourth.py"
        assert re.search(r"^  changing-column-type, line \d+ of the SQL$", said, re.MULTILINE)
        assert "    mend: Say postgresql_concurrently=True in op.create_index" in said
        assert re.search(r"^\d findings in 1 migration$", said, re.MULTILINE)
        assert main(["migrate", "lint", "--json", "--directory", str(versions), "0004"]) == 1
        found = json.loads(capsys.readouterr().out)
        assert found["checked"] == 1
        assert {"revision", "file", "rule", "message", "mend", "line", "sql"} == found["findings"][0].keys()

    def test_a_clean_tree_is_exit_code_0_and_needs_no_database(self, capsys, monkeypatch):
        monkeypatch.setenv("DATABASE__POSTGRES_URL", "postgresql://nobody@127.0.0.1:1/nothing")
        assert main(["migrate", "lint"]) == 0
        assert re.fullmatch(r"\d+ migrations, nothing to say\n", capsys.readouterr().out)

    def test_make_check_runs_it(self):
        recipe = (ROOT / "Makefile").read_text().partition("\ncheck:")[2].partition("\n\n")[0]
        assert "panda migrate lint" in recipe


class TestNew:
    def test_it_is_dated_numbered_and_follows_the_head(self, tmp_path):
        versions = write(tmp_path / "v")
        made = schema.new("Add the kind of an entry", versions=versions, today=DAY)
        assert made.file == "2026_04_05_0004_add_the_kind_of_an_entry.py"
        assert (made.revision, made.down_revision, made.date) == ("0004", "0003", DAY)
        assert made.message == "Add the kind of an entry."
        assert (made.lock_timeout, made.statement_timeout) == (2.0, 600.0)
        assert schema.history(versions=versions)[-1] == made

    def test_the_first_one_of_an_application_follows_nothing(self, tmp_path):
        (tmp_path / "__init__.py").touch()
        made = schema.new("First", versions=tmp_path, today=DAY)
        assert (made.revision, made.down_revision) == ("0001", None)
        assert schema.new("Second", versions=tmp_path, today=DAY).down_revision == "0001"

    def test_numbers_go_on_after_the_highest_and_names_of_another_kind_are_counted(self, tmp_path):
        versions = write(tmp_path / "v", upto=0, a=revision("0041", "x", "pass").replace('"x"', "None"))
        assert schema.new("More", versions=versions).revision == "0042"
        hashes = write(tmp_path / "h", upto=0, a=revision("ae1027", "x", "pass").replace('"x"', "None"))
        made = schema.new("More", versions=hashes)
        assert (made.revision, made.down_revision) == ("0002", "ae1027")

    async def test_until_it_is_written_it_fails_and_is_found_by_lint(self, empty_database, tmp_path):
        versions = write(tmp_path / "v")
        made = schema.new("Nothing yet", versions=versions)
        async with engine_on(empty_database) as engine:
            with pytest.raises(MigrationFailed, match="0004 is not written yet") as failed:
                await schema.upgrade(engine, timeouts=QUICK, metadata=metadata(), versions=versions)
            assert failed.value.revision == "0004"
            assert (await schema.inspect(engine, metadata=metadata(), versions=versions)).current == ("0003",)
        found = await schema.lint([made.revision], metadata=metadata(), versions=versions)
        assert {item.rule for item in found} == {"not-written", "not-renderable"}

    def test_the_file_is_well_formed_python(self, tmp_path):
        made = schema.new("Tidy", versions=write(tmp_path / "v"))
        path = str(tmp_path / "v" / made.file)
        for command in (
            ["check", "--isolated", "--select", "I,E,W,UP,F", "--ignore", "F401", "--line-length", "120"],
            ["format", "--isolated", "--check", "--line-length", "120"],
        ):
            ran = subprocess.run(
                [sys.executable, "-m", "ruff", *command, path], capture_output=True, text=True, check=False
            )
            assert ran.returncode == 0, ran.stdout

    @pytest.mark.parametrize("message", ["", "   ", "\n", "...", "-", "a\x00b", "a\x1b[31mb", "\udc80 x", "x" * 201])
    def test_a_message_that_says_nothing_is_refused(self, message, tmp_path):
        versions = write(tmp_path / "v")
        before = sorted(versions.iterdir())
        with pytest.raises(ConfigurationError):
            schema.new(message, versions=versions)
        assert sorted(versions.iterdir()) == before

    def test_two_heads_are_refused_with_both_names(self, tmp_path):
        versions = write(tmp_path / "v", fork=revision("0003b", "0002", "pass"))
        with pytest.raises(SchemaMultipleHeads, match="0003, 0003b"):
            schema.new("More", versions=versions)

    def test_a_file_that_is_there_is_not_overwritten(self, tmp_path):
        versions = write(tmp_path / "v", upto=2)
        taken = versions / "2026_04_05_0003_more.py"
        taken.symlink_to(tmp_path / "precious.py")  # no revision, since it leads nowhere yet
        with pytest.raises((ConfigurationError, OSError)):
            schema.new("More", versions=versions, today=DAY)
        assert taken.is_symlink()
        assert not (tmp_path / "precious.py").exists()

    def test_folders_that_cannot_take_it_are_refused(self, tmp_path, monkeypatch):
        with pytest.raises(ConfigurationError, match="is no folder"):
            schema.new("More", versions=tmp_path / "nowhere")
        installed = tmp_path / "lib" / "site-packages" / "core" / "database" / "migrations"
        write(installed / "versions")
        monkeypatch.setattr("core.database.schema._new.MIGRATIONS", installed)
        with pytest.raises(ConfigurationError, match=r"belongs to an installed package.*--directory"):
            schema.new("More")

    def test_a_folder_without_write_permission_is_refused(self, open_folder):
        versions = write(open_folder / "unwritable")
        versions.chmod(0o555)
        source = (
            "import os, sys; from pathlib import Path; from core.database import schema\n"
            "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "try: schema.new('More', versions=Path(sys.argv[1]))\n"
            "except Exception as error: print(type(error).__name__, error)\n"
        )
        ran = subprocess.run(
            [sys.executable, "-c", source, str(versions)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        versions.chmod(0o755)
        assert ran.stdout.startswith("ConfigurationError no file can be written into"), ran.stderr
        assert len(list(versions.glob("*.py"))) == 3

    def test_many_at_once_take_numbers_in_a_row(self, tmp_path):
        versions = write(tmp_path / "v")
        source = (
            "import os, sys; from pathlib import Path; from core.database import schema\n"
            "for number in range(6):\n"
            "    if os.fork() == 0:\n"
            "        schema.new(f'Number {number}', versions=Path(sys.argv[1]))\n"
            "        os._exit(0)\n"
            "sys.exit(sum(os.wait()[1] for _ in range(6)))\n"
        )
        ran = subprocess.run([sys.executable, "-c", source, str(versions)], cwd=ROOT, check=False)
        assert ran.returncode == 0
        assert [item.revision for item in schema.history(versions=versions)][3:] == [f"{n:04}" for n in range(4, 10)]

    @given(message=st.text(max_size=80))
    @settings(
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        deadline=None,
        max_examples=150,
    )
    def test_any_message_is_refused_or_comes_back_from_the_file(self, message, tmp_path_factory):
        versions = write(tmp_path_factory.mktemp("v"), upto=1)
        try:
            made = schema.new(message, versions=versions, today=DAY)
        except ConfigurationError:
            assert len(list(versions.iterdir())) == 1
            return
        said = " ".join(message.split()).replace('"', "'")
        assert made.message in (said, f"{said}.")
        assert re.fullmatch(r"2026_04_05_0002_[a-z0-9_]{1,40}\.py", made.file)
        tree = ast.parse((versions / made.file).read_text())
        assert ast.get_docstring(tree, clean=False) == made.message

    @given(st.text(max_size=200))
    def test_a_slug_is_short_plain_and_its_own_slug(self, message):
        found = slug(message)
        assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", found)
        assert len(found) <= 40
        assert slug(found) == found


class TestDraft:
    async def test_a_difference_is_written_tried_and_what_is_left_is_told(self, empty_database, tmp_path):
        versions, tables = write(tmp_path / "v"), metadata()
        tables.tables["entry"].append_column(Column("kind", Text, nullable=False, server_default="x"))
        tables.tables["entry"].append_column(Column("shares", BigInteger))
        async with engine_on(empty_database) as engine:
            draft = await schema.draft(engine, metadata=tables, versions=versions)
        assert "op.add_column('entry', sa.Column('kind', sa.Text(), server_default=" in draft.upgrade
        assert "op.drop_column('entry', 'kind')" in draft.downgrade
        assert "###" not in draft.upgrade
        assert draft.notes == ()
        schema.new("Add kind", versions=versions, draft=draft)
        assert (await schema.lint(["0004"], metadata=tables, versions=versions)) == ()

    async def test_what_alembic_does_not_see_is_told(self, empty_database, tmp_path):
        tables = metadata()
        event.listen(
            tables.tables["entry"], "after_create", DDL("ALTER TABLE entry ADD CONSTRAINT ck_more CHECK (amount < 99)")
        )
        async with engine_on(empty_database) as engine:
            draft = await schema.draft(engine, metadata=tables, versions=write(tmp_path / "v"))
        assert draft.upgrade == ""
        assert [note for note in draft.notes if "ck_more" in note and "only in the models" in note]

    async def test_indexes_alone_are_made_concurrently(self, empty_database, tmp_path):
        versions, tables = write(tmp_path / "v"), metadata()
        Index("ix_entry_amount", tables.tables["entry"].c.amount)
        async with engine_on(empty_database) as engine:
            draft = await schema.draft(engine, metadata=tables, versions=versions)
        assert "postgresql_concurrently=True" in draft.upgrade
        assert "postgresql_concurrently=True" in draft.downgrade
        assert draft.notes == ()

    async def test_models_that_cannot_be_created_say_so(self, empty_database, tmp_path):
        tables = metadata()
        tables.tables["entry"].append_column(Column("broken", BigInteger, server_default=text("nonesuch()")))
        async with engine_on(empty_database) as engine:
            with pytest.raises(Exception, match="nonesuch"):
                await schema.draft(engine, metadata=tables, versions=write(tmp_path / "v"))

    async def test_the_projects_models_and_migrations_agree(self, empty_database):
        async with engine_on(empty_database) as engine:
            assert await schema.draft(engine) == schema.Draft()

    def test_a_table_of_ours_is_drafted_without_importing_from_us(self, tmp_path, capsys):
        files = sorted((PROJECT / "versions").glob("2*.py"))
        (tmp_path / files[0].name).write_text(files[0].read_text())
        models = "core.database.models:Base"
        assert main(["migrate", "new", "The rest", "--json", "--directory", str(tmp_path), "--models", models]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert (answer["compared"], answer["drafted"]) == (True, True)
        source = Path(answer["path"]).read_text()
        assert "core" not in re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE)
        # It can be written as SQL; that it does at once what wants migrations of its own is for its reader to part.
        findings = asyncio.run(schema.lint([answer["revision"]], versions=tmp_path))
        assert {finding.rule for finding in findings} <= {
            "require-concurrent-index-creation",
            "require-concurrent-index-deletion",
            "adding-field-with-default",
        }

    @pytest.mark.parametrize(
        "models", ["nonsense", "core.nonesuch:Base", "core.database.models:Nonesuch", "core.config.options:Timeouts"]
    )
    def test_models_that_cannot_be_had_are_wrong_usage(self, models, tmp_path, capsys):
        assert main(["migrate", "new", "More", "--directory", str(tmp_path), "--models", models]) == 2
        assert "error: " in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_the_command_says_where_the_file_is(self, tmp_path, capsys):
        assert main(["migrate", "new", "Add a note", "--directory", str(tmp_path), "--empty"]) == 0
        seen = capsys.readouterr()
        assert re.fullmatch(rf"{tmp_path}/\d{{4}}_\d\d_\d\d_0001_add_a_note\.py\n", seen.out)
        assert "until then they raise" in seen.err
        assert main(["migrate", "new", " ", "--directory", str(tmp_path)]) == 2
