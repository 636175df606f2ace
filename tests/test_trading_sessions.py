"""Trading sessions on a real server."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, update

from core.database.connection import DatabaseManager
from core.database.encryption import KeyRing
from core.database.errors import ConfigurationError, EnvelopeTampered, ForeignKeyViolation, InvalidInput
from core.database.models import TradingSession
from core.testing import make_user
from core.trading import sessions


@pytest.fixture
async def user_id(manager: DatabaseManager) -> int:
    async with manager.transaction() as session:
        session.add(user := make_user())
        await session.flush()
        return user.id


async def stored(manager: DatabaseManager) -> list[TradingSession]:
    async with manager.get_session() as session:
        return list(await session.scalars(select(TradingSession).order_by(TradingSession.start_time)))


async def test_an_opened_session_is_the_active_one(manager: DatabaseManager, user_id: int):
    expires = datetime.now(UTC) + timedelta(hours=8)
    async with manager.transaction() as session:
        opened = await sessions.open_session(
            session, user_id=user_id, broker="zerodha", expires_at=expires, session_data={"note": "morning"}
        )
    assert len(bytes.fromhex(opened.session_id)) == 16
    async with manager.get_session(read_only=True) as session:
        active = await sessions.active(session, user_id=user_id, broker="zerodha")
        assert active is not None and active.session_id == opened.session_id
        assert (active.expires_at, active.end_time, dict(active.session_data.root)) == (
            expires,
            None,
            {"note": "morning"},
        )
        assert await sessions.active(session, user_id=user_id, broker="paper") is None
        assert await sessions.active(session, user_id=user_id + 1, broker="zerodha") is None


async def test_a_new_session_ends_the_old_one_of_that_broker_only(manager: DatabaseManager, user_id: int):
    async with manager.transaction() as session:
        first = await sessions.open_session(session, user_id=user_id, broker="zerodha")
        await sessions.open_session(session, user_id=user_id, broker="paper")
    async with manager.transaction() as session:
        second = await sessions.open_session(session, user_id=user_id, broker="zerodha")
    assert first.session_id != second.session_id
    rows = {row.session_id: row for row in await stored(manager)}
    assert not rows[first.session_id].is_active
    assert rows[first.session_id].end_time == second.start_time
    assert sorted(row.broker for row in rows.values() if row.is_active) == ["paper", "zerodha"]


async def test_opening_leaves_the_commit_to_the_caller(manager: DatabaseManager, user_id: int):
    async with manager.transaction() as session:
        first = await sessions.open_session(session, user_id=user_id, broker="zerodha")
    async with manager.get_session() as session:
        await sessions.open_session(session, user_id=user_id, broker="zerodha")
    (row,) = await stored(manager)
    assert row.session_id == first.session_id and row.is_active


async def test_of_many_that_open_at_once_one_stays_active(manager: DatabaseManager, user_id: int):
    async def open_one() -> str:
        async with manager.transaction() as session:
            return (await sessions.open_session(session, user_id=user_id, broker="zerodha")).session_id

    ids = await asyncio.gather(*(open_one() for _ in range(8)))
    assert len(set(ids)) == 8
    assert sum(row.is_active for row in await stored(manager)) == 1


async def test_a_session_ends_once(manager: DatabaseManager, user_id: int):
    async with manager.transaction() as session:
        opened = await sessions.open_session(session, user_id=user_id, broker="zerodha")
        assert await sessions.end(session, session_id=opened.session_id)
        assert not await sessions.end(session, session_id=opened.session_id)
        assert not await sessions.end(session, session_id="unknown")
        assert await sessions.active(session, user_id=user_id, broker="zerodha") is None
    (row,) = await stored(manager)
    assert row.end_time is not None and row.end_time >= row.start_time


async def test_a_session_opened_by_a_clock_ahead_of_ours_can_be_ended(manager: DatabaseManager, user_id: int):
    async with manager.transaction() as session:
        opened = await sessions.open_session(session, user_id=user_id, broker="zerodha")
        ahead = datetime.now(UTC) + timedelta(minutes=5)
        await session.execute(update(TradingSession).values(start_time=ahead))
        assert await sessions.end(session, session_id=opened.session_id)
        await sessions.open_session(session, user_id=user_id, broker="zerodha")


async def test_an_expired_session_is_not_active(manager: DatabaseManager, user_id: int):
    async with manager.transaction() as session:
        await sessions.open_session(
            session, user_id=user_id, broker="zerodha", expires_at=datetime.now(UTC) + timedelta(milliseconds=300)
        )
    await asyncio.sleep(0.4)
    async with manager.get_session() as session:
        assert await sessions.active(session, user_id=user_id, broker="zerodha") is None


async def test_credentials_are_stored_sealed_for_their_row_and_erased_at_the_end(
    manager: DatabaseManager, user_id: int
):
    ring = KeyRing.parse(f"k1:{KeyRing.generate_key()}")
    async with manager.transaction() as session:
        first = await sessions.open_session(
            session, user_id=user_id, broker="zerodha", credentials="access-token-1", ring=ring
        )
        second = await sessions.open_session(
            session, user_id=user_id, broker="paper", credentials="access-token-2", ring=ring
        )
    rows = {row.session_id: row for row in await stored(manager)}
    for opened, token in ((first, "access-token-1"), (second, "access-token-2")):
        row = rows[opened.session_id]
        assert row.credentials is not None and b"access-token" not in row.credentials
        assert sessions.credentials_of(row, ring=ring) == token
    rows[first.session_id].credentials = rows[second.session_id].credentials
    with pytest.raises(EnvelopeTampered):
        sessions.credentials_of(rows[first.session_id], ring=ring)
    async with manager.transaction() as session:
        await sessions.end(session, session_id=first.session_id)
    ended = next(row for row in await stored(manager) if row.session_id == first.session_id)
    assert ended.credentials is None and sessions.credentials_of(ended, ring=ring) is None


async def test_credentials_without_a_key_ring_are_refused(manager: DatabaseManager, user_id: int):
    async with manager.get_session() as session:
        with pytest.raises(ConfigurationError, match="sealed"):
            await sessions.open_session(session, user_id=user_id, broker="zerodha", credentials="access-token")


MISFITS = [
    ({"broker": "Zerodha"}, "broker"),
    ({"expires_at": datetime(2026, 1, 1, tzinfo=UTC)}, "expires_at must be after start_time"),
    ({"expires_at": datetime(2099, 1, 1)}, "expires_at"),
    ({"user_id": 0}, "user_id"),
    ({"session_data": {"x": float("nan")}}, "x"),
]


async def test_values_that_do_not_fit_are_refused(manager: DatabaseManager, user_id: int):
    async with manager.get_session() as session:
        for arguments, words in MISFITS:
            with pytest.raises(InvalidInput, match=words):
                await sessions.open_session(session, **({"user_id": user_id, "broker": "zerodha"} | arguments))  # type: ignore[arg-type]


async def test_a_session_of_nobody_is_refused(manager: DatabaseManager):
    async with manager.get_session() as session:
        with pytest.raises(ForeignKeyViolation, match="no user 42") as caught:
            await sessions.open_session(session, user_id=42, broker="zerodha")
        assert caught.value.constraint == "fk_trading_sessions_user_id"
