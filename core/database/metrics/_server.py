"""What the server counts about itself, as numbers for an operator."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import RowMapping, text

from core.database.connection import DatabaseManager
from core.database.errors import PandaDatabaseError
from core.database.metrics._families import Families
from core.database.models import Base

Rows = list[RowMapping]
_NOT_OURS = ("42P01", "42703", "42501")
_CONNECTION_STATES = ("active", "idle", "idle in transaction", "idle in transaction (aborted)")


@dataclass(frozen=True, slots=True)
class _Query:
    """One question; `fill` turns its rows into samples."""

    sql: str
    fill: Callable[[Families, str, Rows], None]
    parameters: Mapping[str, Any]
    optional: bool = False
    """Whether it is no failure that there is no such table, or that the role may not read it."""


class ServerReading:
    """The last answers. A question that a role or a server refuses is left out; the others stay."""

    def __init__(self) -> None:
        self._rows: dict[str, Rows] = {}
        self._refused: dict[str, int] = dict.fromkeys(_QUERIES, 0)

    async def read(self, manager: DatabaseManager, *, timeout: float) -> None:
        """Ask everything anew, `timeout` seconds in all; raises what a lost connection raises, and TimeoutError."""
        rows: dict[str, Rows] = {}
        async with asyncio.timeout(timeout):
            for name, query in _QUERIES.items():
                try:
                    async with manager.get_session(read_only=True) as session:
                        found = await session.execute(text(query.sql), dict(query.parameters))
                        rows[name] = list(found.mappings())
                except PandaDatabaseError as error:
                    if isinstance(error, ConnectionError):
                        raise
                    if not (query.optional and error.sqlstate in _NOT_OURS):
                        self._refused[name] += 1
        self._rows = rows

    def forget(self) -> None:
        """The server does not answer: old figures would be taken for new ones."""
        self._rows = {}

    def fill(self, families: Families, database: str) -> None:
        rows = self._rows
        for name, query in _QUERIES.items():
            if name in rows:
                query.fill(families, database, rows[name])
        for name, count in self._refused.items():
            text = "Questions about the server that it did not answer."
            families.counter("server_question_failures_total", text, count, database=database, question=name)


def _server(families: Families, database: str, rows: Rows) -> None:
    row = rows[0]
    families.gauge("server_info", "The server's version.", 1, database=database, version=row["version"])
    for name, words in (
        ("start_time_seconds", "When the server was started."),
        ("max_connections", "The most connections that the server takes."),
        ("size_bytes", "The size of the database on disk."),
        ("frozen_transaction_age", "Transactions since the oldest unfrozen one; 2 billion is the end."),
    ):
        if row[name] is not None:
            families.gauge(f"server_{name}", words, row[name], database=database)
    if row["wal_bytes"] is not None:
        families.counter(
            "server_wal_bytes_total", "Position in the write-ahead log.", row["wal_bytes"], database=database
        )


def _activity(families: Families, database: str, rows: Rows) -> None:
    by_state = {row["state"]: row["connections"] for row in rows}
    for state in [*_CONNECTION_STATES, "other"]:
        families.gauge(
            "server_connections",
            "Connections of all other clients to the server, by state; one that the role may not see is other.",
            by_state.get(state, 0),
            database=database,
            state=state.replace(" (", " ").rstrip(")").replace(" ", "_"),
        )
    longest = max((row["longest"] or 0.0 for row in rows), default=0.0)
    families.gauge(
        "server_longest_transaction_seconds", "Age of the oldest open transaction.", longest, database=database
    )
    blocked = sum(row["blocked"] for row in rows)
    families.gauge("server_blocked_connections", "Connections that wait for a lock.", blocked, database=database)


def _counters(families: Families, database: str, rows: Rows) -> None:
    for row in rows:
        text = "Transactions that the server has ended in this database."
        for outcome in ("committed", "rolled_back"):
            families.counter("server_transactions_total", text, row[outcome], database=database, outcome=outcome)
        text = "Blocks that queries of this database asked for, by where they were found."
        for source in ("cache", "disk"):
            families.counter("server_blocks_total", text, row[source], database=database, source=source)
        families.counter("server_deadlocks_total", "Deadlocks in this database.", row["deadlocks"], database=database)
        text = "Bytes written to temporary files."
        families.counter("server_temporary_bytes_total", text, row["temporary"], database=database)


def _tables(families: Families, database: str, rows: Rows) -> None:
    for row in rows:
        labels = {"database": database, "table": row["name"]}
        text = "Rows of a table with all of its partitions, as estimated by the server."
        families.gauge("server_table_rows", text, row["live"], **labels, state="live")
        families.gauge("server_table_rows", text, row["dead"], **labels, state="dead")


def _slots(families: Families, database: str, rows: Rows) -> None:
    for row in rows:
        labels = {"database": database, "slot": row["name"]}
        families.gauge("server_slot_active", "Whether somebody reads the replication slot.", row["active"], **labels)
        if row["retained"] is not None:
            text = "Write-ahead log kept for a replication slot."
            families.gauge("server_slot_retained_bytes", text, row["retained"], **labels)


def _standbys(families: Families, database: str, rows: Rows) -> None:
    for row in rows:
        labels = {"database": database, "standby": row["name"]}
        if row["behind"] is not None:
            text = "Write-ahead log that a standby has yet to replay; the largest of one name."
            families.gauge("server_standby_lag_bytes", text, row["behind"], **labels)
        if row["seconds"] is not None:
            text = "Time until a standby has replayed what is written now; the largest of one name."
            families.gauge("server_standby_lag_seconds", text, row["seconds"], **labels)


def _trading_sessions(families: Families, database: str, rows: Rows) -> None:
    for row in rows:
        labels = {"database": database, "broker": row["broker"]}
        text = "Trading sessions with a broker that have not ended."
        families.gauge("trading_sessions_active", text, row["active"], **labels)
        if row["left"] is not None:
            text = "Time until the first active trading session with a broker expires; below 0 when overdue."
            families.gauge("trading_session_expires_in_seconds", text, row["left"], **labels)


_LSN = "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END"

_QUERIES: dict[str, _Query] = {
    "server": _Query(
        f"""
        SELECT current_setting('server_version') AS version,
            extract(epoch FROM pg_postmaster_start_time())::float8 AS start_time_seconds,
            current_setting('max_connections')::int AS max_connections,
            pg_database_size(current_database()) AS size_bytes,
            (SELECT age(datfrozenxid) FROM pg_database WHERE datname = current_database()) AS frozen_transaction_age,
            pg_wal_lsn_diff({_LSN}, '0/0')::float8 AS wal_bytes
        """,  # noqa: S608 - constants
        _server,
        {},
    ),
    "activity": _Query(
        """
        SELECT CASE WHEN state = ANY(:states) THEN state ELSE 'other' END AS state, count(*) AS connections,
            count(*) FILTER (WHERE wait_event_type = 'Lock') AS blocked,
            extract(epoch FROM max(clock_timestamp() - xact_start))::float8 AS longest
        FROM pg_stat_activity
        WHERE coalesce(backend_type, CASE WHEN datid IS NOT NULL THEN 'client backend' END) = 'client backend'
            AND pid <> pg_backend_pid()
        GROUP BY 1
        """,
        _activity,
        {"states": list(_CONNECTION_STATES)},
    ),
    "counters": _Query(
        """
        SELECT xact_commit AS committed, xact_rollback AS rolled_back, blks_hit AS cache, blks_read AS disk, deadlocks,
            temp_bytes AS temporary
        FROM pg_stat_database WHERE datname = current_database()
        """,
        _counters,
        {},
    ),
    "tables": _Query(
        """
        SELECT root.relname AS name, sum(s.n_live_tup)::bigint AS live, sum(s.n_dead_tup)::bigint AS dead
        FROM pg_stat_user_tables s JOIN pg_class root ON root.oid = coalesce(pg_partition_root(s.relid), s.relid)
        WHERE root.relname = ANY(:names) AND root.relnamespace = 'public'::regnamespace GROUP BY 1 ORDER BY 1
        """,
        _tables,
        {"names": sorted(table.name for table in Base.metadata.tables.values())},
    ),
    "trading_sessions": _Query(
        """
        SELECT broker, count(*) AS active, extract(epoch FROM min(expires_at) - clock_timestamp())::float8 AS left
        FROM trading_sessions WHERE is_active GROUP BY 1 ORDER BY 1
        """,
        _trading_sessions,
        {},
        optional=True,
    ),
    "slots": _Query(
        f"""
        SELECT slot_name AS name, active, pg_wal_lsn_diff({_LSN}, restart_lsn)::float8 AS retained
        FROM pg_replication_slots ORDER BY 1
        """,  # noqa: S608 - constants
        _slots,
        {},
    ),
    "standbys": _Query(
        f"""
        SELECT application_name AS name, max(pg_wal_lsn_diff({_LSN}, replay_lsn))::float8 AS behind,
            extract(epoch FROM max(replay_lag))::float8 AS seconds
        FROM pg_stat_replication WHERE application_name IS NOT NULL GROUP BY 1 ORDER BY 1
        """,  # noqa: S608 - constants
        _standbys,
        {},
    ),
}
