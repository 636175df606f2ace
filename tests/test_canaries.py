"""The encryption canaries: a changed key is noticed before it orphans what another has sealed."""

import asyncio
import base64

import asyncpg
import pytest
from pydantic import SecretStr
from sqlalchemy import select, text

from core.config.settings import Settings
from core.database.canaries import RingCheck, check_ring, keep_canary
from core.database.connection import DatabaseManager
from core.database.encryption import KeyRing
from core.database.errors import InvalidKey, UnknownKey
from core.database.models import EncryptionCanary, TradingSession, User
from core.trading import sessions


def ring(*ids: str) -> KeyRing:
    """A ring of new keys under these ids, the first active."""
    return KeyRing.parse(",".join(f"{key_id}:{KeyRing.generate_key()}" for key_id in ids))


@pytest.fixture
async def user_id(manager: DatabaseManager) -> int:
    async with manager.transaction() as session:
        user = User(username="trader", hashed_password="hash")
        session.add(user)
        await session.flush()
        return user.id


async def seal(manager: DatabaseManager, user_id: int, ring: KeyRing, *, broker: str = "kite") -> TradingSession:
    async with manager.transaction() as session:
        opened = await sessions.open(session, user_id=user_id, broker=broker, credentials="token", ring=ring)
        return opened.session


async def canaries(manager: DatabaseManager) -> dict[str, bytes]:
    async with manager.get_session() as session:
        rows = await session.execute(select(EncryptionCanary.key_id, EncryptionCanary.envelope))
        return {row.key_id: row.envelope for row in rows}


async def test_the_first_secret_of_each_key_leaves_its_canary_and_later_ones_none(manager, user_id):
    async with manager.transaction() as session:
        await sessions.open(session, user_id=user_id, broker="paper", ring=ring("unused"))
    assert await canaries(manager) == {}, "a session without credentials seals nothing"
    keys = ring("k1", "k0")
    await seal(manager, user_id, keys)
    first = await canaries(manager)
    assert list(first) == ["k1"]
    keys.check_canary(first["k1"])
    await seal(manager, user_id, keys)
    assert await canaries(manager) == first
    await seal(manager, user_id, ring("k2"))
    assert sorted(await canaries(manager)) == ["k1", "k2"]


async def test_a_canary_is_stored_with_the_secret_or_not_at_all(manager, user_id):
    async with manager.get_session() as session:
        await sessions.open(session, user_id=user_id, broker="kite", credentials="token", ring=ring("k1"))
    assert await canaries(manager) == {}


async def test_another_key_under_the_same_id_is_refused_before_anything_is_written(manager, user_id):
    opened = await seal(manager, user_id, ring("k1"))
    async with manager.get_session() as session:
        with pytest.raises(InvalidKey, match=r"'k1' is not the one.*under this id again"):
            await sessions.open(session, user_id=user_id, broker="kite", credentials="new", ring=ring("k1"))
        await session.commit()
    async with manager.get_session() as session:
        row = await session.get_one(TradingSession, opened.session_id)
        assert row.is_active and row.credentials is not None
        assert await session.scalar(text("SELECT count(*) FROM trading_sessions")) == 1


async def test_of_two_keys_that_seal_first_at_once_under_one_id_the_later_is_refused(manager, user_id):
    one, other = ring("k1"), ring("k1")
    async with manager.get_session() as first:
        await keep_canary(first, one)

        async def second() -> None:
            async with manager.transaction() as session:
                await keep_canary(session, other)

        waiting = asyncio.create_task(second())
        await asyncio.sleep(0.2)
        assert not waiting.done(), "it must wait for the transaction that was first"
        await first.commit()
        with pytest.raises(InvalidKey):
            await waiting
    one.check_canary((await canaries(manager))["k1"])


async def test_a_ring_is_held_against_every_canary(manager, user_id):
    old, lost = ring("k0"), ring("lost")
    for keys, broker in ((old, "kite"), (lost, "upstox"), (ring("k1"), "paper")):
        await seal(manager, user_id, keys, broker=broker)
    now = KeyRing.parse(f"k1:{KeyRing.generate_key()},k2:{KeyRing.generate_key()}")
    async with manager.get_session() as session:
        found = await check_ring(session, now)
        assert found == RingCheck(right=(), wrong=("k1",), missing=("k0", "lost"), unused=("k2",))
        with pytest.raises(InvalidKey, match="'k1'"):
            found.raise_unless_whole()
        found = await check_ring(await session.connection(), old)
        assert found == RingCheck(right=("k0",), wrong=(), missing=("k1", "lost"), unused=())
        with pytest.raises(UnknownKey, match=r"'k1'.*DATABASE__ENCRYPTION_KEYS"):
            found.raise_unless_whole()
    RingCheck(("k0",), (), (), ("k2",)).raise_unless_whole()


async def test_a_key_whose_sessions_have_all_ended_may_leave_the_ring(manager, user_id):
    old, now = ring("k0"), ring("k1")
    await seal(manager, user_id, old)
    async with manager.get_session() as session:
        assert (await check_ring(session, now)).missing == ("k0",)
    await seal(manager, user_id, now)  # the same user and broker: the session before it has ended
    async with manager.get_session() as session:
        found = await check_ring(session, now)
        assert found == RingCheck(right=("k1",), wrong=(), missing=(), unused=(), retired=("k0",))
        found.raise_unless_whole()


async def test_a_damaged_canary_is_a_wrong_key(manager, user_id):
    keys = ring("k1")
    await seal(manager, user_id, keys)
    async with manager.transaction() as session:
        await session.execute(text("UPDATE encryption_canaries SET envelope = set_byte(envelope, 20, 0) || '\\x00'"))
        assert (await check_ring(session, keys)).wrong == ("k1",)


async def test_the_table_takes_the_canary_of_every_id_and_nothing_else(database_url: str):
    connection = await asyncpg.connect(database_url)
    insert = "INSERT INTO encryption_canaries (key_id, envelope) VALUES ($1, $2)"
    try:
        for key_id in ("k", "2026-11", "A.b_c-9", "x" * 32):
            await connection.execute(insert, key_id, ring(key_id).seal_canary())
        good = ring("good").seal_canary()
        for key_id, envelope in (
            ("evil", good),
            ("goo", good),
            ("good", b"\x02" + good[1:]),
            ("good", good + b"\x00" * 60),
            ("good", b""),
            ("", good),
            (" good", good),
            ("x" * 33, good),
        ):
            with pytest.raises(asyncpg.CheckViolationError):
                await connection.execute(insert, key_id, envelope)
    finally:
        await connection.close()


def of(url: str, held: KeyRing | None, **options: object) -> DatabaseManager:
    return DatabaseManager(url, "testing", "migrations_only", ring=held, **options)  # type: ignore[arg-type]


async def test_a_manager_with_a_wrong_key_does_not_start_and_leaves_nothing_open(database_url, manager):
    right = ring("k1")
    async with manager.transaction() as session:
        await keep_canary(session, right)
    wrong = of(database_url, ring("k1"))
    with pytest.raises(InvalidKey, match="'k1' is not the one that has sealed"):
        await wrong.connect()
    with pytest.raises(InvalidKey):  # and is not waited for
        await wrong.wait_for_ready(5)
    assert (await wrong.health_check())["status"] == "unhealthy"
    for held in (right, None):
        async with of(database_url, held) as started:
            assert (await started.health_check())["warnings"] == []


async def test_a_key_that_open_sessions_need_and_the_ring_lacks_is_a_warning(database_url, manager, user_id):
    opened = await seal(manager, user_id, ring("old"))
    async with of(database_url, ring("new")) as started:
        health = await started.health_check()
    assert health["status"] == "healthy"
    assert health["warnings"] == ["the encryption key 'old' is not in the ring, and open sessions are sealed by it"]
    async with manager.transaction() as session:
        await sessions.end(session, session_id=opened.session_id)
    async with of(database_url, ring("new")) as started:
        assert (await started.health_check())["warnings"] == []


async def test_a_ring_is_no_reason_to_refuse_a_schema_that_verification_let_pass(empty_database):
    async with of(empty_database, ring("k1"), verify_migrations=False) as started:
        assert (await started.health_check())["status"] == "degraded"


async def test_settings_bring_their_keys_to_the_manager(database_url, manager):
    async with manager.transaction() as session:
        await keep_canary(session, ring("k1"))
    database = {"postgres_url": database_url, "encryption_keys": f"k1:{KeyRing.generate_key()}"}
    settings = Settings(_env_file=None, environment="testing", database=database)  # type: ignore[arg-type]
    with pytest.raises(InvalidKey):
        await DatabaseManager.from_settings(settings).connect()
    settings.database.encryption_keys = SecretStr("not a key")
    with pytest.raises(InvalidKey, match="written id:base64"):
        DatabaseManager.from_settings(settings)


def test_a_key_that_anybody_could_guess_is_refused_where_money_is_real():
    weak = KeyRing.parse(f"k1:{base64.b64encode(bytes(32)).decode()}")
    url = "postgresql://desk:4f0c1c0e0d1b@127.0.0.1/trading"
    with pytest.raises(InvalidKey, match="can be guessed"):
        DatabaseManager(url, "production", ring=weak)
    DatabaseManager(url, "development", ring=weak)
    DatabaseManager(url, "production", ring=ring("k1"))
