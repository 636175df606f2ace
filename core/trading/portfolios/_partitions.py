"""The monthly partitions of the snapshots."""

from collections.abc import Iterator
from datetime import date, datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput
from core.database.models import snapshot_partition_ddl, snapshot_partition_name
from core.database.types import checked_date, checked_utc

_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('alpha-panda: snapshot partitions', 0))")
_EXISTING = text(
    "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    " WHERE i.inhparent = 'portfolio_snapshots'::regclass AND c.relname = ANY(:names)"
)
_MAX_MONTHS = 1_200


async def ensure_partitions(target: DatabaseManager | AsyncSession, start: date, end: date) -> tuple[str, ...]:
    """Make the partitions of every UTC month from `start` to `end`, both included; the names of those made now.

    Dates, or aware datetimes of any zone. With a manager it is a transaction of its own; with a session it is part of the
    caller's, who commits. Any number of processes may do it at once. What exists costs one look at the catalog and no lock.
    Raises `InvalidInput` for an `end` before the `start` or more than a century.
    """
    months = list(_months(_day(start, "start"), _day(end, "end")))
    if isinstance(target, DatabaseManager):
        async with target.transaction() as session:
            return await _create_missing(session, months)
    return await _create_missing(target, months)


async def _create_missing(session: AsyncSession, months: list[date]) -> tuple[str, ...]:
    if not await _missing(session, months):
        return ()
    await session.execute(_LOCK)
    # Another process may have made them while this one waited for the lock.
    missing = await _missing(session, months)
    for month in missing:
        await session.execute(text(snapshot_partition_ddl(month)))
    return tuple(snapshot_partition_name(month) for month in missing)


async def _missing(session: AsyncSession, months: list[date]) -> list[date]:
    names = {snapshot_partition_name(month): month for month in months}
    existing = set(await session.scalars(_EXISTING, {"names": list(names)}))
    return [month for name, month in names.items() if name not in existing]


def _day(value: date, field: str) -> date:
    try:
        return checked_utc(value).date() if isinstance(value, datetime) else checked_date(value)
    except InvalidInput as fault:
        raise InvalidInput(f"{field}: {fault.message}", column=field) from None


def _months(start: date, end: date) -> Iterator[date]:
    first, last = (day.year * 12 + day.month - 1 for day in (start, end))
    if last < first:
        raise InvalidInput("end must not be before start", column="end")
    if last - first >= _MAX_MONTHS:
        raise InvalidInput(f"start and end are more than {_MAX_MONTHS} months apart", column="end")
    for index in range(first, last + 1):
        yield date(index // 12, index % 12 + 1, 1)
