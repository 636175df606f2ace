"""What is checked about the options before and while connecting."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, get_args

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from core.database.canaries import check_ring
from core.database.encryption import KeyRing
from core.database.engine import DatabaseUrl, EngineOptions, tls_mode
from core.database.errors import (
    AuthenticationFailed,
    ConfigurationError,
    ConnectTimeout,
    InvalidKey,
    PandaDatabaseError,
    SessionMisuse,
    StatementFault,
    TlsRefused,
)

T = TypeVar("T")

_LIMIT = text("SELECT current_setting('max_connections')::int")
_FINAL = (AuthenticationFailed, TlsRefused, ConfigurationError, SessionMisuse, InvalidKey)
_NO_TABLE = "42P01"
_RESERVED = 3  # superuser_reserved_connections, whose default no application may use


def checked_mode(name: str, value: T, choices: Any) -> T:
    """The value if it is one of a Literal's; a typo or wrong case is never guessed at."""
    allowed = get_args(choices)
    if value not in allowed:
        raise ConfigurationError(f"{name} is none of the known modes", hint=f"Choose one of {', '.join(allowed)}.")
    return value


async def until_ready(connect: Callable[[], Awaitable[None]], *, timeout: float) -> None:
    """Await `connect()` until it works, `timeout` seconds in all; what waiting cannot mend is raised at once."""
    deadline = time.monotonic() + timeout
    pause = 0.05
    last: PandaDatabaseError | None = None
    while (left := deadline - time.monotonic()) > 0:
        limit = asyncio.timeout(left)
        try:
            async with limit:
                return await connect()
        except _FINAL:
            raise
        except PandaDatabaseError as error:
            last = error
        except TimeoutError:
            if not limit.expired():
                raise
            break
        await asyncio.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(pause * 2, 1.0)
    raise last or ConnectTimeout(f"the database was not ready within {timeout:g} s")


async def reach(engine: AsyncEngine, url: DatabaseUrl, options: EngineOptions) -> list[str]:
    """Ask the server one thing; warnings about the connection budget and the transport."""
    async with engine.connect() as connection:
        if (
            not options.pgbouncer
        ):  # there a statement outside a transaction may be parsed by one server and run by another
            await connection.execution_options(isolation_level="AUTOCOMMIT")
        limit = (await connection.execute(_LIMIT)).scalar_one()
    warnings = budget_warning(options, limit=limit)
    if not url.is_local and tls_mode(url, options.tls, options.environment) in ("prefer", "disable"):
        warnings.append("the connection to another machine may be unencrypted; set sslmode=verify-full")
    return warnings


def budget_warning(options: EngineOptions, *, limit: int) -> list[str]:
    """A warning when pool times processes exceeds the server's max_connections; refused where money is real."""
    if options.pgbouncer:
        return []
    pool = options.pool
    wanted = pool.budget * pool.processes
    if wanted <= limit - _RESERVED:
        return []
    text = (
        f"{pool.processes} process(es) x {pool.budget} connections = {wanted}, but the server allows {limit}"
        f" of which {_RESERVED} are reserved"
    )
    if options.environment in ("staging", "production"):
        raise ConfigurationError(text, hint="Lower DATABASE__POOL__SIZE and its companions, or raise max_connections.")
    return [text]


async def hold_ring(engine: AsyncEngine, ring: KeyRing) -> list[str]:
    """Hold the ring against the database's canaries: raises `InvalidKey` for a wrong key; a warning for each missing one."""
    try:
        async with engine.connect() as connection:
            found = await check_ring(connection, ring)
    except StatementFault as fault:
        if fault.sqlstate != _NO_TABLE:
            raise
        return []  # a schema that is behind, and was not refused
    if found.wrong:
        found.raise_unless_whole()
    return [
        f"the encryption key {key_id!r} is not in the ring, and open sessions are sealed by it"
        for key_id in found.missing
    ]
