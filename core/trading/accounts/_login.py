"""Logging in: an attempt is counted, then verified, then recorded."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.connection import DatabaseManager
from core.database.errors import forgets
from core.database.models import User
from core.trading.accounts._audit import record
from core.trading.accounts._delays import LoginDelays, clear, name_digest, reserve, source_bucket
from core.trading.accounts._errors import InvalidCredentials, TooManyAttempts
from core.trading.accounts._metrics import count
from core.trading.accounts._names import form_of, name_of
from core.trading.accounts._outdated import outdated_kinds
from core.trading.accounts._passwords import checked_password, hash_password, verify
from core.trading.accounts._sources import Origin, known_as, origin, seen
from core.trading.sessions import revoke_all

T = TypeVar("T")
Success: TypeAlias = Callable[[AsyncSession, User], Awaitable[None]]
"""What a right password leads to, in the transaction that clears the delay."""

_LAST_WORK = 5.0  # seconds that a cancelled login is waited for, so that its record is written
_POLL = (0.05, 0.2)  # between looks whether the wait has been cut short by a login that succeeded
_DEFAULTS = LoginDelays()


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class _Attempt:
    """One that was admitted, and is counted as a failure until it is none. It has no repr: a name may be a password."""

    form: str
    where: Origin
    bucket: bytes
    user: User | None


@forgets
async def authenticate(
    manager: DatabaseManager,
    username: str,
    password: str,
    *,
    source: str | None = None,
    device: str | None = None,
    delays: LoginDelays = _DEFAULTS,
) -> User:
    """The active user of that name and password; how the name is typed does not matter (`types.folded`).

    Raises `InvalidCredentials`, the same and after the same time for an unknown name, a wrong password and a user who is
    disabled, and `TooManyAttempts` without looking at the password. A hash with older parameters is replaced.

    `source` is where the attempt comes from, as the application knows it and the client cannot choose it: its address by
    `source_of`. `device` is the cookie that `remember_device` once gave, as the client sent it. Where the user has logged
    in before, the failures of others do not count. Without either whoever fails on and on leaves the user one attempt among
    theirs every `delays.cap`.

    It owns its transactions, and needs a connection beside one that the caller holds (`PoolExhausted`, then nothing is
    counted): call it outside of a session. Count and record stay whatever the caller does. Counted first and then verified: of many at
    once only as many are admitted as may fail, and a login that breaks off counts as one that failed. Once an attempt is
    counted it is verified and recorded even if the caller is cancelled, which takes effect after that, or after 5 s; a
    second cancellation at once. Without a record are left an attempt whose database is lost before it ends, and one
    that is cancelled while it waits to be counted.
    """
    where = origin(source, device)

    async def log_in(session: AsyncSession, user: User) -> None:
        await record(session, "login", user.username, user_id=user.id, source=source)

    return await _prove(manager, username, password, where=where, delays=delays, success=log_in)


@forgets
async def change_password(
    manager: DatabaseManager,
    username: str,
    old: str,
    new: str,
    *,
    source: str | None = None,
    device: str | None = None,
    keep_sessions: bool = False,
    delays: LoginDelays = _DEFAULTS,
) -> User:
    """Set `new` as the password of who knows the `old` one, and end the user's trading sessions unless told to keep them.

    An attempt like that of `authenticate`, delayed and recorded with those. Raises `InvalidInput` for a `new` password that
    breaks the rules, before anything is counted, and what `authenticate` raises.
    """
    checked_password(new)
    where = origin(source, device)

    async def change(session: AsyncSession, user: User) -> None:
        await record(session, "password_changed", user.username, user_id=user.id, source=source)
        if not keep_sessions:
            await revoke_all(session, user.id)

    return await _prove(manager, username, old, new=new, where=where, delays=delays, success=change)


async def _prove(
    manager: DatabaseManager,
    username: str,
    password: str,
    *,
    new: str | None = None,
    where: Origin,
    delays: LoginDelays,
    success: Success,
) -> User:
    outdated = await outdated_kinds(manager)
    attempt = await _admitted(manager, username, where, delays)
    return await _to_the_end(_judged(manager, attempt, password, new=new, outdated=outdated, success=success))


async def _admitted(manager: DatabaseManager, username: str, where: Origin, delays: LoginDelays) -> _Attempt:
    """The attempt, counted. A short wait is waited for here. Raises `TooManyAttempts`."""
    loop = asyncio.get_running_loop()
    due = loop.time() + max(delays.patience, _POLL[0])  # a wait may end while it is looked at
    while True:
        patience = due - loop.time()
        enter = partial(_enter, username=username, where=where, delays=delays, patience=patience)
        attempt, wait = await manager.run_transaction(enter)
        if wait == 0:
            return attempt
        if wait > patience:
            count(manager, "delayed")
            raise TooManyAttempts(f"too many failed logins; the next may be tried in {wait:.0f} s", retry_after=wait)
        await asyncio.sleep(min(wait, random.uniform(*_POLL)))  # noqa: S311 - it spreads load


async def _enter(
    session: AsyncSession, *, username: str, where: Origin, delays: LoginDelays, patience: float
) -> tuple[_Attempt, float]:
    """The attempt, and the seconds that it has to wait, which is recorded where it is more than the patience."""
    form = form_of(username)
    query = select(User, known_as(where, delays)).where(User.username == (name_of(username) or ""))
    user, known = (await session.execute(query)).one_or_none() or (None, None)
    bucket = name_digest(form) if known is None else source_bucket(form, known)
    wait = await reserve(session, bucket, delays)
    if wait > patience:
        await record(session, "login_delayed", form, user_id=user.id if user else None, source=where.source)
    return _Attempt(form=form, where=where, bucket=bucket, user=user), wait


async def _judged(
    manager: DatabaseManager,
    attempt: _Attempt,
    password: str,
    *,
    new: str | None,
    outdated: tuple[str, ...],
    success: Success,
) -> User:
    user = attempt.user
    while True:
        hashed = user.hashed_password if user is not None and user.is_active else None
        matches, renewed = await verify(password, hashed, outdated=outdated)
        if user is None or hashed is None or not matches:
            await manager.run_transaction(partial(_refuse, attempt=attempt, user=user))
            count(manager, "refused")
            raise InvalidCredentials("the user name or the password is wrong")
        if new is not None:
            renewed = await hash_password(new)
        accept = partial(_accept, attempt=attempt, user_id=user.id, hashed=hashed, renewed=renewed, success=success)
        user, accepted = await manager.run_transaction(accept)
        if accepted:
            count(manager, "accepted")
            return user


async def _refuse(session: AsyncSession, *, attempt: _Attempt, user: User | None) -> None:
    known, user_id = (None, None) if user is None else (user.is_active, user.id)
    reason = {None: "unknown_name", True: "wrong_password", False: "inactive"}[known]
    await record(session, "login_refused", attempt.form, reason=reason, user_id=user_id, source=attempt.where.source)


async def _accept(
    session: AsyncSession, *, attempt: _Attempt, user_id: int, hashed: str, renewed: str | None, success: Success
) -> tuple[User, bool]:
    """The user as stored by now, and whether it is still who was verified: else the password is held against that one."""
    user = await session.get_one(User, user_id, with_for_update={"key_share": True}, populate_existing=True)
    if user.hashed_password != hashed or not user.is_active:
        return user, False
    if renewed is not None:
        user.hashed_password = renewed
    await success(session, user)
    await seen(session, user.id, attempt.where)
    await session.flush()
    await clear(session, [attempt.bucket])
    return user, True


_going_on: set[asyncio.Task[Any]] = set()


async def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Its result. A cancellation waits for its end, some seconds at the most; a second one does not."""
    task = asyncio.create_task(work, name="panda login")
    _going_on.add(task)
    task.add_done_callback(_seen)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=_LAST_WORK)
        raise


def _seen(task: asyncio.Task[Any]) -> None:
    _going_on.discard(task)
    if not task.cancelled():
        task.exception()
