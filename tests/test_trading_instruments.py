"""The instrument master on a real server: what a load writes, and what it leaves alone."""

import asyncio
import os
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import func, select, text, update

from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput
from core.database.models import Instrument, InstrumentVersion
from core.trading import instruments
from core.trading.instruments import (
    InstrumentFileEmpty,
    InstrumentFileMissing,
    InstrumentFileRejected,
    InstrumentFileTruncated,
    LoadReport,
)
from core.trading.instruments._parse import KITE_COLUMNS

FRIDAY, MONDAY = date(2026, 11, 20), date(2026, 11, 23)
HEADER = ",".join(KITE_COLUMNS) + "\n"
ACC = "5633,22,ACC,ACC LTD,1834.5,,0.0,0.05,1,EQ,NSE,NSE\n"
TCS = "2953217,11536,TCS,TATA CONSULTANCY,3051.25,,0.0,0.1,1,EQ,NSE,NSE\n"
INDEX = "256265,1001,NIFTY 50,NIFTY 50,24950.15,,0.0,0.0,0,EQ,INDICES,NSE\n"
CALL = "9331458,36451,NIFTY26NOV24300CE,NIFTY,1.0E-4,2026-11-24,24300.0,0.05,65,CE,NFO-OPT,NFO\n"
BOND = "179200257,700001,600AP27-SG,,0.0,,0.0,0.01,100,EQ,NSE,NSE\n"


def file(*rows: str) -> bytes:
    return (HEADER + "".join(rows)).encode()


async def load(manager: DatabaseManager, *rows: str, day: date = FRIDAY, source: str = "kite") -> LoadReport:
    return await instruments.load(manager, file(*rows), trading_date=day, source=source)


def counts(report: LoadReport) -> dict[str, int]:
    names = ("added", "changed", "reactivated", "deactivated", "unchanged")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


async def stored(manager: DatabaseManager, *tokens: int) -> list[Instrument]:
    async with manager.get_session() as session:
        query = select(Instrument).order_by(Instrument.instrument_token)
        if tokens:
            query = query.where(Instrument.instrument_token.in_(tokens))
        return list(await session.scalars(query))


async def physical(manager: DatabaseManager) -> list[tuple[int, str, str]]:
    """Where each row lies and who wrote it: a row that is touched at all has another."""
    async with manager.get_session() as session:
        return [tuple(row) for row in await session.execute(
            text("SELECT instrument_token, xmin::text, ctid::text FROM instruments ORDER BY 1")
        )]  # fmt: skip


async def versions(manager: DatabaseManager) -> list[InstrumentVersion]:
    async with manager.get_session() as session:
        query = select(InstrumentVersion).order_by(InstrumentVersion.instrument_token, InstrumentVersion.valid_from)
        return list(await session.scalars(query))


async def test_a_first_load_stores_every_row_exactly(manager: DatabaseManager):
    stages: list[str] = []
    report = await instruments.load(manager, file(ACC, INDEX, CALL, BOND), trading_date=FRIDAY, progress=stages.append)
    assert (report.rows, counts(report), report.rejected) == (4, {"added": 4}, ())
    assert (report.source, report.exchanges, report.trading_date) == ("kite", ("NFO", "NSE"), FRIDAY)
    assert stages == ["read", "parse", "copy", "merge", "commit"] == list(report.seconds)
    acc, index, call, bond = await stored(manager)
    assert (call.instrument_type, call.option_type, call.underlying) == ("OPT", "CE", "NIFTY")
    assert (call.strike, call.tick_size, call.last_price) == (Decimal(24300), Decimal("0.05"), Decimal("0.0001"))
    assert (call.expiry, call.lot_size, call.exchange_token) == (date(2026, 11, 24), 65, "36451")
    assert (index.instrument_type, index.tick_size, index.lot_size, index.exchange) == ("IDX", 0, 0, "NSE")
    assert (acc.strike, acc.expiry, acc.underlying, acc.option_type) == (None, None, None, None)
    assert (bond.name, bond.last_price) == (None, Decimal(0))
    for one in (index, acc, call, bond):
        assert one.is_active and one.source == "kite" and dict(one.attributes.root) == {}
        assert one.valid_from == datetime(2026, 11, 20, tzinfo=UTC)
    assert await versions(manager) == []


async def test_an_unchanged_file_touches_no_row(manager: DatabaseManager):
    await load(manager, ACC, TCS, CALL)
    before = await physical(manager)
    report = await load(manager, CALL, ACC, TCS, day=MONDAY)
    assert counts(report) == {"unchanged": 3}
    assert report.written == report.repriced == 0
    assert await physical(manager) == before


async def test_only_what_changed_is_written_and_its_past_is_kept(manager: DatabaseManager):
    await load(manager, ACC, TCS)
    before = dict((row[0], row) for row in await physical(manager))
    report = await load(manager, ACC.replace("0.05", "0.1"), TCS, CALL, day=MONDAY)
    assert counts(report) == {"added": 1, "changed": 1, "unchanged": 1}
    after = dict((row[0], row) for row in await physical(manager))
    assert after[2953217] == before[2953217] and after[5633] != before[5633]
    (acc,) = await stored(manager, 5633)
    assert (acc.tick_size, acc.valid_from) == (Decimal("0.1"), datetime(2026, 11, 23, tzinfo=UTC))
    (past,) = await versions(manager)
    assert (past.instrument_token, past.tick_size, past.is_active) == (5633, Decimal("0.05"), True)
    assert (past.valid_from, past.valid_to) == (datetime(2026, 11, 20, tzinfo=UTC), acc.valid_from)


async def test_a_correction_on_the_same_day_replaces_the_state(manager: DatabaseManager):
    await load(manager, ACC)
    assert counts(await load(manager, ACC.replace("ACC LTD", "ACC LIMITED"))) == {"changed": 1}
    (acc,) = await stored(manager)
    assert acc.name == "ACC LIMITED"
    assert await versions(manager) == []


async def test_another_last_price_is_stored_but_is_no_change(manager: DatabaseManager):
    await load(manager, ACC, TCS)
    report = await load(manager, ACC.replace("1834.5", "1850.75"), TCS, day=MONDAY)
    assert (counts(report), report.repriced, report.written) == ({"unchanged": 2}, 1, 0)
    (acc,) = await stored(manager, 5633)
    assert (acc.last_price, acc.valid_from) == (Decimal("1850.75"), datetime(2026, 11, 20, tzinfo=UTC))
    assert await versions(manager) == []


async def test_what_the_file_no_longer_names_is_deactivated_and_can_come_back(manager: DatabaseManager):
    await load(manager, ACC, TCS)
    assert counts(await load(manager, ACC, day=MONDAY)) == {"deactivated": 1, "unchanged": 1}
    (tcs,) = await stored(manager, 2953217)
    assert not tcs.is_active and tcs.name == "TATA CONSULTANCY"
    assert counts(await load(manager, ACC, day=MONDAY)) == {"unchanged": 1}
    assert counts(await load(manager, ACC, TCS, day=date(2026, 11, 24))) == {"reactivated": 1, "unchanged": 1}
    assert [(one.is_active, one.valid_from.day, one.valid_to.day) for one in await versions(manager)] == [
        (True, 20, 23),
        (False, 23, 24),
    ]
    (tcs,) = await stored(manager, 2953217)
    assert tcs.is_active and tcs.valid_from.day == 24


async def test_exchanges_and_sources_that_are_not_in_the_file_are_left_alone(manager: DatabaseManager):
    await load(manager, ACC, CALL)
    await load(manager, "77,1,A,,0,,0,0.05,1,EQ,NSE,NSE\n", source="other")
    before = [row for row in await physical(manager) if row[0] != 5633]
    assert counts(await load(manager, TCS, day=MONDAY)) == {"added": 1, "deactivated": 1}
    assert [row for row in await physical(manager) if row[0] in (77, 9331458)] == before


async def test_a_rejected_row_is_told_and_does_not_count_as_gone(manager: DatabaseManager):
    await load(manager, ACC, TCS, CALL)
    before = await physical(manager)
    report = await load(
        manager, ACC, TCS.replace("2953217", "?"), CALL.replace("0.05", "-1"), BOND.replace("700001", "x"), day=MONDAY
    )
    assert [(row.line, row.field) for row in report.rejected] == [
        (3, "instrument_token"),
        (4, "tick_size"),
        (5, "exchange_token"),
    ]
    assert counts(report) == {"unchanged": 1}
    assert await physical(manager) == before


async def test_a_token_that_another_source_holds_is_rejected(manager: DatabaseManager):
    await load(manager, ACC, source="kite")
    report = await load(manager, ACC, TCS, source="upstox")
    assert counts(report) == {"added": 1}
    (foreign,) = report.rejected
    assert (foreign.line, foreign.reason) == (2, "5633 is an instrument of source 'kite'")
    assert [one.source for one in await stored(manager)] == ["kite", "upstox"]
    with pytest.raises(InstrumentFileRejected, match="source 'kite'"):
        await load(manager, ACC.replace("LTD", "LIMITED"), source="upstox", day=MONDAY)


async def test_an_older_file_is_refused_once_a_newer_one_has_changed_something(manager: DatabaseManager):
    await load(manager, ACC, TCS, day=MONDAY)
    before = await physical(manager)
    for rows in ((ACC.replace("LTD", "LIMITED"), TCS), (ACC,), (ACC.replace("1834.5", "1"), TCS)):
        with pytest.raises(InvalidInput, match="later day than 2026-11-20") as caught:
            await load(manager, *rows, day=FRIDAY)
        assert caught.value.column == "trading_date"
    assert await physical(manager) == before


async def test_symbols_may_move_to_other_tokens_in_one_file(manager: DatabaseManager):
    await load(manager, ACC, TCS)
    swapped = (ACC.replace(",ACC,", ",TCS,"), TCS.replace(",TCS,", ",ACC,"))
    assert counts(await load(manager, *swapped, day=MONDAY)) == {"changed": 2}
    async with manager.get_session() as session:
        found = await instruments.by_symbol(session, "NSE", "ACC")
        assert found is not None and found.instrument_token == 2953217


async def test_loads_at_the_same_time_run_one_after_the_other(manager: DatabaseManager):
    reports = await asyncio.gather(*(load(manager, ACC, TCS, CALL) for _ in range(5)))
    assert sorted(tuple(counts(report).items()) for report in reports) == [
        (("added", 3),),
        *[(("unchanged", 3),)] * 4,
    ]


async def test_a_failed_load_leaves_the_master_as_it_was(manager: DatabaseManager, monkeypatch: pytest.MonkeyPatch):
    await load(manager, ACC, TCS)
    before = await physical(manager)
    async with manager.transaction() as session:
        await session.execute(text("ALTER TABLE instruments ADD CONSTRAINT ck_no_call CHECK (option_type IS NULL)"))
    with pytest.raises(Exception, match="ck_no_call"):
        await load(manager, ACC.replace("LTD", "LIMITED"), CALL, day=MONDAY)
    assert await physical(manager) == before
    assert await versions(manager) == []


async def test_a_cancelled_load_leaves_the_master_as_it_was(manager: DatabaseManager):
    await load(manager, ACC, TCS)
    before = await physical(manager)
    async with manager.transaction() as session:
        await session.execute(update(Instrument).where(Instrument.instrument_token == 5633).values(name="locked"))
        loading = asyncio.create_task(load(manager, ACC.replace("LTD", "LIMITED"), CALL, day=MONDAY))
        await asyncio.sleep(0.5)
        assert not loading.done()
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        await session.rollback()
    assert await physical(manager) == before


BAD_FILES = [
    (None, InstrumentFileMissing),
    (file(ACC) + CALL[:20].encode(), InstrumentFileTruncated),
    (file(), InstrumentFileEmpty),
]


async def test_a_file_that_cannot_be_used_changes_nothing(manager: DatabaseManager, tmp_path: Path):
    await load(manager, ACC, TCS)
    before = await physical(manager)
    path = tmp_path / "master.csv"
    for content, error in BAD_FILES:
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(error) as caught:
            await instruments.load(manager, path, trading_date=MONDAY)
        assert str(path) in str(caught.value)
    assert await physical(manager) == before


MISFITS = [
    ({"source": "Kite!"}, "source"),
    ({"trading_date": datetime(2026, 11, 20, tzinfo=UTC)}, "trading_date"),
    ({"trading_date": date.max}, "trading_date"),
    ({"format": "excel"}, "format"),
]


async def test_wrong_arguments_are_named(manager: DatabaseManager):
    for arguments, field in MISFITS:
        with pytest.raises(InvalidInput) as caught:
            await instruments.load(manager, file(ACC), **({"trading_date": FRIDAY} | arguments))  # type: ignore[arg-type]
        assert caught.value.column == field


async def test_an_instrument_is_found_by_token_and_by_symbol(manager: DatabaseManager):
    await load(manager, ACC, INDEX)
    await load(manager, INDEX, ACC.replace("5633", "5634"), day=MONDAY)
    async with manager.get_session(read_only=True) as session:
        gone = await instruments.get(session, 5633)
        assert gone is not None and not gone.is_active
        assert await instruments.get(session, 1) is None
        present = await instruments.by_symbol(session, "NSE", "ACC")
        assert present is not None and present.instrument_token == 5634
        assert await instruments.by_symbol(session, "NSE", "NIFTY 50", source="kite") is not None
        assert await instruments.by_symbol(session, "NSE", "NIFTY 50", source="upstox") is None
        assert await instruments.by_symbol(session, "BSE", "ACC") is None


SHARED = Path(os.environ.get("PANDA_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (
            "kite_nfo_2026-08_day1.csv.gz",
            "kite_nfo_bfo_2026-08_day2.csv.gz",
            {"added": 5_177, "changed": 74, "unchanged": 34_690},
        ),
        (
            "kite_nse_2017-11-24.csv",
            "kite_nse_2026-07-12.csv",
            {"added": 8_221, "changed": 1_385, "deactivated": 4_676, "unchanged": 340},
        ),
    ],
)
async def test_two_days_of_real_files_differ_as_they_do(
    manager: DatabaseManager, first: str, second: str, expected: dict[str, int]
):
    if not (SHARED / first).exists() or not (SHARED / second).exists():
        pytest.skip("the real files are not beside the checkout")
    one = await instruments.load(manager, SHARED / first, trading_date=FRIDAY)
    assert counts(one) == {"added": one.rows} and one.rejected == ()
    two = await instruments.load(manager, str(SHARED / second), trading_date=MONDAY)
    assert counts(two) == expected and two.rejected == ()
    three = await instruments.load(manager, SHARED / second, trading_date=MONDAY)
    assert counts(three) == {"unchanged": two.rows}
    assert replace(three, seconds={}).written == 0
    async with manager.get_session() as session:
        kept = await session.scalar(select(func.count()).select_from(InstrumentVersion))
    assert kept == two.changed + two.deactivated
