"""The command `panda`: exit codes, what goes to stdout and stderr, and that no secret is in either."""

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from core.cli import _failure
from core.cli._failure import CommandError, describe
from core.cli._output import Output
from core.cli.main import main
from core.config.settings import get_settings
from core.database import errors, schema
from core.database.connection import DatabaseManager
from tests.commands import panda

SECRET = "hunter2-geheim"
NOWHERE = f"postgresql://panda:{SECRET}@127.0.0.1:1/panda"
pytestmark = pytest.mark.usefixtures("clean")
HEAVY = {"sqlalchemy", "asyncpg", "polars", "alembic", "pydantic", "structlog", "rich", "asyncio"}


def process(*arguments: str, url: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a person does, in a process of its own."""
    names = environment | ({"DATABASE__POSTGRES_URL": url} if url else {})
    return subprocess.run(
        [sys.executable, "-m", "core.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **names},
    )


def answer(result: subprocess.CompletedProcess[str]) -> dict:
    """The one JSON object that is all of stdout."""
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that lets clients connect and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


def url_of(server: socket.socket) -> str:
    return f"postgresql://panda:{SECRET}@127.0.0.1:{server.getsockname()[1]}/panda"


# Start


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from core.cli.main import main; code = main(['--help']);"
        f"print(sorted(set(sys.modules) & {HEAVY!r}), file=sys.stderr); sys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr.strip()) == (0, "[]")


def test_help_starts_faster_than_the_orm_alone():
    def best(*command: str) -> float:
        times = []
        for _ in range(3):
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            times.append(time.perf_counter() - started)
        return min(times)

    assert best("-m", "core.cli.main", "--help") < best("-c", "import sqlalchemy.ext.asyncio")


def test_help_lists_the_commands_and_exit_codes_within_80_columns():
    result = process("--help")
    assert result.returncode == 0
    for name in ("up", "down", "demo", "health", "wait", "migrate", "config", "version"):
        assert re.search(rf"^  {name} ", result.stdout, re.MULTILINE)
    for code, meaning in _failure.EXIT_CODES:
        assert re.search(rf"^ +{code}  {re.escape(meaning)}$", result.stdout, re.MULTILINE)
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert not re.search(r"^  \w+ .*\.\.\.$", result.stdout, re.MULTILINE), "a summary was cut"


@pytest.mark.parametrize(
    "path",
    [
        ["up"],
        ["down"],
        ["demo"],
        ["health"],
        ["wait"],
        ["version"],
        ["config", "show"],
        *(["migrate", verb] for verb in ("upgrade", "downgrade", "verify", "plan", "history", "new", "lint")),
    ],
)
def test_every_command_takes_the_common_options_and_explains_itself(path, capsys):
    assert main([*path, "--help"]) == 0
    said = capsys.readouterr().out
    for option in ("--json", "--verbose", "--quiet", "--log-json", "--debug", "--help"):
        assert option in said
    assert max(map(len, said.splitlines())) <= 80


# Usage


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["helth"], "Did you mean 'health'?"),
        (["health", "--nope"], "--nope"),
        (["health", "extra"], "extra"),
        (["migrate", "downgrade"], "REV"),
        (["migrate", "downgrade", "--nope"], "no such option: --nope"),
        (["wait", "--timeout", "soon"], "--timeout"),
        (["wait", "--timeout", "-1"], "--timeout"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_wrong_usage_is_exit_code_2_and_one_message(capsys, arguments, said, as_json):
    assert main([*arguments, *(["--json"] if as_json else [])]) == 2
    seen = capsys.readouterr()
    if as_json:
        assert said in json.loads(seen.out)["error"]["message"]
        assert seen.err == ""
    else:
        assert seen.out == ""
        assert said in seen.err.splitlines()[0]
        assert seen.err.startswith("error: ")
        assert "hint: " in seen.err


@pytest.mark.parametrize("path", [[], ["migrate"], ["config"]])
def test_a_group_without_a_command_shows_its_help_on_stderr(path):
    result = process(*path)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Usage: panda" in result.stderr


# Settings


def test_bad_settings_are_exit_code_2_with_a_line_each():
    result = panda("health", url=NOWHERE, ENVIRONMENT="Production", DATABASE__POSTGRES_ULR=NOWHERE)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[0] == "error: the settings cannot be used"
    assert "DATABASE__POSTGRES_ULR is not a setting; did you mean DATABASE__POSTGRES_URL?" in result.stderr
    assert "ENVIRONMENT must be" in result.stderr
    assert SECRET not in result.stderr


def test_bad_settings_as_json_name_each_setting():
    error = answer(panda("health", "--json", DATABASE__POOL__SIZE="ten", ENVIRONMENT="dev"))["error"]
    assert (error["type"], error["exit_code"]) == ("SettingsError", 2)
    assert [problem["setting"] for problem in error["problems"]] == ["ENVIRONMENT", "DATABASE__POOL__SIZE"]


@pytest.mark.parametrize("url", [f"mysql://u:{SECRET}@h/db", f"postgresql://u:{SECRET}@x@h/db", f"nonsense {SECRET}"])
def test_a_bad_url_is_exit_code_2_and_is_not_repeated(monkeypatch, capsys, url):
    monkeypatch.setenv("DATABASE__POSTGRES_URL", url)
    for arguments in (["health"], ["migrate", "plan"], ["wait"], ["up"], ["health", "--debug"]):
        code = main(arguments)
        seen = capsys.readouterr()
        assert code == 2, seen.err
        assert SECRET not in seen.out + seen.err


def test_config_show_gives_every_setting_its_source_and_no_secret():
    Path(".env").write_text("DATABASE__POOL__SIZE=4\n")
    Path("url").write_text(NOWHERE)
    Path("url").chmod(0o600)
    names = {"DATABASE__POSTGRES_URL_FILE": "url", "DATABASE__ENCRYPTION_KEYS": f"k1:{SECRET}"}
    shown = answer(process("config", "show", "--json", **names))["settings"]
    assert shown["DATABASE__POSTGRES_URL"] == {
        "value": "postgresql://panda:***@127.0.0.1:1/panda",
        "source": "environment DATABASE__POSTGRES_URL_FILE (file)",
    }
    assert shown["DATABASE__POOL__SIZE"] == {"value": "4", "source": ".env DATABASE__POOL__SIZE"}
    assert shown["DATABASE__ENCRYPTION_KEYS"]["value"] == "***"
    assert shown["ENVIRONMENT"] == {"value": "development", "source": "default"}
    table = panda("config", "show", **names)
    assert SECRET not in table.stdout
    assert re.search(r"^DATABASE__POOL__SIZE +4 +\.env$", table.stdout, re.MULTILINE)
    assert table.stderr == ""


def test_the_command_line_uses_the_embedded_server_while_nobody_set_a_url():
    assert answer(panda("config", "show", "--json"))["settings"]["DATABASE__POSTGRES_URL"]["value"] == "embedded:"


def test_a_doubtful_setting_is_a_warning_on_stderr_that_quiet_silences():
    result = panda("config", "show", "--json", DATABASE_POOL_SIZE="3")
    assert answer(result)
    assert result.stderr.startswith("warning: DATABASE_POOL_SIZE is not a setting")
    assert panda("config", "show", "--json", "-q", DATABASE_POOL_SIZE="3").stderr == ""


def test_version_names_what_is_installed():
    found = answer(panda("version", "--json"))
    assert {"alpha-panda-core", "python", "sqlalchemy", "asyncpg", "alembic", "embedded_postgresql"} <= found.keys()
    assert re.fullmatch(r"\d+\.\d+", found["embedded_postgresql"])
    assert panda("--version").stdout.strip() == found["alpha-panda-core"]


# A database that cannot be reached


@pytest.mark.parametrize("command", [["migrate", "verify"], ["migrate", "plan"], ["wait", "--timeout", "0.5"]])
def test_an_unreachable_server_is_exit_code_4_with_the_mend_and_no_traceback(command):
    result = process(*command, url=NOWHERE)
    assert (result.returncode, result.stdout) == (4, "")
    assert result.stderr.startswith("error: ")
    assert "hint: " in result.stderr
    assert "Traceback" not in result.stderr
    assert SECRET not in result.stderr
    again = process if command[0] == "wait" else panda
    error = answer(again(*command, "--json", url=NOWHERE))["error"]
    assert error["type"] == "HostUnreachable"
    assert error["exit_code"] == 4
    assert error["hint"]


def test_debug_shows_the_traceback_without_the_secret():
    result = process("migrate", "verify", "--debug", url=NOWHERE)
    assert result.returncode == 4
    assert "Traceback" in result.stderr
    assert SECRET not in result.stderr


def test_health_of_an_unreachable_server_is_a_report_and_exit_code_4():
    result = panda("health", url=NOWHERE)
    assert result.returncode == 4
    assert re.search(r"^status +unhealthy$", result.stdout, re.MULTILINE)
    assert "Traceback" not in result.stderr
    report = answer(panda("health", "--json", url=NOWHERE))
    assert (report["status"], report["version"]) == ("unhealthy", None)
    assert report["error"]
    assert SECRET not in json.dumps(report)


def test_health_does_not_start_the_built_in_server(tmp_path):
    result = panda("health", url=f"embedded://{tmp_path}/pg")
    assert result.returncode == 4
    assert "panda up" in result.stdout
    assert not (tmp_path / "pg").exists()


@pytest.mark.parametrize("timeout", [0.5, 2.0])
def test_wait_ends_when_its_time_is_up_though_the_server_says_nothing(silent, timeout):
    started = time.perf_counter()
    result = process("wait", "--timeout", str(timeout), url=url_of(silent), DATABASE__TIMEOUTS__CONNECT="170")
    assert result.returncode == 4
    assert timeout < time.perf_counter() - started < 90  # most of it is the start of Python on a busy machine
    assert SECRET not in result.stderr


def test_wait_ends_even_when_a_thread_cannot_be_cancelled():
    code = (
        "import socket, sys, time; socket.getaddrinfo = lambda *_, **__: time.sleep(170);"
        "from core.cli.main import main; sys.exit(main(['wait', '--timeout', '0.5', '--json']))"
    )
    started = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "DATABASE__POSTGRES_URL": "postgresql://panda@some.host.invalid/panda"},
    )
    assert result.returncode == 4
    assert answer(result)["error"]["exit_code"] == 4
    assert time.perf_counter() - started < 90


def test_ctrl_c_is_exit_code_130_and_one_line(silent):
    process = subprocess.Popen(
        [sys.executable, "-m", "core.cli.main", "wait", "-v"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DATABASE__POSTGRES_URL": url_of(silent)},
    )
    client, _ = silent.accept()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    client.close()
    assert (process.returncode, out, err) == (130, "", "error: interrupted\n")


def test_who_stops_reading_is_no_error_message():
    for arguments in (["version"], ["version", "--json"], ["--help"], ["config", "show"]):
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, "-m", "core.cli.main", *arguments]
        result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
        os.close(writer)
        assert (result.returncode, result.stderr) == (141, "")


# A real server


@pytest.mark.parametrize("command", ["up", "down"])
def test_up_and_down_leave_a_server_of_your_own_alone(command):
    result = panda(command, url=NOWHERE)
    assert (result.returncode, result.stdout) == (2, "")
    assert "nothing of ours" in result.stderr
    assert "postgresql://panda:***@127.0.0.1:1/panda" in result.stderr


def test_migrate_takes_an_empty_database_to_head_and_back(empty_database):
    pending = answer(panda("migrate", "plan", "--json", url=empty_database))["pending"]
    assert pending
    head = pending[-1]["revision"]

    refused = panda("migrate", "verify", url=empty_database)
    assert refused.returncode == 3
    assert "panda migrate upgrade" in refused.stderr
    assert answer(panda("migrate", "verify", "--json", url=empty_database))["error"]["type"] == "SchemaMissing"

    sql = panda("migrate", "upgrade", "--sql", url=empty_database)
    assert sql.returncode == 0
    assert "CREATE TABLE" in sql.stdout
    assert panda("migrate", "verify", url=empty_database).returncode == 3, "a preview must change nothing"

    result = panda("migrate", "upgrade", "--json", url=empty_database)
    moved = answer(result)
    assert (moved["from"], moved["current"], moved["status"]) == ([], [head], "at_head")
    assert "applying" in result.stderr
    assert panda("migrate", "verify", url=empty_database).returncode == 0
    again = panda("migrate", "upgrade", url=empty_database)
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    assert "nothing to do" in panda("migrate", "plan", url=empty_database).stdout

    unanswered = panda("migrate", "downgrade", "base", url=empty_database)
    assert unanswered.returncode == 2
    assert "--yes" in unanswered.stderr
    careful = panda("migrate", "downgrade", "-1", url=empty_database, ENVIRONMENT="production")
    assert careful.returncode == 2
    assert "production" in careful.stderr
    assert panda("migrate", "verify", url=empty_database).returncode == 0, "a refusal must change nothing"
    down = answer(panda("migrate", "downgrade", "-1", "--yes", "--json", url=empty_database))
    assert head not in down["current"]
    assert panda("migrate", "downgrade", "base", "-y", url=empty_database).returncode == 0
    assert panda("migrate", "verify", url=empty_database).returncode == 3


def test_an_unknown_revision_is_refused_without_harm(database_url):
    result = panda("migrate", "upgrade", "nonesuch", url=database_url)
    assert result.returncode == 3
    assert "panda migrate history" in result.stderr


def test_history_needs_no_database():
    revisions = answer(panda("migrate", "history", "--json", url=NOWHERE))["revisions"]
    assert revisions[0]["down_revision"] is None
    assert [item["revision"] for item in revisions] == [item.revision for item in schema.history()]
    table = panda("migrate", "history", url=NOWHERE).stdout
    assert all(item["revision"] in table for item in revisions)


def test_a_held_migration_lock_is_exit_code_5(empty_database):
    from core.database.schema._lock import migration_lock

    async def meanwhile() -> subprocess.CompletedProcess[str]:
        manager = DatabaseManager(empty_database, "testing", "migrations_only", verify_migrations=False)
        async with manager, migration_lock(manager.engine, timeouts=get_settings().database.timeouts):
            return await asyncio.to_thread(
                process, "migrate", "upgrade", "--json", url=empty_database, DATABASE__TIMEOUTS__MIGRATION_LOCK="0.3"
            )

    result = asyncio.run(meanwhile())
    assert result.returncode == 5
    assert answer(result)["error"]["type"] == "SchemaLockTimeout"


def test_health_of_a_database_at_head_is_healthy(database_url):
    report = answer(panda("health", "--json", url=database_url))
    assert (report["status"], report["schema"]["status"]) == ("healthy", "at_head")
    shown = panda("health", url=database_url)
    assert shown.returncode == 0
    assert re.search(r"^status +healthy$", shown.stdout, re.MULTILINE)
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_health_of_an_empty_database_is_degraded_and_says_so(empty_database):
    result = panda("health", url=empty_database)
    assert result.returncode == 0
    assert re.search(r"^status +degraded$", result.stdout, re.MULTILINE)
    assert "warning: the database is degraded" in result.stderr
    assert answer(panda("health", "--json", url=empty_database))["status"] == "degraded"


def test_wait_demands_head_only_where_the_application_would(empty_database, database_url):
    assert answer(panda("wait", "--json", url=database_url))["ready"] is True
    assert panda("wait", url=empty_database).returncode == 0
    strict = {"DATABASE__SCHEMA_MANAGEMENT": "migrations_only"}
    refused = process("wait", "--timeout", "1", url=empty_database, **strict)
    assert refused.returncode == 3
    assert panda("wait", url=database_url, **strict).returncode == 0
    assert panda("migrate", "verify", url=empty_database).returncode == 3, "waiting must change nothing"


def test_up_starts_migrates_and_keeps_and_down_stops(open_folder):
    url = f"embedded://{open_folder}/up"
    try:
        first = process("up", "--json", url=url)
        assert first.returncode == 0, first.stderr
        told = answer(first)
        assert (told["started"], told["url"]) == (True, url)
        assert told["revision"] == schema.history()[-1].revision
        assert answer(panda("health", "--json", url=url))["status"] == "healthy"
        again = panda("up", url=url)
        assert again.returncode == 0
        assert f"DATABASE__POSTGRES_URL={url}" in again.stdout
        assert f"psql '{told['dsn']}'\n" in again.stdout
        assert "panda down" in again.stdout
    finally:
        stopped = process("down", "--json", url=url)
    assert answer(stopped)["stopped"] is True
    assert answer(panda("down", "--json", url=url))["stopped"] is False
    assert "was not running" in panda("down", url=url).stdout


def test_the_demo_refuses_production_and_a_folder_that_is_not_its_own(tmp_path):
    assert panda("demo", ENVIRONMENT="production").returncode == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("keep")
    for fresh in ([], ["--fresh"]):
        result = panda("demo", "--json", "--directory", str(tmp_path / "mine"), *fresh)
        assert (result.returncode, answer(result)["error"]["type"]) == (2, "ConfigurationError")
    assert (tmp_path / "mine" / "notes").read_text() == "keep"


def test_the_demo_prints_its_report_alone_on_stdout(open_folder):
    folder = open_folder / "demo"
    try:
        result = process("demo", "--json", "--directory", str(folder))
        assert result.returncode == 0, result.stderr
        report = answer(result)
        assert report["counts"]["instruments"] == 100_000
        assert (report["health"]["status"], report["directory"]) == ("healthy", str(folder))
        assert re.fullmatch(r"-?\d+\.\d+", report["portfolios"][0]["equity"]), "money is a string of digits"
        assert "Load 100,000" in result.stderr
    finally:
        assert panda("down", url=f"embedded://{folder}").returncode == 0


# Colours and terminals


def terminal(*arguments: str, **environment: str) -> str:
    """All that a person sees who runs the command on a terminal of 80 columns."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "core.cli.main", *arguments]
    names = {**os.environ, "TERM": "xterm-256color", "DATABASE__POSTGRES_URL": NOWHERE, **environment}
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=names)
    os.close(follower)
    seen = b""
    with contextlib.suppress(OSError):  # EIO when the other side closes
        while piece := os.read(leader, 65_536):
            seen += piece
    os.close(leader)
    process.wait(timeout=60)
    return seen.decode()


def test_colours_are_for_terminals_and_no_color_is_heeded():
    assert "\x1b[" in terminal("migrate", "verify")
    quiet = terminal("migrate", "verify", "-q", NO_COLOR="1")
    assert "\x1b[" not in quiet
    assert "error: " in quiet
    piped = panda("migrate", "verify", url=NOWHERE)
    assert "\x1b" not in piped.stdout + piped.stderr


def test_a_terminal_shows_no_line_beyond_80_columns():
    for arguments in (["config", "show"], ["migrate", "verify", "-q"], ["health"]):
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal(*arguments, ENVIRONMENT="staging"))
        assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
        assert SECRET not in text


# Logs


def test_logs_go_to_stderr_as_text_or_json(database_url):
    small = {"DATABASE__POOL__PROCESSES": "1000"}  # beyond any server's limit, which is worth a warning
    text = panda("health", "--json", url=database_url, **small)
    assert answer(text)["warnings"]
    assert "[warning" in text.stderr
    lines = panda("health", "--json", "--log-json", "-q", url=database_url, **small)
    assert lines.stderr == ""
    lines = panda("health", "--json", "--log-json", url=database_url, **small)
    logged = [json.loads(line) for line in lines.stderr.splitlines() if line.startswith("{")]
    assert logged[0]["level"] == "warning"
    assert logged[0]["logger"] == "core.database"


# Failures in words


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CommandError("no"), 1),
        (errors.InvalidUrl("no"), 2),
        (errors.ConfigurationError("no"), 2),
        (errors.InvalidKey("no"), 2),
        (errors.SchemaBehind("no"), 3),
        (errors.SchemaUnknownRevision("no"), 3),
        (errors.MigrationFailed("no"), 1),
        (errors.SchemaLockTimeout("no"), 5),
        (errors.LockTimeout("no"), 5),
        (errors.HostUnreachable("no"), 4),
        (errors.AuthenticationFailed("no"), 4),
        (errors.PoolExhausted("no"), 4),
        (errors.InvalidInput("no"), 6),
        (errors.UniqueViolation("no"), 1),
        (errors.EmbeddedServerError("no"), 1),
        (OSError(2, "No such file or directory", "x.csv"), 1),
        (RuntimeError("no"), 1),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error, code):
    failure = describe(error)
    assert failure.code == code
    assert failure.message


def test_every_error_class_is_described():
    for name in errors.__all__:
        cls = getattr(errors, name)
        if isinstance(cls, type):
            failure = describe(cls("what happened", hint="do this"))
            assert (failure.type, failure.message, failure.hint) == (name, "what happened", "do this")
            assert failure.code in {code for code, _ in _failure.EXIT_CODES}


def test_causes_are_told_nearest_first_and_once():
    try:
        try:
            try:
                raise ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)")
            except OSError as refused:
                raise errors.HostUnreachable("the server cannot be reached", sqlstate="08001") from refused
        except errors.HostUnreachable as unreachable:
            raise errors.EmbeddedServerError("the demo needs a server", hint="start it") from unreachable
    except errors.EmbeddedServerError as error:
        failure = describe(error)
    assert failure.message == "the demo needs a server"
    assert failure.causes == (
        ("HostUnreachable", "the server cannot be reached"),
        ("ConnectionRefusedError", "Connect call failed ('127.0.0.1', 1)"),
    )
    assert failure.hint == "start it"


@pytest.mark.parametrize("password", [SECRET, "pa ss-word", "p%40ss-word/x", "(geheim)"])
def test_no_text_of_a_failure_holds_a_secret(monkeypatch, password):
    monkeypatch.setenv("DATABASE__POSTGRES_URL", f"postgresql://panda:{password}@h/db")
    monkeypatch.setenv("DATABASE__ENCRYPTION_KEYS", "k1:c2VjcmV0LWtleS1tYXRlcmlhbA==")
    get_settings()
    cause = RuntimeError(f"cannot use {password} or c2VjcmV0LWtleS1tYXRlcmlhbA==")
    error = errors.HostUnreachable(f"no route to postgresql://x:{password}@h/db", hint=f"not '{password}'")
    error.__cause__ = cause
    text = json.dumps(describe(error).to_json())
    assert password not in text
    assert "c2VjcmV0" not in text
    assert "://x:***@" in text


def test_a_decimal_and_a_path_are_exact_text_in_json(capsys):
    Output(as_json=True).data({"cash": Decimal("100.10"), "folder": Path("/x")})
    assert json.loads(capsys.readouterr().out) == {"cash": "100.10", "folder": "/x"}
    with pytest.raises(TypeError):
        Output(as_json=True).data({"x": object()})


def test_an_unexpected_error_is_a_sentence_that_asks_for_debug(monkeypatch, capsys):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("core.database.schema.history", broken)
    assert main(["migrate", "history"]) == 1
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err.startswith("error: unexpected ZeroDivisionError: division by zero\n")
    assert "--debug" in seen.err
