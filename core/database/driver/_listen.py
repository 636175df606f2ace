"""LISTEN on a connection that its pool has let go."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# asyncpg ships no type information; this room alone sees it.

import asyncio
from collections.abc import Callable, Sequence

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection

from core.database.driver._connection import DriverConnection
from core.database.errors import ConnectTimeout, translate


async def listen(
    connection: AsyncConnection,
    channels: Sequence[str],
    *,
    receive: Callable[[str, str, int], None],
    lost: Callable[[], None],
    timeout: float,
) -> DriverConnection:
    """Detach a connection that is in no transaction from its pool and LISTEN on it, within `timeout` seconds.

    `receive` is called with channel, payload and the sender's process id, `lost` once when the connection ends, however that
    comes about. The caller closes `connection`. Raises a `ConnectionFailed` or what the server says of LISTEN.
    """
    proxy = await connection.get_raw_connection()
    raw: DriverConnection = proxy.driver_connection  # type: ignore[assignment]
    proxy.detach()

    def received(_: object, pid: int, channel: str, payload: object) -> None:
        receive(channel, str(payload), pid)

    def ended(_: object) -> None:
        lost()

    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            for channel in channels:
                await raw.add_listener(channel, received)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        raw.terminate()
        if limit.expired():
            raise ConnectTimeout(f"LISTEN was not answered within {timeout:g} s") from error
        ours = translate(error, disconnected=raw.is_closed())
        if ours is None:
            raise
        raise ours from error
    raw.add_termination_listener(ended)
    if raw.is_closed():
        lost()
    return raw
