"""The hooks and fixtures of the plugin. Every run of the environment imports this: it names nothing but pytest."""

import os
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sqlalchemy import MetaData
    from sqlalchemy.ext.asyncio import AsyncSession

    from core.database.connection import DatabaseManager
    from core.database.embedded import EmbeddedServer
    from core.testing._databases import Databases, Prepare

_URL_VARIABLE = "PANDA_TEST_URL"
_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_connections": "200",
}
"""No durability: what the server holds does not outlive the run."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("panda", "databases for tests (alpha-panda-core)")
    group.addoption(
        "--panda-url",
        metavar="URL",
        help="make the databases on this server instead of a built-in one; its role needs CREATEDB. "
        f"A URL with a password is better given in the environment variable {_URL_VARIABLE}.",
    )
    parser.addini(
        "panda_settings",
        "further settings of the built-in PostgreSQL, one name=value a line",
        type="linelist",
        default=[],
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.hasplugin("asyncio"):
        from core.testing import _asyncio

        config.pluginmanager.register(_asyncio, "panda-asyncio")


def pytest_report_header(config: pytest.Config) -> str | None:
    url = given_url(config)
    if url is None:
        return None
    from core.database.engine import DatabaseUrl
    from core.database.errors import InvalidUrl

    try:
        return f"panda: databases are made on {DatabaseUrl.parse(url)}"
    except InvalidUrl as error:
        raise pytest.UsageError(f"--panda-url: {error}") from None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """In the controller of pytest-xdist, before a worker starts."""
    from core.testing._run import hand_to_worker

    hand_to_worker(node.config, node.workerinput)


def pytest_unconfigure(config: pytest.Config) -> None:
    if "core.testing._run" not in sys.modules:
        return
    from core.testing._run import known_run

    run = known_run(config)
    if run is None:
        return
    try:
        url = given_url(config)
        if url is not None and run.owner and run.databases_mark.exists():
            from core.testing._databases import drop_all

            drop_all(url, run)
    finally:
        run.end()


@pytest.fixture(scope="session")
def panda_server(pytestconfig: pytest.Config) -> "EmbeddedServer":
    """The built-in PostgreSQL of this run, running; all workers of the run share it. Fails where --panda-url is given."""
    if given_url(pytestconfig) is not None:
        pytest.fail("panda: `panda_server` is the built-in server, and this run is given another one", pytrace=False)
    from core.database.embedded import EmbeddedServer
    from core.testing._databases import told
    from core.testing._run import run_of

    run = run_of(pytestconfig)
    with told():
        server = EmbeddedServer(run.server_folder, settings=_SETTINGS | _own_settings(pytestconfig))
        run.watch()
        server.ensure()
        server.keep()  # a worker that ends early does not take it from the others; the end of the run stops it
    return server


@pytest.fixture(scope="session")
def panda_server_url(request: pytest.FixtureRequest) -> str:
    """The URL of a database that is there already, on the run's server: the built-in one or that of --panda-url."""
    from core.testing._databases import Address, told

    given = given_url(request.config)
    if given is not None:
        return Address(given)
    server: EmbeddedServer = request.getfixturevalue("panda_server")
    with told():
        return server.ensure()


@pytest.fixture(scope="session")
def panda_metadata() -> "MetaData | None":
    """None. Override it with your own tables' MetaData to have them in the template, beside ours."""
    return None


@pytest.fixture(scope="session")
def panda_prepare() -> "Prepare":
    """Does nothing. Override it with a function, async or not, that takes the template's URL and completes the template:
    migrations of your own, reference data. It is called once a run and must close what it opens.
    """
    return lambda url: None


@pytest.fixture(scope="session")
def panda_template(_panda_databases: "Databases", panda_metadata: "MetaData | None", panda_prepare: "Prepare") -> str:
    """The name of the run's template database: at migration head, completed by `panda_metadata` and `panda_prepare`."""
    from core.testing._databases import told

    with told():
        return _panda_databases.template(metadata=panda_metadata, prepare=panda_prepare)


@pytest.fixture
def panda_empty_database(_panda_databases: "Databases") -> Generator[str]:
    """The URL of a new database without tables; dropped after the test."""
    with _database(_panda_databases, None) as url:
        yield url


@pytest.fixture
def panda_database(_panda_databases: "Databases", panda_template: str) -> Generator[str]:
    """The URL of a new database, a copy of the template; dropped after the test."""
    with _database(_panda_databases, panda_template) as url:
        yield url


@pytest.fixture(scope="session")
def panda_new_database(
    _panda_databases: "Databases", panda_template: str
) -> Callable[..., AbstractContextManager[str]]:
    """For fixtures of a wider scope and tests that need several: `with` what it returns `as url:`, a copy of the template;
    with `empty=True` a database without tables. It is dropped on leaving.
    """

    def new(*, empty: bool = False) -> AbstractContextManager[str]:
        return _database(_panda_databases, None if empty else panda_template)

    return new


@pytest.fixture
def panda_manager(request: pytest.FixtureRequest, panda_database: str) -> "DatabaseManager":
    """A DatabaseManager connected to a database of the test's own, on the test's event loop."""
    return request.getfixturevalue(_async_fixture(request, "_panda_manager"))


@pytest.fixture
def panda_session(request: pytest.FixtureRequest, panda_manager: "DatabaseManager") -> "AsyncSession":
    """A session of `panda_manager`; what the test does not commit is rolled back."""
    return request.getfixturevalue(_async_fixture(request, "_panda_session"))


# Plain async fixtures are anyio's to run, in tests that it runs.
@pytest.fixture
async def _panda_manager_anyio(panda_database: str) -> AsyncGenerator["DatabaseManager"]:
    async for manager in connected(panda_database):
        yield manager


@pytest.fixture
async def _panda_session_anyio(panda_manager: "DatabaseManager") -> AsyncGenerator["AsyncSession"]:
    async for session in opened(panda_manager):
        yield session


@pytest.fixture(scope="session")
def _panda_databases(request: pytest.FixtureRequest, panda_server_url: str) -> Generator["Databases"]:
    from core.testing._databases import Databases, told
    from core.testing._run import run_of

    foreign = given_url(request.config) is not None
    with told():
        server = None if foreign else request.getfixturevalue("panda_server")
        databases = Databases(panda_server_url, run_of(request.config), server)
    try:
        with told():
            databases.open()
        yield databases
    finally:
        databases.close()


async def connected(url: str) -> AsyncGenerator["DatabaseManager"]:
    from core.database.connection import DatabaseManager

    async with DatabaseManager(url, "testing", "migrations_only") as manager:
        yield manager


async def opened(manager: "DatabaseManager") -> AsyncGenerator["AsyncSession"]:
    async with manager.get_session() as session:
        yield session


def _async_fixture(request: pytest.FixtureRequest, name: str) -> str:
    if "anyio_backend" in request.fixturenames:
        return f"{name}_anyio"
    if request.config.pluginmanager.hasplugin("asyncio"):
        return f"{name}_asyncio"
    pytest.fail("panda: this fixture needs pytest-asyncio, or a test that anyio runs", pytrace=False)


@contextmanager
def _database(databases: "Databases", template: str | None) -> Generator[str]:
    from core.testing._databases import told

    with told():
        url = databases.create(template)
    try:
        yield url
    finally:
        with told():
            databases.drop(url)


def given_url(config: pytest.Config) -> str | None:
    return config.getoption("panda_url") or os.environ.get(_URL_VARIABLE) or None


def _own_settings(config: pytest.Config) -> dict[str, str]:
    lines: list[str] = config.getini("panda_settings")
    pairs = [line.partition("=") for line in lines]
    if any(not equals for _, equals, _ in pairs):
        pytest.fail("panda: the ini option panda_settings takes lines of the form name=value", pytrace=False)
    return {name.strip(): value.strip() for name, _, value in pairs}
