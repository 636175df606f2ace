"""`panda session` and `panda keys`: what they print, what they return, and what is never printed."""

import asyncio
import contextlib
import io
import json
import os
import signal
import stat
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from sqlalchemy import update

from core.cli._keys_file import put_first
from core.database.connection import DatabaseManager
from core.database.encryption import KeyRing
from core.database.models import TradingSession, User
from core.testing import make_user
from core.trading import sessions
from tests.test_cli import answer, panda

pytestmark = pytest.mark.usefixtures("clean")
KEY = f"k1:{KeyRing.generate_key()}"
NEWER = f"k2:{KeyRing.generate_key()}"
TOKEN = "broker-token-4711"


class Work:
    """A database with the user trader, and what is done in it beside the command."""

    def __init__(self, url: str) -> None:
        self.url = url

    def do(self, work: Any) -> Any:
        async def run() -> Any:
            async with DatabaseManager(self.url, "testing", "migrations_only") as manager:
                async with manager.transaction() as session:
                    return await work(session)

        return asyncio.run(run())

    def panda(self, *arguments: str, stdin: str | None = None, **names: str) -> subprocess.CompletedProcess[str]:
        with mock.patch("sys.stdin", io.StringIO(stdin or "")):
            return panda(*arguments, url=self.url, **names)

    def open(self, *arguments: str, stdin: str | None = None, **names: str) -> dict[str, Any]:
        done = self.panda("session", "open", "trader", *arguments, "--json", stdin=stdin, **names)
        assert done.returncode == 0, done.stdout + done.stderr
        return answer(done)


@pytest.fixture
def work(database_url_sync: str) -> Work:
    made = Work(database_url_sync)

    async def add(session: Any) -> None:
        session.add(make_user(username="trader"))

    made.do(add)
    return made


def said(done: subprocess.CompletedProcess[str], *, code: int = 0) -> list[list[str]]:
    assert done.returncode == code, done.stdout + done.stderr
    assert max(map(len, (done.stdout + done.stderr).splitlines()), default=0) <= 80
    return [line.split() for line in done.stdout.splitlines()]


async def _everything_is_over(session: Any) -> None:
    now = datetime.now(UTC)
    await session.execute(
        update(TradingSession).values(start_time=now - timedelta(hours=2), expires_at=now - timedelta(hours=1))
    )


def test_a_session_is_opened_by_the_brokers_rule_and_its_bearer_shown_once(work: Work) -> None:
    done = work.panda("session", "open", "Trader", "--broker", "zerodha", "--data", "device=desk-4")
    (word, session_id), (name, bearer) = said(done)
    assert (word, name, "06:00:00 Asia/Kolkata" in done.stderr) == ("session", "bearer", True)
    assert "shown this once" in done.stderr

    async def resumed(session: Any) -> str:
        return (await sessions.resume(session, bearer)).session_id

    assert work.do(resumed) == session_id
    for verb in (["list"], ["show", session_id], ["list", "--json"], ["show", session_id, "--json"]):
        shown = work.panda("session", *verb)
        assert shown.returncode == 0 and session_id in shown.stdout
        assert bearer not in shown.stdout and "hash" not in shown.stdout
    facts = dict(line.split(maxsplit=1) for line in work.panda("session", "show", session_id).stdout.splitlines())
    assert facts["user"].startswith("trader (") and facts["state"] == "active" and facts["credentials"] == "none"
    assert facts["data"] == "device     desk-4" or "desk-4" in facts["data"]
    never = work.open("--broker", "paper")
    assert never["expires_at"] is None
    until = work.open("--broker", "paper", "--until", "2099-01-01T10:00")
    assert until["expires_at"] == "2099-01-01T04:30:00+00:00"


def test_what_cannot_be_opened_is_refused_in_words(work: Work) -> None:
    def refused(code: int, *arguments: str, **names: str) -> str:
        done = work.panda("session", "open", *arguments, **names)
        assert done.returncode == code, done.stderr
        assert TOKEN not in done.stderr + done.stdout and "unexpected" not in done.stderr
        return " ".join(done.stderr.split())

    unknown = refused(6, "trader", "--broker", "etrade")
    assert "no broker 'etrade'" in unknown and "kite, paper, upstox, zerodha" in unknown
    assert "knows mine" in refused(6, "trader", "--broker", "kite", TRADING__BROKERS="mine=24h")
    assert "there is no user 'nobody'" in refused(6, "nobody", "--broker", "paper")
    assert "after start_time" in refused(6, "trader", "--broker", "paper", "--until", "2020-01-01")
    assert "neither a day" in refused(2, "trader", "--broker", "paper", "--until", "soon")
    assert "is no note" in refused(2, "trader", "--broker", "paper", "--data", "x")
    assert "no encryption key" in refused(2, "trader", "--broker", "paper", "--credentials")
    keys = {"DATABASE__ENCRYPTION_KEYS": KEY}
    assert "no credentials" in refused(2, "trader", "--broker", "paper", "--credentials", **keys)
    assert "No such option" in refused(2, "trader", "--broker", "paper", "--token", TOKEN)
    assert "given twice" in refused(2, "trader", "--broker", "paper", "--data", "a=1", "--data", "a=2")
    assert "'api_key' looks like a secret" in refused(6, "trader", "--broker", "paper", "--data", f"api_key={TOKEN}")

    async def disable(session: Any) -> None:
        await session.execute(update(User).values(is_active=False))

    work.do(disable)
    assert "trader is disabled" in refused(6, "trader", "--broker", "paper")


def test_credentials_come_by_a_pipe_and_are_stored_sealed(work: Work) -> None:
    keys = {"DATABASE__ENCRYPTION_KEYS": KEY}
    made = work.open("--broker", "kite", "--credentials", stdin=TOKEN + "\n", **keys)

    async def credentials(session: Any) -> str | None:
        row = await session.get_one(TradingSession, made["session_id"])
        return sessions.credentials_of(row, ring=KeyRing.parse(KEY))

    assert work.do(credentials) == TOKEN
    shown = work.panda("session", "show", made["session_id"])
    assert ["credentials", "sealed"] in said(shown)
    other = f"k1:{KeyRing.generate_key()}"
    wrong = work.panda(
        "session", "open", "trader", "--broker", "kite", "--credentials", stdin=TOKEN, DATABASE__ENCRYPTION_KEYS=other
    )
    assert (wrong.returncode, "'k1' is not the one" in wrong.stderr) == (2, True)
    assert TOKEN not in wrong.stderr and other not in wrong.stderr


def test_credentials_are_asked_for_unseen_on_a_terminal(work: Work) -> None:
    terminal = mock.Mock()
    terminal.isatty.return_value = True
    with mock.patch("getpass.getpass", return_value=TOKEN) as asked, mock.patch("sys.stdin", terminal):
        done = panda(
            *("session", "open", "trader", "--broker", "kite", "--credentials"),
            url=work.url,
            DATABASE__ENCRYPTION_KEYS=KEY,
        )
    assert (done.returncode, asked.call_count) == (0, 1), done.stderr
    for end, code, words in (
        (EOFError, 2, "\nerror: no credentials"),
        (KeyboardInterrupt, 130, "\nerror: interrupted"),
    ):
        with mock.patch("getpass.getpass", side_effect=end), mock.patch("sys.stdin", terminal):
            done = panda(
                *("session", "open", "trader", "--broker", "kite", "--credentials"),
                url=work.url,
                DATABASE__ENCRYPTION_KEYS=KEY,
            )
        assert (done.returncode, done.stderr.startswith(words)) == (code, True), done.stderr


def test_sessions_are_listed_and_revoked(work: Work) -> None:
    assert "no active sessions" in work.panda("session", "list").stderr
    first = work.open("--broker", "kite")
    second = work.open("--broker", "kite")
    paper = work.open("--broker", "paper")
    rows = said(work.panda("session", "list"))
    assert rows[0][:4] == ["session", "user", "broker", "state"]
    assert [row[0] for row in rows[1:]] == [paper["session_id"], second["session_id"]]
    every = said(work.panda("session", "list", "--all", "--broker", "kite", "--user", "TRADER"))
    assert [row[3] for row in every[1:]] == ["active", "replaced"]
    assert work.panda("session", "list", "--user", "nobody").returncode == 6
    limited = work.panda("session", "list", "--all", "--limit", "1")
    assert len(said(limited)) == 2 and "--limit shows more" in limited.stderr
    assert said(work.panda("session", "revoke", paper["session_id"])) == [[f"{paper['session_id']}:", "revoked"]]
    again = work.panda("session", "revoke", paper["session_id"])
    assert (again.returncode, "had ended before" in again.stdout) == (1, True)
    for verb in ("revoke", "show"):
        unknown = work.panda("session", verb, "unknown")
        assert (unknown.returncode, "no session 'unknown'" in unknown.stderr) == (6, True)
        bearer = work.panda("session", verb, first["bearer"])
        assert (bearer.returncode, first["bearer"] in bearer.stderr + bearer.stdout) == (6, False)
    all_ = work.panda("session", "revoke-all", "trader", "--json")
    assert answer(all_) == {"user": "trader", "broker": None, "revoked": 1}
    assert work.panda("session", "revoke-all", "nobody").returncode == 6


def test_what_is_due_is_ended_and_what_will_be_is_told(work: Work) -> None:
    due = work.open("--broker", "kite")
    work.do(_everything_is_over)
    near = work.open("--broker", "paper", "--until", (datetime.now(UTC) + timedelta(minutes=9)).isoformat())
    metrics = work.panda("metrics", "show").stdout
    assert 'trading_sessions_active{broker="kite",' in metrics.replace("alpha_panda_database_", "")
    assert "trading_session_expires_in_seconds" in metrics
    told = answer(work.panda("session", "expire-due", "--json"))
    assert [item["session_id"] for item in told["expired"]] == [due["session_id"]]
    assert [item["session_id"] for item in told["warned"]] == [near["session_id"]]
    again = work.panda("session", "expire-due", "--warn-before", "5")
    assert "0 expired, 0 told" in again.stdout and "paper: 1 active, the next ends" in again.stdout


def test_watching_prints_what_becomes_of_sessions(work: Work) -> None:
    work.open("--broker", "kite")
    work.open("--broker", "paper", "--until", (datetime.now(UTC) + timedelta(minutes=9)).isoformat())
    done = work.panda("session", "watch", "--count", "1")
    ((kind, _, _, user, broker, *_),) = said(done)
    assert (kind, user, broker) == ("expiring", "1", "paper") or kind == "expiring"
    work.do(_everything_is_over)
    done = work.panda("session", "watch", "--count", "2", "--json")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(item["kind"], item["reason"]) for item in told} == {("ended", "expired")}


# Keys


def test_a_generated_key_is_printed_or_put_before_those_of_a_file(tmp_path: Path) -> None:
    done = panda("keys", "generate", "--id", "k7")
    assert (done.returncode, done.stdout.startswith("k7:")) == (0, True)
    assert KeyRing.parse(done.stdout.strip()).key_ids == ("k7",)
    before = datetime.now(UTC)
    id_ = answer(panda("keys", "generate", "--json"))["id"]
    assert id_ in {f"k{day:%Y-%m-%d}" for day in (before, datetime.now(UTC))}
    file = tmp_path / "keys"
    first = panda("keys", "generate", "--id", "k1", "--file", str(file))
    assert (first.returncode, stat.S_IMODE(file.stat().st_mode)) == (0, 0o600)
    old = file.read_text().strip()
    file.chmod(0o644)
    second = panda("keys", "generate", "--id", "k2", "--file", str(file))
    assert (second.returncode, "k2, k1; k2 seals" in " ".join(second.stdout.split())) == (0, True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and file.read_text().strip().endswith(old)
    assert KeyRing.parse(file.read_text().strip()).key_ids == ("k2", "k1")
    for key in file.read_text().strip().split(","):
        assert key.partition(":")[2] not in first.stdout + first.stderr + second.stdout + second.stderr
    assert [path.name for path in tmp_path.iterdir() if "keys" in path.name] == ["keys"]


def test_a_file_of_keys_is_changed_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(KEY)
    before = file.read_bytes()
    for arguments, code in ((["--id", "k1"], 6), (["--id", "bad id"], 2)):
        done = panda("keys", "generate", *arguments, "--file", str(file))
        assert (done.returncode, file.read_bytes()) == (code, before), done.stderr
    with mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")):
        done = panda("keys", "generate", "--id", "k2", "--file", str(file))
    assert (done.returncode, "No space left" in done.stderr, file.read_bytes()) == (1, True, before)
    assert [path.name for path in tmp_path.iterdir() if "keys" in path.name] == ["keys"]
    file.write_text("not keys")
    assert panda("keys", "generate", "--file", str(file)).returncode == 2
    file.write_bytes(b"\xff\xfe")
    assert panda("keys", "generate", "--file", str(file)).returncode == 6
    assert panda("keys", "generate", "--file", str(tmp_path / "no" / "keys")).returncode == 1
    link = tmp_path / "link"
    link.symlink_to(file)
    file.write_text(KEY)
    assert panda("keys", "generate", "--id", "k2", "--file", str(link)).returncode == 0
    assert link.is_symlink() and KeyRing.parse(file.read_text().strip()).key_ids == ("k2", "k1")


def test_lines_and_comments_of_a_file_of_keys_stay(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    for number, text in enumerate((f"# ours\n{KEY}  # since Monday\n", f"{KEY}\n{NEWER}", "# ours")):
        file.write_text(text)
        done = panda("keys", "generate", "--id", "k9", "--file", str(file))
        assert (done.returncode, file.read_text().split("\n", 1)[1]) == (0, f"{text.strip()}\n"), done.stderr
        assert KeyRing.parse(file.read_text()).key_ids == (("k9", "k1"), ("k9", "k1", "k2"), ("k9",))[number]
        assert panda("keys", "generate", "--id", "k9", "--file", str(file)).returncode == 6
    assert panda("keys", "generate", "--id", "", "--file", str(file)).returncode == 2


def test_a_group_that_might_read_a_file_of_keys_still_may(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(KEY)
    for before, after in ((0o640, 0o640), (0o660, 0o640), (0o600, 0o600), (0o666, 0o600), (0o644, 0o600)):
        file.write_text(KEY)
        file.chmod(before)
        assert put_first(file, NEWER) == ("k2", "k1")
        assert stat.S_IMODE(file.stat().st_mode) == after, oct(before)


def test_keys_that_are_made_at_once_are_all_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    real, begun = Path.read_text, threading.Barrier(2, timeout=0.3)

    def read_text(path: Path, *arguments: Any, **options: Any) -> str:
        text = real(path, *arguments, **options)
        with contextlib.suppress(threading.BrokenBarrierError):
            begun.wait()  # who is alone in it waits in vain
        return text

    file.write_text(KEY)
    with mock.patch.object(Path, "read_text", read_text), ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: put_first(file, f"{name}:{KeyRing.generate_key()}"), ("k3", "k4")))
    assert set(KeyRing.parse(file.read_text()).key_ids) == {"k1", "k3", "k4"}


def test_keys_are_verified_and_rotated(work: Work, tmp_path: Path) -> None:
    none = work.panda("keys", "verify")
    assert (none.returncode, "panda keys generate" in none.stderr) == (2, True)
    assert work.panda("keys", "rotate", DATABASE__ENCRYPTION_KEYS="k1:!").returncode == 2
    for broker in ("kite", "zerodha"):
        work.open("--broker", broker, "--credentials", stdin=TOKEN, DATABASE__ENCRYPTION_KEYS=KEY)
    both = tmp_path / "keys"
    both.write_text(f"{NEWER},{KEY}\n")
    both.chmod(0o600)
    ring = {"DATABASE__ENCRYPTION_KEYS_FILE": str(both)}
    seen = work.panda("keys", "verify", "--deep", **ring)
    assert "k1: the right key, 2 envelopes" in seen.stdout and "2 envelopes opened, 0 did not open" in seen.stdout
    assert "k2: has sealed nothing here yet, 0 envelopes; seals" in seen.stdout
    done = work.panda("keys", "rotate", "--batch", "1", **ring)
    assert done.returncode == 0 and done.stdout.startswith("2 envelopes sealed anew by k2")
    assert answer(work.panda("keys", "rotate", "--json", **ring))["rotated"] == 0
    alone = work.panda("keys", "verify", "--deep", DATABASE__ENCRYPTION_KEYS=NEWER)
    assert alone.returncode == 0 and "k1: not in the ring, and needed no more, 0 envelopes" in alone.stdout
    for words in (KEY, NEWER):
        secret = words.partition(":")[2]
        assert not any(secret in shown.stdout + shown.stderr for shown in (none, seen, done, alone))


def test_an_interrupted_rotation_says_that_it_can_be_gone_on_with(work: Work) -> None:
    work.open("--broker", "zerodha", "--credentials", stdin=TOKEN, DATABASE__ENCRYPTION_KEYS=KEY)

    async def interrupted(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(5)

    both = {"DATABASE__ENCRYPTION_KEYS": f"{NEWER},{KEY}"}
    with mock.patch.object(sessions, "rotate", interrupted):
        done = work.panda("keys", "rotate", **both)
    assert (done.returncode, done.stdout) == (130, "")
    assert "what is sealed anew stays so" in done.stderr and "interrupted" in done.stderr
    said(work.panda("keys", "rotate", **both))


def test_a_wrong_a_missing_key_and_a_damaged_envelope_are_told(work: Work) -> None:
    made = work.open("--broker", "kite", "--credentials", stdin=TOKEN, DATABASE__ENCRYPTION_KEYS=KEY)
    wrong = work.panda("keys", "verify", DATABASE__ENCRYPTION_KEYS=f"k1:{KeyRing.generate_key()}")
    assert wrong.returncode == 1
    assert "k1: NOT the key that has sealed here" in wrong.stdout and "put the key" in wrong.stderr
    refused = work.panda("keys", "rotate", DATABASE__ENCRYPTION_KEYS=f"{NEWER},k1:{KeyRing.generate_key()}")
    assert (refused.returncode, "'k1' is not the one" in refused.stderr) == (2, True)
    missing = work.panda("keys", "verify", "--json", DATABASE__ENCRYPTION_KEYS=NEWER)
    assert (missing.returncode, answer(missing)["missing"]) == (1, ["k1"])
    lacking = work.panda("keys", "rotate", DATABASE__ENCRYPTION_KEYS=NEWER)
    assert lacking.returncode == 1 and f"{made['session_id']}: no key 'k1' in the ring" in lacking.stdout

    async def damage(session: Any) -> None:
        row = await session.get_one(TradingSession, made["session_id"])
        row.credentials = row.credentials[:-1] + bytes([row.credentials[-1] ^ 1])

    work.do(damage)
    told = work.panda("keys", "rotate", "--json", DATABASE__ENCRYPTION_KEYS=f"{NEWER},{KEY}")
    assert told.returncode == 1
    assert [(item["session_id"], item["error"]) for item in answer(told)["faults"]] == [
        (made["session_id"], "EnvelopeTampered")
    ]


def test_rows_that_others_hold_are_told_as_locked(work: Work) -> None:
    work.open("--broker", "kite", "--credentials", stdin=TOKEN, DATABASE__ENCRYPTION_KEYS=KEY)

    async def hold_and_rotate() -> subprocess.CompletedProcess[str]:
        async with DatabaseManager(work.url, "testing", "migrations_only") as manager, manager.get_session() as session:
            await session.execute(update(TradingSession).values(last_seen_at=datetime.now(UTC)))
            names = {"DATABASE__ENCRYPTION_KEYS": f"{NEWER},{KEY}"}
            return await asyncio.to_thread(work.panda, "keys", "rotate", "--wait", "0", **names)

    done = asyncio.run(hold_and_rotate())
    assert (done.returncode, "locked by others" in done.stderr) == (5, True), done.stdout + done.stderr


def test_nothing_of_a_session_is_in_the_environment_or_the_arguments() -> None:
    """Credentials and bearers have no option: arguments are read by every process of the machine."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert os.environ.get("BEARER") is None
        from core.cli.main import main

        assert main(["session", "open", "--help"]) == 0
    assert "--credentials <" not in shown.getvalue() and "--bearer" not in shown.getvalue()
