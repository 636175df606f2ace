"""`export_snapshots`: stored snapshots as a file, streamed."""

import asyncio
import csv
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import polars as pl
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from core.database import bulk
from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput
from core.trading.portfolios._file_reports import ExportReport
from core.trading.portfolios._frames import SNAPSHOT_COLUMNS
from core.trading.portfolios._moments import checked_zone
from core.trading.portfolios._read_frame import MICROSECONDS, SNAPSHOT_SCHEMA, checked_ids, checked_period
from core.trading.portfolios._sinks import CsvSink, ParquetSink, Sink, unfinished

ExportFormat: TypeAlias = Literal["csv", "csv.gz", "parquet"]
ExportProgress: TypeAlias = Callable[[int], None]
"""Told the rows written so far."""

_SUFFIXES: dict[str, ExportFormat] = {
    ".csv": "csv",
    ".csv.gz": "csv.gz",
    ".gz": "csv.gz",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# An offset that is no whole minute, as before there were time zones, has no place in ISO 8601: UTC then.
_ISO = """
    CASE WHEN extract(timezone FROM snapshot_time)::integer % 60 = 0
    THEN to_char(snapshot_time, 'YYYY-MM-DD"T"HH24:MI:SS.USTZH:TZM')
    ELSE to_char(snapshot_time AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"') END
"""


async def export_snapshots(
    manager: DatabaseManager,
    path: Path | str,
    *,
    portfolio_ids: str | Iterable[str] | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    format: ExportFormat | None = None,
    zone: str = "UTC",
    overwrite: bool = False,
    progress: ExportProgress | None = None,
) -> ExportReport:
    """Write the snapshots of all portfolios, or of those given, from `start` until just before `end`, to a file.

    Its form goes by the end of its name (.csv, .csv.gz, .parquet) unless `format` says it. The rows are ordered by portfolio and
    time, and are those of one snapshot of the database. They are streamed: the memory does not grow with them. Amounts are
    exact, as Decimal(28, 10) in Parquet; times are written in `zone`, and mean the same in any. The columns are
    `SNAPSHOT_COLUMNS`, and `import_snapshots` reads the file back.

    The file appears whole and on the disk, or not at all; another one of its name is replaced with `overwrite` alone. Raises
    `SnapshotFileNotWritten`, and `InvalidInput` for the other arguments (such as a portfolio that is not there).
    """
    began = time.perf_counter()
    target = Path(path)
    form = _form(target, format)
    first, last = checked_period(start, end)
    zone = checked_zone(zone, column="zone")
    ids = checked_ids(portfolio_ids)
    with unfinished(target, overwrite=overwrite) as part:
        replaced = target.exists()
        sink = _sink(part, form, zone)
        try:
            async with manager.transaction(isolation_level="REPEATABLE READ", read_only=True) as session:
                stream = _Stream(session, sink, _query(form), first, last, progress)
                await session.execute(text("SELECT set_config('TimeZone', :zone, true)"), {"zone": zone})
                for portfolio_id in await _portfolios(session, ids):
                    await stream.portfolio(portfolio_id)
            await sink.finish()
        except BaseException:  # a cancelled export too must not leave a thread at work on the file
            await sink.abort()
            raise
        size = part.stat().st_size
    return ExportReport(
        path=target,
        format=form,
        rows=stream.rows,
        portfolios=stream.portfolios,
        first=stream.first,
        last=stream.last,
        size=size,
        replaced=replaced,
        seconds=time.perf_counter() - began,
    )


@dataclass
class _Stream:
    """Copies portfolio after portfolio into the sink: each is read along the primary key, so that nothing is sorted."""

    session: AsyncSession
    sink: Sink
    query: str
    start: datetime | None
    end: datetime | None
    progress: ExportProgress | None
    rows: int = 0
    portfolios: int = 0
    first: datetime | None = None
    last: datetime | None = None

    async def portfolio(self, portfolio_id: str) -> None:
        before = self.rows
        tail = b""

        async def take(lines: bytes) -> None:
            nonlocal tail
            if self.rows == before:
                self._meet(lines[: lines.find(b"\n")])
            tail = lines
            self.rows += lines.count(b"\n")
            await self.sink.write(lines)
            if self.progress is not None:
                self.progress(self.rows)

        await self._copy(portfolio_id, take)
        if tail:
            self.portfolios += 1
            self._meet(tail[tail.rfind(b"\n", 0, -1) + 1 : -1])

    async def _copy(self, portfolio_id: str, take: Callable[[bytes], Awaitable[None]]) -> None:
        """What `take` raises ends the COPY by cancelling it: the driver would leave it running, and the rollback waiting."""
        task = asyncio.current_task()
        assert task is not None
        failure: Exception | None = None

        async def guarded(lines: bytes) -> None:
            nonlocal failure
            try:
                await take(lines)
            except Exception as error:
                failure = error
                task.cancel()
                await asyncio.sleep(0)  # where the cancellation arrives

        try:
            await bulk.copy_out(
                self.session, self.query, portfolio_id, self.start, self.end, output=guarded, header=False
            )
        except asyncio.CancelledError:
            if failure is None or task.uncancel() > 0:  # someone else has cancelled too
                raise
        if failure is not None:
            raise failure

    def _meet(self, line: bytes) -> None:
        moment = _moment(next(csv.reader([line.decode()]))[1])
        self.first = moment if self.first is None else min(self.first, moment)
        self.last = moment if self.last is None else max(self.last, moment)


def _moment(written: str) -> datetime:
    if written.lstrip("-").isdigit():
        return _EPOCH + timedelta(microseconds=int(written))
    return datetime.fromisoformat(written).astimezone(UTC)


def _form(target: Path, format: ExportFormat | None) -> ExportFormat:
    if format is None:
        found = _SUFFIXES.get("".join(target.suffixes[-2:]).lower()) or _SUFFIXES.get(target.suffix.lower())
        if found is None:
            raise InvalidInput(
                f"format: the end of {target.name} tells none",
                hint="End the name in .csv, .csv.gz or .parquet, or say the format.",
                column="format",
            )
        return found
    if format not in get_args(ExportFormat):
        raise InvalidInput(f"format: takes {', '.join(get_args(ExportFormat))}, not {format!r}", column="format")
    return format


def _sink(path: Path, form: ExportFormat, zone: str) -> Sink:
    if form == "parquet":
        return ParquetSink(path, SNAPSHOT_SCHEMA | {"snapshot_time": pl.Datetime("us", zone)})
    return CsvSink(path, ",".join(SNAPSHOT_COLUMNS) + "\n", packed=form == "csv.gz")


def _query(form: ExportFormat) -> str:
    moment = MICROSECONDS if form == "parquet" else _ISO
    chosen = [
        moment if name == "snapshot_time" else f"trim_scale({name})" if name in SNAPSHOT_COLUMNS[4:] else name
        for name in SNAPSHOT_COLUMNS
    ]
    return (
        f"SELECT {', '.join(chosen)} FROM portfolio_snapshots WHERE portfolio_id = $1"  # noqa: S608 - names of our own
        " AND ($2::timestamptz IS NULL OR snapshot_time >= $2) AND ($3::timestamptz IS NULL OR snapshot_time < $3)"
        " ORDER BY snapshot_time"
    )


async def _portfolios(session: AsyncSession, ids: list[str] | None) -> list[str]:
    """In the order of their bytes; raises `InvalidInput` where one that is named is not there."""
    known = sorted(await session.scalars(text("SELECT portfolio_id FROM portfolios")))
    if ids is None:
        return known
    if unknown := sorted(set(ids).difference(known)):
        raise InvalidInput(f"portfolio_ids: there is no portfolio {unknown[0]!r}", column="portfolio_ids")
    return sorted(set(ids))
