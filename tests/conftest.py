"""One built-in server per test run and worker; a database per test, cloned from a migrated template."""

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from core.config.options import Timeouts
from core.database import schema
from core.database.connection import DatabaseManager
from core.database.embedded import EmbeddedServer
from core.database.engine import DatabaseUrl, EngineOptions, build_engine

_numbers = itertools.count(1)
_SPEED = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "autovacuum": "off",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--components-required", action="store_true", help="fail where a component is missing")


@pytest.fixture(scope="session")
def component(pytestconfig: pytest.Config) -> Callable[[bool, str], None]:
    """Call with whether a component is there and the command that installs it: skips, or fails where all must run."""

    def need(available: bool, install: str) -> None:
        if available:
            return
        if pytestconfig.getoption("--components-required"):
            pytest.fail(f"a component is missing: {install}")
        pytest.skip(f"a component is missing: {install}")

    return need


@pytest.fixture(scope="session")
def open_folder() -> Iterator[Path]:
    """A folder that the server's user may enter, which pytest's own are not when root runs the tests."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30
    folder = Path(tempfile.mkdtemp(prefix="panda-tests-", dir=memory if roomy else None))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server(open_folder: Path) -> Iterator[EmbeddedServer]:
    """The run's PostgreSQL, without durability: it does not outlive the run."""
    server = EmbeddedServer(open_folder / "server", settings=_SPEED)
    server.ensure()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def server_url(server: EmbeddedServer) -> str:
    return server.ensure()


@pytest.fixture(scope="session")
def template(server_url: str) -> str:
    """The name of a database at migration head, never connected to again."""

    async def make() -> None:
        await _admin(server_url, "CREATE DATABASE template_head")
        url = DatabaseUrl.parse(database_at(server_url, "template_head"))
        engine = build_engine(url, EngineOptions())
        await schema.upgrade(engine, timeouts=Timeouts())
        await engine.dispose()

    asyncio.run(make())
    return "template_head"


@pytest.fixture
async def empty_database(server_url: str) -> AsyncIterator[str]:
    """The URL of a new, empty database."""
    async for url in _database(server_url, None):
        yield url


@pytest.fixture
async def database_url(server_url: str, template: str) -> AsyncIterator[str]:
    """The URL of a new database at migration head."""
    async for url in _database(server_url, template):
        yield url


@pytest.fixture
def database_url_sync(server_url: str, template: str) -> Iterator[str]:
    """The URL of a new database at migration head, for tests without an event loop."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    asyncio.run(_admin(server_url, f"CREATE DATABASE {name} TEMPLATE {template}"))
    yield database_at(server_url, name)
    asyncio.run(_admin(server_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def manager(database_url: str) -> AsyncIterator[DatabaseManager]:
    """A connected manager on a database at head."""
    async with DatabaseManager(database_url, "testing", "migrations_only") as manager:
        yield manager


def database_at(server_url: str, name: str) -> str:
    """The server's URL with another database."""
    return server_url.replace("/panda?", f"/{name}?", 1)


async def _admin(server_url: str, statement: str) -> None:
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _database(server_url: str, template: str | None) -> AsyncIterator[str]:
    name = f"test_{os.getpid()}_{next(_numbers)}"
    await _admin(server_url, f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else ""))
    yield database_at(server_url, name)
    await _admin(server_url, f"DROP DATABASE {name} WITH (FORCE)")
