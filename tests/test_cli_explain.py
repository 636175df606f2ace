"""`panda explain`: where it takes the statement from, what it prints, and what it refuses."""

import asyncio
import contextlib
import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import asyncpg
import pytest

from core.cli.main import main
from core.config.settings import get_settings
from tests.cluster.debian import DebianServer, binaries, debian_server
from tests.test_cli_top import NOWHERE, clean  # noqa: F401  # pyright: ignore[reportUnusedImport] - a fixture

STATEMENT = "SELECT * FROM users WHERE username = $1"


def panda(*arguments: str, url: str, stdin: str | bytes = "") -> subprocess.CompletedProcess[str]:
    out, err = io.StringIO(), io.StringIO()
    raw = stdin if isinstance(stdin, bytes) else stdin.encode()
    get_settings.cache_clear()
    with (
        mock.patch.dict(os.environ, {"DATABASE__POSTGRES_URL": url}),
        mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(raw))),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = main(arguments)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def test_the_statement_comes_from_the_argument_a_file_or_stdin(database_url_sync: str, tmp_path: Path) -> None:
    (tmp_path / "slow.sql").write_text(f"\ufeff-- slow\n{STATEMENT};\n", encoding="utf-8")
    results = [
        panda("explain", STATEMENT, url=database_url_sync),
        panda("explain", "--file", str(tmp_path / "slow.sql"), url=database_url_sync),
        panda("explain", url=database_url_sync, stdin=STATEMENT),
        panda("explain", "-", url=database_url_sync, stdin=STATEMENT),
        panda("explain", "-f", "-", url=database_url_sync, stdin=STATEMENT),
    ]
    for result in results:
        assert (result.returncode, result.stderr) == (0, "")
        assert "Index Scan using uq_users_username on users" in result.stdout
        assert "(users.username" in result.stdout
        assert "nothing was executed" in result.stdout
        assert max(map(len, result.stdout.splitlines())) <= 80


def test_json_is_postgresqls_plan_with_the_observations(database_url_sync: str) -> None:
    result = panda("explain", "--json", "SELECT * FROM portfolio_snapshots", url=database_url_sync)
    found = json.loads(result.stdout)
    assert found["statement"] == "SELECT * FROM portfolio_snapshots"
    assert isinstance(found["plan"]["Plan"]["Total Cost"], float)
    assert isinstance(found["observations"], list)


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "said"),
    [
        (["SELECT 1; DROP TABLE users"], "", 1, "several"),
        (["DROP TABLE users"], "", 1, "DROP has no plan"),
        (["SELECT * FROM users WHERE id = :id"], "", 1, ":id is a placeholder"),
        ([], "", 1, "no statement"),
        (["SELECT 1", "--slowest", "3"], "", 2, "exclude"),
        (["--slowest", "3"], "", 1, "pg_stat_statements is not installed"),
        (["--file", "missing.sql"], "", 1, "missing.sql"),
        ([], b"SELECT '\xff'", 6, "not UTF-8"),
        ([], "SELECT 1 -- " + "x" * 1_000_000, 6, "more than"),
    ],
)
def test_what_is_refused_is_said_in_words(database_url_sync: str, arguments, stdin, code: int, said: str) -> None:
    result = panda("explain", *arguments, url=database_url_sync, stdin=stdin)
    assert (result.returncode, result.stdout) == (code, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unreachable_server_is_exit_code_4() -> None:
    assert panda("explain", "SELECT 1", url=NOWHERE).returncode == 4


@pytest.fixture(scope="module")
def counting_server(component) -> Iterator[DebianServer]:
    component(binaries() is not None, "apt-get install postgresql")
    with debian_server(tls=False, further={"shared_preload_libraries": "pg_stat_statements"}) as server:
        yield server


@pytest.mark.component
async def test_the_slowest_are_explained_one_by_one(counting_server: DebianServer) -> None:
    url = counting_server.url(query="?sslmode=disable")
    missing = await asyncio.to_thread(panda, "explain", "--slowest", "2", url=url)
    assert missing.returncode == 1
    assert "CREATE EXTENSION" in missing.stderr
    admin = await asyncpg.connect(
        host=str(counting_server.folder), port=counting_server.port, user="postgres", database="panda"
    )
    await admin.execute("CREATE EXTENSION pg_stat_statements; GRANT pg_read_all_stats TO panda")
    await admin.execute("CREATE TABLE t (id int, v text); GRANT ALL ON t TO panda")
    await admin.execute("SELECT pg_stat_statements_reset()")
    await admin.execute("SELECT pg_sleep(0.3), v FROM (VALUES ('hunter2')) x(v) /* hunter2 */")
    await admin.execute("SELECT pg_sleep(0.2), 1 WHERE now() - interval '1 day' < now()")
    await admin.execute("VACUUM t")
    result = await asyncio.to_thread(panda, "explain", "--slowest", "2", "--json", url=url)
    assert result.returncode == 0, result.stderr
    first, second = json.loads(result.stdout)["statements"]
    assert "pg_sleep" in first["statement"]
    assert first["mean_seconds"] > 0.3
    assert ("plan" in first, "error" in second) == (True, True), "interval $1 is no statement, and hides no other"
    text = await asyncio.to_thread(panda, "explain", "--slowest", "2", url=url)
    assert text.stdout.startswith("1. 3")
    assert "It cannot be planned" in text.stdout
    assert "hunter2" not in text.stdout
    await admin.close()
