"""asyncpg, and nothing else of the project imports it.

Connections are made with a time limit for each host, so that one frozen host never hides the healthy ones behind it, and
are of a class that is strict about how a transaction ends.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# asyncpg ships no type information; this is the only room that sees it.

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from core.database.errors import (
    ConnectionLost,
    HostUnreachable,
    PandaDatabaseError,
    StatementTimeout,
    TransactionAborted,
    WrongEventLoop,
    translate,
)

__all__ = [
    "ConnectSpec",
    "Connector",
    "DriverConnection",
    "OnStatement",
    "SessionAttrs",
    "probe",
    "raw_connection",
]

OnStatement = Callable[[str, float, BaseException | None], None]
"""Called after each statement with its SQL, its seconds and the driver's error; it must not raise."""

SessionAttrs = Literal["any", "primary", "standby", "read-write", "read-only", "prefer-standby"]

_DEAD_PEER_MS = 15_000  # unacknowledged bytes for this long mean a dead network (TCP_USER_TIMEOUT)
_GOODBYE = 1.0  # seconds
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3}


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectSpec:
    """Where and how to connect; `hosts` are tried in order, each within `timeout` seconds."""

    hosts: tuple[tuple[str, int], ...]
    user: str | None
    password: str | None = field(repr=False)
    database: str | None
    tls: ssl.SSLContext | Literal["prefer"] | bool
    timeout: float
    cleanup: float
    server_settings: Mapping[str, str]
    session_attrs: SessionAttrs = "any"
    prepared_statements: bool = True


class DriverConnection(asyncpg.Connection):
    """A connection whose COMMIT either stored the transaction or raised, and whose ROLLBACK ends in bounded time."""

    __slots__ = ("cleanup", "failed", "idle_since", "on_statement")

    failed: bool
    """A statement of the open transaction failed and no savepoint has been rolled back to since."""
    idle_since: float
    """time.monotonic() of the last return to the pool."""
    on_statement: OnStatement | None
    cleanup: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.failed = False
        self.idle_since = time.monotonic()
        self.on_statement = None
        self.cleanup = 5.0

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Run a statement; the transaction's ends, which asyncpg sends from here too, are guarded."""
        if query == "COMMIT;":
            return await self._commit()
        if query == "ROLLBACK;":
            return await self._rollback()
        if self.on_statement is None:
            return await super().execute(query, *args, timeout=timeout)
        with self._timed(query):
            return await super().execute(query, *args, timeout=timeout)

    async def executemany(self, command: str, args: Any, *, timeout: float | None = None) -> None:
        with self._timed(command):
            await super().executemany(command, args, timeout=timeout)

    async def prepare(self, query: str, **options: Any) -> Any:
        statement = await super().prepare(query, **options)
        return statement if self.on_statement is None else _TimedStatement(statement, query, self.on_statement)

    async def close(self, *, timeout: float | None = None) -> None:
        """Say good-bye, within a second at the most: a dead network gets no more."""
        limit = min(timeout or _GOODBYE, _GOODBYE)
        try:
            async with asyncio.timeout(limit):
                await super().close()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            self.terminate()

    async def _commit(self) -> str:
        """COMMIT; what the server answers is believed, not that it answered."""
        if self.is_closed():
            raise ConnectionLost("the connection was lost before COMMIT; nothing of the transaction is stored")
        if self.failed:
            await self._rollback()
            raise TransactionAborted("an earlier statement of this transaction failed; it was rolled back")
        try:
            with self._timed("COMMIT"):
                status = await super().execute("COMMIT;")
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            ours = translate(error, phase="commit", disconnected=self.is_closed())
            raise (ours or error) from error
        if status != "COMMIT":
            raise TransactionAborted("an earlier statement of this transaction failed; the server rolled it back")
        return status

    async def _rollback(self) -> str:
        """ROLLBACK; on a connection that is gone or does not answer in time, closing it is the same."""
        self.failed = False
        try:
            async with asyncio.timeout(self.cleanup):
                return await super().execute("ROLLBACK;")
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
            self.terminate()
            return "ROLLBACK"

    @contextlib.contextmanager
    def _timed(self, query: str) -> Generator[None]:
        if self.on_statement is None:
            yield
            return
        start, failure = time.perf_counter(), None
        try:
            yield
        except BaseException as error:  # cancellation is reported too; nothing is swallowed
            failure = error
            raise
        finally:
            self.on_statement(query, time.perf_counter() - start, failure)


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
        except BaseException as error:
            self._on_statement(self._query, time.perf_counter() - start, error)
            raise
        self._on_statement(self._query, time.perf_counter() - start, None)
        return rows


class Connector:
    """Makes connections by a `ConnectSpec`; the host that worked last is tried first.

    `recover` is awaited once when no host can be reached, and the hosts are then tried again: the built-in server is
    started anew by it.
    """

    def __init__(
        self,
        spec: ConnectSpec,
        *,
        on_statement: OnStatement | None = None,
        recover: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.spec = spec
        self._on_statement = on_statement
        self._recover = recover
        self._preferred = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def check_loop(self) -> None:
        """Raise `WrongEventLoop` on another event loop than the first connection's."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise WrongEventLoop("these connections belong to another event loop")

    async def __call__(self) -> DriverConnection:
        """A new connection. Raises a `ConnectionFailed` that says what each host answered."""
        self.check_loop()
        try:
            return await self._any_host()
        except HostUnreachable:
            if self._recover is None:
                raise
        await self._recover()
        return await self._any_host()

    async def _any_host(self) -> DriverConnection:
        failures: list[PandaDatabaseError] = []
        count = len(self.spec.hosts)
        for index in [(self._preferred + step) % count for step in range(count)]:
            try:
                connection = await self._one_host(*self.spec.hosts[index])
            except PandaDatabaseError as error:
                if not error.retryable:
                    raise
                failures.append(error)
                continue
            self._preferred = index
            return connection
        if count == 1:
            raise failures[0]
        reasons = "; ".join(failure.message for failure in failures)
        raise type(failures[0])(f"none of the {count} hosts would do: {reasons}") from failures[0]

    async def _one_host(self, host: str, port: int) -> DriverConnection:
        try:
            async with asyncio.timeout(self.spec.timeout):
                connection = await self._open(host, port)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
            ours = translate(error, phase="connect")
            if ours is None:
                raise
            ours.message = f"{_place(host, port)}: {ours.message}"
            raise ours from error
        connection.on_statement = self._on_statement
        connection.cleanup = self.spec.cleanup
        _watch_network(connection)
        return connection

    async def _open(self, host: str, port: int) -> DriverConnection:
        spec = self.spec
        options: dict[str, Any] = {"timeout": spec.timeout}
        if not spec.prepared_statements:
            options["statement_cache_size"] = 0
        return await asyncpg.connect(
            host=host,
            port=port,
            user=spec.user,
            password=spec.password,
            database=spec.database,
            ssl=False if host.startswith("/") else spec.tls,
            server_settings=dict(spec.server_settings),
            target_session_attrs=spec.session_attrs,
            connection_class=DriverConnection,
            **options,
        )


def _place(host: str, port: int) -> str:
    if host.startswith("/"):
        return f"socket {host}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _watch_network(connection: DriverConnection) -> None:
    """Let the kernel notice a dead network in seconds, where it can: Linux has all of these options."""
    transport: Any = getattr(connection, "_transport", None)
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    options = {**_KEEPALIVE, "TCP_USER_TIMEOUT": _DEAD_PEER_MS}
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def probe(connection: DriverConnection, *, timeout: float) -> bool:
    """Whether the connection answers a statement without columns within `timeout` seconds; if not it is terminated."""
    try:
        async with asyncio.timeout(timeout):
            await asyncpg.Connection.execute(connection, "SELECT")  # past the monitor
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
        connection.terminate()
        return False
    return True


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
        if limit.expired():
            raw.terminate()
            raise StatementTimeout(f"the work did not end within {timeout} s; the connection was closed") from error
        ours = translate(error, disconnected=raw.is_closed())
        raise (ours or error) from error
    except asyncio.CancelledError:
        raw.terminate()  # what the server did with the half-sent data is unknown; the transaction must not go on
        raise
    except BaseException:
        raw.failed = True
        raise
