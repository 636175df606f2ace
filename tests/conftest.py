"""The plugin's fixtures under the names that this suite calls them by, and what is about this suite alone."""

import asyncio
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import structlog

from core.config.options import PoolOptions, Timeouts
from core.config.settings import get_settings
from core.database.connection import _manager
from core.testing._plugin import given_url
from core.testing._run import run_of

# No property here is about the time of one example; on a busy machine any of them may take a second.
hypothesis.settings.register_profile("suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("suite")

# A shell's background job ignores the interrupt, and so would all that is started from here; its handling is a subject of tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What a test gives no limits of its own is not about them: a machine that stands still for some seconds must not reach them.
_UNHURRIED = Timeouts(connect=30, probe=30, health=30, cleanup=30, statement=60, lock=30, idle_in_transaction=60)
setattr(_manager, "Timeouts", lambda: _UNHURRIED)  # noqa: B010  # pyright would take it for the class
setattr(_manager, "PoolOptions", lambda: PoolOptions(wait=30))  # noqa: B010


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


def pytest_collection_finish(session: pytest.Session) -> None:
    """What imports and collection have made stays to the end: the garbage collector need not look at it in every test."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No settings but the test's own, in an empty working directory, for this process and its children; for tests of `panda`.

    Save one: a slow machine would have slow statements told among what a command prints.
    """
    for name in list(os.environ):
        if name.upper().startswith("DATABASE") or name.upper() in ("ENVIRONMENT", "NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("DATABASE__MONITORING__SLOW_QUERY", "600")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    get_settings.cache_clear()
    root, ours = logging.getLogger(), logging.getLogger("core")
    before = (list(root.handlers), root.level, ours.level)
    yield
    root.handlers[:], root.level, ours.level = before  # what `main` in this process has configured
    structlog.reset_defaults()
    get_settings.cache_clear()


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


@pytest.fixture
async def settled() -> AsyncIterator[None]:
    """Ends when the loop has no socket left: one whose login was refused over TLS is closed a moment after the error."""
    yield
    known: Any = vars(asyncio.get_running_loop())["_transports"]
    async with asyncio.timeout(60):
        while any(vars(transport)["_sock"] is not None for transport in list(known.values())):
            await asyncio.sleep(0.002)
