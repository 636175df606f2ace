"""Users: registration and authentication on a real server."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import func, select, update

from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput, UniqueViolation
from core.database.models import User
from core.trading import accounts

PASSWORD = "correct horse"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Argon2id with little work, for tests that are not about its cost."""
    monkeypatch.setattr(accounts, "_hasher", PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1),)))
    accounts._nobody.cache_clear()
    yield
    accounts._nobody.cache_clear()


async def register(manager: DatabaseManager, username: str = "trader", password: str = PASSWORD) -> User:
    async with manager.transaction() as session:
        return await accounts.register(session, username, password)


async def test_a_registered_user_can_authenticate(manager: DatabaseManager):
    user = await register(manager)
    assert user.id > 0
    assert user.hashed_password.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    known = await accounts.authenticate(manager, "trader", PASSWORD)
    assert known is not None and known.id == user.id
    assert await accounts.verify_password(user, PASSWORD)
    assert not await accounts.verify_password(user, PASSWORD + "!")


@pytest.mark.usefixtures("quick")
async def test_the_case_of_a_name_does_not_matter_and_that_of_a_password_does(manager: DatabaseManager):
    await register(manager, "Trader")
    assert await accounts.authenticate(manager, "tRADER", PASSWORD) is not None
    assert await accounts.authenticate(manager, "trader", PASSWORD.upper()) is None


@pytest.mark.usefixtures("quick")
async def test_registering_leaves_the_commit_to_the_caller(manager: DatabaseManager):
    async with manager.get_session() as session:
        await accounts.register(session, "trader", PASSWORD)
    assert await accounts.authenticate(manager, "trader", PASSWORD) is None


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("second", ["trader", "TRADER"])
async def test_a_name_can_be_taken_once_and_the_transaction_goes_on(manager: DatabaseManager, second: str):
    await register(manager)
    async with manager.transaction() as session:
        with pytest.raises(UniqueViolation):
            await accounts.register(session, second, PASSWORD)
        await accounts.register(session, "another", PASSWORD)
    assert await accounts.authenticate(manager, "another", PASSWORD) is not None


MISFITS = [
    ("ab", PASSWORD, "username"),
    ("", PASSWORD, "username"),
    (" trader", PASSWORD, "username"),
    ("tra\x00der", PASSWORD, "username"),
    ("tra\nder", PASSWORD, "username"),
    ("t" * 151, PASSWORD, "username"),
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
        assert await session.scalar(select(func.count()).select_from(User)) == 0


@pytest.mark.usefixtures("quick")
async def test_a_password_may_hold_any_text_and_is_the_same_in_either_unicode_form(manager: DatabaseManager):
    await register(manager, password="pa\u0301ssword \U0001f40b\n")
    assert await accounts.authenticate(manager, "trader", "p\u00e1ssword \U0001f40b\n") is not None


@pytest.mark.usefixtures("quick")
async def test_an_inactive_user_is_not_authenticated(manager: DatabaseManager):
    await register(manager)
    async with manager.transaction() as session:
        await session.execute(update(User).values(is_active=False))
    assert await accounts.authenticate(manager, "trader", PASSWORD) is None


@pytest.mark.usefixtures("quick")
async def test_nonsense_is_not_authenticated_and_raises_nothing(manager: DatabaseManager):
    await register(manager)
    for password in (PASSWORD, "", "x" * 2_000, "\x00" * 9):
        for name in ("nobody", "", "x" * 1_000, "tra\x00der", "tra\ud800der", "' OR 1=1 --"):
            assert await accounts.authenticate(manager, name, password) is None
        assert (await accounts.authenticate(manager, "trader", password) is not None) == (password == PASSWORD)


async def test_an_unknown_name_costs_as_much_as_a_wrong_password(
    manager: DatabaseManager, monkeypatch: pytest.MonkeyPatch
):
    await register(manager)
    work: list[str] = []
    verify = Argon2Hasher.verify

    def counted(self: Argon2Hasher, password: str | bytes, hash: str | bytes) -> bool:
        work.append(str(hash)[:30])
        return verify(self, password, hash)

    monkeypatch.setattr(Argon2Hasher, "verify", counted)
    for name, password in (("trader", "wrong password"), ("nobody", "wrong password"), ("nobody", "")):
        work.clear()
        assert await accounts.authenticate(manager, name, password) is None
        assert work == ["$argon2id$v=19$m=65536,t=3,p=4"]


async def test_hashing_does_not_block_the_event_loop(manager: DatabaseManager):
    slept: list[float] = []

    async def watch() -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.001)
            slept.append(time.perf_counter() - start)

    watcher = asyncio.create_task(watch())
    await register(manager)
    watcher.cancel()
    assert len(slept) > 5


async def test_a_hash_with_older_parameters_is_renewed_at_the_next_authentication(manager: DatabaseManager):
    user = await register(manager)
    old = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1),)).hash(PASSWORD)
    async with manager.transaction() as session:
        await session.execute(update(User).values(hashed_password=old))
    assert await accounts.authenticate(manager, "trader", "wrong password") is None
    renewed = await accounts.authenticate(manager, "trader", PASSWORD)
    assert renewed is not None and renewed.id == user.id
    async with manager.get_session() as session:
        stored = await session.get_one(User, user.id)
        assert stored.hashed_password == renewed.hashed_password
        assert stored.hashed_password.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert await accounts.authenticate(manager, "trader", PASSWORD) is not None


@given(st.text(min_size=accounts.MIN_PASSWORD, max_size=40))
def test_every_text_that_passes_the_rules_is_normalised_once(password: str):
    try:
        plain = accounts._checked_password(password)
    except InvalidInput:
        return
    assert accounts._checked_password(plain) == plain
