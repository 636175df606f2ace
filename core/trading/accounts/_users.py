"""Users: register, find, and what an administrator does for them."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.connection import DatabaseManager
from core.database.errors import forgets
from core.database.models import KnownSource, User
from core.database.records import AuthEventKind, UserCreate
from core.database.types import invalid_input
from core.trading.accounts._audit import record
from core.trading.accounts._delays import LoginDelays, clear, name_digest, source_bucket, waiting
from core.trading.accounts._errors import UserNotFound
from core.trading.accounts._names import checked_actor, form_of, name_of, new_name
from core.trading.accounts._passwords import hash_password
from core.trading.sessions import revoke_all


async def register(session: AsyncSession, username: str, password: str, *, actor: str | None = None) -> User:
    """Add a user and the event; the caller commits. The name is stored in its one form (`types.folded`).

    `actor` is who did it, if not the user. Raises `InvalidInput` naming `username` or `password`, and `UniqueViolation` if
    the name is taken, however it is typed; the caller's transaction goes on after that.
    """
    name = new_name(username)
    checked_actor(actor)
    hashed = await hash_password(password)
    try:
        user = User(**UserCreate(username=name, hashed_password=hashed).columns())
    except ValidationError as fault:
        raise invalid_input(fault) from None
    async with session.begin_nested():
        session.add(user)
        await session.flush()
        await record(session, "registered", name, user_id=user.id, actor=actor)
    return user


async def find(session: AsyncSession, user: int | str) -> User:
    """The user of that id or name, disabled or not. Raises `UserNotFound`."""
    return await _found(session, user)


async def listing(session: AsyncSession, *, active_only: bool = False) -> Sequence[User]:
    """Users by name."""
    query = select(User).order_by(User.username)
    return (await session.scalars(query.where(User.is_active) if active_only else query)).all()


async def waits(session: AsyncSession, username: str, *, delays: LoginDelays | None = None) -> float:
    """Seconds that the next login with that name has to wait where its user has not logged in before."""
    return await waiting(session, name_digest(form_of(username)), delays or LoginDelays())


@forgets
async def set_password(manager: DatabaseManager, user: int | str, new: str, *, actor: str) -> User:
    """Reset a password, end the user's trading sessions and forget the failed logins. `actor` is who does it.

    Raises `UserNotFound`, and `InvalidInput` naming `password` or `actor`.
    """
    hashed = await hash_password(new)

    async def reset(session: AsyncSession, found: User) -> AuthEventKind | None:
        found.hashed_password = hashed
        await revoke_all(session, found.id)
        await _clear_all(session, found)
        return "password_reset"

    return await _changed(manager, user, actor, reset)


async def disable(manager: DatabaseManager, user: int | str, *, actor: str) -> User:
    """Let the user log in no more, and end the trading sessions. Does nothing twice. Raises `UserNotFound`, `InvalidInput`.

    A login under way is refused, unless it was recorded before.
    """

    async def close(session: AsyncSession, found: User) -> AuthEventKind | None:
        await revoke_all(session, found.id)
        was, found.is_active = found.is_active, False
        return "disabled" if was else None

    return await _changed(manager, user, actor, close)


async def enable(manager: DatabaseManager, user: int | str, *, actor: str) -> User:
    """Let a disabled user log in again. Does nothing twice. Raises `UserNotFound`, `InvalidInput`."""

    async def reopen(_session: AsyncSession, found: User) -> AuthEventKind | None:
        was, found.is_active = found.is_active, True
        return None if was else "enabled"

    return await _changed(manager, user, actor, reopen)


async def unlock(manager: DatabaseManager, user: int | str, *, actor: str) -> User:
    """Forget the failed logins with the user's name, from wherever. Raises `UserNotFound`, `InvalidInput`."""

    async def forget(session: AsyncSession, found: User) -> AuthEventKind | None:
        await _clear_all(session, found)
        return "unlocked"

    return await _changed(manager, user, actor, forget)


async def _changed(manager: DatabaseManager, user: int | str, actor: str, change: Any) -> User:
    """The user after `change(session, user)`, which says as what it is recorded; in a transaction of its own."""
    checked_actor(actor)

    async def work(session: AsyncSession) -> User:
        found = await _found(session, user, lock=True)
        kind = await change(session, found)
        if kind is not None:
            await record(session, kind, found.username, user_id=found.id, actor=actor)
        await session.flush()
        return found

    return await manager.run_transaction(work)


async def _found(session: AsyncSession, user: int | str, *, lock: bool = False) -> User:
    query = select(User).where(User.username == (name_of(user) or "") if isinstance(user, str) else User.id == user)
    found = await session.scalar(query.with_for_update(key_share=True) if lock else query)
    if found is None:
        raise UserNotFound("there is no user of that name" if isinstance(user, str) else f"there is no user {user}")
    return found


async def _clear_all(session: AsyncSession, user: User) -> None:
    sources = await session.scalars(select(KnownSource.source).where(KnownSource.user_id == user.id))
    await clear(session, [name_digest(user.username), *(source_bucket(user.username, source) for source in sources)])
