"""How this project is opened: the pools as large as the peers', everything else as it comes unless an entrant says so."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from bench.peers import POOL
from bench.server import Target

if TYPE_CHECKING:
    from core.database.connection import DatabaseManager

__all__ = ["manager_for", "migrate", "opened_manager"]


def manager_for(target: Target, *, schema: str = "migrations_only", **options: Any) -> "DatabaseManager":
    """A manager that is not yet connected; `options` go to it as they are."""
    from core.config.options import PoolOptions
    from core.database.connection import DatabaseManager

    pool = PoolOptions(size=POOL, max_overflow=0, read_size=POOL)
    settings: dict[str, Any] = {"schema_management": schema, "pool": pool, **options}
    return DatabaseManager(target.url, environment="development", **settings)


async def migrate(target: Target) -> None:
    """Bring the database to the schema's head."""
    async with manager_for(target, schema="auto"):
        pass


@asynccontextmanager
async def opened_manager(target: Target, **options: Any) -> "AsyncGenerator[DatabaseManager]":
    """A connected manager that does not look at the schema, since most works have none of it."""
    async with manager_for(target, verify_migrations=False, **options) as manager:
        yield manager
