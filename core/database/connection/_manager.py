"""DatabaseManager: its options, and the doors to sessions and transactions."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from core.config.options import (
    Environment,
    MonitoringOptions,
    PoolOptions,
    RetryOptions,
    SchemaManagement,
    Timeouts,
    TlsOptions,
)
from core.database.connection._broker import checked_broker
from core.database.connection._lifecycle import Lifecycle
from core.database.connection._session import SavepointScope, SessionScope, TransactionScope, caller_of
from core.database.connection._startup import checked_mode, until_ready
from core.database.encryption import KeyRing
from core.database.engine import EngineOptions
from core.database.errors import ConfigurationError, SessionMisuse
from core.database.health import check_health, unhealthy
from core.database.monitoring import Hook, QueryHook, QueryMonitor
from core.database.retry import run_with_retry

if TYPE_CHECKING:
    from core.config.settings import Settings

T = TypeVar("T")
IsolationLevel = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


class DatabaseManager:
    """Everything between an application and its PostgreSQL: connect once, then open sessions.

    One manager belongs to one process and one event loop. The URL is read, and refused with `InvalidUrl` if it cannot
    work, at construction; nothing is sent before `connect()`. All durations are seconds. With `ring`, the keys that an
    application seals and opens with, `connect()` finds out whether they are the right ones.
    """

    def __init__(
        self,
        db_url: str,
        environment: Environment = "development",
        schema_management: SchemaManagement = "auto",
        *,
        verify_migrations: bool = True,
        pool: PoolOptions | None = None,
        timeouts: Timeouts | None = None,
        tls: TlsOptions | None = None,
        retry: RetryOptions | None = None,
        monitoring: MonitoringOptions | None = None,
        pgbouncer: bool = False,
        hooks: Sequence[QueryHook | Hook] = (),
        monitor: QueryMonitor | None = None,
        application_name: str = "alpha-panda",
        ring: KeyRing | None = None,
    ) -> None:
        self._environment: Environment = checked_mode("environment", environment, Environment)
        self._mode: SchemaManagement = checked_mode("schema_management", schema_management, SchemaManagement)
        self._retry = retry or RetryOptions()
        monitoring = monitoring or MonitoringOptions()
        monitor = monitor or QueryMonitor(monitoring, hooks)
        self._monitor = monitor if monitoring.enabled else None
        self._options = EngineOptions(
            environment=self._environment,
            pool=pool or PoolOptions(),
            timeouts=timeouts or Timeouts(),
            tls=tls or TlsOptions(),
            pgbouncer=pgbouncer,
            application_name=application_name,
        )
        self._life = Lifecycle(
            db_url,
            self._options,
            mode=self._mode,
            verify=verify_migrations,
            ring=ring,
            monitor=monitor,
            monitored=monitoring.enabled,
        )

    @classmethod
    def from_settings(
        cls, settings: "Settings", *, hooks: Sequence[QueryHook | Hook] = (), monitor: QueryMonitor | None = None
    ) -> Self:
        """A manager by `core.config.settings`; its ring is that of the encryption keys. Raises `InvalidKey` for bad ones."""
        database = settings.database
        keys = database.encryption_keys
        return cls(
            database.postgres_url,
            settings.environment,
            database.schema_management,
            verify_migrations=database.verify_migrations,
            pool=database.pool,
            timeouts=database.timeouts,
            tls=database.tls,
            retry=database.retry,
            monitoring=database.monitoring,
            pgbouncer=database.pgbouncer,
            application_name=database.application_name,
            ring=None if keys is None else KeyRing.parse(keys.get_secret_value()),
            hooks=hooks,
            monitor=monitor,
        )

    def __repr__(self) -> str:
        state = "connected" if self._life.engines is not None else "not connected"
        return f"<DatabaseManager {self._life.place} {self._environment} {self._mode} {state}>"

    @property
    def engine(self) -> AsyncEngine:
        """The read-write engine. Raises `ManagerNotConnected` before `connect()`."""
        return self._life.check().writer

    async def connect(self) -> None:
        """Start the built-in server if the URL is `embedded:`, reach the database, and see to its schema.

        Does nothing when connected. Leaves nothing open when it fails. Raises a `ConnectionFailed`, a `SchemaError`,
        a `ConfigurationError` (pool beyond the server's limit, in staging and production), `EmbeddedServerError`, or
        `InvalidKey` where another key than the ring's has sealed secrets under its id.
        """
        await self._life.connect()

    async def close(self) -> None:
        """Close every connection; the built-in server is stopped if nobody else uses it. Safe to call twice.

        Hooks are told what has happened, within a second.
        """
        await self._life.close()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def get_session(
        self, *, read_only: bool = False, consistent: bool = False, broker: str | None = None
    ) -> AbstractAsyncContextManager[AsyncSession]:
        """A session; the caller commits, and leaving without commit rolls back.

        `read_only` takes the pool for single reads: one round trip a statement, each on a snapshot of its own; a
        write raises `ReadOnlyViolation`. With `consistent` (and always behind PgBouncer) a read-only session is one
        READ ONLY transaction instead. Raises `PoolExhausted`, `ConnectionFailed`, `SessionMisuse`.

        With `broker` it works under the restricted role: of trading sessions, portfolios and snapshots it sees and writes
        the broker's rows and no others, always in a transaction. Raises `InvalidInput` for what is no broker's name and,
        with its first statement, `IsolationUnavailable` where the role cannot be taken.
        """
        return self._scope(read_only=read_only, consistent=consistent, broker=broker, caller=caller_of(1))

    def transaction(
        self,
        *,
        session: AsyncSession | None = None,
        isolation_level: IsolationLevel | None = None,
        read_only: bool = False,
        broker: str | None = None,
    ) -> AbstractAsyncContextManager[AsyncSession]:
        """A transaction of its own session: commits on success, rolls back on any exception.

        With `session` it is a savepoint of that session's transaction instead and nothing is committed. `read_only`
        with `isolation_level="REPEATABLE READ"` gives several reads on one snapshot. `broker` is that of `get_session`.
        """
        if session is not None:
            if isolation_level or read_only or broker is not None:
                raise ConfigurationError("a savepoint takes the isolation level and the broker of its transaction")
            return SavepointScope(session)
        scope = self._scope(
            read_only=read_only,
            consistent=True,
            isolation_level=isolation_level,
            broker=broker,
            caller=caller_of(1),
        )
        return TransactionScope(scope)

    async def run_transaction(
        self,
        work: Callable[[AsyncSession], Awaitable[T]],
        *,
        isolation_level: IsolationLevel | None = None,
        max_attempts: int | None = None,
        broker: str | None = None,
    ) -> T:
        """Await `work(session)` in a transaction, again in a fresh one after errors that are safe to retry.

        `work` must do nothing outside the session that may not happen twice, and must not commit. Raises what the
        last attempt raised; `CommitOutcomeUnknown` is never retried.
        """
        self._life.check()
        return await run_with_retry(
            lambda: self.transaction(isolation_level=isolation_level, broker=broker),
            work,
            options=self._retry,
            max_attempts=max_attempts,
            monitor=self._monitor,
        )

    async def health_check(self) -> dict[str, Any]:
        """`status` healthy | degraded | unhealthy, and figures; never raises and answers within its time limit."""
        try:
            engines = self._life.check()
        except SessionMisuse as error:
            return unhealthy(str(error), warnings=self._life.warnings)
        return await check_health(
            engines.writer if self._options.pgbouncer else engines.reader,
            {"read_write": engines.writer, "read_only": engines.reader},
            timeout=self._options.timeouts.health,
            warnings=self._life.warnings,
        )

    async def wait_for_ready(self, timeout: float = 30.0) -> None:
        """Connect, trying again until it works; `timeout` seconds bound the whole.

        A wrong password, refused TLS or wrong configuration is raised at once, everything else when time is up:
        the last error, or `ConnectTimeout` when none has come.
        """
        await until_ready(self.connect, timeout=timeout)

    async def init(self) -> None:
        """The original system's name for `connect`."""
        await self.connect()

    async def shutdown(self) -> None:
        """The original system's name for `close`."""
        await self.close()

    async def verify_connection(self) -> bool:
        """The original system's question: does the database answer?"""
        return (await self.health_check())["status"] != "unhealthy"

    def get_postgres_session(self) -> AbstractAsyncContextManager[AsyncSession]:
        """The original system's name for `get_session`."""
        return self._scope(caller=caller_of(1))

    def _scope(
        self,
        *,
        caller: tuple[str, int],
        read_only: bool = False,
        consistent: bool = False,
        isolation_level: IsolationLevel | None = None,
        broker: str | None = None,
    ) -> SessionScope:
        engines = self._life.check()
        single = read_only and not consistent and not self._options.pgbouncer and broker is None
        if single:
            engine = engines.reader
        else:
            of = None if broker is None else checked_broker(broker)
            engine = engines.variant(read_only=read_only, isolation_level=isolation_level, broker=of)
        return SessionScope(
            engine,
            check=self._life.check,
            offline=single,
            patience=self._options.timeouts.cleanup,
            monitor=self._monitor,
            caller=caller,
        )
