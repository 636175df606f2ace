"""Ending what is due, and telling of what soon will be."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.connection import DatabaseManager
from core.database.errors import ConfigurationError
from core.database.models import TradingSession
from core.database.types import UtcDateTime
from core.trading.sessions._end import end_where
from core.trading.sessions._events import SessionEnded, SessionExpiring, tell
from core.trading.sessions._standing import one_of, server_clock, untold

WARN_BEFORE = timedelta(minutes=30)
_LONGEST_WARNING = timedelta(days=366)
_BATCH = 500
_NOW = sa.func.statement_timestamp(type_=UtcDateTime())
"""The server's clock in a form that an index is searched by, which `clock_timestamp()` is not."""


@dataclass(frozen=True, slots=True)
class BrokerSessions:
    """How the active sessions with a broker stand."""

    broker: str
    active: int
    next_expiry: datetime | None
    next_warning: datetime | None
    """When the next one is to be told that has not been told yet."""


@dataclass(frozen=True, slots=True)
class ExpiryReport:
    """What one round of `expire_due` did, and what it left."""

    expired: tuple[SessionEnded, ...]
    warned: tuple[SessionExpiring, ...]
    brokers: tuple[BrokerSessions, ...]
    """Of those with active sessions, by name."""
    now: datetime
    """By the server's clock."""

    @property
    def next_due(self) -> datetime | None:
        """When there will be something to do, unless sessions are opened or renewed meanwhile."""
        times = (at for item in self.brokers for at in (item.next_expiry, item.next_warning))
        return min((at for at in times if at is not None), default=None)


async def expire_due(
    manager: DatabaseManager, *, warn_before: timedelta = WARN_BEFORE, batch: int = _BATCH
) -> ExpiryReport:
    """End the sessions whose time has come, and tell once of those that expire within `warn_before`.

    Owns its transactions, one for each `batch` of rows, and tells listeners in them. Processes that do this at once share the
    work: what another is at is passed over. A session that has expired ended when it expired, and its credentials are erased.
    """
    if not timedelta(0) <= warn_before <= _LONGEST_WARNING:
        raise ConfigurationError(f"warn_before must be 0 to {_LONGEST_WARNING.days} days")
    if batch < 1:
        raise ConfigurationError("batch must be 1 or more")
    expired: list[SessionEnded] = []
    warned: list[SessionExpiring] = []

    async def expire(session: AsyncSession) -> list[SessionEnded]:
        return await _expire(session, batch)

    async def warn(session: AsyncSession) -> list[SessionExpiring]:
        return await _warn(session, warn_before, batch)

    while done := await manager.run_transaction(expire):
        expired += done
    while told := await manager.run_transaction(warn):
        warned += told
    async with manager.get_session() as session:
        now, brokers = await standing(session, warn_before)
    return ExpiryReport(tuple(expired), tuple(warned), brokers, now)


async def standing(session: AsyncSession, warn_before: timedelta) -> tuple[datetime, tuple[BrokerSessions, ...]]:
    """The server's clock, and how the active sessions stand with each broker that has some."""
    table = TradingSession
    by_broker = (
        sa.select(
            table.broker,
            sa.func.count().label("active"),
            sa.func.min(table.expires_at, type_=UtcDateTime()).label("next_expiry"),
            sa.func.min(table.expires_at, type_=UtcDateTime()).filter(untold()).label("untold"),
        )
        .where(table.is_active)
        .group_by(table.broker)
        .subquery("by_broker")
    )
    clock = sa.select(server_clock().label("now")).subquery("clock")
    asked = sa.select(clock, by_broker).select_from(clock).outerjoin(by_broker, sa.true()).order_by(by_broker.c.broker)
    rows = (await session.execute(asked)).all()
    return rows[0].now, tuple(
        BrokerSessions(row.broker, row.active, row.next_expiry, row.untold and row.untold - warn_before)
        for row in rows
        if row.broker is not None
    )


async def _expire(session: AsyncSession, batch: int) -> list[SessionEnded]:
    rows = await _taken(session, TradingSession.expires_at <= _NOW, batch)
    if not rows:
        return []
    ended = await end_where(session, one_of([row.session_id for row in rows]), rows[0].now)
    await tell(session, ended)
    return ended


async def _warn(session: AsyncSession, warn_before: timedelta, batch: int) -> list[SessionExpiring]:
    table = TradingSession
    near = (table.expires_at > _NOW) & (table.expires_at <= _NOW + warn_before) & untold()
    rows = await _taken(session, near, batch)
    if not rows:
        return []
    await session.execute(
        sa.update(table)
        .where(one_of([row.session_id for row in rows]))
        .values(told_expiry=table.expires_at)
        .execution_options(synchronize_session=False)
    )
    told = [SessionExpiring(row.session_id, row.user_id, row.broker, row.expires_at) for row in rows]
    await tell(session, told)
    return told


async def _taken(session: AsyncSession, which: sa.ColumnElement[bool], batch: int) -> list[Any]:
    """Active ones, locked; those that somebody else has locked are left to the next round."""
    table = TradingSession
    found = await session.execute(
        sa.select(table.session_id, table.user_id, table.broker, table.expires_at, _NOW.label("now"))
        .where(table.is_active, which)
        .order_by(table.expires_at)
        .limit(batch)
        .with_for_update(skip_locked=True, key_share=True)
    )
    return list(found)
