"""A session that one task uses at a time, and the scopes that open and leave one."""

import asyncio
import contextlib
import functools
import secrets
import sys
import time
from collections.abc import Callable
from contextvars import Token
from types import TracebackType
from typing import Any, TypeVar, cast

from sqlalchemy import exc as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, AsyncSessionTransaction

from core.database.errors import ConnectionLost, PandaDatabaseError, SessionShared, forget_locals, translate
from core.database.monitoring import SESSION, LoggedSession, QueryMonitor

F = TypeVar("F", bound=Callable[..., Any])

_FOREIGN: tuple[type[Exception], ...] = (
    sa.TimeoutError, sa.PendingRollbackError, sa.StatementError, OSError, UnicodeEncodeError,
)  # fmt: skip


def _exclusive(method: F) -> F:
    """The method, refused while another task is inside one, with the errors that pass no engine event translated."""

    @functools.wraps(method)
    async def guarded(self: "PandaSession", *args: Any, **kwargs: Any) -> Any:
        task = asyncio.current_task()
        outer = self.user_task
        if outer is not None and outer is not task:
            raise SessionShared("this session is in use by another task")
        self.user_task = task
        try:
            return await method(self, *args, **kwargs)
        except BaseException as error:  # whatever it is, the frames below hold what was sent
            untranslated = isinstance(error, _FOREIGN) and not isinstance(error, PandaDatabaseError)
            ours = translate(error) if untranslated else None
            forget_locals(error)
            if ours is None:
                raise
            raise ours from error
        finally:
            del args, kwargs  # what an error leaves behind of this frame shows no parameter
            self.user_task = outer
            if outer is None and self.waiter is not None and not self.waiter.done():
                self.waiter.set_result(None)

    return cast(F, guarded)


class PandaSession(AsyncSession):
    """SQLAlchemy's AsyncSession with the promises of this package; made by `DatabaseManager` only.

    Objects stay readable after commit (`expire_on_commit` is off). A second task that uses the session while the
    first is inside a call gets `SessionShared`.
    """

    outer: LoggedSession | None = None
    """The session that was open in the same context when this one was opened."""
    closed: bool = False
    _log_id: str | None = None

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine, expire_on_commit=False)
        self.committed = False
        """A transaction of this session has been stored."""
        self.user_task: asyncio.Task[Any] | None = None
        """The task that is inside a call."""
        self.waiter: asyncio.Future[None] | None = None

    @property
    def log_id(self) -> str:
        """What log records call the session; made when first asked for."""
        if self._log_id is None:
            self._log_id = secrets.token_hex(4)
        return self._log_id

    execute = _exclusive(AsyncSession.execute)
    scalar = _exclusive(AsyncSession.scalar)
    scalars = _exclusive(AsyncSession.scalars)
    stream = _exclusive(AsyncSession.stream)
    stream_scalars = _exclusive(AsyncSession.stream_scalars)
    get = _exclusive(AsyncSession.get)
    get_one = _exclusive(AsyncSession.get_one)
    refresh = _exclusive(AsyncSession.refresh)
    merge = _exclusive(AsyncSession.merge)
    delete = _exclusive(AsyncSession.delete)
    flush = _exclusive(AsyncSession.flush)
    rollback = _exclusive(AsyncSession.rollback)
    connection = _exclusive(AsyncSession.connection)
    run_sync = _exclusive(AsyncSession.run_sync)

    @_exclusive
    async def commit(self) -> None:
        """Store the transaction, or raise: `TransactionAborted` stored nothing, `CommitOutcomeUnknown` says so."""
        await super().commit()
        self.committed = True

    async def finish(self, *, offline: bool, patience: float) -> None:
        """Roll back what is open and give the connection back; survives cancellation of the caller.

        `offline` says that giving back needs no word to the server. A call that another task still has under way is
        waited for, `patience` seconds at the most.
        """
        if self.user_task is not None and self.user_task is not asyncio.current_task():
            self.waiter = asyncio.get_running_loop().create_future()
            await asyncio.wait([self.waiter], timeout=patience)
        if offline or not self.in_transaction():
            self.sync_session.close()
            return
        try:
            await AsyncSession.close(self)
        except asyncio.CancelledError:
            # The interrupted rollback has discarded its connection; what is left needs no word to the server.
            await asyncio.shield(asyncio.ensure_future(AsyncSession.close(self)))
            raise
        except ConnectionLost:
            # So nothing is left to roll back: what ended the block, a cancellation of COPY say, is all there is to tell.
            await AsyncSession.close(self)


class SessionScope:
    """`async with` around one session: leaving without commit rolls back and returns the connection."""

    __slots__ = (
        "_check", "_engine", "_entered", "_monitor", "_offline", "_opened_at", "_patience", "_session", "_token",
    )  # fmt: skip

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        check: Callable[[], object],
        offline: bool,
        patience: float,
        monitor: QueryMonitor | None,
        caller: tuple[str, int],
    ) -> None:
        self._engine = engine
        self._check = check
        self._offline = offline
        self._patience = patience
        self._monitor = monitor
        self._opened_at = caller
        self._entered = 0.0
        self._session: PandaSession | None = None
        self._token: Token[LoggedSession | None] | None = None

    async def __aenter__(self) -> PandaSession:
        self._check()  # the scope may be entered long after it was made, or elsewhere
        session = self._session = PandaSession(self._engine)
        session.outer = SESSION.get()
        self._token = SESSION.set(session)
        self._entered = time.monotonic()
        return session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session, self._session = self._session, None
        if error is not None:
            forget_locals(error)  # those of the rooms that were called in the block, too
        if session is None:
            return
        try:
            await session.finish(offline=self._offline, patience=self._patience)
        finally:
            session.closed = True
            if self._token is not None:
                with contextlib.suppress(ValueError):  # left in another context than entered: a fixture, say
                    SESSION.reset(self._token)
            if self._monitor is not None:
                seconds = time.monotonic() - self._entered
                self._monitor.session_closed(seconds, self._opened_at, read_only=self._offline, session=session)


class TransactionScope:
    """`async with` around one transaction of its own session: commits on success, rolls back otherwise."""

    __slots__ = ("_scope", "_session")

    def __init__(self, scope: SessionScope) -> None:
        self._scope = scope
        self._session: PandaSession | None = None

    async def __aenter__(self) -> PandaSession:
        self._session = await self._scope.__aenter__()
        return self._session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session, self._session = self._session, None
        try:
            if error is None and session is not None:
                await session.commit()
        finally:
            await self._scope.__aexit__(kind, error, trace)


class SavepointScope:
    """`async with` around a savepoint of a given session: released on success, rolled back to otherwise."""

    __slots__ = ("_nested", "_session")

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        self._nested: AsyncSessionTransaction | None = None

    async def __aenter__(self) -> AsyncSession:
        self._nested = await self._session.begin_nested()
        return self._session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        nested, self._nested = self._nested, None
        if nested is None or not nested.is_active:
            return
        await (nested.commit() if error is None else nested.rollback())


def caller_of(depth: int) -> tuple[str, int]:
    """File and line of the code that is `depth` calls above this function's caller."""
    frame = sys._getframe(depth + 1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - documented, and the only cheap way
    return frame.f_code.co_filename, frame.f_lineno
