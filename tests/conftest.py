"""The plugin's fixtures under the names that this suite calls them by, and what is about this suite alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from core.testing._plugin import given_url
from core.testing._run import run_of


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--components-required", action="store_true", help="fail where a component is missing")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On a server that is given (--panda-url), run what uses the run's databases: the rest says the same on every server."""
    if given_url(config) is None:
        return
    used = [item for item in items if "panda_server_url" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=[item for item in items if item not in used])
    items[:] = used
    for item in items:
        marker = item.get_closest_marker("builtin_server")
        if marker is not None:
            item.add_marker(pytest.mark.skip(reason=f"built-in server only: {marker.kwargs['reason']}"))


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
def open_folder(pytestconfig: pytest.Config) -> Path:
    """A folder that the server's user may enter, which pytest's own are not when root runs the tests; it goes with the run."""
    run = run_of(pytestconfig)
    run.watch()
    folder = run.folder / run.worker
    folder.mkdir(mode=0o755)
    return folder


@pytest.fixture(scope="session")
def server(panda_server):
    return panda_server


@pytest.fixture(scope="session")
def server_url(panda_server_url: str) -> str:
    return panda_server_url


@pytest.fixture(scope="session")
def template(panda_template: str) -> str:
    return panda_template


@pytest.fixture
def empty_database(panda_empty_database: str) -> str:
    return panda_empty_database


@pytest.fixture
def database_url(panda_database: str) -> str:
    return panda_database


@pytest.fixture
def database_url_sync(panda_database: str) -> str:
    return panda_database


@pytest.fixture
def manager(panda_manager):
    return panda_manager
