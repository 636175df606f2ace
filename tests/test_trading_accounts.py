"""Users on a real server: registration, logins and their delays, what is recorded of them, what an administrator does."""

import asyncio
import contextlib
import hashlib
import pickle
import re
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Awaitable, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from pydantic import ValidationError
from sqlalchemy import event, func, select, text

from core.config.options import PoolOptions
from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput, PandaDatabaseError, PoolExhausted, StatementTimeout, UniqueViolation
from core.database.metrics import DatabaseMetrics
from core.database.models import AuthEvent, KnownSource, LoginDelay, TradingSession, User
from core.database.types import folded
from core.testing import make_trading_session
from core.trading import accounts
from core.trading.accounts import (
    InvalidCredentials,
    LoginDelays,
    TooManyAttempts,
    UserNotFound,
    _login,
    _outdated,
    _passwords,
)
from core.trading.accounts._delays import name_digest, reserve, source_bucket
from tests.cluster import debian

PASSWORD = "correct horse"
NEW = "battery staple"
AT_ONCE = LoginDelays(patience=0, first=600)  # however slow the machine, no wait ends by itself
HOME = "192.0.2.7"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Argon2id with little work: its cost is the subject of few tests."""
    monkeypatch.setattr(_passwords, "_hasher", PasswordHash((Argon2Hasher(time_cost=2, memory_cost=8, parallelism=1),)))
    _passwords._nobody.cache_clear()
    _passwords._taken.clear()
    yield
    _passwords._nobody.cache_clear()
    _passwords._taken.clear()


@pytest.fixture
def costly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2id as it is used."""
    monkeypatch.setattr(_passwords, "_hasher", PasswordHash((Argon2Hasher(),)))


async def register(manager: DatabaseManager, username: str = "trader", password: str = PASSWORD) -> User:
    async with manager.transaction() as session:
        return await accounts.register(session, username, password)


async def login(manager: DatabaseManager, username: str = "trader", password: str = PASSWORD, **options: Any) -> User:
    options.setdefault("delays", AT_ONCE)
    return await accounts.authenticate(manager, username, password, **options)


async def fails(manager: DatabaseManager, username: str = "trader", password: str = "wrong one", **options: Any) -> str:
    """The class of what a login that must fail raises."""
    with pytest.raises((InvalidCredentials, TooManyAttempts)) as caught:
        await login(manager, username, password, **options)
    return type(caught.value).__name__


async def outcome(attempt: Awaitable[Any]) -> str:
    try:
        await attempt
    except PandaDatabaseError as error:
        return type(error).__name__
    return "accepted"


async def recorded(manager: DatabaseManager, **options: Any) -> list[tuple[Any, ...]]:
    """Kind, reason, user, source and actor of the events, oldest first."""
    async with manager.get_session() as session:
        found = await accounts.events(session, **options)
    return [(each.kind, each.reason, each.user_id, each.source, each.actor) for each in reversed(found)]


async def kinds(manager: DatabaseManager, **options: Any) -> list[str]:
    return [each[0] for each in await recorded(manager, **options)]


async def hold_up(manager: DatabaseManager, bucket: bytes, *, failures: int = 1_000_000, wait: float = 900) -> None:
    """As it is while somebody fails on and on."""
    async with manager.transaction() as session:
        await session.merge(
            LoginDelay(
                bucket=bucket,
                failures=failures,
                failed_at=datetime.now(UTC),
                waits_until=datetime.now(UTC) + timedelta(seconds=wait),
            )
        )


async def run_sql(manager: DatabaseManager, statement: str) -> Any:
    async with manager.transaction() as session:
        return (
            (await session.execute(text(statement))).all()
            if statement.startswith("SELECT")
            else await session.execute(text(statement))
        )


# Registering and names


@pytest.mark.usefixtures("costly")
async def test_a_registered_user_can_log_in(manager: DatabaseManager):
    user = await register(manager)
    assert user.id > 0
    assert user.hashed_password.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    known = await login(manager)
    assert (known.id, known.hashed_password) == (user.id, user.hashed_password)
    assert await accounts.verify_password(user, PASSWORD)
    assert not await accounts.verify_password(user, PASSWORD + "!")
    assert await recorded(manager) == [
        ("registered", None, user.id, None, None),
        ("login", None, user.id, None, None),
    ]


async def test_how_a_name_is_typed_does_not_matter_and_how_a_password_does(manager: DatabaseManager):
    user = await register(manager, "\uff34rader Stra\u00dfe \ufb01x")
    assert user.username == "trader strasse fix"
    for typed in ("TRADER STRASSE FIX", "trader stra\u00dfe f\uff29x", "trader stra\u1e9ee \ufb01x"):
        assert (await login(manager, typed)).id == user.id
    for password in (PASSWORD.upper(), f" {PASSWORD}", PASSWORD.replace("c", "\uff43", 1)):
        assert await fails(manager, user.username, password) == "InvalidCredentials"


async def test_registering_leaves_the_commit_to_the_caller(manager: DatabaseManager):
    async with manager.get_session() as session:
        await accounts.register(session, "trader", PASSWORD)
        assert (await session.scalars(select(AuthEvent.kind))).all() == ["registered"]
    assert await fails(manager) == "InvalidCredentials"
    assert await recorded(manager) == [("login_refused", "unknown_name", None, None, None)]


async def test_a_name_can_be_taken_once_and_the_transaction_goes_on(manager: DatabaseManager):
    await register(manager, "Trader \ufb01x")
    async with manager.transaction() as session:
        for second in ("trader fix", "TRADER FIX", "\uff34rader \ufb01x"):
            with pytest.raises(UniqueViolation) as caught:
                await accounts.register(session, second, PASSWORD)
            assert caught.value.constraint == "uq_users_username"
        await accounts.register(session, "another", PASSWORD, actor="the clerk")
    assert (await login(manager, "another")).username == "another"
    assert await kinds(manager) == ["registered", "registered", "login"]
    assert (await recorded(manager, user="another"))[0][4] == "the clerk"


MISFITS = [
    ("ab", PASSWORD, "username"),
    ("", PASSWORD, "username"),
    (" trader", PASSWORD, "username"),
    ("tra\x00der", PASSWORD, "username"),
    ("tra\nder", PASSWORD, "username"),
    ("tra\u202eder", PASSWORD, "username"),
    ("tra\u200bder", PASSWORD, "username"),
    ("t" * 151, PASSWORD, "username"),
    ("\ufdfa" * 9, PASSWORD, "username"),  # 18 letters each
    ("tra\u0378der", PASSWORD, "username"),  # not assigned
    ("tra\ue000der", PASSWORD, "username"),
    ("tra\u2800der", PASSWORD, "username"),
    ("tra\u0600der", PASSWORD, "username"),
    ("a" + "\u0301\u0316" * 500_000, PASSWORD, "username"),  # minutes, were it normalised
    (12345, PASSWORD, "username"),
    ("trader", "1234567", "password"),
    ("trader", "x" * 1_025, "password"),
    ("trader", "secret\x00secret", "password"),
    ("trader", "secret\ud800secret", "password"),
    ("trader", None, "password"),
]


async def test_what_breaks_the_rules_is_refused_and_not_repeated(manager: DatabaseManager):
    async with manager.get_session() as session:
        for username, password, field in MISFITS:
            with pytest.raises(InvalidInput) as caught:
                await accounts.register(session, username, password)  # type: ignore[arg-type]
            assert caught.value.column == field
            assert "secret" not in str(caught.value)
        with pytest.raises(InvalidInput, match=r"^actor"):
            await accounts.register(session, "trader", PASSWORD, actor="a\nb")
        assert await session.scalar(select(func.count()).select_from(User)) == 0


async def test_a_password_may_hold_any_text_and_is_the_same_in_either_unicode_form(manager: DatabaseManager):
    await register(manager, password="pa\u0301ssword \U0001f40b\n")
    assert await login(manager, password="p\u00e1ssword \U0001f40b\n")


@given(st.text(min_size=accounts.MIN_PASSWORD, max_size=40))
def test_every_password_that_passes_the_rules_is_normalised_once(password: str):
    try:
        plain = _passwords.checked_password(password)
    except InvalidInput:
        return
    assert _passwords.checked_password(plain) == plain


# What is refused, and that nothing tells why


async def test_who_is_refused_is_told_nothing_and_the_record_says_why(manager: DatabaseManager):
    user = await register(manager)
    gone = await register(manager, "gone")
    await accounts.disable(manager, gone.id, actor="admin")
    told: set[str] = set()
    for name, password in (("nobody", PASSWORD), ("trader", "wrong one"), ("gone", PASSWORD), ("gone", "wrong one")):
        with pytest.raises(InvalidCredentials) as caught:
            await login(manager, name, password, source=HOME)
        told.add(f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}")
    assert told == {"InvalidCredentials('the user name or the password is wrong') None None"}
    assert (await recorded(manager))[3:] == [
        ("login_refused", "unknown_name", None, HOME, None),
        ("login_refused", "wrong_password", user.id, HOME, None),
        ("login_refused", "inactive", gone.id, HOME, None),
        ("login_refused", "inactive", gone.id, HOME, None),
    ]


async def test_nonsense_is_refused_in_the_same_way(manager: DatabaseManager):
    await register(manager)
    rules = LoginDelays(free=1_000)
    for password in (PASSWORD, "", "x" * 2_000, "\x00" * 9, "\ud800" * 9):
        for name in (
            "nobody",
            "",
            "\u0301\u0316" * 500_000,
            "tra\x00der",
            "tra\ud800der",
            "' OR 1=1 --",
            "\u202etrader",
        ):
            assert await fails(manager, name, password, delays=rules) == "InvalidCredentials"
        assert (await outcome(login(manager, "trader", password)) == "accepted") == (password == PASSWORD)
    for name, password, source, field in ((None, PASSWORD, None, "username"), ("trader", PASSWORD, "a\nb", "source")):
        with pytest.raises(InvalidInput) as caught:
            await login(manager, name, password, source=source)  # type: ignore[arg-type]
        assert caught.value.column == field


async def test_an_unknown_name_costs_as_much_as_a_wrong_password(
    manager: DatabaseManager, monkeypatch: pytest.MonkeyPatch
):
    """The same hashing and as many statements; `make bench PART=login` shows the times."""
    await register(manager)
    await register(manager, "gone")
    await register(manager, "unusable")
    await accounts.disable(manager, "gone", actor="admin")
    await run_sql(
        manager, "UPDATE users SET hashed_password = '$2b$12$' || repeat('x', 53) WHERE username = 'unusable'"
    )
    await fails(manager)  # makes the hash of nobody
    work: list[str] = []
    verify = Argon2Hasher.verify

    def counted(self: Argon2Hasher, password: str | bytes, hash: str | bytes) -> bool:
        work.append(str(hash)[:27])
        return verify(self, password, hash)

    monkeypatch.setattr(Argon2Hasher, "verify", counted)
    seen: set[tuple[str, ...]] = set()
    for name in ("trader", "nobody", "gone", "unusable", "no\nname"):
        work.clear()
        with sent(manager) as statements:
            assert await fails(manager, name) == "InvalidCredentials"
        assert work == ["$argon2id$v=19$m=8,t=2,p=1$"]
        seen.add(tuple(statements))
    assert len(seen) == 1 and len(seen.pop()) == 4


@contextlib.contextmanager
def sent(manager: DatabaseManager) -> Generator[list[str]]:
    """The statements that are sent meanwhile."""
    found: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        found.append(statement)

    event.listen(manager.engine.sync_engine, "before_cursor_execute", note)
    yield found
    event.remove(manager.engine.sync_engine, "before_cursor_execute", note)


async def test_no_refusal_is_quicker_than_one_by_the_slowest_hash_that_is_stored(
    manager: DatabaseManager, monkeypatch: pytest.MonkeyPatch
):
    """Of another cost than today's, be it more or less; one that a disabled user has counts for nothing."""
    for name, cost in (("trader", 1), ("slow", 3), ("gone", 4)):
        await register(manager, name)
        hashed = PasswordHash((Argon2Hasher(time_cost=cost, memory_cost=8, parallelism=1),)).hash(PASSWORD)
        await run_sql(manager, f"UPDATE users SET hashed_password = '{hashed}' WHERE username = '{name}'")
    await accounts.disable(manager, "gone", actor="admin")
    verify = Argon2Hasher.verify

    def slowly(self: Argon2Hasher, password: str | bytes, hash: str | bytes) -> bool:
        time.sleep({"1": 0.0, "2": 0.02, "3": 0.1, "4": 9.0}[str(hash)[21]])
        return verify(self, password, hash)

    monkeypatch.setattr(Argon2Hasher, "verify", slowly)
    for name in ("nobody", "trader", "slow", "gone", "no\nname"):
        start = time.perf_counter()
        assert await fails(manager, name, delays=LoginDelays(free=100)) == "InvalidCredentials"
        assert time.perf_counter() - start >= 0.1, name
    nonsense = (
        "VALUES ('x1x', 'plain'), ('x2x', '$2b$31$'), ('x3x', '$argon2id$v=19$m=9999999,t=9,p=1$'), ('x4x', '$$$$$')"
    )
    await run_sql(manager, f"INSERT INTO users (username, hashed_password) {nonsense}")
    _outdated._known.clear()
    kinds = await _outdated.outdated_kinds(manager)
    assert [kind[21] for kind in kinds] == ["1", "3"]
    for name in ("trader", "slow"):
        await login(manager, name)
    _outdated._known.clear()
    assert await _outdated.outdated_kinds(manager) == ()
    took: list[float] = []
    for _ in range(10):
        start = time.perf_counter()
        assert await _passwords.verify("wrong one", None) == (False, None)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.1


async def test_kinds_that_could_not_be_looked_for_are_looked_for_again(
    manager: DatabaseManager, monkeypatch: pytest.MonkeyPatch
):
    async def broken(_session: Any, **_: Any) -> set[str]:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch, pytest.raises(asyncio.CancelledError):
        patch.setattr(_outdated, "_stored", broken)
        await login(manager)
    with sent(manager) as statements:
        assert await _outdated.outdated_kinds(manager) == await _outdated.outdated_kinds(manager) == ()
    assert len(statements) == 1
    _outdated._known.clear()
    await register(manager)

    async def too_many(_session: Any, **_: Any) -> set[str]:
        raise StatementTimeout("canceling statement due to statement timeout")

    with monkeypatch.context() as patch:
        patch.setattr(_outdated, "_stored", too_many)
        await login(manager)


async def test_what_was_typed_for_a_name_is_nowhere_in_the_database(manager: DatabaseManager):
    await register(manager)
    typed = "My Secret Passphrase"
    await fails(manager, typed)
    [found] = await recorded(manager, user=typed)
    assert found == ("login_refused", "unknown_name", None, None, None)
    for table in ("auth_events", "login_delays", "known_sources"):
        rows = await run_sql(manager, f"SELECT t::text FROM {table} t")
        assert "ecret" not in str(rows)
    digest = hashlib.sha256(folded(typed).encode()).hexdigest()
    assert digest in str(await run_sql(manager, "SELECT t::text FROM auth_events t"))


# Hashes


async def test_a_hash_with_older_parameters_is_renewed_at_the_next_login(manager: DatabaseManager):
    user = await register(manager)
    old = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1),)).hash(PASSWORD)
    await run_sql(manager, f"UPDATE users SET hashed_password = '{old}'")
    await fails(manager)
    renewed = await login(manager)
    assert renewed.id == user.id
    async with manager.get_session() as session:
        stored = await session.get_one(User, user.id)
        assert stored.hashed_password == renewed.hashed_password
        assert stored.hashed_password.startswith("$argon2id$v=19$m=8,t=2,p=1$")
    await login(manager)


class LikeBcrypt:
    """A hasher that stands for bcrypt's, whose package need not be installed; its errors are ValueErrors too."""

    hash = identify = check_needs_rehash = None

    @staticmethod
    def of(password: str) -> str:
        return "$2b$12$" + hashlib.sha256(password.encode()).hexdigest()[:53]

    def verify(self, password: str | bytes, hash: str | bytes) -> bool:
        if len(str(password).encode()) > 72 or "+" in str(hash):
            raise ValueError("Invalid salt")
        return hash == self.of(str(password))


@pytest.fixture
def like_bcrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    def identify(hash: str | bytes) -> bool:
        return re.fullmatch(r"\$2b\$12\$[a-zA-Z0-9+/.]{53}", str(hash)) is not None

    old: Any = LikeBcrypt()
    old.identify = identify
    monkeypatch.setattr(_passwords, "_hasher", PasswordHash((_passwords._hasher.current_hasher, old)))


@pytest.mark.usefixtures("like_bcrypt")
async def test_a_hash_of_the_original_system_is_verified_as_it_was_made_and_replaced(manager: DatabaseManager):
    decomposed = "pa\u0301ssword"
    for password in (PASSWORD, decomposed):
        user = await register(manager, f"user {len(password)}")
        await run_sql(manager, f"UPDATE users SET hashed_password = '{LikeBcrypt.of(password)}' WHERE id = {user.id}")
        for wrong in ("wrong one", "x" * 80, "\u00e1" * 40, "", "\0" * 9, "p\u00e1ssword"):
            assert await fails(manager, user.username, wrong, delays=LoginDelays(free=10)) == "InvalidCredentials"
        assert (await login(manager, user.username, password)).hashed_password.startswith("$argon2id$")
        await login(manager, user.username, unicodedata.normalize("NFC", password))
    await run_sql(manager, "UPDATE users SET hashed_password = '$2b$12$' || repeat('+', 53)")
    before = len(_passwords._taken[_passwords.kind_of(_passwords._nobody())])
    assert await fails(manager, user.username, PASSWORD) == "InvalidCredentials"
    after = len(_passwords._taken[_passwords.kind_of(_passwords._nobody())])
    assert after == before + 1, "as long as that of nobody"


@pytest.mark.usefixtures("costly")
async def test_hashing_does_not_block_the_event_loop():
    slept: list[float] = []

    async def watch() -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.001)
            slept.append(time.perf_counter() - start)

    watcher = asyncio.create_task(watch())
    await _passwords.hash_password(PASSWORD)
    watcher.cancel()
    assert len(slept) > 5


def test_only_so_many_hashes_are_made_at_once_on_all_event_loops(monkeypatch: pytest.MonkeyPatch):
    running, most, lock = 0, 0, threading.Lock()

    def slow(_password: str) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return "hash"

    monkeypatch.setattr(_passwords._hasher, "hash", slow)

    def loop() -> None:
        async def work() -> None:
            await asyncio.gather(*(_passwords.hash_password(PASSWORD) for _ in range(12)))

        asyncio.run(work())

    with ThreadPoolExecutor(3) as threads:
        for done in [threads.submit(loop) for _ in range(3)]:
            done.result(timeout=60)
    assert 1 <= most <= _passwords._AT_ONCE <= 4


def test_a_forked_child_hashes_with_threads_of_its_own():
    code = """
import asyncio, os
from core.trading.accounts import _passwords
async def work(): return await asyncio.wait_for(asyncio.gather(*[_passwords.verify("wrong one", None) for _ in range(8)]), 60)
asyncio.run(work())
if (child := os.fork()) == 0:
    try:
        os._exit(0 if asyncio.run(work()) == [(False, None)] * 8 else 1)
    except TimeoutError:
        os._exit(2)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=180, check=True
    )
    assert done.stdout == "0\n"


# Delays


async def test_the_wait_grows_to_its_cap_and_what_is_refused_makes_it_no_longer(manager: DatabaseManager):
    await register(manager)
    rules = replace(AT_ONCE, free=3, first=60, cap=300)
    waited: list[float] = []
    for _ in range(8):
        assert await fails(manager, delays=rules) == "InvalidCredentials"
        [(seconds,)] = await run_sql(
            manager, "SELECT extract(epoch FROM waits_until - failed_at)::float8 FROM login_delays"
        )
        waited.append(round(seconds))  # of a first failure the two times are taken one after the other
        if waited[-1]:
            before = await run_sql(manager, "SELECT * FROM login_delays")
            for password in ("wrong one", PASSWORD):
                with pytest.raises(TooManyAttempts) as caught:
                    await login(manager, password=password, delays=rules)
                assert seconds - 50 < caught.value.retry_after <= seconds
            assert await run_sql(manager, "SELECT * FROM login_delays") == before
            await run_sql(manager, "UPDATE login_delays SET waits_until = clock_timestamp() - interval '1 min'")
    assert waited == [0, 0, 0, 60, 120, 240, 300, 300]
    await run_sql(manager, "UPDATE login_delays SET failures = 2000000")
    assert await fails(manager, delays=rules) == "InvalidCredentials"
    await run_sql(manager, "UPDATE login_delays SET waits_until = clock_timestamp() - interval '1 min'")
    await login(manager, delays=rules)
    assert await run_sql(manager, "SELECT * FROM login_delays") == [], "a login that succeeds forgets them"
    assert (await kinds(manager)).count("login_delayed") == 10


async def test_a_first_failure_has_no_wait_not_even_a_microsecond(manager: DatabaseManager):
    """The instant is one: two looks at the clock were a microsecond apart for one in twenty-five."""
    async with manager.transaction() as session:
        for number in range(150):
            assert await reserve(session, name_digest(str(number)), AT_ONCE) == 0
    assert await run_sql(manager, "SELECT count(*) FROM login_delays WHERE waits_until <> failed_at") == [(0,)]


async def test_a_delay_outlives_the_process_and_goes_by_the_clock_of_the_server(
    manager: DatabaseManager, database_url: str, monkeypatch: pytest.MonkeyPatch
):
    await register(manager)
    for _ in range(6):
        assert await fails(manager, delays=AT_ONCE) == "InvalidCredentials"
    monkeypatch.setattr(time, "time", lambda: 4_000_000_000.0)
    async with DatabaseManager(database_url, "testing", "migrations_only") as other:
        for name in ("trader", "\uff34RADER"):
            assert await fails(other, name, PASSWORD) == "TooManyAttempts"
            assert await fails(manager, name, PASSWORD) == "TooManyAttempts"
        async with other.get_session() as session:
            assert 500 < await accounts.waits(session, "Trader") <= 600
            assert await accounts.waits(session, "another") == 0
        await run_sql(other, "UPDATE login_delays SET waits_until = clock_timestamp() - interval '1 min'")
        await login(other)


async def test_failures_are_forgotten_after_a_quiet_time(manager: DatabaseManager):
    await register(manager)
    await hold_up(manager, name_digest("trader"), wait=-60)
    await run_sql(manager, "UPDATE login_delays SET failed_at = clock_timestamp() - interval '25 h'")
    for _ in range(6):
        assert await fails(manager) == "InvalidCredentials"
    assert await fails(manager) == "TooManyAttempts"
    assert await run_sql(manager, "SELECT failures FROM login_delays") == [(6,)]


async def test_a_wait_is_not_forgotten_before_it_is_over(manager: DatabaseManager):
    await register(manager)
    rules = replace(AT_ONCE, forget=60)
    await hold_up(manager, name_digest("trader"))
    await run_sql(manager, "UPDATE login_delays SET failed_at = clock_timestamp() - interval '61 s'")
    assert await fails(manager, password=PASSWORD, delays=rules) == "TooManyAttempts"


async def test_of_many_guesses_at_once_only_the_free_ones_are_looked_at(manager: DatabaseManager, database_url: str):
    await register(manager)
    async with DatabaseManager(database_url, "testing", "migrations_only") as other:
        guesses = [outcome(login((manager, other)[n % 2], password=f"guess {n:03}")) for n in range(64)]
        found = await asyncio.gather(*guesses)
    assert sorted(set(found)) == ["InvalidCredentials", "TooManyAttempts"]
    assert found.count("InvalidCredentials") == AT_ONCE.free + 1
    events = await kinds(manager)
    assert (events.count("login_refused"), events.count("login_delayed")) == (6, 58)


async def test_right_logins_at_the_same_moment_all_succeed(manager: DatabaseManager):
    """More than are free, with a hash that is renewed under them."""
    user = await register(manager)
    old = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1),)).hash(PASSWORD)
    await run_sql(manager, f"UPDATE users SET hashed_password = '{old}'")
    found = await asyncio.gather(*(login(manager, delays=LoginDelays(patience=60), source=HOME) for _ in range(20)))
    assert {each.id for each in found} == {user.id}
    assert len({each.hashed_password for each in found}) == 1
    assert await kinds(manager) == ["registered"] + ["login"] * 20
    assert await run_sql(manager, "SELECT * FROM login_delays") == []


@pytest.fixture
def pooled_server(component: Any) -> Iterator[tuple[str, str]]:
    """The URL of an empty server, and that of PgBouncer before it."""
    component(debian.binaries() is not None, "apt-get install postgresql")
    component(debian.pgbouncer() is not None, "apt-get install pgbouncer")
    with debian.debian_server() as server, debian.pooled(server) as url:
        yield server.url(), url


@pytest.mark.component
async def test_behind_pgbouncer_guesses_are_counted_and_right_logins_succeed(pooled_server: tuple[str, str]):
    direct, pooled = pooled_server
    async with DatabaseManager(direct, "testing"):
        pass
    async with DatabaseManager(pooled, "testing", "migrations_only", pgbouncer=True) as manager:
        await register(manager)
        found = await asyncio.gather(*(login(manager, delays=LoginDelays(patience=60), source=HOME) for _ in range(12)))
        assert len(found) == 12
        guesses = await asyncio.gather(*(outcome(login(manager, password=f"guess {n:03}")) for n in range(32)))
        assert guesses.count("InvalidCredentials") == AT_ONCE.free + 1
        assert await fails(manager, password=PASSWORD) == "TooManyAttempts"
        await login(manager, source=HOME)


async def test_nobody_can_keep_a_user_out_where_the_user_has_been_before(manager: DatabaseManager):
    await register(manager)
    await login(manager, source=HOME)
    await hold_up(manager, name_digest("trader"))
    for source in (None, "198.51.100.1"):
        assert await fails(manager, password=PASSWORD, source=source) == "TooManyAttempts"
    for _ in range(10):
        await login(manager, "TRADER", source=HOME)
    async with manager.get_session() as session:
        assert await accounts.waits(session, "trader") > 800, "the user's logins do not help the others"
    # Failures at home count there, and there alone.
    for _ in range(6):
        assert await fails(manager, source=HOME) == "InvalidCredentials"
    assert await fails(manager, password=PASSWORD, source=HOME) == "TooManyAttempts"
    await accounts.unlock(manager, "trader", actor="admin")
    for source in (HOME, None, "198.51.100.1"):
        await login(manager, source=source)
    # What was known long ago is unknown, and what is known of another is nothing here.
    await register(manager, "another")
    await run_sql(
        manager, "UPDATE known_sources SET seen_at = now() - interval '91 days' WHERE source <> '198.51.100.1'"
    )
    for name in ("trader", "another"):
        await hold_up(manager, name_digest(name))
    assert await fails(manager, password=PASSWORD, source=HOME) == "TooManyAttempts"
    assert await fails(manager, "another", PASSWORD, source="198.51.100.1") == "TooManyAttempts"
    await login(manager, source="198.51.100.1")


async def test_a_device_that_keeps_its_cookie_is_held_up_by_no_one(manager: DatabaseManager):
    user, another = await register(manager), await register(manager, "another")

    async def remember(user_id: int, device: str | None = None, **options: Any) -> str:
        async with manager.transaction() as session:
            return await accounts.remember_device(session, user_id, device=device, **options)

    # A cookie that the client has chosen is known of nobody, not even after a login with it.
    await login(manager, device="chosen")
    await login(manager, source=HOME, device="chosen")
    device = await remember(user.id, "chosen")
    assert len(device) == 43 and device not in str(await run_sql(manager, "SELECT source FROM known_sources"))
    assert await remember(user.id, device) == device
    assert device not in (await remember(another.id, device), await remember(user.id))
    for name in ("trader", "another"):
        await hold_up(manager, name_digest(name))
    for held in (None, "chosen", "\ud800", "x" * 1_000_000, device.upper()):
        assert await fails(manager, password=PASSWORD, device=held) == "TooManyAttempts"
    assert await fails(manager, "another", PASSWORD, device=device) == "TooManyAttempts"
    await run_sql(manager, "UPDATE known_sources SET seen_at = now() - interval '80 days'")
    away = "198.51.100.1"
    await login(manager, source=away, device=device)
    assert await run_sql(manager, "SELECT count(*) FROM known_sources WHERE seen_at > now() - interval '1 day'") == [
        (2,)
    ], "the device's time begins anew, and the place is known"
    # Failures with the cookie count for the device: not for the place, whose own do not count for the device.
    for _ in range(6):
        assert await fails(manager, source=HOME, device=device) == "InvalidCredentials"
    assert await fails(manager, password=PASSWORD, source=HOME, device=device) == "TooManyAttempts"
    await login(manager, source=HOME)
    with pytest.raises(TooManyAttempts):
        await accounts.change_password(manager, "trader", PASSWORD, NEW, device=device)
    await accounts.unlock(manager, "trader", actor="admin")
    await accounts.change_password(manager, "trader", PASSWORD, NEW, device=device)
    assert [each[3] for each in await recorded(manager, kinds=["login_delayed"])][-3:] == [None, HOME, None]
    assert await remember(user.id, device, delays=LoginDelays(known=86_400)) == device
    await run_sql(manager, "UPDATE known_sources SET seen_at = now() - interval '91 days'")
    assert await remember(user.id, device) != device
    with pytest.raises(InvalidInput, match="device"):
        await login(manager, device=b"bytes")


def test_an_address_is_one_source_however_it_is_written_and_a_network_of_ipv6_is():
    for address, source in {
        "192.0.2.7": "192.0.2.7",
        "::ffff:192.0.2.7": "192.0.2.7",
        "::FFFF:C000:0207": "192.0.2.7",
        "2001:db8::1": "2001:db8::/64",
        "2001:DB8:0:0:ffff::2": "2001:db8::/64",
        "fe80::1%eth0": "fe80::/64",
    }.items():
        assert accounts.source_of(address) == source
    nothing: Any
    for nothing in ("", "localhost", "192.0.2.7:80", "192.0.2.007", "/run/socket", 5, b"192.0.2.7", None):
        with pytest.raises(InvalidInput, match=r"^source"):
            accounts.source_of(nothing)


def test_no_name_that_can_be_typed_counts_against_a_known_source():
    for between in ("\0", "\x01", "\n", "\u00ff", ""):
        assert name_digest(f"trader{between}{HOME}") != source_bucket("trader", HOME)
    assert source_bucket("trader", HOME) != source_bucket("trade", f"r{HOME}")


async def test_a_short_wait_is_waited_for_and_ends_when_a_login_succeeds(manager: DatabaseManager):
    await register(manager)
    await hold_up(manager, name_digest("trader"), wait=0.2)
    await login(manager, delays=LoginDelays())
    await hold_up(manager, name_digest("trader"), wait=110)
    waiting = asyncio.create_task(login(manager, delays=LoginDelays(patience=120)))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await accounts.unlock(manager, "trader", actor="admin")
    start = time.perf_counter()
    await waiting
    assert time.perf_counter() - start < 60
    assert "login_delayed" not in await kinds(manager)


@pytest.mark.parametrize(
    "wrong",
    [
        {"free": 0},
        {"first": 0},
        {"cap": -1},
        {"forget": 1},
        {"patience": -1},
        {"known": 1},
        {"cap": float("nan")},
        {"other": 1},
    ],
)
def test_rules_that_cannot_work_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValidationError):
        LoginDelays(**wrong)


def test_the_errors_pickle():
    for error in (TooManyAttempts("wait", retry_after=1.5), InvalidCredentials("no"), UserNotFound("none")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), again.__dict__) == (type(error), error.__dict__)


# The record


async def test_the_record_stays_whatever_the_caller_does(manager: DatabaseManager):
    await register(manager)

    async def rolled_back() -> None:
        async with manager.get_session() as session:
            await session.execute(text("UPDATE users SET updated_at = updated_at WHERE false"))
            await fails(manager)
            await login(manager)

    async def raises() -> None:
        async with manager.transaction() as session:
            await session.execute(text("SELECT 1"))
            await login(manager)
            raise RuntimeError("the caller's own")

    await rolled_back()
    with pytest.raises(RuntimeError):
        await raises()
    assert await kinds(manager) == ["registered", "login_refused", "login", "login"]


async def test_a_login_within_a_session_that_holds_the_last_connection_is_refused_in_time_and_not_counted(
    manager: DatabaseManager, database_url: str
):
    await register(manager)
    pool = PoolOptions(size=1, max_overflow=0, wait=0.2)
    async with DatabaseManager(database_url, "testing", "migrations_only", pool=pool) as small:
        async with small.transaction() as session:
            await session.execute(text("SELECT 1"))
            with pytest.raises(PoolExhausted):
                await login(small)
        await login(small)
    assert await kinds(manager) == ["registered", "login"]


@pytest.mark.parametrize("password", [PASSWORD, "wrong one"])
async def test_a_login_that_is_cancelled_is_recorded_before_it_ends(
    manager: DatabaseManager, monkeypatch: pytest.MonkeyPatch, password: str
):
    await register(manager)
    reached, go_on = asyncio.Event(), asyncio.Event()
    verify = _passwords.verify

    async def held(*arguments: Any, **options: Any) -> Any:
        reached.set()
        await go_on.wait()
        return await verify(*arguments, **options)

    monkeypatch.setattr(_login, "verify", held)
    task = asyncio.create_task(login(manager, password=password))
    await asyncio.wait_for(reached.wait(), 30)
    assert await run_sql(manager, "SELECT failures FROM login_delays") == [(1,)], "counted before it is verified"
    task.cancel()
    await asyncio.sleep(0.05)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await kinds(manager))[1:] == ["login" if password == PASSWORD else "login_refused"]
    assert not _login._going_on


async def test_a_second_cancellation_is_obeyed_at_once_and_the_work_goes_on(
    manager: DatabaseManager, monkeypatch: pytest.MonkeyPatch
):
    await register(manager)
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def held(*_: Any, **__: Any) -> tuple[bool, None]:
        reached.set()
        await go_on.wait()
        return False, None

    monkeypatch.setattr(_login, "verify", held)
    task = asyncio.create_task(login(manager))
    await asyncio.wait_for(reached.wait(), 30)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0.01)
    assert task.cancelled()
    [work] = _login._going_on
    go_on.set()
    await asyncio.wait([work])
    assert (await kinds(manager))[1:] == ["login_refused"]


async def test_a_login_under_way_is_held_against_what_is_stored_by_then(
    manager: DatabaseManager, monkeypatch: pytest.MonkeyPatch
):
    """Disabled, or given another password, while the old one was verified, whose hash would be renewed."""
    user = await register(manager)
    old = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1),)).hash(PASSWORD)
    await run_sql(manager, f"UPDATE users SET hashed_password = '{old}'")
    verify = _passwords.verify
    meanwhile: list[Callable[[], Awaitable[Any]]] = []

    async def overtaken(*arguments: Any, **options: Any) -> Any:
        found = await verify(*arguments, **options)
        if meanwhile:
            await meanwhile.pop()()
        return found

    monkeypatch.setattr(_login, "verify", overtaken)
    meanwhile.append(lambda: accounts.set_password(manager, "trader", NEW, actor="admin"))
    assert await fails(manager, password=PASSWORD) == "InvalidCredentials"
    meanwhile.append(lambda: accounts.disable(manager, "trader", actor="admin"))
    assert await fails(manager, password=NEW) == "InvalidCredentials"
    assert await recorded(manager) == [
        ("registered", None, user.id, None, None),
        ("password_reset", None, user.id, None, "admin"),
        ("login_refused", "wrong_password", user.id, None, None),
        ("disabled", None, user.id, None, "admin"),
        ("login_refused", "inactive", user.id, None, None),
    ]


async def test_events_are_read_by_name_by_account_by_kind_by_time_and_in_pages(manager: DatabaseManager):
    await fails(manager)  # before there is such a user
    user = await register(manager)
    await fails(manager)
    await login(manager)
    await register(manager, "another")
    assert await kinds(manager, user="TRADER") == ["login_refused", "registered", "login_refused", "login"]
    assert await kinds(manager, user=user.id) == ["registered", "login_refused", "login"]
    assert await kinds(manager, kinds=["login", "registered"]) == ["registered", "login", "registered"]
    assert await kinds(manager, user="' OR true --") == []
    async with manager.get_session(read_only=True) as session:
        first = await accounts.events(session, limit=2)
        rest = await accounts.events(session, before=first[-1].event_id)
        assert [each.event_id for each in (*first, *rest)] == [5, 4, 3, 2, 1]
        assert len(await accounts.events(session, since=first[-1].occurred_at)) == 2
        for limit in (0, 100_001):
            with pytest.raises(InvalidInput, match="limit"):
                await accounts.events(session, limit=limit)


async def test_what_is_old_is_removed_in_batches_and_what_still_counts_is_not(manager: DatabaseManager):
    user = await register(manager)
    await run_sql(
        manager,
        "INSERT INTO auth_events (kind, name_digest, occurred_at) SELECT 'login_refused', sha256('x'), "
        "now() - n * interval '1 day' FROM generate_series(1, 100) n",
    )
    await run_sql(
        manager,
        "INSERT INTO login_delays SELECT sha256(n::text::bytea), 1, now() - n * interval '5 h', now() FROM generate_series(1, 9) n",
    )
    await run_sql(
        manager,
        f"INSERT INTO known_sources SELECT {user.id}, 's' || n, now() - n * interval '30 days' FROM generate_series(1, 5) n",
    )
    report = await accounts.prune_events(manager, older_than=timedelta(days=30, hours=1), batch=7)
    assert report == accounts.PruneReport(events=70, delays=5, sources=3)
    assert await accounts.prune_events(manager, older_than=timedelta(days=31), batch=7) == replace(
        report, events=0, delays=0, sources=0
    )
    for wrong in ({"older_than": timedelta(0)}, {"older_than": timedelta(1), "batch": 0}):
        with pytest.raises(InvalidInput):
            await accounts.prune_events(manager, **wrong)  # type: ignore[arg-type]
    assert await kinds(manager, user=user.id) == ["registered"]


async def test_logins_are_counted_by_outcome(manager: DatabaseManager):
    await register(manager)
    registry = CollectorRegistry()
    source = accounts.LoginMetrics(manager)
    async with DatabaseMetrics(manager, registry=registry, database="panda", sources=[source]):
        await login(manager)
        await fails(manager, delays=replace(AT_ONCE, free=1))
        await fails(manager, delays=replace(AT_ONCE, free=1))
        await fails(manager, delays=replace(AT_ONCE, free=1))
        shown = generate_latest(registry).decode()
    for outcome_, count in (("accepted", 1), ("refused", 2), ("delayed", 1)):
        assert f'alpha_panda_database_logins_total{{database="panda",outcome="{outcome_}"}} {count}.0' in shown


# Changes


async def open_sessions(manager: DatabaseManager, user: User) -> None:
    async with manager.transaction() as session:
        session.add_all(
            make_trading_session(user_id=user.id, broker=broker, credentials=b"\x01" + bytes(40))
            for broker in ("paper", "kite")
        )


async def session_states(manager: DatabaseManager) -> set[tuple[Any, ...]]:
    async with manager.get_session() as session:
        rows = await session.scalars(select(TradingSession))
        return {(row.is_active, row.end_reason, row.credentials is None, row.end_time is None) for row in rows}


OPEN = {(True, None, False, True)}
REVOKED = {(False, "revoked", True, False)}


async def test_a_user_changes_the_password_and_the_sessions_end(manager: DatabaseManager):
    user = await register(manager)
    await open_sessions(manager, user)
    with pytest.raises(InvalidInput, match="password"):
        await accounts.change_password(manager, "trader", PASSWORD, "short")
    with pytest.raises(InvalidCredentials):
        await accounts.change_password(manager, "trader", "wrong one", NEW)
    assert await session_states(manager) == OPEN
    await accounts.change_password(manager, "Trader", PASSWORD, "another one", keep_sessions=True)
    assert await session_states(manager) == OPEN
    changed = await accounts.change_password(manager, "Trader", "another one", NEW, source=HOME)
    assert await session_states(manager) == REVOKED
    assert changed.id == user.id
    assert await fails(manager, password=PASSWORD) == "InvalidCredentials"
    await login(manager, password=NEW)
    assert await recorded(manager) == [
        ("registered", None, user.id, None, None),
        ("login_refused", "wrong_password", user.id, None, None),
        ("password_changed", None, user.id, None, None),
        ("password_changed", None, user.id, HOME, None),
        ("login_refused", "wrong_password", user.id, None, None),
        ("login", None, user.id, None, None),
    ]


async def test_guesses_at_the_old_password_are_delayed_with_those_at_the_login(manager: DatabaseManager):
    await register(manager)
    for _ in range(6):
        with pytest.raises(InvalidCredentials):
            await accounts.change_password(manager, "trader", "wrong one", NEW, delays=AT_ONCE)
    with pytest.raises(TooManyAttempts):
        await accounts.change_password(manager, "trader", PASSWORD, NEW, delays=AT_ONCE)
    assert await fails(manager, password=PASSWORD) == "TooManyAttempts"


async def test_a_change_whose_transaction_fails_changes_nothing(
    manager: DatabaseManager, monkeypatch: pytest.MonkeyPatch
):
    user = await register(manager)
    await open_sessions(manager, user)

    async def broken(session: Any, _user_id: int) -> int:
        await session.execute(text("SELECT 1/0"))
        return 0

    monkeypatch.setattr(_login, "revoke_all", broken)
    with pytest.raises(PandaDatabaseError):
        await accounts.change_password(manager, "trader", PASSWORD, NEW)
    await login(manager)
    assert await session_states(manager) == OPEN
    assert await kinds(manager) == ["registered", "login"]


async def test_what_an_administrator_does_is_recorded_with_who(manager: DatabaseManager):
    user = await register(manager)
    await open_sessions(manager, user)
    for _ in range(7):
        await fails(manager)
    await accounts.set_password(manager, user.id, NEW, actor="admin")
    assert await session_states(manager) == REVOKED
    await login(manager, password=NEW)
    async with manager.transaction() as session:
        session.add(make_trading_session(user_id=user.id))
    for _ in range(2):
        assert not (await accounts.disable(manager, "TRADER", actor="admin")).is_active
    assert all(not state[0] for state in await session_states(manager))
    assert await fails(manager, password=NEW) == "InvalidCredentials"
    for _ in range(2):
        assert (await accounts.enable(manager, "trader", actor="the other")).is_active
    await login(manager, password=NEW)
    assert await recorded(manager, kinds=["password_reset", "disabled", "enabled"]) == [
        ("password_reset", None, user.id, None, "admin"),
        ("disabled", None, user.id, None, "admin"),
        ("enabled", None, user.id, None, "the other"),
    ]
    with pytest.raises(InvalidInput) as caught:
        await accounts.set_password(manager, user.id, "short", actor="admin")
    assert caught.value.column == "password"
    for change in (accounts.disable, accounts.enable, accounts.unlock):
        with pytest.raises(InvalidInput, match=r"^actor"):
            await change(manager, "trader", actor="")
        for nobody in ("nobody", "", "tra\x00der", "x" * 2_000, 2**62):
            with pytest.raises(UserNotFound):
                await change(manager, nobody, actor="admin")


async def test_users_are_found_and_listed(manager: DatabaseManager):
    for name in ("Cleo", "anna", "bert"):
        await register(manager, name)
    await accounts.disable(manager, "bert", actor="admin")
    async with manager.get_session(read_only=True) as session:
        assert [each.username for each in await accounts.listing(session)] == ["anna", "bert", "cleo"]
        assert [each.username for each in await accounts.listing(session, active_only=True)] == ["anna", "cleo"]
        bert = await accounts.find(session, "BERT")
        assert not bert.is_active
        assert (await accounts.find(session, bert.id)).username == "bert"
        with pytest.raises(UserNotFound):
            await accounts.find(session, "dora")


INJECTIONS = (
    "'; DROP TABLE users; --",
    '" OR ""="',
    "trader' --",
    "$1 :username %s %(x)s {0}",
    "\\'; SELECT pg_sleep(9) --",
    "a/*b*/c",
    "E'\\x27'",
    "${jndi:x} $$x$$",
)


async def test_every_text_that_is_given_is_a_value_and_nothing_else(manager: DatabaseManager):
    user = await register(manager)
    rules = LoginDelays(free=1_000)
    for hostile in INJECTIONS:
        assert await fails(manager, hostile, hostile, source=hostile, delays=rules) == "InvalidCredentials"
        made = await register(manager, hostile, hostile + "........")
        await login(manager, hostile, hostile + "........", source=hostile)
        await accounts.set_password(manager, hostile, PASSWORD, actor=hostile)
        await accounts.change_password(manager, hostile, PASSWORD, NEW, source=hostile)
        for change in (accounts.disable, accounts.enable, accounts.unlock):
            await change(manager, hostile, actor=hostile)
        assert (await recorded(manager, user=hostile))[-1] == ("unlocked", None, made.id, None, hostile)
    async with manager.get_session() as session:
        assert {each.username for each in await accounts.listing(session)} == {"trader", *map(folded, INJECTIONS)}
        assert set(await session.scalars(select(KnownSource.source))) == set(INJECTIONS)
        assert (await accounts.find(session, "trader")).id == user.id
    await login(manager)
