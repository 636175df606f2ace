"""One call that joins an application and a manager, and the dependencies that endpoints take."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from types import FrameType
from typing import Annotated, Any, TypeAlias, cast

from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import HTTPConnection
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from core.config.options import Timeouts
from core.database.connection import DatabaseManager
from core.database.errors import ConfigurationError, ManagerNotConnected, PandaDatabaseError
from core.database.monitoring import get_logger
from core.fastapi._problems import answer_problem
from core.probes import Probes

_KEY = "core.fastapi"
_CLEANUP = 2 * Timeouts().cleanup  # a session's rollback is bounded by one of these
_log = get_logger()


def install(
    app: FastAPI,
    manager: DatabaseManager,
    *,
    wait: float = 30.0,
    drain: float = 0.0,
    grace: float = 10.0,
    probes: Probes | None = None,
) -> None:
    """Give `app` the manager, before it starts; all durations are seconds.

    At start the database is waited for, `wait` at the most, before a request is taken; the application's own lifespan runs
    inside, and may use the manager. A `PandaDatabaseError` that leaves an endpoint is answered as `problem_of` says.
    `/livez` and `/readyz` are added, out of the OpenAPI schema. A mounted application gets the sessions too; for its errors
    give it `answer_problem` by its own `add_exception_handler`.

    On SIGTERM `/readyz` turns to 503; for `drain` the process goes on taking requests, so that a load balancer can notice,
    and then the server's own handler runs. (A second SIGTERM ends the wait. It takes a server that sets its handler by
    `signal.signal`, as uvicorn does; elsewhere let the orchestrator wait before it sends the signal.) Requests under way
    are finished, what takes longer than `grace` after the server has stopped is cancelled and rolled back, and the manager
    is closed. A manager that is connected at start is its owner's to close.
    """
    service = _Service(manager, probes or Probes(manager), wait=wait, drain=drain, grace=grace)
    inner = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(started: FastAPI) -> AsyncGenerator[Any]:
        async with service.running(), inner(started) as state:
            yield state

    app.router.lifespan_context = cast("Any", lifespan)
    app.add_middleware(_Attached, service=service)
    app.add_exception_handler(PandaDatabaseError, cast("Any", answer_problem))
    for path in ("/livez", "/readyz"):
        app.router.routes.insert(0, Route(path, service.probes, include_in_schema=False))


class _Service:
    """A manager in an application: which requests are under way, and when it ends."""

    def __init__(self, manager: DatabaseManager, probes: Probes, *, wait: float, drain: float, grace: float) -> None:
        self.manager = manager
        self.probes = probes
        self._under_way: list[asyncio.Task[Any]] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self._wait = wait
        self._drain = drain
        self._grace = grace

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Connected on entry; on leaving, the requests that are under way end first."""
        owned = not _is_connected(self.manager)
        if owned:
            await self.manager.wait_for_ready(self._wait)
        try:
            self.probes.begin_service()
            with _on_sigterm(self.probes.begin_shutdown, delay=self._drain):
                yield
        finally:
            self.probes.begin_shutdown()
            await self._finish()
            if owned:
                await self.manager.close()

    @contextlib.contextmanager
    def request(self) -> Generator[None]:
        """Around a request, from its first byte until its background work is done."""
        task = asyncio.current_task()
        assert task is not None
        self._under_way.append(task)
        self._idle.clear()
        try:
            yield
        finally:
            self._under_way.remove(task)
            if not self._under_way:
                self._idle.set()

    async def _finish(self) -> None:
        """Wait for the requests; those that take too long are cancelled, and roll back."""
        if await self._is_idle_within(self._grace):
            return
        _log.warning("requests were cancelled, for the database is closed", requests=len(self._under_way))
        for task in list(self._under_way):
            task.cancel("the database is closed")
        await self._is_idle_within(_CLEANUP)

    async def _is_idle_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True


class _Attached:
    """Outermost middleware: hands the service on in the scope, to mounted applications too, and counts requests."""

    def __init__(self, app: ASGIApp, service: _Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        scope[_KEY] = self._service
        with self._service.request():
            await self._app(scope, receive, send)


def _is_connected(manager: DatabaseManager) -> bool:
    try:
        _ = manager.engine
    except ManagerNotConnected:
        return False
    return True


@contextlib.contextmanager
def _on_sigterm(begin: Callable[[], None], *, delay: float) -> Generator[None]:
    """Call `begin` on SIGTERM, and `delay` seconds later the handler that was there before; at once on the second one."""
    if threading.current_thread() is not threading.main_thread():  # a test client's; signals are the main thread's
        yield
        return
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)
    waiting: list[asyncio.TimerHandle] = []

    def pass_on() -> None:
        if callable(before):
            before(signal.SIGTERM, None)
        elif before == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        begin()
        if delay <= 0 or waiting:
            pass_on()
        else:
            loop.call_soon_threadsafe(lambda: waiting.append(loop.call_later(delay, pass_on)))

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        for timer in waiting:
            timer.cancel()
        if signal.getsignal(signal.SIGTERM) is handle:
            signal.signal(signal.SIGTERM, before)


def _manager(connection: HTTPConnection) -> DatabaseManager:
    service: _Service | None = connection.scope.get(_KEY)
    if service is None:
        raise ConfigurationError(
            "this application has no database", hint="Call core.fastapi.install(app, manager) before it starts."
        )
    return service.manager


Manager: TypeAlias = Annotated[DatabaseManager, Depends(_manager)]
"""The application's manager: for `run_transaction`, for several transactions in one request, for background work."""


async def _write_session(manager: Manager) -> AsyncGenerator[AsyncSession]:
    async with manager.transaction() as session:
        yield session


async def _read_session(manager: Manager) -> AsyncGenerator[AsyncSession]:
    async with manager.get_session(read_only=True) as session:
        yield session


# scope="function": FastAPI's default would end them after the response is sent.
WriteSession: TypeAlias = Annotated[AsyncSession, Depends(_write_session, scope="function")]
"""The request's transaction: commits when the endpoint has returned, before the response is sent; do not commit in it."""

ReadSession: TypeAlias = Annotated[AsyncSession, Depends(_read_session, scope="function")]
"""A session for single reads, each on a snapshot of its own; a write raises `ReadOnlyViolation`."""
