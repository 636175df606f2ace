"""Work on partitions that no transaction can hold: one process at a time, waiting in a way that stops nobody for long."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from typing import TypeVar

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.connection import DatabaseManager
from core.database.errors import ConfigurationError, DeadlockDetected, InvalidInput, LockTimeout
from core.database.types import checked_date

T = TypeVar("T")
MaintenanceProgress = Callable[[str, str], None]
"""Told the partition and what is about to be done to it."""

PATIENCE = 60.0
_PAUSE = 1.0
_TURN_WAIT = 5.0
# By way of pg_settings, so that what an older server does not know (transaction_timeout) is passed over. A statement whose
# client died ends within a second where the server's system can tell; on others that setting is refused.
_SET = text("""
    SELECT count(set_config(s.name, v.value, false)) FROM pg_settings AS s JOIN (VALUES
        ('statement_timeout', '0'), ('transaction_timeout', '0'), ('idle_session_timeout', '0'),
        ('client_connection_check_interval', '1000')) AS v (name, value) ON v.name = s.name
    WHERE s.name <> 'client_connection_check_interval' OR version() LIKE '%linux%'
""")
_TURN = text("SELECT pg_try_advisory_lock(hashtextextended('alpha-panda: snapshot maintenance', 0))")
_PLACE = text("""
    SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus'), quote_ident(n.nspname) || '.portfolio_snapshots'
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = 'portfolio_snapshots'::regclass
""")
_TODAY = text("SELECT (now() AT TIME ZONE 'UTC')::date")


@dataclass(frozen=True, slots=True)
class Workbench:
    """A session of which each statement is a transaction of its own, and where it works."""

    session: AsyncSession
    citus: bool
    parent: str
    """The history as SQL names it."""
    patience: float

    async def run(self, statement: str, *, lock: float) -> None:
        """Without parameters; `lock` seconds bound each of its waits for a lock."""
        await self.session.execute(text(f"SET lock_timeout = '{lock * 1_000:.0f}ms'"))
        await self.session.execute(text(statement))

    async def patiently(self, step: Callable[[], Awaitable[T]]) -> T:
        """Again after each wait for a lock that was too long, until `patience` is used up. Raises `LockTimeout` then."""
        clock = asyncio.get_running_loop()
        deadline = clock.time() + self.patience
        while True:
            try:
                return await step()
            except (LockTimeout, DeadlockDetected):
                if clock.time() >= deadline:
                    raise
            # Who was made to wait behind the attempt gets the lock in between.
            await asyncio.sleep(random.uniform(0.1, _PAUSE))  # noqa: S311 - it spreads load, it guards nothing


@asynccontextmanager
async def workbench(manager: DatabaseManager, *, patience: float) -> AsyncGenerator[Workbench]:
    """One connection outside any transaction, for one process at a time; it does not go back to the pool.

    Raises `LockTimeout` while another process is at it, `ConfigurationError` behind PgBouncer.
    """
    if manager.engine.get_execution_options().get("pgbouncer"):
        raise ConfigurationError(
            "partitions cannot be removed or thinned out through PgBouncer",
            hint="Give the server's own address and DATABASE__PGBOUNCER=false for this one command.",
        )
    async with manager.get_session() as session:
        await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        try:
            await session.execute(_SET)
            await _take_turn(session, patience=min(patience, _TURN_WAIT))
            citus, parent = (await session.execute(_PLACE)).one()
            if citus:
                await session.execute(text("SET citus.multi_shard_modify_mode = 'sequential'"))
            yield Workbench(session, citus, parent, patience)
        finally:
            # Its settings and its lock are the session's: both go with the connection.
            await session.invalidate()


async def _take_turn(session: AsyncSession, *, patience: float) -> None:
    """The server needs a second to see that a client was killed, and to let go of its lock."""
    clock = asyncio.get_running_loop()
    deadline = clock.time() + patience
    while not await session.scalar(_TURN):
        if clock.time() >= deadline:
            raise LockTimeout(
                "another process is pruning or downsampling the snapshots",
                hint="Run it again when that has ended; `panda top` shows it.",
            )
        await asyncio.sleep(0.1)


async def checked_before(session: AsyncSession, before: date) -> date:
    """A day that is past, so that the current month never ends by then. Raises `InvalidInput`."""
    try:
        before = checked_date(before)
    except InvalidInput as fault:
        raise InvalidInput(f"before: {fault.message}", column="before") from None
    today = await server_today(session)
    if before > today:
        raise InvalidInput(f"before must not be after {today}, which is today in UTC", column="before")
    return before


async def server_today(session: AsyncSession) -> date:
    """By the server's clock, in UTC: a wrong one here must not make a month seem past."""
    return (await session.execute(_TODAY)).scalar_one()
