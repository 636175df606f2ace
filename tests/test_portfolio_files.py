"""Snapshots from files and to files: nothing lost, nothing changed, and what is odd told."""

import asyncio
import gzip
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text

from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput, SnapshotConflict
from core.database.models import PortfolioSnapshot
from core.database.records import PortfolioSnapshotCreate
from core.trading import portfolios
from core.trading.portfolios import (
    ImportReport,
    SnapshotFileCorrupt,
    SnapshotFileEmpty,
    SnapshotFileHeader,
    SnapshotFileMissing,
    SnapshotFileNotWritten,
    SnapshotFileRejected,
    SnapshotFileTooLarge,
    SnapshotFileTruncated,
    SnapshotFileUnreadable,
    _export,
    _import,
    _intake,
    _sinks,
)
from core.trading.portfolios._amounts import read_amount
from core.trading.portfolios._moments import read_moments

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
HEADER = "portfolio_id,snapshot_time,broker,positions,cash,realized_pnl,unrealized_pnl,total_pnl,equity\n"
SHARED = Path(__file__).parents[2] / "shared" / "data"
Import = Callable[..., Any]


async def create(manager: DatabaseManager, *ids: str) -> None:
    async with manager.transaction() as session:
        for portfolio_id in ids:
            await portfolios.create(session, portfolio_id=portfolio_id, broker="paper", currency="INR", name="Paper")


async def rows(manager: DatabaseManager) -> list[PortfolioSnapshot]:
    async with manager.get_session() as session:
        order = (PortfolioSnapshot.portfolio_id, PortfolioSnapshot.snapshot_time)
        return list(await session.scalars(select(PortfolioSnapshot).order_by(*order)))


async def frame_of(manager: DatabaseManager, **options: Any) -> pl.DataFrame:
    async with manager.get_session(read_only=True) as session:
        return await portfolios.snapshot_frame(session, **options)


async def months(manager: DatabaseManager) -> set[str]:
    async with manager.get_session() as session:
        return set(
            await session.scalars(
                text("SELECT relid::text FROM pg_partition_tree('portfolio_snapshots') WHERE isleaf ORDER BY 1")
            )
        )


def curve(*lines: str) -> bytes:
    return "\n".join(["time,worth", *lines, ""]).encode()


async def take(manager: DatabaseManager, data: Any, **options: Any) -> ImportReport:
    """A curve of the portfolio p1."""
    given: dict[str, Any] = {"portfolio_id": "p1", "columns": {"snapshot_time": "time", "equity": "worth"}}
    return await portfolios.import_snapshots(manager, data, **(given | options))


def adds_up(report: ImportReport) -> bool:
    parts = (report.added, report.existing, report.repeated, report.conflicts, report.rejected)
    return report.rows == sum(parts)


POSITION = {
    "instrument_token": 5633,
    "quantity": "-3",
    "average_price": "1834.5000000001",
    "last_price": "1850.75",
    "pnl": "-48.7499999997",
}


def full(line: str = "", /, **changes: Any) -> str:
    values: dict[str, Any] = {
        "portfolio_id": "p1",
        "snapshot_time": "2026-11-20T12:00:00+00:00",
        "broker": "paper",
        "positions": json.dumps([POSITION]),
        "cash": "6552.2500000001",
        "realized_pnl": "0.1",
        "unrealized_pnl": "-0.3",
        "total_pnl": "-0.2",
        "equity": "1000.0000000001",
    }
    values |= changes
    return ",".join('"' + str(value).replace('"', '""') + '"' for value in values.values()) + "\n"


class TestImport:
    async def test_a_time_and_an_equity_are_enough(self, manager: DatabaseManager):
        await create(manager, "p1")
        report = await take(manager, curve("2026-11-20T12:00:00Z,100.5", "2026-11-21T12:00:00Z,-3"))
        assert (report.rows, report.added, report.rejected, report.oddities) == (2, 2, 0, ())
        assert (report.portfolios, report.first, report.last) == (("p1",), NOON, NOON + timedelta(1))
        first, second = await rows(manager)
        assert (first.equity, first.cash, first.total_pnl, list(first.positions)) == (
            Decimal("100.5"),
            Decimal("100.5"),
            0,
            [],
        )
        assert (first.broker, second.equity, second.snapshot_time) == ("paper", -3, NOON + timedelta(1))

    async def test_all_columns_are_taken_under_their_own_names(self, manager: DatabaseManager):
        await create(manager, "p1", "p2")
        data = (HEADER + full() + full(portfolio_id="p2", positions="[]", equity="7", cash="7")).encode()
        report = await portfolios.import_snapshots(manager, data)
        assert (report.added, report.rejected_rows, report.portfolios) == (2, (), ("p1", "p2"))
        one, two = await rows(manager)
        assert one.positions[0].model_dump(mode="json") == POSITION
        assert (one.cash, one.realized_pnl, one.total_pnl) == (
            Decimal("6552.2500000001"),
            Decimal("0.1"),
            Decimal("-0.2"),
        )
        assert (two.equity, list(two.positions)) == (7, [])

    async def test_a_total_without_its_parts_is_realized(self, manager: DatabaseManager):
        await create(manager, "p1")
        data = b"snapshot_time,equity,total_pnl\n2026-11-20,5,2.5\n"
        await portfolios.import_snapshots(manager, data, portfolio_id="p1")
        (row,) = await rows(manager)
        assert (row.realized_pnl, row.unrealized_pnl, row.total_pnl) == (Decimal("2.5"), 0, Decimal("2.5"))

    @pytest.mark.parametrize("pack", [gzip.compress, lambda data: data, "zip", "bom", "stream", "path"])
    async def test_it_comes_plain_packed_or_streamed(self, manager: DatabaseManager, tmp_path: Path, pack: Any):
        await create(manager, "p1")
        data: Any = curve("2026-11-20,100")
        if pack == "zip":
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr("curve.csv", data)
            data = buffer.getvalue()
        elif pack == "bom":
            data = b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n")
        elif pack == "stream":
            data = io.BytesIO(data)
        elif pack == "path":
            path = tmp_path / "curve.csv"
            path.write_bytes(data)
            data = path
        else:
            data = pack(data)
        assert (await take(manager, data)).added == 1

    async def test_frames_and_parquet_are_taken_with_their_types(self, manager: DatabaseManager, tmp_path: Path):
        await create(manager, "p1")
        kolkata = pl.Series([datetime(2026, 11, 20, 17, 30)]).dt.replace_time_zone("Asia/Kolkata")
        frame = pl.DataFrame({"time": kolkata, "worth": pl.Series(["1.0000000001"]).cast(pl.Decimal(20, 12))})
        assert (await take(manager, frame)).added == 1
        frame.write_parquet(tmp_path / "curve.parquet")
        again = await take(manager, tmp_path / "curve.parquet")
        assert (again.added, again.existing) == (0, 1)
        (row,) = await rows(manager)
        assert (row.snapshot_time, row.equity) == (NOON, Decimal("1.0000000001"))

    async def test_floats_are_taken_only_where_rounding_is_asked_for(self, manager: DatabaseManager):
        await create(manager, "p1")
        frame = pl.DataFrame({"time": ["2026-11-20", "2026-11-21"], "worth": [0.1, 1 / 3]})
        with pytest.raises(InvalidInput, match="worth holds floats"):
            await take(manager, frame)
        report = await take(manager, frame, round_to_scale=True)
        assert [row.equity for row in await rows(manager)] == [Decimal("0.1"), Decimal("0.3333333333")]
        (rounded,) = report.rounded
        assert (rounded.field, rounded.rows) == ("equity", 1)
        assert rounded.largest == Decimal(repr(1 / 3)) - Decimal("0.3333333333")

    async def test_digits_beyond_the_scale_are_refused_or_rounded_and_told(self, manager: DatabaseManager):
        await create(manager, "p1")
        data = curve("2026-11-20,1.00000000005", "2026-11-21,1.00000000015", "2026-11-22,1e2", "2026-11-23,5E-11")
        report = await take(manager, data, dry_run=True)
        assert (report.added, report.rejected, report.rounded) == (1, 3, ())
        assert report.rejected_rows[0].line == 2
        assert report.rejected_rows[0].field == "worth"
        assert report.rejected_rows[0].reason == "'1.00000000005' has more than 10 digits after the point"
        report = await take(manager, data, round_to_scale=True)
        assert [(one.field, one.rows, one.largest) for one in report.rounded] == [("equity", 3, Decimal("5E-11"))]
        assert [row.equity for row in await rows(manager)] == [1, Decimal("1.0000000002"), 100, 0]

    async def test_a_total_follows_its_rounded_parts(self, manager: DatabaseManager):
        await create(manager, "p1")
        parts = "0.00000000016,0.00000000016,0.00000000032"
        data = f"snapshot_time,equity,realized_pnl,unrealized_pnl,total_pnl\n2026-11-20,5,{parts}\n".encode()
        report = await portfolios.import_snapshots(manager, data, portfolio_id="p1", round_to_scale=True)
        (row,) = await rows(manager)
        assert (row.realized_pnl, row.total_pnl) == (Decimal("0.0000000002"), Decimal("0.0000000004"))
        total = report.rounded[-1]
        assert (total.field, total.rows, total.largest) == ("total_pnl", 1, Decimal("8E-11"))

    async def test_times_are_of_the_zone_that_is_given(self, manager: DatabaseManager):
        await create(manager, "p1")
        data = curve("2026-03-28,1", "2026-03-29 02:30,2", "2026-10-25T02:30:00,3", "2026-10-25T02:30:00+01:00,4")
        report = await take(manager, data, time_zone="Europe/Berlin")
        assert [row.snapshot_time.isoformat() for row in await rows(manager)] == [
            "2026-03-27T23:00:00+00:00",
            "2026-10-25T01:30:00+00:00",
        ]
        assert [row.line for row in report.rejected_rows] == [3, 4]
        assert all("change of the clocks in Europe/Berlin" in row.reason for row in report.rejected_rows)

    @pytest.mark.parametrize(
        ("form", "written"),
        [
            ("%d/%m/%Y %H:%M:%S.%f", "20/11/2026 17:30:00.0"),
            ("%d-%b-%Y %I:%M %p", "20-Nov-2026 05:30 PM"),
            ("%Y%m%d %H%M%S %z", "20261120 130000 +0100"),
            ("epoch", "1795176000"),
            ("epoch", "1795176000.000"),
            ("epoch_ms", "1795176000000"),
            ("epoch_us", "1795176000000000"),
        ],
    )
    async def test_times_may_have_another_form(self, manager: DatabaseManager, form: str, written: str):
        await create(manager, "p1")
        report = await take(manager, curve(f"{written},1"), time_zone="Asia/Kolkata", time_format=form)
        assert report.rejected_rows == ()
        assert (await rows(manager))[0].snapshot_time == NOON

    async def test_bad_rows_are_left_out_with_line_and_field(self, manager: DatabaseManager):
        await create(manager, "p1", "p2")
        lines = [
            full(),
            full(equity="inf", snapshot_time="2026-11-21"),
            full(cash="", snapshot_time="2026-11-22"),
            full(total_pnl="-0.3", snapshot_time="2026-11-23"),
            full(portfolio_id="unknown"),
            full(broker="zerodha", snapshot_time="2026-11-24"),
            full(snapshot_time="yesterday"),
            full(positions="[{}]", snapshot_time="2026-11-25"),
            full(positions="[", snapshot_time="2026-11-26"),
            full(equity="999", snapshot_time="2026-11-27"),
            full(cash="1,000", snapshot_time="2026-11-28"),
            full(snapshot_time="2026-11-29T00:00:00.0000001"),
            full(cash="1" * 19, snapshot_time="2026-11-30"),
            full().rstrip("\n") + ",one more\n",
            full(snapshot_time="0001-01-01"),
            full(portfolio_id="p2", snapshot_time="9999-12-31T23:59:59.999999Z"),
        ]
        report = await portfolios.import_snapshots(manager, (HEADER + "".join(lines)).encode())
        assert adds_up(report)
        told = [(row.line, row.field) for row in report.rejected_rows]
        assert told == [
            (3, "equity"),
            (4, "cash"),
            (5, "total_pnl"),
            (6, "portfolio_id"),
            (7, "broker"),
            (8, "snapshot_time"),
            (9, "positions"),
            (10, "positions"),
            (11, "equity"),
            (12, "cash"),
            (13, "snapshot_time"),
            (14, "cash"),
            (15, "line"),
            (16, "snapshot_time"),
            (17, "snapshot_time"),
        ]
        assert [row.equity for row in await rows(manager)] == [Decimal("1000.0000000001")]

    async def test_strict_takes_all_or_nothing(self, manager: DatabaseManager):
        await create(manager, "p1")
        with pytest.raises(SnapshotFileRejected, match="1 rows of the file are not valid; line 3: worth 'x' is not"):
            await take(manager, curve("2026-11-20,1", "2026-11-21,x"), strict=True)
        with pytest.raises(SnapshotFileRejected, match="line 3: time stands in line 2 with other values"):
            await take(manager, curve("2026-11-20,1", "2026-11-20,2"), strict=True)
        with pytest.raises(SnapshotFileRejected, match="not one of the file's 2 rows is valid"):
            await take(manager, curve("2026-11-20,inf", "2026-11-21,x"))
        assert await rows(manager) == []

    async def test_repeats_are_stored_once_and_contradictions_told(self, manager: DatabaseManager):
        await create(manager, "p1")
        data = curve("2026-11-20,1", "2026-11-20T00:00:00Z,1.0", "2026-11-21,5", "2026-11-20,2", "2026-11-20,1")
        report = await take(manager, data)
        assert adds_up(report)
        assert (report.added, report.repeated, report.rejected) == (2, 2, 1)
        assert [(row.line, row.first_line) for row in report.repeated_rows] == [(3, 2), (6, 2)]
        assert [(row.line, row.reason) for row in report.rejected_rows] == [(5, "stands in line 2 with other values")]
        assert [row.equity for row in await rows(manager)] == [1, 5]

    async def test_the_same_file_twice_adds_nothing(self, manager: DatabaseManager):
        await create(manager, "p1")
        data = (HEADER + full() + full(snapshot_time="2026-12-01", positions="[]")).encode()
        await portfolios.import_snapshots(manager, data)
        report = await portfolios.import_snapshots(manager, data)
        assert (report.added, report.existing, report.conflicts, report.months_made) == (0, 2, 0, ())

    async def test_what_contradicts_the_stored_is_never_written_over(self, manager: DatabaseManager):
        await create(manager, "p1")
        await portfolios.import_snapshots(manager, (HEADER + full()).encode())
        later = (HEADER + full(realized_pnl="1", total_pnl="0.7") + full(snapshot_time="2026-11-21")).encode()
        with pytest.raises(SnapshotConflict, match=r"line 2: realized_pnl, total_pnl of p1 at 2026-11-20") as caught:
            await portfolios.import_snapshots(manager, later)
        assert caught.value.differing == ("realized_pnl", "total_pnl")
        assert len(await rows(manager)) == 1
        dry = await portfolios.import_snapshots(manager, later, dry_run=True)
        report = await portfolios.import_snapshots(manager, later, on_conflict="skip")
        assert (report.added, report.conflicts) == (dry.added, dry.conflicts) == (1, 1)
        (clash,) = report.conflict_rows
        assert (clash.line, clash.snapshot_time, clash.fields) == (2, NOON, ("realized_pnl", "total_pnl"))
        assert adds_up(report)
        assert [row.realized_pnl for row in await rows(manager)] == [Decimal("0.1")] * 2

    async def test_a_dry_run_stores_nothing_and_makes_no_month(self, manager: DatabaseManager):
        await create(manager, "p1")
        before = await months(manager)
        stages: list[str] = []
        report = await take(manager, curve("2031-01-01,1", "1931-01-01,1"), dry_run=True, progress=stages.append)
        assert (report.added, report.dry_run) == (2, True)
        assert report.months_made == ("portfolio_snapshots_y1931m01", "portfolio_snapshots_y2031m01")
        assert await months(manager) == before
        assert await rows(manager) == []
        assert stages == ["read", "partitions", "copy", "compare", "commit"] == list(report.seconds)

    async def test_only_months_with_rows_are_made(self, manager: DatabaseManager):
        await create(manager, "p1")
        before = await months(manager)
        report = await take(manager, curve("2031-01-01,1", "2031-02-01,1", "1831-01-01,1"))
        assert await months(manager) - before == set(report.months_made)
        assert report.months_made == tuple(f"portfolio_snapshots_y{name}" for name in ("1831m01", "2031m01", "2031m02"))

    async def test_two_imports_of_one_file_at_once_store_it_once(self, manager: DatabaseManager):
        await create(manager, "p1")
        data = curve(*(f"{NOON + timedelta(hours=hour):%Y-%m-%dT%H:%M:%S},{hour}" for hour in range(3_000)))
        reports = await asyncio.gather(*(take(manager, data) for _ in range(3)))
        assert sum(report.added for report in reports) == 3_000 == len(await rows(manager))
        assert all(report.added + report.existing == 3_000 for report in reports)

    async def test_a_large_file_is_read_in_pieces_that_know_their_lines(
        self, manager: DatabaseManager, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(_intake, "_CHUNK", 300)
        monkeypatch.setattr(_intake, "_ROWS", 7)
        await create(manager, "p1")
        lines = [f"2026-11-20T12:{minute:02}:00Z,{minute}" for minute in range(60)]
        lines[40] = "2026-11-20T12:40:00Z,nan"
        report = await take(manager, curve(*lines), dry_run=True)
        assert (report.rows, report.added) == (60, 59)
        assert [row.line for row in report.rejected_rows] == [42]
        table = pl.read_csv(curve(*lines), schema={"time": pl.String, "worth": pl.String})
        report = await take(manager, table)
        assert (report.added, [row.line for row in report.rejected_rows]) == (59, [41])
        assert [(one.kind, one.rows, one.first_line, one.stored) for one in report.oddities] == [
            ("not finite", 1, 41, True)
        ]

    async def test_oddities_of_columns_that_are_not_stored_are_told_too(self, manager: DatabaseManager):
        await create(manager, "p1")
        data = b"time,worth,ratio,\n2026-11-20,1,,x\n2026-11-21,2,-Infinity,x\n2026-11-22,3,,x\n"
        report = await take(manager, data)
        assert [(one.column, one.kind, one.rows, one.first_line, one.stored) for one in report.oddities] == [
            ("ratio", "empty", 2, 2, False),
            ("ratio", "not finite", 1, 3, False),
        ]
        assert report.ignored_columns == ("ratio", "")

    async def test_only_so_many_rows_are_named_and_all_are_counted(
        self, manager: DatabaseManager, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(_import, "KEPT_ROWS", 3)
        await create(manager, "p1")
        report = await take(manager, curve("2026-11-20,1", *("2026-11-20,x" for _ in range(20))))
        assert (report.rejected, [row.line for row in report.rejected_rows]) == (20, [3, 4, 5])


class TestFilesThatCannotBeUsed:
    async def refused(
        self, manager: DatabaseManager, data: Any, error: type[Exception], words: str, **options: Any
    ) -> None:
        with pytest.raises(error, match=words):
            await take(manager, data, **options)
        assert await rows(manager) == []

    async def test_files_that_are_none(self, manager: DatabaseManager, tmp_path: Path):
        await create(manager, "p1")
        await self.refused(manager, tmp_path / "absent.csv", SnapshotFileMissing, "does not exist")
        await self.refused(manager, tmp_path, SnapshotFileUnreadable, "is a folder")
        await self.refused(manager, "a\x00b", SnapshotFileUnreadable, "cannot be read")
        await self.refused(manager, b"", SnapshotFileEmpty, "is empty")
        await self.refused(manager, b"time,worth\n", SnapshotFileEmpty, "header and no rows")
        await self.refused(manager, b"time,worth\n\n\n", SnapshotFileEmpty, "holds no rows")
        await self.refused(manager, pl.DataFrame({"time": [], "worth": []}), SnapshotFileEmpty, "holds no rows")

    async def test_damaged_files(self, manager: DatabaseManager, tmp_path: Path):
        await create(manager, "p1")
        whole = curve(*(f"2026-11-{day:02},{day}" for day in range(1, 29)))
        packed = gzip.compress(whole)
        await self.refused(manager, packed[:-12], SnapshotFileTruncated, "ends in the middle")
        await self.refused(manager, packed[:12] + b"\xff" * 20, SnapshotFileCorrupt, "damaged gzip")
        await self.refused(manager, whole.rstrip()[:-3], SnapshotFileTruncated, "in the middle of line 29")
        await self.refused(manager, whole + b'2026-12-01,"5\n', SnapshotFileCorrupt, "not CSV")
        await self.refused(
            manager, whole + b"2026-12-01,\xff\n", SnapshotFileCorrupt, "not UTF-8 text: byte 0xff in line 30"
        )
        buffer = io.BytesIO()
        pl.read_csv(whole).cast(pl.String).write_parquet(buffer)
        parquet = buffer.getvalue()
        await self.refused(manager, parquet[:-20], SnapshotFileTruncated, "Parquet file that ends in the middle")
        broken = parquet[:8] + b"\xff" * 40 + parquet[48:]
        await self.refused(manager, broken, SnapshotFileCorrupt, "damaged")
        await self.refused(manager, b"PAR1" + b"\x00" * 30 + b"PAR1", SnapshotFileCorrupt, "damaged")

    async def test_a_file_beyond_the_limit(self, manager: DatabaseManager, monkeypatch: pytest.MonkeyPatch):
        await create(manager, "p1")
        monkeypatch.setattr(_intake, "MAX_BYTES", 50)
        data = curve(*("2026-11-20,1" for _ in range(9)))
        await self.refused(manager, gzip.compress(data), SnapshotFileTooLarge, "unpacks to more than 50 bytes")
        await self.refused(manager, io.BytesIO(data), SnapshotFileTooLarge, "more than 50 bytes")

    async def test_headers_that_do_not_fit(self, manager: DatabaseManager):
        await create(manager, "p1")
        data = curve("2026-11-20,1")
        await self.refused(manager, data, SnapshotFileHeader, "no column for snapshot_time and equity", columns=None)
        await self.refused(
            manager, data, SnapshotFileHeader, "no column 'x'; its columns are time, worth", columns={"equity": "x"}
        )
        await self.refused(manager, data, InvalidInput, "columns: 'x' is none of", columns={"x": "worth"})
        await self.refused(manager, b"time,worth,worth\n1,2,3\n", SnapshotFileHeader, "names a column twice")
        for first in (b"time\rworth", b"x" * 200_000):
            await self.refused(manager, first + b"\n1,2\n", SnapshotFileHeader, "a first line that is no CSV header")

    async def test_arguments_that_make_no_sense(self, manager: DatabaseManager):
        await create(manager, "p1")
        data = curve("2026-11-20,1")
        for options, words in (
            ({"portfolio_id": None}, "does not say whose snapshots it holds"),
            ({"portfolio_id": "p2"}, "there is no portfolio 'p2'"),
            ({"broker": "zerodha"}, "the portfolio p1 is with paper, not with zerodha"),
            ({"time_zone": "Asia/Calcuta"}, "'Asia/Calcuta' is no time zone"),
            ({"time_format": "DD/MM"}, "'DD/MM' is no format"),
            ({"time_format": "%Q"}, "'%Q' is no format"),
            ({"on_conflict": "replace"}, "takes error or skip"),
        ):
            await self.refused(manager, data, InvalidInput, words, **options)
        nested = pl.DataFrame({"time": ["2026-11-20"], "worth": ["1"], "positions": [[1]]})
        await self.refused(manager, nested, InvalidInput, "column positions holds")


MONEY = st.decimals(
    min_value=Decimal("-999999999999999999.9999999999"),
    max_value=Decimal("999999999999999999.9999999999"),
    places=10,
    allow_nan=False,
)


@given(MONEY, st.integers(-30, 30))
def test_an_amount_is_read_exactly_however_it_is_written(amount: Decimal, shift: int):
    mantissa = amount.scaleb(shift)
    for written in (f"{amount:f}", str(amount), f"{mantissa:f}E{-shift}", f"{amount:f}000"):
        read = read_amount(written.lower(), rounding=False)
        assert read.fault is None
        assert read.text is not None
        assert Decimal(read.text) == amount
        assert "e" not in read.text.lower()


@given(st.decimals(min_value=-(10**17), max_value=10**17, allow_nan=False), st.booleans())
def test_rounding_is_never_silent(amount: Decimal, rounding: bool):
    read = read_amount(str(amount), rounding=rounding)
    if read.text is None:
        assert not rounding or read.fault == "is not a number"
        assert read.fault is not None
        return
    change = abs(Decimal(read.text) - amount) if len(str(amount)) < 28 else None
    assert change is None or change == read.difference <= Decimal("5E-11")
    assert rounding or not read.difference


@given(st.datetimes(min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29)), st.integers(-14 * 60, 14 * 60))
def test_a_moment_is_read_exactly_with_its_offset(moment: datetime, minutes: int):
    sign, rest = ("-" if minutes < 0 else "+"), abs(minutes)
    local = moment + timedelta(minutes=minutes)
    written = pl.Series([f"{local.isoformat()}{sign}{rest // 60:02}:{rest % 60:02}", f"{moment.isoformat(' ')}Z"])
    read = read_moments(written, zone="Asia/Kolkata", form=None)
    assert read["fault"].to_list() == [None, None]
    assert read["time"].to_list() == [moment.replace(tzinfo=UTC)] * 2


@pytest.mark.parametrize(
    "written", ["", "2026-02-30", "2026-01-01T24:00", "2026-01-01T10:00:60", "2026-1-1", "20260101", "now"]
)
def test_what_is_no_moment_is_refused(written: str):
    read = read_moments(pl.Series([written]), zone="UTC", form=None)
    assert read["time"].to_list() == [None]
    assert read["fault"].to_list() != [None]


def snapshots() -> st.SearchStrategy[list[PortfolioSnapshotCreate]]:
    small = st.decimals(min_value=-(10**8), max_value=10**8, places=10, allow_nan=False)
    position = st.fixed_dictionaries(
        {
            "instrument_token": st.integers(-(2**63), 2**63 - 1),
            "quantity": small,
            "average_price": small,
            "last_price": small,
            "pnl": small,
            "market_value": small,
        }
    )

    def made(values: dict[str, Any]) -> PortfolioSnapshotCreate:
        equity = values["cash"] + sum((one["market_value"] for one in values["positions"]), Decimal(0))
        return PortfolioSnapshotCreate(broker="paper", equity=equity, **values)

    half = st.decimals(min_value=-(10**16), max_value=10**16, places=10, allow_nan=False)
    one = st.fixed_dictionaries(
        {
            "portfolio_id": st.sampled_from(["p1", 'p, "2"', "ü'3\\"]),
            "snapshot_time": st.datetimes(
                min_value=datetime(2026, 1, 1), max_value=datetime(2026, 3, 31), timezones=st.just(UTC)
            ),
            "positions": st.lists(position, max_size=3),
            "cash": half,
            "realized_pnl": half,
            "unrealized_pnl": half,
        }
    ).map(made)
    return st.lists(one, min_size=1, max_size=12, unique_by=lambda row: (row.portfolio_id, row.snapshot_time))


class TestExport:
    @settings(
        max_examples=12,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(given_rows=snapshots())
    async def test_what_goes_out_comes_back_the_same(
        self, manager: DatabaseManager, tmp_path: Path, given_rows: list[PortfolioSnapshotCreate]
    ):
        async with manager.transaction() as session:
            await session.execute(text("DELETE FROM portfolio_snapshots"))
            await session.execute(text("DELETE FROM portfolios"))
        await create(manager, "p1", 'p, "2"', "ü'3\\")
        async with manager.transaction() as session:
            await portfolios.record_many(session, given_rows)
        stored = await frame_of(manager)
        assert stored["equity"].to_list() == [
            row.equity for row in sorted(given_rows, key=lambda row: (row.portfolio_id.encode(), row.snapshot_time))
        ]
        for name, zone in (("a.csv", "America/St_Johns"), ("a.csv.gz", "UTC"), ("a.parquet", "Asia/Kolkata")):
            path = tmp_path / name
            report = await portfolios.export_snapshots(manager, path, zone=zone, overwrite=True)
            assert (report.rows, report.size) == (len(given_rows), path.stat().st_size)
            assert (report.first, report.last) == (stored["snapshot_time"].min(), stored["snapshot_time"].max())
            async with manager.transaction() as session:
                await session.execute(text("DELETE FROM portfolio_snapshots"))
            taken = await portfolios.import_snapshots(manager, path)
            assert (taken.added, taken.rejected_rows) == (len(given_rows), ())
            assert (await frame_of(manager)).equals(stored)

    async def filled(self, manager: DatabaseManager, count: int = 100, *ids: str) -> None:
        await create(manager, *(ids or ("p1", "p2", "empty")))
        for portfolio_id in ids or ("p1", "p2"):
            lines = [f"{(NOON + timedelta(hours=n)).isoformat()},{n}.0000000001" for n in range(count)]
            await take(manager, curve(*lines), portfolio_id=portfolio_id)

    async def test_a_file_has_the_rows_asked_for_in_order(self, manager: DatabaseManager, tmp_path: Path):
        await self.filled(manager)
        seen: list[int] = []
        report = await portfolios.export_snapshots(
            manager,
            tmp_path / "out.csv",
            portfolio_ids=["p2", "empty"],
            start=NOON + timedelta(hours=10),
            end=NOON + timedelta(hours=13),
            zone="Asia/Kolkata",
            progress=seen.append,
        )
        lines = (tmp_path / "out.csv").read_text().splitlines()
        assert lines == [
            HEADER.rstrip(),
            "p2,2026-11-21T03:30:00.000000+05:30,paper,[],10.0000000001,0,0,0,10.0000000001",
            "p2,2026-11-21T04:30:00.000000+05:30,paper,[],11.0000000001,0,0,0,11.0000000001",
            "p2,2026-11-21T05:30:00.000000+05:30,paper,[],12.0000000001,0,0,0,12.0000000001",
        ]
        assert (report.format, report.rows, report.portfolios, report.replaced) == ("csv", 3, 1, False)
        assert (report.first, report.last) == (NOON + timedelta(hours=10), NOON + timedelta(hours=12))
        assert seen[-1] == 3

    async def test_parquet_holds_exact_decimals_and_the_zone(self, manager: DatabaseManager, tmp_path: Path):
        await self.filled(manager)
        await portfolios.export_snapshots(manager, tmp_path / "out.parquet", zone="Asia/Kolkata")
        found = pl.read_parquet(tmp_path / "out.parquet")
        assert found.schema["equity"] == pl.Decimal(28, 10)
        assert found.schema["snapshot_time"] == pl.Datetime("us", "Asia/Kolkata")
        stored = await frame_of(manager)
        assert found.with_columns(pl.col("snapshot_time").dt.convert_time_zone("UTC")).equals(stored)

    async def test_small_batches_make_the_same_file(
        self, manager: DatabaseManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        await self.filled(manager, 500)
        await portfolios.export_snapshots(manager, tmp_path / "whole.parquet")
        monkeypatch.setattr(_sinks, "_BATCH", 1_000)
        monkeypatch.setattr(_sinks, "_BLOCK", 10)
        for name in ("parts.parquet", "a.csv.gz", "b.csv.gz"):
            await portfolios.export_snapshots(manager, tmp_path / name)
        parts = pl.read_parquet(tmp_path / "parts.parquet")
        assert parts.equals(pl.read_parquet(tmp_path / "whole.parquet"))
        assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()
        assert pl.read_csv(tmp_path / "a.csv.gz").height == 1_000

    @pytest.mark.parametrize("name", ["none.csv", "none.csv.gz", "none.parquet"])
    async def test_no_rows_make_a_file_of_columns(self, manager: DatabaseManager, tmp_path: Path, name: str):
        await create(manager, "p1")
        report = await portfolios.export_snapshots(manager, tmp_path / name)
        assert (report.rows, report.portfolios, report.first, report.last) == (0, 0, None, None)
        read = pl.read_parquet if name.endswith("parquet") else pl.read_csv
        assert tuple(read(tmp_path / name).columns) == portfolios.SNAPSHOT_COLUMNS

    async def test_times_before_there_were_zones_keep_their_meaning(self, manager: DatabaseManager, tmp_path: Path):
        await create(manager, "p1")
        await take(manager, curve("1850-01-01T00:00:01Z,1"))
        stored = await frame_of(manager)
        await portfolios.export_snapshots(manager, tmp_path / "old.csv", zone="Asia/Kolkata")
        report = await portfolios.import_snapshots(manager, tmp_path / "old.csv")
        assert report.existing == 1
        assert stored["snapshot_time"][0] == datetime(1850, 1, 1, 0, 0, 1, tzinfo=UTC)

    async def test_a_file_that_is_there_is_replaced_on_request_only(self, manager: DatabaseManager, tmp_path: Path):
        await self.filled(manager, 3)
        path = tmp_path / "out.csv"
        path.write_text("mine")
        with pytest.raises(SnapshotFileNotWritten, match=r"out\.csv exists"):
            await portfolios.export_snapshots(manager, path)
        assert path.read_text() == "mine"
        report = await portfolios.export_snapshots(manager, path, overwrite=True)
        assert (report.replaced, path.read_text().count("\n")) == (True, 7)
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.parquet"])
    async def test_an_export_that_fails_leaves_what_was_there(
        self, manager: DatabaseManager, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ):
        await self.filled(manager, 60)
        monkeypatch.setattr(_sinks, "_BATCH", 500)
        monkeypatch.setattr(_sinks, "_BLOCK", 500)
        path = tmp_path / name
        path.write_text("mine")

        def stop(done: int) -> None:
            if done > 60:
                raise KeyError("enough")

        with pytest.raises(KeyError, match="enough"):
            await portfolios.export_snapshots(manager, path, overwrite=True, progress=stop)
        assert path.read_text() == "mine"
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
    async def test_a_cancelled_export_leaves_nothing(
        self, manager: DatabaseManager, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ):
        await self.filled(manager, 60)
        monkeypatch.setattr(_sinks, "_BATCH", 500)

        def stop(done: int) -> None:
            work.cancel()

        work = asyncio.create_task(portfolios.export_snapshots(manager, tmp_path / name, progress=stop))
        with pytest.raises(asyncio.CancelledError):
            await work
        assert list(tmp_path.iterdir()) == []
        async with manager.get_session() as session:
            assert await session.scalar(select(func.count()).select_from(PortfolioSnapshot)) == 120

    @pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.parquet"])
    async def test_a_full_disk_is_told_and_leaves_nothing(
        self, manager: DatabaseManager, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ):
        await self.filled(manager, 60)
        monkeypatch.setattr(_sinks, "_BATCH", 500)
        monkeypatch.setattr(_sinks, "_BLOCK", 500)
        made = _export._sink
        monkeypatch.setattr(_export, "_sink", lambda path, *rest: made(Path("/dev/full"), *rest))
        with pytest.raises(SnapshotFileNotWritten):
            await portfolios.export_snapshots(manager, tmp_path / name)
        assert list(tmp_path.iterdir()) == []

    async def test_places_where_no_file_can_be(self, manager: DatabaseManager, tmp_path: Path):
        await self.filled(manager, 3)
        for path, words in (
            (tmp_path, "format: the end of"),
            (tmp_path / "absent" / "out.csv", "there is no folder"),
            (tmp_path / "a\x00.csv", "is no path"),
        ):
            with pytest.raises((SnapshotFileNotWritten, InvalidInput), match=words):
                await portfolios.export_snapshots(manager, path)
        with pytest.raises(SnapshotFileNotWritten, match="is a folder"):
            await portfolios.export_snapshots(manager, tmp_path, format="csv")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    async def test_a_folder_that_may_not_be_written(self, manager: DatabaseManager, tmp_path: Path):
        tmp_path.chmod(0o500)
        try:
            with pytest.raises(SnapshotFileNotWritten, match="Permission denied"):
                await portfolios.export_snapshots(manager, tmp_path / "out.csv")
        finally:
            tmp_path.chmod(0o700)

    async def test_arguments_that_make_no_sense(self, manager: DatabaseManager, tmp_path: Path):
        await create(manager, "p1")
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"portfolio_ids": ["p1", "p9"]}, "there is no portfolio 'p9'"),
            ({"zone": "Mars"}, "zone: 'Mars' is no time zone"),
            ({"start": NOON, "end": NOON}, "end must be after start"),
            ({"start": datetime(2026, 1, 1)}, "start: takes an aware datetime"),
            ({"format": "xlsx"}, "format: takes csv, csv.gz, parquet"),
        ]
        for options, words in wrong:
            with pytest.raises(InvalidInput, match=words):
                await portfolios.export_snapshots(manager, tmp_path / "out.csv", **options)
        assert list(tmp_path.iterdir()) == []

    async def test_it_is_one_snapshot_of_the_database(
        self, manager: DatabaseManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        await self.filled(manager, 3)
        found = _export._portfolios

        async def and_meanwhile(*args: Any) -> list[str]:
            ids = await found(*args)
            await take(manager, curve("2026-11-30,1"))
            return ids

        monkeypatch.setattr(_export, "_portfolios", and_meanwhile)
        report = await portfolios.export_snapshots(manager, tmp_path / "out.csv")
        assert (report.rows, len(await rows(manager))) == (6, 7)


class TestFrame:
    async def test_a_frame_is_exact_and_goes_back_as_it_is(self, manager: DatabaseManager):
        await create(manager, "p1")
        exact = "123456789012345678.0123456789"
        data = (
            HEADER + full(equity=exact, cash=exact, positions="[]") + full(snapshot_time="2026-12-01T00:00:00.000001Z")
        )
        await portfolios.import_snapshots(manager, data.encode())
        frame = await frame_of(manager)
        assert frame.columns == list(portfolios.SNAPSHOT_COLUMNS)
        assert frame["equity"].to_list() == [Decimal(exact), Decimal("1000.0000000001")]
        assert frame["snapshot_time"].to_list() == [NOON, datetime(2026, 12, 1, 0, 0, 0, 1, tzinfo=UTC)]
        assert json.loads(frame["positions"][1]) == [POSITION]
        async with manager.transaction() as session:
            await session.execute(text("DELETE FROM portfolio_snapshots"))
            assert await portfolios.record_many(session, frame) == 2
        assert (await frame_of(manager)).equals(frame)

    async def test_part_of_it_is_read_on_request(self, manager: DatabaseManager):
        await create(manager, "p1", "p2")
        for portfolio_id in ("p2", "p1"):
            await take(manager, curve(*(f"2026-11-{day},{day}" for day in range(10, 20))), portfolio_id=portfolio_id)
        whole = await frame_of(manager)
        assert whole["portfolio_id"].to_list() == ["p1"] * 10 + ["p2"] * 10
        options: dict[str, Any] = {
            "portfolio_ids": "p2",
            "start": datetime(2026, 11, 12, tzinfo=UTC),
            "end": datetime(2026, 11, 14, tzinfo=UTC),
            "positions": False,
        }
        some = await frame_of(manager, **options)
        assert (some.rows(), some.columns) == (
            whole.filter(portfolio_id="p2").drop("positions").slice(2, 2).rows(),
            [name for name in portfolios.SNAPSHOT_COLUMNS if name != "positions"],
        )
        assert (await frame_of(manager, portfolio_ids=["unknown"])).schema == whole.schema
        with pytest.raises(InvalidInput, match="end must be after start"):
            await frame_of(manager, start=NOON, end=NOON)

    async def test_settings_of_the_session_change_nothing(self, manager: DatabaseManager):
        await create(manager, "p1")
        await take(manager, curve("2026-11-20T12:00:00Z,1"))
        async with manager.transaction() as session:
            await session.execute(text("SET LOCAL DateStyle = 'SQL, DMY'"))
            await session.execute(text("SET LOCAL TimeZone = 'Asia/Kolkata'"))
            frame = await portfolios.snapshot_frame(session)
        assert frame["snapshot_time"].to_list() == [NOON]

    async def test_it_becomes_an_arrow_table_of_decimals(self, manager: DatabaseManager):
        pyarrow = pytest.importorskip("pyarrow")
        await create(manager, "p1")
        await take(manager, curve("2026-11-20,0.0000000001"))
        table = (await frame_of(manager)).to_arrow()
        assert table.schema.field("equity").type == pyarrow.decimal128(28, 10)
        assert table["equity"].to_pylist() == [Decimal("0.0000000001")]


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.exists(), reason="the shared data are not here")
class TestRealFiles:
    COLUMNS: ClassVar = {"snapshot_time": "datetime", "equity": "total"}

    async def test_a_curve_by_the_minute_with_an_infinity_and_18_digits(self, manager: DatabaseManager):
        await create(manager, "lumina")
        file = SHARED / "equity_luminaquant_1m_2026-02.csv"
        refused = await portfolios.import_snapshots(
            manager, file, portfolio_id="lumina", columns=self.COLUMNS, dry_run=True
        )
        assert (refused.rows, refused.added, refused.rejected) == (5_761, 245, 5_516)
        report = await portfolios.import_snapshots(
            manager, file, portfolio_id="lumina", columns=self.COLUMNS, round_to_scale=True
        )
        assert (report.rows, report.added, report.rejected) == (5_761, 5_761, 0)
        assert [(one.field, one.rows) for one in report.rounded] == [("cash", 5_516), ("equity", 5_516)]
        assert all(one.largest <= Decimal("5E-11") for one in report.rounded)
        assert [(one.column, one.kind, one.rows, one.first_line) for one in report.oddities] == [
            ("returns", "empty", 1, 2),
            ("benchmark_returns", "empty", 1, 2),
            ("benchmark_returns", "not finite", 1, 3),
        ]
        frame = await frame_of(manager)
        told = pl.read_csv(file, schema_overrides={"total": pl.String})["total"].to_list()
        assert all(
            abs(Decimal(text) - stored) <= Decimal("5E-11") for text, stored in zip(told, frame["equity"], strict=True)
        )

    async def test_a_daily_curve_with_a_day_twice_and_its_own_drawdown(self, manager: DatabaseManager):
        await create(manager, "djunh")
        file = SHARED / "equity_djunh1_daily_positions.csv"
        report = await portfolios.import_snapshots(manager, file, portfolio_id="djunh", columns=self.COLUMNS)
        assert (report.rows, report.added, report.repeated, report.rejected) == (6_539, 6_538, 1, 0)
        (repeated,) = report.repeated_rows
        assert (repeated.line, repeated.first_line, repeated.snapshot_time.date()) == (6_540, 6_539, date(2015, 12, 8))
        assert {(one.column, one.kind, one.rows) for one in report.oddities} == {
            (column, "empty", 1) for column in ("returns", "equity_curve", "drawdown")
        }
        assert len(report.months_made) >= 311
        equity = (await frame_of(manager, positions=False))["equity"]
        told = pl.read_csv(file)["drawdown"].to_list()[1:-1]
        peak = Decimal(0)
        for ours, theirs in zip(equity.to_list()[1:], told, strict=True):
            peak = max(peak, ours)
            assert abs(float((peak - ours) / 100_000) - theirs) < 1e-9


def amounts(count: int) -> Iterable[Decimal]:
    import random

    chance = random.Random(5)
    for _ in range(count):
        yield Decimal(chance.randint(-(10**26), 10**26)).scaleb(-chance.randint(8, 10)).quantize(Decimal("1E-10"))


def summed_exactly(values: Iterable[Decimal]) -> Decimal:
    """Python's own context rounds to 28 digits on the way."""
    with localcontext(prec=60):
        return sum(values, Decimal(0))


async def test_every_path_sums_random_amounts_exactly(manager: DatabaseManager, tmp_path: Path):
    """Through records, a frame, CSV, Parquet and the writer; summed by the server, by polars and by Python.

    SUM_ROWS=1000000 asks for more.
    """
    count = int(os.environ.get("SUM_ROWS", "2000"))
    values = list(amounts(count))
    exact = summed_exactly(values)
    paths = ("records", "frame", "csv", "parquet", "orm", "writer")
    await create(manager, *paths)
    times = [NOON + timedelta(seconds=number) for number in range(count)]

    def made(portfolio_id: str, first: int, size: int) -> list[PortfolioSnapshotCreate]:
        zero = Decimal(0)
        return [
            PortfolioSnapshotCreate(
                portfolio_id=portfolio_id,
                broker="paper",
                snapshot_time=at,
                cash=value,
                realized_pnl=zero,
                unrealized_pnl=zero,
                equity=value,
            )
            for at, value in zip(times[first : first + size], values[first : first + size], strict=True)
        ]

    for first in range(0, count, 2_000):
        records, objects = made("records", first, 2_000), made("orm", first, 2_000)
        async with manager.transaction() as session:
            await portfolios.record_many(session, records)
            session.add_all(PortfolioSnapshot(**one.columns()) for one in objects)
    async with portfolios.SnapshotWriter(manager) as writer:
        for first in range(0, count, 500):
            await asyncio.gather(*(writer.write(one) for one in made("writer", first, 500)))
    frame = (await frame_of(manager, portfolio_ids="records")).with_columns(portfolio_id=pl.lit("frame"))
    async with manager.transaction() as session:
        await portfolios.record_many(session, frame)
    for name in ("csv", "parquet"):
        path = tmp_path / f"out.{name}"
        renamed = frame.with_columns(portfolio_id=pl.lit(name))
        renamed.write_csv(path) if name == "csv" else renamed.write_parquet(path)
        assert (await portfolios.import_snapshots(manager, path)).added == count
    await portfolios.export_snapshots(manager, tmp_path / "all.parquet")
    whole = await frame_of(manager)
    files = pl.read_parquet(tmp_path / "all.parquet")
    async with manager.get_session() as session:
        for name in paths:
            summed = select(func.sum(PortfolioSnapshot.equity)).where(PortfolioSnapshot.portfolio_id == name)
            assert await session.scalar(summed) == exact
            stored = await session.scalars(
                select(PortfolioSnapshot.equity).where(PortfolioSnapshot.portfolio_id == name)
            )
            assert summed_exactly(stored) == exact
            for table in (whole, files):
                assert table.filter(portfolio_id=name)["equity"].sum() == exact
