"""Making the monthly partitions of the snapshots."""

from collections.abc import Iterator
from datetime import UTC, date, datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput, PartitionMissing, PermissionDenied
from core.database.models import snapshot_partition_ddl, snapshot_partition_name
from core.database.types import checked_date, checked_utc

_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('alpha-panda: snapshot partitions', 0))")
_EXISTING = text("""
    SELECT c.relname, i.inhrelid IS NOT NULL AND NOT i.inhdetachpending
    FROM pg_class AS c
    LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid AND i.inhparent = 'portfolio_snapshots'::regclass
    WHERE c.relname = ANY(:names) AND (i.inhrelid IS NOT NULL OR c.relnamespace = (
        SELECT relnamespace FROM pg_class WHERE oid = 'portfolio_snapshots'::regclass))
""")
_PLACE = text("""
    SELECT quote_ident(n.nspname), EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = 'portfolio_snapshots'::regclass
""")
_MAX_MONTHS = 1_200


async def ensure_partitions(
    target: DatabaseManager | AsyncSession, start: date, end: date, *, dry_run: bool = False
) -> tuple[str, ...]:
    """Make the partitions of every UTC month from `start` to `end`, both included; the names of those made now.

    Dates, or aware datetimes of any zone. With a manager it is a transaction of its own; with a session it is part of the
    caller's, who commits. Any number of processes may do it at once, and nobody who reads or records is waited for or made
    to wait; adding portfolios waits for that transaction's end. What exists costs one look at the catalog and no lock. With
    `dry_run` nothing is made. Raises `InvalidInput` for an `end` before the `start` or more than a century, and
    `PartitionMissing` where a detached table has a partition's name.
    """
    months = list(_months(_day(start, "start"), _day(end, "end")))
    if isinstance(target, DatabaseManager):
        async with target.transaction() as session:
            return await _create_missing(session, months, dry_run=dry_run)
    return await _create_missing(target, months, dry_run=dry_run)


async def ensure_ahead(
    target: DatabaseManager | AsyncSession, *, months: int = 3, dry_run: bool = False
) -> tuple[str, ...]:
    """`ensure_partitions` from this UTC month to `months` after it: what a daily job calls. Raises the same."""
    if not 0 <= months < _MAX_MONTHS:
        raise InvalidInput(f"months must be from 0 to {_MAX_MONTHS - 1}", column="months")
    today = datetime.now(UTC).date()
    return await ensure_partitions(target, today, months_from(today, months), dry_run=dry_run)


def months_from(day: date, months: int) -> date:
    """The first day of the month that lies so many months after (or, if negative, before) that of `day`."""
    index = day.year * 12 + day.month - 1 + months
    if not 12 <= index < 12 * (date.max.year + 1):
        raise InvalidInput("the calendar ends before that", column="months")
    return date(index // 12, index % 12 + 1, 1)


async def _create_missing(session: AsyncSession, months: list[date], *, dry_run: bool) -> tuple[str, ...]:
    missing = await _missing(session, months)
    if missing and not dry_run:
        await session.execute(_LOCK)
        # Another process may have made them while this one waited for the lock.
        missing = await _missing(session, months)
        schema, citus = (await session.execute(_PLACE)).one()
        if citus:
            await session.execute(text("SET LOCAL citus.multi_shard_modify_mode = 'sequential'"))
        for month in missing:
            try:
                await (_create_locking(session, month) if citus else _create(session, month, schema))
            except PermissionDenied as error:
                raise PermissionDenied(
                    f"{snapshot_partition_name(month)} is missing, and only the owner of the tables makes partitions",
                    hint="Call ensure_partitions(manager, start, end) ahead of time; a session of one broker may not do it.",
                    sqlstate=error.sqlstate,
                ) from error
    return tuple(snapshot_partition_name(month) for month in missing)


async def _create(session: AsyncSession, month: date, schema: str) -> None:
    """By way of a table that is attached. CREATE TABLE ... PARTITION OF would lock the whole history against everybody,
    and would itself wait for every export and backup that is under way.
    """
    parent = f"{schema}.portfolio_snapshots"
    table = f"{schema}.{snapshot_partition_name(month)}"
    bounds = snapshot_partition_ddl(month).partition(" FOR VALUES ")[2]
    like = "INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE INCLUDING COMPRESSION"
    await session.execute(text(f"CREATE TABLE {table} (LIKE {parent} {like})"))
    await session.execute(text(f"ALTER TABLE {parent} ATTACH PARTITION {table} FOR VALUES {bounds}"))


async def _create_locking(session: AsyncSession, month: date) -> None:
    await session.execute(text(snapshot_partition_ddl(month)))


async def _missing(session: AsyncSession, months: list[date]) -> list[date]:
    names = {snapshot_partition_name(month): month for month in months}
    found: dict[str, bool] = {name: state for name, state in await session.execute(_EXISTING, {"names": list(names)})}  # noqa: C416 - typed
    for name, attached in found.items():
        if not attached:
            raise _in_the_way(name)
    return [month for name, month in names.items() if name not in found]


def _in_the_way(name: str) -> PartitionMissing:
    return PartitionMissing(
        f"{name} is there, but detached: its month takes no rows",
        hint="If an interrupted prune left it, run `panda portfolio prune` again; if its rows are wanted, ALTER TABLE"
        f" portfolio_snapshots ATTACH PARTITION {name} with its month's bounds; else rename or drop it.",
    )


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
