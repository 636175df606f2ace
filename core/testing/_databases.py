"""The databases of a test run on its server: made from a template, dropped, and swept up after runs that were killed.

Fixtures call these methods from a thread whose event loop may be running, may belong to another library or may not be
there at all; the work is done on a loop of our own, in a thread that lives as long as the call.
"""

import asyncio
import contextlib
import inspect
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from typing import Any, TypeVar

import pytest
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from core.config.options import PoolOptions, Timeouts
from core.database import schema
from core.database.embedded import EmbeddedServer
from core.database.engine import DatabaseUrl, EngineOptions, build_engine
from core.database.errors import InvalidUrl, PandaDatabaseError
from core.testing._run import Run

T = TypeVar("T")
Prepare = Callable[[str], Awaitable[None] | None]

_OLDEST = 150_000
_IN_USE = "55006"
_TRIES = 5  # the server gives those whom it ends five seconds each time
_PASSWORD = re.compile(r"(://[^:@/?]*:|[?&]password=)[^@/?&]*")
# A machine that stands still for a while fails no test.
_UNLIMITED = Timeouts(connect=30, probe=30, cleanup=30, statement=0, lock=0, idle_in_transaction=0)
_MAINTENANCE = EngineOptions(
    environment="testing", pool=PoolOptions(size=1, max_overflow=0, read_size=1, wait=300), timeouts=_UNLIMITED
)
_RIGHTS = (
    "SELECT current_setting('server_version_num')::int, current_setting('server_version'), current_user,"
    " (SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user)"
)
_MINE = (
    "SELECT datname FROM pg_database WHERE pg_get_userbyid(datdba) = current_user AND datname LIKE 'panda\\_test\\_%'"
)
_RUNNING = "SELECT DISTINCT application_name FROM pg_stat_activity WHERE application_name LIKE 'panda test %'"


class Address(str):
    """A URL that the report of a failing test may show: its repr, and only that, hides the password."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(_PASSWORD.sub(r"\1***", str(self)))


class Databases:
    """What one process of a run makes on the server. Methods block; they raise `PandaDatabaseError`s."""

    def __init__(self, url: str, run: Run, server: EmbeddedServer | None) -> None:
        """`url` names a database to be connected to while others are made; `server` is None if it is not the run's own."""
        self._url = url
        self._run = run
        self._server = server
        self._numbers = count(1)
        self._engine = _engine(url, run, recover=self._restart if server is not None else None)
        self._loop = asyncio.SelectorEventLoop()

    def open(self) -> None:
        """Connect, look whether this role may make databases here, and drop what killed runs have left on a foreign server."""
        self._run.watch()
        self._wait(self._open())
        if self._server is None:
            self._run.databases_mark.touch()

    def close(self) -> None:
        self._wait(self._engine.dispose())
        self._loop.close()

    def template(self, *, metadata: MetaData | None, prepare: Prepare) -> str:
        """The run's template: at migration head, then with `metadata`'s tables, then as `prepare` leaves it.

        The first process to come makes it and the others wait; from then on nobody can connect to it.
        """
        return self._wait(self._template(metadata, prepare))

    def create(self, template: str | None) -> Address:
        """The URL of a new database, a copy of `template` or empty."""
        name = f"{_prefix(self._run)}{self._run.worker}_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name}{self._copied_from(template) if template else ''}")
        return at(self._url, name)

    def drop(self, url: str) -> None:
        """Drop a database, whoever is connected to it, if it is still there."""
        statement = f"DROP DATABASE IF EXISTS {DatabaseUrl.parse(url).database} WITH (FORCE)"
        for left in reversed(range(_TRIES)):
            try:
                self._execute(statement)
            except PandaDatabaseError as error:
                if error.sqlstate != _IN_USE or not left:
                    raise
            else:
                return

    def drop_all(self) -> None:
        """Drop everything that the run has made here."""
        self._wait(self._drop(lambda name: name.startswith(_prefix(self._run))))

    def _execute(self, statement: str) -> None:
        async def work() -> None:
            async with self._engine.connect() as connection:
                await connection.exec_driver_sql(statement)

        self._wait(work())

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        with ThreadPoolExecutor(1, thread_name_prefix="panda-testing") as thread:
            return thread.submit(self._loop.run_until_complete, work).result()

    async def _open(self) -> None:
        async with self._engine.connect() as connection:
            found: tuple[Any, ...] = tuple((await connection.exec_driver_sql(_RIGHTS)).one())
        number, version, role, able = found
        if number < _OLDEST:
            raise PandaDatabaseError(f"the server is PostgreSQL {version}", hint="Give one of version 15 or newer.")
        if not able:
            raise PandaDatabaseError(
                f"the role {role!r} may not create databases, and each test needs one of its own",
                hint=f"As a superuser: ALTER ROLE {role} CREATEDB",
            )
        if self._server is None:
            await self._sweep()

    async def _sweep(self) -> None:
        """Every process of a live run keeps a connection under the run's name; what belongs to no such run is left over."""
        async with self._engine.connect() as connection:
            running = set((await connection.exec_driver_sql(_RUNNING)).scalars())
        with contextlib.suppress(PandaDatabaseError):  # another run may be sweeping too; nothing depends on it
            await self._drop(lambda name: f"panda test {name.split('_')[2]}" not in running)

    async def _drop(self, chosen: Callable[[str], bool]) -> None:
        async with self._engine.connect() as connection:
            for name in (await connection.exec_driver_sql(_MINE)).scalars().all():
                if chosen(name):
                    await connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    async def _template(self, metadata: MetaData | None, prepare: Prepare) -> str:
        name = f"{_prefix(self._run)}template"
        unfinished = f"{name}_unfinished"
        async with self._engine.connect() as connection, _lock(connection, name):
            known = set((await connection.exec_driver_sql(_MINE)).scalars())
            if name in known:
                return name
            # Left by a process that failed, or was killed, on the way.
            await connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {unfinished} WITH (FORCE)")
            await connection.exec_driver_sql(f"CREATE DATABASE {unfinished}")
            await asyncio.to_thread(asyncio.run, _fill(at(self._url, unfinished), metadata, prepare))
            try:
                await connection.exec_driver_sql(f"ALTER DATABASE {unfinished} RENAME TO {name}")
            except PandaDatabaseError as error:
                raise _explained(error) from error
            await connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        return name

    def _copied_from(self, template: str) -> str:
        # Copying the files is the quickest, but it makes the whole server write a checkpoint: our own server may.
        return f" TEMPLATE {template}" + (" STRATEGY FILE_COPY" if self._server is not None else "")

    async def _restart(self) -> None:
        assert self._server is not None
        await asyncio.to_thread(self._server.ensure)


def at(url: str, database: str) -> Address:
    """The URL with another database."""
    start, question, query = url.partition("?")
    scheme, _, rest = start.partition("://")
    if {"dbname", "database"} & {part.partition("=")[0] for part in query.split("&")}:
        raise InvalidUrl("the URL names its database in the query", hint="Name it after the last slash: /postgres")
    return Address(f"{scheme}://{rest.partition('/')[0]}/{database}{question}{query}")


def drop_all(url: str, run: Run) -> None:
    """Drop everything that a run has made on a server that is not its own; what cannot be dropped is left to the next run."""
    databases = Databases(url, run, None)
    try:
        databases.drop_all()
    except PandaDatabaseError as error:
        sys.stderr.write(f"panda: databases of this run, {_prefix(run)}..., are left on the server: {error}\n")
    finally:
        databases.close()


@contextlib.contextmanager
def told() -> Generator[None]:
    """Fail the test with the error's own words: the cause is the set-up, not a line of code."""
    try:
        yield
    except PandaDatabaseError as error:
        raise pytest.fail.Exception(f"panda: {error}", pytrace=False) from None


def _engine(url: str, run: Run, recover: Callable[[], Awaitable[None]] | None) -> AsyncEngine:
    at(url, "x")  # refuses what could not be pointed at another database
    named = replace(DatabaseUrl.parse(url), application_name=f"panda test {run.name}")
    engine = build_engine(named, _MAINTENANCE, recover=recover)
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def _prefix(run: Run) -> str:
    return f"panda_test_{run.name}_"


@contextlib.asynccontextmanager
async def _lock(connection: AsyncConnection, name: str) -> AsyncGenerator[None]:
    """One process of the run at a time; it is freed with the connection too."""
    await connection.exec_driver_sql(f"SELECT pg_advisory_lock(hashtextextended('{name}', 0))")
    try:
        yield
    finally:
        await connection.exec_driver_sql(f"SELECT pg_advisory_unlock(hashtextextended('{name}', 0))")


async def _fill(url: str, metadata: MetaData | None, prepare: Prepare) -> None:
    engine = build_engine(DatabaseUrl.parse(url), EngineOptions(environment="testing", timeouts=_UNLIMITED))
    try:
        await schema.upgrade(engine)
        if metadata is not None:
            async with engine.begin() as connection:
                await connection.run_sync(metadata.create_all)
    finally:
        await engine.dispose()
    outcome = prepare(url)
    if inspect.isawaitable(outcome):
        await outcome


def _explained(error: PandaDatabaseError) -> PandaDatabaseError:
    if error.sqlstate != _IN_USE:
        return error
    return PandaDatabaseError(
        "the template is still in use: something that `panda_prepare` opened is connected to it",
        hint="Close every manager and dispose of every engine in it; a template can only be copied at rest.",
    )
