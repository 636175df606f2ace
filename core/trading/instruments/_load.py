"""`load`: from a broker's file to the stored master, whole or not at all."""

import asyncio
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Literal

from sqlalchemy.ext.asyncio import AsyncSession

from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput
from core.database.records import BROKER_RULE
from core.database.types import checked_date
from core.trading.instruments._file import read_file, unpacked
from core.trading.instruments._merge import Merged, apply_staged, begin_load, copy_staged
from core.trading.instruments._parse import Parsed, parse_kite
from core.trading.instruments._report import LoadReport

FileFormat = Literal["auto", "kite"]
Progress = Callable[[str], None]


async def load(
    manager: DatabaseManager,
    file: Path | str | bytes,
    *,
    source: str = "kite",
    trading_date: date,
    format: FileFormat = "auto",
    progress: Progress | None = None,
) -> LoadReport:
    """Bring the instrument master to what a broker's file says, in a transaction of its own.

    `file` is a path, or the file's content; CSV or gzip. `source` names whose file it is, and its rows are compared with the
    stored ones of that source: new ones are added, changed ones updated, and stored ones of the exchanges in the file that it
    no longer names are deactivated, never deleted. Exchanges that are not in the file are left alone, and so is every row
    that is equal. A bad row is left out and told in the report; what is stored of it stays as it is. States begin at midnight
    UTC of `trading_date`; those that they replace go to `instrument_versions`. Loads run one at a time.

    `progress` is told the stage: read, parse, copy, merge, commit. Raises an `InstrumentFileError` for a file that cannot be
    used at all and `InvalidInput` for the other arguments; the stored master is then as it was.
    """
    watch = _Watch(progress)
    source, trading_date = _checked(source, trading_date, format)
    name = "the file" if isinstance(file, bytes) else str(file)
    with watch.stage("read"):
        data = await asyncio.to_thread(_content, file, name)
    with watch.stage("parse"):
        parsed = await asyncio.to_thread(parse_kite, data, name=name)

    async def work(session: AsyncSession) -> Merged:
        with watch.stage("copy"):
            await begin_load(session)
            staged = await copy_staged(session, parsed)
        with watch.stage("merge"):
            merged = await apply_staged(session, staged, parsed, source=source, trading_date=trading_date)
        watch.start("commit")
        return merged

    try:
        merged = await manager.run_transaction(work)
    finally:
        watch.stop()
    return _report(parsed, merged, source=source, trading_date=trading_date, seconds=watch.seconds)


def _content(file: Path | str | bytes, name: str) -> bytes:
    return unpacked(file, name=name) if isinstance(file, bytes) else read_file(Path(file))


def _checked(source: str, trading_date: date, format: FileFormat) -> tuple[str, date]:
    for field, check in (("source", lambda: BROKER_RULE(source)), ("trading_date", lambda: checked_date(trading_date))):
        try:
            check()
        except InvalidInput as fault:
            raise InvalidInput(f"{field}: {fault.message}", column=field) from None
    if format not in ("auto", "kite"):
        raise InvalidInput(f"format: {format!r} is none of auto, kite", column="format")
    return source, trading_date


def _report(
    parsed: Parsed, merged: Merged, *, source: str, trading_date: date, seconds: dict[str, float]
) -> LoadReport:
    different = merged.added + merged.changed + merged.reactivated + len(merged.foreigners)
    return LoadReport(
        source=source,
        exchanges=parsed.exchanges,
        trading_date=trading_date,
        rows=parsed.rows,
        added=merged.added,
        changed=merged.changed,
        reactivated=merged.reactivated,
        deactivated=merged.deactivated,
        unchanged=parsed.count - different,
        repriced=merged.repriced,
        duplicates=parsed.duplicates,
        rejected=tuple(sorted((*parsed.rejected, *merged.foreigners), key=lambda row: row.line)),
        ignored_columns=parsed.ignored_columns,
        seconds=seconds,
    )


class _Watch:
    """Seconds of each stage; a stage that runs again, after a retry, counts its last run."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._stage: tuple[str, float] | None = None

    def start(self, name: str) -> None:
        self.stop()
        self._stage = (name, time.perf_counter())
        if self._progress is not None:
            self._progress(name)

    def stop(self) -> None:
        if self._stage is not None:
            name, began = self._stage
            self.seconds[name] = time.perf_counter() - began
            self._stage = None

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        self.start(name)
        try:
            yield
        finally:
            self.stop()
