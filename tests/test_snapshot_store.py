"""Partitions, retention and downsampling of the snapshots on a real server."""

import asyncio
import multiprocessing
from collections.abc import AsyncGenerator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from core.config.options import PoolOptions, Timeouts
from core.database.connection import DatabaseManager
from core.database.errors import (
    ConfigurationError,
    InvalidInput,
    LockTimeout,
    PandaDatabaseError,
    PartitionMissing,
    UnsupportedFeature,
)
from core.trading import portfolios
from core.trading.portfolios import PartitionInfo, _retention
from core.trading.portfolios._inventory import MARK
from core.trading.portfolios._partitions import months_from
from tests.waiting import wait_for

JANUARY = date(2020, 1, 1)
START = datetime(2020, 1, 1, tzinfo=UTC)
OUR_LOCKS = (
    "FROM pg_locks WHERE locktype = 'advisory'"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
DETACHING = "EXISTS (SELECT FROM pg_inherits WHERE inhdetachpending)"
HOUR = timedelta(hours=1)


def name_of(month: int, year: int = 2020) -> str:
    return f"portfolio_snapshots_y{year}m{month:02}"


async def run(manager: DatabaseManager, *statements: str) -> None:
    async with manager.transaction() as session:
        for statement in statements:
            await session.execute(text(statement))


async def fill(manager: DatabaseManager, *months: int, rows: int = 10) -> None:
    """So many snapshots in each month of 2020, a minute apart, and the portfolio that they are of."""
    async with manager.transaction() as session:
        await session.execute(
            text(
                "INSERT INTO portfolios (portfolio_id, broker, currency, name) VALUES ('p1', 'paper', 'INR', 'Paper')"
                " ON CONFLICT DO NOTHING"
            )
        )
        for month in months:
            day = date(2020, month, 1)
            await portfolios.ensure_partitions(session, day, day)
            await insert(session, ((datetime(2020, month, 1, 0, n, tzinfo=UTC), n) for n in range(rows)))


async def insert(
    session: AsyncSession, points: Iterable[tuple[datetime, Decimal | int]], portfolio_id: str = "p1"
) -> None:
    given = [{"id": portfolio_id, "at": at, "equity": equity} for at, equity in points]
    if given:
        await session.execute(
            text(
                "INSERT INTO portfolio_snapshots (portfolio_id, snapshot_time, broker, cash, realized_pnl, unrealized_pnl,"
                " total_pnl, equity) VALUES (:id, :at, 'paper', 0, 0, 0, 0, :equity)"
            ),
            given,
        )


async def inventory(manager: DatabaseManager, *, exact: bool = False) -> dict[str, PartitionInfo]:
    async with manager.transaction(read_only=True) as session:
        return {item.name: item for item in await portfolios.partitions(session, exact=exact)}


async def count(manager: DatabaseManager) -> int:
    async with manager.get_session(read_only=True) as session:
        return int(await session.scalar(text("SELECT count(*) FROM portfolio_snapshots")) or 0)


@asynccontextmanager
async def reader(manager: DatabaseManager) -> AsyncGenerator[None]:
    """A transaction that has read the whole history and stays open, as an export does."""
    async with manager.transaction(isolation_level="REPEATABLE READ", read_only=True) as session:
        await session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        await session.execute(text("SELECT count(*) FROM portfolio_snapshots"))
        yield


# Making


async def test_a_long_reader_neither_delays_a_new_partition_nor_is_delayed(manager: DatabaseManager):
    await fill(manager, 1)
    async with reader(manager), manager.get_session() as maker:
        made = await portfolios.ensure_partitions(maker, date(2031, 1, 1), date(2031, 1, 1))
        assert made == (name_of(1, 2031),)
        # While it is not committed yet: reads and writes of other months go on.
        assert await count(manager) == 10
        async with manager.transaction() as writer:
            await insert(writer, [(START + timedelta(days=9), 5)])
        await maker.commit()
    assert await count(manager) == 11


async def test_a_partition_is_what_the_models_statement_makes(manager: DatabaseManager):
    from core.database.models import snapshot_partition_ddl

    await run(manager, snapshot_partition_ddl(date(2031, 1, 1)))
    await portfolios.ensure_partitions(manager, date(2031, 2, 1), date(2031, 2, 1))
    statements = (
        """SELECT conname, contype::text, conislocal, coninhcount, convalidated, pg_get_constraintdef(oid)
            FROM pg_constraint WHERE conrelid = '{}'::regclass ORDER BY 2, 1""",
        """SELECT attname, attnum, atttypid, attnotnull, attislocal, attinhcount, attstorage::text, attcollation
            FROM pg_attribute WHERE attrelid = '{}'::regclass AND attnum > 0 ORDER BY 2""",
        """SELECT pg_get_indexdef(indexrelid), indisvalid, indisprimary FROM pg_index
            WHERE indrelid = '{}'::regclass""",
        "SELECT adnum, pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = '{}'::regclass ORDER BY 1",
        "SELECT tgtype, tgfoid, tgenabled::text FROM pg_trigger WHERE tgrelid = '{}'::regclass ORDER BY 1, 2",
    )
    async with manager.get_session() as session:
        for statement in statements:
            first, second = [
                [
                    tuple(str(value).replace("m02", "m01") for value in row)
                    for row in await session.execute(text(statement.format(name_of(month, 2031))))
                ]
                for month in (1, 2)
            ]
            assert first == second and first


def make_months(url: str) -> tuple[str, ...]:
    """What one of many processes does."""

    async def work() -> tuple[str, ...]:
        async with DatabaseManager(url, "testing", schema_management="migrations_only") as manager:
            return await portfolios.ensure_partitions(manager, date(2031, 1, 1), date(2031, 6, 1))

    return asyncio.run(work())


def test_ten_processes_at_once_make_each_month_once(database_url_sync: str):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(10, mp_context=context) as pool:
        made = list(pool.map(make_months, [str(database_url_sync)] * 10))
    assert sorted(name for names in made for name in names) == [name_of(month, 2031) for month in range(1, 7)]


async def test_the_months_ahead_are_made_and_may_be_asked_for_before(manager: DatabaseManager):
    today = datetime.now(UTC).date()
    wanted = {f"portfolio_snapshots_y{day:%Y}m{day:%m}" for day in (months_from(today, n) for n in range(4))}
    before = set(await inventory(manager))
    assert set(await portfolios.ensure_ahead(manager, dry_run=True)) == wanted - before
    assert set(await inventory(manager)) == before
    await portfolios.ensure_ahead(manager)
    assert wanted <= set(await inventory(manager))
    assert await portfolios.ensure_ahead(manager, months=3) == ()
    with pytest.raises(InvalidInput):
        await portfolios.ensure_ahead(manager, months=-1)


async def test_a_detached_table_in_a_months_place_is_told_and_the_transaction_goes_on(manager: DatabaseManager):
    await fill(manager, 1)
    await run(manager, f"ALTER TABLE portfolio_snapshots DETACH PARTITION {name_of(1)}")
    async with manager.transaction() as session:
        with pytest.raises(PartitionMissing, match=f"{name_of(1)} is there, but detached") as caught:
            await portfolios.ensure_partitions(session, JANUARY, JANUARY)
        assert "panda portfolio prune" in (caught.value.hint or "")
        assert await portfolios.ensure_partitions(session, date(2020, 2, 1), date(2020, 2, 1))


async def test_a_row_without_a_partition_names_the_command(manager: DatabaseManager):
    await fill(manager, 1)
    async with manager.get_session() as session:
        with pytest.raises(PartitionMissing, match="panda portfolio partitions --ensure"):
            await insert(session, [(datetime(2019, 1, 1, tzinfo=UTC), 1)])


# Looking


async def test_partitions_tell_their_bounds_their_rows_and_their_state(manager: DatabaseManager):
    await fill(manager, 11, 12)
    await portfolios.ensure_partitions(manager, date(9999, 12, 1), date(9999, 12, 2))
    await run(
        manager,
        f"ALTER TABLE portfolio_snapshots DETACH PARTITION {name_of(11)}",
        "CREATE TABLE portfolio_snapshots_odd PARTITION OF portfolio_snapshots"
        " FOR VALUES FROM (MINVALUE) TO ('2001-01-01 05:30+05:30')",
        f"ANALYZE {name_of(12)}",
        "SET LOCAL datestyle = 'German'",
    )
    found = await inventory(manager)
    december = found[name_of(12)]
    assert (december.first_day, december.end, december.state, december.rows) == (
        date(2020, 12, 1),
        date(2021, 1, 1),
        "attached",
        10,
    )
    assert december.bytes > 8_192 and not december.pruning
    assert (found[name_of(11)].state, found[name_of(11)].first_day) == ("detached", date(2020, 11, 1))
    assert found[name_of(12, 9999)].first_day == date(9999, 12, 1)
    assert found["portfolio_snapshots_odd"].end is None
    assert list(found)[-1] == name_of(11), "what is not attached comes last"
    assert (await inventory(manager, exact=True))[name_of(11)].rows == 10


# Retention


async def test_prune_removes_the_months_that_end_by_then_and_no_other(manager: DatabaseManager):
    await fill(manager, 1, 2, 3)
    told: list[tuple[str, str]] = []
    report = await portfolios.prune(
        manager, before=date(2020, 3, 31), progress=lambda name, step: told.append((name, step))
    )
    assert [item.name for item in report.partitions] == [name_of(1), name_of(2)]
    assert report.bytes == sum(item.bytes for item in report.partitions) > 0
    assert told == [(name_of(month), step) for month in (1, 2) for step in ("mark", "detach", "drop")]
    assert set(await inventory(manager)) >= {name_of(3)}
    assert not {name_of(1), name_of(2)} & set(await inventory(manager))
    assert await count(manager) == 10
    again = await portfolios.prune(manager, before=date(2020, 3, 31))
    assert (again.partitions, again.rows, again.bytes) == ((), 0, 0)


async def test_a_dry_run_tells_the_same_and_removes_nothing(manager: DatabaseManager):
    await fill(manager, 1, 2)
    await run(manager, "ANALYZE portfolio_snapshots")
    dry = await portfolios.prune(manager, before=date(2020, 3, 1), dry_run=True)
    assert (dry.dry_run, dry.rows) == (True, 20)
    assert await count(manager) == 20
    wet = await portfolios.prune(manager, before=date(2020, 3, 1))
    assert (wet.partitions, wet.rows, wet.bytes) == (dry.partitions, dry.rows, dry.bytes)


async def test_keep_months_keeps_this_month_and_so_many_before_it(manager: DatabaseManager):
    today = datetime.now(UTC).date()
    await portfolios.ensure_partitions(manager, months_from(today, -4), months_from(today, 1))
    report = await portfolios.prune(manager, keep_months=2)
    assert [item.first_day for item in report.partitions] == [months_from(today, -4), months_from(today, -3)]
    left = [item.first_day for item in (await inventory(manager)).values()]
    assert set(left) == {months_from(today, n) for n in range(-2, 2)}


async def test_prune_refuses_what_reaches_the_current_month_or_says_nothing(manager: DatabaseManager):
    tomorrow = datetime.now(UTC).date() + timedelta(1)
    wrong: Sequence[tuple[dict[str, Any], str]] = (
        ({"before": tomorrow}, "before"),
        ({"before": tomorrow, "dry_run": True}, "before"),
        ({"before": datetime(2020, 1, 1, tzinfo=UTC)}, "before"),
        ({}, "before"),
        ({"before": JANUARY, "keep_months": 3}, "before"),
        ({"keep_months": 0}, "keep_months"),
    )
    for options, field in wrong:
        with pytest.raises(InvalidInput) as caught:
            await portfolios.prune(manager, **options)
        assert caught.value.column == field


async def test_a_reader_holds_prune_up_and_nobody_else_and_the_next_run_finishes(
    manager: DatabaseManager, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_retention, "_QUIET", 0.5)
    await fill(manager, 1, 2)
    async with reader(manager):
        with pytest.raises(LockTimeout, match=f"{name_of(1)} is still in use after 0 of 2 months") as caught:
            running = asyncio.ensure_future(portfolios.prune(manager, before=date(2020, 3, 1), patience=0))
            for n in range(20):
                begun = asyncio.get_running_loop().time()
                async with manager.transaction() as session:
                    await insert(session, [(datetime(2020, 2, 2, 0, n, tzinfo=UTC), 1)])
                assert asyncio.get_running_loop().time() - begun < 20
                assert await count(manager) >= 10
            await running
        assert "Run the same again" in (caught.value.hint or "")
    january = (await inventory(manager))[name_of(1)]
    assert (january.state, january.pruning) == ("detaching", True)
    assert await count(manager) == 30, "the rows of what is being detached are seen no more"
    report = await portfolios.prune(manager, before=date(2020, 2, 1))
    assert [item.name for item in report.partitions] == [name_of(1)]
    assert name_of(1) not in await inventory(manager)


async def test_a_reader_that_ends_in_time_only_delays_prune(manager: DatabaseManager):
    await fill(manager, 1)
    async with reader(manager):
        running = asyncio.ensure_future(portfolios.prune(manager, before=date(2020, 3, 1)))
        await asyncio.sleep(0.5)
        assert not running.done()
    report = await running
    assert len(report.partitions) == 1 and name_of(1) not in await inventory(manager)


@pytest.mark.parametrize("step", ["mark", "detach", "drop"])
@pytest.mark.parametrize("end", ["failed", "cancelled"])
async def test_an_interruption_at_each_step_is_finished_by_the_next_run(manager: DatabaseManager, step: str, end: str):
    await fill(manager, 1, 2)
    tasks: list[asyncio.Task[Any]] = []

    def interrupt(name: str, now: str) -> None:
        if (name, now) == (name_of(1), step):
            if end == "cancelled":
                tasks[0].cancel()
            else:
                raise RuntimeError

    tasks.append(asyncio.ensure_future(portfolios.prune(manager, before=date(2020, 3, 1), progress=interrupt)))
    with pytest.raises((asyncio.CancelledError, RuntimeError)):
        await tasks[0]
    assert name_of(1) in await inventory(manager)
    assert name_of(2) in await inventory(manager)
    report = await portfolios.prune(manager, before=date(2020, 3, 1))
    assert [item.name for item in report.partitions] in ([name_of(1), name_of(2)], [name_of(2), name_of(1)])
    assert not {name_of(1), name_of(2)} & set(await inventory(manager))
    assert await count(manager) == 0


async def test_a_connection_lost_in_the_middle_is_finished_by_the_next_run(manager: DatabaseManager, database_url: str):
    await fill(manager, 1)
    async with reader(manager):
        running = asyncio.ensure_future(portfolios.prune(manager, before=date(2020, 3, 1)))
        await wait_for(database_url, DETACHING)
        await run(
            manager,
            f"SELECT pg_terminate_backend(pid) {OUR_LOCKS} AND pid <> pg_backend_pid()"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        )
        with pytest.raises(PandaDatabaseError):
            await running
    assert len((await portfolios.prune(manager, before=date(2020, 3, 1))).partitions) == 1
    assert name_of(1) not in await inventory(manager)


async def test_what_somebody_has_detached_to_keep_is_never_dropped(manager: DatabaseManager):
    await fill(manager, 1, 2)
    await run(manager, f"ALTER TABLE portfolio_snapshots DETACH PARTITION {name_of(1)}")
    report = await portfolios.prune(manager, before=date(2020, 3, 1))
    assert report.kept == (name_of(1),)
    assert [item.name for item in report.partitions] == [name_of(2)]
    async with manager.get_session() as session:
        assert await session.scalar(text(f"SELECT count(*) FROM {name_of(1)}")) == 10


async def test_what_somebody_has_left_half_detached_is_told_and_nothing_done(manager: DatabaseManager):
    await fill(manager, 1, 2)
    async with reader(manager), manager.get_session() as session:
        await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        await session.execute(text("SET lock_timeout = '100ms'"))
        with pytest.raises(LockTimeout):
            await session.execute(text(f"ALTER TABLE portfolio_snapshots DETACH PARTITION {name_of(1)} CONCURRENTLY"))
        await session.invalidate()
    with pytest.raises(UnsupportedFeature, match=f"{name_of(1)} is half detached") as caught:
        await portfolios.prune(manager, before=date(2020, 3, 1))
    assert f"DETACH PARTITION {name_of(1)} FINALIZE" in (caught.value.hint or "")
    assert {name_of(1), name_of(2)} <= set(await inventory(manager))


async def test_a_default_partition_makes_prune_detach_plainly(manager: DatabaseManager):
    await fill(manager, 1)
    await run(manager, "CREATE TABLE fallback PARTITION OF portfolio_snapshots DEFAULT")
    report = await portfolios.prune(manager, before=date(2020, 3, 1))
    assert len(report.partitions) == 1
    assert list(await inventory(manager)) == ["fallback"]


async def test_one_prunes_or_downsamples_at_a_time_and_gives_the_connection_up(
    manager: DatabaseManager, database_url: str
):
    await fill(manager, 1)
    async with manager.get_session() as session:
        before = await session.scalar(text("SHOW statement_timeout"))
    async with reader(manager):
        running = asyncio.ensure_future(portfolios.prune(manager, before=date(2020, 3, 1)))
        await wait_for(database_url, f"(SELECT count(*) {OUR_LOCKS}) > 0")
        with pytest.raises(LockTimeout, match="another process is pruning or downsampling"):
            await portfolios.prune(manager, before=date(2020, 3, 1), patience=0)
        with pytest.raises(LockTimeout, match="another process is pruning or downsampling"):
            await portfolios.downsample(manager, before=date(2020, 3, 1), every=HOUR, patience=0)
    await running
    async with manager.get_session() as session:
        assert await session.scalar(text("SHOW statement_timeout")) == before
        assert not await session.scalar(text(f"SELECT count(*) {OUR_LOCKS}"))


async def test_a_pool_of_one_connection_is_enough(database_url: str):
    pool = PoolOptions(size=1, max_overflow=0, read_size=1)
    async with DatabaseManager(database_url, "testing", pool=pool, timeouts=Timeouts(statement=1)) as manager:
        await fill(manager, 1)
        assert len((await portfolios.prune(manager, before=date(2020, 3, 1))).partitions) == 1


async def test_pgbouncer_is_refused_before_anything_is_done(database_url: str):
    async with DatabaseManager(database_url, "testing", pgbouncer=True) as manager:
        with pytest.raises(ConfigurationError, match="PgBouncer"):
            await portfolios.prune(manager, before=date(2020, 3, 1))


# Downsampling


def thinned(points: Sequence[tuple[datetime, Decimal]], every: timedelta) -> set[datetime]:
    """What must stay, by the plainest means there are."""
    buckets: dict[int, list[tuple[datetime, Decimal]]] = {}
    for at, equity in sorted(points):
        buckets.setdefault((at - datetime(1, 1, 1, tzinfo=UTC)) // every, []).append((at, equity))
    kept: set[datetime] = set()
    for bucket in buckets.values():
        kept |= {bucket[0][0], bucket[-1][0]}
        kept |= {min(bucket, key=lambda one: one[1])[0], max(bucket, key=lambda one: one[1])[0]}
        for fall in deepest(bucket)[1:]:
            kept |= {at for end in fall for at in [end] if end is not None}
    return kept


def deepest(points: Sequence[tuple[datetime, Decimal]]) -> tuple[Any, ...]:
    """(amount, share), and both ends of each: the deepest fall below the running peak; the first of equals."""
    amount, share = Decimal(0), Fraction(0)
    by_amount: tuple[datetime | None, datetime | None] = (None, None)
    by_share = by_amount
    peak = points[0]
    for at, equity in points:
        if equity > peak[1]:
            peak = (at, equity)
        if peak[1] - equity > amount:
            amount, by_amount = peak[1] - equity, (peak[0], at)
        if peak[1] > 0 and Fraction(peak[1] - equity) / Fraction(peak[1]) > share:
            share, by_share = Fraction(peak[1] - equity) / Fraction(peak[1]), (peak[0], at)
    return (amount, share), by_amount, by_share


async def points_of(manager: DatabaseManager, portfolio_id: str = "p1") -> list[tuple[datetime, Decimal]]:
    async with manager.get_session(read_only=True) as session:
        found = await session.execute(
            text("SELECT snapshot_time, equity FROM portfolio_snapshots WHERE portfolio_id = :id ORDER BY 1"),
            {"id": portfolio_id},
        )
        return [(at, equity) for at, equity in found]


SERIES = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 6 * 60), st.integers(0, 6 * 3_600_000_000).map(lambda us: us / 60_000_000)),
        st.integers(-50, 1_000).map(lambda n: Decimal(n) / 4),
    ),
    min_size=1,
    max_size=60,
    unique_by=lambda one: round(one[0] * 60_000_000),
)


def timed(series: Sequence[tuple[float, Decimal]]) -> list[tuple[datetime, Decimal]]:
    return sorted((START + timedelta(microseconds=round(minute * 60_000_000)), equity) for minute, equity in series)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(series=SERIES, every=st.sampled_from([timedelta(minutes=15), HOUR, timedelta(seconds=1), timedelta(1)]))
async def test_downsampling_keeps_ends_extremes_and_drawdown(
    manager: DatabaseManager, series: list[tuple[float, Decimal]], every: timedelta
):
    given_points = timed(series)
    await fill(manager, 1, rows=0)
    await run(manager, "DELETE FROM portfolio_snapshots")
    async with manager.transaction() as session:
        await insert(session, given_points)
    dry = await portfolios.downsample(manager, before=date(2020, 2, 1), every=every, dry_run=True)
    assert await points_of(manager) == given_points
    report = await portfolios.downsample(manager, before=date(2020, 2, 1), every=every)
    left = await points_of(manager)
    assert {at for at, _ in left} == thinned(given_points, every)
    assert (report.rows, report.kept, dry.rows, dry.kept) == (
        len(given_points),
        len(left),
        len(given_points),
        len(left),
    )
    assert set(left) <= set(given_points)
    assert (left[0], left[-1]) == (given_points[0], given_points[-1])
    whole, kept = deepest(given_points)[0], deepest(left)[0]
    assert kept[0] == whole[0]
    assert kept[1] == whole[1] or min(equity for _, equity in given_points) < 0
    again = await portfolios.downsample(manager, before=date(2020, 2, 1), every=every)
    assert (again.rows, again.kept) == (len(left), len(left))


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(series=SERIES)
async def test_by_steps_or_at_once_the_extremes_and_the_drawdown_are_the_same(
    manager: DatabaseManager, series: list[tuple[float, Decimal]]
):
    given_points = timed([(minute, abs(equity) + 1) for minute, equity in series])
    await fill(manager, 1, rows=0)
    await run(manager, "DELETE FROM portfolio_snapshots")
    async with manager.transaction() as session:
        await insert(session, given_points)
    for every in (timedelta(minutes=15), HOUR, timedelta(1)):
        await portfolios.downsample(manager, before=date(2020, 2, 1), every=every)
    left = await points_of(manager)
    assert deepest(left)[0] == deepest(given_points)[0]
    assert len(left) <= 8


async def test_the_deepest_falls_inside_a_stretch_stay_where_its_ends_and_extremes_would_lose_them(
    manager: DatabaseManager,
):
    await fill(manager, 1, rows=0)
    series = (5, 6, 20, 8, 50, 100, 70, 150, 200)  # from 20 to 8 the deepest as a share, from 100 to 70 as an amount
    async with manager.transaction() as session:
        await insert(session, ((START + timedelta(minutes=n), equity) for n, equity in enumerate(series)))
    await portfolios.downsample(manager, before=date(2020, 2, 1), every=HOUR)
    assert [equity for _, equity in await points_of(manager)] == [5, 20, 8, 100, 70, 200]


async def test_portfolios_are_apart_and_other_months_are_left_alone(manager: DatabaseManager):
    await fill(manager, 1, 2, rows=50)
    async with manager.transaction() as session:
        await portfolios.create(session, portfolio_id="p2", broker="paper", currency="INR", name="Two")
        await insert(session, ((START + timedelta(minutes=n), 1_000 - n) for n in range(50)), "p2")
    told: list[tuple[str, str]] = []
    report = await portfolios.downsample(
        manager, before=date(2020, 2, 29), every=HOUR, progress=lambda name, step: told.append((name, step))
    )
    (january,) = report.partitions
    assert (january.name, january.rows, january.kept, january.first_day) == (name_of(1), 100, 4, JANUARY)
    assert told == [(name_of(1), "thin"), (name_of(1), "vacuum")]
    assert [equity for _, equity in await points_of(manager)] == [0, 49, *range(50)]
    assert [equity for _, equity in await points_of(manager, "p2")] == [1_000, 951]


async def test_kept_snapshots_are_whole_and_as_they_were(manager: DatabaseManager):
    await fill(manager, 1, rows=0)
    positions = (
        '[{"instrument_token": 1, "quantity": "-3", "average_price": "1.5", "last_price": "2", "pnl": "-1.5000000001"}]'
    )
    async with manager.transaction() as session:
        for n in range(5):
            await session.execute(
                text(
                    "INSERT INTO portfolio_snapshots VALUES ('p1', :at, 'paper', CAST(:positions AS jsonb),"
                    " 12345678901234567.0123456789, 1.1, -0.1, 1.0, :equity)"
                ),
                {"at": START + timedelta(minutes=n), "positions": positions, "equity": n},
            )
        whole = "SELECT s::text FROM portfolio_snapshots s ORDER BY snapshot_time"
        before = list(await session.scalars(text(whole)))
    await portfolios.downsample(manager, before=date(2020, 2, 1), every=HOUR)
    async with manager.get_session() as session:
        assert list(await session.scalars(text(whole))) == [before[0], before[-1]]


async def test_the_rewritten_month_is_smaller_and_what_was_interrupted_is_compacted_later(manager: DatabaseManager):
    await fill(manager, 1, rows=0)
    async with manager.transaction() as session:
        await session.execute(
            text(
                "INSERT INTO portfolio_snapshots SELECT 'p1', '2020-01-01 00:00+00'::timestamptz + n * interval '1 s',"
                " 'paper', '[]', 0, 0, 0, 0, n FROM generate_series(0, 29999) n"
            )
        )
    first = await portfolios.downsample(manager, before=date(2020, 2, 1), every=HOUR)
    (month,) = first.partitions
    assert (month.rows, month.kept) == (30_000, 18)
    told: list[str] = []
    later = await portfolios.downsample(
        manager, before=date(2020, 2, 1), every=HOUR, compact=True, progress=lambda _, step: told.append(step)
    )
    assert later.bytes_after < month.bytes_before / 5
    again: list[str] = []
    await portfolios.downsample(
        manager, before=date(2020, 2, 1), every=HOUR, compact=True, progress=lambda _, step: again.append(step)
    )
    assert again == ["thin", "vacuum"], "a dense month is not rewritten again"
    assert len(await points_of(manager)) == 18


async def test_downsampling_stops_no_reader_and_no_writer_not_even_of_that_month(manager: DatabaseManager):
    await fill(manager, 1, 2, rows=40)
    async with manager.get_session() as writer:
        await insert(writer, [(START + timedelta(minutes=50, seconds=1), 7)])
        async with reader(manager):
            report = await portfolios.downsample(manager, before=date(2020, 2, 1), every=HOUR, patience=0)
            assert (report.rows, report.kept) == (40, 2)
        await writer.commit()
    assert len([at for at, _ in await points_of(manager) if at.month == 1]) == 3, "a row that came meanwhile stays"


async def test_downsampling_waits_for_who_rewrites_the_month_and_then_gives_up(manager: DatabaseManager):
    await fill(manager, 1)
    async with manager.get_session() as session:
        await session.execute(text(f"LOCK TABLE {name_of(1)} IN SHARE MODE"))
        task = asyncio.ensure_future(portfolios.downsample(manager, before=date(2020, 2, 1), every=HOUR))
        await asyncio.sleep(0.3)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await count(manager) == 10


async def test_a_grid_that_does_not_divide_a_day_is_refused(manager: DatabaseManager):
    for every in (timedelta(0), timedelta(minutes=7), timedelta(days=2), timedelta(milliseconds=500), -HOUR):
        with pytest.raises(InvalidInput) as caught:
            await portfolios.downsample(manager, before=JANUARY, every=every)
        assert caught.value.column == "every"
    with pytest.raises(InvalidInput):
        await portfolios.downsample(manager, before=datetime.now(UTC).date() + timedelta(1), every=HOUR)


async def test_the_mark_is_what_tells_an_interrupted_prune_from_an_archive(manager: DatabaseManager):
    await fill(manager, 1)
    await run(
        manager,
        f"ALTER TABLE portfolio_snapshots DETACH PARTITION {name_of(1)}",
        f"COMMENT ON TABLE {name_of(1)} IS '{MARK}'",
    )
    assert (await inventory(manager))[name_of(1)].pruning
    assert len((await portfolios.prune(manager, before=date(2020, 2, 1))).partitions) == 1
    assert await inventory(manager) == {}
