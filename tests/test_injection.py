"""Hostile text through every text parameter: a value or a typed error, the tables as before, and nothing of it in a log.

The public functions and methods that take text are found by their signatures. Each has a recipe below, or stands in
`ELSEWHERE` with the reason why not: one that has neither fails the first test.
"""

import asyncio
import contextlib
import importlib
import inspect
import json
import logging
import pkgutil
import time
import types
import typing
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from pydantic import BaseModel, ConfigDict, field_validator
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import core.database
import core.trading
from core.config.options import MonitoringOptions, Timeouts
from core.database.connection import DatabaseManager
from core.database.encryption import KeyRing
from core.database.errors import InvalidInput, PandaDatabaseError
from core.database.metrics import DatabaseMetrics
from core.database.models import Base, TradingSession, User
from core.database.notify import Listener
from core.database.records import StrategyConfig, StrategyParameters
from core.database.types import folded
from core.fastapi import problem_of
from core.testing import make_instrument, make_portfolio, make_snapshot
from core.trading import accounts, portfolios, sessions, strategies
from core.trading.accounts import _passwords
from core.trading.instruments import InstrumentCache
from core.trading.sessions._events import CHANNEL as SESSIONS_CHANNEL

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
DAY = NOON.date()

HOSTILE = {
    "quote": "Robert'); DROP TABLE users; --",
    "quoted name": 'users"; DROP TABLE users; --',
    "stacked": "users; DROP TABLE users",
    "dollars": "$$; DROP TABLE users; $$ $1",
    "backslash": "a\\' OR '1'='1' -- \\",
    "wildcards": "%_\\%",
    "bind look-alikes": ":name :1 %(x)s %s $1 ? ::text",
    "formats": "{0} {x!r} {0.__class__} ${jndi:ldap://127.0.0.1/x} %n",
    "NUL": "a\0b",
    "line breaks": "ok\r\n2026-11-30 [error] forged",
    "escapes": "\x1b[2J\x1b]0;x\x07",
    "bidi": "abc\u202ecba\u2066",
    "zero width": "tra\u200bder\ufeff",
    "separators": "a\u2028b\u2029c\x85",
    "lone surrogate": "a\ud800",
    "homoglyphs": "рареr trаdеr ﬀ①",
    "astral": "\U0001f4b8" * 9,
    "JSON": '{"a": NaN, "b": [1, 2',
    "JSONPath": '$.** ? (@ like_regex ".*")',
    "tsquery": "a & !b | (c <-> d):* '",
    "regular expression": "(a+)+$[[:alpha:]]\\1{1000}",
    "globs": "*?[!a]{b,c}",
    "traversal": "../../../../nowhere/passwd",
    "formula": "=cmd|'/C calc'!A1",
    "markup": "<script>alert(1)</script>&amp;",
    "URL": "postgresql://u:p@127.0.0.1:1/d?options=-c%20role=postgres",
    "number": "1e999999",
    "empty": "",
    "blank": " \t ",
    "1 MB": ("x" * 999 + "'") * 1_000,
}
UNSEEN = {"Cc", "Cf", "Zl", "Zp", "Cs"}
LONGEST_ERROR = 5_000


# What takes text


def takes_text(kind: Any, depth: int = 0) -> bool:
    if kind in (str, bytes, Path):
        return True
    origin = typing.get_origin(kind)
    if origin is typing.Literal or "Callable" in str(origin) or depth > 4:
        return False
    return any(takes_text(part, depth + 1) for part in typing.get_args(kind))


class Unknown:
    """In place of what a room imports for type checking alone."""

    def __class_getitem__(cls, parameters: Any) -> type["Unknown"]:
        return cls


def hints_of(function: Any) -> dict[str, Any]:
    unknown: dict[str, Any] = {}
    while True:
        try:
            return typing.get_type_hints(function, localns=unknown)
        except NameError as error:
            unknown[str(error.name)] = Unknown


def text_parameters(function: Any) -> tuple[str, ...]:
    hints = hints_of(function)
    return tuple(name for name in inspect.signature(function).parameters if takes_text(hints.get(name)))


def callables(room: types.ModuleType) -> Iterator[tuple[str, Any]]:
    """Functions, and the constructors and methods of classes that are more than values."""
    for name in getattr(room, "__all__", ()):
        item = getattr(room, name)
        if inspect.isfunction(inspect.unwrap(item)):  # also one behind a cache
            yield name, inspect.unwrap(item)
        elif inspect.isclass(item) and not issubclass(item, BaseException | BaseModel) and not is_dataclass(item):
            if getattr(item, "_is_protocol", False) or issubclass(item, Base):
                continue
            for method, found in vars(item).items():
                plain = found.__func__ if isinstance(found, classmethod | staticmethod) else found
                if inspect.isfunction(plain) and (not method.startswith("_") or method == "__init__"):
                    yield name if method == "__init__" else f"{name}.{method}", plain


def found() -> dict[str, tuple[str, ...]]:
    """The text parameters of each callable, by `room callable`."""
    every: dict[str, tuple[str, ...]] = {}
    for package in (core.database, core.trading):
        for part in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            room = importlib.import_module(part.name)
            for name, function in callables(room):
                if parameters := text_parameters(function):
                    every[f"{part.name.removeprefix('core.')} {name}"] = parameters
    return every


# How each is called


@dataclass
class Ground:
    """What the calls are made on."""

    manager: DatabaseManager
    url: str
    folder: Path
    ring: KeyRing
    cache: InstrumentCache
    marks: dict[str, Any]
    """Of those who stand by, and of the one who moves."""
    bystanders: int
    session: AsyncSession | None = None


Shape = Callable[[str], Any]


def as_is(given: str) -> Any:
    return given


def as_list(given: str) -> Any:
    return [given]


def as_bytes(given: str) -> Any:
    return given.encode("utf-8", "surrogatepass")


def as_path(given: str) -> Any:
    return Path("below") / given


@dataclass(frozen=True)
class Recipe:
    """One callable: `call(ground, **values)` with the hostile value for one parameter and `base` for the others."""

    base: Mapping[str, Any] = field(default_factory=dict[str, Any])
    shapes: Mapping[str, Shape | tuple[Shape, ...]] = field(default_factory=dict[str, Any])
    """How a text becomes a value of the parameter, where not as it is."""
    call: Callable[..., Any] | None = None
    """In place of the function itself, which is given session, manager, engine, ... as it names them."""
    stored: Mapping[str, str] = field(default_factory=dict[str, str])
    """A query in the same transaction for what was stored of the parameter: the text as it was given, of some of the texts."""
    finds_nothing: tuple[str, ...] = ()
    """Parameters of which no text is that of a row."""
    undo: Callable[[Ground], Any] | None = None
    """For what owns its transactions: takes away what one call has left."""
    raises: tuple[type[Exception], ...] = ()
    """Documented errors of Python's own."""
    apart: Mapping[str, str] = field(default_factory=dict[str, str])
    """Parameters that are left out, with the reason."""
    slow: bool = False
    """Only some of the texts."""


KITE = (
    "instrument_token,exchange_token,tradingsymbol,name,last_price,expiry,strike,tick_size,lot_size,instrument_type,"
    "segment,exchange\n"
)
SNAPSHOTS = "snapshot_time,positions,cash,realized_pnl,unrealized_pnl,total_pnl,equity\n"
PERIOD = {"start": NOON - timedelta(days=3), "end": NOON + timedelta(days=3)}
SQL = "is SQL, the caller's own"
SEAL = {"table": "t", "column": "c", "row_key": "r"}
PASSWORD = "correct horse battery"
BEARERS: dict[str, Any] = {"bearer": (as_is, lambda given: f"panda_session_{given}")}


def a_cell(given: str) -> Any:
    quoted = given.replace('"', '""')
    return f'{KITE}5633,22,"{quoted}","{quoted}",1,,0,0.05,1,EQ,NSE,NSE\n'.encode("utf-8", "surrogatepass")


def a_snapshot_cell(given: str) -> Any:
    quoted = given.replace('"', '""')
    return f'{SNAPSHOTS}2026-11-20T12:00:00Z,"{quoted}",0,0,0,0,"{quoted}"\n'.encode("utf-8", "surrogatepass")


async def _metrics(ground: Ground, database: str) -> bytes:
    registry = CollectorRegistry()
    async with DatabaseMetrics(ground.manager, registry=registry, database=database):
        return generate_latest(registry)


async def _listener(ground: Ground, channels: list[str]) -> None:
    async with Listener(ground.manager.engine, channels):
        pass


async def _session_of(ground: Ground, broker: str) -> None:
    async with ground.manager.get_session(broker=broker) as session:
        await session.execute(text("SELECT 1"))


async def _transaction_of(ground: Ground, broker: str) -> None:
    async with ground.manager.transaction(broker=broker) as session:
        await session.execute(text("SELECT 1"))


async def _run_of(ground: Ground, broker: str) -> None:
    await ground.manager.run_transaction(lambda session: session.execute(text("SELECT 1")), broker=broker)


async def _manager(ground: Ground, db_url: str | None = None, application_name: str = "x") -> None:
    limits = Timeouts(connect=0.5)
    async with DatabaseManager(
        db_url or ground.url, "testing", "migrations_only", application_name=application_name, timeouts=limits
    ):
        pass


async def _cache(ground: Ground, source: str) -> None:
    async with InstrumentCache(ground.manager, source=source):
        pass


async def _staged(ground: Ground, **values: Any) -> Any:
    from core.database import bulk

    staged = values.pop("staged", None) or await bulk.stage(ground.session, {"id": "bigint", "username": "text"})  # type: ignore[arg-type]
    return await bulk.merge(ground.session, Base.metadata.tables["users"], staged, **values)  # type: ignore[arg-type]


async def _passwords_of(ground: Ground, hashed: str) -> None:
    accounts.can_verify(hashed)
    assert not await accounts.verify_password(User(username="x", hashed_password=hashed), PASSWORD)


async def _verified(ground: Ground, password: str) -> None:
    assert ground.session is not None
    assert not await accounts.verify_password(await accounts.find(ground.session, "mover"), password)


async def _registered(ground: Ground, username: str = "other", password: str = PASSWORD, **values: Any) -> None:
    assert ground.session is not None
    user = await accounts.register(ground.session, username, password, **values)
    stored = await ground.session.scalar(text("SELECT username FROM users WHERE id = :id"), {"id": user.id})
    assert stored == folded(username)
    assert await accounts.verify_password(user, password)


async def _authenticated(ground: Ground, **values: Any) -> None:
    given: dict[str, Any] = {"username": "mover", "password": PASSWORD, **values}
    await accounts.authenticate(ground.manager, **given)


async def _password_changed(ground: Ground, **values: Any) -> None:
    given: dict[str, Any] = {"username": "mover", "old": PASSWORD, "new": PASSWORD[::-1], **values}
    assert await accounts.verify_password(await accounts.change_password(ground.manager, **given), given["new"])


async def _password_set(ground: Ground, **values: Any) -> None:
    given: dict[str, Any] = {"user": "mover", "new": PASSWORD[::-1], "actor": "root", **values}
    assert await accounts.verify_password(await accounts.set_password(ground.manager, **given), given["new"])


async def _enabled(ground: Ground, **values: Any) -> None:
    await accounts.disable(ground.manager, "mover", actor="root")
    await accounts.enable(ground.manager, **{"user": "mover", "actor": "root", **values})


async def _mover_as_before(ground: Ground) -> None:
    """Without the failures that were counted too, so that nobody has to wait."""
    async with ground.manager.transaction() as session:
        await session.execute(
            text("""
                WITH events AS (DELETE FROM auth_events WHERE event_id > :last),
                     delays AS (DELETE FROM login_delays WHERE bucket <> :theirs),
                     sources AS (DELETE FROM known_sources WHERE user_id = 3)
                UPDATE users SET hashed_password = :hashed, is_active = true, updated_at = created_at WHERE id = 3"""),
            ground.marks,
        )


async def _opened(ground: Ground, **values: Any) -> None:
    assert ground.session is not None
    given: dict[str, Any] = {"user_id": 1, "broker": "paper", **values}
    made = await sessions.open(ground.session, ring=ground.ring, **given)
    assert sessions.credentials_of(made.session, ring=ground.ring) == values.get("credentials")


async def _renewed(ground: Ground, session_id: str = "own", credentials: str = "v") -> None:
    assert ground.session is not None
    renewed = await sessions.renew(ground.session, session_id, credentials=credentials, ring=ground.ring)
    assert sessions.credentials_of(renewed, ring=ground.ring) == credentials


class Momentum(BaseModel):
    model_config = ConfigDict(extra="forbid")
    side: str = "long"

    @field_validator("side")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ("long", "short"):
            raise ValueError(f"{value} is neither long nor short")
        return value


async def _ruled(ground: Ground, rules: strategies.StrategyRules) -> None:
    assert ground.session is not None and repr(rules).isprintable()
    await strategies.define(
        ground.session, strategy_id="new", name="New", strategy_type="other", active_brokers=["kite"], rules=rules
    )


def _registered_twice(ground: Ground, strategy_type: str) -> None:
    rules = strategies.StrategyRules()
    rules.register(strategy_type, config=Momentum)
    rules.register(strategy_type)


def _judged(ground: Ground, state: dict[str, Any]) -> None:
    rules = strategies.StrategyRules({"momentum": strategies.StrategyModels(Momentum, Momentum)}, brokers=["paper"])
    documents = {"config": StrategyConfig, "parameters": StrategyParameters}
    made = {field: kind.model_validate(state.get(field, {})) for field, kind in documents.items()}
    whole = {"strategy_type": "momentum", "active_brokers": [], **state, **made}
    if problems := rules.problems(whole)[1]:
        raise InvalidInput("; ".join(map(str, problems)))


async def _rolled_back(ground: Ground, strategy_id: str = "s1", **values: Any) -> None:
    """Twice, of which the second is told who has done the first, and why."""
    assert ground.session is not None
    for _ in range(2):
        await strategies.rollback(ground.session, strategy_id, to_version=1, expected_version=2, **values)


async def _watched(ground: Ground, after: str) -> None:
    async with contextlib.aclosing(strategies.watch(ground.manager, after=after)) as feed:
        await anext(feed)


def _document(field: str) -> Shape:
    return lambda given: [{"strategy_id": "new", "name": "New", field: given}]


def _last(column: str, strategy_id: str = "new") -> str:
    return f"SELECT {column} FROM strategy_revisions WHERE strategy_id = '{strategy_id}' ORDER BY version DESC LIMIT 1"


def _event(kind: str) -> str:
    return f"SELECT coalesce(source, actor) FROM auth_events WHERE kind = '{kind}' ORDER BY event_id DESC LIMIT 1"


YAML: tuple[Shape, ...] = (
    as_is,
    as_bytes,
    lambda given: f"{json.dumps(given)}: 1",
    lambda given: f"strategies: [{{strategy_id: {given}}}]",
    lambda given: json.dumps({"strategies": [{"strategy_id": given, given: 1}]}),
    lambda given: f"strategies: [*{given}]",
    lambda given: f"strategies: !{given} []",
    lambda given: f"strategies: [{{{json.dumps(given)}: 1, {json.dumps(given)}: 2}}]",
)


def _points() -> list[Any]:
    return [make_snapshot(portfolio_id="p1", broker="paper", snapshot_time=NOON + timedelta(days=n)) for n in range(3)]


RECIPES: dict[str, Recipe] = {
    "database.activity explain": Recipe(),
    "database.backup backup": Recipe(
        {"db_url": "postgresql://u@127.0.0.1:1/d", "file": Path("made.backup")},
        {"file": as_path, "programs": as_path},
        slow=True,
    ),
    "database.backup restore": Recipe(
        {"db_url": "postgresql://u@127.0.0.1:1/d", "file": Path("none.backup")},
        {"file": as_path, "programs": as_path},
        slow=True,
    ),
    "database.backup verify_backup": Recipe(
        {"file": Path("none.backup")}, {"file": as_path, "scratch": as_path, "programs": as_path}, slow=True
    ),
    "database.bulk copy_csv": Recipe(
        {"table": "users", "source": b"u1,h\n", "columns": ["username", "hashed_password"]},
        {"source": (as_bytes, as_path), "columns": as_list},
        raises=(OSError, ValueError),
    ),
    "database.bulk copy_out": Recipe({"query": "SELECT 1", "output": lambda data: None}, apart={"query": SQL}),
    "database.bulk copy_records": Recipe(
        {"table": "users", "records": [("u1", "h")], "columns": ["username", "hashed_password"]}, {"columns": as_list}
    ),
    "database.bulk merge": Recipe(
        {"key": ["id"], "columns": ["username"]},
        {"key": as_list, "columns": as_list},
        _staged,
        apart={"untouched": "maps columns to SQL expressions, the caller's own"},
    ),
    "database.bulk stage": Recipe({"columns": {"a": "text"}}, {"columns": lambda given: {given: "text"}}),
    "database.connection DatabaseManager": Recipe(call=_manager, slow=True),
    "database.connection DatabaseManager.get_session": Recipe(call=_session_of),
    "database.connection DatabaseManager.transaction": Recipe(call=_transaction_of),
    "database.connection DatabaseManager.run_transaction": Recipe(call=_run_of),
    "database.doctor examine": Recipe({"url": "postgresql://u@127.0.0.1:1/d", "limit": 0.5}, slow=True),
    "database.embedded is_embedded_url": Recipe(),
    "database.embedded EmbeddedServer": Recipe(
        {"directory": Path("server")},
        {"directory": as_path},
        apart={"settings": "are checked by the server at its start"},
    ),
    "database.embedded EmbeddedServer.from_url": Recipe(
        {"url": "embedded:"},
        {"url": (as_is, lambda given: f"embedded:{given}")},
        lambda ground, url: importlib.import_module("core.database.embedded").EmbeddedServer.from_url(url),
        apart={"settings": "are checked by the server at its start"},
    ),
    "database.encryption is_guessed_key": Recipe(shapes={"key": as_bytes}),
    "database.encryption KeyRing": Recipe(
        {"keys": {"k": bytes(32)}, "active": "k"},
        {"keys": (lambda given: {given: bytes(32)}, lambda given: {"k": as_bytes(given)})},
        lambda ground, keys, active: KeyRing(keys, active=active),
    ),
    "database.encryption KeyRing.parse": Recipe(call=lambda ground, text: KeyRing.parse(text)),
    "database.encryption KeyRing.seal": Recipe(
        {"value": "v", **SEAL}, {"value": (as_is, as_bytes)}, lambda ground, **values: ground.ring.seal(**values)
    ),
    "database.encryption KeyRing.open": Recipe(
        {"envelope": b"", **SEAL}, {"envelope": as_bytes}, lambda ground, **values: ground.ring.open(**values)
    ),
    "database.encryption KeyRing.open_text": Recipe(
        {"envelope": b"", **SEAL}, {"envelope": as_bytes}, lambda ground, **values: ground.ring.open_text(**values)
    ),
    "database.encryption KeyRing.needs_rotation": Recipe(
        {}, {"envelope": as_bytes}, lambda ground, envelope: ground.ring.needs_rotation(envelope)
    ),
    "database.encryption KeyRing.check_canary": Recipe(
        {}, {"envelope": as_bytes}, lambda ground, envelope: ground.ring.check_canary(envelope)
    ),
    "database.metrics DatabaseMetrics": Recipe(call=_metrics),
    "database.monitoring get_logger": Recipe(
        call=lambda ground, name: (
            importlib.import_module("core.database.monitoring").get_logger("core." + name[:99]).info("x")
        )
    ),
    "database.monitoring operation": Recipe(),
    "database.monitoring sql_tokens": Recipe(
        call=lambda ground, sql: list(importlib.import_module("core.database.monitoring").sql_tokens(sql))
    ),
    "database.monitoring without_literals": Recipe(),
    "database.notify notify": Recipe({"channel": "c"}),
    "database.notify Listener": Recipe({}, {"channels": as_list}, _listener),
    "database.records checked_username": Recipe(),
    "database.roles plan": Recipe(),
    "database.roles apply": Recipe(),
    "database.schema catalog": Recipe(),
    "database.schema downgrade": Recipe({"target": "0001"}, apart={"versions": "below"}),
    # The folder of the migrations and the linter's program are a developer's: what the system says of them passes.
    "database.schema history": Recipe(shapes={"versions": as_path}, raises=(OSError, ValueError)),
    "database.schema lint": Recipe(
        {"revisions": ["0002"]},
        {"revisions": as_list, "versions": as_path, "squawk": as_path},
        raises=(OSError, ValueError),
        slow=True,
    ),
    "database.schema new": Recipe(
        {"message": "m"}, {"versions": as_path}, raises=(OSError, ValueError), apart={"message": "below"}
    ),
    "database.schema preview": Recipe(apart={"versions": "below"}, slow=True),
    "database.schema require_writable": Recipe({"message": "m"}, {"versions": as_path}, raises=(OSError, ValueError)),
    "database.schema upgrade": Recipe(apart={"versions": "below"}),
    "database.types folded": Recipe(),
    "database.types round_money": Recipe({"value": Decimal(1)}),
    "database.types strict_json_loads": Recipe(shapes={"text": (as_is, as_bytes)}, raises=(ValueError, RecursionError)),
    "trading.adoption adopt": Recipe({"dry_run": True}),
    "trading.instruments InstrumentCache": Recipe(call=_cache),
    "trading.instruments InstrumentCache.by_symbol": Recipe(
        {"exchange": "NSE", "trading_symbol": "INFY"}, call=lambda ground, **values: ground.cache.by_symbol(**values)
    ),
    "trading.instruments as_of": Recipe(
        {"instrument": "NSE:INFY", "day": DAY},
        {"instrument": (as_is, lambda given: f"NSE:{given}", lambda given: f"zerodha/{given}")},
    ),
    "trading.instruments by_key": Recipe({"source": "zerodha", "broker_key": "1"}),
    "trading.instruments by_symbol": Recipe({"exchange": "NSE", "trading_symbol": "INFY"}),
    "trading.instruments diff_files": Recipe(
        {"before": KITE.encode(), "after": KITE.encode()},
        {name: (as_is, as_bytes, a_cell) for name in ("before", "after")}
        | {"mapping": (as_is, lambda given: {given: given})},
    ),
    "trading.instruments expiries": Recipe({"underlying": "NIFTY"}),
    "trading.instruments frame": Recipe(shapes={"columns": as_list}),
    "trading.instruments history": Recipe(
        shapes={"instrument": (as_is, lambda given: f"NSE:{given}", lambda given: f"zerodha/{given}")}
    ),
    "trading.instruments load": Recipe(
        {"file": a_cell("ACC"), "trading_date": DAY, "dry_run": True, "allow_shrink": True},
        {"file": (as_is, as_path, as_bytes, a_cell), "mapping": (as_is, as_path, lambda given: {"format": given})},
    ),
    "trading.instruments load_mapping": Recipe(shapes={"mapping": (as_is, as_path, lambda given: {"format": given})}),
    "trading.instruments loads": Recipe(),
    "trading.instruments option_chain": Recipe({"underlying": "NIFTY", "expiry": DAY}),
    "trading.instruments search": Recipe({"text": "INFY"}),
    "trading.portfolios compare": Recipe(PERIOD, {"portfolio_ids": as_list, "flows": lambda given: {given: []}}),
    "trading.portfolios create": Recipe(
        {"portfolio_id": "new", "broker": "paper", "currency": "INR", "name": "New"},
        stored={
            "portfolio_id": "SELECT portfolio_id FROM portfolios WHERE name = 'New'",
            "name": "SELECT name FROM portfolios WHERE portfolio_id = 'new'",
        },
    ),
    "trading.portfolios daily_closes": Recipe({"portfolio_id": "p1", **PERIOD}),
    "trading.portfolios day_of": Recipe({"moment": NOON}),
    "trading.portfolios day_start": Recipe({"day": DAY}),
    "trading.portfolios equity_curve": Recipe({"portfolio_id": "p1", **PERIOD}),
    "trading.portfolios export_snapshots": Recipe(
        {"path": "out.csv", "overwrite": True},
        {"path": (as_is, lambda given: f"below/{given}.csv"), "portfolio_ids": (as_is, as_list)},
    ),
    "trading.portfolios find": Recipe(),
    "trading.portfolios get": Recipe(),
    "trading.portfolios import_snapshots": Recipe(
        {"file": a_snapshot_cell("0"), "portfolio_id": "p1", "broker": "paper", "dry_run": True},
        {
            "file": (as_is, as_path, as_bytes, a_snapshot_cell),
            "columns": lambda given: {given: "equity", "cash": given},
        },
    ),
    "trading.portfolios latest": Recipe(shapes={"portfolio_ids": as_list}),
    "trading.portfolios plot_equity": Recipe({"points": [], "title": "t", "currency": "INR"}, slow=True),
    "trading.portfolios portfolio_summary": Recipe({"portfolio_id": "p1", **PERIOD}),
    "trading.portfolios recorded_period": Recipe(shapes={"portfolio_ids": as_list}),
    "trading.portfolios returns": Recipe({"points": _points()}),
    "trading.portfolios snapshot_frame": Recipe(shapes={"portfolio_ids": (as_is, as_list)}),
    "trading.portfolios summary": Recipe({"points": _points()}),
    "trading.accounts authenticate": Recipe(
        call=_authenticated, stored={"source": _event("login")}, undo=_mover_as_before
    ),
    "trading.accounts can_verify": Recipe(
        shapes={"hashed": (as_is, lambda given: f"$argon2id${given}", lambda given: f"$2b$12${given}")},
        call=_passwords_of,
    ),
    "trading.accounts change_password": Recipe(
        call=_password_changed, stored={"source": _event("password_changed")}, undo=_mover_as_before
    ),
    "trading.accounts disable": Recipe(
        {"user": "mover", "actor": "root"}, stored={"actor": _event("disabled")}, undo=_mover_as_before
    ),
    "trading.accounts enable": Recipe(call=_enabled, stored={"actor": _event("enabled")}, undo=_mover_as_before),
    "trading.accounts events": Recipe(finds_nothing=("user",)),
    "trading.accounts find": Recipe(finds_nothing=("user",)),
    "trading.accounts register": Recipe(call=_registered, stored={"actor": _event("registered")}),
    "trading.accounts remember_device": Recipe({"user_id": 3}),
    "trading.accounts set_password": Recipe(
        call=_password_set, stored={"actor": _event("password_reset")}, undo=_mover_as_before
    ),
    "trading.accounts source_of": Recipe(),
    "trading.accounts unlock": Recipe(
        {"user": "mover", "actor": "root"}, stored={"actor": _event("unlocked")}, undo=_mover_as_before
    ),
    "trading.accounts verify_password": Recipe(call=_verified),
    "trading.accounts waits": Recipe(finds_nothing=("username",)),
    "trading.sessions active": Recipe({"user_id": 1, "broker": "paper"}, finds_nothing=("broker",)),
    "trading.sessions end": Recipe(shapes=BEARERS, finds_nothing=("session_id", "bearer")),
    "trading.sessions find": Recipe(finds_nothing=("broker",)),
    "trading.sessions get": Recipe(finds_nothing=("session_id",)),
    "trading.sessions open": Recipe(
        shapes={"session_data": lambda given: {given: given}},
        call=_opened,
        stored={"session_data": "SELECT jsonb_object_keys(session_data) FROM trading_sessions"},
    ),
    "trading.sessions renew": Recipe(call=_renewed),
    "trading.sessions resume": Recipe(shapes=BEARERS, finds_nothing=("bearer",)),
    "trading.sessions revoke": Recipe(shapes=BEARERS, finds_nothing=("session_id", "bearer")),
    "trading.sessions revoke_all": Recipe({"user_id": 1}, finds_nothing=("broker",)),
    "trading.sessions seal_credentials": Recipe({"credentials": "v", "session_id": "own"}),
    "trading.sessions touch": Recipe(shapes=BEARERS, finds_nothing=("session_id", "bearer")),
    "trading.strategies StrategyRules": Recipe(
        shapes={"types": lambda given: {given: strategies.StrategyModels()}, "brokers": as_list},
        call=lambda ground, **values: _ruled(ground, strategies.StrategyRules(**values)),
    ),
    "trading.strategies StrategyRules.problems": Recipe(
        shapes={
            "state": (
                lambda given: {"strategy_type": given},
                lambda given: {"active_brokers": [given]},
                lambda given: {"config": {given: 1}},
                lambda given: {"parameters": {"side": given}},
            )
        },
        call=_judged,
        raises=(ValueError,),
    ),
    "trading.strategies StrategyRules.register": Recipe(call=_registered_twice),
    "trading.strategies StrategyRules.with_brokers": Recipe(
        shapes={"brokers": as_list},
        call=lambda ground, brokers: _ruled(ground, strategies.StrategyRules().with_brokers(brokers)),
    ),
    "trading.strategies apply": Recipe(
        {"documents": [{"strategy_id": "new", "name": "New"}]},
        {
            "documents": (
                *map(_document, ("name", "strategy_type", "version", "config")),
                lambda given: [{"strategy_id": given}],
                lambda given: [{"strategy_id": "new", given: 1}],
                lambda given: [{"strategy_id": "s1", "active_brokers": [given]}],
                lambda given: [{"strategy_id": "s1", "config": {given: given}}],
                lambda given: [{"strategy_id": given}, {"strategy_id": given}],
            )
        },
        stored={name: _last(name) for name in ("changed_by", "note")},
    ),
    "trading.strategies define": Recipe(
        {"strategy_id": "new", "name": "New"},
        {name: lambda given: {given: given} for name in ("config", "parameters")} | {"active_brokers": as_list},
        stored={name: _last(name) for name in ("name", "strategy_type", "changed_by", "note")}
        | {name: _last(f"jsonb_object_keys({name})") for name in ("config", "parameters")}
        | {"strategy_id": "SELECT strategy_id FROM strategies WHERE name = 'New'"},
    ),
    "trading.strategies diff": Recipe({"strategy_id": "s1", "from_version": 1, "to_version": 2}),
    "trading.strategies disable": Recipe(
        {"strategy_id": "s1"}, stored={name: _last(name, "s1") for name in ("changed_by", "note")}
    ),
    "trading.strategies disable_all": Recipe(
        finds_nothing=("broker",),
        apart=dict.fromkeys(("changed_by", "note"), "go the way of `disable`'s; it is to stop the bystander too"),
    ),
    "trading.strategies documents_of": Recipe(
        shapes={"strategy_ids": (as_is, as_list)}, finds_nothing=("strategy_ids",)
    ),
    "trading.strategies enable": Recipe({"strategy_id": "s1"}),
    "trading.strategies get": Recipe(finds_nothing=("strategy_id",)),
    "trading.strategies history": Recipe(finds_nothing=("strategy_id",)),
    "trading.strategies listing": Recipe(finds_nothing=("broker",)),
    "trading.strategies read_documents": Recipe({"text": "x"}, {"text": YAML}),
    "trading.strategies revise": Recipe(
        {"strategy_id": "s1", "expected_version": 2, "name": "Renamed"},
        {name: lambda given: {given: given} for name in ("config", "parameters")} | {"active_brokers": as_list},
        stored={name: _last(name, "s1") for name in ("name", "strategy_type", "changed_by", "note")}
        | {name: _last(f"jsonb_object_keys({name})", "s1") for name in ("config", "parameters")},
    ),
    "trading.strategies rollback": Recipe(call=_rolled_back),
    "trading.strategies watch": Recipe(call=_watched),
}

ELSEWHERE: dict[str, str] = {
    "database.backup differences": "labels of the lines that it returns",
    "database.driver DriverConnection.execute": SQL,
    "database.driver DriverConnection.executemany": SQL,
    "database.driver DriverConnection.prepare": SQL,
    "database.driver CommittingConnection.fetch": SQL,
    "database.driver listen": "what a Listener, which is tried, calls",
    "database.health check_health": "names and warnings of our own, put into its report",
    "database.health unhealthy": "put into its report",
    "database.health with_parts": "put into its report",
    "database.metrics DatabaseMetrics.fill": "the label, tried with the constructor",
    "database.metrics Exporter": "the label, tried with DatabaseMetrics",
    "database.metrics Exporter.fill": "the label, tried with DatabaseMetrics",
    "database.metrics Families.gauge": "names of metrics in code",
    "database.metrics Families.counter": "names of metrics in code",
    "database.metrics Families.histogram": "names of metrics in code",
    "database.monitoring ConnectionMonitor.statement": "statements as they were sent; tests/test_monitoring.py",
    "database.monitoring ConnectionMonitor.begun": "statements as they were sent",
    "database.monitoring ConnectionMonitor.refused": "names of our classes",
    "database.monitoring Hook": "the name of a hook in code",
    "database.monitoring PoolMonitor": "the name of a pool in code",
    "database.monitoring QueryMonitor.record": "statements as they were sent",
    "database.monitoring QueryMonitor.pool": "the name of a pool in code",
    "database.monitoring QueryMonitor.new_tally": "statements as they were sent",
    "database.monitoring QueryMonitor.session_closed": "a place in code",
    "database.monitoring QueryMonitor.retried": "an id of our making",
    "database.monitoring Tally": "statements as they were sent",
    "database.connection PandaSession.refresh": "names of attributes; SQLAlchemy's own, which looks them up",
    "database.schema adopt": "the folder of the migrations, tried with history",
    "database.schema create_all": "the folder of the migrations, tried with history",
    "database.schema differences": "labels of the lines that it returns",
    "database.schema draft": "the folder of the migrations, tried with history",
    "database.schema drift": "the folder of the migrations, tried with history",
    "database.schema inspect": "the folder of the migrations, tried with history",
    "database.schema plan": "the folder of the migrations, tried with history",
    "database.schema prepare": "the folder of the migrations, tried with history",
    "database.schema verify": "the folder of the migrations, tried with history",
    "database.types folding_sql": SQL,
    "trading.accounts LoginMetrics.fill": "the label, tried with DatabaseMetrics",
    "trading.instruments InstrumentCache.fill": "the label, tried with DatabaseMetrics",
    "trading.sessions SessionWatch.fill": "the label, tried with DatabaseMetrics",
}


def test_whatever_takes_text_has_a_recipe_or_a_reason() -> None:
    every = found()
    assert len(every) > 130, "the walk finds what it is for"
    missing = [name for name in every if name not in RECIPES and name not in ELSEWHERE]
    assert missing == []
    assert {*RECIPES, *ELSEWHERE} - set(every) == set()


# The calls


class Heard(logging.Handler):
    """What our loggers say, with every extra, as text."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(f"{record.getMessage()} {vars(record)!s}" if record.name.startswith("core") else "")


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a hash costs is the subject of other tests."""
    _, *others = _passwords._hasher.hashers
    quick = Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr(_passwords, "_hasher", PasswordHash((quick, *others)))
    _passwords._nobody.cache_clear()
    _passwords._taken.clear()
    yield
    _passwords._nobody.cache_clear()
    _passwords._taken.clear()


@pytest.fixture
async def ground(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ground]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    every_statement = MonitoringOptions(slow_query=0.000_001, slow_bulk=0.000_001)
    ring = KeyRing.parse("k1:" + KeyRing.generate_key())
    async with DatabaseManager(database_url, monitoring=every_statement) as manager:
        async with manager.transaction() as session:
            await portfolios.ensure_partitions(session, NOON, NOON)
            session.add(make_instrument())
            for strategy_id in ("s1", "other"):
                await strategies.define(session, strategy_id=strategy_id, name=strategy_id)
                await strategies.revise(session, strategy_id, expected_version=1, parameters={"lookback": 20})
            session.add(make_portfolio(portfolio_id="p1", broker="paper"))
            await session.flush()
            session.add(make_snapshot(portfolio_id="p1", broker="paper", snapshot_time=NOON))
        marks = await _people(manager)
        async with manager.get_session() as session:
            bystanders = await session.scalar(_BYSTANDERS, marks)
        assert bystanders is not None
        async with InstrumentCache(manager) as cache:
            yield Ground(manager, database_url, tmp_path, ring, cache, marks, bystanders)


async def _people(manager: DatabaseManager) -> dict[str, Any]:
    """A trader and a bystander with sessions, of whom the second has failed to log in once; and one who moves."""
    async with manager.transaction() as session:
        made = [await accounts.register(session, name, PASSWORD) for name in ("trader", "bystander", "mover")]
        assert [user.id for user in made] == [1, 2, 3]
        held = {"own": (1, "paper"), "kite": (1, "kite"), "theirs": (2, "paper")}
        for session_id, (user_id, broker) in held.items():
            session.add(TradingSession(session_id=session_id, user_id=user_id, broker=broker))
    await accounts.authenticate(manager, "bystander", PASSWORD, source="desk")
    with pytest.raises(accounts.InvalidCredentials):
        await accounts.authenticate(manager, "bystander", PASSWORD[1:])
    async with manager.get_session() as session:
        marks = await session.execute(
            text("""
                SELECT (SELECT max(event_id) FROM auth_events) AS last, (SELECT bucket FROM login_delays) AS theirs,
                       hashed_password AS hashed FROM users WHERE id = 3""")
        )
        return dict(marks.one()._mapping)


async def shape_of(manager: DatabaseManager) -> dict[str, Any]:
    """Every relation, and the rows of every table by what is in them."""
    async with manager.get_session() as session:
        names = (
            await session.scalars(text("SELECT oid::regclass::text FROM pg_class WHERE oid > 16383 ORDER BY 1"))
        ).all()
        held = {
            name: await session.scalar(text(f"SELECT sum(hashtextextended(t::text, 0)) FROM {name} AS t"))
            for name in sorted(Base.metadata.tables)
        }
        # The server's roles are everybody's, and other tests make some at the same time: of a plain name.
        odd = "SELECT count(*) FROM pg_roles WHERE rolname !~ '^[a-z_][a-z0-9_]*$'"
        roles = await session.scalar(text(odd))
        return {"relations": names, "roles": roles, **held}


_BYSTANDERS = text("""
    SELECT sum(hashtextextended(held, 0)) FROM (
        SELECT t::text AS held FROM users AS t WHERE id = 2
        UNION ALL SELECT t::text FROM trading_sessions AS t WHERE session_id IN ('kite', 'theirs')
        UNION ALL SELECT t::text FROM strategies AS t WHERE strategy_id = 'other'
        UNION ALL SELECT t::text FROM strategy_revisions AS t WHERE strategy_id = 'other'
        UNION ALL SELECT t::text FROM strategy_revisions AS t WHERE strategy_id = 's1' AND version < 3
        UNION ALL SELECT t::text FROM auth_events AS t WHERE user_id = 2
        UNION ALL SELECT t::text FROM known_sources AS t WHERE user_id = 2
        UNION ALL SELECT t::text FROM login_delays AS t WHERE bucket = :theirs
        UNION ALL SELECT t::text FROM portfolios AS t WHERE portfolio_id = 'p1'
        UNION ALL SELECT t::text FROM portfolio_snapshots AS t
        UNION ALL SELECT t::text FROM instruments AS t) AS every
""")
"""What no call is about, as its own transaction sees it."""


def unseen(told: str) -> list[str]:
    return [] if told.isprintable() else [char for char in told if unicodedata.category(char) in UNSEEN]


def function_of(name: str) -> Any:
    room, _, path = name.partition(" ")
    item: Any = importlib.import_module(f"core.{room}")
    for part in path.split("."):
        item = getattr(item, part)
    return item


async def call(ground: Ground, name: str, recipe: Recipe, values: dict[str, Any]) -> Any:
    if recipe.call is not None:
        result = recipe.call(ground, **values)
    else:
        function = function_of(name)
        given = {
            "session": ground.session, "source": ground.session, "manager": ground.manager, "target": ground.manager,
            "engine": ground.manager.engine, "ring": ground.ring,
        }  # fmt: skip
        parameters = inspect.signature(function).parameters
        if "connection" in parameters:
            assert ground.session is not None
            values = {"connection": await ground.session.connection(), **values}
        hints = hints_of(function) if parameters else {}
        ours = {key: item for key, item in given.items() if key in parameters and not takes_text(hints.get(key))}
        result = function(**(ours | values))
    return await result if inspect.isawaitable(result) else result


FEW = ("quote", "NUL", "line breaks", "bidi", "lone surrogate", "traversal", "URL", "empty", "1 MB")


async def tried(ground: Ground, name: str, recipe: Recipe, parameter: str, value: Any) -> tuple[Any, str]:
    """What came of one call: a complaint, or nothing; and what was stored."""
    started = time.process_time()  # of ours, not of a machine that stands still
    stored, said = None, ""
    async with ground.manager.get_session() as session:
        ground.session = session
        try:
            result = await call(ground, name, recipe, {**recipe.base, parameter: value})
            said = "" if inspect.isgenerator(result) else repr(result)[:0]
            if parameter in recipe.finds_nothing and result:
                said = f"it found {result!r}"
            if parameter in recipe.stored:
                await session.flush()
                stored = await session.scalar(text(recipe.stored[parameter]))
            if name.startswith("trading.") and await session.scalar(_BYSTANDERS, ground.marks) != ground.bystanders:
                said = "it changed what it is not about"
        except PandaDatabaseError as error:
            said = complaint_of(error)
        except recipe.raises:
            pass
        except Exception as error:
            said = f"{type(error).__name__}: {str(error)[:200]!r}"
        finally:
            if recipe.undo is not None:
                await recipe.undo(ground)
    if (took := time.process_time() - started) > 5:
        said = said or f"it took {took:.1f} s"
    return stored, said


def complaint_of(error: PandaDatabaseError) -> str:
    """What is wrong with it as an error, and as what a client is told of it."""
    for words in (str(error), *problem_of(error).to_json().values()):
        if unseen(str(words)):
            return f"an error that is not printable: {str(words)[:200]!r}"
        if len(str(words)) > LONGEST_ERROR:
            return f"an error of {len(str(words)):,} characters, {type(error).__name__}"
    return ""


def rooms() -> list[str]:
    return sorted({name.partition(" ")[0] for name in RECIPES})


@pytest.mark.parametrize("room", rooms())
async def test_hostile_text_is_a_value_or_a_typed_error_and_changes_nothing_else(ground: Ground, room: str) -> None:
    heard = Heard()
    root = logging.getLogger()
    root.addHandler(heard)
    complaints: list[str] = []
    kept: set[tuple[str, str]] = set()
    before = await shape_of(ground.manager)
    try:
        for name, parameters in found().items():
            recipe = RECIPES.get(name)
            if recipe is None or name.partition(" ")[0] != room:
                continue
            for parameter in parameters:
                if parameter in recipe.apart:
                    continue
                shapes = recipe.shapes.get(parameter, as_is)
                for label, given in HOSTILE.items():
                    if recipe.slow and label not in FEW:
                        continue
                    for shape in shapes if isinstance(shapes, tuple) else (shapes,):
                        stored, said = await tried(ground, name, recipe, parameter, shape(given))
                        if said:
                            complaints.append(f"{name}({parameter}) of {label}: {said}")
                        if stored is not None:
                            kept.add((name, parameter))
                        if stored is not None and stored != given:
                            complaints.append(f"{name}({parameter}) of {label}: stored as {stored!r}")
            if (after := await shape_of(ground.manager)) != before:
                complaints.append(
                    f"{name} left something behind: {[key for key in after if after[key] != before[key]]}"
                )
                before = after
            complaints += [
                f"{name}({parameter}) has stored none" for parameter in recipe.stored if (name, parameter) not in kept
            ]
    finally:
        root.removeHandler(heard)
    assert not complaints, "\n".join(complaints)
    if room in ("trading.portfolios", "trading.instruments"):
        assert sum("slow query" in told for told in heard.told) > 500, "every statement is logged"
    for told in filter(None, heard.told):
        assert unseen(told) == []
        assert len(told) < 20_000
        # Names of tables and columns stand in the statement, which is logged without its literals.
        assert room == "database.bulk" or not any(given in told for given in HOSTILE.values() if given.strip()), told


FORGED = (
    "9" * 5_000,
    '{"kind": "opened", "session_id": ["s"], "user_id": 1, "broker": "b", "expires_at": null}',
    '{"kind": "opened", "session_id": "s", "user_id": 1, "broker": "b", "expires_at": "2026-11-30T00:00:00"}',
    '{"kind": "opened", "session_id": "s", "user_id": 1, "broker": "b", "expires_at": "0001-01-01T00:00:01+00:00"}',
    "[" * 3_000,
)


async def test_hostile_notifications_stop_no_feed(ground: Ground) -> None:
    """Whoever may connect may notify: what is no word of ours is passed over, and what comes after it is told."""
    payloads = [*FORGED, *(given for given in HOSTILE.values() if "\0" not in given and given.isprintable())]
    watching = sessions.SessionWatch(ground.manager, interval=60)
    async with ground.manager.get_session() as session:
        last = await strategies.last_change(session)
    async with watching as watch, contextlib.aclosing(strategies.watch(ground.manager, after=last)) as feed:
        change = asyncio.ensure_future(anext(feed))
        await asyncio.sleep(0.05)
        async with ground.manager.transaction() as session:
            for channel in (strategies.CHANNEL, SESSIONS_CHANNEL):
                for payload in payloads:
                    if len(payload) < 7_000:
                        await session.execute(
                            text("SELECT pg_notify(:channel, :payload)"), {"channel": channel, "payload": payload}
                        )
        await asyncio.sleep(0.2)
        async with ground.manager.transaction() as session:
            made = (await sessions.open(session, user_id=2, broker="kite")).session
            await strategies.disable(session, "other")
        async with asyncio.timeout(60):
            told = [event async for event in _until(watch, made.session_id)]
            assert (await change).strategy_id == "other"
        assert watch.health()["status"] == "fresh"
    # One forged word could be ours: it is told, and taken back by the round that finds no such session.
    assert told[0].session_id == "s" and {event.session_id for event in told} == {"s", made.session_id}


async def _until(watch: sessions.SessionWatch, session_id: str) -> AsyncIterator[sessions.SessionEvent]:
    async for event in watch:
        yield event
        if event.session_id == session_id:
            return
