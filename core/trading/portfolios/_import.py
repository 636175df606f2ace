"""`import_snapshots`: from a file or a frame to stored snapshots, in one transaction."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Literal, TypeAlias, get_args

from sqlalchemy.ext.asyncio import AsyncSession

from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput, SnapshotConflict
from core.database.models import snapshot_partition_name
from core.trading._stages import Stages
from core.trading.portfolios._columns import columns_of, known_brokers
from core.trading.portfolios._file_errors import SnapshotFileEmpty, SnapshotFileRejected
from core.trading.portfolios._file_reports import (
    KEPT_ROWS,
    ImportReport,
    Oddity,
    RejectedSnapshot,
    RoundedField,
)
from core.trading.portfolios._frames import SNAPSHOT_COLUMNS
from core.trading.portfolios._intake import SnapshotInput, Table, open_table
from core.trading.portfolios._moments import checked_format, checked_zone
from core.trading.portfolios._partitions import ensure_partitions
from core.trading.portfolios._rows import Piece, Reading, judge
from core.trading.portfolios._staging import (
    Repeats,
    Stored,
    compare_with_stored,
    insert_new,
    missing_months,
    stage_rows,
    take_out_repeats,
)

OnConflict: TypeAlias = Literal["error", "skip"]
ImportProgress: TypeAlias = Callable[[str], None]
"""Told each stage as it begins: read, partitions, copy, compare, store, commit."""

_MONEY = SNAPSHOT_COLUMNS[4:]


async def import_snapshots(
    manager: DatabaseManager,
    file: SnapshotInput,
    *,
    portfolio_id: str | None = None,
    broker: str | None = None,
    columns: Mapping[str, str] | None = None,
    time_zone: str = "UTC",
    time_format: str | None = None,
    round_to_scale: bool = False,
    on_conflict: OnConflict = "error",
    strict: bool = False,
    dry_run: bool = False,
    name: str | None = None,
    progress: ImportProgress | None = None,
) -> ImportReport:
    """Store the snapshots of a file, in a transaction of its own: all of its valid rows, or none.

    `file` is a path, a file's content (CSV, gzip, zip or Parquet), a binary stream, or a polars frame; `name` is what errors
    call it. It holds the columns `SNAPSHOT_COLUMNS` under these names, or under those that `columns` gives (ours to the
    file's). `snapshot_time` and `equity` are enough: cash is then the equity, the P&L 0 and positions none. The portfolio is
    `portfolio_id` where no column names it, and must exist; its broker is known, and one that is given is compared with it.
    Further columns are stored nowhere.

    Times without an offset are of `time_zone`; they are ISO 8601 unless `time_format` says otherwise (as `strptime`, or epoch,
    epoch_ms, epoch_us). Amounts are exact: one with more than 10 digits after the point is refused, and so is a column of
    floats, unless `round_to_scale`, which rounds half to even and tells. Positions and what they come to are checked as
    `PortfolioSnapshotCreate` does.

    A bad row is left out and told, unless `strict`. A row that repeats an earlier one, or what is stored, is counted and stored
    once. One that contradicts an earlier row is bad; one that contradicts what is stored raises `SnapshotConflict`, or is left
    out with `on_conflict="skip"`: what is stored is never changed. The months' partitions are made ahead in a transaction of
    their own and stay, whatever comes of the rows. `dry_run` does all but that and the storing, and tells conflicts too.

    Raises a `SnapshotFileError` for a file that cannot be used, `InvalidInput` for the other arguments.
    """
    if on_conflict not in get_args(OnConflict):
        raise InvalidInput(f"on_conflict: takes error or skip, not {on_conflict!r}", column="on_conflict")
    zone, form = checked_zone(time_zone), checked_format(time_format)
    watch = Stages(progress)
    watch.start("read")
    known = await known_brokers(manager, portfolio_id, broker)
    table = await asyncio.to_thread(open_table, file, name=name)
    reading = Reading(
        header=table.header,
        columns=columns_of(table, columns or {}, portfolio_id=portfolio_id, rounding=round_to_scale),
        portfolio_id=portfolio_id,
        broker=broker,
        zone=zone,
        form=form,
        rounding=round_to_scale,
        known=known,
    )
    total = await _read(table, reading)
    if not total.rows:
        raise SnapshotFileEmpty(f"{table.name} holds no rows")
    _check_rejected(table.name, total.rejected, total.rejected_count, total.count, strict=strict)
    watch.start("partitions")
    months = await _months(manager, total.months, dry_run=dry_run)
    job = _Job(table.name, reading, total, months, on_conflict, strict, dry_run, watch)
    try:
        if dry_run:
            async with manager.get_session() as session:
                return await job.run(session)
        report = await manager.run_transaction(job.run)
    finally:
        watch.stop()
    return report


@dataclass
class _Total(Piece):
    """The whole file; its CSV in pieces."""

    pieces: list[bytes] = field(default_factory=list[bytes])

    def add(self, piece: Piece) -> None:
        self.rows += piece.rows
        self.count += piece.count
        self.rejected_count += piece.rejected_count
        self.rejected.extend(piece.rejected)
        for name, (rows, largest) in piece.rounded.items():
            before, larger = self.rounded.get(name, (0, Decimal(0)))
            self.rounded[name] = before + rows, max(larger, largest)
        for place, (rows, line) in piece.oddities.items():
            before, first = self.oddities.get(place, (0, line))
            self.oddities[place] = before + rows, first
        self.portfolios |= piece.portfolios
        self.months |= piece.months
        if piece.period is not None:
            bounds = (*piece.period, *(self.period or ()))
            self.period = min(bounds), max(bounds)
            self.pieces.append(piece.csv)


@dataclass
class _Job:
    name: str
    reading: Reading
    total: _Total
    months: tuple[str, ...]
    on_conflict: OnConflict
    strict: bool
    dry_run: bool
    watch: Stages

    async def run(self, session: AsyncSession) -> ImportReport:
        """In the session's transaction; a retry runs it again."""
        total, watch = self.total, self.watch
        watch.start("copy")
        async with aclosing(_each(total.pieces)) as pieces:
            staged = await stage_rows(session, pieces)
        watch.start("compare")
        repeats = await take_out_repeats(session, staged, label=self.reading.label("snapshot_time"))
        _check_rejected(
            self.name, list(repeats.contradicting_rows), repeats.contradicting, total.count, strict=self.strict
        )
        assert total.period is not None
        stored = await compare_with_stored(session, staged, total.period)
        if stored.different and self.on_conflict == "error" and not self.dry_run:
            raise _conflict(self.name, stored)
        added = total.count - repeats.equal - repeats.contradicting - stored.equal - stored.different
        if added and not self.dry_run:
            watch.start("store")
            await insert_new(session, staged, expected=added)
        watch.start("commit")
        return self._report(added, repeats, stored)

    def _report(self, added: int, repeats: Repeats, stored: Stored) -> ImportReport:
        total, reading = self.total, self.reading
        used = set(reading.columns.values())
        rejected = sorted([*total.rejected, *repeats.contradicting_rows], key=lambda row: row.line)
        return ImportReport(
            name=self.name,
            rows=total.rows,
            added=added,
            existing=stored.equal,
            repeated=repeats.equal,
            conflicts=stored.different,
            rejected=total.rejected_count + repeats.contradicting,
            repeated_rows=repeats.equal_rows,
            conflict_rows=stored.different_rows,
            rejected_rows=tuple(rejected[:KEPT_ROWS]),
            rounded=tuple(
                RoundedField(field=name, rows=total.rounded[name][0], largest=total.rounded[name][1])
                for name in _MONEY
                if name in total.rounded
            ),
            oddities=tuple(
                Oddity(
                    column=column,
                    kind="empty" if kind == "empty" else "not finite",
                    rows=rows,
                    first_line=line,
                    stored=column in used,
                )
                for (column, kind), (rows, line) in total.oddities.items()
            ),
            portfolios=tuple(sorted(total.portfolios)),
            first=total.period[0] if total.period else None,
            last=total.period[1] if total.period else None,
            months_made=self.months,
            ignored_columns=tuple(name for name in reading.header if name not in used),
            dry_run=self.dry_run,
            seconds=self.watch.seconds,
        )


async def _read(table: Table, reading: Reading) -> _Total:
    """Piece by piece in a thread, so that a cancelled import ends soon."""
    total = _Total()
    pieces = table.pieces()

    def following() -> Piece | None:
        cells = next(pieces, None)
        return None if cells is None else judge(cells, reading, keep=max(0, KEPT_ROWS - len(total.rejected)))

    while (piece := await asyncio.to_thread(following)) is not None:
        total.add(piece)
    return total


async def _each(pieces: Iterable[bytes]) -> AsyncGenerator[bytes]:
    for piece in pieces:
        yield piece


async def _months(manager: DatabaseManager, months: set[date], *, dry_run: bool) -> tuple[str, ...]:
    """Make the partitions that are missing, before anything holds a lock; their names."""
    if dry_run:
        async with manager.get_session(read_only=True) as session:
            return await missing_months(session, [snapshot_partition_name(month) for month in months])
    made: list[str] = []
    for first, last in _runs(sorted(months)):
        made.extend(await ensure_partitions(manager, first, last))
    return tuple(made)


def _runs(months: list[date]) -> list[tuple[date, date]]:
    """Months that follow one another as one run each: a file with one row of 1990 makes no months of today's."""
    runs: list[tuple[date, date]] = []
    for month in months:
        number = month.year * 12 + month.month
        if runs and number - (runs[-1][1].year * 12 + runs[-1][1].month) == 1:
            runs[-1] = runs[-1][0], month
        else:
            runs.append((month, month))
    return runs


def _check_rejected(name: str, rows: list[RejectedSnapshot], rejected: int, valid: int, *, strict: bool) -> None:
    if not rejected or (valid and not strict):
        return
    first = min(rows, key=lambda row: row.line)
    how = f"{rejected:,} rows of {name} are not valid" if valid else f"not one of {name}'s {rejected:,} rows is valid"
    raise SnapshotFileRejected(f"{how}; line {first.line}: {first.field} {first.reason}")


def _conflict(name: str, stored: Stored) -> SnapshotConflict:
    first = stored.different_rows[0]
    fields = {field for row in stored.different_rows for field in row.fields}
    return SnapshotConflict(
        f"{stored.different:,} {'row' if stored.different == 1 else 'rows'} of {name} "
        f"{'contradicts' if stored.different == 1 else 'contradict'} what is stored; line {first.line}: "
        f"{', '.join(first.fields)} of {first.portfolio_id} at {_shown(first.snapshot_time)}",
        hint="Nothing was stored. Leave these rows out with on_conflict='skip' (--skip-conflicts).",
        differing=tuple(column for column in SNAPSHOT_COLUMNS if column in fields),
    )


def _shown(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
