"""What partitions there are, and what they weigh."""

import re
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Final, Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from core.config.options import Timeouts
from core.trading.portfolios._partitions import months_from

PartitionState = Literal["attached", "detaching", "detached"]

MARK: Final = "alpha-panda: being pruned"
"""The comment of a table whose removal has begun. What somebody has detached to keep it does not have it."""

# Bounds are read by the server, whatever its zone and date style. A month after December 9999 is beyond Python's calendar.
# The planner's own guess at the rows: their density when last counted, times the size now.
_FOUND = """
    SELECT c.relname, quote_ident(n.nspname) || '.' || quote_ident(c.relname),
        CASE WHEN i.inhrelid IS NULL THEN 'detached' WHEN i.inhdetachpending THEN 'detaching' ELSE 'attached' END,
        coalesce(obj_description(c.oid, 'pg_class') = :mark, false),
        (CAST(b.bounds[1] AS timestamptz) AT TIME ZONE 'UTC')::date,
        CASE WHEN b.bounds[2] IS NOT NULL THEN (LEAST(CAST(b.bounds[2] AS timestamptz), '9999-12-31 00:00+00')
            AT TIME ZONE 'UTC' + interval '1 day -1 us')::date END,
        CASE WHEN pg_relation_size(c.oid) = 0 THEN 0
            WHEN c.reltuples > 0 AND c.relpages > 0 THEN
                round(c.reltuples / c.relpages * (pg_relation_size(c.oid) / current_setting('block_size')::int))::bigint
            ELSE nullif(pg_stat_get_live_tuples(c.oid), 0) END,
        coalesce(pg_total_relation_size(c.oid), 0)
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid AND i.inhparent = 'portfolio_snapshots'::regclass
    CROSS JOIN LATERAL (
        SELECT regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \\(''([^'']+)''\\) TO \\(''([^'']+)''\\)') AS bounds
    ) AS b
    WHERE (i.inhrelid IS NOT NULL OR c.relkind = 'r' AND NOT c.relispartition
        AND c.relname ~ '^portfolio_snapshots_y[0-9]{4}m(0[1-9]|1[0-2])$' AND c.relname !~ '_y0000'
        AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'portfolio_snapshots'::regclass))
"""
_ALL = text(_FOUND).bindparams(mark=MARK)
_ONE = text(f"{_FOUND} AND c.relname = :name").bindparams(mark=MARK)
_MONTH = re.compile(r"portfolio_snapshots_y(\d{4})m(\d{2})")


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionInfo:
    """A partition of the history, or a table that was one."""

    name: str
    first_day: date | None
    """In UTC; None where it has no lower bound."""
    end: date | None
    """The first day, in UTC, that is no more of it; None where it has no upper bound."""
    state: PartitionState
    """`detaching`: begun and not finished, its rows are no longer seen. `detached`: a table of its own by now."""
    pruning: bool
    """Whether it was `prune` that began to remove it."""
    rows: int | None
    """The server's estimate, None where it has none; the exact number where that was asked for."""
    bytes: int
    """On disk, with its indexes and long values."""


async def partitions(session: AsyncSession, *, exact: bool = False) -> list[PartitionInfo]:
    """The partitions by month, and after them the tables that are named like one and are not attached.

    `exact` counts the rows, which reads every one of them. Raises `LockTimeout` while one is being rewritten.
    """
    found = [_info(row) for row in await session.execute(_ALL)]
    found.sort(key=lambda item: (item.state == "detached", item.first_day or date.min, item.name))
    if not exact:
        return found
    await session.execute(text(f"SET LOCAL statement_timeout = '{Timeouts().bulk}s'"))
    tables = {row[0]: row[1] for row in await session.execute(_ALL)}
    counted = [
        replace(item, rows=await session.scalar(text(f"SELECT count(*) FROM {tables[item.name]}")))  # noqa: S608 - quoted
        for item in found
        if item.name in tables
    ]
    await session.execute(text("SET LOCAL statement_timeout TO DEFAULT"))
    return counted


async def partition(session: AsyncSession, name: str) -> tuple[PartitionInfo, str] | None:
    """One partition and how SQL names it, or None if there is none."""
    row: Any = (await session.execute(_ONE, {"name": name})).one_or_none()
    return None if row is None else (_info(row), row[1])


def _info(row: Any) -> PartitionInfo:
    name, _, state, pruning, first, end, rows, size = row
    named = _MONTH.fullmatch(name)
    if state == "detached" and named:
        first = date(int(named[1]), int(named[2]), 1)
        end = date.max if first >= date(9999, 12, 1) else months_from(first, 1)
    return PartitionInfo(name=name, first_day=first, end=end, state=state, pruning=pruning, rows=rows, bytes=size)
