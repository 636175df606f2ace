"""What a manager is made of, for the rooms that watch it: its own surface is the documented one and stays so."""
# pyright: reportPrivateUsage=false

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from core.database.connection._manager import DatabaseManager
from core.database.monitoring import QueryMonitor


@dataclass(frozen=True, slots=True)
class Internals:
    """What there is at one moment."""

    monitor: QueryMonitor | None
    """None where monitoring is off."""
    pools: Mapping[str, AsyncEngine]
    """`read_write`, and `read_only` once it has been used; none while the manager is not connected."""
    database: str
    """The name of the database in the URL; `embedded` for the built-in server."""


def internals(manager: DatabaseManager) -> Internals:
    """Look inside a manager, from any thread; nothing is sent."""
    engines, url = manager._life.engines, manager._life.place.url  # noqa: SLF001
    return Internals(
        monitor=manager._monitor,  # noqa: SLF001
        pools=engines.made() if engines is not None else {},
        database="embedded" if url is None else url.database or url.user or "postgres",
    )
