"""A request is a transaction, errors are HTTP, probes tell the truth, and SIGTERM loses nothing."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, cast

import asyncpg
import httpx
import pytest
from fastapi import BackgroundTasks, FastAPI, HTTPException
from fastapi.responses import JSONResponse
from sqlalchemy import select, text
from starlette.applications import Starlette
from starlette.routing import Mount

from core.config.options import MonitoringOptions, PoolOptions, Timeouts
from core.database import errors
from core.database.connection import DatabaseManager
from core.database.models import User
from core.database.monitoring import QueryMonitor
from core.fastapi import ClientSource, Manager, ReadSession, WriteSession, answer_problem, install, problem_of
from core.probes import Probes
from core.trading import accounts, sessions
from core.trading.strategies import StrategyNotFound, VersionConflict
from tests.cluster.proxy import fault_proxy
from tests.waiting import paced, wait_for_session

SERVED = """
import asyncio, os
from fastapi import FastAPI
from core.database.connection import DatabaseManager
from core.database.models import User
from core.fastapi import WriteSession, install

app = FastAPI()
install(app, DatabaseManager(os.environ["TEST_URL"], "testing", "migrations_only", application_name="served"), drain=float(os.environ["DRAIN"]))

@app.post("/users/{name}")
async def add(name: str, session: WriteSession, seconds: float = 0.0) -> str:
    session.add(User(username=name, hashed_password="hash"))
    await session.flush()
    await asyncio.sleep(seconds)
    return name
"""


def users() -> FastAPI:
    """An application with one endpoint for each way to end a request."""
    app = FastAPI()

    @app.post("/users/{name}")
    async def add(name: str, session: WriteSession) -> str:
        session.add(User(username=name, hashed_password="hash"))
        await session.flush()
        return name

    @app.post("/refused/{name}")
    async def refused(name: str, session: WriteSession) -> None:
        session.add(User(username=name, hashed_password="hash"))
        await session.flush()
        raise HTTPException(403)

    @app.post("/returned/{name}")
    async def returned(name: str, session: WriteSession) -> JSONResponse:
        session.add(User(username=name, hashed_password="hash"))
        return JSONResponse({}, 403)

    @app.post("/unfit/{name}")
    async def unfit(name: str, session: WriteSession) -> int:
        session.add(User(username=name, hashed_password="hash"))
        return "no number"  # type: ignore[return-value]

    @app.post("/later/{name}")
    async def later(name: str, work: BackgroundTasks, manager: Manager) -> None:
        async def write() -> None:
            async with manager.transaction() as session:
                session.add(User(username=name, hashed_password="hash"))

        work.add_task(write)

    @app.post("/login/{name}")
    async def login(name: str, password: str, manager: Manager) -> str:
        delays = accounts.LoginDelays(free=1, first=90, patience=0)
        return (await accounts.authenticate(manager, name, password, delays=delays)).username

    @app.get("/users")
    async def names(session: ReadSession) -> list[str]:
        return list(await session.scalars(select(User.username)))

    @app.get("/write")
    async def write(session: ReadSession) -> None:
        await session.execute(text("DELETE FROM users"))

    return app


@contextlib.asynccontextmanager
async def served(app: FastAPI) -> AsyncGenerator[httpx.AsyncClient]:
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            yield client


def manager_at(url: str, **options: object) -> DatabaseManager:
    return DatabaseManager(url, "testing", "migrations_only", **options)  # type: ignore[arg-type]


async def stored(url: str) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        return [row[0] for row in await connection.fetch("SELECT username FROM users ORDER BY 1")]
    finally:
        await connection.close()


async def test_what_a_client_sees_as_done_is_stored_before_the_response_begins(database_url: str) -> None:
    app = users()
    install(app, manager_at(database_url))
    seen: dict[str, list[str]] = {}

    async def send(message: object) -> None:
        seen[message["type"]] = await stored(database_url)  # type: ignore[index]

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/users/trader",
        "raw_path": b"/users/trader",
        "query_string": b"",
        "headers": [],
        "root_path": "",
        "http_version": "1.1",
        "scheme": "http",
        "server": ("test", 80),
    }
    async with app.router.lifespan_context(app):
        await app(scope, receive, send)  # type: ignore[arg-type]
    assert seen["http.response.start"] == ["trader"]


@pytest.mark.parametrize(
    ("path", "status", "kept"),
    [("users", 200, True), ("refused", 403, False), ("returned", 403, True), ("later", 200, True)],
)
async def test_a_request_is_a_transaction(database_url: str, path: str, status: int, kept: bool) -> None:
    app = users()
    install(app, manager_at(database_url))
    async with served(app) as client:
        assert (await client.post(f"/{path}/trader")).status_code == status
    assert await stored(database_url) == (["trader"] if kept else [])


async def test_a_result_that_cannot_be_sent_is_not_stored(database_url: str) -> None:
    app = users()
    install(app, manager_at(database_url))
    async with served(app) as client:
        with pytest.raises(Exception, match="response"):
            await client.post("/unfit/trader")
    assert await stored(database_url) == []


async def test_a_commit_that_fails_is_an_error_to_the_client(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("CREATE TABLE deferred (a int, UNIQUE (a) DEFERRABLE INITIALLY DEFERRED)")
    await connection.close()
    app = FastAPI()
    install(app, manager_at(database_url))

    @app.post("/twice")
    async def twice(session: WriteSession) -> str:
        await session.execute(text("INSERT INTO deferred VALUES (1), (1)"))
        return "done"

    async with served(app) as client:
        response = await client.post("/twice")
    assert response.status_code == 409
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == "urn:alpha-panda:unique-violation"
    assert response.json()["constraint"] == "deferred_a_key"


@pytest.mark.builtin_server(reason="the proxy must see the COMMIT that it loses, and TLS hides it")
async def test_a_lost_commit_is_neither_done_nor_to_be_sent_again(database_url: str) -> None:
    async with fault_proxy(database_url) as proxy:
        app = users()
        install(app, manager_at(proxy.url))
        async with served(app) as client:
            proxy.lose_commit_reply = True
            response = await client.post("/users/trader")
            proxy.lose_commit_reply = False
    assert response.status_code == 500
    assert response.json()["type"] == "urn:alpha-panda:commit-outcome-unknown"
    assert "before sending it again" in response.json()["detail"]
    assert "retry-after" not in response.headers
    assert await stored(database_url) == ["trader"]


async def test_a_name_that_is_taken_is_a_conflict_and_a_bad_one_is_unprocessable(database_url: str) -> None:
    app = users()
    install(app, manager_at(database_url))
    async with served(app) as client:
        await client.post("/users/trader")
        taken = await client.post("/users/trader")
        bad = await client.post("/users/%00")
    assert taken.status_code == 409
    assert taken.json()["constraint"] == "uq_users_username"
    assert bad.status_code == 422
    assert bad.json()["type"] == "urn:alpha-panda:invalid-input"


async def test_a_refused_login_is_unauthorized_and_one_too_many_is_told_when_to_come_back(database_url: str) -> None:
    app = users()
    manager = manager_at(database_url)
    install(app, manager)
    async with served(app) as client:
        async with manager.transaction() as session:
            await accounts.register(session, "trader", "correct horse")
        assert (await client.post("/login/TRADER?password=correct horse")).json() == "trader"
        refused = [await client.post(f"/login/{name}?password=wrong one") for name in ("trader", "nobody", "trader")]
        delayed = await client.post("/login/trader?password=correct horse")
    assert {(each.status_code, each.headers["www-authenticate"], each.text) for each in refused} == {
        (401, "Bearer", refused[0].text)
    }
    assert refused[0].json()["type"] == "urn:alpha-panda:invalid-credentials"
    assert (delayed.status_code, delayed.json()["type"]) == (429, "urn:alpha-panda:too-many-attempts")
    assert 80 < int(delayed.headers["retry-after"]) <= 90
    assert "www-authenticate" not in delayed.headers


@pytest.mark.parametrize(
    ("host", "source"), [("192.0.2.7", "192.0.2.7"), ("2001:db8::5", "2001:db8::/64"), ("", None), (None, None)]
)
async def test_a_login_is_told_where_the_request_comes_from(host: str | None, source: str | None) -> None:
    app = FastAPI()

    @app.get("/source")
    async def tell(source: ClientSource) -> str | None:
        return source

    transport = httpx.ASGITransport(app, client=cast("Any", None if host is None else (host, 1)))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/source")).json() == source


async def test_a_read_session_refuses_to_write_and_gives_its_connection_back(database_url: str) -> None:
    manager = manager_at(database_url, pool=PoolOptions(size=1, max_overflow=0, read_size=1, wait=0.2))
    app = users()
    install(app, manager)
    async with served(app) as client:
        await client.post("/users/trader")
        refused = await client.get("/write")
        answers = [(await client.get("/users")).json() for _ in range(3)]
    assert refused.status_code == 500
    assert refused.json()["type"] == "urn:alpha-panda:read-only-violation"
    assert answers == [["trader"]] * 3


async def test_no_free_connection_is_503_with_a_time_to_come_back(database_url: str) -> None:
    manager = manager_at(database_url, pool=PoolOptions(size=1, max_overflow=0, read_size=1, wait=0.05))
    app = users()
    install(app, manager)
    async with served(app) as client, manager.transaction() as session:
        await session.execute(text("SELECT 1"))
        response = await client.post("/users/trader")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["type"] == "urn:alpha-panda:pool-exhausted"


async def test_a_mounted_application_has_the_sessions_too(database_url: str) -> None:
    outer, inner = FastAPI(), users()
    inner.add_exception_handler(errors.PandaDatabaseError, answer_problem)  # type: ignore[arg-type]
    outer.mount("/inner", inner)
    install(outer, manager_at(database_url))
    async with served(outer) as client:
        assert (await client.post("/inner/users/trader")).json() == "trader"
        assert (await client.post("/inner/users/trader")).status_code == 409


async def test_an_application_without_a_database_says_so() -> None:
    async with served(users()) as client:
        with pytest.raises(errors.ConfigurationError, match=r"Call core\.fastapi\.install"):
            await client.get("/users")


async def test_before_the_start_a_request_is_503(database_url: str) -> None:
    app = users()
    install(app, manager_at(database_url))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/users")).status_code == 503
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/livez")).status_code == 200


async def test_the_applications_own_lifespan_runs_inside_and_may_use_the_manager(database_url: str) -> None:
    manager = manager_at(database_url)
    seen: list[str] = []

    @contextlib.asynccontextmanager
    async def own(app: FastAPI) -> AsyncGenerator[dict[str, int]]:
        seen.append((await manager.health_check())["status"])
        yield {"number": 7}
        seen.append((await manager.health_check())["status"])

    app = FastAPI(lifespan=own)
    install(app, manager)
    async with app.router.lifespan_context(app) as state:
        assert state == {"number": 7}
    assert seen == ["healthy", "healthy"]
    assert (await manager.health_check())["status"] == "unhealthy"


async def test_a_manager_that_was_connected_stays_its_owners(manager: DatabaseManager) -> None:
    app = users()
    install(app, manager)
    async with served(app) as client:
        assert (await client.get("/users")).json() == []
    assert (await manager.health_check())["status"] == "healthy"


async def test_the_database_is_closed_after_the_requests_under_way(database_url: str) -> None:
    app = FastAPI()
    install(app, manager_at(database_url), grace=2.0)
    begun = asyncio.Event()

    @app.post("/slow/{seconds}")
    async def slow(seconds: float, session: WriteSession) -> None:
        session.add(User(username=f"slow-{seconds}", hashed_password="hash"))
        await session.flush()
        begun.set()
        await asyncio.sleep(seconds)

    async with served(app) as client:
        quick = asyncio.create_task(client.post("/slow/0.3"))
        await begun.wait()
        begun.clear()
        endless = asyncio.create_task(client.post("/slow/60"))
        await begun.wait()
        left = time.monotonic()
    assert quick.done()
    assert quick.result().status_code == 200
    assert 1.9 < time.monotonic() - left < 8  # where nothing else is said it is ten
    assert endless.cancelled()
    assert await stored(database_url) == ["slow-0.3"]


async def test_an_application_can_be_started_again(database_url: str) -> None:
    app = users()
    install(app, manager_at(database_url))
    for _ in range(2):
        async with served(app) as client:
            assert (await client.get("/readyz")).status_code == 200
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


async def test_a_start_without_a_database_fails_in_time() -> None:
    app = users()
    install(app, manager_at("postgresql://panda@127.0.0.1:1/panda"), wait=1.0)
    started = time.monotonic()
    with pytest.raises(errors.HostUnreachable, match="refused"):
        async with app.router.lifespan_context(app):
            pass
    assert time.monotonic() - started < 20


def tree(cls: type[errors.PandaDatabaseError]) -> list[type[errors.PandaDatabaseError]]:
    return [cls, *(deeper for child in cls.__subclasses__() for deeper in tree(child))]


STATUS = {
    "UniqueViolation": 409,
    "ForeignKeyViolation": 409,
    "ExclusionViolation": 409,
    "CheckViolation": 422,
    "NotNullViolation": 422,
    "InvalidInput": 422,
    "PartitionMissing": 500,
    "PoolExhausted": 503,
    "HostUnreachable": 503,
    "AuthenticationFailed": 503,
    "ConnectionLost": 503,
    "TooManyConnections": 503,
    "PrimaryDemoted": 503,
    "ManagerNotConnected": 503,
    "DiskFull": 503,
    "LockTimeout": 503,
    "SerializationFailure": 503,
    "DeadlockDetected": 503,
    "StalePlan": 503,
    "StatementTimeout": 504,
    "TransactionTimeout": 504,
    "IdleInTransactionTimeout": 500,
    "CommitOutcomeUnknown": 500,
    "TransactionAborted": 500,
    "SessionShared": 500,
    "InvalidUrl": 500,
    "InvalidKey": 500,
    "EnvelopeTampered": 500,
    "PermissionDenied": 500,
    "StatementFault": 500,
    "SchemaBehind": 500,
}


@pytest.mark.parametrize("name", STATUS)
def test_each_error_has_its_status(name: str) -> None:
    assert problem_of(getattr(errors, name)("words")).status == STATUS[name]


def test_errors_of_the_rooms_above_say_by_their_class_what_they_are() -> None:
    assert problem_of(StrategyNotFound("there is no strategy 'x'")).status == 404
    assert problem_of(VersionConflict("strategy 'x' is at version 3, not 2")).status == 409


async def test_a_trading_session_that_is_over_is_unauthorized(database_url: str) -> None:
    app = FastAPI()
    install(app, manager_at(database_url))

    @app.get("/me")
    async def me(session: ReadSession, bearer: str) -> str:
        return (await sessions.resume(session, bearer)).session_id

    async with served(app) as client:
        answer = await client.get("/me", params={"bearer": "panda_session_" + "x" * 43})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.json()["type"] == "urn:alpha-panda:session-not-found" and "x" * 43 not in answer.text
    assert problem_of(sessions.SessionRevoked("over", reason="replaced")).status == 401
    assert problem_of(sessions.UserDisabled("disabled")).status == 403


def test_what_may_be_run_again_as_it_is_says_when_and_what_may_not_does_not() -> None:
    for cls in tree(errors.PandaDatabaseError):
        problem = problem_of(cls("words"))
        assert (problem.retry_after is not None) == (problem.status in (429, 503)), cls
        assert not cls.retryable or problem.status == 503, cls


def test_a_client_never_reads_of_the_servers_insides() -> None:
    for cls in tree(errors.PandaDatabaseError):
        error = cls("db7.internal:5432 refused user panda", hint="set DATABASE__URL", constraint="c", column="d")
        problem = problem_of(error)
        told = str(problem.to_json())
        assert "DATABASE__" not in told, cls
        assert problem.status < 500 or ("db7" not in told and problem.constraint is None), cls


def probes_client(probes: Probes) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(probes), base_url="http://test")


async def test_probes_tell_a_database_that_is_down_from_a_process_that_is(database_url: str) -> None:
    async with fault_proxy(database_url) as proxy:
        async with manager_at(proxy.url) as manager, probes_client(Probes(manager, keep=0.0)) as client:
            async with asyncio.timeout(60):
                while (up := await client.get("/readyz")).status_code != 200:
                    await asyncio.sleep(0.02)
            proxy.freeze()
            took, frozen = list[float](), up
            while not took or (took[-1] > 1.0 and len(took) < 3):  # again where the machine has stood still
                started = time.monotonic()
                frozen = await client.get("/readyz")
                took.append(time.monotonic() - started)
            alive = await client.get("/livez")
            proxy.thaw()
    assert up.json()["status"] == "healthy"
    assert up.json()["schema"] == "at_head"
    assert frozen.status_code == 503
    assert frozen.json()["error"] == "no answer within 0.9 s"
    assert took[-1] < 1.0
    assert (alive.status_code, alive.json()) == (200, {"alive": True})


async def test_a_refused_connection_is_told_in_words(database_url: str) -> None:
    manager = manager_at(database_url, timeouts=Timeouts(health=0.5))
    async with fault_proxy(database_url) as proxy:
        manager = manager_at(proxy.url)
        await manager.connect()
    try:
        async with probes_client(Probes(manager)) as client:
            response = await client.get("/readyz")
    finally:
        await manager.close()
    assert response.status_code == 503
    assert response.json()["status"] == "unhealthy"
    assert "refused" in response.json()["error"]


def asked(monitor: QueryMonitor) -> int:
    return sum(row.count for row in monitor.statistics())


async def test_probes_are_no_load(database_url: str) -> None:
    monitor = QueryMonitor(MonitoringOptions())
    async with manager_at(database_url, monitor=monitor) as manager:
        async with probes_client(Probes(manager)) as client:
            monitor.reset()
            for _ in range(20):
                assert (await client.get("/livez")).status_code == 200
            assert asked(monitor) == 0
            await client.get("/readyz")
            once = asked(monitor)
            answers = await asyncio.gather(*(client.get("/readyz") for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert asked(monitor) == once > 0


async def test_simultaneous_probes_share_one_question(database_url: str) -> None:
    monitor = QueryMonitor(MonitoringOptions())
    async with manager_at(database_url, monitor=monitor) as manager:
        async with probes_client(Probes(manager)) as client:
            await manager.health_check()
            monitor.reset()
            await manager.health_check()
            one = asked(monitor)
            monitor.reset()
            await asyncio.gather(*(client.get("/readyz") for _ in range(50)))
            assert asked(monitor) == one > 0


async def test_a_degraded_database_is_ready_unless_that_is_refused(database_url: str) -> None:
    async with manager_at(database_url) as manager:
        async with manager.transaction() as session:
            await session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        async with (
            probes_client(Probes(manager)) as lenient,
            probes_client(Probes(manager, accept_degraded=False)) as strict,
        ):
            answers = await lenient.get("/readyz"), await strict.get("/readyz")
    assert [answer.status_code for answer in answers] == [200, 503]
    assert {answer.json()["status"] for answer in answers} == {"degraded"}
    assert "9999" in answers[0].json()["error"]


async def test_shutdown_turns_readiness_off_at_once_and_leaves_life_on(manager: DatabaseManager) -> None:
    probes = Probes(manager)
    async with probes_client(probes) as client:
        assert (await client.get("/readyz")).status_code == 200
        probes.begin_shutdown()
        stopping, alive = await client.get("/readyz"), await client.get("/livez")
    assert (stopping.status_code, stopping.json()["status"]) == (503, "stopping")
    assert alive.status_code == 200


async def test_probes_answer_get_and_head_below_any_prefix(manager: DatabaseManager) -> None:
    app = Starlette(routes=[Mount("/health", Probes(manager))])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/health/readyz")).json()["ready"] is True
        head = await client.head("/health/readyz")
        assert (head.status_code, head.content) == (200, b"")
        assert (await client.post("/health/readyz")).status_code == 405
        assert (await client.get("/health/else")).status_code == 404


def test_without_fastapi_the_import_says_what_to_install() -> None:
    code = "import sys; sys.modules['fastapi'] = None\nimport core.probes\nimport core.fastapi"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: core.fastapi needs FastAPI; install it with: pip install 'alpha-panda-core[fastapi]'"
    )


@contextlib.asynccontextmanager
async def uvicorn(
    folder: Path, url: str, *options: str, drain: float = 1.0
) -> AsyncGenerator[tuple[subprocess.Popen[bytes], Callable]]:
    """The application in a process of its own, and clients of it, each on a connection of its own."""
    (folder / "served_app.py").write_text(SERVED)
    socket = folder / "http"
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "served_app:app", "--uds", str(socket), "--log-level", "warning", *options],
        cwd=folder,
        env={**os.environ, "TEST_URL": url, "DRAIN": str(drain), "PYTHONPATH": str(Path(__file__).parents[1])},
    )

    def client() -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(uds=str(socket), verify=False)  # no TLS context for each
        return httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60)

    try:
        async with asyncio.timeout(60):
            while True:
                assert process.poll() is None, "it has ended by itself"
                with contextlib.suppress(httpx.TransportError):
                    async with client() as probe:
                        if (await probe.get("/readyz")).status_code == 200:
                            break
                await asyncio.sleep(0.05)
        yield process, client
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        socket.unlink(missing_ok=True)


async def post(client: Callable[[], httpx.AsyncClient], name: str, seconds: float) -> str | None:
    """The name if the server acknowledged it."""
    try:
        async with client() as one:
            response = await one.post(f"/users/{name}", params={"seconds": seconds})
    except httpx.TransportError:
        return None
    return name if response.status_code == 200 else None


async def connections(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'served'"
        )
    finally:
        await connection.close()


@pytest.fixture
def folder(open_folder: Path) -> Path:
    path = open_folder / f"served-{os.getpid()}"  # short: a socket's path has 107 bytes at the most
    path.mkdir(exist_ok=True)
    return path


@paced
async def test_sigterm_finishes_what_is_under_way_and_takes_no_more(folder: Path, database_url: str, pace: int) -> None:
    before = await stored(database_url)
    async with uvicorn(folder, database_url, drain=pace) as (process, client):
        async with asyncio.TaskGroup() as group:
            slow = [group.create_task(post(client, f"slow-{n}-{pace}", 1.6 * pace)) for n in range(8)]
            await asyncio.sleep(0.4 * pace)
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.1)
            async with client() as one:
                ready, alive = await one.get("/readyz"), await one.get("/livez")
            quick = [group.create_task(post(client, f"quick-{n}-{pace}", n / 400)) for n in range(20)]
            late = [group.create_task(late_post(client, f"late-{n}-{pace}", n * pace / 25)) for n in range(40)]
        await asyncio.to_thread(process.wait, 60)
    acknowledged = [name for task in (*slow, *quick, *late) if (name := task.result()) is not None]
    assert (ready.status_code, ready.json()["status"]) == (503, "stopping")
    assert alive.status_code == 200
    assert all(task.result() for task in slow)
    assert all(task.result() for task in quick)  # the load balancer has not noticed yet: they are served
    assert late[-1].result() is None
    assert sorted([*before, *acknowledged]) == await stored(database_url)
    assert process.returncode in (0, -signal.SIGTERM)
    assert await connections(database_url) == 0


async def late_post(client: Callable[[], httpx.AsyncClient], name: str, delay: float) -> str | None:
    await asyncio.sleep(delay)
    return await post(client, name, 0.0)


async def test_what_the_server_gives_up_on_is_rolled_back_before_the_database_is_closed(
    folder: Path, database_url: str
) -> None:
    async with uvicorn(folder, database_url, "--timeout-graceful-shutdown", "1") as (process, client):
        endless = asyncio.create_task(post(client, "endless", 60.0))
        await wait_for_session(database_url, "idle in transaction", "INSERT INTO users%")
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)  # the second one does not wait for the drain
        started = time.monotonic()
        await asyncio.to_thread(process.wait, 60)
        seconds = time.monotonic() - started
        assert await endless is None
    assert seconds < 9
    assert await stored(database_url) == []
    assert await connections(database_url) == 0
