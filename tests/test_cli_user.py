"""`panda user`: what it prints and returns, and that passwords are neither shown nor taken as arguments."""

import asyncio
import io
import os
import pty
import re
import subprocess
import sys
from typing import Any

import asyncpg
import pytest

from core.cli._user_events import shown
from core.database.models import User
from tests.test_cli import answer, panda
from tests.test_trading_accounts import quick

__all__ = ["quick"]

pytestmark = pytest.mark.usefixtures("clean", "quick")

PASSWORD = "correct horse"
NEW = "battery staple"


@pytest.fixture
def run(database_url_sync: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`panda user ...` on the test's database, with lines of stdin if given; anything but a result goes with exit code 0."""

    def work(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin or ""))
        words = (*arguments, "--password-stdin") if stdin is not None else arguments
        result = panda("user", *words, url=database_url_sync)
        for secret in (PASSWORD, NEW):
            assert secret not in result.stdout + result.stderr
        return result

    return work


def sql(url: str, statement: str) -> None:
    async def work() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(statement)
        await connection.close()

    asyncio.run(work())


def said(result: subprocess.CompletedProcess[str], code: int = 0) -> str:
    """What people read: at most 80 columns of it."""
    assert result.returncode == code, result.stderr
    text = result.stdout if code == 0 else result.stderr
    assert max(map(len, text.splitlines())) <= 80, text
    return text


def test_an_account_from_its_registration_to_its_end(run: Any) -> None:
    assert said(run("register", "\uff34rader", stdin=f"{PASSWORD}\n")) == "trader: registered\n"
    again = said(run("register", "TRADER", stdin=f"{PASSWORD}\n"), 6)
    assert "there is a user 'TRADER' already" in again
    assert "at least 8 characters" in said(run("register", "another", stdin="short\n"), 6)
    assert "at least 3 characters" in said(run("register", "ab", stdin=f"{PASSWORD}\n"), 6)
    assert said(run("passwd", "Trader", stdin=f"{PASSWORD}\n{NEW}\n")) == "trader: the password is changed\n"
    wrong = said(run("passwd", "trader", stdin=f"{PASSWORD}\n{NEW}\n"), 6)
    assert "the user name or the password is wrong" in wrong and "panda user reset" in wrong
    assert said(run("passwd", "nobody", stdin=f"{PASSWORD}\n{NEW}\n"), 6) == wrong
    assert said(run("reset", "trader", "--actor", "Asha", stdin=f"{PASSWORD}\r\n")) == "trader: the password is reset\n"
    for verb in ("disable", "enable", "unlock"):
        assert said(run(verb, "trader")) == f"trader: {verb}{'d' if verb.endswith('e') else 'ed'}\n"
        assert "there is no user 'no\\nbody\\u202e'" in said(run(verb, "no\nbody\u202e"), 6)
    assert "there is no user" in said(run("reset", "nobody", stdin=f"{PASSWORD}\n"), 6)
    lines = [line.split()[2:] for line in said(run("events", "trader")).splitlines()[1:]]
    me = lines[-1][-1]
    assert lines == [
        ["unlocked", "trader", me],
        ["enabled", "trader", me],
        ["disabled", "trader", me],
        ["password", "reset", "trader", "Asha"],
        ["refused:", "wrong", "password", "trader", "command", "line"],
        ["password", "changed", "trader", "command", "line"],
        ["registered", "trader", me],
    ]


def test_users_are_listed_and_shown(run: Any, database_url_sync: str) -> None:
    assert "no users yet" in run("list").stderr
    for name in ("cleo", "anna"):
        run("register", name, stdin=PASSWORD)
    run("disable", "anna")
    assert [line.split()[:3] for line in said(run("list")).splitlines()[1:]] == [
        ["anna", "2", "disabled"],
        ["cleo", "1", "active"],
    ]
    [cleo] = answer(run("list", "--active", "--json"))["users"]
    assert (cleo["username"], cleo["is_active"], set(cleo)) == (
        "cleo",
        True,
        {"id", "username", "is_active", "created_at", "updated_at"},
    )
    sql(
        database_url_sync,
        "INSERT INTO login_delays VALUES (sha256('cleo'), 99, now(), now() + interval '10 min');"
        "INSERT INTO trading_sessions (session_id, user_id) VALUES ('s', 1);"
        "INSERT INTO auth_events (kind, user_id, name_digest, occurred_at) VALUES ('login', 1, sha256('cleo'), '2026-03-02 10:00Z')",
    )
    text = said(run("show", "Cleo"))
    assert re.search(r"^state +active$", text, re.MULTILINE)
    assert re.search(r"^last login +2026-03-02 15:30:00$", text, re.MULTILINE)
    wait = re.search(r"^logins wait +(\d+) s, but from where", text, re.MULTILINE)
    assert wait is not None and 500 < int(wait[1]) <= 600
    shown_ = answer(run("show", "cleo", "--json"))
    assert (shown_["active_sessions"], shown_["last_login"]) == (1, "2026-03-02T10:00:00+00:00")
    assert 500 < shown_["waits_seconds"] <= 600
    held = said(run("passwd", "cleo", stdin=f"{PASSWORD}\n{NEW}\n"), 1)
    assert "too many failed logins" in held and "panda user unlock" in held
    assert answer(run("passwd", "cleo", "--json", stdin=f"{PASSWORD}\n{NEW}\n"))["error"]["type"] == "TooManyAttempts"
    run("unlock", "cleo")
    assert said(run("passwd", "cleo", stdin=f"{PASSWORD}\n{NEW}\n"))
    assert re.search(r"^trading sessions +0$", said(run("show", "cleo")), re.MULTILINE)
    assert "there is no user" in said(run("show", "dora"), 6)


def test_the_record_is_listed_filtered_and_pruned(run: Any, database_url_sync: str) -> None:
    assert run("events").returncode == 1
    run("register", "trader", stdin=PASSWORD)
    run("passwd", "hunter2 hunter2", stdin=f"{PASSWORD}\n{NEW}\n")
    sql(
        database_url_sync,
        "INSERT INTO auth_events (kind, user_id, name_digest, source, actor, occurred_at) VALUES"
        " ('login', 1, sha256('trader'), 'here\u202egnihton', E'x\u200by', now() - interval '400 days')",
    )
    text = said(run("events", "--zone", "UTC"))
    assert [line.split()[2:] for line in text.splitlines()[1:]] == [
        ["login", "trader", "here\\u202egnihton", "x\\u200by"],
        ["refused:", "unknown", "name", "command", "line"],
        ["registered", "trader", text.splitlines()[-1].split()[-1]],
    ]
    found = answer(run("events", "--json", "--kind", "login_refused", "--since", "1h"))["events"]
    assert [(each["kind"], each["username"], each["user_id"], len(each["name_sha256"])) for each in found] == [
        ("login_refused", None, None, 64)
    ]
    assert len(answer(run("events", "--json", "--limit", "1"))["events"]) == 1
    assert "no such events" in run("events", "nobody").stderr
    assert "there are no events 'log'" in run("events", "--kind", "log").stderr
    assert run("events", "--kind", "log").returncode == 2
    assert said(run("prune-events", "--older-than", "365")) == "removed: 1 events, 0 delays, 0 sources\n"
    assert answer(run("prune-events", "--older-than", "365", "--json")) == {"events": 0, "delays": 0, "sources": 0}
    assert run("prune-events").returncode == run("prune-events", "--older-than", "0").returncode == 2


def test_a_password_is_no_argument_and_not_asked_for_without_a_terminal(run: Any) -> None:
    asked = run("register", "trader")
    assert (asked.returncode, "--password-stdin" in asked.stderr) == (2, True)
    assert "stdin holds no password" in said(run("register", "trader", stdin=""), 6)
    assert "stdin holds no password" in said(run("passwd", "trader", stdin=f"{PASSWORD}\n"), 6)
    assert run("register", "trader", "--password", "x").returncode == 2
    assert run("register", "trader", "hunter2 hunter2").returncode == 2
    assert run("list").stdout == ""


def test_a_typed_password_is_asked_for_twice_and_not_echoed(database_url_sync: str) -> None:
    arguments = [sys.executable, "-m", "core.cli.main", "user", "register", "trader"]
    child, terminal = pty.fork()
    if child == 0:
        os.environ["DATABASE__POSTGRES_URL"] = database_url_sync
        os.execv(sys.executable, arguments)
    text = ""
    for prompt in ("Password: ", "Once more: "):
        while prompt not in text.rpartition("\n")[2]:
            text += os.read(terminal, 1_000).decode()
        os.write(terminal, f"{PASSWORD}\n".encode())
    while True:
        try:
            text += os.read(terminal, 1_000).decode()
        except OSError:
            break
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, text
    assert text.splitlines()[-1].endswith("trader: registered")
    assert PASSWORD not in text


def test_what_cannot_be_seen_is_an_escape() -> None:
    assert shown("a\nb\x1b[31m\u202e\u200b\u2028 d\u00e9j\u00e0 'vu'") == (
        "a\\nb\\x1b[31m\\u202e\\u200b\\u2028 d\u00e9j\u00e0 'vu'"
    )
    assert shown(None) == ""
    assert User.__tablename__ == "users"
