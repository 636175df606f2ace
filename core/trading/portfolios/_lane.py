"""The writer's connection: made anew when it is lost, and what of its troubles will pass."""

import random
from typing import Final

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from core.database.connection import DatabaseManager
from core.database.driver import CommittingConnection
from core.database.errors import (
    CommitOutcomeUnknown,
    ConnectionLost,
    LockTimeout,
    PandaDatabaseError,
    PoolExhausted,
    PrimaryDemoted,
    StatementTimeout,
    translate,
)

_LIMIT: Final = 15.0  # seconds for the server's answer; its own statement_timeout is meant to come first
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 1.0

# Nothing of a statement that ended so is stored, or storing it again does no harm: a key is stored once.
_PASSING: Final = (CommitOutcomeUnknown, PoolExhausted, StatementTimeout, LockTimeout)


def is_passing(error: PandaDatabaseError) -> bool:
    """Whether the same statement may well succeed a little later."""
    return error.retryable or isinstance(error, _PASSING)


def pause_after(failures: int) -> float:
    """Seconds to wait after so many failures in a row: some, and up to a limit that doubles."""
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(failures - 1, 16))
    return random.uniform(longest / 2, longest)  # noqa: S311 - spreads the clients, guards nothing


class Lane:
    """One connection of a manager's read-write pool, held until `release`."""

    def __init__(self, manager: DatabaseManager) -> None:
        self._manager = manager
        self._connection: CommittingConnection | None = None
        self.limit = _LIMIT
        """Seconds that one statement is given by the client."""

    @property
    def ready(self) -> CommittingConnection | None:
        """The connection, if there is one that lives."""
        return self._connection if self._connection is not None and self._connection.usable else None

    async def connect(self) -> CommittingConnection:
        """The connection, made if there is none that lives. Raises `PandaDatabaseError`s, translated."""
        if (ready := self.ready) is not None:
            return ready
        await self.release()
        engine = self._manager.engine
        pooler = bool(engine.get_execution_options().get("pgbouncer"))
        connection = await _opened(self._manager)
        try:
            taken = await CommittingConnection.of(connection, timeout=self.limit, pooler=pooler)
        except CommitOutcomeUnknown as error:  # of the setting alone: no row has been sent
            await _given_up(connection)
            raise ConnectionLost("the connection was lost before a row was sent") from error
        except BaseException:  # cancellation too: the pool gets its place back
            await _given_up(connection)
            raise
        self._connection = taken
        return taken

    async def recover(self, error: PandaDatabaseError) -> None:
        """After an error: let go of a connection that is of no more use."""
        demoted = isinstance(error, PrimaryDemoted)
        if self._connection is not None and (demoted or not self._connection.usable):
            await self.release()

    async def release(self) -> None:
        """Close the connection; safe to call without one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.discard()


async def _given_up(connection: AsyncConnection) -> None:
    await connection.invalidate()
    await connection.close()


async def _opened(manager: DatabaseManager) -> AsyncConnection:
    try:
        return await manager.engine.connect()
    except (SQLAlchemyError, OSError) as error:
        ours = translate(error, phase="connect")
        if ours is None or ours is error:
            raise
        raise ours from error
