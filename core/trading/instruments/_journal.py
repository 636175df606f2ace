"""What was loaded when: the last day of each exchange, the file that is known already, the record of a load."""

from collections.abc import Sequence
from dataclasses import fields
from datetime import date
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.models import InstrumentLoad
from core.database.records import RejectedLine, RejectedLines
from core.trading.instruments._errors import StaleInstrumentFile
from core.trading.instruments._reader import MasterFile
from core.trading.instruments._report import LoadReport, RejectedRow

CHANNEL = "panda_instruments"
"""On which a load tells that the master has changed."""

_KEPT = 1_000
"""Rejected rows that the record of a load holds at the most."""


async def known_load(
    session: AsyncSession, master: MasterFile, *, source: str, trading_date: date
) -> LoadReport | None:
    """The report for a file that is the last one loaded of each of its exchanges, byte for byte, read the same way.

    Raises `StaleInstrumentFile` if it is, and its day lies before that load's.
    """
    last = await session.scalar(
        _newest(source).where(InstrumentLoad.digest == master.digest, InstrumentLoad.reading == master.reading)
    )
    if last is None or last.rejected > len(last.rejected_rows):
        return None
    newer = _newest(source).where(
        InstrumentLoad.load_id > last.load_id, InstrumentLoad.exchanges.overlap(list(last.exchanges))
    )
    if await session.scalar(newer) is not None:
        return None
    await check_day(session, source, last.exchanges, trading_date)
    return LoadReport(
        source=source,
        format=last.format,
        exchanges=tuple(last.exchanges),
        trading_date=trading_date,
        rows=last.rows,
        added=0,
        changed=0,
        attributes_changed=0,
        renamed=0,
        reactivated=0,
        deactivated=0,
        unchanged=last.rows - last.duplicates - last.rejected,
        repriced=0,
        duplicates=last.duplicates,
        rejected=tuple(RejectedRow(line=row.line, field=row.field, reason=row.reason) for row in last.rejected_rows),
        digest=last.digest,
        known=True,
        ignored_columns=master.ignored_columns,
    )


async def check_day(session: AsyncSession, source: str, exchanges: Sequence[str], trading_date: date) -> None:
    """Raise `StaleInstrumentFile` if a later day of one of the exchanges has been loaded."""
    latest = await session.scalar(
        select(func.max(InstrumentLoad.trading_date)).where(
            InstrumentLoad.source == source, InstrumentLoad.exchanges.overlap(list(exchanges))
        )
    )
    if latest is not None and trading_date < latest:
        raise StaleInstrumentFile(
            f"the file is of {trading_date}, and the master holds {source}'s {', '.join(exchanges)} as of {latest}"
        )


async def note_load(session: AsyncSession, master: MasterFile, report: LoadReport, *, milliseconds: int) -> int:
    """Record the load; its id."""
    columns = InstrumentLoad.__table__.columns
    same: dict[str, Any] = {item.name: getattr(report, item.name) for item in fields(report) if item.name in columns}
    kept = [RejectedLine(line=row.line, field=row.field, reason=row.reason) for row in report.rejected[:_KEPT]]
    differing: dict[str, Any] = {"exchanges": list(report.exchanges), "rejected": len(report.rejected)}
    row = InstrumentLoad(
        **(same | differing),
        reading=master.reading,
        rejected_rows=RejectedLines(kept),
        milliseconds=milliseconds,
    )
    session.add(row)
    await session.flush()
    return row.load_id


async def loads(session: AsyncSession, *, source: str | None = None, limit: int = 20) -> list[InstrumentLoad]:
    """The newest loads first."""
    query = select(InstrumentLoad).order_by(InstrumentLoad.load_id.desc()).limit(limit)
    if source is not None:
        query = query.where(InstrumentLoad.source == source)
    return list(await session.scalars(query))


def _newest(source: str) -> Select[InstrumentLoad]:
    return (
        select(InstrumentLoad).where(InstrumentLoad.source == source).order_by(InstrumentLoad.load_id.desc()).limit(1)
    )
