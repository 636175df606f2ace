"""The feed of changes: notifications say when to read the outbox, and the outbox says what there is."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

from sqlalchemy import Row, and_, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput, PandaDatabaseError, PoolExhausted, ResourceExhausted, StatementTimeout
from core.database.models import StrategyRevision
from core.database.models.revisions import CHANNEL, STATE
from core.database.monitoring import get_logger
from core.database.notify import Listener, Notification, Resync
from core.trading.strategies._errors import FeedRewound
from core.trading.strategies._reads import last_change

T = TypeVar("T")

_POLL: Final = 0.5  # seconds between two looks where no notification comes through
_QUIET: Final = (
    5.0  # seconds after which an outbox is looked at unasked, for a listener whose network is dead unnoticed
)
_BACKOFF: Final = (0.05, 0.5)
_PAGE: Final = 500
_LONGEST_CURSOR: Final = 19  # digits; who writes more is not us
_PASSING = (PoolExhausted, StatementTimeout, ResourceExhausted)

_log = get_logger()


@dataclass(frozen=True, slots=True)
class StrategyChange:
    """A version that came into force. `change_id` is the cursor to go on from; `fields` are the columns that changed."""

    change_id: int
    strategy_id: str
    version: int
    is_active: bool
    changed_by: str | None
    note: str | None
    changed_at: datetime
    fields: tuple[str, ...]


async def watch(manager: DatabaseManager, *, after: int | None = None) -> AsyncGenerator[StrategyChange]:
    """The changes after the cursor `after`, in order, each exactly once, without end.

    A committed change arrives in some milliseconds by NOTIFY; behind PgBouncer, which carries none, within half a second.
    A lost connection or a server that restarts loses nothing: the feed waits for it, and reads on from its cursor. Store
    `change.change_id` when its work is done, and give it as `after` next time. Without `after` it begins with what is
    committed after the first `anext`: to miss nothing, read `last_change` first, then the strategies, then watch from there.

    It ends when it is closed or cancelled; where a loop is left early, `contextlib.aclosing` closes it. Outside PgBouncer
    it holds a connection of its own. Raises `FeedRewound` if the database no longer holds what the cursor has seen,
    `InvalidInput` for a negative one, and errors that waiting does not mend.
    """
    if after is not None and after < 0:
        raise InvalidInput("after: a cursor is 0 or the change_id of a change", column="after")
    async with _signals(manager) as signals:
        cursor = await _patiently(lambda: _begin(manager, after))
        while True:
            rows = await _patiently(lambda: _page(manager, cursor))  # noqa: B023 - awaited at once
            for row in rows:
                yield _change(row)
                cursor = row.StrategyRevision.change_id
            if len(rows) < _PAGE and await signals.wait(cursor):
                await _patiently(lambda: _begin(manager, cursor))  # noqa: B023


class _Signals:
    """When to look: notified, or at the latest every so many seconds."""

    def __init__(self, listener: Listener | None) -> None:
        self._listener = listener
        self._events: AsyncIterator[Notification | Resync] | None = None

    async def wait(self, cursor: int) -> bool:
        """Until there may be something after `cursor`; whether the connection was made anew."""
        if self._listener is None:
            await asyncio.sleep(_POLL)
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_QUIET):
                while True:
                    event = await self._next()
                    if isinstance(event, Resync):
                        return True
                    told = event.payload
                    if len(told) > _LONGEST_CURSOR or not told.isdecimal() or int(told) > cursor:
                        return False
        self._events = None  # ended by the cancelled wait
        return False

    async def _next(self) -> Notification | Resync:
        assert self._listener is not None
        if self._events is None:
            self._events = aiter(self._listener)
        return await anext(self._events)


@contextlib.asynccontextmanager
async def _signals(manager: DatabaseManager) -> AsyncGenerator[_Signals]:
    if manager.engine.get_execution_options().get("pgbouncer"):
        yield _Signals(None)
        return

    async def listening() -> Listener:
        return await Listener(manager.engine, [CHANNEL], backoff_max=_BACKOFF[1]).__aenter__()

    listener = await _patiently(listening)
    try:
        yield _Signals(listener)
    finally:
        await listener.__aexit__(None, None, None)


async def _begin(manager: DatabaseManager, cursor: int | None) -> int:
    async with manager.get_session() as session:
        last = await last_change(session)
    if cursor is not None and cursor > last:
        raise FeedRewound(f"the feed stands at change {cursor}, and the last one of the database is {last}")
    return last if cursor is None else cursor


async def _page(manager: DatabaseManager, cursor: int) -> Sequence[Row[Any]]:
    async with manager.get_session() as session:
        return await _rows(session, cursor)


async def _rows(session: AsyncSession, cursor: int) -> Sequence[Row[Any]]:
    before = aliased(StrategyRevision)
    differing = [
        func.coalesce(getattr(StrategyRevision, field).is_distinct_from(getattr(before, field)), True).label(field)
        for field in STATE
    ]
    query = (
        select(StrategyRevision, before.version.label("before"), *differing)
        .outerjoin(
            before,
            and_(before.strategy_id == StrategyRevision.strategy_id, before.version == StrategyRevision.version - 1),
        )
        .where(StrategyRevision.change_id > cursor)
        .order_by(StrategyRevision.change_id)
        .limit(_PAGE)
    )
    return (await session.execute(query)).all()


def _change(row: Row[Any]) -> StrategyChange:
    one: StrategyRevision = row.StrategyRevision
    fields = STATE if row.before is None else tuple(field for field in STATE if getattr(row, field))
    return StrategyChange(
        change_id=one.change_id,
        strategy_id=one.strategy_id,
        version=one.version,
        is_active=one.is_active,
        changed_by=one.changed_by,
        note=one.note,
        changed_at=one.created_at,
        fields=fields,
    )


async def _patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Await it again, with growing pauses, while it meets what passes by itself."""
    pause, longest = _BACKOFF
    told = False
    while True:
        try:
            return await work()
        except PandaDatabaseError as error:
            if not (error.retryable or isinstance(error, _PASSING)):
                raise
            if not told:
                _log.warning("strategy feed waits for the database", error=type(error).__name__)
                told = True
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads the clients, guards nothing
        pause = min(pause * 2, longest)
