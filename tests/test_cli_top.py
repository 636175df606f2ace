"""`panda top`: what it shows, that it ends as it should, and that it outlives a database that goes away."""

import asyncio
import contextlib
import datetime as dt
import fcntl
import io
import json
import logging
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import asyncpg
import pytest
import structlog

from core.cli._top_screen import View, age, frame, hidden_note
from core.cli._top_watch import Watcher
from core.cli.main import main
from core.config.settings import Settings, get_settings
from core.database.activity import Activity, LockWait, Rates, Replica, Server, Session
from core.database.connection import DatabaseManager
from tests.cluster.proxy import FaultProxy

SECRET = "hunter2-geheim"
NOWHERE = f"postgresql://panda:{SECRET}@127.0.0.1:1/panda"
LEAVE_SCREEN = "\x1b[?1049l"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No settings but the test's own, in an empty working directory, for this process and its children."""
    for name in list(os.environ):
        if name.upper().startswith("DATABASE") or name.upper() in ("ENVIRONMENT", "NO_COLOR", "FORCE_COLOR", "COLUMNS"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    get_settings.cache_clear()
    root, ours = logging.getLogger(), logging.getLogger("core")
    before = (list(root.handlers), root.level, ours.level)
    yield
    root.handlers[:], root.level, ours.level = before
    structlog.reset_defaults()
    get_settings.cache_clear()


def panda(*arguments: str, url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    out, err = io.StringIO(), io.StringIO()
    get_settings.cache_clear()
    with (
        mock.patch.dict(os.environ, environment | {"DATABASE__POSTGRES_URL": url}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = main(arguments)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


# The screen, drawn from values


def session(pid: int, state: str | None, **values) -> Session:
    known: dict[str, Any] = {
        "kind": "client backend", "database": "panda", "user": "panda", "application": "panda-api", "client": "10.0.0.7",
        "state_seconds": 0.5, "statement_seconds": 12.0, "transaction_seconds": 12.5, "wait": None,
        "statement": "UPDATE t SET v = ? WHERE id = $1", "hidden": False,
    }  # fmt: skip
    return Session(pid=pid, state=state, **(known | values))


def view(*sessions: Session, waits: tuple[LockWait, ...] = (), trouble: str | None = None, **server) -> View:
    known: dict[str, Any] = {
        "version": "18.4 (Debian 18.4-1)", "uptime": 90_000.0, "standby": False, "lag": None, "database": "panda",
        "role": "panda", "max_connections": 100, "size": None, "commits": 1, "rollbacks": 0, "blocks_hit": 1,
        "blocks_read": 0, "deadlocks": 0,
    }  # fmt: skip
    activity = Activity(
        at=dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC),
        server=Server(**(known | server)),
        sessions=sessions,
        waits=waits,
        replicas=(Replica(application="second", client=None, state="streaming", lag=0.2, lag_bytes=2_000_000),),
    )
    rates = Rates(seconds=2.0, commits=1234.5, rollbacks=0.5, hit_share=0.987)
    return View(place="postgresql://db/panda", activity=activity, rates=rates, size=15_300_000, trouble=trouble)


def wait(pid: int, *blockers: int) -> LockWait:
    return LockWait(pid=pid, blocked_by=blockers, target="row of orders", mode="ShareLock", seconds=9.0)


def lines(of: View, *, width: int = 80, height: int | None = None) -> list[str]:
    return [line.plain for line in frame(of, width=width, height=height)]


def test_the_screen_tells_the_server_its_sessions_and_who_blocks_whom() -> None:
    shown = lines(
        view(
            session(11, "idle in transaction"), session(12, "active", wait="Lock transactionid"), waits=(wait(12, 11),)
        )
    )
    text = "\n".join(shown)
    assert shown[0] == "postgresql://db/panda  2026-01-02 03:04:05 UTC"
    assert shown[1] == "PostgreSQL 18.4 primary, up 25 h; database 15.3 MB"
    assert shown[2] == "connections 3 of 100: 1 active, 1 idle in transaction, 1 this"
    assert shown[3] == "commits 1,234.5/s, rollbacks 0.5/s, cache hits 98.7%, deadlocks 0"
    assert shown[4] == "replica second streaming, behind by 2.0 MB, 200 ms"
    assert "11 panda panda-api: idle in transaction, transaction 12.5 s" in text
    assert "└ 12 panda panda-api waits 9.0 s for row of orders (ShareLock)" in text
    assert re.search(r"^     12 panda +panda-api +active +12\.0 s +12\.5 s Lock transactionid$", text, re.MULTILINE)
    assert re.search(r"^panda-api +panda +10\.0\.0\.7 +2 +1 +0 +1 +12\.5 s$", text, re.MULTILINE)


def test_a_wide_terminal_has_the_statement_on_the_line_and_a_narrow_one_below() -> None:
    of = view(session(11, "active"))
    assert any(re.match(r" +11 .*UPDATE t SET v", line) for line in lines(of, width=130))
    assert "        UPDATE t SET v = ? WHERE id = $1" in lines(of, width=80)
    assert lines(view(session(11, "active", statement=None)), width=80)[-4].startswith("     11 ")


@pytest.mark.parametrize("width", [40, 80, 120, 200])
@pytest.mark.parametrize("height", [8, 24, 50])
def test_many_rows_are_cut_to_the_terminal_and_say_how_many_are_not_shown(width: int, height: int) -> None:
    sessions = [
        session(pid, "active", application=f"app-{pid}", statement="SELECT " + "長い, " * 60) for pid in range(1, 200)
    ]
    waits = tuple(wait(pid, pid - 1) for pid in range(2, 100))
    of = view(*sessions, waits=waits)
    shown = frame(of, width=width, height=height)
    assert len(shown) <= height
    assert all(line.cell_len <= width for line in shown)
    whole = lines(of, width=width)
    assert len(whole) > 400
    if height >= 24:
        text = "\n".join(line.plain for line in shown)
        assert len(re.findall(r"\.\.\. and \d+ more", text)) == 3
        for title in ("WHO BLOCKS WHOM", "PID", "APPLICATION"):
            assert title in text


def test_names_of_others_cannot_steer_the_terminal() -> None:
    evil = "x\x1b[2J\r\n\u202eevil"
    of = view(session(11, "active", application=evil, user=evil, wait=evil), waits=(wait(12, 11),), role=evil)
    for line in lines(of):
        assert line.isprintable()


def test_an_unprivileged_role_is_told_once_what_to_grant() -> None:
    hidden: dict[str, Any] = {
        "kind": None,
        "hidden": True,
        "statement": None,
        "transaction_seconds": None,
        "client": None,
    }
    of = view(session(11, None, **hidden), session(12, None, **hidden), role='odd"role')
    note = '2 sessions hide what they do from this role: GRANT pg_read_all_stats TO "odd""role"'
    assert hidden_note(of.activity) == note
    assert [line for line in lines(of, width=120) if "GRANT" in line] == [note]
    assert "connections 3 of 100: 2 hidden, 1 this" in lines(of)
    assert hidden_note(view(session(1, "idle")).activity) is None


def test_a_standby_and_trouble_are_said() -> None:
    shown = lines(view(standby=True, lag=3.0, trouble="unreachable since 03:04:05 UTC (2 s): refused"))
    assert shown[1] == "unreachable since 03:04:05 UTC (2 s): refused"
    assert "PostgreSQL 18.4 standby, up 25 h; database 15.3 MB" in shown
    assert "behind the primary by 3.0 s" in shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"),
        (0.0, "0 ms"),
        (0.25, "250 ms"),
        (12.34, "12.3 s"),
        (150.0, "2 min"),
        (7_300, "2 h"),
        (10**6, "12 d"),
    ],
)
def test_ages_are_short(seconds: float | None, shown: str) -> None:
    assert age(seconds) == shown


# The command


def blocked(url: str):
    """Two sessions, of which one waits for the other, while the block runs."""

    @contextlib.asynccontextmanager
    async def made():
        one, two = [await asyncpg.connect(url, server_settings={"application_name": name}) for name in ("one", "two")]
        await one.execute("CREATE TABLE IF NOT EXISTS t (id int)")
        await one.execute(f"BEGIN; LOCK TABLE t; SELECT '{SECRET}'")
        task = asyncio.ensure_future(two.execute(f"SELECT '{SECRET}', count(*) FROM t"))
        while not await one.fetchval(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = $1", two.get_server_pid()
        ):
            await asyncio.sleep(0.02)
        try:
            yield one, two
        finally:
            one.terminate()
            two.terminate()
            await asyncio.gather(task, return_exceptions=True)

    return made()


def with_blocked(url: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    async def run() -> subprocess.CompletedProcess[str]:
        async with blocked(url):
            return await asyncio.to_thread(panda, *arguments, url=url, **environment)

    return asyncio.run(run())


def test_in_a_pipe_it_is_one_frame_of_plain_text(database_url_sync: str) -> None:
    result = with_blocked(database_url_sync, "top", "-i", "0.2")
    assert (result.returncode, result.stderr) == (0, "")
    assert "\x1b" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert re.search(r"^└ \d+ panda two waits .* for table t \(AccessShareLock\)$", result.stdout, re.MULTILINE)
    assert "SELECT ?, count(*) FROM t" in result.stdout
    assert SECRET not in result.stdout
    assert "panda top" not in result.stdout, "its own session is not shown"
    assert re.search(r"^commits \d", result.stdout, re.MULTILINE), "rates are there in the first frame"


def test_texts_can_be_left_out_and_frames_counted(database_url_sync: str) -> None:
    result = with_blocked(database_url_sync, "top", "-i", "0.2", "--count", "2", "--no-text", COLUMNS="130")
    assert result.returncode == 0
    assert "SELECT" not in result.stdout
    assert result.stdout.count("WHO BLOCKS WHOM") == 2


def test_json_is_one_object(database_url_sync: str) -> None:
    result = with_blocked(database_url_sync, "top", "--json", "-i", "0.2")
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["server"]["standby"] is False
    assert found["rates"]["commits"] >= 0
    assert found["connections"]["limit"] == 200
    assert {item["application"] for item in found["applications"]} >= {"one", "two"}
    by_name = {item["application"]: item for item in found["statements"]}
    assert (by_name["one"]["state"], by_name["two"]["wait"]) == ("idle in transaction", "Lock relation")
    assert [
        line["depth"] for line in found["locks"] if line["pid"] in (by_name["one"]["pid"], by_name["two"]["pid"])
    ] == [0, 1]
    assert found["trouble"] is None
    assert SECRET not in result.stdout


def test_a_blocker_can_be_ended_and_the_waiter_goes_on(database_url_sync: str) -> None:
    async def run() -> None:
        async with blocked(database_url_sync) as (one, two):
            pid, waiter = str(one.get_server_pid()), two.get_server_pid()
            asked = await asyncio.to_thread(panda, "top", "--terminate", pid, "--json", url=database_url_sync)
            assert asked.returncode == 2
            assert json.loads(asked.stdout)["error"]["hint"] == "Say --yes."
            refused = await asyncio.to_thread(panda, "top", "--cancel", pid, "--yes", url=database_url_sync)
            assert refused.returncode == 6
            assert f"panda top --terminate {pid}" in refused.stderr
            ended = await asyncio.to_thread(panda, "top", "--terminate", pid, "-y", "--json", url=database_url_sync)
            assert (ended.returncode, json.loads(ended.stdout)["done"]) == (0, True)
            gone = await asyncio.to_thread(panda, "top", "--terminate", pid, "-y", url=database_url_sync)
            assert gone.returncode == 6
            assert "no session has the number" in gone.stderr
            async with asyncio.timeout(60):
                while waiter in {line["pid"] for line in await locks(database_url_sync)}:
                    await asyncio.sleep(0.05)

    asyncio.run(run())


async def locks(url: str) -> list[dict]:
    connection = await asyncpg.connect(url)
    try:
        return [dict(row) for row in await connection.fetch("SELECT pid FROM pg_locks WHERE NOT granted")]
    finally:
        await connection.close()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--once", "--count", "2"],
        ["--cancel", "1", "--terminate", "2"],
        ["--json", "--count", "2"],
        ["-i", "0"],
        ["--cancel", "0"],
    ],
)
def test_what_excludes_each_other_is_wrong_usage(arguments: list[str]) -> None:
    result = panda("top", *arguments, url=NOWHERE)
    assert result.returncode == 2


def test_an_unreachable_server_is_exit_code_4_in_words() -> None:
    result = panda("top", url=NOWHERE)
    assert (result.returncode, result.stdout) == (4, "")
    assert "127.0.0.1:1" in result.stderr
    assert SECRET not in result.stderr


def test_the_built_in_server_is_not_started(tmp_path: Path) -> None:
    result = panda("top", url=f"embedded://{tmp_path}/pg")
    assert result.returncode == 4
    assert "panda up" in result.stderr
    assert not (tmp_path / "pg").exists()


# A database that goes away


def settings_for(url: str) -> Settings:
    with mock.patch.dict(os.environ, {"DATABASE__POSTGRES_URL": url, "DATABASE__TIMEOUTS__CONNECT": "1"}):
        get_settings.cache_clear()
        return get_settings()


async def test_it_says_since_when_the_server_is_away_and_recovers(database_url: str) -> None:
    async with FaultProxy(database_url) as proxy:
        watcher = Watcher(settings_for(proxy.url), texts=True)
        try:
            assert (await watcher.look()).rates is None
            assert (await watcher.look()).rates is not None
            proxy.cut()
            proxy.freeze()
            first = await watcher.look()
            assert first.trouble is not None
            assert first.activity.server.database in database_url, "the last look stays"
            started = time.monotonic()
            second = await watcher.look()
            assert time.monotonic() - started < 30
            assert second.trouble is not None
            assert second.trouble[:30] == first.trouble[:30], "since when does not move"
            assert re.match(r"unreachable since \d\d:\d\d:\d\d UTC \(\d+ s\): ", second.trouble)
            proxy.thaw()
            back = await watcher.look()
            assert (back.trouble, back.rates) == (None, None)
            assert (await watcher.look()).rates is not None
        finally:
            await watcher.close()


async def test_a_look_has_its_own_connection_and_costs_little(database_url: str, manager: DatabaseManager) -> None:
    watcher = Watcher(settings_for(database_url), texts=True)
    try:
        pids = set()
        took = []
        for _ in range(20):
            started = time.perf_counter()
            await watcher.look()
            took.append(time.perf_counter() - started)
            async with manager.get_session() as session:
                connection = await session.connection()
                query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'panda top' AND datname = current_database()"
                pids |= set((await connection.exec_driver_sql(query)).scalars())
        assert len(pids) == 1
        assert sorted(took)[10] < 0.1
    finally:
        await watcher.close()


# On a terminal


class Terminal:
    """A person's terminal with the command on it."""

    def __init__(self, url: str, *arguments: str, columns: int = 80, rows: int = 24) -> None:
        self.leader, self.follower = pty.openpty()
        self.resize(columns, rows)
        self.before = termios.tcgetattr(self.follower)
        names = {**os.environ, "TERM": "xterm-256color", "DATABASE__POSTGRES_URL": url}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "core.cli.main", "top", *arguments],
            stdin=self.follower, stdout=self.follower, stderr=self.follower, env=names, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        self.seen = ""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.follower, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, until: str, *, limit: float = 60) -> None:
        deadline = time.monotonic() + limit
        while until not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.leader], [], [], 0.1)[0]:
                self.seen += os.read(self.leader, 65_536).decode(errors="replace")

    def type(self, keys: bytes) -> None:
        os.write(self.leader, keys)

    def end(self) -> int:
        """Wait for the end; the terminal must be as it was."""
        self.read(LEAVE_SCREEN)
        code = self.process.wait(timeout=60)
        after = termios.tcgetattr(self.follower)
        assert after == self.before
        with contextlib.suppress(OSError):
            while select.select([self.leader], [], [], 0.1)[0]:
                self.seen += os.read(self.leader, 65_536).decode(errors="replace")
        os.close(self.leader)
        os.close(self.follower)
        assert "\x1b[?25h" in self.seen.rpartition("\x1b[?25l")[2], "the cursor is shown again"
        assert "Traceback" not in self.seen
        return code


def test_q_ends_it_with_0_and_the_terminal_is_as_it_was(database_url_sync: str) -> None:
    terminal = Terminal(database_url_sync, "-i", "60")
    terminal.read("commits -")
    terminal.type(b"q")
    assert terminal.end() == 0


def test_ctrl_c_ends_it_as_everywhere_and_the_terminal_is_as_it_was(database_url_sync: str) -> None:
    terminal = Terminal(database_url_sync, "-i", "60")
    terminal.read("commits -")
    terminal.type(b"\x03")
    assert terminal.end() == 130
    assert "interrupted" in terminal.seen.rpartition(LEAVE_SCREEN)[2]


def test_a_term_signal_restores_the_terminal(database_url_sync: str) -> None:
    terminal = Terminal(database_url_sync, "-i", "60")
    terminal.read("commits -")
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.end() == 143


def test_a_new_size_draws_it_anew_and_count_ends_it(database_url_sync: str) -> None:
    terminal = Terminal(database_url_sync, "-i", "0.5", "--count", "6", columns=80)
    terminal.read("commits -")
    terminal.resize(130, 40)
    assert terminal.end() == 0


def test_a_failure_at_the_start_never_takes_the_screen() -> None:
    terminal = Terminal(NOWHERE)
    assert terminal.process.wait(timeout=60) == 4
    terminal.read("error")
    assert "\x1b[?1049h" not in terminal.seen
    os.close(terminal.leader)
    os.close(terminal.follower)
