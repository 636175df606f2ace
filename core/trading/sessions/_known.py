"""What a watch knows of the active sessions, and what has changed since."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.models import TradingSession
from core.trading.sessions._events import SessionEnded, SessionEvent, SessionExpiring, SessionOpened, SessionRenewed
from core.trading.sessions._standing import expired, one_of


@dataclass(slots=True)
class _Standing:
    user_id: int
    broker: str
    expires_at: datetime | None
    told: bool


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
                if known is None or known.told:
                    return []
                known.told = True
            case _:
                if known is None or (known.expires_at == event.expires_at and not known.told):
                    return []
                known.expires_at, known.told = event.expires_at, False
        return [event]

    async def compared(self, session: AsyncSession) -> list[SessionEvent]:
        """What has happened since, by the database as it is now: endings first. The first time, what is about to expire."""
        table = TradingSession
        columns = (table.session_id, table.user_id, table.broker, table.expires_at)
        told = sa.and_(table.expiry_told_at.is_not(None), sa.not_(expired())).label("told")
        rows = (await session.execute(sa.select(*columns, told).where(table.is_active))).all()
        gone = sorted(self._known.keys() - {row.session_id for row in rows})
        over: dict[str, Any] = {}
        if gone:
            asked = sa.select(*columns, table.end_reason).where(one_of(gone))
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
        self._known[event.session_id] = _Standing(event.user_id, event.broker, event.expires_at, told=False)
        self.brokers.add(event.broker)
