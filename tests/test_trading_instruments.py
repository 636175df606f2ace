"""The instrument master on a real server: what a load writes, what it leaves alone, and when it refuses."""

import asyncio
import json
import os
import subprocess
import sys
import time
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update

from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput, LockTimeout
from core.database.models import Instrument, InstrumentLoad, InstrumentVersion
from core.database.notify import Listener, Notification, Resync
from core.demo.market import HEADER as KITE
from core.demo.market import made_master
from core.testing import make_instrument
from core.trading import instruments
from core.trading.instruments import (
    InstrumentFileEmpty,
    InstrumentFileMissing,
    InstrumentFileRejected,
    InstrumentFileTruncated,
    InstrumentMappingInvalid,
    LoadReport,
    MasterWouldShrink,
    Shrink,
    StaleInstrumentFile,
    _load,
    _merge,
    _merge_sql,
    _reader,
)
from tests.waiting import wait_for_lock

FRIDAY, MONDAY, TUESDAY = date(2026, 11, 20), date(2026, 11, 23), date(2026, 11, 24)
ACC = "5633,22,ACC,ACC LTD,1834.5,,0.0,0.05,1,EQ,NSE,NSE\n"
TCS = "2953217,11536,TCS,TATA CONSULTANCY,3051.25,,0.0,0.1,1,EQ,NSE,NSE\n"
INDEX = "256265,1001,NIFTY 50,NIFTY 50,24950.15,,0.0,0.0,0,EQ,INDICES,NSE\n"
CALL = "9331458,36451,NIFTY26NOV24300CE,NIFTY,1.0E-4,2026-11-24,24300.0,0.05,65,CE,NFO-OPT,NFO\n"
BOND = "179200257,700001,600AP27-SG,,0.0,,0.0,0.01,100,EQ,NSE,NSE\n"

UPSTOX = (
    "instrument_key,exchange_token,tradingsymbol,name,last_price,expiry,strike,tick_size,lot_size,instrument_type,"
    "option_type,exchange\n"
)
UP_ACC = "NSE_EQ|INE012A01025,22,ACC,ACC LTD,1834.5,,,0.05,1,EQUITY,,NSE_EQ\n"
UP_TCS = "NSE_EQ|INE467B01029,11536,TCS,TATA CONSULTANCY,3051.25,,,0.1,1,EQUITY,,NSE_EQ\n"

TAGGED: dict[str, Any] = {
    "format": "tagged",
    "source": "tagged",
    "token": {"integer": "id"},
    "columns": {"trading_symbol": "symbol", "segment": "venue", "last_price": "price"},
    "exchange": {"column": "venue"},
    "instrument_type": {"column": "kind", "names": {"E": "EQ"}},
}


def file(*rows: str) -> bytes:
    return (KITE + "\n" + "".join(rows)).encode()


def stocks(count: int, tick: str = "0.05") -> bytes:
    return file(*(f"{256 * n + 1},{n},STOCK{n},STOCK {n},0,,0,{tick},1,EQ,NSE,NSE\n" for n in range(1, count + 1)))


async def load(manager: DatabaseManager, *rows: str, day: date = FRIDAY, **options: Any) -> LoadReport:
    """Files here are so small that leaving one row out is half of them: the guard has tests of its own."""
    keywords: dict[str, Any] = {"allow_shrink": True, **options}
    return await instruments.load(manager, file(*rows), trading_date=day, **keywords)


async def load_upstox(manager: DatabaseManager, *rows: str, day: date = FRIDAY) -> LoadReport:
    return await instruments.load(manager, (UPSTOX + "".join(rows)).encode(), trading_date=day)


NAMES = ("added", "changed", "attributes_changed", "reactivated", "deactivated", "unchanged")


def counts(report: LoadReport) -> dict[str, int]:
    """What is not zero; and the report must add up, whatever it says."""
    told = report.added + report.changed + report.attributes_changed + report.reactivated + report.unchanged
    assert report.rows == told + report.duplicates + len(report.rejected)
    return {name: getattr(report, name) for name in NAMES if getattr(report, name)}


async def fetch(manager: DatabaseManager, query: str, **values: Any) -> list[tuple[Any, ...]]:
    async with manager.get_session() as session:
        return [tuple(row) for row in await session.execute(text(query), values)]


async def stored(manager: DatabaseManager, *tokens: int) -> list[Instrument]:
    async with manager.get_session() as session:
        query = _ordered(Instrument)
        if tokens:
            query = query.where(Instrument.instrument_token.in_(tokens))
        return list(await session.scalars(query))


async def versions(manager: DatabaseManager) -> list[InstrumentVersion]:
    async with manager.get_session() as session:
        return list(await session.scalars(_ordered(InstrumentVersion)))


def _ordered(model: Any) -> Any:
    return select(model).order_by(model.instrument_token, model.valid_from)


async def physical(manager: DatabaseManager) -> list[tuple[Any, ...]]:
    """Where each row lies and who wrote it: a row that is touched at all has another."""
    return await fetch(
        manager, "SELECT instrument_token, xmin::text, ctid::text, xmax::text FROM instruments ORDER BY 1"
    )


async def noted(manager: DatabaseManager) -> list[InstrumentLoad]:
    async with manager.get_session() as session:
        return await instruments.loads(session)


class TestWhatIsStored:
    async def test_a_first_load_stores_every_row_exactly(self, manager: DatabaseManager):
        stages: list[str] = []
        report = await load(manager, ACC, INDEX, CALL, BOND, progress=stages.append)
        assert (report.rows, counts(report), report.rejected) == (4, {"added": 4}, ())
        assert (report.source, report.format, report.exchanges) == ("kite", "kite", ("NFO", "NSE"))
        assert (report.trading_date, report.known, report.dry_run) == (FRIDAY, False, False)
        assert stages == ["read", "lock", "copy", "merge", "commit"] == list(report.seconds)
        acc, index, call, bond = await stored(manager)
        assert (call.instrument_type, call.option_type, call.underlying) == ("OPT", "CE", "NIFTY")
        assert (call.strike, call.tick_size, call.last_price) == (Decimal(24300), Decimal("0.05"), Decimal("0.0001"))
        assert (call.expiry, call.lot_size, call.exchange_token) == (date(2026, 11, 24), 65, "36451")
        assert (index.instrument_type, index.tick_size, index.lot_size, index.exchange) == ("IDX", 0, 0, "NSE")
        assert (acc.strike, acc.expiry, acc.underlying, acc.option_type) == (None, None, None, None)
        assert (bond.name, bond.last_price) == (None, Decimal(0))
        for one in (index, acc, call, bond):
            assert one.is_active and one.source == "kite" and dict(one.attributes.root) == {} and one.broker_key is None
            assert one.valid_from == datetime(2026, 11, 20, tzinfo=UTC)
        assert await versions(manager) == []
        (kept,) = await noted(manager)
        assert (kept.digest, kept.exchanges, kept.rows, kept.added) == (report.digest, ["NFO", "NSE"], 4, 4)
        assert kept.milliseconds >= (report.seconds["read"] + report.seconds["copy"]) * 1_000 - 1

    async def test_an_unchanged_file_touches_no_row(self, manager: DatabaseManager):
        await load(manager, ACC, TCS, CALL)
        before = await physical(manager)
        report = await load(manager, CALL, ACC, TCS, day=MONDAY)
        assert (counts(report), report.known) == ({"unchanged": 3}, False)
        assert report.written == report.repriced == 0
        assert await physical(manager) == before

    async def test_only_what_changed_is_written_and_its_past_is_kept(self, manager: DatabaseManager):
        await load(manager, ACC, TCS)
        before = {row[0]: row for row in await physical(manager)}
        report = await load(manager, ACC.replace("0.05", "0.1"), TCS, CALL, day=MONDAY)
        assert counts(report) == {"added": 1, "changed": 1, "unchanged": 1} and report.renamed == 0
        after = {row[0]: row for row in await physical(manager)}
        assert after[2953217] == before[2953217] and after[5633] != before[5633]
        (acc,) = await stored(manager, 5633)
        assert (acc.tick_size, acc.valid_from) == (Decimal("0.1"), datetime(2026, 11, 23, tzinfo=UTC))
        assert acc.updated_at > acc.created_at
        (past,) = await versions(manager)
        assert (past.instrument_token, past.tick_size, past.is_active) == (5633, Decimal("0.05"), True)
        assert (past.valid_from, past.valid_to) == (datetime(2026, 11, 20, tzinfo=UTC), acc.valid_from)

    async def test_a_correction_on_the_same_day_replaces_the_state(self, manager: DatabaseManager):
        await load(manager, ACC)
        assert counts(await load(manager, ACC.replace("ACC LTD", "ACC LIMITED"))) == {"changed": 1}
        (acc,) = await stored(manager)
        assert acc.name == "ACC LIMITED"
        assert await versions(manager) == []

    async def test_a_state_that_began_in_the_middle_of_the_day_is_corrected_and_keeps_its_beginning(
        self, manager: DatabaseManager
    ):
        noon = datetime(2026, 11, 20, 12, tzinfo=UTC)
        async with manager.transaction() as session:
            session.add(make_instrument(instrument_token=5633, exchange="NSE", source="kite", valid_from=noon))
        assert counts(await load(manager, ACC)) == {"changed": 1}
        (acc,) = await stored(manager)
        assert (acc.trading_symbol, acc.valid_from, await versions(manager)) == ("ACC", noon, [])

    async def test_another_last_price_is_stored_but_is_no_change(self, manager: DatabaseManager):
        await load(manager, ACC, TCS)
        report = await load(manager, ACC.replace("1834.5", "1850.75"), TCS, day=MONDAY)
        assert (counts(report), report.repriced, report.written) == ({"unchanged": 2}, 1, 0)
        (acc,) = await stored(manager, 5633)
        assert (acc.last_price, acc.valid_from) == (Decimal("1850.75"), datetime(2026, 11, 20, tzinfo=UTC))
        assert await versions(manager) == []

    @pytest.mark.parametrize("part", [2, 3, 4])
    async def test_prices_are_sent_in_parts_and_none_is_left_out(self, manager: DatabaseManager, monkeypatch, part):
        monkeypatch.setattr(_merge, "_PART", part)
        rows = [ACC.replace("5633", str(token)) for token in (2, 3, 5, 7, 11)]
        await load(manager, *rows)
        before = await physical(manager)
        rows[1:] = [row.replace("1834.5", f"{place}.25") for place, row in enumerate(rows[1:], 1)]
        assert (await load(manager, *rows, day=MONDAY)).repriced == 4
        prices = [one.last_price for one in await stored(manager)]
        assert prices == [Decimal(price) for price in ("1834.5", "1.25", "2.25", "3.25", "4.25")]
        assert (await physical(manager))[0] == before[0], "what is equal was not written"

    async def test_another_symbol_is_a_rename_among_the_changed(self, manager: DatabaseManager):
        await load(manager, ACC, TCS, BOND)
        report = await load(manager, ACC.replace(",ACC,", ",ACCX,"), TCS.replace("0.1", "0.2"), BOND, day=MONDAY)
        assert (counts(report), report.renamed) == ({"changed": 2, "unchanged": 1}, 1)

    async def test_other_columns_alone_are_a_change_of_attributes_and_go_to_history(self, manager: DatabaseManager):
        def tagged(note: str, symbol: str = "A", price: str = "1") -> bytes:
            return f"id,symbol,venue,kind,price,note\n7,{symbol},NSE,E,{price},{note}\n8,B,NSE,E,1,same\n".encode()

        async def bring(data: bytes, day: date) -> LoadReport:
            return await instruments.load(manager, data, trading_date=day, mapping=TAGGED)

        await bring(tagged("old"), FRIDAY)
        assert counts(await bring(tagged("new", price="2"), MONDAY)) == {"attributes_changed": 1, "unchanged": 1}
        assert counts(await bring(tagged("newer", symbol="C"), TUESDAY)) == {"changed": 1, "unchanged": 1}
        assert [dict(one.attributes.root) for one in await versions(manager)] == [{"note": "old"}, {"note": "new"}]
        (now,) = await stored(manager, 7)
        assert (now.source, now.trading_symbol, dict(now.attributes.root)) == ("tagged", "C", {"note": "newer"})

    async def test_symbols_may_move_to_other_tokens_in_one_file(self, manager: DatabaseManager):
        await load(manager, ACC, TCS)
        swapped = (ACC.replace(",ACC,", ",TCS,"), TCS.replace(",TCS,", ",ACC,"))
        report = await load(manager, *swapped, day=MONDAY)
        assert (counts(report), report.renamed) == ({"changed": 2}, 2)
        async with manager.get_session() as session:
            found = await instruments.by_symbol(session, "NSE", "ACC")
            assert found is not None and found.instrument_token == 2953217


class TestScope:
    async def test_what_the_file_no_longer_names_is_deactivated_and_can_come_back(self, manager: DatabaseManager):
        await load(manager, ACC, TCS)
        assert counts(await load(manager, ACC, day=MONDAY)) == {"deactivated": 1, "unchanged": 1}
        (tcs,) = await stored(manager, 2953217)
        assert not tcs.is_active and tcs.name == "TATA CONSULTANCY"
        assert counts(await load(manager, ACC, INDEX, day=MONDAY)) == {"added": 1, "unchanged": 1}
        back = await load(manager, ACC, INDEX, TCS.replace("0.1", "0.2"), day=TUESDAY)
        assert counts(back) == {"reactivated": 1, "unchanged": 2}
        assert [(one.is_active, one.valid_from.day, one.valid_to.day) for one in await versions(manager)] == [
            (True, 20, 23),
            (False, 23, 24),
        ]
        (tcs,) = await stored(manager, 2953217)
        assert tcs.is_active and tcs.valid_from.day == 24 and tcs.tick_size == Decimal("0.2")

    async def test_exchanges_and_sources_that_are_not_in_the_file_are_left_alone(self, manager: DatabaseManager):
        await load(manager, ACC, CALL)
        await load(manager, "77,1,A,,0,,0,0.05,1,EQ,NSE,NSE\n", source="other")
        before = [row for row in await physical(manager) if row[0] != 5633]
        assert counts(await load(manager, TCS, day=MONDAY)) == {"added": 1, "deactivated": 1}
        assert [row for row in await physical(manager) if row[0] in (77, 9331458)] == before

    async def test_a_rejected_row_is_told_and_does_not_count_as_gone(self, manager: DatabaseManager):
        await load(manager, ACC, TCS, CALL, BOND)
        before = await physical(manager)
        report = await load(
            manager, ACC, TCS.replace("2953217", "?"), CALL.replace("0.05", "-1"), BOND.replace("NSE\n", "NSE,x\n"),
            day=MONDAY, allow_shrink=False,
        )  # fmt: skip
        assert [(row.line, row.field) for row in report.rejected] == [
            (3, "instrument_token"),
            (4, "tick_size"),
            (5, "line"),
        ]
        assert (counts(report), report.exchanges) == ({"unchanged": 1}, ("NSE",))
        assert await physical(manager) == before
        (_, last) = reversed(await noted(manager))
        assert (last.rejected, [row.line for row in last.rejected_rows]) == (3, [3, 4, 5])

    async def test_an_exchange_of_which_no_row_is_valid_is_left_alone(self, manager: DatabaseManager):
        await load(manager, ACC, CALL)
        report = await load(manager, ACC, CALL.replace("9331458", "9331459").replace("CE,NFO", "?,NFO"), day=MONDAY)
        assert (counts(report), len(report.rejected), report.exchanges) == ({"unchanged": 1}, 1, ("NSE",))
        assert all(one.is_active for one in await stored(manager))

    async def test_duplicates_are_counted_and_a_second_meaning_is_rejected(self, manager: DatabaseManager):
        report = await load(manager, ACC, TCS, ACC, ACC.replace("0.05", "0.1"), ACC)
        assert (counts(report), report.duplicates) == ({"added": 2}, 2)
        assert [(row.line, row.field) for row in report.rejected] == [(5, "instrument_token")]

    async def test_a_token_that_another_source_holds_is_rejected(self, manager: DatabaseManager):
        await load(manager, ACC, source="kite")
        before = await physical(manager)
        report = await load(manager, ACC.replace("LTD", "LIMITED"), TCS, source="upstox")
        assert counts(report) == {"added": 1}
        (foreign,) = report.rejected
        assert (foreign.line, foreign.field) == (2, "instrument_token")
        assert foreign.reason == "5633 is an instrument of source 'kite'"
        assert [one.source for one in await stored(manager)] == ["kite", "upstox"]
        assert (await physical(manager))[:1] == before
        with pytest.raises(InstrumentFileRejected, match="source 'kite'"):
            await load(manager, ACC, source="upstox", day=MONDAY, allow_shrink=False)


class TestDays:
    async def test_a_day_before_the_last_load_of_any_of_its_exchanges_is_refused(self, manager: DatabaseManager):
        await load(manager, ACC, TCS, CALL, day=MONDAY)
        before = await physical(manager)
        for rows in ((ACC, TCS, CALL), (ACC.replace("LTD", "LIMITED"), TCS), (TCS, ACC), (ACC,), (CALL,)):
            with pytest.raises(StaleInstrumentFile, match=r"2026-11-20.*as of 2026-11-23"):
                await load(manager, *rows, day=FRIDAY)
        assert await physical(manager) == before
        assert counts(await load(manager, ACC.replace("NSE,NSE", "BSE,BSE").replace("5633", "77"), day=FRIDAY)) == {
            "added": 1
        }
        assert counts(await load(manager, CALL.replace("9331458", "78"), source="other", day=FRIDAY)) == {"added": 1}

    async def test_a_state_of_a_later_day_is_not_overwritten_even_if_no_load_is_known(self, manager: DatabaseManager):
        later = datetime(2026, 11, 23, tzinfo=UTC)
        async with manager.transaction() as session:
            session.add(make_instrument(instrument_token=5633, exchange="NSE", source="kite", valid_from=later))
        before = await physical(manager)
        for rows in ((ACC,), (TCS,)):
            with pytest.raises(StaleInstrumentFile, match="later day than 2026-11-20"):
                await load(manager, *rows)
        assert [row[:3] for row in await physical(manager)] == [row[:3] for row in before]


class TestShrinkGuard:
    async def test_more_than_the_share_of_an_exchange_is_refused_with_the_figures(self, manager: DatabaseManager):
        rows = [f"{n},{n},S{n},,0,,0,0.05,1,EQ,NSE,NSE\n" for n in range(1, 11)]
        await load(manager, *rows, CALL)
        before = await physical(manager)
        with pytest.raises(MasterWouldShrink) as caught:
            await load(manager, *rows[:6], day=MONDAY, allow_shrink=False)
        assert caught.value.shrinks == (Shrink(exchange="NSE", gone=4, active=10),)
        assert "4 of 10 of NSE (40%); at most 30% of an exchange" in str(caught.value)
        assert "--allow-shrink" in str(caught.value)
        assert await physical(manager) == before and len(await noted(manager)) == 1
        with pytest.raises(MasterWouldShrink, match=r"1 of 10 of NSE \(10%\); at most 5%"):
            await load(manager, *rows[1:], day=MONDAY, allow_shrink=False, max_shrink=0.05)
        report = await load(manager, *rows[:7], day=MONDAY, allow_shrink=False)
        assert counts(report) == {"deactivated": 3, "unchanged": 7}
        assert counts(await load(manager, *rows[:1], day=TUESDAY)) == {"deactivated": 6, "unchanged": 1}

    async def test_contracts_that_have_expired_are_in_neither_figure(self, manager: DatabaseManager):
        weekly = [CALL.replace("9331458", str(n)).replace("24300CE", f"{n}CE") for n in range(1, 9)]
        monthly = [
            row.replace("2026-11-24", "2026-12-29").replace("NOV", "DEC")
            for row in (CALL, CALL.replace("9331458", "9"))
        ]
        await load(manager, *weekly, *monthly)
        with pytest.raises(MasterWouldShrink, match=r"8 of 10 of NFO \(80%\)"):
            await load(manager, *monthly, day=TUESDAY, allow_shrink=False)
        assert counts(await load(manager, *monthly, day=date(2026, 11, 25), allow_shrink=False)) == {
            "deactivated": 8, "unchanged": 2
        }  # fmt: skip
        with pytest.raises(MasterWouldShrink, match=r"1 of 2 of NFO \(50%\)"):
            await load(manager, monthly[0], day=date(2026, 11, 26), allow_shrink=False)

    async def test_rows_that_come_in_with_the_file_do_not_hide_a_loss(self, manager: DatabaseManager):
        rows = [f"{n},{n},S{n},,0,,0,0.05,1,EQ,NSE,NSE\n" for n in range(1, 21)]
        await load(manager, *rows)
        await load(manager, *rows[:4], day=MONDAY)
        with pytest.raises(MasterWouldShrink, match=r"2 of 4 of NSE \(50%\)"):
            await load(manager, *rows[2:], BOND, day=TUESDAY, allow_shrink=False)


class TestKnownFiles:
    async def test_the_last_file_again_is_noted_and_not_read(self, manager: DatabaseManager):
        first = await load(manager, ACC, ACC, TCS, BOND.replace("0.01", "-1"))
        before = await physical(manager)
        again = await load(manager, ACC, ACC, TCS, BOND.replace("0.01", "-1"), day=MONDAY)
        assert again.known and "copy" not in again.seconds and set(again.seconds) == {"read", "lock", "commit"}
        assert counts(again) == {"unchanged": 2} and again.duplicates == 1
        assert (again.rejected, again.digest, again.exchanges) == (first.rejected, first.digest, first.exchanges)
        assert await physical(manager) == before
        assert [one.trading_date for one in await noted(manager)] == [MONDAY, FRIDAY]
        with pytest.raises(StaleInstrumentFile):
            await load(manager, ACC, ACC, TCS, BOND.replace("0.01", "-1"), day=FRIDAY)

    async def test_a_load_of_one_of_its_exchanges_in_between_makes_it_unknown(self, manager: DatabaseManager):
        await load(manager, ACC, CALL)
        await load(manager, TCS)
        report = await load(manager, ACC, CALL)
        assert (report.known, counts(report)) == (False, {"deactivated": 1, "reactivated": 1, "unchanged": 1})

    async def test_loads_of_other_exchanges_and_sources_and_trials_leave_it_known(self, manager: DatabaseManager):
        await load(manager, ACC)
        await load(manager, CALL)
        await load(manager, TCS, source="other")
        await load(manager, BOND, dry_run=True)
        assert (await load(manager, ACC)).known
        assert not (await load(manager, ACC.replace("5633", "5634"), source="other")).known

    async def test_the_same_bytes_read_another_way_are_not_known(self, manager: DatabaseManager):
        data = b"id,symbol,venue,kind,price,note\n7,A,NSE,E,1,x\n"

        async def bring(mapping: dict[str, Any]) -> LoadReport:
            return await instruments.load(manager, data, trading_date=FRIDAY, mapping=mapping)

        await bring(TAGGED)
        assert (await bring(TAGGED)).known
        report = await bring({**TAGGED, "columns": {**TAGGED["columns"], "name": "note"}})
        assert (report.known, counts(report)) == (False, {"changed": 1})
        assert not (await bring(TAGGED)).known

    async def test_a_known_file_tried_stores_nothing(self, manager: DatabaseManager):
        await load(manager, ACC)
        report = await load(manager, ACC, day=MONDAY, dry_run=True)
        assert (report.known, report.dry_run, len(await noted(manager))) == (True, True, 1)


class TestTextKeys:
    async def test_a_key_has_one_token_for_ever_in_the_range_of_its_own(self, manager: DatabaseManager):
        await load_upstox(manager, UP_ACC, UP_TCS)
        tokens = {one.broker_key: one.instrument_token for one in await stored(manager)}
        assert set(tokens) == {"NSE_EQ|INE012A01025", "NSE_EQ|INE467B01029"}
        assert all(2**52 <= token < 2**53 for token in tokens.values())
        with pytest.raises(MasterWouldShrink):
            await load_upstox(manager, UP_TCS, day=MONDAY)
        report = await load_upstox(manager, UP_TCS, UP_ACC.replace(",ACC,", ",ACCX,"), day=MONDAY)
        assert (counts(report), report.renamed) == ({"changed": 1, "unchanged": 1}, 1)
        assert {one.broker_key: one.instrument_token for one in await stored(manager)} == tokens
        # The number that a key has in any other database, unless another has taken it there.
        assert tokens["NSE_EQ|INE012A01025"] == 7_246_988_400_760_805

    async def test_a_key_that_is_gone_and_comes_back_has_its_token_again(self, manager: DatabaseManager):
        many = [UP_ACC.replace("INE012A01025", f"K{n}").replace(",ACC,", f",A{n},") for n in range(5)]
        await load_upstox(manager, *many)
        before = {one.broker_key: one.instrument_token for one in await stored(manager)}
        assert counts(await load_upstox(manager, *many[1:], day=MONDAY)) == {"deactivated": 1, "unchanged": 4}
        assert counts(await load_upstox(manager, *many, day=TUESDAY)) == {"reactivated": 1, "unchanged": 4}
        assert {one.broker_key: one.instrument_token for one in await stored(manager)} == before

    async def test_a_number_that_is_taken_is_passed_over(self, manager: DatabaseManager):
        first = 7_246_988_400_760_805
        async with manager.transaction() as session:
            session.add_all(make_instrument(instrument_token=first + step, source="other") for step in range(2))
        assert counts(await load_upstox(manager, UP_ACC, UP_TCS)) == {"added": 2}
        tokens = {one.broker_key: one.instrument_token for one in await stored(manager) if one.source == "upstox"}
        assert tokens["NSE_EQ|INE012A01025"] == first + 2
        async with manager.transaction() as session:
            await session.execute(text("DELETE FROM instruments WHERE source = 'other'"))
        await load_upstox(manager, UP_ACC.replace("LTD", "LIMITED"), UP_TCS, day=MONDAY)
        assert {one.broker_key: one.instrument_token for one in await stored(manager)} == tokens

    async def test_new_keys_of_one_number_get_neighbours_within_the_range(self, manager: DatabaseManager):
        last = 2**53 - 1
        async with manager.transaction() as session:
            session.add(make_instrument(instrument_token=2**52))
            await session.flush()
            await session.execute(
                text('CREATE TEMP TABLE k (broker_key text COLLATE "C", token bigint) ON COMMIT DROP')
            )
            await session.execute(
                text("INSERT INTO k SELECT chr(65 + n), :last FROM generate_series(0, 2) n"), {"last": last}
            )
            while (await session.execute(text(_merge_sql.TAKEN.format(keys="k")))).first():
                pass
            rows = await session.execute(text("SELECT broker_key, token FROM k ORDER BY 1"))
            assert [tuple(row) for row in rows] == [("A", last), ("B", 2**52 + 1), ("C", 2**52 + 2)]

    async def test_what_a_rejected_row_names_by_its_key_is_not_gone(self, manager: DatabaseManager):
        await load_upstox(manager, UP_ACC, UP_TCS)
        report = await load_upstox(manager, UP_TCS, UP_ACC.replace("0.05", "?").replace(",ACC,", ",X,"), day=MONDAY)
        assert (counts(report), len(report.rejected)) == ({"unchanged": 1}, 1)
        assert all(one.is_active for one in await stored(manager))


class TestTrials:
    async def test_a_trial_tells_all_and_stores_nothing(self, manager: DatabaseManager):
        await load(manager, ACC, TCS)
        before = await physical(manager)
        async with Listener(manager.engine, [instruments.CHANNEL]) as listener:
            events = aiter(listener)
            assert await anext(events) == Resync("connected")
            report = await load(manager, ACC.replace("LTD", "LIMITED"), CALL, day=MONDAY, dry_run=True)
            assert report.dry_run and counts(report) == {"added": 1, "changed": 1, "deactivated": 1}
            assert set(report.seconds) == {"read", "lock", "copy", "merge"}
            assert [row[:3] for row in await physical(manager)] == [row[:3] for row in before]
            assert (len(await noted(manager)), await versions(manager)) == (1, [])
            with pytest.raises(MasterWouldShrink):
                await load(manager, ACC, day=MONDAY, dry_run=True, allow_shrink=False)
            real = await load(manager, ACC.replace("LTD", "LIMITED"), CALL, day=MONDAY)
            assert counts(real) == counts(report)
            told = await asyncio.wait_for(anext(events), 60)
        assert isinstance(told, Notification) and told.channel == "panda_instruments"
        assert json.loads(told.payload) == {"source": "kite", "load_id": (await noted(manager))[0].load_id}

    async def test_only_a_load_that_changes_something_is_told(self, manager: DatabaseManager):
        async with Listener(manager.engine, [instruments.CHANNEL]) as listener:
            events = aiter(listener)
            await anext(events)
            await load(manager, ACC, TCS)
            await load(manager, ACC, TCS)
            await load(manager, TCS, ACC)
            await load(manager, TCS.replace("3051.25", "3000"), ACC)
            told = [json.loads((await asyncio.wait_for(anext(events), 60)).payload) for _ in range(2)]  # type: ignore[union-attr]
        assert [row["load_id"] for row in told] == [
            (await noted(manager))[3].load_id,
            (await noted(manager))[0].load_id,
        ]


class TestTogether:
    async def test_loads_at_the_same_time_run_one_after_the_other(self, manager: DatabaseManager):
        reports = await asyncio.gather(*(load(manager, ACC, TCS, CALL) for _ in range(5)))
        assert sorted(tuple(counts(report).items()) for report in reports) == [
            (("added", 3),),
            *[(("unchanged", 3),)] * 4,
        ]

    async def test_who_waits_too_long_for_another_load_is_told(
        self, manager: DatabaseManager, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(_load, "_LOCK_WAIT", "200ms")
        async with manager.transaction() as session:
            await session.execute(text(_load._LOCK))
            with pytest.raises(LockTimeout):
                await load(manager, ACC)
        assert await stored(manager) == []

    async def test_readers_see_the_old_master_or_the_new_one(self, manager: DatabaseManager):
        await instruments.load(manager, stocks(3_000), trading_date=FRIDAY)
        loading = asyncio.create_task(instruments.load(manager, stocks(4_000, tick="0.1"), trading_date=MONDAY))
        seen: set[tuple[Any, ...]] = set()
        while not loading.done():
            (row,) = await fetch(manager, "SELECT count(*), min(tick_size), max(tick_size) FROM instruments")
            seen.add(row)
        assert counts(await loading) == {"added": 1_000, "changed": 3_000}
        old, new = (3_000, Decimal("0.05"), Decimal("0.05")), (4_000, Decimal("0.1"), Decimal("0.1"))
        assert old in seen and seen <= {old, new}


class TestFailures:
    async def test_a_failed_load_leaves_the_master_as_it_was(self, manager: DatabaseManager):
        await load(manager, ACC, TCS)
        before = await physical(manager)
        async with manager.transaction() as session:
            await session.execute(text("ALTER TABLE instruments ADD CONSTRAINT ck_no_call CHECK (option_type IS NULL)"))
        with pytest.raises(Exception, match="ck_no_call"):
            await load(manager, ACC.replace("LTD", "LIMITED"), CALL, day=MONDAY)
        assert [row[:3] for row in await physical(manager)] == [row[:3] for row in before]
        assert await versions(manager) == [] and len(await noted(manager)) == 1

    async def test_a_connection_lost_in_the_middle_is_made_good_by_loading_again(
        self, manager: DatabaseManager, database_url: str
    ):
        await load(manager, ACC, TCS)
        stages: list[str] = []
        async with manager.transaction() as session:
            await session.execute(update(Instrument).where(Instrument.instrument_token == 5633).values(name="locked"))
            changed = (ACC.replace("LTD", "LIMITED"), TCS, CALL, CALL, BOND.replace("0.01", "-1"))
            loading = asyncio.create_task(load(manager, *changed, day=MONDAY, progress=stages.append))
            await wait_for_lock(database_url)
            killed = await session.execute(text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"))  # fmt: skip
            assert len(killed.all()) == 1
            await session.rollback()
        report = await loading
        assert counts(report) == {"added": 1, "changed": 1, "unchanged": 1}
        assert (report.duplicates, len(report.rejected), len(await noted(manager))) == (1, 1, 2)
        assert stages == ["read", "lock", "copy", "merge", "lock", "copy", "merge", "commit"]

    async def test_a_cancelled_load_leaves_the_master_as_it_was(self, manager: DatabaseManager):
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
        assert [row[:3] for row in await physical(manager)] == [row[:3] for row in before]

    async def test_a_load_cancelled_while_its_file_is_read_ends_with_the_reading(
        self, manager: DatabaseManager, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(_reader, "_FIRST", 100_000)
        data, loop = made_master(), asyncio.get_running_loop()

        def progress(stage: str) -> None:
            if stage == "copy":
                loop.call_later(0.05, loading.cancel)

        loading = asyncio.create_task(instruments.load(manager, data, trading_date=FRIDAY, progress=progress))
        with pytest.raises(asyncio.CancelledError):
            await loading
        assert not [task for task in asyncio.all_tasks() if "to_thread" in repr(task)]
        assert (await stored(manager), await noted(manager)) == ([], [])
        assert counts(await load(manager, ACC)) == {"added": 1}

    async def test_a_file_that_turns_out_cut_off_after_pieces_have_been_sent_changes_nothing(
        self, manager: DatabaseManager, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(_reader, "_FIRST", 20_000)
        data = stocks(2_000) + CALL[:20].encode()
        with pytest.raises(InstrumentFileTruncated, match="line 2002"):
            await instruments.load(manager, data, trading_date=FRIDAY)
        assert await stored(manager) == []

    async def test_a_file_that_cannot_be_used_changes_nothing(self, manager: DatabaseManager, tmp_path: Path):
        await load(manager, ACC, TCS)
        before = await physical(manager)
        path = tmp_path / "master.csv"
        for content, error in (
            (None, InstrumentFileMissing),
            (file(ACC) + CALL[:20].encode(), InstrumentFileTruncated),
            (file(), InstrumentFileEmpty),
            (file(ACC.replace("0.05", "-1")), InstrumentFileRejected),
        ):
            if content is not None:
                path.write_bytes(content)
            with pytest.raises(error) as caught:
                await instruments.load(manager, path, trading_date=MONDAY)
            assert str(path) in str(caught.value)
        assert await physical(manager) == before

    async def test_wrong_arguments_are_named_and_nothing_is_read_for_them(self, manager: DatabaseManager):
        for arguments, field in (
            ({"source": "Kite!"}, "source"),
            ({"source": ""}, "source"),
            ({"trading_date": datetime(2026, 11, 20, tzinfo=UTC)}, "trading_date"),
            ({"trading_date": date.max}, "trading_date"),
            ({"max_shrink": 1.5}, "max_shrink"),
            ({"max_shrink": float("nan")}, "max_shrink"),
        ):
            with pytest.raises(InvalidInput) as caught:
                await instruments.load(manager, "not there", **({"trading_date": FRIDAY} | arguments))  # type: ignore[arg-type]
            assert caught.value.column == field
        with pytest.raises(InstrumentMappingInvalid, match="excel"):
            await load(manager, ACC, format="excel")


LOADER = """
import asyncio, sys
from datetime import date
from pathlib import Path
from core.database.connection import DatabaseManager
from core.trading import instruments

url, file = sys.argv[1:]

async def main():
    async with DatabaseManager(url, "testing", "migrations_only", verify_migrations=False) as manager:
        print("ready", flush=True)
        sys.stdin.readline()
        await instruments.load(
            manager, Path(file), trading_date=date(2026, 11, 23), progress=lambda stage: print(stage, flush=True)
        )

asyncio.run(main())
"""


async def test_a_killed_loader_leaves_the_old_master_whole(manager: DatabaseManager, database_url: str, tmp_path: Path):
    """Killed by SIGKILL at once as copying or merging begins, and ever later in it; `make soak` does it more often."""
    rounds = int(os.environ.get("PANDA_SOAK_ROUNDS", "4"))
    path = tmp_path / "new.csv"
    path.write_bytes(stocks(12_000, tick="0.1"))
    await instruments.load(manager, stocks(3_000), trading_date=FRIDAY)
    before = await physical(manager)

    def started() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", LOADER, database_url, str(path)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def kill(process: subprocess.Popen[bytes], stage: str, wait: float) -> None:
        assert process.stdin and process.stdout
        with process:
            assert process.stdout.readline() == b"ready\n"
            process.stdin.write(b"go\n")
            process.stdin.flush()
            while (line := process.stdout.readline().decode().strip()) != stage:
                assert line, "it has ended by itself"
            time.sleep(wait)
            process.kill()

    waiting: list[subprocess.Popen[bytes]] = []
    for turn in range(rounds):
        if turn % 5 == 0:  # as many at once start faster than one by one
            waiting = [started() for _ in range(min(5, rounds - turn))]
        await asyncio.to_thread(kill, waiting[turn % 5], ("copy", "merge")[turn % 2], 0.01 * (turn // 2 % 5))
        assert [row[:3] for row in await physical(manager)] == [row[:3] for row in before]
    report = await instruments.load(manager, path, trading_date=MONDAY)
    assert counts(report) == {"added": 9_000, "changed": 3_000}
    assert len(await versions(manager)) == 3_000 and len(await noted(manager)) == 2


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


async def load_real(manager: DatabaseManager, name: str, day: str, **options: Any) -> LoadReport:
    if not (SHARED / name).exists():
        pytest.skip("the real files are not beside the checkout")
    report = await instruments.load(manager, SHARED / name, trading_date=date.fromisoformat(day), **options)
    counts(report)
    return report


@pytest.mark.shared_data
class TestRealFiles:
    """Every figure is that of the description that comes with the files."""

    async def test_kite_nse_of_nine_years_apart_is_refused_and_allowed(self, manager: DatabaseManager):
        assert counts(await load_real(manager, "kite_nse_2017-11-24.csv", "2017-11-24")) == {"added": 6_401}
        with pytest.raises(MasterWouldShrink, match=r"4,676 of 6,401 of NSE \(73%\)") as caught:
            await load_real(manager, "kite_nse_2026-07-12.csv", "2026-07-12")
        assert caught.value.shrinks == (Shrink(exchange="NSE", gone=4_676, active=6_401),)
        report = await load_real(manager, "kite_nse_2026-07-12.csv", "2026-07-12", allow_shrink=True)
        assert counts(report) == {"added": 8_221, "changed": 1_385, "deactivated": 4_676, "unchanged": 340}
        assert (await load_real(manager, "kite_nse_2026-07-12.csv", "2026-07-13")).known

    async def test_kite_derivatives_and_the_strikes_of_hindpetro(self, manager: DatabaseManager):
        assert counts(await load_real(manager, "kite_nfo_2026-08_day1.csv.gz", "2026-08-03")) == {"added": 34_764}
        report = await load_real(manager, "kite_nfo_bfo_2026-08_day2.csv.gz", "2026-08-04")
        assert counts(report) == {"added": 5_177, "changed": 74, "unchanged": 34_690} and report.renamed == 74
        rows = await fetch(
            manager,
            "SELECT count(*), count(*) FILTER (WHERE v.trading_symbol <> t.trading_symbol AND v.strike <> t.strike) "
            "FROM instrument_versions v JOIN instruments t USING (instrument_token) WHERE t.underlying = 'HINDPETRO'",
        )
        assert rows == [(74, 74)]
        (old,) = await fetch(
            manager,
            "SELECT v.strike, t.strike FROM instrument_versions v JOIN instruments t USING (instrument_token) "
            "WHERE v.strike = 390 AND t.underlying = 'HINDPETRO' AND t.option_type = 'CE' ORDER BY t.expiry LIMIT 1",
        )
        assert old == (Decimal(390), Decimal("370.75"))
        renamed = await fetch(
            manager,
            "SELECT v.instrument_token FROM instrument_versions v JOIN instruments t USING (instrument_token) "
            "WHERE v.underlying = 'HINDPETRO' AND v.trading_symbol <> t.trading_symbol",
        )
        assert len(renamed) == 74
        async with manager.get_session(read_only=True) as session:
            for (token,) in renamed:
                earlier, later = await instruments.history(session, token)
                assert earlier.trading_symbol != later.trading_symbol
                before = await instruments.as_of(session, f"NFO:{earlier.trading_symbol}", date(2026, 8, 3))
                now = await instruments.as_of(session, f"NFO:{later.trading_symbol}", date(2026, 8, 4))
                assert (before and before.instrument_token) == token == (now and now.instrument_token)

    async def test_nuvama_over_three_weeks(self, manager: DatabaseManager):
        first = await load_real(manager, "nuvama_instruments_2025-08-25.csv.gz", "2025-08-25")
        assert first.duplicates > 1_200 and first.added == first.rows - first.duplicates - len(first.rejected)
        second = await load_real(manager, "nuvama_instruments_2025-08-29.csv.gz", "2025-08-29")
        assert (second.added, second.deactivated) == (30_133, 32_433)
        # The description says 951 and 939 by the file's own symbol, which for an equity is the ISIN; ours is the ticker. Of two
        # equities only the ISIN is new, of three only the ticker, which it counts as changed too.
        assert (second.changed, second.attributes_changed, second.renamed) == (951 - 2, 1_025 + 2, 939 - 2 + 3)
        async with manager.get_session(read_only=True) as session:  # a token that was used again is told by the day
            for when, symbol in ((date(2025, 8, 28), "VEDL25AUG620CE"), (date(2025, 8, 29), "NIFTYNXT5025NOVFUT")):
                state = await instruments.as_of(session, "nuvama/38312_NFO", when)
                assert state is not None
                assert state.trading_symbol == symbol
            assert len(await instruments.history(session, "nuvama/38312_NFO")) == 2
        third = await load_real(manager, "nuvama_instruments_2025-09-12.csv.gz", "2025-09-12")
        fourth = await load_real(manager, "nuvama_instruments_2025-09-15.csv.gz", "2025-09-15")
        assert (fourth.added + fourth.reactivated, fourth.deactivated) == (1_126, 625)
        assert (fourth.changed, fourth.attributes_changed, fourth.renamed) == (4, 440, 4)  # tickers again
        assert third.written > 0
        history = await fetch(
            manager,
            "SELECT v.trading_symbol, v.valid_from::date FROM instrument_versions v JOIN instruments t USING (instrument_token) "
            "WHERE t.broker_key = '38312_NFO' UNION ALL SELECT trading_symbol, valid_from::date FROM instruments "
            "WHERE broker_key = '38312_NFO' ORDER BY 2",
        )
        symbols = list(dict.fromkeys(symbol for symbol, _ in history))
        assert [symbol for symbol in symbols if "VEDL" in symbol or "NIFTYNXT50" in symbol] == [
            "VEDL25AUG620CE", "NIFTYNXT5025NOVFUT"
        ]  # fmt: skip

    async def test_upstox_of_ten_exchanges(self, manager: DatabaseManager):
        report = await load_real(manager, "upstox_complete_2026-02-09.csv.gz", "2026-02-09")
        assert report.rows == 204_218 and report.added == report.rows - len(report.rejected) - report.duplicates
        ((low, high, distinct),) = await fetch(
            manager, "SELECT min(instrument_token), max(instrument_token), count(DISTINCT broker_key) FROM instruments"
        )
        assert 2**52 <= low < high < 2**53 and distinct == report.added
        assert (await load_real(manager, "upstox_complete_2026-02-09.csv.gz", "2026-02-10")).known
