"""`prune`: whole months leave the history."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput, LockTimeout, UnsupportedFeature
from core.trading.portfolios._inventory import MARK, PartitionInfo, partition, partitions
from core.trading.portfolios._maintenance import (
    PATIENCE,
    MaintenanceProgress,
    Workbench,
    checked_before,
    server_today,
    workbench,
)
from core.trading.portfolios._partitions import months_from

_QUIET = 3.0
"""Seconds of waiting for a lock behind which nobody has to wait who reads or records."""
_SHORT = 0.5
"""The same where everybody does: plain DETACH and DROP, which take `portfolios` too, for the foreign key."""

# Looks again under the lock: in between somebody may have attached it, or taken the mark from it.
_DROP: Final = """
    DO $$ BEGIN
        LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE;
        IF obj_description('{table}'::regclass, 'pg_class') = '{mark}'
            AND NOT (SELECT relispartition FROM pg_class WHERE oid = '{table}'::regclass) THEN
            DROP TABLE {table};
        END IF;
    END $$
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneReport:
    """What was removed, or with `dry_run` would be."""

    before: date
    dry_run: bool
    partitions: tuple[PartitionInfo, ...]
    """As they were when the run began; `state` and `pruning` tell what an interrupted run had left."""
    rows: int | None
    """Together, by the server's estimate; None where it has none."""
    bytes: int
    kept: tuple[str, ...]
    """Detached tables of these months that somebody else has made so: they are left alone."""
    seconds: float


async def prune(
    manager: DatabaseManager,
    *,
    before: date | None = None,
    keep_months: int | None = None,
    dry_run: bool = False,
    patience: float = PATIENCE,
    progress: MaintenanceProgress | None = None,
) -> PruneReport:
    """Remove the partitions that end by `before` (UTC), or all but this month and the `keep_months` before it.

    Each, the oldest first, is detached without stopping anybody who reads or records (DETACH CONCURRENTLY; plain where a
    default partition or Citus forbids that), then dropped. A step that has to wait for other transactions, an export say,
    gives way and tries again for `patience` seconds. Ended at any moment, by `LockTimeout`, a lost connection or a kill, it
    leaves each month whole or on its way out, and the same call finishes it; tables that somebody detached to keep them are
    never touched. The current month is never removed. `progress` is told the partition and the step: mark, detach, drop.

    Works on a connection of its own, outside transactions: not for use inside one. Raises `InvalidInput`, `LockTimeout` also
    while another process prunes or downsamples, `PermissionDenied` for a role that does not own the tables,
    `UnsupportedFeature` where somebody else has left a partition half detached, `ConfigurationError` behind PgBouncer.
    """
    started = time.monotonic()
    if dry_run:
        async with manager.get_session(read_only=True) as session:
            limit = await _limit(session, before, keep_months)
            return _report(await partitions(session), limit, started, dry_run=True)
    async with workbench(manager, patience=patience) as bench:
        limit = await _limit(bench.session, before, keep_months)
        found = await partitions(bench.session)
        report = _report(found, limit, started, dry_run=False)
        _refuse_half_detached(found, report)
        plain = bench.citus or any(item.first_day is None and item.state == "attached" for item in found)
        for done, item in enumerate(report.partitions):
            try:
                await _remove(bench, item, plain=plain, tell=partial(progress, item.name) if progress else None)
            except LockTimeout as error:
                raise _still_in_use(item, done, len(report.partitions)) from error
        return _report(found, limit, started, dry_run=False)


async def _limit(session: AsyncSession, before: date | None, keep_months: int | None) -> date:
    if (before is None) == (keep_months is None):
        raise InvalidInput("give either before or keep_months", column="before")
    if before is not None:
        return await checked_before(session, before)
    if keep_months is None or not 1 <= keep_months <= 12_000:
        raise InvalidInput("keep_months must be from 1 to 12000", column="keep_months")
    return months_from(await server_today(session), -keep_months)


def _report(found: list[PartitionInfo], limit: date, started: float, *, dry_run: bool) -> PruneReport:
    over = [item for item in found if item.first_day is not None and item.end is not None and item.end <= limit]
    doomed = tuple(item for item in over if item.state == "attached" or item.pruning)
    rows = [item.rows for item in doomed if item.rows is not None]
    return PruneReport(
        before=limit,
        dry_run=dry_run,
        partitions=doomed,
        rows=sum(rows) if len(rows) == len(doomed) else None,
        bytes=sum(item.bytes for item in doomed),
        kept=tuple(item.name for item in over if item not in doomed),
        seconds=round(time.monotonic() - started, 3),
    )


def _refuse_half_detached(found: list[PartitionInfo], report: PruneReport) -> None:
    """The server detaches one at a time, and what somebody else has begun is not ours to drop."""
    for item in found:
        if item.state == "detaching" and item not in report.partitions:
            raise UnsupportedFeature(
                f"{item.name} is half detached, and not by this run; no other can be detached",
                hint=f"ALTER TABLE portfolio_snapshots DETACH PARTITION {item.name} FINALIZE keeps it as a table.",
            )


async def _remove(bench: Workbench, item: PartitionInfo, *, plain: bool, tell: Callable[[str], None] | None) -> None:
    """By what the catalog says at each step, so that it does not matter who did the one before, or how it ended."""

    async def advance() -> None:
        while (found := await partition(bench.session, item.name)) is not None:
            now, table = found
            if now.state != "attached" and not now.pruning:
                return  # somebody has just detached it to keep it
            await _step(bench, now, table, plain=plain, tell=tell or (lambda _: None))

    await bench.patiently(advance)


async def _step(bench: Workbench, now: PartitionInfo, table: str, *, plain: bool, tell: Callable[[str], None]) -> None:
    detach = f"ALTER TABLE {bench.parent} DETACH PARTITION {table}"
    if not now.pruning:
        tell("mark")
        await bench.run(f"COMMENT ON TABLE {table} IS '{MARK}'", lock=_QUIET)
    elif now.state == "attached":
        tell("detach")
        await bench.run(detach if plain else f"{detach} CONCURRENTLY", lock=_SHORT if plain else _QUIET)
    elif now.state == "detaching":
        tell("detach")
        await bench.run(f"{detach} FINALIZE", lock=_QUIET)
    else:
        tell("drop")
        await bench.run(_DROP.format(table=table, mark=MARK), lock=_SHORT)


def _still_in_use(item: PartitionInfo, done: int, total: int) -> LockTimeout:
    return LockTimeout(
        f"{item.name} is still in use after {done} of {total} months were removed; it is whole, or on its way out",
        hint="Run the same again: it goes on where it stopped. `panda top` shows who holds the lock.",
    )
