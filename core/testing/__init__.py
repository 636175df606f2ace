"""Databases for tests: the pytest plugin `panda`, and factories of valid rows.

Installed with the package, the plugin is there in every test run and costs nothing until a fixture is asked for. Then one
PostgreSQL is started for the whole run, without durability and in memory where there is room; each test that asks for a
database gets one of its own, cloned from a template at migration head, and it is dropped when the test ends.

Fixtures for a test, sync or async: `panda_database` and `panda_empty_database` (URLs), `panda_new_database` (further ones).
For async tests: `panda_manager` (connected, on the test's own event loop) and `panda_session` (rolled back at the end).
For a whole run: `panda_server`, `panda_server_url`, `panda_template`, and two that an application overrides to add what is
its own: `panda_metadata` and `panda_prepare`. `pytest --fixtures` shows them. The factories are functions that take
overrides by the names of the columns; what they leave out of a row is the database's to fill in.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.testing._factories import (
        USER_PASSWORD,
        make_instrument,
        make_portfolio,
        make_snapshot,
        make_snapshots,
        make_strategy,
        make_trading_session,
        make_user,
    )

__all__ = [
    "USER_PASSWORD",
    "make_instrument",
    "make_portfolio",
    "make_snapshot",
    "make_snapshots",
    "make_strategy",
    "make_trading_session",
    "make_user",
]

pytest_plugins = ("core.testing._plugin",)


def __getattr__(name: str) -> Any:
    # pytest imports this module in every run of the environment, and before coverage is measured: the factories, and with
    # them SQLAlchemy, come when they are first named.
    if name in __all__:
        return getattr(import_module("core.testing._factories"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
