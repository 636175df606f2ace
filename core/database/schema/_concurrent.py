"""`op.create_index` and `op.drop_index` with `postgresql_concurrently=True`, made safe to interrupt and run again.

Alembic's own send the statement into the migration's transaction, where PostgreSQL refuses it. Here they leave the
transaction, look at what an interrupted run has left, do what is missing and go on in a new transaction, in which the
migration is stamped. Any other index, and any migration that is not run by this package, is Alembic's business.
"""

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from alembic.operations import Operations, ops
from alembic.operations.toimpl import create_index as plain_create_index
from alembic.operations.toimpl import drop_index as plain_drop_index
from alembic.runtime.migration import MigrationContext
from sqlalchemy.schema import CreateIndex
from sqlalchemy.util import await_only

from core.database.errors import SchemaError
from core.database.schema import _index_steps as steps
from core.database.schema._index_steps import WantedIndex
from core.database.schema._lock import Step

HANDED = "panda"
"""The attribute of Alembic's configuration by which this package marks its own runs."""

_CONCURRENTLY = "postgresql_concurrently"
_ALONE = "Put the index into a migration of its own, or before everything else in this one."


@Operations.implementation_for(ops.CreateIndexOp, replace=True)
def create_index(operations: Operations, operation: ops.CreateIndexOp) -> None:
    """Build the index outside a transaction, or keep a valid one of the same definition."""
    context = operations.migration_context
    handed = _handed(context, operation.kw)
    if handed is None:
        plain_create_index(operations, operation)
        return
    wanted = _wanted(context, operation)
    if context.as_sql:
        _write_create(context, wanted, handed)
        return
    _refuse_after_writes(context, wanted.name)
    raw = _raw(context)
    if not await_only(steps.is_partitioned(raw, wanted.table)):
        with _outside(context, handed["step"]):
            await_only(steps.build(raw, wanted, handed["step"], handed["say"]))
        return
    _require_transaction(context, wanted.name)
    with _outside(context, handed["step"]):
        await_only(steps.build_on_partitions(raw, wanted, handed["step"], handed["say"]))
    await_only(steps.attach(raw, wanted))


@Operations.implementation_for(ops.DropIndexOp, replace=True)
def drop_index(operations: Operations, operation: ops.DropIndexOp) -> None:
    """Drop the index outside a transaction; one that is gone already was dropped by an interrupted run."""
    context = operations.migration_context
    handed = _handed(context, operation.kw)
    if handed is None:
        plain_drop_index(operations, operation)
        return
    name = _qualified(context, operation.index_name, operation.schema)
    if context.as_sql:
        if (operation.table_name or "") in handed["partitions"]:
            context.impl.static_output(f"DROP INDEX {name};")
            return
        with _written_outside(context, handed["step"]):
            context.impl.static_output(f"DROP INDEX CONCURRENTLY IF EXISTS {name};")
        return
    _refuse_after_writes(context, operation.index_name)
    raw = _raw(context)
    if await_only(steps.is_partitioned(raw, name)):
        context.impl.execute(f"DROP INDEX {name}")
        return
    with _outside(context, handed["step"]):
        await_only(steps.drop(raw, name, handed["step"], handed["say"]))


def _handed(context: MigrationContext, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """What this package gave to the run, where the operation is a concurrent one of it."""
    if not options.get(_CONCURRENTLY) or context.config is None:
        return None
    return context.config.attributes.get(HANDED)


def _wanted(context: MigrationContext, operation: ops.CreateIndexOp) -> WantedIndex:
    if operation.index_name is None:
        raise SchemaError("a concurrent index needs a name", hint="Name it in op.create_index().")
    options = {name: value for name, value in operation.kw.items() if name != _CONCURRENTLY}

    def statement(name: str, table: str, schema: str | None) -> str:
        made = ops.CreateIndexOp(name, table, operation.columns, schema=schema, unique=operation.unique, **options)
        return " ".join(str(CreateIndex(made.to_index(context)).compile(dialect=context.dialect)).split())

    table = _qualified(context, operation.table_name, operation.schema)
    return WantedIndex(operation.index_name, operation.table_name, operation.schema, table, statement)


def _qualified(context: MigrationContext, name: str, schema: str | None) -> str:
    quote = context.dialect.identifier_preparer.quote
    return f"{quote(schema)}.{quote(name)}" if schema else quote(name)


def _raw(context: MigrationContext) -> Any:
    assert context.connection is not None
    return context.connection.connection.driver_connection


def _is_outside(context: MigrationContext) -> bool:
    connection = context.connection
    return connection is not None and connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"


@contextmanager
def _outside(context: MigrationContext, step: Step) -> Generator[None]:
    """Outside a transaction, in the migration's own autocommit block if it is in one. What runs here can run again."""
    if _is_outside(context):
        yield
        return
    before = step.left_transaction
    with context.autocommit_block():
        step.left_transaction = before
        yield


def _refuse_after_writes(context: MigrationContext, name: str) -> None:
    """What the migration did before would be committed without its stamp: interrupted now, it could not run again."""
    if _is_outside(context) or not context.get_current_heads():  # the first one has made Alembic's own table
        return
    assert context.connection is not None
    written = context.connection.exec_driver_sql("SELECT pg_current_xact_id_if_assigned() IS NOT NULL").scalar()
    if written:
        raise SchemaError(f"index {name} is to be changed concurrently after other work of its migration", hint=_ALONE)


def _require_transaction(context: MigrationContext, name: str) -> None:
    if _is_outside(context):
        raise SchemaError(
            f"index {name} is of a partitioned table, whose last step needs the migration's transaction",
            hint="Take it out of the autocommit block; op.create_index(..., postgresql_concurrently=True) needs none.",
        )


def _write_create(context: MigrationContext, wanted: WantedIndex, handed: Mapping[str, Any]) -> None:
    """The same as SQL, for the partitions that there are now."""
    say = context.impl.static_output
    partitions = cast("Mapping[str, Sequence[tuple[str, str]]]", handed["partitions"])
    if wanted.table_name not in partitions:
        with _written_outside(context, handed["step"]):
            say(f"{wanted.concurrent(wanted.name, wanted.table_name, wanted.schema)};")
        return
    children = [
        (schema, table, steps.child_name(table, wanted.name)) for schema, table in partitions[wanted.table_name]
    ]
    with _written_outside(context, handed["step"]):
        for schema, table, child in children:
            say(f"{wanted.concurrent(child, table, schema)};")
    say(f"{wanted.on_parent_alone()};")
    parent = _qualified(context, wanted.name, wanted.schema)
    for schema, _, child in children:
        say(f"ALTER INDEX {parent} ATTACH PARTITION {_qualified(context, child, schema)};")


@contextmanager
def _written_outside(context: MigrationContext, step: Step) -> Generator[None]:
    """Between COMMIT and BEGIN in the text, unless it is between them already, with the limits set for the session."""
    output: str = cast("Any", context.impl.output_buffer).getvalue()  # the one that `render` reads in the end
    inside = len(re.findall(r"^BEGIN;$", output, re.MULTILINE)) > len(re.findall(r"^COMMIT;$", output, re.MULTILINE))
    milliseconds = f"{step.statement * 1_000:.0f}ms"
    if inside:
        context.impl.emit_commit()
    context.impl.static_output(f"SET lock_timeout = '{milliseconds}';")
    context.impl.static_output(f"SET statement_timeout = '{milliseconds}';")
    yield
    context.impl.static_output("RESET statement_timeout;")
    context.impl.static_output("RESET lock_timeout;")
    if inside:
        context.impl.emit_begin()
