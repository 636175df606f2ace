"""New connections, with a time limit for each host: one that is frozen never hides the healthy ones behind it."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# asyncpg ships no type information; this room alone sees it.

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import asyncpg

from core.database.driver._connection import DriverConnection
from core.database.errors import HostUnreachable, PandaDatabaseError, WrongEventLoop, forget_locals, translate
from core.database.monitoring import ConnectionMonitor, QueryMonitor, Server
from core.printable import printable

SessionAttrs = Literal["any", "primary", "standby", "read-write", "read-only", "prefer-standby"]

_DEAD_PEER_MS = 15_000  # unacknowledged bytes for this long mean a dead network (TCP_USER_TIMEOUT)
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


class Connector:
    """Makes connections by a `ConnectSpec`; the host that worked last is tried first.

    `recover` is awaited once when no host can be reached, and the hosts are then tried again: the built-in server is
    started anew by it.
    """

    def __init__(
        self,
        spec: ConnectSpec,
        *,
        monitor: QueryMonitor | None = None,
        read_only: bool = False,
        recover: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.spec = spec
        self._monitor = monitor
        self._read_only = read_only
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
            forget_locals(error)
            if ours is None:
                raise
            ours.message = printable(f"{_place(host, port)}: {ours.message}")
            raise ours from error
        if self._monitor is not None:
            server = Server(host, port, self.spec.database)
            connection.watch = ConnectionMonitor(self._monitor, read_only=self._read_only, server=server)
            connection.watch.closed = connection.is_closed
            connection.on_statement = connection.watch.statement
        connection.cleanup = self.spec.cleanup
        connection.pooled = not self.spec.prepared_statements
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
