"""Build and drop an index concurrently on the driver's connection, picking up what an interrupted run has left.

Statements go to the server as simple queries, each a single message, so that a pooler cannot part them; looks are short
transactions. Errors are the driver's.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from core.database.errors import LockTimeout, SchemaError, StatementTimeout
from core.database.schema._lock import Step

Say = Callable[[str], None]

_POLL = 0.2  # seconds
_LONGEST_NAME = 63  # bytes

_TABLE = """
SELECT c.oid, c.relkind::text AS kind, n.nspname AS schema, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass($1)
"""
_INDEX = """
SELECT c.oid, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name, x.indrelid AS table, x.indisvalid AS valid,
    (x.indisunique, regexp_replace(pg_get_indexdef(c.oid), '^.*? USING ', ''))::text AS shape, pg_get_indexdef(c.oid) AS definition
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_index x ON x.indexrelid = c.oid WHERE c.relname = $1 AND n.nspname = $2
"""
_PARTITIONS = """
SELECT c.oid, n.nspname AS schema, c.relname AS table, c.relkind::text AS kind,
    quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name
FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE i.inhparent = to_regclass($1) ORDER BY 1, 2
"""
_ATTACHED = """
SELECT x.indrelid AS table FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_index x ON x.indexrelid = i.inhrelid
WHERE i.inhparent = $1
"""
# A build under way holds this lock on its table throughout; autovacuum, which has it too, is none.
_BUILDER = """
SELECT l.pid, a.application_name FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a USING (pid)
WHERE l.locktype = 'relation' AND l.relation = $1 AND l.mode = 'ShareUpdateExclusiveLock' AND l.granted
AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
AND l.pid <> pg_backend_pid() AND a.backend_type IS DISTINCT FROM 'autovacuum worker' LIMIT 1
"""
_SHAPE = "panda_index_shape"


@dataclass(frozen=True, slots=True)
class WantedIndex:
    """The index that a migration asks for."""

    name: str
    table_name: str
    schema: str | None
    table: str
    """Quoted, and qualified as the migration has it."""
    statement: Callable[[str, str, str | None], str]
    """CREATE INDEX for an index's name, a table and its schema, all unquoted."""

    def concurrent(self, name: str, table: str, schema: str | None) -> str:
        return self.statement(name, table, schema).replace("INDEX ", "INDEX CONCURRENTLY ", 1)

    def on_parent_alone(self) -> str:
        """For a partitioned table: its own entry in the catalog, to which the partitions' indexes are attached."""
        statement = self.statement(self.name, self.table_name, self.schema)
        return statement.replace(f" ON {self.table} ", f" ON ONLY {self.table} ", 1)


def child_name(table: str, index: str) -> str:
    """The name of a partition's index: the same in each run, and no longer than the server allows."""
    name = f"{table}_{index}"
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return name.encode()[: _LONGEST_NAME - 9].decode(errors="ignore") + f"_{digest}"


async def is_partitioned(raw: Any, name: str) -> bool:
    """Of a table or an index."""
    found = await _one(raw, _TABLE, name)
    return found is not None and found["kind"] in ("p", "I")


async def build(raw: Any, wanted: WantedIndex, step: Step, say: Say) -> None:
    """Build it on an ordinary table, unless it is there."""
    table = await _one(raw, _TABLE, wanted.table)
    if table is None:
        await _execute(
            raw, wanted.concurrent(wanted.name, wanted.table_name, wanted.schema), step
        )  # the server refuses
    else:
        await _build_one(raw, wanted, (wanted.name, wanted.table_name, wanted.schema), table=table, step=step, say=say)


async def build_on_partitions(raw: Any, wanted: WantedIndex, step: Step, say: Say) -> None:
    """Build it on each partition that has none. A partition that is itself partitioned is refused."""
    parent = await _one(raw, _TABLE, wanted.table)
    index = await _one(raw, _INDEX, wanted.name, parent["schema"])
    attached = await _all(raw, _ATTACHED, index["oid"] if index else 0)
    for partition in await _all(raw, _PARTITIONS, wanted.table):
        if partition["oid"] in {row["table"] for row in attached}:
            continue
        if partition["kind"] != "r":
            raise SchemaError(
                f"partition {partition['name']} is no ordinary table: index {wanted.name} cannot be built concurrently",
                hint="Build the index on each leaf by migrations of their own, then attach them level by level.",
            )
        place = (child_name(partition["table"], wanted.name), partition["table"], partition["schema"])
        await _build_one(raw, wanted, place, table=partition, step=step, say=say)


async def attach(raw: Any, wanted: WantedIndex) -> None:
    """Make the partitioned table's own index of those of its partitions, in the caller's transaction.

    The parent's entry blocks writers and new partitions until the transaction ends. A partition that came since the
    others were built is indexed with it.
    """
    parent = await raw.fetchrow(_TABLE, wanted.table)
    found = await raw.fetchrow(_INDEX, wanted.name, parent["schema"])
    if found is None:
        await raw.execute(wanted.on_parent_alone())
        found = await raw.fetchrow(_INDEX, wanted.name, parent["schema"])
    elif found["table"] != parent["oid"] or found["shape"] != await _shape(raw, wanted, parent["name"]):
        raise _another(wanted.name, found, parent["name"])
    attached = {row["table"] for row in await raw.fetch(_ATTACHED, found["oid"])}
    for partition in await raw.fetch(_PARTITIONS, wanted.table):
        if partition["oid"] in attached:
            continue
        name = child_name(partition["table"], wanted.name)
        child = await raw.fetchrow(_INDEX, name, partition["schema"])
        if child is None:
            await raw.execute(wanted.statement(name, partition["table"], partition["schema"]))
            child = await raw.fetchrow(_INDEX, name, partition["schema"])
        await raw.execute(f"ALTER INDEX {found['name']} ATTACH PARTITION {child['name']}")


async def drop(raw: Any, name: str, step: Step, say: Say) -> None:
    """Drop an ordinary index, if it is there."""
    if await _one(raw, _TABLE, name) is None:
        say(f"index {name} is gone already")
        return
    await _execute(raw, f"DROP INDEX CONCURRENTLY IF EXISTS {name}", step)


async def _build_one(
    raw: Any, wanted: WantedIndex, place: tuple[str, str, str | None], *, table: Any, step: Step, say: Say
) -> None:
    name, table_name, schema = place
    found = await _one(raw, _INDEX, name, table["schema"])
    if found is not None and not found["valid"] and found["table"] == table["oid"]:
        await _await_builder(raw, table, step, say)
        found = await _one(raw, _INDEX, name, table["schema"])
    if found is not None:
        if found["table"] != table["oid"]:
            raise _another(name, found, table["name"])
        if found["valid"]:
            await _require_same(raw, wanted, found, name, table["name"])
            say(f"index {name} is there already")
            return
        say(f"index {name} is invalid, left by an interrupted build: building it anew")
        await _execute(raw, f"DROP INDEX CONCURRENTLY IF EXISTS {found['name']}", step)
    await _execute(raw, wanted.concurrent(name, table_name, schema), step)


async def _require_same(raw: Any, wanted: WantedIndex, found: Any, name: str, table: str) -> None:
    transaction = raw.transaction()
    await transaction.start()
    try:
        same = found["shape"] == await _shape(raw, wanted, table)
    finally:
        await transaction.rollback()
    if not same:
        raise _another(name, found, table)


async def _shape(raw: Any, wanted: WantedIndex, table: str) -> str:
    """How the server spells the wanted index: on an empty copy of the table, undone by a savepoint."""
    savepoint = raw.transaction()
    await savepoint.start()
    try:
        await raw.execute(f"CREATE TEMPORARY TABLE {_SHAPE} (LIKE {table})")
        await raw.execute(wanted.statement(wanted.name, _SHAPE, "pg_temp"))
        space: str = await raw.fetchval("SELECT nspname FROM pg_catalog.pg_namespace WHERE oid = pg_my_temp_schema()")
        return (await raw.fetchrow(_INDEX, wanted.name, space))["shape"]
    finally:
        await savepoint.rollback()


def _another(name: str, found: Any, table: str) -> SchemaError:
    there = found["definition"] or "no index"
    return SchemaError(
        f"{name} is there already, but not the index that is wanted on {table}: it is {there}",
        hint="Drop or rename what is there, or give the migration's index another name.",
    )


async def _await_builder(raw: Any, table: Any, step: Step, say: Say) -> None:
    """Wait while another process works on the table's indexes: the invalid one may be about to become valid."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + (step.statement or float("inf"))
    said: int | None = None
    while (builder := await _one(raw, _BUILDER, table["oid"])) is not None:
        who = f"process {builder['pid']} ({builder['application_name'] or 'no application name'})"
        if loop.time() > deadline:
            raise LockTimeout(f"{who} is still building or vacuuming on {table['name']}")
        if said != builder["pid"]:
            say(f"waiting for {who}, which is building or vacuuming on {table['name']}")
            said = builder["pid"]
        await asyncio.sleep(_POLL)


async def _execute(raw: Any, statement: str, step: Step) -> None:
    # The server's own limit is a little earlier where it is in force; behind a pooler this is the only one.
    try:
        await raw.execute(statement, timeout=step.statement + 1.0 if step.statement else None)
    except TimeoutError as error:
        raise StatementTimeout(f"it has not ended within {step.statement:g} s, and was cancelled") from error


async def _one(raw: Any, query: str, *values: Any) -> Any:
    found = await _all(raw, query, *values)
    return found[0] if found else None


async def _all(raw: Any, query: str, *values: Any) -> Any:
    if raw.is_in_transaction():
        return await raw.fetch(query, *values)
    async with raw.transaction():
        return await raw.fetch(query, *values)
