"""The master as a frame and in process: exact, whole, and as fresh as it says."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal

import asyncpg
import polars as pl
import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import text

from core.config.options import Timeouts
from core.database.connection import DatabaseManager
from core.database.errors import ConfigurationError, InvalidInput, PandaDatabaseError, SessionMisuse
from core.database.health import with_parts
from core.database.metrics import DatabaseMetrics
from core.database.models import Instrument
from core.trading import instruments
from core.trading.instruments import CachedInstrument, InstrumentCache
from tests.cluster.proxy import FaultProxy
from tests.waiting import wait_for

FRIDAY, MONDAY = date(2026, 11, 20), date(2026, 11, 23)
HEADER = (
    "instrument_token,exchange_token,tradingsymbol,name,last_price,expiry,strike,tick_size,lot_size,instrument_type,"
    "segment,exchange\n"
)
ACC = "5633,22,ACC,ACC LTD,1834.5,,0.0,0.05,1,EQ,NSE,NSE\n"
TCS = "2953217,11536,TCS,TATA CONSULTANCY,3051.25,,0.0,0.1,1,EQ,NSE,NSE\n"
CALL = "9331458,36451,NIFTY26NOV24300CE,NIFTY,1.0E-4,2026-11-24,24300.0,0.05,65,CE,NFO-OPT,NFO\n"
QUOTED = '7777,30,"A""B, C",,0.0,,0.0,0.0000000001,1,EQ,NSE,NSE\n'


async def load(manager: DatabaseManager, *rows: str, day: date = FRIDAY, source: str = "kite") -> None:
    content = (HEADER + "".join(rows)).encode()
    await instruments.load(manager, content, trading_date=day, source=source, allow_shrink=True)


async def until(true: Callable[[], bool], *, within: float = 30.0) -> None:
    async with asyncio.timeout(within):
        while not true():
            await asyncio.sleep(0.01)


async def framed(manager: DatabaseManager, **options: object) -> pl.DataFrame:
    async with manager.get_session(read_only=True, consistent=True) as session:
        return (await instruments.frame(session, **options)).sort("instrument_token")  # type: ignore[arg-type]


async def test_a_frame_holds_every_value_exactly_and_by_its_type(manager: DatabaseManager) -> None:
    await load(manager, ACC, CALL, QUOTED)
    rows = await framed(manager)
    acc, quoted, call = rows.iter_rows(named=True)
    assert call == {
        "instrument_token": 9331458, "source": "kite", "broker_key": None, "exchange": "NFO", "exchange_token": "36451",
        "trading_symbol": "NIFTY26NOV24300CE", "name": "NIFTY", "segment": "NFO-OPT", "instrument_type": "OPT",
        "option_type": "CE", "underlying": "NIFTY", "expiry": date(2026, 11, 24), "strike": Decimal(24300),
        "tick_size": Decimal("0.05"), "lot_size": 65, "last_price": Decimal("0.0001"), "is_active": True,
        "valid_from": datetime(2026, 11, 20, tzinfo=UTC),
    }  # fmt: skip
    assert (acc["expiry"], acc["strike"], acc["option_type"]) == (None, None, None)
    assert (quoted["trading_symbol"], quoted["tick_size"]) == ('A"B, C', Decimal("0.0000000001"))


async def test_the_longest_numbers_that_the_table_takes_reach_the_frame_and_the_cache_whole(
    manager: DatabaseManager,
) -> None:
    await load(manager, CALL)
    longest = "999999999999999999.9999999999"
    async with manager.transaction() as session:
        await session.execute(text(f"UPDATE instruments SET strike = {longest}, tick_size = 0.1234567891"))
    row = (await framed(manager)).row(0, named=True)
    assert (str(row["strike"]), str(row["tick_size"])) == (longest, "0.1234567891")
    async with InstrumentCache(manager) as cache:
        found = cache.get(9331458)
        assert found is not None and str(found.strike) == longest


async def test_a_frame_is_the_part_asked_for(manager: DatabaseManager) -> None:
    await load(manager, ACC, TCS, CALL)
    await load(manager, ACC, day=MONDAY)
    assert (await framed(manager))["instrument_token"].to_list() == [5633, 9331458]
    everything = await framed(manager, active_only=False)
    assert everything["is_active"].to_list() == [True, False, True]
    assert (await framed(manager, exchange="NFO")).height == 1
    assert (await framed(manager, source="upstox")).is_empty()
    assert (await framed(manager, source="upstox")).schema == everything.schema


async def test_a_column_that_is_null_throughout_loses_no_row(manager: DatabaseManager) -> None:
    await load(manager, ACC, TCS)
    async with manager.get_session() as session:
        rows = await instruments.frame(session, columns=["expiry"])
    assert rows.columns == ["expiry"]
    assert rows["expiry"].to_list() == [None, None]


async def test_attributes_come_as_json_text_when_named(manager: DatabaseManager) -> None:
    await load(manager, ACC)
    async with manager.transaction() as session:
        await session.execute(text("""UPDATE instruments SET attributes = '{"note": "a \\"b\\", c"}'"""))
        rows = await instruments.frame(session, columns=["instrument_token", "attributes", "created_at"])
    assert rows["attributes"].to_list() == ['{"note": "a \\"b\\", c"}']
    assert rows["created_at"].dtype == pl.Datetime("us", "UTC")


@pytest.mark.parametrize("setting", ["DateStyle = 'SQL, DMY'", "TimeZone = 'Asia/Kolkata'", "extra_float_digits = 0"])
async def test_no_setting_of_the_session_changes_a_frame(manager: DatabaseManager, setting: str) -> None:
    await load(manager, ACC, CALL)
    plain = await framed(manager)
    async with manager.get_session() as session:
        await session.execute(text(f"SET LOCAL {setting}"))
        assert (await instruments.frame(session)).sort("instrument_token").equals(plain)


@pytest.mark.parametrize("options", [{"columns": ["nope"]}, {"columns": []}, {"source": "A'; --"}, {"exchange": "n\0"}])
async def test_what_cannot_be_asked_for_is_refused_before_anything_is_sent(
    manager: DatabaseManager, options: dict[str, object]
) -> None:
    with pytest.raises(InvalidInput):
        await framed(manager, **options)


async def test_the_cache_holds_the_master_as_values_that_do_not_change(manager: DatabaseManager) -> None:
    await load(manager, ACC, CALL)
    async with InstrumentCache(manager) as cache:
        call = cache.get(9331458)
        assert isinstance(call, CachedInstrument)
        assert (call.strike, call.expiry, call.lot_size) == (Decimal(24300), date(2026, 11, 24), 65)
        assert cache.get(9331458) is call
        assert cache.get(1) is None
        assert cache.by_symbol("NSE", "ACC", source="kite") is cache.get(5633)
        assert cache.by_symbol("NSE", "ACC", source="upstox") is None
        assert (len(cache), cache.frame.height, cache.generation) == (2, 2, 1)
        with pytest.raises(AttributeError):
            call.strike = Decimal(1)  # type: ignore[misc]
        async with manager.get_session() as session:
            stored = await session.get(Instrument, 9331458)
        assert call == tuple(getattr(stored, name) for name in CachedInstrument._fields)


async def test_the_cache_finds_of_equal_symbols_the_one_that_the_database_finds(manager: DatabaseManager) -> None:
    await load(manager, ACC, "99,1,TCS,,0.0,,0.0,0.05,1,EQ,NSE,NSE\n", TCS, "98,2,TCS,,0.0,,0.0,0.05,1,EQ,NSE,NSE\n")
    await load(manager, ACC, TCS, day=MONDAY)
    await load(manager, "55,3,TCS,,0.0,,0.0,0.05,1,EQ,NSE,NSE\n", source="other")
    for active_only in (True, False):
        async with InstrumentCache(manager, active_only=active_only) as cache, manager.get_session() as session:
            for source in (None, "kite", "other"):
                stored = await instruments.by_symbol(session, "NSE", "TCS", source=source)
                found = cache.by_symbol("NSE", "TCS", source=source)
                assert found and stored and found.instrument_token == stored.instrument_token


async def test_a_load_in_another_process_is_seen_within_a_second(manager: DatabaseManager, database_url: str) -> None:
    await load(manager, ACC)
    script = (
        "import asyncio, sys, time, datetime\n"
        "from core.database.connection import DatabaseManager\n"
        "from core.trading import instruments\n"
        "async def main():\n"
        "    async with DatabaseManager(sys.argv[1], 'testing', 'migrations_only', verify_migrations=False) as manager:\n"
        "        for day, rows in enumerate(sys.argv[2:], 23):\n"
        "            await instruments.load(manager, rows.encode(), trading_date=datetime.date(2026, 11, day))\n"
        "            print(time.time(), flush=True)\n"
        "            sys.stdin.readline()\n"
        "asyncio.run(main())\n"
    )
    async with InstrumentCache(manager) as cache:
        loads = (HEADER + ACC + TCS, HEADER + ACC + TCS + CALL, HEADER + ACC + TCS + CALL + QUOTED)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, database_url, *loads,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ),
        )  # fmt: skip
        assert process.stdin and process.stdout
        took: list[float] = []
        for token in (2953217, 9331458, 7777):
            await until(lambda token=token: cache.get(token) is not None)
            took.append(time.time() - float(await process.stdout.readline()))
            process.stdin.write(b"\n")
        await process.communicate()
        assert sorted(took)[1] < 1.0
        assert (cache.generation, cache.stale) == (4, False)


async def test_what_was_handed_out_stays_as_it_was(manager: DatabaseManager) -> None:
    await load(manager, ACC)
    async with InstrumentCache(manager) as cache:
        before, frame = cache.get(5633), cache.frame
        await load(manager, ACC.replace("ACC LTD", "ACC LIMITED"), day=MONDAY)
        await until(lambda: cache.generation == 2)
        after = cache.get(5633)
        assert before and after and (before.name, after.name) == ("ACC LTD", "ACC LIMITED")
        assert frame["name"].to_list() == ["ACC LTD"]


async def test_a_cache_of_one_source_lets_loads_of_others_pass(manager: DatabaseManager) -> None:
    await load(manager, ACC)
    async with InstrumentCache(manager, source="kite") as cache:
        await load(manager, "55,3,TCS,,0.0,,0.0,0.05,1,EQ,NSE,NSE\n", source="other")
        await load(manager, ACC, TCS, day=MONDAY)
        await until(lambda: len(cache) == 2)
        assert cache.generation == 2
        assert cache.get(55) is None


async def test_a_killed_listener_comes_back_and_what_it_missed_is_read(
    manager: DatabaseManager, database_url: str
) -> None:
    await load(manager, ACC)
    async with InstrumentCache(manager) as cache:
        admin = await asyncpg.connect(database_url)
        await admin.execute(
            "UPDATE instruments SET name = 'changed unheard' WHERE instrument_token = 5633"
        )  # nobody is told
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE query LIKE 'LISTEN%' AND datname = current_database()"
        )
        await admin.close()
        await until(lambda: cache.generation == 2)
        found = cache.get(5633)
        assert found and found.name == "changed unheard"
        assert cache.health()["status"] == "fresh"


async def test_without_the_database_the_old_master_serves_and_says_that_it_is_stale(
    manager: DatabaseManager, database_url: str
) -> None:
    await load(manager, ACC)
    limits = Timeouts(connect=30, probe=30)
    async with FaultProxy(database_url) as proxy:
        async with DatabaseManager(proxy.url, "testing", "migrations_only", timeouts=limits) as far:
            async with InstrumentCache(far, heartbeat=0.2) as cache:
                assert cache.health()["status"] == "fresh"
                await asyncio.sleep(0.6)
                await until(lambda: cache.verified_age < 0.5)  # by the heartbeat alone
                proxy.freeze()
                proxy.cut()
                cut = time.monotonic()
                await until(lambda: cache.stale)
                await load(manager, ACC, TCS, day=MONDAY)
                health = cache.health()
                assert (health["status"], health["connected"], health["rows"]) == ("stale", False, 1)
                assert health["verified_age"] >= time.monotonic() - cut - 0.1
                report = with_parts(await manager.health_check(), instruments=health)
                assert (report["status"], report["error"]) == ("degraded", "instruments is stale")
                assert report["parts"]["instruments"] == health
                assert cache.get(5633) is not None
                proxy.thaw()
                await until(lambda: not cache.stale)
                assert cache.get(2953217) is not None
                assert cache.health()["error"] is None
                assert cache.verified_age < 30
                whole = with_parts(await manager.health_check(), instruments=cache.health())
                assert (whole["status"], whole["error"]) == ("healthy", None)


async def test_a_cache_tells_prometheus_what_it_serves_and_how_surely(manager: DatabaseManager) -> None:
    def figures() -> dict[str, float]:
        return {
            sample.name.removeprefix("alpha_panda_database_instrument_cache_"): sample.value
            for family in registry.collect()
            for sample in family.samples
            if "instrument_cache" in sample.name and sample.labels == {"database": "here", "source": ""}
        }

    registry = CollectorRegistry()
    await load(manager, ACC)
    cache = InstrumentCache(manager)
    async with DatabaseMetrics(manager, registry=registry, database="here", sources=[cache]):
        assert figures() == {}
        async with cache:
            before = figures()
            await load(manager, ACC, TCS, day=MONDAY)
            await until(lambda: cache.generation == 2)
            after = figures()
        assert figures()["stale"] == 1
    assert 0 <= before.pop("verified_age_seconds") < 30
    assert 0 <= after.pop("verified_age_seconds") < 30
    assert before == {"rows": 1, "generation": 1, "stale": 0}
    assert after == {"rows": 2, "generation": 2, "stale": 0}


async def test_while_the_news_of_a_load_is_not_followed_the_master_counts_as_unverified(
    manager: DatabaseManager,
) -> None:
    await load(manager, ACC)
    async with InstrumentCache(manager, heartbeat=0.05) as cache:
        async with manager.transaction() as session:
            await session.execute(text("ALTER TABLE instruments RENAME TO hidden"))
            await session.execute(text("SELECT pg_notify('panda_instruments', '')"))
        await until(lambda: cache.stale)
        began = time.monotonic()
        await asyncio.sleep(0.5)  # the connection goes on answering, which proves nothing now
        assert (cache.connected, cache.stale) == (True, True)
        assert cache.verified_age >= time.monotonic() - began - 0.05


async def test_a_reading_that_fails_is_told_and_tried_again(manager: DatabaseManager) -> None:
    await load(manager, ACC)
    async with InstrumentCache(manager) as cache:
        async with manager.transaction() as session:
            await session.execute(text("ALTER TABLE instruments RENAME TO hidden"))
        async with manager.transaction() as session:
            await session.execute(text("SELECT pg_notify('panda_instruments', 'words of another program')"))
        await until(lambda: cache.health()["error"] is not None)
        assert (cache.stale, cache.connected, len(cache)) == (True, True, 1)
        async with manager.transaction() as session:
            await session.execute(text("ALTER TABLE hidden RENAME TO instruments"))
        await until(lambda: not cache.stale)
        assert cache.health()["error"] is None


async def test_many_readings_while_loads_go_on_show_one_whole_master_each(manager: DatabaseManager) -> None:
    async with InstrumentCache(manager) as cache:
        seen: set[tuple[int, int]] = set()
        for day in range(1, 7):
            rows = [f"{n},1,S{n},D{day},0.0,,0.0,0.05,{day},EQ,NSE,NSE\n" for n in range(1, 40)]
            await load(manager, *rows, day=date(2026, 11, day))
            for _ in range(20):
                lots = {item.lot_size for n in range(1, 40) if (item := cache.get(n))}
                assert len(lots) <= 1
                seen.add((cache.generation, len(cache)))
                await asyncio.sleep(0.002)
        await until(lambda: not cache.stale)
        assert {rows for _, rows in seen} <= {0, 39}
        last = cache.get(7)
        assert last and last.lot_size == 6


async def test_reading_anew_leaves_the_event_loop_free(manager: DatabaseManager) -> None:
    rows = [f"{n},1,S{n},N{n},0.0,,0.0,0.05,1,EQ,NSE,NSE\n" for n in range(1, 60_001)]
    await load(manager, *rows)
    async with InstrumentCache(manager) as cache:
        longest = 0.0
        reading = asyncio.create_task(cache.refresh())
        while not reading.done():
            began = time.thread_time()  # what the loop itself has done, not how long the machine stood still
            await asyncio.sleep(0.001)
            longest = max(longest, time.thread_time() - began)
        await reading
        assert cache.generation == 2
        assert longest < 0.25  # of about a second; a reading on the loop itself takes longer than this in one piece


async def test_a_cache_that_is_not_entered_is_an_error_and_no_empty_master(manager: DatabaseManager) -> None:
    cache = InstrumentCache(manager)
    with pytest.raises(SessionMisuse):
        cache.get(1)
    with pytest.raises(SessionMisuse):
        await cache.refresh()
    assert cache.health()["status"] == "stale"
    async with cache:
        assert (len(cache), cache.get(1)) == (0, None)
    with pytest.raises(SessionMisuse):
        await cache.__aenter__()
    assert cache.stale


async def test_entering_without_the_table_says_so_and_leaves_no_connection(
    empty_database: str,
) -> None:
    async with DatabaseManager(empty_database, "testing", "migrations_only", verify_migrations=False) as manager:
        with pytest.raises(PandaDatabaseError):
            async with InstrumentCache(manager):
                pytest.fail("there is no table")
        listening = "pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
        await wait_for(empty_database, f"(SELECT count(*) FROM {listening}) = 0")


async def test_behind_pgbouncer_the_cache_is_refused(database_url: str) -> None:
    async with DatabaseManager(
        database_url, "testing", "migrations_only", pgbouncer=True, verify_migrations=False
    ) as manager:
        with pytest.raises(ConfigurationError, match="notifications"):
            async with InstrumentCache(manager):
                pytest.fail("it would never hear of a load")
