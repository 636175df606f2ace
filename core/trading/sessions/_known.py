"""What a watch knows of the active sessions, and what has changed since."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.models import TradingSession
from core.trading.sessions._events import SessionEnded, SessionEvent, SessionExpiring, SessionOpened, SessionRenewed
from core.trading.sessions._expiry import BrokerSessions
from core.trading.sessions._standing import expired, one_of

_COLUMNS = (TradingSession.session_id, TradingSession.user_id, TradingSession.broker, TradingSession.expires_at)
_ACTIVE = sa.select(
    *_COLUMNS, sa.and_(TradingSession.told_expiry == TradingSession.expires_at, sa.not_(expired())).label("told")
).where(TradingSession.is_active)


@dataclass(slots=True)
class _Standing:
    user_id: int
    broker: str
    expires_at: datetime | None
    told: datetime | None
    """The end that it was told to be near."""


class KnownSessions:
    """The active sessions as they were last heard of; each change is an event once, whether it is heard or found."""

    def __init__(self) -> None:
        self._known: dict[str, _Standing] = {}
        self._begun = False
        self.brokers: set[str] = set()
        """Of all sessions that were ever known."""

    def heard(self, event: SessionEvent) -> list[SessionEvent]:
        """The event if it is news."""
        known = self._known.get(event.session_id)
        match event:
            case SessionOpened():
                if known is not None:
                    return []
                self._learn(event)
            case SessionEnded():
                if self._known.pop(event.session_id, None) is None:
                    return []
            case SessionExpiring():
                if known is None or known.told == event.expires_at:
                    return []
                renewed = SessionRenewed(event.session_id, event.user_id, event.broker, event.expires_at)
                known.told = event.expires_at
                return [*self.heard(renewed), event]
            case _:
                if known is None or known.expires_at == event.expires_at:
                    return []
                known.expires_at = event.expires_at
        return [event]

    def misses(self, event: SessionEvent) -> bool:
        """Whether it is of a session that goes on and was never told to be opened: nobody tells of a plain write to the table."""
        return isinstance(event, SessionExpiring | SessionRenewed) and event.session_id not in self._known

    def differs(self, standing: Iterable[BrokerSessions]) -> bool:
        """Whether a round has found other sessions than these: how many with each broker, and the next to expire."""
        active = Counter(known.broker for known in self._known.values())
        ends: dict[str, datetime] = {}
        for known in self._known.values():
            if known.expires_at is not None:
                ends[known.broker] = min(known.expires_at, ends.get(known.broker, known.expires_at))
        found = {item.broker: (item.active, item.next_expiry) for item in standing}
        return found != {broker: (count, ends.get(broker)) for broker, count in active.items()}

    async def looked_up(self, session: AsyncSession, session_id: str) -> list[SessionEvent]:
        """What there is to tell of a session that is not known."""
        return self._changed((await session.execute(_ACTIVE.where(TradingSession.session_id == session_id))).all())

    async def compared(self, session: AsyncSession) -> list[SessionEvent]:
        """What has happened since, by the database as it is now: endings first. The first time, what is about to expire."""
        rows = (await session.execute(_ACTIVE)).all()
        gone = sorted(self._known.keys() - {row.session_id for row in rows})
        over: dict[str, Any] = {}
        if gone:
            asked = sa.select(*_COLUMNS, TradingSession.end_reason).where(one_of(gone))
            over = {row.session_id: row for row in await session.execute(asked)}
        return [*self._ended(gone, over), *self._changed(rows)]

    def _ended(self, gone: Iterable[str], over: dict[str, Any]) -> list[SessionEvent]:
        events: list[SessionEvent] = []
        for session_id in gone:
            known, row = self._known.pop(session_id), over.get(session_id)
            expires_at = known.expires_at if row is None else row.expires_at
            reason = "ended" if row is None or row.end_reason is None else row.end_reason
            events.append(SessionEnded(session_id, known.user_id, known.broker, expires_at, reason))
        return events

    def _changed(self, rows: Iterable[Any]) -> list[SessionEvent]:
        events: list[SessionEvent] = []
        for row in rows:
            fields = (row.session_id, row.user_id, row.broker, row.expires_at)
            if row.session_id not in self._known:
                self._learn(opened := SessionOpened(*fields))
                events += [opened] if self._begun else []
            elif self._known[row.session_id].expires_at != row.expires_at:
                events += self.heard(SessionRenewed(*fields))
            if row.told:
                events += self.heard(SessionExpiring(*fields))
        self._begun = True
        return events

    def _learn(self, event: SessionEvent) -> None:
        self._known[event.session_id] = _Standing(event.user_id, event.broker, event.expires_at, told=None)
        self.brokers.add(event.broker)
