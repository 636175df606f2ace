"""The record of what happened to accounts and was tried with their names."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import CursorResult, delete, func, insert, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput
from core.database.models import AuthEvent, KnownSource, LoginDelay
from core.database.records import AuthEventKind
from core.trading.accounts._delays import LoginDelays, name_digest
from core.trading.accounts._names import form_of


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneReport:
    """How many rows were removed."""

    events: int
    delays: int
    """Failures that were forgotten anyway."""
    sources: int
    """Those not seen for so long that they count as unknown."""


async def events(
    session: AsyncSession,
    *,
    user: int | str | None = None,
    kinds: Sequence[AuthEventKind] = (),
    since: datetime | None = None,
    before: int | None = None,
    limit: int = 100,
) -> Sequence[AuthEvent]:
    """The newest `limit` events, newest first; the next ones with `before=` the last one's `event_id`.

    Of a `user` by id: what is known to be of that account. By name: whatever was tried with it, before there was such a
    user too. Raises `InvalidInput`.
    """
    if not 1 <= limit <= 100_000:
        raise InvalidInput("limit must be from 1 to 100000", column="limit")
    query = select(AuthEvent).order_by(AuthEvent.event_id.desc()).limit(limit)
    if isinstance(user, str):
        query = query.where(AuthEvent.name_digest == name_digest(form_of(user)))
    elif user is not None:
        query = query.where(AuthEvent.user_id == user)
    if kinds:
        query = query.where(AuthEvent.kind.in_(kinds))
    if since is not None:
        query = query.where(AuthEvent.occurred_at >= since)
    if before is not None:
        query = query.where(AuthEvent.event_id < before)
    return (await session.scalars(query)).all()


async def record(session: AsyncSession, kind: AuthEventKind, form: str, **columns: Any) -> None:
    """One event of the name, in the transaction of who calls."""
    await session.execute(insert(AuthEvent).values(kind=kind, name_digest=name_digest(form), **columns))


async def prune_events(
    manager: DatabaseManager, *, older_than: timedelta, delays: LoginDelays | None = None, batch: int = 10_000
) -> PruneReport:
    """Remove events of that age, and the delays and sources that count for nothing any more; safe to run again after a kill.

    `batch` rows a transaction. Delays and sources go first: the application's role may not remove events, for which the
    owner's is needed (`PermissionDenied`). Raises `InvalidInput` for an age that is none.
    """
    if older_than <= timedelta(0):
        raise InvalidInput("older_than must be above 0", column="older_than")
    if batch < 1:
        raise InvalidInput("batch must be above 0", column="batch")
    rules = delays or LoginDelays()
    ages = (
        (LoginDelay, LoginDelay.failed_at, timedelta(seconds=rules.forgotten)),
        (KnownSource, KnownSource.seen_at, timedelta(seconds=rules.known)),
        (AuthEvent, AuthEvent.occurred_at, older_than),
    )
    forgotten, unseen, old = [await _prune(manager, *rule, batch) for rule in ages]
    return PruneReport(events=old, delays=forgotten, sources=unseen)


async def _prune(manager: DatabaseManager, model: Any, at: Any, age: timedelta, batch: int) -> int:
    old = at < func.now() - age
    key = tuple_(*model.__table__.primary_key.columns)
    removal = delete(model).where(key.in_(select(*key).where(old).order_by(at).limit(batch)), old)

    async def remove(session: AsyncSession) -> int:
        return cast("CursorResult[Any]", await session.execute(removal)).rowcount

    removed = count = await manager.run_transaction(remove)
    while count == batch:
        removed += (count := await manager.run_transaction(remove))
    return removed
