"""Statements that commit by themselves, past SQLAlchemy, for work that counts its round trips."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# asyncpg ships no type information; this room alone sees it.

import asyncio
import time
from typing import Any

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection

from core.database.driver._connection import DriverConnection
from core.database.errors import CommitOutcomeUnknown, ConnectionLost, translate

_DURABLE = (
    "SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'"
    " ELSE current_setting('synchronous_commit') END, $1)"
)


class CommittingConnection:
    """A connection that SQLAlchemy has begun no transaction on: each statement is stored, durably, when `fetch` returns.

    It is never given back to its pool for others, since it has settings of its own: `discard` closes it.
    """

    __slots__ = ("_connection", "_explicit", "_raw")

    def __init__(self, connection: AsyncConnection, raw: DriverConnection, *, explicit: bool) -> None:
        self._connection = connection
        self._raw = raw
        self._explicit = explicit

    @classmethod
    async def of(cls, connection: AsyncConnection, *, timeout: float, pooler: bool = False) -> "CommittingConnection":
        """Take over a connection. Its synchronous_commit is pinned, to `on` where it was off.

        Behind a `pooler` of transactions nothing outlives a transaction: there each statement gets one with its settings.
        Raises as `fetch`.
        """
        raw: DriverConnection = (await connection.get_raw_connection()).driver_connection  # type: ignore[assignment]
        made = cls(connection, raw, explicit=pooler)
        if not pooler:
            await made._run(_DURABLE, (False,), timeout, explicit=False)
        return made

    @property
    def usable(self) -> bool:
        return not self._raw.is_closed()

    async def fetch(self, statement: str, *args: Any, timeout: float) -> list[Any]:
        """Run one statement and its commit within `timeout` seconds; its rows.

        Raises `CommitOutcomeUnknown` when the connection was lost, or closed because time was up, after it was sent. With any
        other error nothing is stored.
        """
        return await self._run(statement, args, timeout, explicit=self._explicit)

    async def discard(self) -> None:
        """Close it without a word; the pool opens another when it needs one."""
        self._raw.terminate()
        await self._connection.close()

    async def _run(self, statement: str, args: tuple[Any, ...], timeout: float, *, explicit: bool) -> list[Any]:
        raw, start = self._raw, time.perf_counter()
        if raw.is_closed():
            raise ConnectionLost("the connection was lost before the statement was sent")
        failure: BaseException | None = None
        # Half the price of asyncio.timeout, and what it would come to: a connection whose answer is late is of no more use.
        limit = asyncio.get_running_loop().call_later(timeout, raw.terminate)
        try:
            if explicit:
                async with raw.transaction():
                    await raw.fetch(_DURABLE, True)
                    return await raw.fetch(statement, *args)
            return await raw.fetch(statement, *args)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
            failure = error
            if raw.is_closed() and time.perf_counter() - start >= timeout:
                raise CommitOutcomeUnknown(f"the server did not answer within {timeout:.3g} s") from error
            ours = translate(error, phase="commit", disconnected=raw.is_closed())
            if ours is None:
                raise
            raise ours from error
        except (
            BaseException
        ) as error:  # cancellation: what the server made of it is unknown, and nobody may go on with it
            failure = error
            raw.terminate()
            raise
        finally:
            limit.cancel()
            if raw.on_statement is not None:
                raw.on_statement(statement, time.perf_counter() - start, failure)
