"""Rows on their way into one of our tables, judged by the constraints that the table really has.

Each goes by way of a temporary table that is as the target, without its constraints, amounts unbounded, and with two
columns more: `_key`, which row of the original it is, and `_reason`, why it is set aside. The CHECKs are read from the
catalog, so that what is refused is what the table would refuse, whatever revision made it.
"""
# ruff: noqa: S608 - every name in a statement is one of our own or quoted, every value is bound

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core.database.records import (
    BROKER_RULE,
    CURRENCY_RULE,
    IDENTIFIER_RULE,
    LABEL_RULE,
    PASSWORD_HASH_RULE,
    USERNAME_RULE,
    VENUE_RULE,
    TextRule,
)
from core.trading.adoption._original import ORIGINAL_SCHEMA

_COLUMNS = text(
    "SELECT attname, atttypid = 'numeric'::regtype AS is_amount, attnotnull AND attidentity = '' AS is_needed"
    " FROM pg_attribute WHERE attrelid = to_regclass(:name) AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
)
_CHECKS = text(
    "SELECT conname, pg_get_expr(conbin, conrelid) FROM pg_constraint"
    " WHERE conrelid = to_regclass(:name) AND contype = 'c' ORDER BY conname"
)
_RULES: dict[str, TextRule] = {
    "username": USERNAME_RULE,
    "hashed_password": PASSWORD_HASH_RULE,
    "session_id": IDENTIFIER_RULE,
    "strategy_id": IDENTIFIER_RULE,
    "portfolio_id": IDENTIFIER_RULE,
    "broker": BROKER_RULE,
    "source": BROKER_RULE,
    "exchange": VENUE_RULE,
    "segment": VENUE_RULE,
    "currency": CURRENCY_RULE,
    "name": LABEL_RULE,
    "strategy_type": LABEL_RULE,
    "trading_symbol": LABEL_RULE,
    "exchange_token": LABEL_RULE,
    "underlying": LABEL_RULE,
}
_LONGEST = 120
_BATCH = 2_000


async def run(connection: AsyncConnection, statement: str, **values: Any) -> int:
    """Execute one of our own statements; the number of rows that it wrote."""
    if values:
        return (await connection.execute(text(statement), values)).rowcount
    return (await connection.exec_driver_sql(statement)).rowcount  # a colon in it is no parameter


def staged(table: str) -> str:
    """The name of a table's temporary one."""
    return f"adopting_{table}"


async def stage(connection: AsyncConnection, table: str) -> None:
    """Make the temporary table of `table`."""
    name = staged(table)
    await run(
        connection,
        f"CREATE TEMPORARY TABLE {name} ON COMMIT DROP AS"
        f" SELECT t.*, CAST(NULL AS text) AS _key, CAST(NULL AS text) AS _reason FROM {table} t WITH NO DATA",
    )
    for column in await _columns(connection, table):
        if column.is_amount:
            await run(connection, f"ALTER TABLE {name} ALTER COLUMN {column.attname} TYPE numeric")


async def refuse(connection: AsyncConnection, table: str, reason: str, where: str, joined: str = "") -> None:
    """Mark the staged rows `s` that meet a condition, unless they are marked. `reason` is an SQL expression."""
    name = staged(table)
    join = f", {joined}" if joined else ""
    await run(
        connection,
        f"UPDATE {name} SET _reason = {reason} FROM {name} s{join}"
        f" WHERE {name}.ctid = s.ctid AND s._reason IS NULL AND ({where})",
    )


async def judge(connection: AsyncConnection, table: str) -> None:
    """Mark the staged rows that the table's columns and CHECKs would refuse, each with all its reasons."""
    columns = await _columns(connection, table)
    checks: Any = (await connection.execute(_CHECKS, {"name": table})).all()
    reasons = [f"CASE WHEN {c.attname} IS NULL THEN '{c.attname} is missing' END" for c in columns if c.is_needed]
    reasons += [_misfit(c.attname) for c in columns if c.is_amount]
    amounts = {f"ck_{table}_{c.attname}": c.attname for c in columns if c.is_amount}
    for name, condition in checks:
        # What is no number, or none that fits, has been said.
        guard = f" AND abs({amounts[name]}) < 1e18" if name in amounts else ""
        reasons.append(f"CASE WHEN NOT ({condition}){guard} THEN {_quoted(_words(table, name, condition))} END")
    stage_name = staged(table)
    await run(
        connection,
        f"UPDATE {stage_name} SET _reason = j.reason FROM (SELECT ctid AS place,"
        f" concat_ws('; ', {', '.join(reasons)}) AS reason FROM {stage_name} WHERE _reason IS NULL) j"
        f" WHERE {stage_name}.ctid = j.place AND j.reason <> ''",
    )


async def settle(connection: AsyncConnection, table: str, *, source: str, key: str) -> tuple[int, int]:
    """Insert the staged rows that nothing refuses and set the others aside; how many of each.

    `key` is the primary key of `source`, the original's table; a row that was set aside is kept as it stands there.
    """
    names = ", ".join(c.attname for c in await _columns(connection, table))
    moved = await run(
        connection,
        f"INSERT INTO {table} ({names}) SELECT {names} FROM {staged(table)} WHERE _reason IS NULL",
    )
    aside = await run(
        connection,
        f"INSERT INTO {ORIGINAL_SCHEMA}.set_aside (source_table, row_key, reason, original)"
        f" SELECT '{source}', s._key, s._reason, row_to_json(o) FROM {staged(table)} s"
        f" JOIN {ORIGINAL_SCHEMA}.{source} o ON CAST(o.{key} AS text) = s._key WHERE s._reason IS NOT NULL",
    )
    return moved, aside


async def batches(connection: AsyncConnection, query: str, *, name: str) -> AsyncGenerator[Sequence[Any]]:
    """The rows of a query, some thousands at a time, by a cursor `name` that is closed after the last.

    The driver's own cursors stay open until they are collected, and an open one keeps its table from being dropped.
    """
    await run(connection, f"DECLARE {name} NO SCROLL CURSOR FOR {query}")
    while rows := (await connection.exec_driver_sql(f"FETCH FORWARD {_BATCH} FROM {name}")).all():
        yield rows
    await run(connection, f"CLOSE {name}")


async def analyze(connection: AsyncConnection, *names: str) -> None:
    """Without statistics a join of two temporary tables may be a nested loop of hours."""
    for name in names:
        await run(connection, f"ANALYZE {name}")


async def _columns(connection: AsyncConnection, table: str) -> list[Any]:
    return list((await connection.execute(_COLUMNS, {"name": table})).all())


def _misfit(amount: str) -> str:
    return (
        f"CASE WHEN {amount} = 'NaN' THEN '{amount} is not a number (NaN)'"
        f" WHEN abs({amount}) = 'Infinity' THEN '{amount} is infinite'"
        f" WHEN abs({amount}) >= 1e18 THEN '{amount} has more than 18 digits before the point' END"
    )


def _words(table: str, check: str, condition: str) -> str:
    """What a CHECK asks for, in words where there are some."""
    subject = check.removeprefix(f"ck_{table}_")
    rule = _RULES.get(subject)
    if rule is not None:
        return f"{subject} {rule.reason}, of at most {rule.max_length} characters"
    shown = condition if len(condition) <= _LONGEST else f"{condition[:_LONGEST]}..."
    return f"refused by {check}: {shown}"


def _quoted(words: str) -> str:
    return "'" + words.replace("'", "''") + "'"
