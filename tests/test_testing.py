"""The pytest plugin, in runs of its own, and the factories on a real server."""

import fcntl
import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import asyncpg
import psutil
import pytest
from sqlalchemy import func, inspect, select

import core.testing
from core.database.connection import DatabaseManager
from core.database.errors import PandaDatabaseError
from core.database.models import Base, Instrument, PortfolioSnapshot, TradingSession, User
from core.database.records import (
    InstrumentRead,
    PortfolioRead,
    PortfolioSnapshotRead,
    StrategyRead,
    TradingSessionRead,
    UserRead,
)
from core.testing import (
    USER_PASSWORD,
    make_instrument,
    make_portfolio,
    make_snapshot,
    make_snapshots,
    make_strategy,
    make_trading_session,
    make_user,
)
from core.testing._databases import Address, Databases, at
from core.testing._run import run_of
from core.trading.accounts import authenticate
from core.trading.portfolios import ensure_partitions

# faulthandler's own thread, where the outer run has one, is not there any more after a fork.
QUIET = [word for name in ("cacheprovider", "cov", "hypothesispytest", "faulthandler") for word in ("-p", f"no:{name}")]
LOOPS = "asyncio_default_fixture_loop_scope = function"
ONE_ROW = """
    import pytest
    from sqlalchemy import func, select
    from core.database.models import User
    from core.testing import make_user

    {mark}
    @pytest.mark.parametrize("turn", [1, 2])
    async def test_committing(panda_manager, turn):
        async with panda_manager.transaction() as session:
            session.add(make_user(username="the same in both"))
        async with panda_manager.get_session() as session:
            assert await session.scalar(select(func.count()).select_from(User)) == 1

    {mark}
    async def test_a_session(panda_session):
        panda_session.add(make_user())
        await panda_session.flush()
"""


class Project:
    """An application's project in a folder of its own, and runs of pytest in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("pytest.ini", f"[pytest]\n{LOOPS}\n")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(textwrap.dedent(text))

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", *QUIET, *arguments],
            cwd=self.folder,
            env=_environment() | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """The exit code and what was printed, by a process that begins as an application's does."""
        process = self.start(*arguments, **environment)
        output = process.communicate(timeout=300)[0]
        return process.returncode, output

    def run_forked(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """The same by a child of this process, which has imported everything: much quicker."""
        output = self.folder / "output"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the child does not miss
            child = os.fork()
        if child == 0:
            code = 70
            try:
                gc.freeze()  # what the parent has left unclosed is not the child's to complain of
                os.chdir(self.folder)
                os.environ.clear()
                os.environ.update(_environment() | environment)
                sys.stdout = sys.stderr = output.open("w")
                os.dup2(sys.stdout.fileno(), 1)
                os.dup2(sys.stdout.fileno(), 2)
                code = int(pytest.main([*QUIET, *arguments]))
            finally:
                sys.stdout.flush()
                os._exit(code)
        deadline = time.monotonic() + 300
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.01)
        return os.waitstatus_to_exitcode(ended[1]), output.read_text()

    def passes(self, *arguments: str, count: int, **environment: str) -> None:
        run = self.run if "-n" in arguments else self.run_forked
        code, output = run(*arguments, **environment)
        assert (code, f"{count} passed" in output) == (0, True), output


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PANDA_TEST"))}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def names(server_url: str) -> Callable[[], set[str]]:
    """The databases that the plugin's runs have on the server of this run, those of this run aside."""

    async def read() -> set[str]:
        connection = await asyncpg.connect(server_url)
        rows = await connection.fetch(
            "SELECT datname FROM pg_database WHERE datname LIKE 'panda\\_test\\_%' AND split_part(datname, '_', 3) <> ALL ("
            " SELECT split_part(application_name, ' ', 3) FROM pg_stat_activity WHERE application_name LIKE 'panda test %')"
        )
        await connection.close()
        return {row["datname"] for row in rows}

    import asyncio

    return lambda: asyncio.run(read())


class Place:
    """What the tests of a run have written down of its server."""

    def __init__(self, file: Path) -> None:
        lines = file.read_text().splitlines()
        assert len(set(lines)) == 1, lines
        pid, _, folder = lines[0].partition(" ")
        self.reports = len(lines)
        self.folder = Path(folder).parent
        self.process = psutil.Process(int(pid)) if psutil.pid_exists(int(pid)) else None

    def gone(self) -> bool:
        return (self.process is None or not self.process.is_running()) and not self.folder.exists()

    def goes(self, within: float) -> bool:
        deadline = time.monotonic() + within
        while not self.gone() and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.gone()


REPORTING = """
    import os, pathlib, time, pytest

    @pytest.fixture
    def reported(panda_server, panda_database):
        status = panda_server.status()
        with open(os.environ["REPORT"], "a") as report:
            report.write(f"{status.pid} {status.directory}\\n")

    @pytest.mark.parametrize("number", range(6))
    def test_reporting(reported, number):
        time.sleep(0.1)
"""


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return tmp_path / "report"


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


class TestRunsOfTheirOwn:
    """Each of them has a server of its own, which is what they are about."""

    def test_workers_share_one_server_which_ends_with_a_failing_run(self, project: Project, report: Path) -> None:
        project.write("test_it.py", REPORTING)
        project.write("test_failing.py", "def test_it(panda_database):\n    raise AssertionError('as wanted')\n")
        code, output = project.run("-n", "2", "--dist", "load", REPORT=str(report))
        assert (code, "1 failed, 6 passed" in output) == (1, True), output
        place = Place(report)
        assert place.reports == 6
        assert place.goes(within=60)  # a zombie, until its new parent looks, is a process still

    @pytest.mark.parametrize("arguments", [["-n", "2"], []], ids=["workers", "alone"])
    def test_ctrl_c_ends_the_server_with_the_run(self, project: Project, report: Path, arguments: list[str]) -> None:
        project.write("test_it.py", REPORTING.replace("sleep(0.1)", "sleep(60)"))
        run = project.start(*arguments, REPORT=str(report))
        wait_for(report.exists, "no test has begun")
        time.sleep(0.3)
        os.killpg(run.pid, signal.SIGINT)
        output = run.communicate(timeout=120)[0]
        assert run.returncode == 2, output
        assert Place(report).goes(within=60)

    @pytest.mark.parametrize("arguments", [["-n", "2"], []], ids=["workers", "alone"])
    def test_kill_9_of_the_run_leaves_no_server(self, project: Project, report: Path, arguments: list[str]) -> None:
        project.write("test_it.py", REPORTING.replace("sleep(0.1)", "sleep(60)"))
        run = project.start(*arguments, REPORT=str(report))
        wait_for(report.exists, "no test has begun")
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate(timeout=120)
        assert Place(report).goes(within=60)

    def test_settings_of_the_project_reach_the_server(self, project: Project) -> None:
        project.write(
            "pytest.ini",
            f"[pytest]\n{LOOPS}\nasyncio_mode = auto\npanda_settings =\n    work_mem = 7MB\n    fsync=on\n",
        )
        project.write(
            "test_it.py",
            """
            from sqlalchemy import text

            async def test_it(panda_session):
                for name, value in {"work_mem": "7MB", "fsync": "on", "synchronous_commit": "off"}.items():
                    assert await panda_session.scalar(text(f"SHOW {name}")) == value
            """,
        )
        project.passes(count=1)

    def test_a_run_that_uses_none_of_it_imports_none_of_it_and_leaves_nothing(self, project: Project) -> None:
        project.write(
            "test_it.py",
            """
            import sys

            def test_it():
                ours = {name for name in sys.modules if name.startswith("core")}
                assert ours <= {"core", "core.testing", "core.testing._plugin", "core.testing._asyncio", "core.testing._run",
                                "core.testing._watch"}
                assert not {"sqlalchemy", "pydantic", "asyncpg", "alembic", "psutil"} & set(sys.modules)
            """,
        )
        assert project.run()[0] == 0
        project.write(
            "conftest.py",
            """
            import pathlib, pytest

            @pytest.hookimpl(trylast=True)
            def pytest_configure_node(node):
                pathlib.Path("folder").write_text(node.workerinput["panda_folder"])
            """,
        )
        project.passes("-n", "1", count=1)
        folder = Path((project.folder / "folder").read_text())
        assert folder.name.startswith("panda-tests-") and not folder.exists()


@pytest.fixture
def alone(pytestconfig: pytest.Config) -> Iterator[None]:
    """One test at a time of all workers: each run drops what it takes for the remains of another, on the server that all share."""
    with (run_of(pytestconfig).folder / "alone").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.mark.usefixtures("alone")
class TestOnThisRunsServer:
    """Runs on the server of this run, as an application has them with --panda-url: quick to start."""

    @pytest.mark.parametrize(
        ("settings", "mark"),
        [
            ("asyncio_mode = strict", "@pytest.mark.asyncio"),
            ("asyncio_mode = auto", ""),
            ("asyncio_mode = strict", "@pytest.mark.anyio"),
            (
                "asyncio_mode = auto\nasyncio_default_test_loop_scope = session\nasyncio_default_fixture_loop_scope = session",
                "",
            ),
        ],
        ids=["strict", "auto", "anyio", "session loop"],
    )
    def test_async_fixtures_are_on_the_loop_of_the_test(self, project, server_url, names, settings, mark) -> None:
        loops = "" if "fixture_loop_scope" in settings else LOOPS
        project.write("pytest.ini", f"[pytest]\n{loops}\n{settings}\nfilterwarnings = error\n")
        project.write("conftest.py", "import pytest\n\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n")
        project.write("test_it.py", textwrap.dedent(ONE_ROW).format(mark=mark))
        project.passes(count=3, PANDA_TEST_URL=str(server_url))
        assert names() == set()

    def test_without_a_plugin_for_async_tests_it_says_what_is_missing(self, project, server_url) -> None:
        project.write("pytest.ini", "[pytest]\n")
        project.write("test_it.py", "def test_it(panda_manager):\n    pass\n")
        code, output = project.run_forked("-p", "no:asyncio", PANDA_TEST_URL=str(server_url))
        assert (code, "needs pytest-asyncio" in output) == (1, True), output

    def test_an_application_adds_its_tables_and_rows_to_the_template_once_a_run(
        self, project, server_url, names
    ) -> None:
        project.write(
            "conftest.py",
            """
            import pytest
            import sqlalchemy as sa
            from core.database.connection import DatabaseManager
            from core.testing import make_strategy

            ORDERS = sa.Table("orders", sa.MetaData(), sa.Column("id", sa.BigInteger, primary_key=True))

            @pytest.fixture(scope="session")
            def panda_metadata():
                return ORDERS.metadata

            @pytest.fixture(scope="session")
            def panda_prepare():
                async def prepare(url):
                    async with DatabaseManager(url, "testing", "migrations_only") as manager:
                        async with manager.transaction() as session:
                            session.add(make_strategy(strategy_id="reference"))
                            await session.execute(sa.text("INSERT INTO orders VALUES (1)"))
                return prepare
            """,
        )
        project.write(
            "test_it.py",
            """
            import pytest
            import sqlalchemy as sa
            from core.database.models import Strategy

            @pytest.mark.asyncio
            @pytest.mark.parametrize("turn", range(4))
            async def test_it(panda_session, turn):
                assert await panda_session.get(Strategy, "reference") is not None
                await panda_session.execute(sa.text("INSERT INTO orders VALUES (2)"))
                await panda_session.commit()
                assert await panda_session.scalar(sa.text("SELECT count(*) FROM orders")) == 2

            def test_several(panda_new_database, panda_empty_database):
                with panda_new_database() as one, panda_new_database() as other, panda_new_database(empty=True) as empty:
                    assert len({one, other, empty, panda_empty_database}) == 4
            """,
        )
        project.passes("-n", "2", count=5, PANDA_TEST_URL=str(server_url))
        assert names() == set()

    def test_a_template_that_is_still_in_use_is_explained(self, project, server_url, names) -> None:
        project.write(
            "conftest.py",
            """
            import asyncpg, pytest
            LEFT_OPEN = []

            @pytest.fixture(scope="session")
            def panda_prepare():
                async def prepare(url):
                    LEFT_OPEN.append(await asyncpg.connect(url))
                return prepare
            """,
        )
        project.write("test_it.py", "def test_it(panda_database):\n    pass\n")
        code, output = project.run_forked(PANDA_TEST_URL=str(server_url))
        assert (code, "something that `panda_prepare` opened is connected to it" in output) == (1, True), output
        assert names() == set()

    def test_what_panda_prepare_raises_fails_the_tests_as_itself(self, project, server_url, names) -> None:
        project.write(
            "conftest.py",
            """
            import pytest

            @pytest.fixture(scope="session")
            def panda_prepare():
                def prepare(url):
                    raise LookupError("no reference data")
                return prepare
            """,
        )
        project.write("test_it.py", "def test_it(panda_database):\n    pass\n")
        code, output = project.run_forked(PANDA_TEST_URL=str(server_url))
        assert (code, "LookupError: no reference data" in output) == (1, True), output
        assert names() == set()

    def test_what_a_killed_run_left_is_dropped_by_the_next_and_a_live_runs_is_not(
        self, project, server_url, names, panda_database
    ) -> None:
        mark = project.folder / "begun"
        project.write(
            "test_it.py",
            f"""
            import pathlib, time

            def test_it(panda_database):
                pathlib.Path({str(mark)!r}).touch()
                time.sleep(60)

            def test_quick(panda_empty_database):
                pass
            """,
        )
        run = project.start("-k", "test_it", PANDA_TEST_URL=str(server_url))
        wait_for(mark.exists, "the test has not begun")
        assert names() == set()
        run.kill()
        run.communicate(timeout=120)
        wait_for(lambda: len(names()) == 2, "the killed run should have left its template and a database")
        project.passes("-k", "quick", count=1, PANDA_TEST_URL=str(server_url))
        assert names() == set()
        assert reachable(panda_database)

    def test_a_test_that_drops_its_own_database_ends_well(self, project, server_url) -> None:
        project.write(
            "test_it.py",
            f"""
            import asyncio, asyncpg

            def test_it(panda_database):
                async def drop():
                    connection = await asyncpg.connect({str(server_url)!r})
                    await connection.execute(f"DROP DATABASE {{panda_database.rpartition('/panda_test')[1][1:]}}"
                                             f"{{panda_database.partition('/panda_test')[2].partition('?')[0]}}")
                    await connection.close()
                asyncio.run(drop())
            """,
        )
        project.passes(count=1, PANDA_TEST_URL=str(server_url))


def test_a_database_is_dropped_again_while_the_server_could_not_end_its_sessions(
    _panda_databases: Databases,  # noqa: PT019 - wanted for itself
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server gives those whom it ends five seconds, which a machine that stands still may need for something else."""
    sent: list[str] = []
    refusals = ["55006", "55006"]

    def execute(statement: str) -> None:
        sent.append(statement)
        if refusals:
            raise PandaDatabaseError("no", sqlstate=refusals.pop())

    monkeypatch.setattr(_panda_databases, "_execute", execute)
    _panda_databases.drop("postgresql://panda@/panda_test_gone?host=/nowhere")
    assert sent == ["DROP DATABASE IF EXISTS panda_test_gone WITH (FORCE)"] * 3
    for states, tries in ((["42501"], 1), (["55006"] * 9, 5)):
        sent.clear()
        refusals[:] = states
        with pytest.raises(PandaDatabaseError):
            _panda_databases.drop("postgresql://panda@/panda_test_gone?host=/nowhere")
        assert len(sent) == tries


class TestWhatCannotWork:
    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("postgresql://panda:s3cret@127.0.0.1:1/panda", "cannot be reached (connection refused). Start the server"),
            ("postgresql://panda:s3cret@db/panda?dbname=x", "names its database in the query"),
        ],
    )
    def test_it_fails_the_test_in_words_and_without_the_password(self, project, url: str, said: str) -> None:
        project.write("test_it.py", "def test_it(panda_database):\n    pass\n")
        code, output = project.run_forked("--panda-url", url)
        assert code == 1
        assert said in output
        assert "s3cret" not in output
        assert "Traceback" not in output
        assert output.count("panda: ") == 3, "the header, the error, the summary"

    def test_a_url_that_is_none_is_refused_at_once(self, project) -> None:
        code, output = project.run_forked("--panda-url", "mysql://panda:s3cret@db/panda")
        assert (code, "ERROR: --panda-url: the database URL has the scheme 'mysql'" in output) == (4, True), output
        assert "s3cret" not in output

    async def test_a_role_that_may_not_create_databases_is_told_how(self, project, server_url, panda_database) -> None:
        connection = await asyncpg.connect(server_url)
        await connection.execute("CREATE ROLE unable LOGIN PASSWORD 'unable'")
        try:
            project.write("test_it.py", "def test_it(panda_database):\n    pass\n")
            # Which role is at work is what counts; the built-in server lets nobody else in.
            url = str(server_url) + ("&" if "?" in server_url else "?") + "options=-c%20role%3Dunable"
            await connection.execute("GRANT unable TO CURRENT_USER")
            code, output = project.run_forked("--panda-url", url)
        finally:
            await connection.execute("DROP ROLE unable")
            await connection.close()
        assert (code, "As a superuser: ALTER ROLE unable CREATEDB" in output) == (1, True), output

    def test_the_built_in_server_is_not_to_be_had_beside_a_given_one(self, project, server_url) -> None:
        project.write("test_it.py", "def test_it(panda_server):\n    pass\n")
        code, output = project.run_forked(PANDA_TEST_URL=str(server_url))
        assert (code, "this run is given another one" in output) == (1, True), output

    def test_settings_that_are_none_are_refused(self, project) -> None:
        project.write("pytest.ini", f"[pytest]\n{LOOPS}\npanda_settings = fsync\n")
        project.write("test_it.py", "def test_it(panda_server):\n    pass\n")
        code, output = project.run_forked()
        assert (code, "name=value" in output) == (1, True), output


def reachable(url: str) -> bool:
    import asyncio

    async def look() -> bool:
        connection = await asyncpg.connect(url)
        await connection.close()
        return True

    return asyncio.run(look())


def test_a_url_in_the_report_of_a_failing_test_has_no_password(project: Project, server_url: str) -> None:
    address = at("postgresql://panda:s3cret@db:5432/panda?sslmode=require&password=s3cret", "other")
    assert address == "postgresql://panda:s3cret@db:5432/other?sslmode=require&password=s3cret"
    assert repr(address) == "'postgresql://panda:***@db:5432/other?sslmode=require&password=***'"
    assert repr(Address("postgresql://panda@/x?host=/run")) == "'postgresql://panda@/x?host=/run'"
    assert type(str(address)) is str


def test_the_public_names_are_those_of_the_module() -> None:
    from core.testing import _factories

    assert core.testing.__all__ == sorted(core.testing.__all__)
    public = {name for name in vars(_factories) if name.startswith("make_") or name == "USER_PASSWORD"}
    assert public == set(core.testing.__all__)
    with pytest.raises(AttributeError, match="make_nothing"):
        _ = core.testing.make_nothing  # type: ignore[attr-defined]


class TestFactories:
    async def test_whatever_they_make_is_stored_and_read_back_as_a_record(self, manager: DatabaseManager) -> None:
        await ensure_partitions(manager, make_snapshot().snapshot_time, make_snapshot().snapshot_time)
        strategy, portfolio = make_strategy(), make_portfolio()
        rows = [
            (make_user(), UserRead),
            (make_trading_session(), TradingSessionRead),
            (strategy, StrategyRead),
            (make_portfolio(strategy), None),
            (portfolio, PortfolioRead),
            (make_snapshot(portfolio), PortfolioSnapshotRead),
            (make_snapshot(), PortfolioSnapshotRead),
            *((make_instrument(instrument_type=kind), InstrumentRead) for kind in ("EQ", "IDX", "FUT", "OPT")),
        ]
        async with manager.transaction() as session:
            session.add_all([row for row, _ in rows])
        async with manager.get_session() as session:
            for row, record in rows:
                stored = await session.get(type(row), inspect(row).identity)
                assert stored is not None
                if record is not None:
                    record.model_validate(stored)

    async def test_what_they_make_differs_each_time(self, manager: DatabaseManager) -> None:
        async with manager.transaction() as session:
            for _ in range(30):
                portfolio = make_portfolio()
                session.add_all([make_user(), make_instrument(), make_trading_session(), make_strategy(), portfolio])
        async with manager.get_session() as session:
            assert await session.scalar(select(func.count()).select_from(User)) == 60
            assert await session.scalar(select(func.count()).select_from(Instrument)) == 30

    async def test_children_of_stored_parents_need_no_session_of_theirs(self, manager: DatabaseManager) -> None:
        user, portfolio, strategy = make_user(), make_portfolio(broker="zerodha"), make_strategy()
        async with manager.transaction() as session:
            session.add_all([user, portfolio, strategy])
        await ensure_partitions(manager, make_snapshot().snapshot_time, make_snapshot().snapshot_time)
        async with manager.transaction() as session:
            session.add_all([make_trading_session(user), make_snapshot(portfolio), make_portfolio(strategy)])
        async with manager.get_session() as session:
            assert await session.scalar(select(TradingSession.user_id)) == user.id
            assert (await session.scalars(select(PortfolioSnapshot))).one().broker == "zerodha"

    async def test_a_made_user_can_log_in(self, manager: DatabaseManager) -> None:
        async with manager.transaction() as session:
            session.add(made := make_user())
        found = await authenticate(manager, made.username, USER_PASSWORD)
        assert found.id == made.id
        assert found.hashed_password == made.hashed_password, "made with today's parameters: nothing to renew"

    def test_every_column_can_be_given_and_nothing_else(self) -> None:
        assert make_user(username="x", is_active=False).is_active is False
        assert make_strategy(version=3).version == 3
        assert make_instrument(last_price=None).last_price is None
        assert make_trading_session(user_id=5).user_id == 5
        assert not make_trading_session(user_id=5, end_time=make_snapshot().snapshot_time).is_active
        assert make_portfolio(portfolio_id="p", strategy_id="s").strategy_id == "s"
        for make in (make_user, make_instrument, make_strategy, make_trading_session, make_portfolio, make_snapshot):
            with pytest.raises(TypeError, match="colour"):
                make(colour="green")

    def test_the_amounts_of_a_snapshot_agree(self) -> None:
        position = {"instrument_token": 1, "quantity": Decimal(-2), "average_price": Decimal(90), "last_price": Decimal(100),
                    "pnl": Decimal(-20)}  # fmt: skip
        made = make_snapshot(positions=[position], cash=Decimal(1_200), unrealized_pnl=Decimal(-20))
        assert (made.total_pnl, made.equity) == (-20, 1_000)
        assert make_snapshot(equity=Decimal(7)).equity == 7

    def test_a_curve_is_the_same_in_every_run(self) -> None:
        first, second = make_snapshots(4), make_snapshots(4)
        assert [point.equity for point in first] == [100_000, 100_300, 100_100, 100_400]
        assert [point.equity for point in first] == [point.equity for point in second]
        assert [point.snapshot_time for point in first] == [point.snapshot_time for point in second]
        assert len({point.portfolio_id for point in first}) == 1
        assert first[0].portfolio_id != second[0].portfolio_id
        assert len({point.portfolio_id for point in make_snapshots(3, portfolio_id="p", broker="paper")}) == 1

    def test_every_table_that_people_write_to_has_one(self) -> None:
        made = {make().__tablename__ for make in (make_user, make_instrument, make_strategy, make_trading_session,
                                                  make_portfolio, make_snapshot)}  # fmt: skip
        histories = {"instrument_versions", "instrument_loads", "strategy_revisions", "encryption_canaries"}
        histories |= {"auth_events", "login_delays", "known_sources"}
        assert made | histories == set(Base.metadata.tables)
