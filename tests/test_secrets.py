"""A secret is readable nowhere but where it was given: a canary goes through every failing path and is looked for everywhere.

The canaries are random, so what is found is a leak and no accident. Each place is first shown to be searched at all, by a
word that is put there on purpose.
"""

import asyncio
import base64
import contextlib
import hashlib
import io
import logging
import pickle
import re
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import hypothesis
import pytest
import sqlalchemy as sa
import structlog
from fastapi import FastAPI, Request
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from pydantic import ValidationError
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from core.cli.main import main
from core.config.options import MonitoringOptions, Timeouts, TlsOptions
from core.config.settings import DatabaseSettings, SettingsError, get_settings
from core.database import bulk, roles
from core.database.backup import backup
from core.database.backup._tools import find_tools
from core.database.connection import DatabaseManager
from core.database.doctor import examine
from core.database.driver import raw_connection
from core.database.embedded import EmbeddedServer
from core.database.encryption import KeyRing
from core.database.engine import DatabaseUrl, EngineOptions, build_engine, is_guessed, tls_mode
from core.database.errors import ConfigurationError, InvalidInput, InvalidKey, PandaDatabaseError, SerializationFailure
from core.database.metrics import DatabaseMetrics
from core.database.models import Strategy, StrategyRevision, TradingSession, User
from core.database.records import SessionData, TradingSessionCreate, UserCreate
from core.database.tracing import trace_queries
from core.fastapi import Manager, WriteSession, install
from core.trading import accounts, sessions, strategies
from core.trading.accounts import _passwords
from tests.canary import canary, control, leaks, nowhere
from tests.cluster import debian
from tests.commands import panda


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
    assert leaks(around + word.encode()[:25] + b"...", word) == ["utf-8"], "cut off, it is found too"
    framed = around + word.encode() + b"\0" * 10
    assert any(name.startswith("base64") for name in leaks(base64.b64encode(framed), word))
    assert any(name.startswith("base32") for name in leaks(base64.b32encode(framed), word))
    assert leaks(hashlib.sha256(word.encode()).hexdigest(), word) == ["sha256 in hex"]
    assert leaks(canary(), word) == []


# The canary in the process: exceptions, logs, reprs, pickles


@dataclass
class Said:
    """All that a failing path said, in one place."""

    log: io.StringIO = field(default_factory=io.StringIO)
    pieces: list[bytes] = field(default_factory=list)

    def error(self, error: BaseException, *, frames: bool = True) -> None:
        """Its text, its traceback with all causes, all that hangs on it, what its pickle holds, and its frames' locals."""
        seen: set[int] = set()
        queue: list[BaseException | None] = [error]
        self.pieces.append("".join(traceback.format_exception(error)).encode())
        self.pieces += [shown.encode() for shown in locals_of(error) if frames]
        while queue:
            current = queue.pop()
            if current is None or id(current) in seen:
                continue
            seen.add(id(current))
            told = f"{current!s}\n{current!r}\n{current.args!r}\n"
            told += "\n".join(f"{name}={value!r}" for name, value in vars(current).items())
            self.pieces.append(told.encode())
            queue += [current.__cause__, current.__context__, getattr(current, "orig", None)]
            queue += getattr(current, "exceptions", ())
        if isinstance(error, PandaDatabaseError):
            self.pieces.append(pickle.dumps(error))

    def __bytes__(self) -> bytes:
        return b"\n".join([*self.pieces, self.log.getvalue().encode()])


def locals_of(error: BaseException) -> Iterator[str]:
    """What reporters of errors record of the frames below the caller's own, which are this suite's."""
    queue: list[traceback.TracebackException | None] = [
        traceback.TracebackException.from_exception(error, capture_locals=True)
    ]
    while queue:
        told = queue.pop()
        if told is None:
            continue
        for frame in told.stack:
            if not frame.filename.startswith(str(Path(__file__).parent)):
                yield f"{frame.name} {frame.locals}"
        queue += [told.__cause__, told.__context__, *(told.exceptions or ())]


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
    "lost": "SELECT pg_terminate_backend(pg_backend_pid()), CAST(:canary AS text)",  # as a broker it is refused
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
    timeouts = Timeouts(statement=0.3, lock=0.2)
    watching = MonitoringOptions(slow_query=0.001)
    async with DatabaseManager(database_url, timeouts=timeouts, monitoring=watching) as manager:
        manager.engine.echo = "debug"
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
    nowhere(f"statement: {path}{' of a broker' if broker else ''}", bytes(said), word)


Way = Callable[[DatabaseManager, str], Coroutine[Any, Any, None]]
_INSERT = text("INSERT INTO users (username, hashed_password) VALUES (:name, :canary)")


async def _many(manager: DatabaseManager, word: str) -> None:
    async with manager.transaction() as session:
        await session.execute(_INSERT, [{"name": name, "canary": word} for name in ("a", "b", "b")])


async def _streamed(manager: DatabaseManager, word: str) -> None:
    statement = "SELECT 1 / (60 - n) FROM generate_series(1, 100) n WHERE CAST(n AS text) <> :canary"
    async with manager.get_session() as session:
        async for row in await session.stream(text(statement), {"canary": word}):
            assert row


async def _write_skew(manager: DatabaseManager, word: str) -> None:
    """The second of two serialisable transactions is refused when it commits."""
    levels: dict[str, Any] = {"isolation_level": "SERIALIZABLE"}
    async with manager.transaction(**levels) as second:
        async with manager.transaction(**levels) as first:
            for session in (first, second):
                await session.execute(text("SELECT count(*) FROM users"))
            for session in (first, second):
                await session.execute(_INSERT, {"name": f"u{id(session)}", "canary": word})


async def _by_an_administrator(manager: DatabaseManager, word: str, how: str = "pg_cancel_backend") -> None:
    async with manager.transaction() as session:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        work = asyncio.ensure_future(
            session.execute(text("SELECT pg_sleep(60), CAST(:canary AS text)"), {"canary": word})
        )
        async with manager.get_session() as other:
            running = text("SELECT state = 'active' AND query ~ 'pg_sleep' FROM pg_stat_activity WHERE pid = :pid")
            while not await other.scalar(running, {"pid": pid}):
                await other.rollback()
            await other.execute(text(f"SELECT {how}(:pid)"), {"pid": pid})
        await work


async def _ended_by_an_administrator(manager: DatabaseManager, word: str) -> None:
    await _by_an_administrator(manager, word, "pg_terminate_backend")


async def _by_the_caller(manager: DatabaseManager, word: str) -> None:
    async with asyncio.timeout(0.05), manager.transaction() as session:
        await session.execute(text("SELECT pg_sleep(5), CAST(:canary AS text)"), {"canary": word})


async def _locked_out(manager: DatabaseManager, word: str) -> None:
    change = text("UPDATE users SET hashed_password = :canary WHERE username = 'taken'")
    async with manager.transaction() as holder:
        await holder.execute(change, {"canary": word})
        async with manager.transaction() as session:
            await session.execute(change, {"canary": word})


async def _read_only(manager: DatabaseManager, word: str) -> None:
    async with manager.get_session(read_only=True) as session:
        await session.execute(_INSERT, {"name": "x", "canary": word})


async def _past_the_session(manager: DatabaseManager, word: str) -> None:
    async with manager.get_session() as session, raw_connection(session) as raw:
        untyped: Any = raw
        await untyped.fetch("INSERT INTO users (username, hashed_password) VALUES ('taken', $1)", word)


async def _copied(manager: DatabaseManager, word: str) -> None:
    async with manager.transaction() as session:
        rows = [("a", word), ("taken", word)]
        await bulk.copy_records(session, "users", rows, columns=["username", "hashed_password"])


async def _copied_wrong(manager: DatabaseManager, word: str) -> None:
    async with manager.transaction() as session:
        await bulk.copy_records(session, "users", [(word, "h")], columns=["id", "hashed_password"])


async def _copied_text(manager: DatabaseManager, word: str) -> None:
    """The server's CONTEXT quotes the line and the column's value."""
    async with manager.transaction() as session:
        await bulk.copy_csv(session, "users", f"{word},h\n".encode(), columns=["id", "hashed_password"])


async def _copied_short(manager: DatabaseManager, word: str) -> None:
    async with manager.transaction() as session:
        await bulk.copy_csv(session, "users", f"{word}\n".encode(), columns=["username", "hashed_password"])


async def _copied_out(manager: DatabaseManager, word: str) -> None:
    async with manager.get_session() as session:
        await bulk.copy_out(session, "SELECT CAST($1 AS text)::integer", word, output=io.BytesIO())


async def _merged(manager: DatabaseManager, word: str) -> None:
    async with manager.transaction() as session:
        staged = await bulk.stage(session, {"id": "bigint", "username": "text", "hashed_password": "text"})
        columns = ["id", "username", "hashed_password"]
        await bulk.copy_records(session, staged, [(7, "taken", word)], columns=columns)
        table: Any = User.__table__
        await bulk.merge(session, table, staged, key=["id"], columns=columns[1:])


WAYS: dict[str, Way] = {
    "many rows in one statement": _many,
    "in the middle of a stream": _streamed,
    "serialisation, at COMMIT": _write_skew,
    "cancelled by an administrator": _by_an_administrator,
    "ended by an administrator": _ended_by_an_administrator,
    "cancelled by the caller": _by_the_caller,
    "lock timeout": _locked_out,
    "write in a read-only session": _read_only,
    "the driver's own call": _past_the_session,
    "COPY of records": _copied,
    "COPY of a wrong type": _copied_wrong,
    "COPY of CSV, quoted in CONTEXT": _copied_text,
    "COPY of a short line": _copied_short,
    "COPY of a query's rows": _copied_out,
    "merge": _merged,
}


@pytest.mark.parametrize("way", WAYS)
async def test_no_other_way_to_fail_tells_its_values(database_url: str, said: Said, way: str) -> None:
    word = canary()
    loop = asyncio.get_running_loop()
    loop.set_debug(True)  # so it tells of every callback, and where each task was made
    loop.slow_callback_duration = 0.0
    watching = MonitoringOptions(slow_query=0.001)
    async with DatabaseManager(database_url, timeouts=Timeouts(lock=0.2), monitoring=watching) as manager:
        manager.engine.echo = "debug"
        async with manager.transaction() as session:
            session.add(User(username="taken", hashed_password="h"))
        expected = TimeoutError if way == "cancelled by the caller" else PandaDatabaseError
        with pytest.raises(expected) as caught:
            await WAYS[way](manager, word)
        said.error(caught.value)
    assert b"Executing <" in bytes(said), "asyncio's debug mode is on"
    if "COMMIT" in way:
        assert isinstance(caught.value, SerializationFailure) and b"in commit" in bytes(said)
    nowhere(way, bytes(said), word)


LITERAL: dict[str, str] = {
    "no error": "SELECT pg_sleep(0.002), '{}'",
    "in dollars": "SELECT $tag${}$tag$, 1 / 0",
    "with escapes": "SELECT E'\\\\{}', 1 / 0",
    "unique": "INSERT INTO users (username, hashed_password) VALUES ('taken', '{}')",
    "no number": "SELECT '{}'::integer",
    "syntax": "SELECT 'a' '{}'",
    "a name that is none": "SELECT * FROM users WHERE username = {}",
    "SET": "SET LOCAL panda.secret = {}",
    "a comment": "SELECT 1 / 0 /* {} */",
    "a password": "ALTER ROLE nobody_of_ours PASSWORD '{}'",
    "several": "SELECT 1; SELECT '{}'",
}


@pytest.mark.parametrize("broker", [None, "paper"])
async def test_no_literal_that_stands_in_a_statement_is_told(database_url: str, said: Said, broker: str | None) -> None:
    """Of what is kept in quotes, that is; in the place of a name the server and we take it for one."""
    word = canary()
    watching = MonitoringOptions(slow_query=0.000_001)
    async with DatabaseManager(database_url, monitoring=watching) as manager:
        manager.engine.echo = "debug"
        async with manager.transaction() as session:
            session.add(User(username="taken", hashed_password="h"))
        for what, statement in LITERAL.items():
            try:
                async with manager.get_session(broker=broker) as session:
                    await session.execute(text(statement.format(word)))
            except PandaDatabaseError as error:
                if what == "a name that is none":
                    continue
                said.error(error)
        told = bytes(said).decode(errors="replace")
        assert "SELECT pg_sleep(?), ?" in told and "slow query" in told and "SET LOCAL panda.secret = ?" in told
        name = f"SELECT * FROM users WHERE username = {word}"
        nowhere(f"literals{' of a broker' if broker else ''}", told.replace(name, ""), word)


async def test_no_value_that_is_read_is_told(manager: DatabaseManager, said: Said) -> None:
    """By SQLAlchemy's echo, that is, which shows rows elsewhere, by asyncio's debug mode, or by who was asked to show all."""
    word, ring = canary(), ring_of("k1")
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0.0
    manager.engine.echo = "debug"
    manager.engine.sync_engine.hide_parameters = False
    manager.engine.sync_engine.pool.echo = "debug"
    async with manager.transaction() as session:
        session.add(User(id=7, username="reader", hashed_password=word))
        await session.flush()
        made = await sessions.open(session, user_id=7, broker="paper", credentials=word, ring=ring)
        made.session.session_data = SessionData.model_validate({"token": word})
        of = {"token": word}
        await strategies.define(session, strategy_id="momentum", name="Momentum", config=of, parameters=of)
    envelope = made.session.credentials
    assert envelope is not None
    everything = (select(User), select(TradingSession), select(Strategy), select(StrategyRevision))
    ways: list[dict[str, Any]] = [{}, {"read_only": True}, {"read_only": True, "consistent": True}, {"broker": "paper"}]
    for options in ways:
        async with manager.get_session(**options) as session:
            mine = everything[1:] if "broker" in options else everything
            for query in mine:
                assert (await session.scalars(query)).all()
                assert (await session.execute(query.with_only_columns(*query.selected_columns))).all()
                if options.get("read_only") is None:
                    assert [row async for row in await session.stream(query)]
            assert word in str((await session.execute(text("SELECT session_data FROM trading_sessions"))).all())
            assert word == await session.scalar(text(f"SELECT '{word}'"))
            assert word == await session.scalar(text("SELECT CAST(:word AS text)"), {"word": word})
            if not options:
                (await session.connection()).sync_connection.engine.hide_parameters = False  # type: ignore[union-attr]
                changed = sa.update(User).values(hashed_password=word).returning(User.hashed_password)
                assert await session.scalar(changed) == word
                resumed = await sessions.resume(session, made.bearer)
                assert sessions.credentials_of(resumed, ring=ring) == word
                async with raw_connection(session) as raw:
                    untyped: Any = raw
                    assert await untyped.fetchval("SELECT hashed_password FROM users WHERE id = $1", 7) == word
                out = io.BytesIO()
                await bulk.copy_out(session, "SELECT hashed_password FROM users", output=out)
                assert word.encode() in out.getvalue()
    assert b"Row (values hidden)" in bytes(said) and b"Executing <" in bytes(said)
    assert b"sqlalchemy.engine.Engine.panda" in bytes(said) and b"pool" in bytes(said)
    shown = bytes(said)
    nowhere("rows that are read: echo, DEBUG, asyncio's debug mode", shown, word)
    nowhere("rows that are read: bearers, envelopes", shown, made.bearer, envelope.hex(), str(envelope))
    assert not any(word[start : start + 10].encode() in shown for start in range(len(word) - 10)), (
        "no part of it either"
    )
    # The control: an engine that is not ours is as it was.
    other = sa.create_engine("sqlite://", echo="debug")
    with other.connect() as connection:
        connection.execute(text("SELECT :word, 'x'"), {"word": word})
        connection.execute(text(f"SELECT '{word}'")).all()
    other.dispose()
    control("rows that are read: echo, DEBUG, asyncio's debug mode", bytes(said)[len(shown) :], word)


async def _refused_in_a_group(manager: DatabaseManager, word: str) -> None:
    async with manager.transaction() as session, asyncio.TaskGroup() as group:
        group.create_task(accounts.register(session, "\n", word))


async def _refused_with_notes(manager: DatabaseManager, word: str) -> None:
    async with manager.transaction() as session:
        try:
            await accounts.register(session, "\n", word)
        except InvalidInput as error:
            error.add_note("while the day began")
            raise ExceptionGroup("several", [error, ValueError("another")]) from error


async def _retried(manager: DatabaseManager, word: str) -> None:
    async def work(session: AsyncSession) -> None:
        await session.execute(_INSERT, {"name": "again", "canary": word})
        await session.execute(text("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$"))

    await manager.run_transaction(work, max_attempts=3)


async def _task_that_ends_badly(manager: DatabaseManager, word: str) -> None:
    async def work() -> None:
        async with manager.transaction() as session:
            await session.execute(_INSERT, {"name": "taken", "canary": word})

    task = asyncio.create_task(work())
    await asyncio.wait([task])
    shown = io.StringIO()
    task.print_stack(file=shown)
    logging.getLogger("core").error("%s %r", shown.getvalue(), task)
    await task


REPORTED: dict[str, Way] = {
    "a task group": _refused_in_a_group,
    "an exception group with notes": _refused_with_notes,
    "a unit that is retried": _retried,
    "a task that ends badly": _task_that_ends_badly,
}


@pytest.mark.parametrize("way", REPORTED)
async def test_no_report_of_an_error_tells_its_values(
    database_url: str, said: Said, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever reports it: logging, the hook of uncaught exceptions, the event loop, structlog, rich with all locals."""
    word = canary()
    async with DatabaseManager(database_url, timeouts=Timeouts(lock=0.2)) as manager:
        async with manager.transaction() as session:
            session.add(User(username="taken", hashed_password="h"))
        with pytest.raises((PandaDatabaseError, ExceptionGroup)) as caught:
            await REPORTED[way](manager, word)
    error = caught.value
    said.error(error)
    logging.getLogger("core").error("failed", exc_info=error)
    asyncio.get_running_loop().call_exception_handler({"message": "failed", "exception": error})
    sys.excepthook(type(error), error, error.__traceback__)
    own = str(Path(__file__).parent)
    dicts = structlog.tracebacks.ExceptionDictTransformer(show_locals=True)((type(error), error, error.__traceback__))
    frames = [frame for stack in _stacks(dicts) for frame in stack["frames"] if not frame["filename"].startswith(own)]
    said.pieces.append(repr(frames).encode())
    told = capsys.readouterr()
    assert "Traceback" in told.err and frames
    said.pieces.append((told.out + told.err).encode())
    nowhere(f"reported: {way}", bytes(said), word)


def _stacks(dicts: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for stack in dicts:
        yield stack
        yield from (inner for group in stack.get("exceptions", ()) for inner in _stacks(group))


async def test_nothing_that_leaves_the_process_tells_a_value(database_url: str, said: Said) -> None:
    """A web application in debug mode with traces and metrics, asked with secrets in all that fails."""
    word, exporter, registry = canary(), InMemorySpanExporter(), CollectorRegistry()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    watching = MonitoringOptions(slow_query=0.000_001)
    manager = DatabaseManager(database_url, monitoring=watching, hooks=[trace_queries(provider)])
    app = FastAPI(debug=True)
    install(app, manager)

    @app.post("/insert")
    async def insert(request: Request, session: WriteSession) -> None:
        await session.execute(_INSERT, {"name": "taken", "canary": (await request.body()).decode()})

    @app.post("/literal")
    async def literal(request: Request, session: WriteSession) -> None:
        await session.execute(text(f"SELECT 1 / 0, '{(await request.body()).decode()}'"))

    @app.post("/value")
    async def value(request: Request, session: WriteSession) -> None:
        session.add(User(username="\n", hashed_password=(await request.body()).decode()))
        await session.flush()

    @app.post("/login")
    async def login(request: Request, manager: Manager) -> None:
        await accounts.authenticate(manager, "nobody", (await request.body()).decode())

    @app.post("/bug")
    async def bug(request: Request, session: WriteSession) -> None:
        await session.execute(_INSERT, {"name": "new", "canary": (await request.body()).decode()})
        raise RuntimeError("a bug of the application's own")

    async with app.router.lifespan_context(app), DatabaseMetrics(manager, registry=registry):
        async with manager.transaction() as session:
            session.add(User(username="taken", hashed_password="h"))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for path, status in {"insert": 409, "literal": 422, "value": 422, "login": 401, "bug": 500}.items():
                for accept in ("text/html", "application/json"):
                    answer = await client.post(f"/{path}", content=word.encode(), headers={"accept": accept})
                    assert answer.status_code == status, answer.text
                    said.pieces.append(f"{answer.headers!r} {answer.text}".encode())
                nowhere(f"a web application's answer: {path}", bytes(said), word)
        said.pieces = [generate_latest(registry), repr(await manager.health_check()).encode()]
        assert b"alpha_panda_database_" in said.pieces[0]
        nowhere("metrics and health", bytes(said), word)
    told = "".join(span.to_json() for span in exporter.get_finished_spans())
    assert "SELECT ? / ?, ?" in told and "INSERT users" in told
    nowhere("traces", told, word)


@pytest.mark.parametrize("host", ["127.0.0.1:1", "no-such-host.invalid", "127.0.0.1:1,127.0.0.1:2"])
async def test_no_refused_connection_tells_the_password(said: Said, host: str) -> None:
    word = canary()
    url = f"postgresql://u:{word}@{host}/d"
    with pytest.raises(PandaDatabaseError) as caught:
        async with DatabaseManager(url, timeouts=Timeouts(connect=0.5)):
            pass
    said.error(caught.value)
    manager = DatabaseManager(url, timeouts=Timeouts(connect=0.5))
    said.pieces.append(repr(await manager.health_check()).encode())
    with pytest.raises(PandaDatabaseError) as waited:
        await manager.wait_for_ready(0.2)
    said.error(waited.value)
    said.pieces.append(repr(await examine(url, limit=0.5)).encode())
    nowhere("connection refused, health, doctor", bytes(said), word)


@pytest.fixture
def scram_server(component: Any) -> Iterator[debian.DebianServer]:
    component(debian.binaries() is not None, "apt-get install postgresql")
    with debian.debian_server() as server:
        yield server


@pytest.mark.component
@pytest.mark.usefixtures("settled")
async def test_no_refused_password_is_told(scram_server: debian.DebianServer, said: Said) -> None:
    word = canary()
    for query in ("?sslmode=require", "?sslmode=verify-full"):
        with pytest.raises(PandaDatabaseError) as caught:
            async with DatabaseManager(scram_server.url(password=word, query=query), "testing"):
                pass
        said.error(caught.value)
    said.pieces.append((scram_server.folder / "postgres.log").read_bytes())
    control("wrong password, TLS refused", bytes(said), "password authentication failed")
    nowhere("wrong password, TLS refused", bytes(said), word)


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
    nowhere("flush", bytes(said), word)


async def refusals(manager: DatabaseManager, said: Said, *works: Callable[[AsyncSession], Any]) -> None:
    """What each of them is refused with, in a transaction of its own."""
    for work in works:
        with pytest.raises(PandaDatabaseError) as caught:
            async with manager.transaction() as session:
                await work(session)
        said.error(caught.value)


def ring_of(*key_ids: str) -> KeyRing:
    return KeyRing.parse(",".join(f"{key_id}:{KeyRing.generate_key()}" for key_id in key_ids))


async def test_no_refusal_of_a_room_tells_the_secret(manager: DatabaseManager, said: Said) -> None:
    word = canary()
    ring = ring_of("k1")
    past = datetime(2000, 1, 1, tzinfo=UTC)
    await refusals(
        manager,
        said,
        lambda s: sessions.open(s, user_id=1, broker="paper", credentials=word),
        lambda s: sessions.open(s, user_id=999, broker="paper", credentials=word, ring=ring),
        lambda s: sessions.open(s, user_id=1, broker="Bad", credentials=word, ring=ring),
        lambda s: sessions.open(s, user_id=1, broker="paper", credentials=word, ring=ring, expires_at=past),
        lambda s: accounts.register(s, "trader", "\x00" + word),
        lambda s: accounts.register(s, "trader", word * 1_000),
        lambda s: accounts.register(s, word + "\n", word),
        lambda s: accounts.register(s, "trader", word, actor=" "),
    )
    for make in (
        lambda: UserCreate(username="\n", hashed_password=word),
        lambda: TradingSessionCreate(session_id="s", user_id=1, broker="paper", session_data=word),  # type: ignore[arg-type]
        lambda: TradingSessionCreate(session_id="s", user_id=word, broker="paper"),  # type: ignore[arg-type]
    ):
        with pytest.raises((ValidationError, InvalidInput)) as invalid:
            make()
        said.error(invalid.value, frames=False)  # pydantic's own, called by us
    nowhere("refusals of the rooms and of records", bytes(said), word)


@pytest.fixture
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    quick = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1),))
    monkeypatch.setattr(_passwords, "_hasher", quick)
    _passwords._nobody.cache_clear()
    _passwords._taken.clear()
    yield
    _passwords._nobody.cache_clear()
    _passwords._taken.clear()


Login = Callable[[DatabaseManager, str, str], Coroutine[Any, Any, Any]]
"""Given the manager, the password of `trader` and a secret that is none."""
_HELD_UP = accounts.LoginDelays(free=1, first=600, patience=0)
LOGINS: dict[str, Login] = {
    "a wrong password": lambda m, p, w: accounts.authenticate(m, "trader", w),
    "an unknown name": lambda m, p, w: accounts.authenticate(m, "nobody", w),
    "the password typed for the name": lambda m, p, w: accounts.authenticate(m, w, w),
    "a disabled user": lambda m, p, w: accounts.authenticate(m, "gone", p),
    "no password that can be": lambda m, p, w: accounts.authenticate(m, "trader", f"\0{w}\ud800"),
    "no source": lambda m, p, w: accounts.authenticate(m, "trader", p, source="\n"),
    "no name": lambda m, p, w: accounts.authenticate(m, 1, p),  # type: ignore[arg-type]
    "too many": lambda m, p, w: accounts.authenticate(m, "late", w, delays=_HELD_UP),
    "a wrong old password": lambda m, p, w: accounts.change_password(m, "trader", w, w + "new"),
    "a new password that is none": lambda m, p, w: accounts.change_password(m, "trader", p, f"\0{w}"),
    "a change that has to wait": lambda m, p, w: accounts.change_password(m, "late", p, w, delays=_HELD_UP),
    "a reset to none": lambda m, p, w: accounts.set_password(m, "trader", w * 100, actor="root"),
    "a reset for nobody": lambda m, p, w: accounts.set_password(m, "nobody", w, actor="root"),
    "a reset by nobody": lambda m, p, w: accounts.set_password(m, "trader", w, actor=" "),
}


@pytest.mark.usefixtures("quick_hashes")
async def test_no_refused_login_tells_a_password(database_url: str, said: Said) -> None:
    password, word = canary(), canary()
    async with DatabaseManager(database_url, monitoring=MonitoringOptions(slow_query=0.000_001)) as manager:
        manager.engine.echo = "debug"
        async with manager.transaction() as session:
            for name in ("trader", "gone", "late"):
                said.pieces.append(repr(await accounts.register(session, name, password)).encode())
        await accounts.disable(manager, "gone", actor="root")
        for _ in range(2):
            with pytest.raises(accounts.InvalidCredentials):
                await accounts.authenticate(manager, "late", word, delays=_HELD_UP)
        for what, login in LOGINS.items():
            with pytest.raises(PandaDatabaseError) as caught:
                await login(manager, password, word)
            said.error(caught.value)
            if "wait" in what or what == "too many":
                assert isinstance(caught.value, accounts.TooManyAttempts)
        async with manager.get_session() as session:
            said.pieces += [repr(vars(event)).encode() for event in await accounts.events(session)]
    assert b"login_refused" in bytes(said) and b"slow query" in bytes(said)
    nowhere("logins and changes of passwords, refused", bytes(said), password, word)


@pytest.mark.usefixtures("quick_hashes")
@pytest.mark.parametrize("how", ["lock timeout", "closed", "cancelled"])
async def test_no_login_that_breaks_off_tells_a_password(database_url: str, said: Said, how: str) -> None:
    password, word = canary(), canary()
    manager = DatabaseManager(
        database_url, timeouts=Timeouts(lock=0.1 if how == "lock timeout" else 0.4, idle_in_transaction=60)
    )
    async with manager, manager.transaction() as session:
        await accounts.register(session, "trader", password)
    works: tuple[Callable[[], Coroutine[Any, Any, Any]], ...] = (
        lambda: accounts.authenticate(manager, "trader", password),
        lambda: accounts.change_password(manager, "trader", password, word),
        lambda: accounts.set_password(manager, "trader", word, actor="root"),
    )
    async with contextlib.AsyncExitStack() as stack:
        if how != "closed":
            await stack.enter_async_context(manager)
            holder = await stack.enter_async_context(manager.transaction())
            await holder.execute(text("SELECT 1 FROM users FOR UPDATE"))
        for work in works:
            with pytest.raises(TimeoutError if how == "cancelled" else PandaDatabaseError) as caught:
                async with asyncio.timeout(0.05 if how == "cancelled" else None):
                    await work()
            said.error(caught.value)
    nowhere(f"logins and changes of passwords: {how}", bytes(said), password, word)


@pytest.mark.usefixtures("quick_hashes")
async def test_no_refusal_of_a_session_tells_its_bearer_or_credentials(database_url: str, said: Said) -> None:
    word = canary()
    ring, other = ring_of("k1"), ring_of("k1")
    soon, past = datetime(2999, 1, 1, tzinfo=UTC), datetime(2000, 1, 1, tzinfo=UTC)
    async with DatabaseManager(database_url, monitoring=MonitoringOptions(slow_query=0.000_001)) as manager:
        manager.engine.echo = "debug"
        async with manager.transaction() as session:
            owner = (await accounts.register(session, "trader", word)).id
            ended = await sessions.open(session, user_id=owner, broker="paper")
            over = await sessions.open(session, user_id=owner, broker="kite", expires_at=soon)
            made = await sessions.open(session, user_id=owner, broker="paper", credentials=word, ring=ring)
            await session.execute(text("UPDATE trading_sessions SET start_time = '2000-01-01Z'"))
            over.session.expires_at = datetime(2000, 1, 2, tzinfo=UTC)
        bearers = [ended.bearer, over.bearer, made.bearer]
        key = made.session.session_id
        await refusals(
            manager,
            said,
            lambda s: sessions.resume(s, ended.bearer),
            lambda s: sessions.resume(s, over.bearer),
            lambda s: sessions.resume(s, made.bearer + "x"),
            lambda s: sessions.resume(s, made.bearer[:-1] + "_"),
            lambda s: sessions.touch(s, bearer=ended.bearer),
            lambda s: sessions.touch(s, bearer=made.bearer, session_id=key),
            lambda s: sessions.end(s, bearer=made.bearer, session_id=key),
            lambda s: sessions.touch(s, bearer=made.bearer + "\0"),
            lambda s: sessions.open(s, user_id=owner, broker="kite", session_data={"note": made.bearer}),
            lambda s: sessions.open(
                s, user_id=owner, broker="kite", session_data={word: {word: word}}, credentials=word, ring=ring
            ),
            lambda s: sessions.renew(s, key, credentials=word),
            lambda s: sessions.renew(s, word, credentials=word, ring=ring),
            lambda s: sessions.renew(s, key, credentials=word, ring=ring, expires_at=past),
            lambda s: sessions.renew(s, key, credentials=word, ring=other),
            lambda s: sessions.renew(s, key, credentials=word * 2_000, ring=ring),
            lambda s: sessions.renew(s, key, credentials=word + "\ud800", ring=ring),
            lambda s: sessions.renew(s, ended.session.session_id, credentials=word, ring=ring),
            lambda s: sessions.renew(s, over.session.session_id, credentials=word, ring=ring),
            lambda s: sessions.open(s, user_id=owner, broker="paper", credentials=word, ring=other),
            lambda s: sessions.open(s, user_id=owner, broker="paper", credentials=word * 2_000, ring=ring),
        )
        with pytest.raises(PandaDatabaseError) as caught:
            sessions.seal_credentials(word, session_id="\ud800", ring=ring)
        said.error(caught.value)
        with pytest.raises(PandaDatabaseError) as caught:
            sessions.credentials_of(made.session, ring=other)
        said.error(caught.value)
        with pytest.raises(PandaDatabaseError) as caught:
            await sessions.rotate(manager, other)
        said.error(caught.value)
        for report in (await sessions.verify(manager, other, deep=True), await sessions.rotate(manager, ring_of("k2"))):
            said.pieces.append(repr(report).encode())
            with pytest.raises(PandaDatabaseError) as caught:
                report.raise_unless_whole()
            said.error(caught.value)
        async with sessions.SessionWatch(manager) as watch, manager.get_session() as session:
            said.pieces.append(f"{watch.health()} {await anext(watch)!r} {await sessions.find(session)!r}".encode())
    assert b"slow query" in bytes(said) and b"k1" in bytes(said)
    nowhere("sessions, refused: credentials", bytes(said), word)
    nowhere("sessions, refused: bearers", bytes(said), *bearers)


@pytest.mark.usefixtures("clean")
def test_no_command_about_keys_shows_one(database_url_sync: str, tmp_path: Path, said: Said) -> None:
    word, another, token = canary(), canary(), canary()
    key, wrong_key = (base64.b64encode(secret.encode()[:32]).decode() for secret in (word, another))
    file, told = tmp_path / "keys", list[str]()

    async def seal() -> None:
        async with DatabaseManager(database_url_sync) as manager, manager.transaction() as session:
            session.add(User(id=1, username="trader", hashed_password="h"))
            await session.flush()
            await sessions.open(session, user_id=1, broker="paper", credentials=token, ring=KeyRing.parse(f"k1:{key}"))

    def asked(*arguments: str, keys: str | None = None, code: int = 2) -> None:
        names = {} if keys is None else {"DATABASE__ENCRYPTION_KEYS": keys}
        for extra in ((), ("--json",), ("--debug", "-vv")):
            done = panda("keys", *arguments, *extra, url=database_url_sync, **names)
            assert done.returncode == code, done.stderr
            told.append(done.stdout + done.stderr)

    asyncio.run(seal())
    for wrong in (word, f"k1:{word}", f"k1:{key[:-4]}", f"k1:{key},k1:{key}", f"k1:{key},k2:{key}", f" :{key}"):
        with pytest.raises(InvalidKey) as caught:
            KeyRing.parse(wrong)
        said.error(caught.value)
    for wrong in (
        word, key, f"k1:{word}", f"k1:{key[:-4]}", f"k1:{key}x", f"bad id:{key}", f"k1:{key},k1:{key}", f"k1:{key},k2:{key}",
        f"k1:{key},{word}", f"{word}:{word}",
    ):  # fmt: skip
        asked("verify", keys=wrong)
        asked("rotate", keys=wrong)
        file.write_text(wrong)
        asked("generate", "--id", "k9", "--file", str(file))
    file.write_text(f"k1:{key}")
    asked("generate", "--id", "k1", "--file", str(file), code=6)
    asked("verify", keys=f"k1:{wrong_key}", code=1)
    asked("rotate", keys=f"k2:{key},k1:{wrong_key}")
    asked("verify", "--deep", keys=f"k2:{wrong_key}", code=1)
    asked("rotate", keys=f"k2:{wrong_key}", code=1)
    said.pieces.append("".join(told).encode())
    assert b"NOT the key" in bytes(said) and b"Traceback" in bytes(said)
    nowhere("panda keys, refused", bytes(said), word, another, token)


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
    shown = [
        owner,
        opened,
        ring,
        url,
        engine,
        engine.url,
        far,
        far.__dict__["_life"].place.url,
        vars(opened)["credentials"],
    ]
    told = "\n".join(f"{item!r} {item!s}" for item in shown).encode()
    nowhere("repr and pickle of rows, rings, URLs, engines", told + pickle.dumps(owner) + pickle.dumps(opened), word)
    assert key.encode() not in told


def test_settings_do_not_show_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    word = canary()
    monkeypatch.setenv("DATABASE__POSTGRES_URL", f"postgresql://u:{word}@localhost/d")
    monkeypatch.setenv("DATABASE__ENCRYPTION_KEYS", f"k1:{base64.b64encode(word.encode()[:32]).decode()}")
    get_settings.cache_clear()
    try:
        settings = get_settings()
        nowhere("repr of settings", f"{settings!r} {settings!s} {settings.database!r}", word)
        monkeypatch.setenv("DATABASE__POOL__SIZE", word)
        get_settings.cache_clear()
        with pytest.raises(SettingsError) as caught:
            get_settings()
        said = Said()
        said.error(caught.value)
        nowhere("settings that cannot be used", bytes(said), word)
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
def talkative(open_folder: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that writes into its log all that it can, values included; started by a process that has a key in its environment."""
    folder = open_folder / "canary"
    monkeypatch.setenv("DATABASE__ENCRYPTION_KEYS", f"k1:{key}")
    server = EmbeddedServer(folder, settings=_SPEAKING)
    try:
        yield Server(server.ensure(), folder, server)
    finally:
        server.stop()


@pytest.fixture
def key() -> str:
    return KeyRing.generate_key()


def processes_of(server: EmbeddedServer) -> str:
    """The command lines and environments of the server's processes."""
    postmaster = server.status().pid
    told: list[str] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if str(postmaster) in (folder.name, parent):
                told += [(folder / name).read_text(errors="replace") for name in ("cmdline", "environ")]
        except OSError:
            continue  # it has ended meanwhile
    return "\n".join(told)


async def read_by_readers(url: str) -> str:
    """All that the reader's role may read."""
    async with DatabaseManager(url) as manager:
        await roles.apply(manager.engine)
        async with manager.transaction() as session:
            await session.execute(text(f"GRANT {roles.READER_ROLE} TO CURRENT_USER"))
            await session.execute(text(f"SET LOCAL ROLE {roles.READER_ROLE}"))
            readable = await session.execute(
                text("""
                    SELECT attrelid::regclass::text AS name, string_agg(quote_ident(attname), ', ') AS columns
                    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
                    WHERE relkind IN ('r', 'p') AND relnamespace = current_schema()::regnamespace
                      AND attnum > 0 AND NOT attisdropped AND has_column_privilege(attrelid, attname, 'SELECT')
                    GROUP BY 1""")
            )
            tables: dict[str, str] = {row.name: row.columns for row in readable}
            assert "credentials" not in tables["trading_sessions"]
            rows = [await session.execute(text(f"SELECT {columns} FROM {name}")) for name, columns in tables.items()]
            return "\n".join(repr(row) for result in rows for row in result)


def written_since(folder: Path, begin: float) -> dict[str, bytes]:
    """What stands in the files that were written since then, without the empty pages between."""
    found: dict[str, list[bytes]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_mtime >= begin:
            part = next((part for part in ("pg_wal", "base", "server.log") if part in str(path)), "")
            place = {"pg_wal": "WAL", "base": "heap, indexes, TOAST", "server.log": "server log"}.get(
                part, "other files"
            )
            pages = path.read_bytes()
            found.setdefault(place, []).append(re.sub(rb"\0{64,}", bytes(8), pages))
    return {place: b"\n".join(files) for place, files in found.items()}


BEARER_KEPT_AS = ("sha256", "sha256 in hex")
"""By which it is looked up: of so many random bits it tells nothing."""


@pytest.mark.builtin_server(reason="reads the files of the server")
async def test_a_sealed_secret_is_in_no_file_of_the_server(talkative: Server, key: str, tmp_path: Path) -> None:
    token, password, later, known = canary(), canary(), canary(), canary()
    fresh, reset = canary(), canary()
    ring, begin = KeyRing.parse(f"k1:{key}"), time.time() - 1
    watched: list[str] = []
    done = asyncio.Event()

    async def watch() -> None:
        connection = await asyncpg.connect(talkative.superuser())
        while not done.is_set():
            watched.extend(row[0] for row in await connection.fetch("SELECT query FROM pg_stat_activity"))
            await asyncio.sleep(0.005)
        await connection.close()

    async with DatabaseManager(talkative.url) as manager:
        admin = await asyncpg.connect(talkative.superuser())
        await admin.execute("CREATE PUBLICATION canary FOR ALL TABLES")
        await admin.execute("SELECT pg_create_logical_replication_slot('canary', 'pgoutput')")
        watcher = asyncio.create_task(watch())
        async with manager.transaction() as session:
            owner = await accounts.register(session, "trader", password)
            first = await sessions.open(session, user_id=owner.id, broker="paper", credentials=token, ring=ring)
        await accounts.authenticate(manager, "trader", password)
        for name, wrong in (("trader", password + "x"), ("nobody", password), (password, password)):
            with pytest.raises(accounts.InvalidCredentials):
                await accounts.authenticate(manager, name, wrong)
        async with manager.transaction(broker="paper") as session:
            again = await sessions.open(session, user_id=owner.id, broker="paper", credentials=token, ring=ring)
        for broker in (None, "paper", "zerodha"):
            with pytest.raises(PandaDatabaseError):
                async with manager.transaction(broker=broker) as session:
                    await sessions.open(session, user_id=owner.id, broker="paper", credentials=token, ring=ring)
                    await session.execute(text("SELECT 1/0"))
        async with manager.get_session(read_only=True) as session:
            stored = await session.get_one(TradingSession, again.session.session_id)
            assert sessions.credentials_of(stored, ring=ring) == token
        # The bearer, at work and refused; what is renewed, and sealed anew by another key.
        async with manager.transaction() as session:
            await sessions.resume(session, again.bearer)
            await sessions.touch(session, bearer=again.bearer)
            await sessions.renew(session, again.session.session_id, credentials=later, ring=ring)
        with pytest.raises(sessions.SessionRevoked):
            async with manager.transaction() as session:
                await sessions.resume(session, first.bearer)
        both = KeyRing.parse(f"k2:{KeyRing.generate_key()},k1:{key}")
        assert (await sessions.rotate(manager, both)).rotated == 1
        async with manager.transaction() as session:
            await sessions.end(session, bearer=again.bearer)
        await accounts.change_password(manager, "trader", password, fresh)
        with pytest.raises(accounts.InvalidCredentials):
            await accounts.change_password(manager, "trader", password, fresh)
        await accounts.set_password(manager, "trader", reset, actor="root")
        done.set()
        await watcher
        # The control: what is not sealed is found, in each of the places that are searched.
        async with manager.transaction() as session:
            await session.execute(
                text("UPDATE trading_sessions SET session_data = jsonb_build_object('x', CAST(:x AS text))"),
                {"x": known},
            )
        assert first.session.session_id != again.session.session_id
    secrets, bearers = (token, later, password, fresh, reset, key), (first.bearer, again.bearer)
    places = {
        "pg_dump": await asyncio.to_thread(_dumped, talkative),
        "panda backup": await _backed_up(talkative, tmp_path / "panda.backup"),
        "what a replica is sent": b"".join(
            row[0]
            for row in await admin.fetch(
                "SELECT data FROM pg_logical_slot_peek_binary_changes('canary', NULL, NULL,"
                " 'proto_version', '1', 'publication_names', 'canary')"
            )
        ),
        "all that panda_reader may read": (await read_by_readers(talkative.url)).encode(),
    }
    processes = processes_of(talkative.server)
    await admin.execute("SELECT pg_drop_replication_slot('canary')")
    await admin.execute("CHECKPOINT")
    await admin.close()
    await asyncio.to_thread(talkative.server.stop)
    places |= written_since(talkative.folder, begin)
    for place, data in places.items():
        if place != "other files":
            control(place, data, known)
        nowhere(place, data, *secrets)
        if "reader" in place:
            nowhere(place, data, *bearers)
        else:
            nowhere(f"{place}: bearers, their SHA-256 aside", data, *bearers, but=BEARER_KEPT_AS)
    assert "sha256 in hex" in leaks(places["pg_dump"], again.bearer), "the control"
    statements = "\n".join(watched)
    assert "trading_sessions" in statements
    nowhere("pg_stat_activity", statements, *secrets, *bearers)
    assert "postgres" in processes
    nowhere("environment and command lines of the server", processes, *secrets, *bearers)


_WATCHING = {
    "shared_preload_libraries": "pg_stat_statements,auto_explain",
    "pg_stat_statements.track": "all",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_verbose": "on",
    "auto_explain.log_nested_statements": "on",
    "auto_explain.log_parameter_max_length": "-1",
    "log_statement": "all",
    "log_min_error_statement": "debug5",
    "log_parameter_max_length_on_error": "-1",
}


async def _watched(server: debian.DebianServer, key: str, password: str, token: str, known: str) -> str:
    """Logins and sessions, well and refused; what pg_stat_statements keeps of them."""
    admin = await asyncpg.connect(server.url(user="postgres"))
    await admin.execute("CREATE EXTENSION pg_stat_statements; GRANT pg_read_all_stats TO panda")
    ring = KeyRing.parse(f"k1:{key}")
    async with DatabaseManager(server.url()) as manager:
        async with manager.transaction() as session:
            owner = await accounts.register(session, "trader", password)
        await accounts.authenticate(manager, "trader", password)
        for name, wrong in (("trader", password + "x"), (password, password)):
            with pytest.raises(accounts.InvalidCredentials):
                await accounts.authenticate(manager, name, wrong)
        for broker in (None, "paper"):
            with pytest.raises(PandaDatabaseError):
                async with manager.transaction(broker=broker) as session:
                    await sessions.open(session, user_id=owner.id, broker="paper", credentials=token, ring=ring)
                    await session.execute(text("SELECT 1 / 0, CAST(:known AS text)"), {"known": known})
    rows = await admin.fetch("SELECT query FROM pg_stat_statements")
    await admin.close()
    return str(rows)


@pytest.mark.component
@pytest.mark.usefixtures("quick_hashes", "clean")
def test_no_extension_that_watches_statements_is_told_a_secret(
    component: Any, key: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    component(debian.binaries() is not None, "apt-get install postgresql")
    password, token, known = canary(), canary(), canary()
    with debian.debian_server(tls=False, further=_WATCHING) as server:
        statements = asyncio.run(_watched(server, key, password, token, known))
        monkeypatch.setenv("DATABASE__POSTGRES_URL", server.url())
        get_settings.cache_clear()
        for arguments in (["explain", "--slowest", "5", "-vv"], ["top", "--once"], ["doctor", "-vv", "--log-json"]):
            main(arguments)
        told = capsys.readouterr()
        log = (server.folder / "postgres.log").read_bytes()
    assert b"Query Text" in log and "trading_sessions" in statements and "trading_sessions" in told.out
    control("server log of auto_explain with all parameters", log, known)
    nowhere("server log of auto_explain with all parameters", log, password, token, key)
    nowhere("pg_stat_statements", statements, password, token, key)
    nowhere("panda explain, top and doctor", told.out + told.err, password, token, key, known)


async def _backed_up(talkative: Server, file: Path) -> bytes:
    """The file of `panda backup`, and all that it holds, unpacked."""
    await backup(talkative.url, file)
    with tarfile.open(file) as parts:
        (dump,) = (part for part in parts if part.name.endswith(".dump"))
        inner = parts.extractfile(dump)
        assert inner is not None
        unpacked = file.with_suffix(".dump")
        unpacked.write_bytes(inner.read())
    command = [str(find_tools(at_least=18).pg_restore), "--file=-", str(unpacked)]
    script = await asyncio.to_thread(lambda: subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return file.read_bytes() + script


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
    usual = (
        "pass", "Postgres", "changeme", "trader", "ledger", "Password123", "P%40ssw0rd", "my-secret-password", "trader2026!",
        "ledger_dev", "zerodha@123".replace("@", "%40"), "aaaaaaaaaaaa", "20261130", "qwertyuiop", "x7", "LetMeIn2026",
    )  # fmt: skip
    for url in (default, *(f"postgresql://trader:{word}@localhost/ledger" for word in usual)):
        with pytest.raises(ConfigurationError, match="try first") as caught:
            DatabaseManager(url, environment, "migrations_only")
        assert "pass@" not in str(caught.value)
        DatabaseManager(url, "development")
    DatabaseManager(f"postgresql://trader:{canary()}@localhost/ledger", environment, "migrations_only")


@hypothesis.given(
    st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789-_"), min_size=16, max_size=2_000)
)
def test_a_random_password_is_taken_for_no_guessed_one(word: str) -> None:
    """As secrets.token_urlsafe makes them; and however long it is, it is looked at quickly."""
    hypothesis.assume(len(set(word)) > 10 and len(re.sub("[^a-z]", "", word.lower())) > 8)
    url = DatabaseUrl.parse(f"postgresql://x:{word}@localhost/y")
    start = time.perf_counter()
    guessed = is_guessed(url)
    assert time.perf_counter() - start < 1
    assert not guessed or any(
        usual in word.lower() for usual in ("new", "me", "to", "is", "in", "db", "pg", "my", "x", "y")
    )


def test_hosts_that_look_local_and_are_not_are_refused_in_plain_text() -> None:
    for host in (
        "localhost.example.com", "127.0.0.1.example.com", "127.1", "2130706433", "0x7f000001", "0.0.0.0", "[::]", "LOCALHOST",
        "[::ffff:8.8.8.8]", "localhost,db.example.com", "%2Ftmp,db.example.com", "127.0.0.1,10.0.0.1", "[fe80::1%25lo]",
    ):  # fmt: skip
        for mode in ("disable", "prefer", "require", "verify-ca"):
            with pytest.raises(ConfigurationError, match="verify-full"):
                DatabaseManager(f"postgresql://u:{canary()}@{host}/d?sslmode={mode}", "production", "migrations_only")
    for query in ("hostaddr=8.8.8.8", "host=localhost&hostaddr=8.8.8.8", "service=x", "host=@abstract"):
        with pytest.raises(ConfigurationError):
            DatabaseManager(f"postgresql://u:{canary()}@/d?{query}", "production", "migrations_only")
    for host in ("localhost", "127.0.0.1", "127.8.9.1", "[::1]", "%2Ftmp", "127.0.0.1,[::1]"):
        DatabaseManager(f"postgresql://u:{canary()}@{host}/d", "production", "migrations_only")
