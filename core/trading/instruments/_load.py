"""`load`: from a broker's file to the stored master, whole or not at all."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from core.database import bulk
from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput
from core.database.notify import notify
from core.database.records import BROKER_RULE
from core.database.types import checked_date
from core.trading._stages import Stages
from core.trading.instruments._errors import InstrumentFileRejected
from core.trading.instruments._file import InstrumentInput
from core.trading.instruments._journal import CHANNEL, check_day, known_load, note_load
from core.trading.instruments._merge import MERGE_LIMIT, Merged, StagedFile, apply_staged
from core.trading.instruments._reader import STAGED, Chunk, MasterFile, open_master
from core.trading.instruments._report import LoadReport, RejectedRow

Progress = Callable[[str], None]

_LOCK_WAIT = "60s"
"""For another load to end."""
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('alpha-panda: instruments', 0))"


@dataclass
class _Tally:
    """What the pieces of the file come to."""

    count: int = 0
    rows: int = 0
    duplicates: int = 0
    exchanges: set[str] = field(default_factory=set[str])
    rejected: list[RejectedRow] = field(default_factory=list[RejectedRow])
    refused_tokens: set[int] = field(default_factory=set[int])
    refused_keys: set[str] = field(default_factory=set[str])
    refused_symbols: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])

    def add(self, chunk: Chunk) -> None:
        self.count += chunk.count
        self.rows += chunk.rows
        self.duplicates += chunk.duplicates
        self.exchanges.update(chunk.exchanges)
        self.rejected.extend(chunk.rejected)
        self.refused_tokens.update(chunk.refused_tokens)
        self.refused_keys.update(chunk.refused_keys)
        self.refused_symbols.update(chunk.refused_symbols)


async def load(
    manager: DatabaseManager,
    file: InstrumentInput,
    *,
    trading_date: date,
    source: str | None = None,
    format: str = "auto",
    mapping: Path | str | Mapping[str, Any] | None = None,
    dry_run: bool = False,
    allow_shrink: bool = False,
    max_shrink: float = 0.30,
    name: str | None = None,
    progress: Progress | None = None,
) -> LoadReport:
    """Bring the instrument master to what a broker's file says, in a transaction of its own.

    `file` is a path, a file's content (CSV, gzip or zip), a binary stream, a polars frame, or rows as dictionaries such as
    kiteconnect's `instruments()` gives; `name` is what errors call it. Its format is found by its header unless `format` names
    one or `mapping` (a TOML file or its tables) describes it. `source` names whose file it is, the format's unless given. Its
    rows are compared with the stored ones of that source: new ones are added, changed ones updated, and stored ones of the
    exchanges in the file that it no longer names are deactivated, never deleted. Exchanges that are not in the file are left
    alone, and so is every row that is equal. A bad row is left out and told in the report; what is stored of it stays as it
    is. States begin at midnight UTC of `trading_date`; those that they replace go to `instrument_versions`. A file that is the
    last one of its exchanges, byte for byte, is not read at all. When anything has changed, `CHANNEL` is notified.

    Loads run one at a time; one that has waited for a minute raises `LockTimeout`. `dry_run` does all, stores nothing and tells
    nobody; it takes its turn like another. The share of an exchange that may go at once is `max_shrink`, contracts that have
    expired by `trading_date` not counted, unless `allow_shrink`. `progress` is told each stage as it begins: read, lock, copy,
    merge, commit; after a conflict with other work the load begins anew with lock.

    Raises an `InstrumentFileError` for a file that cannot be used (`StaleInstrumentFile`: a later day is stored;
    `MasterWouldShrink`) and `InvalidInput` for the other arguments; the stored master is then as it was.
    """
    watch = Stages(progress)
    trading_date = _checked_day(trading_date)
    source = None if source is None else _checked_source(source)
    limit = None if allow_shrink else _checked_share(max_shrink)
    with watch.stage("read"):
        master = await asyncio.to_thread(open_master, file, format=format, mapping=mapping, name=name)
    job = _Job(master, source or _checked_source(master.mapping.source), trading_date, limit, dry_run, watch)
    try:
        if dry_run:
            async with manager.get_session() as session:
                return await job.run(session)
        return await manager.run_transaction(job.run)
    finally:
        watch.stop()


@dataclass
class _Job:
    master: MasterFile
    source: str
    trading_date: date
    max_shrink: float | None
    dry_run: bool
    watch: Stages

    async def run(self, session: AsyncSession) -> LoadReport:
        """The whole load, in the session's transaction; a retry runs it again."""
        watch = self.watch
        watch.restart(keep="read")
        watch.start("lock")
        await _begin(session)
        known = await known_load(session, self.master, source=self.source, trading_date=self.trading_date)
        if known is None:
            report = await self._merge(session)
        else:
            report = replace(known, dry_run=self.dry_run, seconds=watch.seconds)
        if self.dry_run:
            return report
        load_id = await note_load(session, self.master, report, milliseconds=watch.milliseconds)
        if report.written or report.repriced:
            await notify(session, CHANNEL, json.dumps({"source": self.source, "load_id": load_id}))
        watch.start("commit")
        return report

    async def _merge(self, session: AsyncSession) -> LoadReport:
        self.watch.start("copy")
        tally = _Tally()
        table = await bulk.stage(session, STAGED, name="instruments")
        async with aclosing(_pieces(self.master, tally)) as pieces:
            await bulk.copy_csv(session, table, pieces, columns=list(STAGED))
        if not tally.count:
            raise InstrumentFileRejected(_none_left(self.master.name, tally.rejected))
        self.watch.start("merge")
        await session.execute(text(f"SET LOCAL statement_timeout = '{MERGE_LIMIT}'"))
        token = self.master.mapping.token
        staged = _staged(table, tally, by_key=token.text is not None, token_column=token.column)
        await check_day(session, self.source, staged.exchanges, self.trading_date)
        merged = await apply_staged(
            session, staged, source=self.source, trading_date=self.trading_date, max_shrink=self.max_shrink
        )
        return self._report(tally, merged)

    def _report(self, tally: _Tally, merged: Merged) -> LoadReport:
        touched = (
            merged.added + merged.changed + merged.attributes_changed + merged.reactivated + len(merged.foreigners)
        )
        return LoadReport(
            source=self.source,
            format=self.master.format,
            exchanges=tuple(sorted(tally.exchanges)),
            trading_date=self.trading_date,
            rows=tally.rows,
            added=merged.added,
            changed=merged.changed,
            attributes_changed=merged.attributes_changed,
            renamed=merged.renamed,
            reactivated=merged.reactivated,
            deactivated=merged.deactivated,
            unchanged=tally.count - touched,
            repriced=merged.repriced,
            duplicates=tally.duplicates,
            rejected=tuple(sorted((*tally.rejected, *merged.foreigners), key=lambda row: row.line)),
            digest=self.master.digest,
            dry_run=self.dry_run,
            ignored_columns=self.master.ignored_columns,
            seconds=self.watch.seconds,
        )


async def _pieces(master: MasterFile, tally: _Tally) -> AsyncGenerator[bytes]:
    """The file's rows as CSV; the next piece is parsed in a thread while one is on its way to the server.

    A thread cannot be cancelled: what ends this early waits until it has done with its piece.
    """
    chunks = master.chunks()
    coming = _next(chunks)
    try:
        while (chunk := await asyncio.shield(coming)) is not None:
            coming = _next(chunks)
            tally.add(chunk)
            yield chunk.csv
    finally:
        if not coming.done():
            await asyncio.wait([coming])


def _next(chunks: Iterator[Chunk]) -> asyncio.Task[Chunk | None]:
    task = asyncio.create_task(asyncio.to_thread(next, chunks, None))
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may be nobody's any more
    return task


async def _begin(session: AsyncSession) -> None:
    """Wait until no other load is under way; one at a time, whatever its source. Ends with the transaction."""
    await session.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_WAIT}'"))
    await session.execute(text("SET LOCAL statement_timeout = 0"))  # it would end the wait first, and say less
    await session.execute(text(_LOCK))
    await session.execute(text("SET LOCAL lock_timeout TO DEFAULT"))
    await session.execute(text("SET LOCAL statement_timeout TO DEFAULT"))


def _staged(table: str, tally: _Tally, *, by_key: bool, token_column: str) -> StagedFile:
    return StagedFile(
        table=table,
        count=tally.count,
        exchanges=tuple(sorted(tally.exchanges)),
        by_key=by_key,
        token_column=token_column,
        refused_tokens=frozenset(tally.refused_tokens),
        refused_keys=frozenset(tally.refused_keys),
        refused_symbols=frozenset(tally.refused_symbols),
    )


def _none_left(name: str, rejected: list[RejectedRow]) -> str:
    first = min(rejected, key=lambda row: row.line)
    return f"not one of {name}'s {len(rejected):,} rows is valid; line {first.line}: {first.field} {first.reason}"


def _checked_day(day: date) -> date:
    try:
        return checked_date(day)
    except InvalidInput as fault:
        raise InvalidInput(f"trading_date: {fault.message}", column="trading_date") from None


def _checked_source(source: str) -> str:
    try:
        return BROKER_RULE(source)
    except InvalidInput as fault:
        raise InvalidInput(f"source: {fault.message}", column="source") from None


def _checked_share(share: float) -> float:
    if not 0 <= share <= 1:
        raise InvalidInput(f"max_shrink: takes a share from 0 to 1, not {share}", column="max_shrink")
    return share
