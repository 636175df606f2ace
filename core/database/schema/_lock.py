"""One migration at a time: across processes by advisory locks in the database, within a process by a thread lock.

Two keys, because a killed process leaves two things behind that end at different times. The keeper, a connection of its own,
holds the first key in an open transaction: its server process waits for the client, sees at once that it is gone, and
lets go. The worker's server process may be deep in a statement and see it later: each of its transactions holds the second
key, and who gets the first key waits for the second before looking at the schema. Outside a transaction, where an index is
built concurrently, the worker's session holds it.

The locks belong to transactions, so they work behind PgBouncer, that of the session excepted: there a build whose client
died is found by its lock on the table. They are asked for again and again, each time in a new
transaction, instead of being waited for: a waiting statement holds a snapshot, and CREATE INDEX CONCURRENTLY in the
migration that is waited for would wait for that snapshot in turn, a deadlock that the server does not see.
"""

import asyncio
import contextlib
import math
import random
import threading
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from core.config.options import Timeouts
from core.database.errors import ConnectionLost, SchemaLockTimeout

KEEPER_KEY = 1
WORKER_KEY = 2
_ROOM = 0x50414E44  # "PAND": the first half of both keys
_LONGEST_PAUSE = 0.25

# By way of pg_settings, so that what an older server does not know (transaction_timeout) is passed over. A statement whose
# client died ends within a second where the server's system can tell; on others the setting is refused.
_SET = text(
    "SELECT count(set_config(s.name, v.value, :local)) FROM pg_catalog.pg_settings s JOIN (VALUES"
    " ('lock_timeout', CAST(:lock AS text)), ('statement_timeout', CAST(:statement AS text)),"
    " ('idle_in_transaction_session_timeout', '0'), ('transaction_timeout', '0'),"
    " ('client_connection_check_interval', '1000')) v (name, value) ON v.name = s.name"
    " WHERE s.name <> 'client_connection_check_interval' OR version() LIKE '%linux%'"
)
_TRY = text("SELECT pg_try_advisory_xact_lock(:room, :key)")
_TAKE = text("SELECT pg_backend_pid(), pg_advisory_xact_lock(:room, :key)")
_TAKE_FOR_SESSION = text("SELECT pg_backend_pid(), pg_advisory_lock(:room, :key)")
# The driver's last query of a transaction keeps its snapshot until the next statement; this one needs none.
_DROP_SNAPSHOT = text("SET LOCAL statement_timeout = 0")
_HOLDER = text(
    "SELECT l.pid, a.application_name FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a USING (pid)"
    " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 AND l.classid::bigint = :room AND l.objid::bigint = :key"
    " AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) LIMIT 1"
)

# `alembic.context` and `alembic.op` are one per process, whatever the thread or event loop.
_alembic = threading.Lock()


@dataclass(slots=True)
class Step:
    """What the worker is about to run: its limits, and what became of it. Read by the worker's next transaction."""

    lock: float
    """Seconds; 0 is no limit."""
    statement: float
    """Seconds; 0 is no limit."""
    process: int | None = None
    """The worker's process on the server, None where no transaction has begun or a pooler hides it."""
    left_transaction: bool = False
    """Whether a part ran outside a transaction that cannot simply be run again."""


STEP = "panda_migration_step"
"""The execution option by which the worker's connection carries its `Step`."""


@contextlib.asynccontextmanager
async def migration_lock(engine: AsyncEngine, *, timeouts: Timeouts) -> AsyncGenerator[AsyncConnection]:
    """Hold the database's migration lock and give a connection to migrate on, in no transaction.

    Each transaction begun on it has the limits of a migration. Takes one connection of the pool's limit at a time; neither
    of the two used is given back. Raises `SchemaLockTimeout` after `timeouts.migration_lock`.
    """
    deadline = asyncio.get_running_loop().time() + timeouts.migration_lock
    async with _keeper(engine, cleanup=timeouts.cleanup) as keeper:
        await _acquire(keeper, KEEPER_KEY, deadline=deadline, timeouts=timeouts)
        async with _worker(engine) as worker:
            await _acquire(worker, WORKER_KEY, deadline=deadline, timeouts=timeouts)
            await worker.rollback()
            with _limited(engine, worker, timeouts):
                yield worker


@contextlib.asynccontextmanager
async def alembic_guard(*, timeouts: Timeouts) -> AsyncGenerator[None]:
    """Keep every other user of Alembic in this process out, in any thread or event loop. Needs no database.

    Never wait for a migration lock while holding it.
    """
    deadline = asyncio.get_running_loop().time() + timeouts.migration_lock
    while not _alembic.acquire(blocking=False):
        if asyncio.get_running_loop().time() > deadline:
            raise SchemaLockTimeout(
                f"another migration in this process lasts longer than {timeouts.migration_lock:g} s"
            )
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        _alembic.release()


@contextlib.asynccontextmanager
async def _keeper(engine: AsyncEngine, *, cleanup: float) -> AsyncGenerator[AsyncConnection]:
    """A connection taken out of the pool, whose limit leaves room for the worker; closed within `cleanup` seconds."""
    connection = await engine.connect()
    try:
        raw = await connection.run_sync(_detach)
    except BaseException:  # cancellation included: the connection must not be lost
        await connection.close()
        raise
    try:
        yield connection
    finally:
        try:
            # One that is lost already has let go; what became of the migration is told by the worker.
            with contextlib.suppress(TimeoutError, ConnectionLost):
                async with asyncio.timeout(cleanup):
                    await connection.close()
        finally:
            # A detached connection that was invalidated, or whose closing was cut short, is closed by nobody else.
            engine.dialect.do_terminate(raw)


@contextlib.asynccontextmanager
async def _worker(engine: AsyncEngine) -> AsyncGenerator[AsyncConnection]:
    """A connection that does not go back to the pool: a migration may have left settings in its session.

    It stays in the pool until then, because SQLAlchemy cannot change the isolation level of one that was taken out.
    """
    async with engine.connect() as connection:
        try:
            yield connection
        finally:
            await connection.invalidate()  # bounded by the dialect, which cuts it off


def _detach(connection: Connection) -> Any:
    raw = connection.connection.dbapi_connection
    connection.detach()
    return raw


async def _acquire(connection: AsyncConnection, key: int, *, deadline: float, timeouts: Timeouts) -> None:
    """Begin a transaction that holds the lock, or raise `SchemaLockTimeout` at the deadline."""
    pause = 0.01
    while not (await connection.execute(_TRY, {"room": _ROOM, "key": key})).scalar_one():
        remaining = deadline - asyncio.get_running_loop().time()
        if remaining <= 0:
            raise await _timed_out(connection, key, timeouts)
        await connection.rollback()  # while a transaction is open it may hold back CREATE INDEX CONCURRENTLY
        await asyncio.sleep(min(pause * random.uniform(0.5, 1.0), remaining))  # noqa: S311 - no secret
        pause = min(pause * 2, _LONGEST_PAUSE)
    await connection.execute(_SET, {"local": True, "lock": "0", "statement": "0"})
    await connection.execute(_DROP_SNAPSHOT)


async def _timed_out(connection: AsyncConnection, key: int, timeouts: Timeouts) -> SchemaLockTimeout:
    holder = (await connection.execute(_HOLDER, {"room": _ROOM, "key": key})).one_or_none()
    who = f"process {holder[0]} of the server ({holder[1] or 'no application name'})" if holder else "another process"
    return SchemaLockTimeout(f"{who} has held the migration lock for longer than {timeouts.migration_lock:g} s")


@contextlib.contextmanager
def _limited(engine: AsyncEngine, worker: AsyncConnection, timeouts: Timeouts) -> Generator[None]:
    """Begin each transaction of the worker by setting its limits and taking the second key.

    In an autocommit block there is no transaction to set them for, so they are set for the session, which takes the key
    too; its connection is not used again. There the lock limit is the statement's: what runs outside a transaction (CREATE
    INDEX CONCURRENTLY) blocks nobody while it waits, and leaves an invalid index when it gives up. A pooler may run each
    statement in another session, so behind one nothing is set: it would leak to strangers.
    """
    usual = Step(timeouts.lock, timeouts.migration)
    pooled = bool(engine.get_execution_options().get("pgbouncer"))

    def begun(connection: Connection) -> None:
        if connection is not worker.sync_connection:
            return
        options = connection.get_execution_options()
        step: Step = options.get(STEP, usual)
        outside = options.get("isolation_level") == "AUTOCOMMIT"
        step.left_transaction = step.left_transaction or outside
        if outside and pooled:
            step.process = None
            return
        statement = _milliseconds(step.statement)
        lock = statement if outside else _milliseconds(step.lock)
        connection.execute(_SET, {"local": not outside, "lock": lock, "statement": statement})
        taken = connection.execute(_TAKE_FOR_SESSION if outside else _TAKE, {"room": _ROOM, "key": WORKER_KEY})
        step.process = taken.one()[0]

    # Behind a pooler on the engine, after what it does itself at the beginning of each transaction: a connection's listeners run
    # first. Elsewhere on the connection: an engine that has once been listened to costs each of its sessions a little for ever.
    target = engine.sync_engine if pooled else worker.sync_connection
    event.listen(target, "begin", begun)
    try:
        yield
    finally:
        event.remove(target, "begin", begun)


def _milliseconds(seconds: float) -> str:
    return str(math.ceil(seconds * 1_000))
