"""A secret is readable nowhere but where it was given: a canary goes through every failing path and is looked for everywhere.

The canaries are random, so what is found is a leak and no accident. Each place is first shown to be searched at all, by a
word that is put there on purpose.
"""

import asyncio
import base64
import io
import logging
import pickle
import secrets
import subprocess
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pydantic import ValidationError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from core.config.options import MonitoringOptions, Timeouts, TlsOptions
from core.config.settings import DatabaseSettings, SettingsError, get_settings
from core.database.backup._tools import find_tools
from core.database.connection import DatabaseManager
from core.database.embedded import EmbeddedServer
from core.database.encryption import KeyRing
from core.database.engine import DatabaseUrl, EngineOptions, build_engine, tls_mode
from core.database.errors import ConfigurationError, InvalidInput, PandaDatabaseError
from core.database.models import TradingSession, User
from core.database.records import TradingSessionCreate, UserCreate
from core.trading import accounts, sessions


def forms(word: str) -> dict[str, bytes]:
    """The word as it may stand in a file: encodings of text, and of bytes as text."""
    plain = word.encode()
    found = {
        "utf-8": plain,
        "utf-16-le": word.encode("utf-16-le"),
        "utf-16-be": word.encode("utf-16-be"),
        "utf-32-le": word.encode("utf-32-le"),
        "hex": plain.hex().encode(),
        "HEX": plain.hex().upper().encode(),
        "bytea escape": b"".join(b"\\%03o" % byte for byte in plain),
        "reversed": plain[::-1],
    }
    for shift in range(3):  # base64 of a text that the word stands in depends on where it begins
        whole = base64.b64encode(b"\0" * shift + plain)
        first = (4 * shift + 2) // 3  # what also codes the bytes before
        found[f"base64 +{shift}"] = whole[first : len(whole) - 4]
    return found


def leaks(haystack: bytes | str, word: str) -> list[str]:
    """The forms in which the word is in there."""
    data = haystack.encode(errors="surrogateescape") if isinstance(haystack, str) else haystack
    return [name for name, form in forms(word).items() if form in data]


def canary() -> str:
    return f"Canary{secrets.token_hex(16)}"


@pytest.mark.parametrize("shift", range(5))
def test_a_word_is_found_in_every_encoding(shift: int) -> None:
    word = canary()
    around = b"\n" * shift
    for name, encoded in {
        "utf-8": word.encode(),
        "utf-16-le": word.encode("utf-16-le"),
        "hex": word.encode().hex().encode(),
        "HEX": word.encode().hex().upper().encode(),
    }.items():
        assert leaks(around + encoded + around, word) == [name]
    assert any(name.startswith("base64") for name in leaks(base64.b64encode(around + word.encode() + b"\0\0\0"), word))
    assert leaks(canary(), word) == []


# The canary in the process: exceptions, logs, reprs, pickles


@dataclass
class Said:
    """All that a failing path said, in one place."""

    log: io.StringIO = field(default_factory=io.StringIO)
    pieces: list[bytes] = field(default_factory=list)

    def error(self, error: BaseException) -> None:
        """Its text, its traceback with all causes, all that hangs on it, and what its pickle holds."""
        seen: set[int] = set()
        queue: list[BaseException | None] = [error]
        self.pieces.append("".join(traceback.format_exception(error)).encode())
        while queue:
            current = queue.pop()
            if current is None or id(current) in seen:
                continue
            seen.add(id(current))
            told = f"{current!s}\n{current!r}\n{current.args!r}\n"
            told += "\n".join(f"{name}={value!r}" for name, value in vars(current).items())
            self.pieces.append(told.encode())
            queue += [current.__cause__, current.__context__, getattr(current, "orig", None)]
        if isinstance(error, PandaDatabaseError):
            self.pieces.append(pickle.dumps(error))

    def __bytes__(self) -> bytes:
        return b"\n".join([*self.pieces, self.log.getvalue().encode()])


@pytest.fixture
def said() -> Iterator[Said]:
    """Everything that any logger says meanwhile, at the lowest level, SQLAlchemy's echo and the driver's included."""
    said = Said()
    handler = logging.StreamHandler(said.log)
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
    names = ("", "sqlalchemy.engine", "sqlalchemy.pool", "sqlalchemy.orm", "asyncpg", "core", "asyncio", "alembic")
    before = {name: logging.getLogger(name).level for name in names}
    root = logging.getLogger()
    root.addHandler(handler)
    for name in names:
        logging.getLogger(name).setLevel(logging.DEBUG)
    # The rows of results are echoed at DEBUG; what reads a secret back in clear does so at the caller's wish.
    logging.getLogger("sqlalchemy.engine").setLevel(logging.INFO)
    yield said
    root.removeHandler(handler)
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


FAILING: dict[str, str] = {
    "unique": "INSERT INTO users (username, hashed_password) VALUES ('taken', :canary)",
    "unique of itself": "INSERT INTO users (username, hashed_password) SELECT :canary, 'h' FROM generate_series(1, 2)",
    "not null": "INSERT INTO trading_sessions (session_id, user_id, broker) VALUES (:canary, NULL, 'paper')",
    "check": "INSERT INTO users (username, hashed_password) VALUES (' ' || :canary, :canary)",
    "foreign key": "INSERT INTO trading_sessions (session_id, user_id) VALUES (:canary, 999)",
    "no number": "SELECT CAST(CAST(:canary AS text) AS integer)",
    "no time": "SELECT CAST(CAST(:canary AS text) AS timestamptz)",
    "no json": "SELECT CAST(CAST(:canary AS text) AS jsonb)",
    "no uuid": "SELECT CAST(CAST(:canary AS text) AS uuid)",
    "no array": "SELECT CAST(CAST(:canary AS text) AS integer[])",
    "no pattern": "SELECT 'a' ~ ('(' || CAST(:canary AS text))",
    "bind": "SELECT CAST(:canary AS integer)",
    "raised": "SELECT CAST('{}' AS jsonb) -> 0, panda_set_broker(CAST(:canary AS text))",
    "timeout": "SELECT pg_sleep(5), CAST(:canary AS text)",
    "lost": "SELECT pg_terminate_backend(pg_backend_pid()), CAST(:canary AS text)",
    "syntax": "SELEC CAST(:canary AS text)",
    "no column": "SELECT missing FROM users WHERE username = :canary",
    "partition": "INSERT INTO portfolio_snapshots SELECT :canary, '1999-01-01Z', 'paper', '[]', 0, 0, 0, 0, 0",
}


@pytest.mark.parametrize("path", FAILING)
@pytest.mark.parametrize("broker", [None, "paper"])
async def test_no_failing_statement_tells_its_values(
    database_url: str, said: Said, path: str, broker: str | None
) -> None:
    word = canary()
    timeouts = Timeouts(statement=1.0, lock=0.3)
    watching = MonitoringOptions(slow_query=0.001)
    async with DatabaseManager(database_url, timeouts=timeouts, monitoring=watching) as manager:
        manager.engine.echo = True
        async with manager.transaction() as session:
            session.add(User(username="taken", hashed_password="h"))
        with pytest.raises(PandaDatabaseError) as caught:
            async with manager.transaction(broker=broker) as session:
                await session.execute(text(FAILING[path]), {"canary": word})
        said.error(caught.value)
        said.pieces.append(repr(manager).encode())
    logging.getLogger("core").info("the log is listened to")
    assert b"the log is listened to" in bytes(said)
    assert b"SELECT" in bytes(said) or b"INSERT" in bytes(said)
    assert leaks(bytes(said), word) == []


async def test_no_failing_flush_tells_its_values(manager: DatabaseManager, said: Said) -> None:
    word = canary()
    for make in (
        lambda: User(username=word, hashed_password="\x00" + word),
        lambda: User(username="u", hashed_password=word * 200),
        lambda: User(id=word, username="u", hashed_password="h"),
        lambda: TradingSession(user_id=1, credentials=word),
        lambda: TradingSession(user_id=1, credentials=word.encode()),
        lambda: TradingSession(user_id=1, session_data={"token": word, "x": float("nan")}),
        lambda: TradingSession(user_id=1, session_data=word),
        lambda: TradingSession(user_id=999, session_data={"token": word}),
    ):
        with pytest.raises((PandaDatabaseError, TypeError)) as caught:
            async with manager.transaction() as session:
                session.add(make())
        said.error(caught.value)
    assert leaks(bytes(said), word) == []


async def test_no_refusal_of_a_room_tells_the_secret(manager: DatabaseManager, said: Said) -> None:
    word = canary()
    ring = KeyRing.parse("k1:" + KeyRing.generate_key())
    past = datetime(2000, 1, 1, tzinfo=UTC)

    async def refused(work: Callable[[AsyncSession], Any]) -> None:
        with pytest.raises(PandaDatabaseError) as caught:
            async with manager.transaction() as session:
                await work(session)
        said.error(caught.value)

    await refused(lambda s: sessions.open(s, user_id=1, broker="paper", credentials=word))
    await refused(lambda s: sessions.open(s, user_id=999, broker="paper", credentials=word, ring=ring))
    await refused(lambda s: sessions.open(s, user_id=1, broker="Bad", credentials=word, ring=ring))
    await refused(lambda s: sessions.open(s, user_id=1, broker="paper", credentials=word, ring=ring, expires_at=past))
    await refused(lambda s: accounts.register(s, "trader", "\x00" + word))
    await refused(lambda s: accounts.register(s, "trader", word * 1_000))
    for make in (
        lambda: UserCreate(username="\n", hashed_password=word),
        lambda: TradingSessionCreate(session_id="s", user_id=1, broker="paper", session_data=word),  # type: ignore[arg-type]
        lambda: TradingSessionCreate(session_id="s", user_id=word, broker="paper"),  # type: ignore[arg-type]
    ):
        with pytest.raises((ValidationError, InvalidInput)) as invalid:
            make()
        said.error(invalid.value)
    assert leaks(bytes(said), word) == []


async def test_reprs_and_pickles_do_not_hold_the_secret(manager: DatabaseManager) -> None:
    key = KeyRing.generate_key()
    word = canary()
    ring = KeyRing.parse(f"k1:{key}")
    async with manager.transaction() as session:
        owner = await accounts.register(session, "trader", word)
        opened = (await sessions.open(session, user_id=owner.id, broker="paper", credentials=word, ring=ring)).session
    url = DatabaseUrl.parse(f"postgresql://u:{word}@db.example.com/d")
    engine = build_engine(url, EngineOptions())
    far = DatabaseManager(f"postgresql://u:{word}@db.example.com/d")
    shown = [owner, opened, ring, url, engine, engine.url, far, far.__dict__["_url"], vars(opened)["credentials"]]
    told = "\n".join(f"{item!r} {item!s}" for item in shown).encode()
    assert leaks(told + pickle.dumps(owner) + pickle.dumps(opened), word) == []
    assert key.encode() not in told


def test_settings_do_not_show_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    word = canary()
    monkeypatch.setenv("DATABASE__POSTGRES_URL", f"postgresql://u:{word}@localhost/d")
    monkeypatch.setenv("DATABASE__ENCRYPTION_KEYS", f"k1:{base64.b64encode(word.encode()[:32]).decode()}")
    get_settings.cache_clear()
    try:
        settings = get_settings()
        assert leaks(f"{settings!r} {settings!s} {settings.database!r}", word) == []
        monkeypatch.setenv("DATABASE__POOL__SIZE", word)
        get_settings.cache_clear()
        with pytest.raises(SettingsError) as caught:
            get_settings()
        said = Said()
        said.error(caught.value)
        assert leaks(bytes(said), word) == []
    finally:
        get_settings.cache_clear()


# The canary in the server: its log, its files, its statistics, a dump


@dataclass(frozen=True)
class Server:
    url: str
    folder: Path
    server: EmbeddedServer

    def superuser(self) -> str:
        return self.url.replace("//panda", "//postgres", 1)


_SPEAKING = {
    "log_statement": "all",
    "log_min_duration_statement": "0",
    "log_duration": "on",
    "log_error_verbosity": "verbose",
    "log_parameter_max_length": "-1",
    "log_parameter_max_length_on_error": "-1",
    "log_min_messages": "debug2",
    "wal_level": "logical",
    "track_activity_query_size": "65536",
}


@pytest.fixture
def talkative(open_folder: Path) -> Iterator[Server]:
    """A server that writes into its log all that it can, values included."""
    folder = open_folder / "canary"
    server = EmbeddedServer(folder, settings=_SPEAKING)
    try:
        yield Server(server.ensure(), folder, server)
    finally:
        server.stop()


def files_with(folder: Path, word: str) -> dict[str, list[str]]:
    """The files below the folder in which the word is, and how."""
    found = {
        str(path.relative_to(folder)): leaks(path.read_bytes(), word)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
    return {name: forms for name, forms in found.items() if forms}


@pytest.mark.builtin_server(reason="reads the files of the server")
async def test_a_sealed_secret_is_in_no_file_of_the_server(talkative: Server) -> None:
    token, password, known = canary(), canary(), canary()
    ring = KeyRing.parse("k1:" + KeyRing.generate_key())
    watched: list[str] = []
    done = asyncio.Event()

    async def watch() -> None:
        connection = await asyncpg.connect(talkative.superuser())
        while not done.is_set():
            watched.extend(row[0] for row in await connection.fetch("SELECT query FROM pg_stat_activity"))
            await asyncio.sleep(0.005)
        await connection.close()

    async with DatabaseManager(talkative.url) as manager:
        watcher = asyncio.create_task(watch())
        async with manager.transaction() as session:
            owner = await accounts.register(session, "trader", password)
            first = (
                await sessions.open(session, user_id=owner.id, broker="paper", credentials=token, ring=ring)
            ).session
        assert await accounts.authenticate(manager, "trader", password) is not None
        assert await accounts.authenticate(manager, "trader", password + "x") is None
        assert await accounts.authenticate(manager, "nobody", password) is None
        async with manager.transaction(broker="paper") as session:
            again = (
                await sessions.open(session, user_id=owner.id, broker="paper", credentials=token, ring=ring)
            ).session
        for broker in (None, "paper", "zerodha"):
            with pytest.raises(PandaDatabaseError):
                async with manager.transaction(broker=broker) as session:
                    await sessions.open(session, user_id=owner.id, broker="paper", credentials=token, ring=ring)
                    await session.execute(text("SELECT 1/0"))
        async with manager.get_session(read_only=True) as session:
            stored = await session.get_one(TradingSession, again.session_id)
            assert sessions.credentials_of(stored, ring=ring) == token
        done.set()
        await watcher
        # The control: what is not sealed is found, in each of the places that are searched.
        async with manager.transaction() as session:
            await session.execute(
                text("UPDATE trading_sessions SET session_data = jsonb_build_object('x', CAST(:x AS text))"),
                {"x": known},
            )
        assert first.session_id != again.session_id
    dump = await asyncio.to_thread(_dumped, talkative)
    connection = await asyncpg.connect(talkative.superuser())
    await connection.execute("CHECKPOINT")
    await connection.close()
    await asyncio.to_thread(talkative.server.stop)
    places = files_with(talkative.folder, known)
    assert any("pg_wal/" in name for name in places), "the control is in the WAL"
    assert any("/base/" in name for name in places), "the control is in the heap"
    assert any(name.endswith("server.log") for name in places), "the control is in the log"
    assert leaks(dump, known), "the control is in the dump"
    assert any("trading_sessions" in query for query in watched), "statements were seen in pg_stat_activity"
    for word in (token, password):
        assert files_with(talkative.folder, word) == {}
        assert leaks(dump, word) == []
        assert leaks("\n".join(watched), word) == []


def _dumped(talkative: Server) -> bytes:
    command = [str(find_tools(at_least=18).pg_dump), "--format=plain", "--no-password", talkative.superuser()]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


# What guards money refuses what a developer's machine may do


@pytest.mark.parametrize("environment", ["staging", "production"])
@pytest.mark.parametrize("mode", ["disable", "prefer", "require", "verify-ca"])
def test_plain_text_to_another_machine_is_refused_where_money_is_real(environment: Any, mode: Any) -> None:
    with pytest.raises(ConfigurationError, match="verify-full"):
        tls_mode(DatabaseUrl.parse(f"postgresql://u:p@db.example.com/d?sslmode={mode}"), TlsOptions(), environment)
    with pytest.raises(ConfigurationError, match="verify-full"):
        DatabaseManager("postgresql://u:p@db.example.com/d", environment, tls=TlsOptions(mode=mode))
    assert tls_mode(DatabaseUrl.parse("postgresql://u:p@db.example.com/d"), TlsOptions(), environment) == "verify-full"


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_the_default_url_and_passwords_that_anybody_tries_are_refused_where_money_is_real(environment: Any) -> None:
    default = DatabaseSettings().postgres_url
    usual = ("pass", "Postgres", "changeme", "trader", "ledger")
    for url in (default, *(f"postgresql://trader:{word}@localhost/ledger" for word in usual)):
        with pytest.raises(ConfigurationError, match="try first") as caught:
            DatabaseManager(url, environment, "migrations_only")
        assert "pass@" not in str(caught.value)
        DatabaseManager(url, "development")
    DatabaseManager(f"postgresql://trader:{canary()}@localhost/ledger", environment, "migrations_only")
