"""The feed of changes: notifications say when to read the outbox, and the outbox says what there is."""

import asyncio
import contextlib
import hashlib
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from sqlalchemy import ColumnElement, Row, and_, func, select
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
_MARK: Final = 12  # digits of the digest by which a change is known again
_CURSOR: Final = re.compile(rf"([0-9]{{1,{_LONGEST_CURSOR}}})(?::([0-9a-f]{{{_MARK}}}))?")
_TOLD: Final = ("change_id", "strategy_id", "version", "changed_by", "note", "created_at")
_PASSING = (PoolExhausted, StatementTimeout, ResourceExhausted)

_log = get_logger()


@dataclass(frozen=True, slots=True)
class StrategyChange:
    """A version that came into force. `cursor` is where to go on from; `fields` are the columns that changed."""

    change_id: int
    cursor: str
    strategy_id: str
    version: int
    is_active: bool
    changed_by: str | None
    note: str | None
    changed_at: datetime
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Cursor:
    """The change that was seen last, and by what it is known again; None where that was not told."""

    change_id: int
    mark: str | None = None

    @classmethod
    def given(cls, after: int | str) -> "_Cursor":
        found = _CURSOR.fullmatch(str(after))
        if found is None or isinstance(after, bool):
            raise InvalidInput("after: takes 0, the cursor of a change, or its change_id", column="after")
        return cls(int(found[1]), found[2])

    @classmethod
    def at(cls, row: Row[Any]) -> "_Cursor":
        identity = (
            f"{row.change_id} {row.version} {row.created_at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f} {row.strategy_id}"
        )
        return cls(row.change_id, hashlib.sha256(identity.encode()).hexdigest()[:_MARK])

    def __str__(self) -> str:
        return f"{self.change_id}:{self.mark}"


async def watch(manager: DatabaseManager, *, after: int | str | None = None) -> AsyncGenerator[StrategyChange]:
    """The changes after the cursor `after`, in order, each exactly once, without end.

    A committed change arrives in some milliseconds by NOTIFY; behind PgBouncer, which carries none, within half a second.
    A lost connection or a server that restarts loses nothing: the feed waits for it, and reads on from its cursor. Store
    `change.cursor` when its work is done, and give it as `after` next time; a `change_id` does too, but cannot be told from
    another database's. Without `after` it begins with what is
    committed after the first `anext`: to miss nothing, read `last_change` first, then the strategies, then watch from there.

    It ends when it is closed or cancelled; where a loop is left early, `contextlib.aclosing` closes it. Outside PgBouncer
    it holds a connection of its own. Raises `FeedRewound` if the database no longer holds the change that it has told last,
    also where others were written past it since, `InvalidInput` for what is no cursor, and errors that waiting does not mend.
    """
    given = None if after is None else _Cursor.given(after)
    async with _signals(manager) as signals:
        cursor = await _patiently(lambda: _begin(manager, given))
        while True:
            rows = await _patiently(lambda: _page(manager, cursor))  # noqa: B023 - awaited at once
            for row in rows:
                cursor = _Cursor.at(row)
                yield _change(row, cursor)
            if len(rows) < _PAGE:
                await signals.wait(cursor.change_id)


class _Signals:
    """When to look: notified, or at the latest every so many seconds."""

    def __init__(self, listener: Listener | None) -> None:
        self._listener = listener
        self._events: AsyncIterator[Notification | Resync] | None = None

    async def wait(self, cursor: int) -> None:
        """Until there may be something after `cursor`, or may not be what there was."""
        if self._listener is None:
            await asyncio.sleep(_POLL)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_QUIET):
                while True:
                    event = await self._next()
                    if isinstance(event, Resync):
                        return
                    told = event.payload
                    if len(told) > _LONGEST_CURSOR or not told.isdecimal() or int(told) > cursor:
                        return
        self._events = None  # ended by the cancelled wait

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


async def _begin(manager: DatabaseManager, given: _Cursor | None) -> _Cursor:
    async with manager.get_session() as session:
        last = await last_change(session)
        at = last if given is None else given.change_id
        found = [_Cursor.at(row) for row in await _rows(session, StrategyRevision.change_id == at)]
    cursor = found[0] if found else _Cursor(at)
    if given is not None and (given.change_id > last or given.mark not in (None, cursor.mark)):
        raise _rewound(given, last)
    return cursor


async def _page(manager: DatabaseManager, cursor: _Cursor) -> Sequence[Row[Any]]:
    """What follows the cursor. Its own change is read with it: whichever server answers, it must be one that has that."""
    async with manager.get_session() as session:
        rows = await _rows(session, StrategyRevision.change_id >= cursor.change_id)
        if cursor.mark is None:
            return [row for row in rows if row.change_id > cursor.change_id]
        if not rows or _Cursor.at(rows[0]) != cursor:
            raise _rewound(cursor, await last_change(session))
    return rows[1:]


def _rewound(cursor: _Cursor, last: int) -> FeedRewound:
    if cursor.change_id > last:
        held = f"the last one of the database is {last}"
    else:
        held = f"the database, whose last one is {last}, does not hold that one"
    return FeedRewound(f"the feed stands at change {cursor.change_id}, and {held}")


async def _rows(session: AsyncSession, which: ColumnElement[bool]) -> Sequence[Row[Any]]:
    before = aliased(StrategyRevision)
    differing = [
        func.coalesce(getattr(StrategyRevision, field).is_distinct_from(getattr(before, field)), True).label(field)
        for field in STATE
    ]
    told = [getattr(StrategyRevision, name) for name in _TOLD]
    query: Any = (
        select(*told, StrategyRevision.is_active.label("active"), before.version.label("before"), *differing)
        .outerjoin(
            before,
            and_(before.strategy_id == StrategyRevision.strategy_id, before.version == StrategyRevision.version - 1),
        )
        .where(which)
        .order_by(StrategyRevision.change_id)
        .limit(_PAGE + 1)
    )
    return (await session.execute(query)).all()


def _change(row: Row[Any], cursor: _Cursor) -> StrategyChange:
    return StrategyChange(
        change_id=row.change_id,
        cursor=str(cursor),
        strategy_id=row.strategy_id,
        version=row.version,
        is_active=row.active,
        changed_by=row.changed_by,
        note=row.note,
        changed_at=row.created_at,
        fields=STATE if row.before is None else tuple(field for field in STATE if getattr(row, field)),
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
