"""The settings as the command line takes them, managers made from them, and the loop that they run on."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from core.cli._failure import USAGE, CommandError
from core.cli._output import Output
from core.config.settings import Settings, get_settings, redact_url

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from core.database.connection import DatabaseManager
    from core.database.embedded import EmbeddedServer

T = TypeVar("T")

EMBEDDED = "embedded:"
"""The URL of the command line while nobody has set one: the built-in server in its default folder."""


def settings_in_force() -> Settings:
    """The process's settings, with `embedded:` for a URL that nobody has set."""
    settings = get_settings()
    if not settings.database.url_is_default:
        return settings
    settings = settings.model_copy(deep=True)
    settings.database.postgres_url = EMBEDDED
    return settings


def embedded_server(settings: Settings, *, verb: str) -> "EmbeddedServer":
    """The built-in server that the URL names. Another URL is refused: such a server is not ours to start or stop."""
    from core.database.embedded import EmbeddedServer, is_embedded_url

    url = settings.database.postgres_url
    if not is_embedded_url(url):
        raise CommandError(
            f"the URL names a server of your own ({redact_url(url)}); there is nothing of ours to {verb}",
            hint=f"Ask after it with `panda wait` or `panda health`, or {verb} the built-in one by "
            f"DATABASE__POSTGRES_URL={EMBEDDED}",
            code=USAGE,
        )
    return EmbeddedServer.from_url(url)


def unchanging_manager(settings: Settings, *, verify: bool = False) -> "DatabaseManager":
    """A manager that connects without touching the schema, and without refusing it unless `verify`.

    It holds no keys: a wrong one must not stand in the way of the commands that find out about it.
    """
    from core.database.connection import DatabaseManager

    database = settings.database.model_copy(
        update={"schema_management": "migrations_only", "verify_migrations": verify, "encryption_keys": None}
    )
    return DatabaseManager.from_settings(settings.model_copy(update={"database": database}))


@asynccontextmanager
async def connected(settings: Settings, out: Output, *, verify: bool = False) -> "AsyncGenerator[DatabaseManager]":
    """A connected manager that leaves the schema alone, and refuses a wrong one if `verify`; a spinner until it is there."""
    manager = unchanging_manager(settings, verify=verify)
    with out.status(f"Connecting to {redact_url(settings.database.postgres_url)}"):
        await manager.connect()
    try:
        yield manager
    finally:
        await manager.close()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run on an event loop of its own. Ctrl-C cancels the work, which closes what it has opened."""
    return asyncio.run(work)


def read(out: Output, work: "Callable[[AsyncSession], Awaitable[T]]") -> T:
    """Run `work` in a session that reads, on the database of the settings in force; its schema must be at head."""

    async def reading() -> T:
        async with (
            connected(settings_in_force(), out, verify=True) as manager,
            manager.get_session(read_only=True) as session,
        ):
            return await work(session)

    return run(reading())
