"""Can each host be reached, and what does it answer: name, port, TLS, password, database."""

import asyncio
import contextlib
import os
import socket
import threading
import time
from dataclasses import replace
from typing import Any

from core.config.options import PoolOptions
from core.database.doctor._case import Answer, row
from core.database.doctor._finding import Finding, span_of
from core.database.driver import wire_facts
from core.database.engine import DatabaseUrl, EngineOptions, build_engine
from core.database.errors import PandaDatabaseError

SMALL_POOL = PoolOptions(size=2, max_overflow=0, read_size=1)

_ASKED = """
    SELECT pg_backend_pid() AS pid, pg_is_in_recovery() AS standby, current_setting('server_version') AS version
"""


async def ask_hosts(url: DatabaseUrl, options: EngineOptions) -> list[tuple[Finding, Answer | None]]:
    """All hosts at once, each within the connect limit for every step of its way."""
    return await asyncio.gather(*(_ask_host(url, options, host, port) for host, port in url.hosts))


def cautious(options: EngineOptions) -> EngineOptions:
    """The options that work with a pooler and without: no start-up settings, nothing stays prepared."""
    return replace(options, pgbouncer=True, pool=SMALL_POOL)


async def _ask_host(url: DatabaseUrl, options: EngineOptions, host: str, port: int) -> tuple[Finding, Answer | None]:
    place = _place(url, host, port)
    limit = url.connect_timeout or options.timeouts.connect
    details: dict[str, Any] = {"host": host, "port": port}
    trouble = None if host.startswith("/") else await _walk(host, port, limit, details)
    if trouble is not None:
        message, mend = trouble
        return Finding("server", "error", f"{place}: {message}", mend, details), None
    alone = replace(url, hosts=((host, port),), target_session_attrs="any")
    try:
        answer = await _answer(alone, cautious(options), details)
    except PandaDatabaseError as error:
        message = error.message if error.message.startswith(place.removeprefix("the ")) else f"{place}: {error.message}"
        return Finding("server", "error", message, error.hint, details | {"error": type(error).__name__}), None
    role = "a standby" if answer.standby else "a primary"
    said = f"{place} answers in {span_of(details['answer_ms'] / 1000)}: PostgreSQL {answer.version}, {role}"
    return Finding("server", "ok", said, None, details), answer


def _place(url: DatabaseUrl, host: str, port: int) -> str:
    if host.startswith("/"):
        return f"socket {host}" if len(url.hosts) > 1 else "the socket"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _walk(host: str, port: int, limit: float, details: dict[str, Any]) -> tuple[str, str] | None:
    """The name and the port; what is wrong with them and the mend."""
    try:
        async with asyncio.timeout(limit):
            found = await _resolve(host, port)
    except TimeoutError:
        return (
            f"its name was not resolved within {limit:g} s",
            f"getent hosts {host}, and the servers in /etc/resolv.conf",
        )
    except socket.gaierror as error:
        return f"the name cannot be resolved ({error.strerror})", f"Correct the host in the URL; getent hosts {host}"
    details["addresses"] = found
    started = time.perf_counter()
    try:
        async with asyncio.timeout(limit):
            writer = await _open(found, port)
    except TimeoutError:
        return f"no answer within {limit:g} s", "Start the machine, or let its firewall pass this port"
    except OSError as error:
        # The event loop's own words name the address once more.
        reason = os.strerror(error.errno).lower() if error.errno else type(error).__name__
        return f"the port cannot be reached ({reason})", "Start the server, or correct host and port in the URL"
    details["connect_ms"] = round((time.perf_counter() - started) * 1000, 3)
    writer.close()
    return None


async def _open(addresses: list[str], port: int) -> asyncio.StreamWriter:
    """To the first address that takes it: a name often has one of each family."""
    for address in addresses[:-1]:
        with contextlib.suppress(OSError):
            return (await asyncio.open_connection(address, port))[1]
    return (await asyncio.open_connection(addresses[-1], port))[1]


async def _resolve(host: str, port: int) -> list[str]:
    """The host's addresses, from a thread that nobody waits for: the loop would wait for one of its own at the end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[str]] = loop.create_future()

    def settle(found: list[str] | None, error: OSError | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(found or [])

    def work() -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            outcome = (list(dict.fromkeys(str(info[4][0]) for info in infos)), None)
        except OSError as error:
            outcome = (None, error)
        except UnicodeError:  # what no name server would be asked for: a label that is empty, or longer than 63
            outcome = (None, socket.gaierror(socket.EAI_NONAME, "it is no host name"))
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=work, daemon=True, name="resolve").start()
    return await future


async def _answer(url: DatabaseUrl, options: EngineOptions, details: dict[str, Any]) -> Answer:
    engine = build_engine(url, options)
    try:
        started = time.perf_counter()
        async with engine.connect() as connection:
            details["login_ms"] = round((time.perf_counter() - started) * 1000, 3)
            facts = await wire_facts(connection)
            await row(connection, _ASKED)  # begins the transaction, which would be timed too
            started = time.perf_counter()
            said = await row(connection, _ASKED)
            details["answer_ms"] = round((time.perf_counter() - started) * 1000, 3)
    finally:
        await engine.dispose()
    details |= {"standby": said.standby, "version": said.version}
    host, port = url.hosts[0]
    return Answer(host=host, port=port, wire=facts, backend_pid=said.pid, standby=said.standby, version=said.version)
