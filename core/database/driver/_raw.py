"""The driver's own connection, for what SQLAlchemy has no word for."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# asyncpg ships no type information; this room alone sees it.

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from core.database.driver._connection import DriverConnection
from core.database.errors import StatementTimeout, forget_locals, translate


async def probe(connection: DriverConnection, *, timeout: float) -> bool:
    """Whether the connection answers a statement without columns within `timeout` seconds; if not it is terminated."""
    try:
        async with asyncio.timeout(timeout):
            await asyncpg.Connection.execute(connection, "SELECT")  # past the monitor
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
        connection.terminate()
        return False
    return True


_WIPE = (
    "CLOSE ALL; UNLISTEN *; SELECT pg_advisory_unlock_all(); RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; DISCARD TEMP;"
    " DISCARD SEQUENCES"
)
"""DISCARD ALL without what would forget the prepared statements."""


async def wipe(connection: DriverConnection, *, timeout: float) -> None:
    """Take everything off a connection that outlives a transaction, within `timeout` seconds; else it is terminated."""
    try:
        async with asyncio.timeout(timeout):
            await asyncpg.Connection.execute(connection, _WIPE)  # past the monitor
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
        connection.terminate()
    except BaseException:  # cancellation: nobody knows how far the server has got
        connection.terminate()
        raise
    connection.used = False


@contextlib.asynccontextmanager
async def raw_connection(
    source: AsyncSession | AsyncConnection, *, timeout: float | None = None
) -> AsyncGenerator[DriverConnection]:
    """The driver's connection of a session, inside the session's transaction, for what SQLAlchemy has no word for.

    A statement is executed first where none has been, since BEGIN is lazy: COPY would stand outside the transaction. Errors are
    translated and mark the transaction as failed. `timeout` seconds, if given, bound the block. Never commits.
    """
    connection = await source.connection() if isinstance(source, AsyncSession) else source
    raw: DriverConnection = (await connection.get_raw_connection()).driver_connection  # type: ignore[assignment]
    if not raw.is_in_transaction():
        await connection.exec_driver_sql("SELECT 1")
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            yield raw
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        raw.failed = True
        forget_locals(error)
        if limit.expired():
            raw.terminate()
            raise StatementTimeout(f"the work did not end within {timeout} s; the connection was closed") from error
        ours = translate(error, disconnected=raw.is_closed())
        if ours is None:  # the caller's own: a file that is not there, say
            raise
        raise ours from error
    except asyncio.CancelledError:
        raw.terminate()  # what the server did with the half-sent data is unknown; the transaction must not go on
        raise
    except BaseException:  # whatever the caller raised half way: the transaction must not commit
        raw.failed = True
        raise
