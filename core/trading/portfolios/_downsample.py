"""`downsample`: old months keep of each stretch of time what its curve and its drawdown need."""

import time
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from sqlalchemy import text

from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput
from core.trading.portfolios._inventory import PartitionInfo, partition, partitions
from core.trading.portfolios._maintenance import (
    PATIENCE,
    MaintenanceProgress,
    Workbench,
    checked_before,
    workbench,
)

_LOCK_WAIT = 5.0
_DAY = timedelta(days=1)

# In one pass over each bucket by time: the running peak as [equity, -time], which is the first of equals, and from it the
# fall below that peak, as an amount and as a share, with the times of both ends. Times are seconds since the bucket began.
_KEPT = """
    SELECT DISTINCT portfolio_id, bucket + make_interval(secs => unnest(ARRAY[
            first, last, low[2], -high[2], -fall[2], -fall[3], -share[2], -share[3]])::float8) AS snapshot_time
    FROM (
        SELECT portfolio_id, bucket, min(moment) AS first, max(moment) AS last,
            min(ARRAY[equity, moment]) AS low, max(peak) AS high,
            max(ARRAY[peak[1] - equity, -moment, peak[2]]) FILTER (WHERE equity < peak[1]) AS fall,
            max(ARRAY[(peak[1] - equity) / peak[1], -moment, peak[2]])
                FILTER (WHERE equity < peak[1] AND peak[1] > 0) AS share
        FROM (
            SELECT *, max(ARRAY[equity, -moment]) OVER (PARTITION BY portfolio_id, bucket ORDER BY moment) AS peak
            FROM (
                SELECT portfolio_id, equity, bucket, extract(epoch FROM snapshot_time - bucket) AS moment
                FROM (
                    SELECT portfolio_id, snapshot_time, equity,
                        date_bin(CAST(:every AS interval), snapshot_time, '0001-01-01 00:00+00') AS bucket
                    FROM {table}
                ) AS binned
            ) AS timed
        ) AS peaked
        GROUP BY portfolio_id, bucket
    ) AS judged
"""
_COUNT = (
    "SELECT (SELECT count(*) FROM {table}), (SELECT count(*) FROM ({kept}) AS kept WHERE snapshot_time IS NOT NULL)"
)
# One statement, so one snapshot: what arrives meanwhile is in neither part of it, and stays.
_THIN = """
    WITH kept AS MATERIALIZED ({kept}),
    gone AS (
        DELETE FROM {table} AS s WHERE NOT EXISTS (
            SELECT FROM kept WHERE kept.portfolio_id = s.portfolio_id AND kept.snapshot_time = s.snapshot_time)
        RETURNING 1)
    SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM kept WHERE snapshot_time IS NOT NULL)
"""
# The rows that ANALYZE has found, at the width that it has found, against the room they take.
_SPARSE = text("""
    SELECT pg_relation_size(c.oid) > 1048576 AND pg_relation_size(c.oid) > 2 * greatest(c.reltuples, 0) * (28 + (
        SELECT coalesce(sum(avg_width), 0) FROM pg_stats WHERE schemaname = n.nspname AND tablename = c.relname))
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = CAST(:table AS regclass)
""")


@dataclass(frozen=True, kw_only=True, slots=True)
class DownsampledMonth:
    """What became of one partition. Bytes are those on disk, indexes and long values included."""

    name: str
    first_day: date
    rows: int
    kept: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DownsampleReport:
    """What was thinned out, or with `dry_run` would be."""

    before: date
    every: timedelta
    dry_run: bool
    partitions: tuple[DownsampledMonth, ...]
    rows: int
    """Before."""
    kept: int
    bytes_before: int
    bytes_after: int
    seconds: float


async def downsample(
    manager: DatabaseManager,
    *,
    before: date,
    every: timedelta,
    compact: bool = False,
    dry_run: bool = False,
    patience: float = PATIENCE,
    progress: MaintenanceProgress | None = None,
) -> DownsampleReport:
    """Thin out the partitions that end by `before` (UTC): of each portfolio's snapshots in each `every` stay at most eight.

    `every` is from a second to a day, and divides a day; its grid begins at midnight UTC, so that 30 minutes have an edge at
    midnight of Asia/Kolkata, and an hour has none. Of each stretch stay the first and the last snapshot, the highest and the
    lowest equity, and both ends of its deepest fall, as an amount and as a share of the peak; of equals the earlier. They are
    whole and as they were recorded. So a curve's points on the grid, its extremes and its maximum drawdown stay what they
    were: as an amount always, as a share while equity is not negative (to the 16 digits of the server's division).

    A month is one transaction, then VACUUM. It locks out nobody who reads or records. VACUUM leaves the room to later rows of
    that month; `compact` gives it back to the system where that is worth it, by rewriting the partition, which makes those
    wait who read that month. Run again it deletes nothing; after an interruption it goes on. The current month is never
    touched. `progress` is told the partition and the step: thin, vacuum, compact.

    Works on a connection of its own, outside transactions. Raises `InvalidInput`; `LockTimeout` after `patience` seconds, or
    while another process prunes or downsamples; `PermissionDenied`; `DiskFull`; `ConfigurationError` behind PgBouncer.
    """
    started = time.monotonic()
    _check_every(every)
    tell: MaintenanceProgress = progress or _silence
    async with workbench(manager, patience=patience) as bench:
        before = await checked_before(bench.session, before)
        # Its estimates know nothing of what the windows leave over; a nested loop would compare each row with each.
        for setting in ("enable_nestloop = off", "work_mem = '64MB'"):
            await bench.session.execute(text(f"SET {setting}"))
        months: list[DownsampledMonth] = []
        for item in await partitions(bench.session):
            found = await partition(bench.session, item.name)
            if found and found[0].state == "attached" and item.first_day and item.end and item.end <= before:
                table = found[1]
                months.append(await _thin(bench, item, table, every, dry_run=dry_run, compact=compact, tell=tell))
    return DownsampleReport(
        before=before,
        every=every,
        dry_run=dry_run,
        partitions=tuple(months),
        rows=sum(item.rows for item in months),
        kept=sum(item.kept for item in months),
        bytes_before=sum(item.bytes_before for item in months),
        bytes_after=sum(item.bytes_after for item in months),
        seconds=round(time.monotonic() - started, 3),
    )


def _silence(name: str, step: str) -> None:
    """Where nobody wants to be told."""


def _check_every(every: timedelta) -> None:
    if not timedelta(seconds=1) <= every <= _DAY or _DAY % every:
        raise InvalidInput("every must be from a second to a day, and divide a day", column="every")


async def _thin(
    bench: Workbench,
    item: PartitionInfo,
    table: str,
    every: timedelta,
    *,
    dry_run: bool,
    compact: bool,
    tell: MaintenanceProgress,
) -> DownsampledMonth:
    kept_rows = _KEPT.format(table=table)
    tell(item.name, "thin")
    if dry_run:
        statement = text(_COUNT.format(table=table, kept=kept_rows))
        rows, kept = (await bench.session.execute(statement, {"every": every})).one()
    else:
        gone, kept = await bench.patiently(lambda: _delete(bench, _THIN.format(table=table, kept=kept_rows), every))
        rows = gone + kept
        await _tidy(bench, item.name, table, thinned=gone > 0, compact=compact, tell=tell)
    after: Any = await partition(bench.session, item.name)
    return DownsampledMonth(
        name=item.name,
        first_day=item.first_day or date.min,
        rows=rows,
        kept=kept,
        bytes_before=item.bytes,
        bytes_after=after[0].bytes if after else 0,
    )


async def _delete(bench: Workbench, statement: str, every: timedelta) -> tuple[int, int]:
    await bench.session.execute(text(f"SET lock_timeout = '{_LOCK_WAIT:.0f}s'"))
    gone, kept = (await bench.session.execute(text(statement), {"every": every})).one()
    return gone, kept


async def _tidy(
    bench: Workbench, name: str, table: str, *, thinned: bool, compact: bool, tell: MaintenanceProgress
) -> None:
    """What an interrupted run has deleted is vacuumed by the server itself in time; to compact it looks for itself."""
    if thinned or compact:
        tell(name, "vacuum")
        await bench.patiently(lambda: bench.run(f"VACUUM (ANALYZE) {table}", lock=_LOCK_WAIT))
    if compact and await bench.session.scalar(_SPARSE, {"table": table}):
        tell(name, "compact")
        await bench.patiently(lambda: bench.run(f"VACUUM (FULL, ANALYZE) {table}", lock=1))
