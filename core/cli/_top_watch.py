"""Looking at a server again and again: the connection it is done on, and the terminal it is shown on."""

import asyncio
import contextlib
import dataclasses
import datetime as dt
import os
import signal
import sys
import termios
import tty
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from core.cli._failure import NOT_READY, CommandError
from core.cli._output import Output
from core.cli._top_screen import View, frame
from core.config.options import PoolOptions
from core.config.settings import Settings, redact_url
from core.database.activity import Activity, Rates, rates, read_activity
from core.database.embedded import EmbeddedServer, is_embedded_url
from core.database.engine import DatabaseUrl, EngineOptions, build_engine
from core.database.errors import ConfigurationError, PandaDatabaseError

if TYPE_CHECKING:
    from rich.console import Console

_LOOK = 2.0  # seconds for the queries of one look
_CLEANUP = 1.0
_SIZE_EVERY = 30.0  # seconds: the size of a database is a look at each of its files
_TERMINATED = 128 + signal.SIGTERM


class Watcher:
    """One connection of its own, with limits of its own, and what was last seen through it."""

    def __init__(self, settings: Settings, *, texts: bool) -> None:
        database = settings.database
        self.place = redact_url(database.postgres_url)
        self._texts = texts
        url = dataclasses.replace(_url(database.postgres_url), application_name="panda top")
        limits = dataclasses.replace(
            database.timeouts, statement=_LOOK, lock=_LOOK / 2, idle_in_transaction=_LOOK * 5, cleanup=_CLEANUP
        )
        options = EngineOptions(
            environment=settings.environment,
            pool=PoolOptions(size=1, max_overflow=0),
            timeouts=limits,
            tls=database.tls,
            pgbouncer=database.pgbouncer,
        )
        self.engine: AsyncEngine = build_engine(url, options)
        self._limit = (url.connect_timeout or limits.connect) * len(url.hosts) + _LOOK + limits.probe
        self._last: View | None = None
        self._since: dt.datetime | None = None
        self._sized: dt.datetime | None = None

    async def close(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLEANUP * 2):
                await self.engine.dispose()

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncGenerator[AsyncConnection]:
        """The connection in a READ ONLY transaction, bounded in time."""
        limit = asyncio.timeout(self._limit)
        try:
            async with limit, self.engine.execution_options(postgresql_readonly=True).connect() as connection:
                yield connection
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise CommandError(f"no answer within {self._limit:g} s", code=NOT_READY) from error

    async def look(self) -> View:
        """What is so now; the last look with the trouble if the server does not answer. Raises if there was none."""
        try:
            view = await self._seen()
        except ConfigurationError:
            raise
        except (PandaDatabaseError, CommandError) as error:
            if self._last is None:
                raise
            now = dt.datetime.now(dt.UTC)
            self._since = self._since or now
            gone = f"unreachable since {self._since:%H:%M:%S} UTC ({(now - self._since).total_seconds():.0f} s): "
            return dataclasses.replace(self._last, trouble=gone + error.message, rates=None)
        self._last, self._since = view, None
        return view

    async def _seen(self) -> View:
        last = self._last
        now = dt.datetime.now(dt.UTC)
        sized = self._sized is not None and (now - self._sized).total_seconds() < _SIZE_EVERY
        async with self.connection() as connection:
            activity = await read_activity(connection, texts=self._texts, size=not sized)
            await connection.commit()  # a rollback would be counted among the application's
        size = activity.server.size
        if size is not None:
            self._sized = now
        elif last is not None:
            size = last.size
        return View(place=self.place, activity=activity, rates=_rates(last, activity, gap=self._since), size=size)


async def show_frames(watcher: Watcher, out: Output, *, interval: float, count: int, width: int) -> int:
    """Print `count` looks as plain text, one after the other; 4 if the last of them failed."""
    view = await watcher.look()
    await asyncio.sleep(min(interval, 1.0))  # a rate takes two looks
    for number in range(count):
        if number:
            await asyncio.sleep(interval)
            out.line()
        view = await watcher.look()
        for line in frame(view, width=width, height=None):
            out.line(line.plain)
    return NOT_READY if view.trouble else 0


async def show_live(watcher: Watcher, out: Output, *, interval: float, count: int | None) -> int:
    """Draw over and over until `q`, or `count` times; the terminal is then as it was, whatever ended it."""
    view = await watcher.look()  # before the screen is taken: a first failure is an error message
    keys = Keys()
    with _screen(out.stdout) as draw, keys.listening():
        looks = 1
        while keys.code is None:
            size = out.stdout.size
            draw(frame(view, width=size.width, height=size.height))
            if count is not None and looks >= count and not keys.resized:
                break
            if await keys.pressed(asyncio.sleep(interval)):
                continue
            found = await keys.pressed(watcher.look())
            if found is not None and not isinstance(found, bool):
                view, looks = found, looks + 1
    return keys.code or 0


class Keys:
    """What a person asks for while the screen is up: `q` ends it, as a TERM does; a new size draws it anew."""

    def __init__(self) -> None:
        self.code: int | None = None
        """The exit code, once the end is asked for."""
        self.resized = False
        self._woken = asyncio.Event()

    @contextlib.contextmanager
    def listening(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        descriptor = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None  # pyright: ignore[reportUnnecessaryComparison] - so it is after `<&-`
        loop.add_signal_handler(signal.SIGTERM, self._end, _TERMINATED)
        loop.add_signal_handler(signal.SIGWINCH, self._resize)
        try:
            with _unbuffered(descriptor):
                if descriptor is not None:
                    loop.add_reader(descriptor, self._read, descriptor)
                yield
        finally:
            if descriptor is not None:
                loop.remove_reader(descriptor)
            loop.remove_signal_handler(signal.SIGTERM)
            loop.remove_signal_handler(signal.SIGWINCH)

    async def pressed(self, work: Awaitable[Any]) -> Any:
        """True as soon as something is asked for, and the work is then cancelled; else what the work gave."""
        self._woken.clear()
        self.resized = False
        if self.code is not None:
            self._woken.set()
        task, woken = asyncio.ensure_future(work), asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait([task, woken], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            return True
        finally:
            for future in (task, woken):
                future.cancel()
            await asyncio.gather(task, woken, return_exceptions=True)

    def _read(self, descriptor: int) -> None:
        try:
            typed = os.read(descriptor, 64)
        except OSError:
            typed = b""
        if not typed:
            asyncio.get_running_loop().remove_reader(descriptor)
        elif b"q" in typed.lower() or b"\x04" in typed:
            self._end(0)

    def _end(self, code: int) -> None:
        self.code = code
        self._woken.set()

    def _resize(self) -> None:
        self.resized = True
        self._woken.set()


@contextlib.contextmanager
def _unbuffered(descriptor: int | None) -> Generator[None]:
    """Keys as they are pressed and unseen; Ctrl-C still interrupts, Ctrl-Z would leave the screen behind."""
    if descriptor is None:
        yield
        return
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        now = termios.tcgetattr(descriptor)
        now[6][termios.VSUSP] = b"\x00"
        termios.tcsetattr(descriptor, termios.TCSANOW, now)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _screen(console: "Console") -> Generator[Callable[[list[Any]], None]]:
    """The terminal's other screen; the one before comes back on leaving."""
    from rich.live import Live
    from rich.text import Text

    with Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:

        def draw(lines: list[Any]) -> None:
            live.update(Text("\n", no_wrap=True, end="").join(lines), refresh=True)

        yield draw


def _url(url: str) -> DatabaseUrl:
    """Where to connect. The built-in server is found and not used: it stops when those who use it are gone."""
    if not is_embedded_url(url):
        return DatabaseUrl.parse(url)
    found = EmbeddedServer.from_url(url).status().url
    if found is None:
        raise CommandError("the built-in server is not running", hint="Start it with `panda up`.", code=NOT_READY)
    return DatabaseUrl.parse(found)


def _rates(last: View | None, activity: Activity, *, gap: dt.datetime | None) -> Rates | None:
    """Between the last look and this one, unless the server was away in between."""
    return None if last is None or gap is not None else rates(last.activity, activity, own=1)
