"""How the server would run a statement: its generic plan, with nothing executed."""

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from core.database.activity._nodes import PlanNode, node_of
from core.database.activity._observe import Observation, observe
from core.database.activity._relations import read_relations
from core.database.activity._statement import checked_statement, explained_fault
from core.database.activity._text import plan_lines
from core.database.errors import (
    ConfigurationError,
    ConnectionFailed,
    IntegrityViolation,
    PandaDatabaseError,
    SessionMisuse,
    StatementFault,
)

_NAME = "panda_explain"
_FACTS = text(
    "SELECT current_setting('server_version_num')::int AS version, cardinality(parameter_types) AS parameters"
    " FROM pg_prepared_statements WHERE name = :name"
)
_GENERIC_PLAN = 160_000  # the first version whose EXPLAIN leaves the pruning of partitions to a real run


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The plan that serves every value of the parameters, and what strikes the eye in it."""

    statement: str
    root: PlanNode
    observations: tuple[Observation, ...]
    source: Mapping[str, Any]
    """PostgreSQL's own JSON."""

    def text(self, width: int = 80, *, literals: bool = True) -> str:
        """The tree in `width` columns, with the planner's estimates of rows and cost; without `literals` for a log."""
        return "\n".join(plan_lines(self.root, width, literals=literals))


async def explain(source: AsyncEngine | AsyncSession, statement: str, *, timeout: float = 5.0) -> Plan:
    """The generic plan of one SELECT, INSERT, UPDATE, DELETE, MERGE or VALUES; `$1` stands for a parameter.

    Nothing is executed, not even once: the statement is prepared and planned inside a READ ONLY transaction that is
    rolled back, and the server itself refuses a second statement behind a semicolon. An engine lends a connection of
    its own; in a session's transaction it is a savepoint, and that transaction goes on unharmed. The server may take
    `timeout` seconds for each step. Functions marked IMMUTABLE or STABLE may be called by the planner, as ever.

    Raises `StatementFault` for what cannot be planned, `PermissionDenied`, `LockTimeout`, `StatementTimeout`,
    `SessionMisuse` for a session that has no transactions, and `ConnectionFailed`.
    """
    if not 0 < timeout <= 86_400:
        raise ConfigurationError("the time limit of explain is not between 0 and 86400 seconds")
    sql = checked_statement(statement)
    async with _transaction(source) as connection:
        found = await _explained(connection, sql, timeout)
        root = node_of(found["Plan"])
        relations = await read_relations(connection, root)
    return Plan(statement=sql, root=root, observations=observe(root, relations), source=found)


@asynccontextmanager
async def _transaction(source: AsyncEngine | AsyncSession) -> AsyncGenerator[AsyncConnection]:
    if isinstance(source, AsyncSession):
        connection = await source.connection()
        await connection.exec_driver_sql("SELECT 1")  # BEGIN is lazy
        driver: Any = (await connection.get_raw_connection()).driver_connection
        if not driver.is_in_transaction():
            raise SessionMisuse(
                "a read-only session has no transaction to plan in", hint="Hand in `manager.engine` instead."
            )
        yield connection
        return
    async with source.execution_options(postgresql_readonly=True).connect() as connection:
        yield connection


async def _explained(connection: AsyncConnection, statement: str, timeout: float) -> dict[str, Any]:
    """PostgreSQL's JSON. PREPARE takes exactly one plannable statement, sent by a protocol that allows no second."""
    try:
        async with connection.begin_nested() as savepoint:
            await connection.exec_driver_sql(
                f"SELECT set_config('transaction_read_only', 'on', true),"
                f" set_config('statement_timeout', '{timeout * 1_000:.0f}', true),"
                f" set_config('lock_timeout', '{min(timeout, 2.0) * 1_000:.0f}', true),"
                f" set_config('plan_cache_mode', 'force_generic_plan', true)"
            )
            await _prepare(connection, statement)
            found = await _plan_of_prepared(connection, statement)
            await savepoint.rollback()
    except PandaDatabaseError as error:
        if not isinstance(error, ConnectionFailed):
            await _forget(connection)
        if isinstance(error, IntegrityViolation):
            raise StatementFault("a parameter is of a domain that refuses NULL, which stands for it here") from error
        raise
    await _forget(connection)
    return found


async def _forget(connection: AsyncConnection) -> None:
    """A prepared statement outlives the rollback; its name must not stay behind on a connection that goes on."""
    if (await connection.execute(_FACTS, {"name": _NAME})).first() is not None:
        await connection.exec_driver_sql(f"DEALLOCATE {_NAME}")


async def _prepare(connection: AsyncConnection, statement: str) -> None:
    prefix = f"PREPARE {_NAME} AS "
    try:
        await connection.exec_driver_sql(prefix + statement)
    except StatementFault as error:
        raise explained_fault(error, statement, offset=len(prefix)) from error


async def _plan_of_prepared(connection: AsyncConnection, statement: str) -> dict[str, Any]:
    facts = (await connection.execute(_FACTS, {"name": _NAME})).mappings().one()
    values = f"({', '.join(['NULL'] * facts['parameters'])})" if facts["parameters"] else ""
    if facts["version"] >= _GENERIC_PLAN:
        return await _ask(connection, f"EXPLAIN (GENERIC_PLAN, VERBOSE, FORMAT JSON) EXECUTE {_NAME}{values}")
    ask = f"EXPLAIN (VERBOSE, FORMAT JSON) EXECUTE {_NAME}{values}"
    found = await _ask(connection, ask)
    if _pruned(found["Plan"]):
        # Older servers drop every partition that NULL does not match, which is all of them: plan without dropping.
        await connection.exec_driver_sql("SELECT set_config('enable_partition_pruning', 'off', true)")
        await connection.exec_driver_sql(f"DEALLOCATE {_NAME}")
        await _prepare(connection, statement)
        found = await _ask(connection, ask)
    return found


async def _ask(connection: AsyncConnection, statement: str) -> dict[str, Any]:
    answer = (await connection.exec_driver_sql(statement)).scalar_one()
    return _plain(json.loads(answer) if isinstance(answer, str) else answer)[0]


def _plain(value: Any) -> Any:
    """As PostgreSQL wrote it: our connections read every fraction as Decimal, but costs are no money."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def _pruned(node: Mapping[str, Any]) -> bool:
    return bool(node.get("Subplans Removed")) or any(_pruned(child) for child in node.get("Plans", ()))
