"""A connection that is strict about how its transaction ends, and that reports what each statement took."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# asyncpg ships no type information; this room alone sees it.

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement

from core.database.driver._broker import begin_with, not_begun, refuse_lasting, refuse_leaving, refuse_outside
from core.database.driver._effect import Effect, effect_of
from core.database.errors import CommitOutcomeUnknown, ConnectionLost, PandaDatabaseError, TransactionAborted, translate
from core.database.monitoring import ConnectionMonitor, TransactionOutcome

T = TypeVar("T")
OnStatement = Callable[[str, float, BaseException | None], None]
"""Called after each statement with its SQL, its seconds and the driver's error; it must not raise."""

_GOODBYE = 1.0  # seconds
_LASTS = Effect.OUTLIVES | Effect.MAY_OUTLIVE


class DriverConnection(asyncpg.Connection):
    """A connection whose COMMIT either stored the transaction or raised, and whose ROLLBACK ends in bounded time."""

    __slots__ = ("broker", "cleanup", "failed", "idle_since", "on_statement", "pooled", "used", "watch")

    broker: str | None
    """The broker whose rows the next transaction, or the open one, is bound to."""
    failed: bool
    """A statement of the open transaction failed and no savepoint has been rolled back to since."""
    idle_since: float
    """time.monotonic() of the last return to the pool."""
    pooled: bool
    """Behind it is a pooler that gives the server's connections to others between transactions."""
    used: bool
    """Something may have been left on it that outlives a transaction; the pool wipes it off before others get it."""
    on_statement: OnStatement | None
    """`watch.statement`, at hand."""
    watch: ConnectionMonitor | None
    """Set by the connector while the connection has not yet been given out."""
    cleanup: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.broker = None
        self.failed = False
        self.pooled = False
        self.used = False
        self.idle_since = time.monotonic()
        self.on_statement = None
        self.watch = None
        self.cleanup = 5.0

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Run a statement; the transaction's ends, which asyncpg sends from here too, are guarded."""
        if query == "COMMIT;":
            return await self._commit()
        if query == "ROLLBACK;":
            return await self._rollback()
        if self.broker is not None and query.startswith("BEGIN") and query.find(";") in (-1, len(query) - 1):
            return await self._begin(query, self.broker)
        self._judge(query)
        if self.on_statement is None:
            return await super().execute(query, *args, timeout=timeout)
        status = await self._timed(query, super().execute(query, *args, timeout=timeout))
        if self.watch is not None and query.startswith("BEGIN"):
            self.watch.begun(query)
        return status

    async def executemany(self, command: str, args: Any, *, timeout: float | None = None) -> None:
        await self._timed(command, super().executemany(command, args, timeout=timeout))

    async def prepare(self, query: str, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            statement = await super().prepare(query, **options)
        except BaseException as error:  # a statement that is wrong fails here; nothing is swallowed
            if self.on_statement is not None:
                self.on_statement(query, time.perf_counter() - start, error)
            raise
        if query.startswith("ROLLBACK TO"):
            return _RollbackToSavepoint(statement, self)
        if self.on_statement is not None:
            statement = _TimedStatement(statement, query, self.on_statement)
        effect = effect_of(query)
        return _JudgedStatement(statement, self, effect) if effect else statement

    def _get_statement(self, query: str, timeout: float | None, **options: Any) -> Any:
        """Where every statement with arguments comes by that has not been prepared, cursors included."""
        self._judge(query)
        return super()._get_statement(query, timeout, **options)

    def _copy_out(self, copy_stmt: str, output: Any, timeout: float | None) -> Any:
        self._judge(copy_stmt)
        return super()._copy_out(copy_stmt, output, timeout)

    def _copy_in(self, copy_stmt: str, source: Any, timeout: float | None) -> Any:
        self._judge(copy_stmt)
        return super()._copy_in(copy_stmt, source, timeout)

    def _judge(self, query: str) -> None:
        self.judge(effect_of(query))

    def judge(self, effect: Effect) -> None:
        """Before a statement is sent. Raises `SessionMisuse` for what a broker's session may not send."""
        if effect is not Effect.NONE:  # rare, and flags are slow to combine
            self.used = self.used or bool(effect & _LASTS)
            if self.broker is not None and Effect.LEAVES in effect:
                refuse_leaving()
            if self.broker is not None and self.pooled and Effect.OUTLIVES in effect:
                refuse_lasting()
        if self.broker is not None and not self.is_in_transaction():
            refuse_outside()

    async def close(self, *, timeout: float | None = None) -> None:
        """Say good-bye, within a second at the most: a dead network gets no more."""
        limit = min(timeout or _GOODBYE, _GOODBYE)
        try:
            async with asyncio.timeout(limit):
                await super().close()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            self.terminate()
        finally:
            self._ended("aborted")

    def terminate(self) -> None:
        """Close the socket without a word; an open transaction is rolled back by the server."""
        super().terminate()
        self._ended("aborted")

    def _ended(self, outcome: TransactionOutcome) -> None:
        if self.watch is not None:
            self.watch.ended(outcome)

    async def _begin(self, query: str, broker: str) -> str:
        """BEGIN as the broker, or nothing: a connection where only half of it was done is closed."""
        try:
            await self._timed(query, super().execute(begin_with(query, broker)))
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            ours = not_begun(error, broker=broker)
            self.terminate()
            if ours is None:
                raise
            raise ours from error
        except BaseException:  # cancellation: who knows how far the server has got
            self.terminate()
            raise
        if self.watch is not None:
            self.watch.begun(query)
        return "BEGIN"

    async def _commit(self) -> str:
        """COMMIT; what the server answers is believed, not that it answered."""
        outcome: TransactionOutcome = "unknown"  # cancelled while it is under way, for one
        try:
            status = await self._answered_commit()
            outcome = "committed"
        except PandaDatabaseError as error:
            if not isinstance(error, CommitOutcomeUnknown):
                outcome = "aborted"
            if self.watch is not None and error.orig is None:  # no statement has reported it
                self.watch.refused(type(error).__name__)
            raise
        finally:
            self._ended(outcome)
        return status

    async def _answered_commit(self) -> str:
        if self.is_closed():
            raise ConnectionLost("the connection was lost before COMMIT; nothing of the transaction is stored")
        if self.failed:
            await self._rollback()
            raise TransactionAborted("an earlier statement of this transaction failed; it was rolled back")
        try:
            status = await self._timed("COMMIT", super().execute("COMMIT;"))
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            ours = translate(error, phase="commit", disconnected=self.is_closed())
            if ours is None:
                raise
            raise ours from error
        if status != "COMMIT":
            raise TransactionAborted("an earlier statement of this transaction failed; the server rolled it back")
        return status

    async def _rollback(self) -> str:
        """ROLLBACK; on a connection that is gone or does not answer in time, closing it is the same."""
        outcome: TransactionOutcome = "aborted" if self.failed else "rolled_back"
        self.failed = False
        task = asyncio.current_task()
        if self.watch is not None and task is not None and task.cancelling():
            self.watch.cancelled = True
        try:
            status = await super().execute("ROLLBACK;", timeout=self.cleanup)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
            self.terminate()
            return "ROLLBACK"
        finally:
            self._ended(outcome)
        return status

    async def _timed(self, query: str, work: Coroutine[Any, Any, T]) -> T:
        """Await the work and report how long it took."""
        report = self.on_statement
        if report is None:
            return await work
        start = time.perf_counter()
        try:
            result = await work
        except BaseException as error:  # cancellation is reported too; nothing is swallowed
            report(query, time.perf_counter() - start, error)
            raise
        report(query, time.perf_counter() - start, None)
        return result


class _RollbackToSavepoint:
    """ROLLBACK TO SAVEPOINT, prepared: once it has run, the transaction is whole again."""

    __slots__ = ("_connection", "_statement")

    def __init__(self, statement: PreparedStatement, connection: DriverConnection) -> None:
        self._statement = statement
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._statement, name)

    async def fetch(self, *args: Any) -> list[Any]:
        rows = await self._statement.fetch(*args)
        self._connection.failed = False
        return rows


class _JudgedStatement:
    """A prepared COMMIT, SET or the like, judged anew each time that it runs."""

    __slots__ = ("_connection", "_effect", "_statement")

    _RUNS = frozenset({"cursor", "executemany", "explain", "fetch", "fetchmany", "fetchrow", "fetchval"})

    def __init__(self, statement: Any, connection: DriverConnection, effect: Effect) -> None:
        self._statement = statement
        self._connection = connection
        self._effect = effect

    def __getattr__(self, name: str) -> Any:
        if name in self._RUNS:
            self._connection.judge(self._effect)
        return getattr(self._statement, name)


class _TimedStatement:
    """A prepared statement that reports how long each run took."""

    __slots__ = ("_on_statement", "_query", "_statement", "cursor", "get_attributes", "get_statusmsg")

    def __init__(self, statement: PreparedStatement, query: str, on_statement: OnStatement) -> None:
        self._statement = statement
        self._query = query
        self._on_statement = on_statement
        self.cursor = statement.cursor
        self.get_attributes = statement.get_attributes
        self.get_statusmsg = statement.get_statusmsg

    def __getattr__(self, name: str) -> Any:
        return getattr(self._statement, name)

    async def fetch(self, *args: Any) -> list[Any]:
        start = time.perf_counter()
        try:
            rows = await self._statement.fetch(*args)
        except BaseException as error:  # cancellation is reported too; nothing is swallowed
            self._on_statement(self._query, time.perf_counter() - start, error)
            raise
        self._on_statement(self._query, time.perf_counter() - start, None)
        return rows
