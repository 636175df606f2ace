"""What an orchestrator asks a process: `/livez` and `/readyz`, as a plain ASGI application without a web framework.

`/livez` answers 200 as long as the event loop turns, and never touches the database: a database that is down is not mended
by restarting its clients. `/readyz` answers 200 when requests may be sent here and 503 when not: at once after
`begin_shutdown()`, else by `DatabaseManager.health_check()`.

A degraded database (its schema not at this release's head, a standby, every connection in use) is ready all the same: all
processes see the same database, and taking all of them out of service turns a limp into an outage. A migration that runs
ahead of a rolling release would do just that. `accept_degraded=False` is for services to which a degraded one is useless.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from core.database.connection import DatabaseManager

__all__ = ["Probes", "Readiness"]

_Message = MutableMapping[str, Any]
_ALIVE: dict[str, Any] = {"alive": True}


@dataclass(frozen=True, kw_only=True, slots=True)
class Readiness:
    """Whether requests may be sent here, and why not."""

    ready: bool
    status: Literal["healthy", "degraded", "unhealthy", "stopping"]
    error: str | None = None
    """In words, without secrets; it may name the database's host."""
    role: str | None = None
    """primary or standby"""
    schema: str | None = None
    """Where the schema stands: `at_head` and the other words of `core.database.schema.Status`."""
    latency_ms: float | None = None


class Probes:
    """Answers for one manager, which it neither connects nor closes; also an ASGI application of two paths.

    An answer comes within `timeout` seconds (an orchestrator often waits only 1), and the database is asked once for all
    probes that come within `keep` seconds, so that probes cannot become its load.
    """

    def __init__(
        self, manager: DatabaseManager, *, timeout: float = 0.9, keep: float = 1.0, accept_degraded: bool = True
    ) -> None:
        self._manager = manager
        self._timeout = timeout
        self._keep = keep
        self._accept_degraded = accept_degraded
        self._stopping = False
        self._question: asyncio.Task[dict[str, Any]] | None = None
        self._known: tuple[float, dict[str, Any]] | None = None

    def begin_service(self) -> None:
        """Ask the database anew, and be ready when it is; so it is from the start."""
        self._stopping, self._question, self._known = False, None, None

    def begin_shutdown(self) -> None:
        """Be not ready from now on. May be called from a signal handler, and twice."""
        self._stopping = True

    async def readiness(self) -> Readiness:
        """Whether requests may be sent here; never raises."""
        report = None if self._stopping else await self._report()
        if self._stopping:  # it may have begun while the database was asked
            return Readiness(ready=False, status="stopping", error="the process is shutting down")
        if report is None:
            return Readiness(ready=False, status="unhealthy", error=f"no answer within {self._timeout:g} s")
        status = report["status"]
        return Readiness(
            ready=status == "healthy" or (status == "degraded" and self._accept_degraded),
            status=status,
            error=report["error"],
            role=report["role"],
            schema=report["schema"]["status"] if report["schema"] else None,
            latency_ms=report["latency_ms"],
        )

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[_Message]],
        send: Callable[[_Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            raise ValueError(f"probes answer HTTP only, not {scope['type']}")
        path = scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/")
        match path:
            case "/livez":
                status, body = 200, _ALIVE
            case "/readyz":
                answer = await self.readiness()
                status, body = 200 if answer.ready else 503, asdict(answer)
            case _:
                status, body = 404, {"error": "there are /livez and /readyz"}
        if scope["method"] not in ("GET", "HEAD"):
            status, body = 405, {"error": "probes are asked by GET"}
        await _answer(send, status, body, head=scope["method"] == "HEAD")

    async def _report(self) -> dict[str, Any] | None:
        """The health report, at most `keep` seconds old; None if it does not come in time, which does not end the check."""
        if self._known is not None and time.monotonic() - self._known[0] < self._keep:
            return self._known[1]
        if self._question is None or self._question.done():
            self._question = asyncio.ensure_future(self._ask())
        await asyncio.wait([self._question], timeout=self._timeout)
        if not self._question.done() or self._question.cancelled():
            return None
        return self._question.result()

    async def _ask(self) -> dict[str, Any]:
        report = await self._manager.health_check()
        self._known = time.monotonic(), report
        return report


async def _answer(
    send: Callable[[_Message], Awaitable[None]], status: int, body: dict[str, Any], *, head: bool
) -> None:
    content = json.dumps(body).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"cache-control", b"no-store"),
    ]
    if status == 405:
        headers.append((b"allow", b"GET, HEAD"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else content})
