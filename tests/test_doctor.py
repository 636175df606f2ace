"""`panda doctor`: a healthy database is fit, and each sickness is told with its mend."""

import asyncio
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import InvalidRequestError

from core.config.options import PoolOptions, Timeouts, TlsOptions
from core.database import schema
from core.database.connection import DatabaseManager
from core.database.doctor import (
    CHECKS,
    Finding,
    _access,
    _capacity,
    _examine,
    _finding,
    _running,
    _server,
    _upkeep,
    examine,
)
from core.database.embedded import EmbeddedServer
from core.database.encryption import KeyRing
from core.database.engine import DatabaseUrl, EngineOptions, build_engine
from core.database.models import Base, User, snapshot_partition_ddl
from core.trading import portfolios, sessions
from tests.cluster.debian import DebianServer, binaries, debian_server, pgbouncer, pooled
from tests.cluster.proxy import FaultProxy
from tests.test_cli import NOWHERE, SECRET, answer, panda, silent, url_of
from tests.waiting import wait_for

__all__ = ["silent"]

pytestmark = pytest.mark.usefixtures("clean")

TESTING = EngineOptions(environment="testing")
PRODUCTION = EngineOptions(environment="production")
QUICK = Timeouts(connect=0.5, cleanup=0.5)
UNHURRIED = Timeouts(connect=30, cleanup=0.5)
PAINT = {"fsync", "full_page_writes", "synchronous_commit", "autovacuum"}


def of(findings: tuple[Finding, ...], check: str) -> Finding:
    """The one finding of a check."""
    (found,) = [finding for finding in findings if finding.check == check]
    return found


def as_postgres(url: str) -> str:
    return url.replace("//panda", "//postgres", 1)


async def execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture
async def durable_url(durable: EmbeddedServer) -> str:
    """The database `panda`, at head, of a server as it comes: nothing traded for speed."""
    url = durable.ensure()
    engine = build_engine(DatabaseUrl.parse(url), EngineOptions())
    await schema.upgrade(engine)
    await engine.dispose()
    return url


@pytest.fixture(scope="module")
def durable(open_folder: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(open_folder / "durable")
    server.ensure()
    yield server
    server.stop()


# A healthy one


async def test_a_healthy_database_has_no_warning_and_every_check_is_made(durable_url: str):
    told: list[Finding] = []
    found = await examine(durable_url, replace(PRODUCTION, pool=PoolOptions(size=5)), report=told.append)
    assert tuple(told) == found
    assert [finding.check for finding in found] == list(CHECKS)
    bad = {finding.check: finding.message for finding in found if finding.status not in ("ok", "info")}
    assert bad.pop("role").startswith("panda owns the tables")
    assert bad.pop("encryption").startswith("no key is configured")
    assert bad == {}
    for finding in found:
        json.dumps(finding.to_json())
        assert finding.message and "\n" not in finding.message


async def test_an_examination_writes_nothing_and_leaves_no_connection(durable_url: str):
    connection = await asyncpg.connect(as_postgres(durable_url))
    try:
        before = await connection.fetchval("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")
        await examine(durable_url, TESTING)
        assert await connection.fetchval("SELECT pg_snapshot_xmax(pg_current_snapshot())::text") == before
        await wait_for(as_postgres(durable_url), "NOT EXISTS (SELECT FROM pg_stat_activity WHERE usename = 'panda')")
    finally:
        await connection.close()


async def test_where_the_data_can_be_seen_their_disk_is_measured(durable: EmbeddedServer, durable_url: str):
    await asyncio.to_thread(durable.ensure)
    before = shutil.disk_usage(durable.directory)
    seen = of(await examine(f"embedded://{durable.directory}", TESTING), "disk")
    after = shutil.disk_usage(durable.directory)
    assert (seen.status, seen.details["total_bytes"]) == ("ok", before.total)
    assert min(before.free, after.free) - 2**28 < seen.details["free_bytes"] < max(before.free, after.free) + 2**28
    unseen = of(await examine(durable_url, TESTING), "disk")
    assert (unseen.status, "cannot be seen from here" in unseen.message) == ("info", True)
    assert "free_bytes" not in unseen.details and unseen.details["database_bytes"] > 2**20
    as_superuser = of(await examine(as_postgres(durable_url), TESTING), "disk")
    assert as_superuser.details["directory"] == str(durable.directory / "data")
    assert as_superuser.details["wal_bytes"] > 0


# Not reached


async def test_a_port_where_nobody_listens(tmp_path: Path):
    found = await examine(NOWHERE, replace(TESTING, timeouts=QUICK))
    server = of(found, "server")
    assert (server.status, "connection refused" in server.message) == ("error", True)
    assert "host and port" in (server.mend or "")
    assert [finding.check for finding in found] == list(CHECKS)
    skipped = [finding for finding in found if finding.status == "skipped"]
    assert len(skipped) == len(CHECKS) - 3
    assert all(finding.message == "no connection could be made; see server" for finding in skipped)
    assert SECRET not in str(found)


async def test_a_name_that_is_none_and_a_host_that_says_nothing(silent):
    found = of(await examine("postgresql://panda@a..b/panda", replace(TESTING, timeouts=QUICK)), "server")
    assert (found.status, "cannot be resolved" in found.message) == ("error", True)
    started = time.monotonic()
    found = of(await examine(url_of(silent), replace(TESTING, timeouts=QUICK)), "server")
    assert (found.status, found.details["error"]) == ("error", "ConnectTimeout")
    assert found.details["connect_ms"] >= 0
    assert time.monotonic() - started < 4.5  # where nothing else is said it is five


async def test_a_name_server_that_does_not_answer_holds_nobody_up(monkeypatch: pytest.MonkeyPatch):
    over = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **named: over.wait(60) and [])
    started = time.monotonic()
    found = of(await examine("postgresql://panda@database/panda", replace(TESTING, timeouts=QUICK)), "server")
    assert "not resolved within 0.5 s" in found.message
    assert time.monotonic() - started < 4.5
    over.set()


@pytest.mark.usefixtures("settled")
async def test_a_database_that_is_not_there(database_url: str):
    url = database_url.replace(f"/{DatabaseUrl.parse(database_url).database}?", "/nowhere?")
    server = of(await examine(url, TESTING), "server")
    assert (server.status, server.details["error"]) == ("error", "DatabaseNotFound")
    assert "createdb" in (server.mend or "")


async def test_an_url_that_is_none_or_breaks_the_rules_of_tls():
    found = await examine(f"mysql://panda:{SECRET}@localhost/panda", TESTING)
    assert (of(found, "url").status, len(found), SECRET in str(found)) == ("error", len(CHECKS), False)
    found = await examine("postgresql://panda@db.example/panda?sslmode=prefer", PRODUCTION)
    tls = of(found, "tls")
    assert (tls.status, "verify-full" in (tls.mend or "")) == ("error", True)
    assert of(found, "server").status == "skipped"


async def test_of_several_hosts_each_is_asked_and_a_dead_one_is_a_warning(database_url: str):
    async with FaultProxy(database_url) as proxy:
        url = proxy.url.replace("@", "@127.0.0.1:1,")
        found = await examine(url, replace(TESTING, timeouts=UNHURRIED))
    dead, alive = [finding for finding in found if finding.check == "server"]
    assert (dead.status, alive.status) == ("warning", "ok")
    assert dead.details["port"] == 1 and alive.details["port"] == proxy.port
    assert of(found, "schema").status == "ok"


async def test_a_server_that_falls_silent_half_way_ends_the_run_in_bounded_time(database_url: str):
    async with FaultProxy(database_url) as proxy:

        def freeze(finding: Finding) -> None:
            if finding.check == "version":
                proxy.freeze()

        started = time.monotonic()
        found = await examine(proxy.url, replace(TESTING, timeouts=UNHURRIED), limit=1.0, report=freeze)
        assert time.monotonic() - started < 60
        proxy.thaw()
    assert of(found, "role").message == "no answer within 1 s"
    assert of(found, "extensions").status == "skipped"
    assert [finding.check for finding in found] == list(CHECKS)


async def test_the_built_in_server_is_looked_at_and_never_started(open_folder: Path):
    server = EmbeddedServer(open_folder / "asleep")
    found = await examine(f"embedded://{server.directory}", TESTING)
    assert (of(found, "server").status, of(found, "server").mend) == ("error", "panda up")
    assert not server.directory.exists()


# What is wrong with a check itself


async def test_a_check_that_fails_or_hangs_is_a_finding_and_ends_no_run(
    database_url: str, monkeypatch: pytest.MonkeyPatch
):
    async def broken(connection, case) -> Finding:
        raise KeyError(SECRET)

    async def foreign(connection, case) -> Finding:
        raise InvalidRequestError(SECRET)

    async def refused(connection, case) -> Finding:
        await connection.exec_driver_sql("SELECT * FROM pg_authid")
        raise AssertionError

    async def slow(connection, case) -> Finding:
        await connection.exec_driver_sql("SELECT pg_sleep(60)")
        raise AssertionError

    async def writing(connection, case) -> Finding:
        await connection.exec_driver_sql("CREATE TABLE left_behind ()")
        raise AssertionError

    strange = (("role", broken), ("rights", foreign), ("disk", refused), ("clock", slow), ("tls", writing))
    monkeypatch.setattr(_examine, "_CHECKS", (*strange, ("version", _server.version)))
    found = await examine(database_url, TESTING, limit=1.0)
    assert [of(found, name).status for name in ("role", "rights", "disk", "clock")] == ["warning"] * 4
    assert of(found, "role").message == "could not be examined: unexpected KeyError"
    assert "permission denied" in of(found, "disk").message
    assert of(found, "clock").message == "no answer within 1 s"
    assert "read-only transaction" in of(found, "tls").message
    assert of(found, "version").status == "ok"
    assert SECRET not in str(found)


# The schema


async def test_a_schema_behind_or_missing(database_url: str, empty_database: str):
    engine = build_engine(DatabaseUrl.parse(database_url), EngineOptions())
    await schema.downgrade(engine, "0001")
    await engine.dispose()
    found = await examine(database_url, TESTING)
    behind = of(found, "schema")
    assert (behind.status, behind.details["status"], behind.details["current"]) == ("error", "behind", ["0001"])
    assert "panda migrate upgrade" in (behind.mend or "")
    assert of(found, "encryption").status == "skipped"
    found = await examine(empty_database, TESTING)
    assert of(found, "schema").details["status"] == "empty"
    assert of(found, "partitions").status == "skipped"
    assert of(found, "rights").status == "ok"
    assert {finding.check for finding in found if finding.status == "error"} == {"schema"}


async def test_missing_partitions_matter_to_those_who_may_not_make_them(database_url: str):
    now = datetime(2031, 12, 31, 23, 59, tzinfo=UTC)
    assert of(await examine(database_url, TESTING, now=now.timestamp), "partitions").status == "info"
    await execute(as_postgres(database_url), *_given_away())
    found = of(await examine(database_url, TESTING, now=now.timestamp), "partitions")
    assert found.status == "error"
    assert "this month has no partition" in found.message and "next month has no partition" in found.message
    mends = (found.mend or "").splitlines()
    assert "portfolio_snapshots_y2031m12" in mends[0] and "portfolio_snapshots_y2032m01" in mends[1]
    assert all(mend.startswith("As postgres: CREATE TABLE") for mend in mends)
    await execute(as_postgres(database_url), mends[0].removeprefix("As postgres: "))
    found = of(await examine(database_url, TESTING, now=now.timestamp), "partitions")
    assert (found.status, "next month" in found.message, "this month" in found.message) == ("warning", True, False)
    await execute(as_postgres(database_url), mends[1].removeprefix("As postgres: "))
    assert of(await examine(database_url, TESTING, now=now.timestamp), "partitions").status == "ok"


async def test_a_default_partition_is_told_of(database_url: str):
    await execute(database_url, "CREATE TABLE rest PARTITION OF portfolio_snapshots DEFAULT")
    found = of(await examine(database_url, TESTING), "partitions")
    assert (found.status, "default partition rest" in found.message) == ("warning", True)


# The role


def _given_away() -> list[str]:
    """All tables to the superuser, and to our role the rights that it needs."""
    names = [*sorted(Base.metadata.tables), "alembic_version"]
    return [
        *(f"ALTER TABLE {name} OWNER TO postgres" for name in names),
        "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO panda",
        "GRANT DELETE ON known_sources, login_delays TO panda",
    ]


async def test_a_superuser_an_owner_and_one_who_may_just_enough(database_url: str):
    assert of(await examine(database_url, TESTING), "role").status == "ok"
    owner = of(await examine(database_url, PRODUCTION), "role")
    assert (owner.status, "owns the tables" in owner.message) == ("warning", True)
    assert len(owner.details["owned_tables"]) == len(Base.metadata.tables)
    for options in (TESTING, PRODUCTION):
        found = await examine(as_postgres(database_url), options)
        assert (of(found, "role").status, "superuser" in of(found, "role").message) == ("warning", True)
        assert of(found, "rights").status == "ok"
    await execute(as_postgres(database_url), *_given_away())
    found = await examine(database_url, PRODUCTION)
    assert (of(found, "role").status, of(found, "rights").status) == ("ok", "ok")
    assert "owns none" in of(found, "role").message


async def test_what_the_rights_demand_is_what_the_trading_layer_uses(database_url: str):
    """After the GRANTs of the mend, and with no right beside them, the layer works."""
    await execute(
        as_postgres(database_url),
        *_given_away(),
        "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM panda",
        snapshot_partition_ddl(date(2026, 11, 1)),
    )
    rights = of(await examine(database_url, TESTING), "rights")
    assert rights.status == "error"
    await execute(as_postgres(database_url), *(rights.mend or "").splitlines())
    assert of(await examine(database_url, TESTING), "rights").status == "ok"
    ring = KeyRing.parse(f"k1:{KeyRing.generate_key()}")
    async with DatabaseManager(database_url, "testing", "migrations_only") as manager:
        await _trade(manager, ring)


async def _trade(manager: DatabaseManager, ring: KeyRing) -> None:
    from decimal import Decimal

    from core.database.records import PortfolioSnapshotCreate
    from core.trading import accounts, instruments, strategies
    from tests.test_trading_instruments import ACC, FRIDAY, file

    async with manager.transaction() as session:
        user = await accounts.register(session, username="trader", password="a long password")
    await accounts.authenticate(manager, "trader", "a long password", source="10.0.0.1")
    async with manager.transaction() as session:
        opened = await sessions.open(session, user_id=user.id, broker="kite", credentials="token", ring=ring)
        await sessions.end(session, bearer=opened.bearer)
        await strategies.define(session, strategy_id="s", name="S", config={}, parameters={}, active_brokers=["kite"])
        await strategies.revise(session, "s", expected_version=1, name="T")
        await portfolios.create(session, portfolio_id="p", broker="kite", currency="INR", name="P")
        names = ("cash", "realized_pnl", "unrealized_pnl", "total_pnl", "equity")
        amounts: dict[str, Any] = dict.fromkeys(names, Decimal(0))
        at = datetime(2026, 11, 22, tzinfo=UTC)
        one = PortfolioSnapshotCreate(portfolio_id="p", broker="kite", snapshot_time=at, **amounts)
        await portfolios.record_many(session, [one])
    for price in ("1834.5", "1835.5"):
        await instruments.load(manager, file(ACC.replace("1834.5", price)), trading_date=FRIDAY)


@pytest.mark.parametrize(
    ("revoke", "lacks"),
    [
        ("REVOKE UPDATE ON users FROM panda, panda_app", "UPDATE on users"),
        ("REVOKE INSERT ON encryption_canaries, portfolios FROM panda, panda_app", "INSERT on portfolios"),
        ("REVOKE SELECT ON alembic_version FROM panda, panda_app", "SELECT on alembic_version"),
        ("REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC, panda", "temporary tables"),
    ],
)
async def test_a_missing_right_is_an_error_with_its_grant(database_url: str, revoke: str, lacks: str):
    name = DatabaseUrl.parse(database_url).database
    hand_over = f"ALTER DATABASE {name} OWNER TO postgres"
    await execute(as_postgres(database_url), hand_over, *_given_away(), revoke.format(database=name))
    found = of(await examine(database_url, TESTING), "rights")
    assert (found.status, lacks in found.message) == ("error", True)
    await execute(as_postgres(database_url), *(found.mend or "").splitlines())
    assert of(await examine(database_url, TESTING), "rights").status == "ok"
    await execute(as_postgres(database_url), f"ALTER DATABASE {name} OWNER TO panda")


async def test_a_database_that_is_set_to_read_only(database_url: str):
    name = DatabaseUrl.parse(database_url).database
    await execute(database_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    found = of(await examine(database_url, TESTING), "rights")
    assert (found.status, "every write is refused" in found.message) == ("error", True)
    assert found.mend == f'ALTER DATABASE "{name}" RESET default_transaction_read_only;'
    await execute(database_url, "SET default_transaction_read_only = off", found.mend or "")
    assert of(await examine(database_url, TESTING), "rights").status == "ok"


@pytest.mark.builtin_server(reason="it lets the role in whatever the password")
async def test_a_password_and_a_key_that_anybody_would_try(database_url: str):
    url = re.sub(r"//panda(:[^@]*)?@", "//panda:Changeme@", database_url)
    weak = "k1:" + __import__("base64").b64encode(bytes(32)).decode()
    for options, status in ((TESTING, "warning"), (PRODUCTION, "error")):
        found = of(await examine(url, options, encryption_keys=weak), "secrets")
        assert found.status == status
        assert "password" in found.message and "'k1'" in found.message
        assert "Changeme" not in str(found)
    fine = of(await examine(url.replace("Changeme", SECRET), PRODUCTION, encryption_keys=_keys("k1")), "secrets")
    assert fine.status == "ok"


# The keys


def _keys(*ids: str) -> str:
    return ",".join(f"{key_id}:{KeyRing.generate_key()}" for key_id in ids)


async def _seal(url: str, keys: str, *, broker: str = "kite") -> None:
    async with DatabaseManager(url, "testing", "migrations_only") as manager, manager.transaction() as session:
        user = User(username=broker, hashed_password="hash")
        session.add(user)
        await session.flush()
        ring = KeyRing.parse(keys)
        await sessions.open(session, user_id=user.id, broker=broker, credentials="token", ring=ring)


async def test_the_keys_are_held_against_the_canaries_and_the_open_sessions(database_url: str):
    async def found(keys: str | None, options: EngineOptions = TESTING) -> Finding:
        return of(await examine(database_url, options, encryption_keys=keys), "encryption")

    old, new = _keys("k0"), _keys("k1")
    assert (await found(None)).status == "info"
    assert (await found(None, PRODUCTION)).status == "warning"
    assert (await found(new)).message == "key 'k1' seals; nothing sealed yet"
    await _seal(database_url, old)
    await _seal(database_url, new, broker="paper")
    proven = await found(f"{new},{old}")
    assert (proven.status, proven.details["right"]) == ("ok", ["k0", "k1"])
    none = await found(None)
    assert (none.status, "'k0', 'k1'" in none.message) == ("error", True)
    lost = await found(new)
    assert (lost.status, lost.details["missing"], lost.details["open_sessions_by_key"]) == (
        "error",
        ["k0"],
        {"k0": 1, "k1": 1},
    )
    wrong = await found(f"{_keys('k1')},{old}")
    assert (wrong.status, wrong.details["wrong"]) == ("error", ["k1"])
    assert "under its id" in (wrong.mend or "")
    broken = await found("k1:!")
    assert (broken.status, "base64" in broken.message) == ("error", True)
    await execute(database_url, "UPDATE trading_sessions SET is_active = false, end_time = now(), credentials = NULL")
    lost = await found(new)
    assert (lost.status, lost.details["retired"]) == ("ok", ["k0"]), "no open session needs the lost key"


# The server


async def test_a_server_that_traded_durability_for_speed(database_url: str):
    for options, status in ((TESTING, "warning"), (PRODUCTION, "error")):
        found = await examine(database_url, options)
        assert (of(found, "durability").status, of(found, "vacuum").status) == (status, status)
        for name in ("fsync", "full_page_writes", "synchronous_commit"):
            assert f"{name} is off" in of(found, "durability").message
            assert f"ALTER SYSTEM SET {name} = on" in (of(found, "durability").mend or "")


@pytest.mark.parametrize(
    ("offset", "testing", "production"), [(0, "ok", "ok"), (5, "warning", "warning"), (-90, "warning", "error")]
)
async def test_a_clock_that_is_not_ours(database_url: str, offset: float, testing: str, production: str):
    for options, status in ((TESTING, testing), (PRODUCTION, production)):
        async with asyncio.timeout(60):  # a machine that stands still in the middle makes the bound a wide one
            while True:
                found = of(await examine(database_url, options, now=lambda: time.time() - offset), "clock")
                if found.details["bound_seconds"] < 0.1:
                    break
        assert found.status == status
        assert found.details["offset_seconds"] == pytest.approx(offset, abs=0.1)
        assert 0 < found.details["bound_seconds"] < 0.5
        assert ("ahead" if offset > 0 else "behind") in found.message or offset == 0


async def test_sessions_of_another_time_zone(database_url: str):
    url = f"{database_url}&options=-c%20timezone%3DAsia/Kolkata"
    found = of(await examine(url, TESTING), "clock")
    assert (found.status, found.details["time_zone"]) == ("warning", "Asia/Kolkata")
    assert "options of the URL" in (found.mend or "")


async def test_the_time_limits_are_those_that_the_server_holds(database_url: str):
    name = DatabaseUrl.parse(database_url).database
    await execute(database_url, f"ALTER DATABASE {name} SET statement_timeout = 0")
    found = of(await examine(database_url, PRODUCTION), "limits")
    assert found.status == "ok", "what an application asks for at its start beats what the role or database has"
    assert found.details["statement_timeout"] == {"ms": 5_000, "source": "client"}
    url = f"{database_url}&options=-c%20statement_timeout%3D0%20-c%20lock_timeout%3D1s"
    for options, status in ((TESTING, "warning"), (PRODUCTION, "error")):
        found = of(await examine(url, options), "limits")
        assert found.status == status
        assert "statement_timeout is off where DATABASE__TIMEOUTS__STATEMENT asks for 5 s" in found.message
        assert "Remove -c statement_timeout=... from the options of the URL" in (found.mend or "")
    off = replace(PRODUCTION, timeouts=Timeouts(statement=0))
    found = of(await examine(database_url, off), "limits")
    assert (found.status, found.mend) == ("warning", "DATABASE__TIMEOUTS__STATEMENT=5")


async def test_an_url_whose_options_the_server_refuses(database_url: str):
    found = await examine(f"{database_url}&options=-c%20no_such_setting%3D1", TESTING)
    good, bad = [finding for finding in found if finding.check == "server"]
    assert (good.status, bad.status) == ("ok", "error")
    assert "an application's connection is refused" in bad.message and "no_such_setting" in bad.message
    assert of(found, "limits").status == "skipped"
    assert of(found, "schema").status == "ok"


async def test_pools_that_the_server_cannot_serve(database_url: str):
    for options, status in ((TESTING, "warning"), (PRODUCTION, "error")):
        found = of(await examine(database_url, replace(options, pool=PoolOptions(processes=8))), "connections")
        assert found.status == status
        assert "8 x 25 = 200, the server allows 197" in found.message
        size = int(re.search(r"POOL__SIZE=(\d+)", found.mend or "")[1])  # type: ignore[index]
        assert 0 < size < 10
    found = of(await examine(database_url, replace(TESTING, pool=PoolOptions(processes=1_000))), "connections")
    assert "PgBouncer" in (found.mend or "")


async def test_connections_of_others_and_a_limit_of_the_database_count(database_url: str):
    name = DatabaseUrl.parse(database_url).database
    pool = PoolOptions(size=100, max_overflow=0, read_size=95)
    others = [await asyncpg.connect(database_url) for _ in range(3)]
    try:
        found = of(await examine(database_url, replace(PRODUCTION, pool=pool)), "connections")
        assert (found.status, found.details["in_use_by_others"] >= 3) == ("warning", True)
        await execute(as_postgres(database_url), f"ALTER DATABASE {name} CONNECTION LIMIT 20")
        found = of(await examine(database_url, PRODUCTION), "connections")
        assert (found.status, f"database {name} may have 20" in found.message) == ("error", True)
    finally:
        for other in others:
            await other.close()


# Upkeep


async def test_dead_rows_and_tables_never_analyzed(database_url: str):
    await execute(
        database_url,
        "CREATE TABLE grown AS SELECT n FROM generate_series(1, 40000) n",
        "DELETE FROM grown WHERE n % 3 = 0",
        "SELECT pg_stat_force_next_flush()",
        "ALTER TABLE grown SET (autovacuum_enabled = false)",
    )
    found = of(await examine(database_url, TESTING), "vacuum")
    assert found.details["dead_rows"]["grown"] == 13_333
    assert "grown (13,333)" in found.message and "VACUUM (ANALYZE) grown;" in (found.mend or "")
    assert "grown is excluded from autovacuum" in found.message
    assert "never analyzed, so plans are guessed: grown" in found.message


async def test_indexes_that_are_broken_or_doubled(database_url: str):
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute('CREATE TABLE "Odd" (a int, b text)')
        await connection.execute('INSERT INTO "Odd" VALUES (1), (1)')
        with pytest.raises(asyncpg.UniqueViolationError):
            await connection.execute('CREATE UNIQUE INDEX CONCURRENTLY broken ON "Odd" (a)')
        for statement in (
            "CREATE INDEX one ON users (created_at)",
            "CREATE INDEX other ON users (created_at)",
            "CREATE INDEX not_the_same ON users (created_at DESC)",
            "CREATE INDEX nor_this ON users (created_at) WHERE is_active",
            "CREATE INDEX as_the_key ON users (username)",
        ):
            await connection.execute(statement)
        found = of(await examine(database_url, TESTING), "indexes")
        assert (found.status, found.details["invalid"]) == ("warning", ["broken"])
        assert found.details["doubled"] == [["one", "other"], ["uq_users_username", "as_the_key"]]
        for mend in (found.mend or "").splitlines():
            if mend.startswith("DROP"):
                await connection.execute(mend)
        await connection.execute('DELETE FROM "Odd"')
        await connection.execute("REINDEX INDEX CONCURRENTLY broken")
    finally:
        await connection.close()
    assert of(await examine(database_url, TESTING), "indexes").status == "ok"


async def test_indexes_that_nobody_uses(database_url: str, monkeypatch: pytest.MonkeyPatch):
    assert of(await examine(database_url, TESTING), "indexes").details["unused"] == {}
    monkeypatch.setattr(_upkeep, "_IDLE_BYTES", 0)
    monkeypatch.setattr(_upkeep, "_IDLE_DAYS", 0)
    found = of(await examine(database_url, TESTING), "indexes")
    assert (found.status, "ix_trading_sessions_user_id" in found.details["unused"]) == ("info", True)
    assert "uq_users_username" not in found.details["unused"], "a constraint is used by being there"


async def test_a_transaction_that_idles(database_url: str, monkeypatch: pytest.MonkeyPatch):
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT 1")
            assert of(await examine(database_url, TESTING), "transactions").status == "ok"
            monkeypatch.setattr(_running, "IDLE", 0.0)
            found = of(await examine(database_url, TESTING), "transactions")
        assert (found.status, "idle in its transaction" in found.message) == ("warning", True)
        assert found.mend == f"SELECT pg_terminate_backend({connection.get_server_pid()});"
    finally:
        await connection.close()


async def test_a_replication_slot_that_nobody_reads(database_url: str):
    admin = as_postgres(database_url)
    await execute(admin, "SELECT pg_create_physical_replication_slot('forgotten', true)")
    try:
        found = of(await examine(database_url, TESTING), "replication")
        assert (found.status, "nobody reads slot forgotten" in found.message) == ("warning", True)
        assert "SELECT pg_drop_replication_slot('forgotten');" in (found.mend or "")
    finally:
        await execute(admin, "SELECT pg_drop_replication_slot('forgotten')")
    assert of(await examine(database_url, TESTING), "replication").status == "ok"


async def test_a_standby_and_commits_that_wait_for_one(open_folder: Path):
    server = EmbeddedServer(open_folder / "standby")
    try:
        url = server.ensure()
        await execute(
            as_postgres(url),
            "ALTER SYSTEM SET synchronous_standby_names = 'elsewhere'",
            "SELECT pg_reload_conf()",
        )
        await wait_for(url, "current_setting('synchronous_standby_names') <> ''")
        waiting = of(await examine(url, TESTING), "replication")
        assert (waiting.status, "commits wait" in waiting.message) == ("error", True)
        server.stop()
        signal = server.directory / "data" / "standby.signal"
        signal.touch()
        owner = server.directory.joinpath("data").stat()
        shutil.chown(signal, owner.st_uid, owner.st_gid)
        found = await examine(server.ensure(), TESTING)
        standby = of(found, "replication")
        assert (standby.status, standby.details["role"]) == ("error", "standby")
        assert "every host of the cluster" in (standby.mend or "")
        assert "a standby" in of(found, "server").message
    finally:
        server.stop()


# What no test can make ill: the judges by themselves


def test_versions_are_judged():
    def judged(number: int, *, guarded: bool = True) -> str:
        return _server.judge_version(number, "x", guarded=guarded).status

    assert [judged(n) for n in (140_022, 150_000, 150_099, 180_000, 180_004, 190_001)] == [
        "error", "warning", "ok", "warning", "ok", "warning",
    ]  # fmt: skip
    assert judged(150_000, guarded=False) == "info"


def test_ages_are_judged():
    def judged(transactions: int, multixacts: int = 0) -> str:
        return _upkeep.judge_ages(transactions, multixacts, freeze_at=200_000_000).status

    assert [judged(n) for n in (0, 399_000_000, 401_000_000, 1_600_000_000)] == ["ok", "ok", "warning", "error"]
    assert judged(0, 401_000_000) == "warning"


def test_disks_are_judged():
    def judged(free: int, total: int) -> str:
        return _capacity.judge_disk(free, total, sizes="", details={}).status

    gigabyte = 1024**3
    assert judged(50 * gigabyte, 100 * gigabyte) == "ok"
    assert judged(9 * gigabyte, 100 * gigabyte) == "warning"
    assert judged(gigabyte, 100 * gigabyte) == "error"
    assert judged(gigabyte // 4, gigabyte) == "error"


@given(st.floats(0, 1e15))
def test_sizes_and_spans_are_short(value: float):
    assert re.fullmatch(r"\d{1,4}(\.\d)? (B|kB|MB|GB|TB|PB)", _finding.size_of(value))
    assert len(_finding.span_of(value)) <= 18


def test_the_worst_of_several_troubles_comes_first():
    notes = [_finding.Note("info", "a"), _finding.Note("error", "b", "mend"), _finding.Note("warning", "c", "mend")]
    found = _finding.summed("x", notes, fine="fine")
    assert (found.status, found.message, found.mend) == ("error", "b; c; a", "mend")


# The command


def test_the_command_prints_a_line_for_each_check_within_80_columns(
    database_url_sync: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("DATABASE__MONITORING__SLOW_QUERY")
    result = panda("doctor", url=database_url_sync)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line for line in lines if len(line) > 80 and " " in line[22:]] == [], "only what has no blank may be longer"
    checks = [line[9:22].strip() for line in lines if line and not line.startswith(" ")]
    assert checks[:-1] == ["settings", *CHECKS]
    assert lines[-1].startswith("fit for use, with doubts: ")
    assert lines[0] == "ok       settings     DATABASE__POSTGRES_URL from the environment"


def test_the_command_gives_one_json_object(database_url_sync: str):
    keys = _keys("k1")
    result = panda("doctor", "--json", "--processes", "2", url=database_url_sync, DATABASE__ENCRYPTION_KEYS=keys)
    found = answer(result)
    assert (result.returncode, found["exit_code"], found["environment"]) == (0, 0, "development")
    assert [item["check"] for item in found["findings"]] == ["settings", *CHECKS]
    assert sum(found["counts"].values()) == len(found["findings"])
    by_name = {item["check"]: item for item in found["findings"]}
    assert by_name["connections"]["details"]["wanted"] == 50
    assert by_name["encryption"]["details"]["active"] == "k1"
    assert by_name["settings"]["details"]["DATABASE__ENCRYPTION_KEYS"]["value"] == "***"
    assert keys.removeprefix("k1:") not in result.stdout


def test_exit_codes_tell_what_is_wrong(database_url_sync: str, empty_database: str):
    assert panda("doctor", "--strict", url=database_url_sync).returncode == 1, "the test server's fsync is off"
    assert panda("doctor", url=empty_database).returncode == 3
    assert panda("doctor", url=database_url_sync, ENVIRONMENT="production").returncode == 4
    down = panda("doctor", url=NOWHERE)
    assert (down.returncode, SECRET in down.stdout + down.stderr) == (4, False)
    assert "skipped  20 more      no connection could be made; see server" in down.stdout
    assert panda("doctor", url="mysql://localhost/x").returncode == 2
    assert panda("doctor", "--processes", "0", url=database_url_sync).returncode == 2


def test_the_command_starts_nothing(tmp_path: Path):
    result = panda("doctor")
    assert result.returncode == 4
    assert "no URL is set, so embedded: is taken" in result.stdout
    assert "the built-in server is not running\n         > panda up" in result.stdout


# With Debian's packages


@pytest.fixture(scope="module")
def tls_server(component) -> Iterator[DebianServer]:
    component(binaries() is not None, "apt-get install postgresql")
    with debian_server() as server:
        yield server


@pytest.mark.component
@pytest.mark.usefixtures("settled")
async def test_transport_and_who_answers(tls_server: DebianServer):
    url = tls_server.url(query=f"?sslmode=verify-full&sslrootcert={tls_server.authority}")
    found = await examine(url, PRODUCTION)
    tls = of(found, "tls")
    assert (tls.details["version"], tls.details["verified"]) == ("TLSv1.3", True)
    assert (tls.status, "certificate ends in" in tls.message) == ("warning", True), "the test's is made for a day"
    refused = of(await examine(tls_server.url(), replace(TESTING, tls=TlsOptions(mode="verify-full"))), "server")
    assert (refused.status, refused.details["error"]) == ("error", "TlsRefused")
    wrong = of(await examine(tls_server.url(password="wr0ng-s3cret"), TESTING), "server")
    assert (wrong.details["error"], "wr0ng" in str(wrong)) == ("AuthenticationFailed", False)


@pytest.mark.component
async def test_a_pooler_is_found_by_the_protocol(component, tls_server: DebianServer):
    component(pgbouncer() is not None, "apt-get install pgbouncer")
    with pooled(tls_server) as url:
        known = await examine(url, replace(TESTING, pgbouncer=True))
        assert of(known, "pgbouncer").status == "ok"
        assert of(known, "pgbouncer").details["transaction_mode"] is True
        assert of(known, "limits").status == "ok"
        unknown = await examine(url, TESTING)
        found = of(unknown, "pgbouncer")
        assert (found.status, found.mend) == ("error", "DATABASE__PGBOUNCER=true")
        assert "refuses our connections" in found.message and "statement_timeout" in found.message
        assert of(unknown, "limits").status == "skipped"
        assert of(unknown, "version").status in ("ok", "info")
    with pooled(tls_server, size=1) as url:
        narrow = of(await examine(url, TESTING), "pgbouncer")
        assert (narrow.status, narrow.details["transaction_mode"]) == ("error", False)
    direct = of(await examine(tls_server.url(), replace(TESTING, pgbouncer=True)), "pgbouncer")
    assert (direct.status, "DATABASE__PGBOUNCER=false" in (direct.mend or "")) == ("warning", True)


def test_every_table_of_the_models_is_among_those_whose_rights_are_looked_at():
    assert set(_access.TABLES) == set(Base.metadata.tables)
    assert set(_access._CHANGED) <= set(_access.TABLES)
