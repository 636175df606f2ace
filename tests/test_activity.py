"""What other sessions do, who blocks whom, ending them, and plans: looked at without touching anything."""

import asyncio
import contextlib
import dataclasses
import datetime as dt
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from core.config.options import MonitoringOptions, Timeouts
from core.database import activity as room
from core.database.activity import (
    Activity,
    LockWait,
    Plan,
    Server,
    Session,
    SlowQueryPlans,
    by_application,
    by_state,
    end_session,
    explain,
    find_target,
    lock_tree,
    rates,
    read_activity,
    running,
    slowest_statements,
)
from core.database.activity._plan import _explained
from core.database.connection import DatabaseManager
from core.database.engine import DatabaseUrl, EngineOptions, build_engine
from core.database.errors import (
    ConfigurationError,
    ConnectionLost,
    InvalidInput,
    LockTimeout,
    ManagerNotConnected,
    PermissionDenied,
    SessionMisuse,
    StatementFault,
    StatementTimeout,
    UnsupportedFeature,
)
from core.database.monitoring import QueryEvent, sql_tokens, without_literals
from tests.cluster.debian import DebianServer, binaries, debian_server

SECRET = "hunter2-geheim"


def test_every_public_name_is_exported_once_and_sorted() -> None:
    assert room.__all__ == sorted(room.__all__)
    assert all(hasattr(room, name) for name in room.__all__)


# Literals. In what follows Z and 7 stand in literals and comments only.

_HIDDEN = st.text(alphabet='Z7 \n\t\\"-/*;$.é', max_size=12)
_NAME = st.text(alphabet="abcdeén_", min_size=1, max_size=6)


def _dollar(tag: str, body: str) -> str:
    return f"${tag}${body.replace('$', '')}${tag}$"


_LITERALS = st.one_of(
    _HIDDEN.map(lambda body: "'" + body.replace("'", "''") + "'"),
    _HIDDEN.map(lambda body: "'it''s " + body + "''Z'"),
    _HIDDEN.map(lambda body: "E'" + body.replace("\\", "\\\\") + "\\'Z'"),
    _HIDDEN.map(lambda body: "e'" + body.replace("\\", "\\\\") + "''Z\\\\'"),
    _HIDDEN.map(lambda body: "U&'" + body.replace("\\", "") + "'"),
    _HIDDEN.map(lambda body: "B'" + body.replace("\\", "") + "'"),
    st.builds(_dollar, st.one_of(st.just(""), _NAME), _HIDDEN),
    st.from_regex(r"7{1,5}(\.7{0,3})?(e[+-]?7)?|\.7|0x7Z7|7_777", fullmatch=True),
)
_COMMENTS = st.one_of(
    _HIDDEN.map(lambda body: "--" + body.replace("\n", " ") + "\n"),
    _HIDDEN.map(lambda body: "/* Z" + body.replace("*", "").replace("/", "") + " /* nested Z */ Z' */"),
)
_SHOWN = st.one_of(
    _NAME.filter(lambda name: name.lower() not in ("e", "b", "u", "x", "n", "set", "alter", "to")),
    _NAME.map(lambda name: f'"{name} ""quoted"" \'"'),
    st.sampled_from(["SELECT", "a.b", "(", ")", ",", "::text", "=", "<@", "$1", "*", "||"]),
)
_STATEMENTS = st.lists(st.one_of(_LITERALS, _COMMENTS, _SHOWN), max_size=12).flatmap(
    lambda pieces: st.lists(st.sampled_from([" ", "\n", "\t "]), min_size=len(pieces), max_size=len(pieces)).map(
        lambda gaps: "".join(piece + gap for piece, gap in zip(pieces, gaps, strict=True))
    )
)


@given(_STATEMENTS, st.integers(0, 300))
def test_nothing_of_a_literal_or_comment_is_shown_however_the_text_is_cut(statement: str, cut: int) -> None:
    for seen in (statement, statement[:cut]):
        shown = without_literals(seen)
        assert "Z" not in shown
        assert "7" not in shown


@given(st.text(max_size=80) | _STATEMENTS)
def test_any_text_is_blanked_without_failing_and_holds_no_control_character(statement: str) -> None:
    assert all(char.isprintable() for char in without_literals(statement))
    assert "".join(token.text for token in sql_tokens(statement)) == statement


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("SELECT * FROM users WHERE name = 'x' AND id=42", "SELECT * FROM users WHERE name = ? AND id=?"),
        ("select t1.c2, $1, $tag$ x $tag$ from t1", "select t1.c2, $1, ? from t1"),
        ("values (1, 2, 3, 'x'),\n (4, 5, 6, 'y')", "values (?, …), (?, …)"),
        ("INSERT INTO t VALUES (-1.5e-7, +.5, 0xFF)", "INSERT INTO t VALUES (-?, +?, ?)"),
        ("SET app.token = hunter", "SET app.token = ?"),
        ("SET LOCAL app.token TO hunter, two", "SET LOCAL app.token TO ?"),
        ("BEGIN; SET x = hunter; SELECT y", "BEGIN; SET x = ?; SELECT y"),
        ("ALTER ROLE me SET app.token = hunter", "ALTER ROLE me SET app.token = ?"),
        ("UPDATE t SET a = b WHERE c", "UPDATE t SET a = b WHERE c"),
        ("CREATE USER me PASSWORD 'hunter'", "CREATE USER me PASSWORD ?"),
        (r"select 'it\'s hunter' from t", "select ? …"),
        ("select E'it\\'s' 'x', 'a''b'", "select ? ?, ?"),
        ('select "hunter', 'select "?"'),
        (f'select "{"h" * 80}"', 'select "?"'),
        ("select 1 -- hunter\n+ 2 /* hunter /* x */ y */", "select ? + ?"),
        ("select \x1b[31m a", "select ?[? a"),
        ("", ""),
    ],
)
def test_what_is_shown_of_a_statement(statement: str, shown: str) -> None:
    assert without_literals(statement) == shown


async def test_the_server_cuts_the_same_literals_as_we_do(manager: DatabaseManager) -> None:
    literals = {
        "'plain'": "plain",
        "'it''s'": "it's",
        "E'it\\'s'": "it's",
        "E'a\\\\'": "a\\",
        "e'q''\\''": "q''",
        "$$it's$$": "it's",
        "$a$ $$ $b$ $a$": " $$ $b$ ",
        "U&'d\\0061t'": "dat",
        "'two'\n'parts'": "twoparts",
        "'/* no -- comment'": "/* no -- comment",
    }
    statement = "SELECT " + ", /* ' /* \" */ $$ */ ".join(f"{literal} -- '\n" for literal in literals)
    async with manager.get_session() as session:
        row = (await (await session.connection()).exec_driver_sql(statement)).one()
    assert list(row) == list(literals.values())
    found = [token for token in sql_tokens(statement) if token.kind == "string"]
    assert len(found) == len(literals) + 1  # one is written in two parts
    assert all(token.whole for token in found)


# Locks, rates, sums: no database


def wait(pid: int, *blockers: int, seconds: float = 1.0) -> LockWait:
    return LockWait(pid=pid, blocked_by=blockers, target="table t", mode="ShareLock", seconds=seconds)


def shape(*waits: LockWait) -> list[tuple[int, int, int]]:
    return [(line.pid, line.depth, line.also_behind) for line in lock_tree(waits)]


def test_a_chain_is_a_branch_and_a_queue_is_flat() -> None:
    assert shape(wait(3, 2), wait(2, 1)) == [(1, 0, 0), (2, 1, 0), (3, 2, 0)]
    queue = [wait(pid, *range(1, pid), seconds=100 - pid) for pid in range(2, 60)]
    assert shape(*queue) == [(1, 0, 0), *((pid, 1, pid - 2) for pid in range(2, 60))]


def test_who_waits_for_several_stands_once_and_nearest_to_the_root() -> None:
    assert shape(wait(3, 1, 2), wait(2, 1), wait(4, 9)) == [(1, 0, 0), (2, 1, 0), (3, 1, 1), (9, 0, 0), (4, 1, 0)]


def test_a_circle_is_said_to_be_one_and_ends() -> None:
    lines = lock_tree([wait(1, 2), wait(2, 3, seconds=9.0), wait(3, 1), wait(4, 1)])
    assert [(line.pid, line.circular) for line in lines] == [(2, True), (1, False), (3, False), (4, False)]
    assert {line.pid: line.depth for line in lines} == {2: 0, 1: 1, 3: 2, 4: 2}


def test_a_prepared_transaction_and_a_vanished_blocker_are_no_trouble() -> None:
    assert shape(wait(5, 0)) == [(0, 0, 0), (5, 1, 0)]
    assert shape(wait(5)) == [(5, 0, 0)]
    assert not any(line.circular for line in lock_tree([wait(5)]))


@given(st.dictionaries(st.integers(1, 12), st.sets(st.integers(0, 14), max_size=4), max_size=12))
def test_every_session_of_any_tangle_stands_exactly_once_below_one_that_it_waits_for(edges: dict) -> None:
    waits = [wait(pid, *sorted(blockers - {pid})) for pid, blockers in edges.items()]
    lines = lock_tree(waits)
    involved = {pid for item in waits for pid in (item.pid, *item.blocked_by)}
    assert sorted(line.pid for line in lines) == sorted(involved)
    path: list[int] = []
    for line in lines:
        del path[line.depth :]
        if line.depth:
            assert line.wait is not None
            assert path[-1] in line.wait.blocked_by
        path.append(line.pid)


def seen(at: float, **counters: int) -> Activity:
    values: dict[str, Any] = {
        "commits": 0,
        "rollbacks": 0,
        "blocks_hit": 0,
        "blocks_read": 0,
        "deadlocks": 0,
        **counters,
    }
    server = Server(
        version="18.4",
        uptime=1.0,
        standby=False,
        lag=None,
        database="d",
        role="r",
        max_connections=9,
        size=None,
        **values,
    )
    moment = dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=at)
    return Activity(at=moment, server=server, sessions=(), waits=(), replicas=())


def test_rates_leave_the_looks_themselves_out() -> None:
    found = rates(
        seen(0, commits=100, blocks_hit=50), seen(2, commits=111, rollbacks=4, blocks_hit=140, blocks_read=10), own=1
    )
    assert (found.commits, found.rollbacks, found.hit_share) == (5.0, 2.0, 0.9)


def test_counters_that_were_reset_are_no_rate() -> None:
    found = rates(seen(0, commits=100), seen(2, commits=3))
    assert (found.commits, found.rollbacks) == (None, None)
    assert rates(seen(5), seen(5)).commits is None


def session(pid: int, state: str | None, *, application: str = "api", **values) -> Session:
    known: dict[str, Any] = {
        "kind": "client backend", "database": "d", "user": "u", "client": "local", "state_seconds": 1.0,
        "statement_seconds": 1.0, "transaction_seconds": None, "wait": None, "statement": None, "hidden": False,
    }  # fmt: skip
    return Session(pid=pid, state=state, application=application, **(known | values))


def test_connections_are_counted_by_application_and_state() -> None:
    found = (
        session(1, "active", transaction_seconds=3.0),
        session(2, "idle in transaction", transaction_seconds=9.0),
        session(3, "idle"),
        session(4, "idle in transaction (aborted)", application="job"),
        session(5, None, application="job", kind=None, hidden=True),
        session(6, "active", kind="autovacuum worker"),
        session(7, None, kind=None, user=None),
    )
    api, job = by_application(found)
    assert (api.application, api.connections, api.active, api.idle, api.idle_in_transaction) == ("api", 3, 1, 1, 1)
    assert api.oldest_transaction == 9.0
    assert (job.connections, job.idle_in_transaction, job.other, job.oldest_transaction) == (2, 1, 1, None)
    assert sum(by_state(found).values()) == 5
    assert by_state(found)["hidden"] == 1


def test_running_is_what_runs_or_holds_a_transaction_slowest_first() -> None:
    found = running(
        (
            session(1, "active", statement_seconds=2.0, transaction_seconds=50.0),
            session(2, "idle in transaction", statement_seconds=1.0, transaction_seconds=9.0),
            session(3, "idle"),
            session(4, "active", statement_seconds=20.0, kind="autovacuum worker"),
            session(5, "active", statement_seconds=30.0, kind="parallel worker"),
        )
    )
    assert [item.pid for item in found] == [4, 2, 1]


# A real server


@contextlib.asynccontextmanager
async def client(url: str, name: str) -> AsyncGenerator[asyncpg.Connection]:
    connection = await asyncpg.connect(url, server_settings={"application_name": name})
    try:
        yield connection
    finally:
        connection.terminate()


async def until(manager: DatabaseManager, wanted) -> Activity:
    deadline = time.monotonic() + 60
    while True:
        async with manager.get_session() as session:
            found = await read_activity(session)
        if wanted(found):
            return found
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.02)


def mine(activity: Activity) -> dict[str, Session]:
    return {item.application: item for item in activity.sessions if item.database == activity.server.database}


def waits(activity: Activity) -> list[LockWait]:
    """Those of this test's database: others of the same server are another worker's."""
    here = {item.pid for item in activity.sessions if item.database == activity.server.database}
    return [item for item in activity.waits if item.pid in here]


async def test_a_chain_of_three_is_seen_with_what_each_waits_for_and_without_literals(
    manager: DatabaseManager, database_url: str
) -> None:
    async with (
        client(database_url, "one") as one,
        client(database_url, "two") as two,
        client(database_url, "three") as three,
    ):
        await one.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1), (2)")
        await one.execute("BEGIN")
        await one.execute(f"UPDATE t SET v = '{SECRET}' WHERE id = 1")
        await two.execute("BEGIN")
        await two.execute("UPDATE t SET v = 'x' WHERE id = 2")
        tasks = [asyncio.ensure_future(two.execute(f"UPDATE t SET v = '{SECRET}' WHERE id = 1"))]
        await until(manager, lambda found: len(waits(found)) == 1)
        tasks.append(asyncio.ensure_future(three.execute("ALTER TABLE t ADD COLUMN w int")))
        found = await until(manager, lambda found: len(waits(found)) == 2)
        names = {item.pid: item.application for item in found.sessions}
        seen = {names[item.pid]: item for item in waits(found)}
        assert (seen["two"].target, seen["two"].mode) == ("row of t", "ShareLock")
        assert (seen["three"].target, seen["three"].mode) == ("table t", "AccessExclusiveLock")
        assert {names[pid] for pid in seen["two"].blocked_by} == {"one"}
        tree = [(names[line.pid], line.depth) for line in lock_tree(waits(found))]
        assert tree[:2] == [("one", 0), ("two", 1)]
        assert ("three", 1) in tree
        assert mine(found)["one"].state == "idle in transaction"
        assert mine(found)["one"].statement == "UPDATE t SET v = ? WHERE id = ?"
        assert mine(found)["two"].wait == "Lock transactionid"
        assert mine(found)["two"].statement_seconds is not None
        assert SECRET not in repr(found)
        async with manager.get_session() as session:
            silent = await read_activity(session, texts=False, size=False)
        assert all(item.statement is None for item in silent.sessions)
        assert silent.server.size is None
        assert found.server.size
        for connection in (one, two, three):
            connection.terminate()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_session_that_asks_is_not_among_those_it_sees(manager: DatabaseManager) -> None:
    async with manager.get_session() as session:
        own = await session.scalar(text("SELECT pg_backend_pid()"))
        found = await read_activity(session)
    assert own not in {item.pid for item in found.sessions}
    assert found.server.max_connections == 200
    assert not found.server.standby
    assert found.server.uptime > 0


async def test_advisory_locks_are_named_by_their_key(manager: DatabaseManager, database_url: str) -> None:
    async with client(database_url, "one") as one, client(database_url, "two") as two:
        await one.execute("SELECT pg_advisory_lock(8589934599), pg_advisory_lock(3, 4)")
        for key in ("8589934599", "3, 4"):
            task = asyncio.ensure_future(two.execute(f"SELECT pg_advisory_lock({key})"))
            found = await until(manager, lambda found: len(waits(found)) == 1)
            assert waits(found)[0].target == f"advisory lock {key}"
            await one.execute(f"SELECT pg_advisory_unlock({key})")
            await task


@pytest.fixture
async def onlooker(manager: DatabaseManager, database_url: str) -> AsyncIterator[str]:
    """A role without any rights, that the tests' role may become."""
    async with client(database_url, "admin") as admin:
        name = f"onlooker_{admin.get_server_pid()}"
        await admin.execute(f"CREATE ROLE {name}; GRANT {name} TO current_user")
        yield name
        await admin.execute(f"DROP ROLE {name}")


async def test_a_role_without_the_right_sees_names_and_locks_and_is_told_how_many_hide(
    manager: DatabaseManager, database_url: str, onlooker: str
) -> None:
    async with client(database_url, "one") as one, client(database_url, "two") as two:
        await one.execute("CREATE TABLE t (id int)")
        await one.execute("BEGIN; LOCK TABLE t")
        task = asyncio.ensure_future(two.execute("BEGIN; LOCK TABLE t"))
        await until(manager, lambda found: len(waits(found)) == 1)
        async with manager.get_session() as session:
            await session.execute(text(f"SET LOCAL ROLE {onlooker}"))
            found = await read_activity(session)
        assert found.server.role == onlooker
        assert found.hidden >= 2
        hidden = mine(found)["one"]
        assert (hidden.hidden, hidden.state, hidden.statement, hidden.transaction_seconds) == (True, None, None, None)
        assert hidden.is_client
        assert [item.target for item in waits(found)] == ["table t"]
        one.terminate()
        two.terminate()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_session_is_cancelled_or_terminated_only_where_that_makes_sense(
    manager: DatabaseManager, database_url: str
) -> None:
    async with client(database_url, "victim") as victim, manager.get_session() as session:
        pid = victim.get_server_pid()
        with pytest.raises(InvalidInput, match="--terminate"):
            await find_target(session, pid, "cancel")  # idle: its locks would stay
        sleep = asyncio.ensure_future(victim.execute("SELECT pg_sleep(60)"))
        await until(manager, lambda found: mine(found)["victim"].state == "active")
        target = await find_target(session, pid, "cancel")
        stranger = dataclasses.replace(target, began=dt.datetime.now(dt.UTC))
        assert await end_session(session, stranger, "cancel") is False, "another session with its number"
        assert await end_session(session, target, "cancel") is True
        with pytest.raises(asyncpg.QueryCanceledError):
            await sleep
        assert await end_session(session, await find_target(session, pid, "terminate"), "terminate") is True
        assert await end_session(session, target, "terminate") is False
        with pytest.raises(InvalidInput, match="no session"):
            await find_target(session, pid, "terminate")


async def test_own_and_server_processes_are_not_ended(manager: DatabaseManager) -> None:
    async with manager.get_session() as session:
        own = await session.scalar(text("SELECT pg_backend_pid()"))
        with pytest.raises(InvalidInput, match="that asks"):
            await find_target(session, own, "terminate")
        # A client's that is just connecting has no database either.
        query = text("SELECT pid FROM pg_stat_activity WHERE datname IS NULL AND backend_type <> 'client backend'")
        for pid in (await session.scalars(query)).all():
            with pytest.raises(InvalidInput, match="process of the server"):
                await find_target(session, pid, "terminate")


async def test_another_role_may_not_end_it(manager: DatabaseManager, database_url: str, onlooker: str) -> None:
    async with client(database_url, "victim") as victim, manager.get_session() as session:
        await session.execute(text(f"SET LOCAL ROLE {onlooker}"))
        target = await find_target(session, victim.get_server_pid(), "terminate")
        assert target.state is None
        with pytest.raises(PermissionDenied):
            await end_session(session, target, "terminate")


# Plans


async def prepare_tables(manager: DatabaseManager) -> None:
    statements = (
        "CREATE TABLE big (id bigint PRIMARY KEY, name text NOT NULL, x int NOT NULL)",
        "INSERT INTO big SELECT g, 'n' || g, g % 100 FROM generate_series(1, 30000) g",
        "CREATE TABLE parts (k int NOT NULL, t timestamptz NOT NULL) PARTITION BY RANGE (t)",
        *(
            f"CREATE TABLE parts_{month} PARTITION OF parts FOR VALUES FROM ('2026-0{month}-01') TO ('2026-0{month + 1}-01')"
            for month in range(1, 7)
        ),
        "CREATE SEQUENCE counted",
        "CREATE FUNCTION count_call() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT nextval(''counted'')::int'",
        "ANALYZE big",
    )
    async with manager.transaction() as session:
        connection = await session.connection()
        for statement in statements:
            await connection.exec_driver_sql(statement)


@pytest.fixture
async def tables(manager: DatabaseManager) -> DatabaseManager:
    await prepare_tables(manager)
    return manager


@pytest.fixture(scope="module")
def debian(component) -> Iterator[DebianServer]:
    component(binaries() is not None, "apt-get install postgresql")
    with debian_server(tls=False) as server:
        yield server


def kinds(plan: Plan) -> dict[str, str]:
    return {item.kind: item.text for item in plan.observations}


async def check_plans(manager: DatabaseManager) -> None:
    """The same on every version of the server."""
    plan = await explain(manager.engine, "SELECT * FROM parts WHERE t >= $1 AND k = $2")
    touched = [node.relation for node in plan.root.walk() if node.relation]
    assert touched == [f"parts_{month}" for month in range(1, 7)], "NULL must not prune the plan"
    assert "when it runs, those that cannot match" in kinds(plan)["partitions"]
    plan = await explain(manager.engine, "SELECT * FROM parts WHERE k = $1 -- all of them\n ;")
    assert "may go to all 6 partitions of parts" in kinds(plan)["partitions"]
    plan = await explain(manager.engine, "SELECT * FROM big WHERE id = $1")
    assert plan.root.title == "Index Scan using big_pkey on big"
    assert plan.root.conditions == (("Index Cond", "(big.id = $1)"),)
    assert plan.observations == ()
    plan = await explain(manager.engine, "INSERT INTO big VALUES ($1, $2, count_call()) ON CONFLICT (id) DO NOTHING")
    assert plan.root.title == "Insert on big"
    for statement in ("DELETE FROM big", "UPDATE big SET x = count_call()", "SELECT count_call(), pg_sleep(120)",
                      "WITH gone AS (DELETE FROM big RETURNING *) SELECT * FROM gone"):  # fmt: skip
        started = time.monotonic()
        await explain(manager.engine, statement)
        assert time.monotonic() - started < 60
    async with manager.get_session() as session:
        assert await session.scalar(text("SELECT count(*) FROM big WHERE x < 100")) == 30_000
        assert await session.scalar(text("SELECT is_called FROM counted")) is False
        assert await session.scalar(text("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'panda%'")) == 0


async def test_a_plan_is_generic_and_nothing_is_executed(tables: DatabaseManager) -> None:
    await check_plans(tables)


@pytest.mark.component
async def test_a_plan_is_the_same_on_an_older_server(debian: DebianServer) -> None:
    url = debian.url(query="?sslmode=disable")
    async with DatabaseManager(url, "testing", "migrations_only", verify_migrations=False) as manager:
        await prepare_tables(manager)
        await check_plans(manager)
        with pytest.raises(UnsupportedFeature, match="not installed") as caught:
            await slowest_statements(manager.engine)
        assert "CREATE EXTENSION" in str(caught.value)
        async with manager.get_session() as session:
            assert (await read_activity(session)).server.max_connections == 60


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("", "no statement"),
        (" -- nothing\n", "no statement"),
        ("SELECT 1; DROP TABLE users", "several"),
        ("SELECT 1;; SELECT 2", "several"),
        ("EXPLAIN SELECT 1", "EXPLAIN already"),
        ("COPY users TO STDOUT", "COPY has no plan"),
        ("DROP TABLE users", "DROP has no plan"),
        ("VACUUM", "VACUUM has no plan"),
        ("'x'", "does not begin like"),
        ("SELECT * FROM users WHERE id = :user_id", ":user_id is a placeholder"),
        ("SELECT * FROM users WHERE id = %s", "%s is a placeholder"),
        ("SELECT * FROM users WHERE id = %(id)s", "%(id)s is a placeholder"),
        ("SELECT * FROM users WHERE id = ?", "? is a placeholder"),
        ("SELECT * FRM users", "near FRM"),
        ("SELECT nothing_such FROM users", "nothing_such"),
        ("SELECT ';', $$;$$ FROM (", "its end"),
    ],
)
async def test_what_cannot_be_planned_is_refused_in_words(manager: DatabaseManager, statement: str, said: str) -> None:
    with pytest.raises(StatementFault) as caught:
        await explain(manager.engine, statement)
    assert said in str(caught.value)


async def test_a_semicolon_in_a_literal_or_comment_is_no_second_statement(manager: DatabaseManager) -> None:
    plan = await explain(
        manager.engine, "/* ; */ SELECT ';', E'\\';', $a$;$a$, \";\" FROM (SELECT 1 AS \";\") s -- ;\n; ;"
    )
    assert plan.root.kind == "Result"


@pytest.mark.parametrize(
    "statement", ["SELECT 1; DROP TABLE big", "SELECT 1; COMMIT; DROP TABLE big", "DROP TABLE big"]
)
async def test_the_server_itself_refuses_a_second_statement(tables: DatabaseManager, statement: str) -> None:
    async with tables.engine.connect() as connection:
        with pytest.raises(StatementFault):
            await _explained(connection, statement, 5.0)
    async with tables.get_session() as session:
        assert await session.scalar(text("SELECT count(*) FROM big")) == 30_000


async def test_select_into_creates_nothing(tables: DatabaseManager) -> None:
    with contextlib.suppress(StatementFault):
        await explain(tables.engine, "SELECT * INTO copied FROM big")
    async with tables.get_session() as session:
        assert await session.scalar(text("SELECT to_regclass('copied')")) is None


async def test_a_sessions_transaction_goes_on_after_a_plan_and_after_a_fault(tables: DatabaseManager) -> None:
    async with tables.transaction() as session:
        await session.execute(text("CREATE TEMP TABLE own (id int) ON COMMIT DROP"))
        assert (await explain(session, "SELECT * FROM own")).root.relation == "own"
        for statement in ("SELECT * FRM own", "SELECT * FROM own WHERE id = nothing"):
            with pytest.raises(StatementFault):
                await explain(session, statement)
        await explain(session, "SELECT * FROM own")
        await session.execute(text("INSERT INTO big VALUES (0, 'kept', 1)"))  # it is not read-only for good
        assert await session.scalar(text("SHOW plan_cache_mode")) == "auto"
    async with tables.get_session(read_only=True) as session:
        assert await session.scalar(text("SELECT name FROM big WHERE id = 0")) == "kept"
        with pytest.raises(SessionMisuse):
            await explain(session, "SELECT 1")


async def test_a_locked_table_ends_the_wait_in_time_and_leaves_nothing_behind(
    tables: DatabaseManager, database_url: str
) -> None:
    async with client(database_url, "locker") as locker, tables.get_session() as session:
        await explain(session, "SELECT 1")
        await locker.execute("BEGIN; LOCK TABLE big")
        started = time.monotonic()
        with pytest.raises((LockTimeout, StatementTimeout)):
            await explain(session, "SELECT * FROM big", timeout=0.3)
        assert time.monotonic() - started < 4.5  # where nothing else is said it is five
        await locker.execute("ROLLBACK")
        await explain(session, "SELECT * FROM big")


async def test_a_fault_after_the_statement_was_prepared_leaves_no_name_behind(tables: DatabaseManager) -> None:
    async with tables.transaction() as session:
        await session.execute(text("CREATE DOMAIN given AS int NOT NULL"))
    async with tables.transaction() as session:
        for source in (tables.engine, session, tables.engine, session):
            with pytest.raises(StatementFault, match="refuses NULL"):
                await explain(source, "SELECT $1::given")
            assert (await explain(source, "SELECT 1")).root.kind == "Result"
        assert await session.scalar(text("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'panda%'")) == 0


async def test_the_time_limit_is_checked_and_a_lost_connection_is_told(
    tables: DatabaseManager, database_url: str
) -> None:
    with pytest.raises(ConfigurationError):
        await explain(tables.engine, "SELECT 1", timeout=0)
    async with client(database_url, "locker") as locker:
        await locker.execute("BEGIN; LOCK TABLE big")
        task = asyncio.ensure_future(explain(tables.engine, "SELECT * FROM big"))
        found = await until(tables, lambda found: len(waits(found)) == 1)
        await locker.fetch("SELECT pg_terminate_backend($1)", waits(found)[0].pid)
        with pytest.raises(ConnectionLost):
            await task


async def test_a_whole_read_is_told_with_the_column_that_an_index_may_begin_with(tables: DatabaseManager) -> None:
    scan = kinds(await explain(tables.engine, "SELECT * FROM big WHERE name = $1"))["sequential scan"]
    assert "reads all of big, about 30,000 rows" in scan
    assert "No index begins with name; one may help." in scan
    scan = kinds(await explain(tables.engine, "SELECT * FROM big AS b WHERE lower(b.name) = $1"))["sequential scan"]
    assert "index on that expression" in scan
    assert (
        "nothing in the statement restricts it" in kinds(await explain(tables.engine, "TABLE big"))["sequential scan"]
    )
    scan = kinds(await explain(tables.engine, "SELECT * FROM big WHERE x > $1"))["sequential scan"]
    assert "hardly be faster" in scan
    async with tables.transaction() as session:
        await session.execute(text("CREATE INDEX big_x ON big (x, name)"))
    assert "sequential scan" not in kinds(await explain(tables.engine, "SELECT * FROM big WHERE x = $1"))


async def test_a_large_sort_and_a_nested_loop_are_told(tables: DatabaseManager) -> None:
    found = kinds(await explain(tables.engine, "SELECT * FROM big ORDER BY x, name LIMIT 3"))
    assert "Sort puts about 30,000 rows in order of big.x, big.name" in found["sort"]
    assert "An index on big in that order may spare it." in found["sort"]
    found = kinds(await explain(tables.engine, "SELECT * FROM big a JOIN big b ON a.x < b.x + $1 AND a.name <> b.name"))
    assert "about 30,000 times" in found["nested loop"]


async def test_statistics_that_were_never_made_are_told(tables: DatabaseManager) -> None:
    async with tables.transaction() as session:
        await session.execute(text("CREATE TABLE fresh AS SELECT g AS id FROM generate_series(1, 500) g"))
    plan = await explain(tables.engine, "SELECT * FROM fresh WHERE id = $1")
    assert "fresh was never analyzed" in kinds(plan)["no statistics"]
    async with tables.transaction() as session:
        await session.execute(text("ANALYZE fresh"))
    assert (await explain(tables.engine, "SELECT * FROM fresh WHERE id = $1")).observations == ()


async def test_the_tree_fits_its_width_and_shows_two_of_many_partitions(tables: DatabaseManager) -> None:
    statement = "SELECT * FROM parts WHERE t >= $1 AND k = ANY ($2) AND (k < $3 OR k > $4 OR t < $5) ORDER BY k"
    plan = await explain(tables.engine, statement)
    for width in (60, 80, 120):
        shown = plan.text(width)
        assert max(map(len, shown.splitlines())) <= width
        assert shown.count("Seq Scan on parts_") == 2
        assert "4 more Seq Scans" in shown
    assert plan.source["Plan"]["Node Type"] == "Sort"
    assert isinstance(plan.source["Plan"]["Total Cost"], float)


async def test_slowest_statements_say_what_is_missing(manager: DatabaseManager) -> None:
    with pytest.raises(UnsupportedFeature, match="pg_stat_statements is not installed"):
        await slowest_statements(manager.engine, 3)
    async with manager.get_session() as session:
        assert isinstance(session, AsyncSession)
        with pytest.raises(UnsupportedFeature):
            await slowest_statements(session)


async def test_the_projects_own_limits_do_not_hinder_a_look(database_url: str) -> None:
    limits = Timeouts(statement=0.5, lock=0.2)
    async with DatabaseManager(database_url, "testing", "migrations_only", timeouts=limits) as manager:
        async with manager.get_session(read_only=True) as session:
            assert (await read_activity(session)).server.database in database_url


async def plans_logged(caplog: pytest.LogCaptureFixture, count: int) -> list[Any]:
    deadline = time.monotonic() + 60
    while True:
        found = [record for record in caplog.records if record.getMessage().startswith("slow query plan")]
        if len(found) >= count or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.02)


async def test_a_slow_statement_is_logged_with_its_plan_once_and_without_literals(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    plans = SlowQueryPlans()
    options = MonitoringOptions(slow_query=0.05)
    async with DatabaseManager(
        database_url, "testing", "migrations_only", monitoring=options, hooks=[plans]
    ) as manager:
        plans.start(manager.engine)
        slow = "SELECT pg_sleep(0.1) FROM pg_class WHERE relname = 'pg_class' AND relname <> '{}'"
        for _ in range(2):
            async with manager.get_session() as session:
                await session.execute(text(slow.format(SECRET)))
        async with manager.get_session(read_only=True) as session:
            await session.execute(text("SELECT pg_sleep(0.1) AS other"))
        first, second = await plans_logged(caplog, 2)
        plans.stop()
    assert "Index Only Scan using pg_class_relname_nsp_index on pg_class" in first.plan
    assert "pg_class.relname = ?::name" in first.plan
    assert first.statement == "SELECT pg_sleep(?) FROM pg_class WHERE relname = ? AND relname <> ?"
    assert "AS other" in second.statement
    everything = " ".join(str(vars(record)) for record in caplog.records if "plan" in record.getMessage())
    assert SECRET not in everything


async def test_a_hook_that_was_not_started_or_whose_loop_is_gone_does_nothing() -> None:
    plans = SlowQueryPlans()
    event = QueryEvent(
        statement="SELECT 1", seconds=9.0, error=None, sqlstate=None, read_only=False, failure=None, slow=True
    )
    plans(event)
    engine = build_engine(DatabaseUrl.parse("postgresql://panda@127.0.0.1:1/panda"), EngineOptions())

    async def start() -> None:
        plans.start(engine)

    await asyncio.to_thread(asyncio.run, start())
    await asyncio.to_thread(plans, event)
    with pytest.raises(ManagerNotConnected):
        await asyncio.to_thread(plans.start, engine)
