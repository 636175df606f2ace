"""Engines: the pool, the time limits and the translation of errors, wired in one place."""

import functools
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import URL, event
from sqlalchemy.engine import Connection, ExceptionContext
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import PoolResetState
from sqlalchemy.util.concurrency import in_greenlet

from core.config.options import Environment, PoolOptions, Timeouts, TlsMode, TlsOptions
from core.database.driver import Connector, ConnectSpec, DriverConnection, probe, wipe
from core.database.engine._brokers import driver_connection
from core.database.engine._dialect import DRIVER_NAME
from core.database.engine._echo import LOGGING_NAME
from core.database.engine._pool import WatchedPool
from core.database.engine._url import DatabaseUrl
from core.database.errors import (
    ConfigurationError,
    InvalidInput,
    PandaDatabaseError,
    PrimaryDemoted,
    translate,
)
from core.database.monitoring import QueryMonitor
from core.database.types import checked_text, strict_json_dumps, strict_json_loads

_PREPARED = 100  # statements that stay prepared on each connection


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """All that an engine is made from, besides the URL."""

    environment: Environment = "development"
    pool: PoolOptions = PoolOptions()  # noqa: RUF009 - frozen
    timeouts: Timeouts = Timeouts()  # noqa: RUF009 - frozen
    tls: TlsOptions = TlsOptions()  # noqa: RUF009 - frozen
    pgbouncer: bool = False
    """The server is PgBouncer in transaction mode: no prepared statements, limits set per transaction."""
    application_name: str = "alpha-panda"
    """What pg_stat_activity shows; `ConfigurationError` for what can be sent to no server."""

    def __post_init__(self) -> None:
        try:
            checked_text(self.application_name)
        except InvalidInput as fault:
            raise ConfigurationError(f"application_name {fault.message}", hint="Name it in plain text.") from None


def build_engine(
    url: DatabaseUrl,
    options: EngineOptions,
    *,
    read_only: bool = False,
    monitor: QueryMonitor | None = None,
    recover: Callable[[], Awaitable[None]] | None = None,
) -> AsyncEngine:
    """An engine that connects lazily. `read_only` gives the autocommit pool for single reads.

    Raises `ConfigurationError` where the TLS rules of the environment are not met.
    """
    spec = _spec(url, options, read_only=read_only)
    connector = Connector(spec, monitor=monitor, read_only=read_only, recover=recover)
    pool, timeouts = options.pool, options.timeouts

    def creator() -> Any:
        cached = 0 if options.pgbouncer else _PREPARED
        return engine.dialect.loaded_dbapi.connect(async_creator_fn=connector, prepared_statement_cache_size=cached)

    engine = create_async_engine(
        _shown(url),
        creator=creator,
        poolclass=WatchedPool,
        pool_size=pool.read_size if read_only else pool.size,
        max_overflow=0 if read_only else pool.max_overflow,
        pool_timeout=pool.wait,
        pool_recycle=int(pool.recycle),
        hide_parameters=True,
        logging_name=LOGGING_NAME,
        **({"execution_options": {"pgbouncer": True}} if options.pgbouncer else {}),
        json_serializer=strict_json_dumps,
        json_deserializer=strict_json_loads,
        **({"isolation_level": "AUTOCOMMIT"} if read_only else {}),
    )
    if monitor is not None and isinstance(engine.pool, WatchedPool):
        engine.pool.watch = monitor.pool("read_only" if read_only else "read_write")
    _watch_pool(engine, connector, pool, timeouts)
    if not options.pgbouncer:
        _wipe_used(engine, timeouts)
    _watch_errors(engine, read_only=read_only)
    if options.pgbouncer:
        _limit_transactions(engine, timeouts)
    return engine


def tls_mode(url: DatabaseUrl, tls: TlsOptions, environment: Environment) -> TlsMode:
    """The mode in force. Staging and production demand verify-full for a host that is not this machine."""
    if tls.mode and url.sslmode and tls.mode != url.sslmode:
        raise ConfigurationError(
            f"the URL says sslmode={url.sslmode} and the TLS option says {tls.mode}", hint="Set it in one place."
        )
    guarded = environment in ("staging", "production") and not url.is_local
    mode: TlsMode = tls.mode or url.sslmode or ("verify-full" if guarded else "prefer")
    if guarded and mode != "verify-full":
        raise ConfigurationError(
            f"sslmode={mode} is refused for a server on another machine in {environment}",
            hint="Use sslmode=verify-full with sslrootcert=FILE, the authority that signed the server's certificate.",
        )
    return mode


def _spec(url: DatabaseUrl, options: EngineOptions, *, read_only: bool) -> ConnectSpec:
    timeouts = options.timeouts
    wanted = "any" if read_only or len(url.hosts) == 1 else "read-write"
    return ConnectSpec(
        hosts=url.hosts,
        user=url.user,
        password=url.password,
        database=url.database,
        tls=_tls(url, options),
        timeout=url.connect_timeout or timeouts.connect,
        cleanup=timeouts.cleanup,
        server_settings=_server_settings(url, options, read_only=read_only),
        session_attrs=url.target_session_attrs or wanted,
        prepared_statements=not options.pgbouncer,
    )


def _server_settings(url: DatabaseUrl, options: EngineOptions, *, read_only: bool) -> dict[str, str]:
    settings = {"application_name": url.application_name or options.application_name}
    if options.pgbouncer:
        return settings  # PgBouncer refuses the others at start-up; each transaction sets them
    settings |= _limits(options.timeouts)
    settings |= {"timezone": "UTC", "jit": "off", "default_transaction_isolation": "read committed"}
    if read_only:
        settings["default_transaction_read_only"] = "on"
    return settings | dict(url.server_settings)


def _limits(timeouts: Timeouts) -> dict[str, str]:
    return {
        "statement_timeout": f"{timeouts.statement * 1000:.0f}",
        "lock_timeout": f"{timeouts.lock * 1000:.0f}",
        "idle_in_transaction_session_timeout": f"{timeouts.idle_in_transaction * 1000:.0f}",
    }


def _tls(url: DatabaseUrl, options: EngineOptions) -> Any:
    mode = tls_mode(url, options.tls, options.environment)
    if mode == "disable":
        return False
    if mode == "prefer":
        return "prefer"
    tls = options.tls
    try:
        context = ssl.create_default_context(cafile=str(tls.ca_file) if tls.ca_file else url.sslrootcert)
        certificate = str(tls.cert_file) if tls.cert_file else url.sslcert
        if certificate:
            context.load_cert_chain(certificate, str(tls.key_file) if tls.key_file else url.sslkey)
    except OSError as error:  # ssl.SSLError is one too
        raise ConfigurationError(
            f"a TLS file cannot be used ({error.strerror or type(error).__name__})",
            hint="Check the paths of sslrootcert, sslcert and sslkey, and that they are PEM files.",
        ) from error
    context.check_hostname = mode == "verify-full"
    context.verify_mode = ssl.CERT_NONE if mode == "require" else ssl.CERT_REQUIRED
    return context


def _shown(url: DatabaseUrl) -> URL:
    """What the engine calls itself; connections are made by the connector, so no password is in it."""
    host, port = url.hosts[0]
    place: dict[str, Any] = {"query": {"host": host}} if host.startswith("/") else {"host": host, "port": port}
    return URL.create(DRIVER_NAME, username=url.user, database=url.database, **place)


def _watch_pool(engine: AsyncEngine, connector: Connector, pool: PoolOptions, timeouts: Timeouts) -> None:
    """Probe what was idle for long, discard what is closed, and never hand on an open transaction."""

    def checkout(adapted: Any, record: Any, proxy: Any) -> None:
        connector.check_loop()
        connection: DriverConnection = adapted.driver_connection
        if connection.is_closed():
            raise DisconnectionError("closed while idle")
        idle = time.monotonic() - connection.idle_since
        if idle > pool.probe_after and not adapted.run_async(functools.partial(probe, timeout=timeouts.probe)):
            raise DisconnectionError("no answer to the probe")

    def checkin(adapted: Any, record: Any) -> None:
        if adapted is None:
            return
        connection: DriverConnection = adapted.driver_connection
        if not connection.is_closed() and connection.is_in_transaction():
            connection.terminate()
        connection.broker = None
        connection.failed = False
        connection.idle_since = time.monotonic()

    event.listen(engine.sync_engine, "checkout", checkout)
    event.listen(engine.sync_engine, "checkin", checkin)


def _wipe_used(engine: AsyncEngine, timeouts: Timeouts) -> None:
    """Nothing that outlives a transaction goes on to who gets the connection next, another broker maybe."""

    def reset(adapted: Any, record: Any, state: PoolResetState) -> None:
        connection: DriverConnection = adapted.driver_connection
        if not connection.used or connection.is_closed() or state.terminate_only:
            return
        if not state.asyncio_safe or not in_greenlet():
            connection.terminate()
            return
        adapted.rollback()
        adapted.run_async(functools.partial(wipe, timeout=timeouts.cleanup))

    event.listen(engine.sync_engine, "reset", reset)


def _watch_errors(engine: AsyncEngine, *, read_only: bool) -> None:
    """Every error of a statement leaves as one of ours; the transaction it failed in can no longer commit."""

    def handle(context: ExceptionContext) -> PandaDatabaseError | None:
        if context.is_pre_ping:
            return None
        connection = driver_connection(context.connection)
        if connection is not None:
            connection.failed = True
        closed = context.is_disconnect or (connection is not None and connection.is_closed())
        guarded = read_only or _is_read_only(context.connection)
        error = translate(context.original_exception, read_only=guarded, disconnected=closed)
        context.invalidate_pool_on_disconnect = isinstance(error, PrimaryDemoted)
        if error is None:
            return None
        if closed or isinstance(error, PrimaryDemoted):
            context.is_disconnect = True
        # Returning the exception that is already on its way would make it its own cause.
        return None if error is context.original_exception else error

    event.listen(engine.sync_engine, "handle_error", handle)


def _is_read_only(connection: Connection | None) -> bool:
    return connection is not None and bool(connection.get_execution_options().get("postgresql_readonly"))


def _limit_transactions(engine: AsyncEngine, timeouts: Timeouts) -> None:
    """Behind PgBouncer a limit set for the session would leak to others: set it in each transaction."""
    statement = "SELECT " + ", ".join(
        f"set_config('{name}', '{value}', true)" for name, value in _limits(timeouts).items()
    )

    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql(statement)

    event.listen(engine.sync_engine, "begin", begin)
