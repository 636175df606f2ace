"""One look at a server: a few catalog queries in one transaction, which see one moment."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from core.database.activity._values import Activity, LockWait, Replica, Server, Session
from core.database.monitoring import without_literals

_MOST_WAITS = 200  # pg_blocking_pids stops the server's lock manager for a moment, each time
_AGES = ("state_seconds", "statement_seconds", "transaction_seconds")
_ANEW = text("SELECT pg_stat_clear_snapshot()")  # a transaction goes on seeing what its first look saw

_SERVER = text(
    "SELECT clock_timestamp() AS at, current_setting('server_version') AS version,"
    " greatest(extract(epoch FROM clock_timestamp() - pg_postmaster_start_time()), 0)::float8 AS uptime,"
    " pg_is_in_recovery() AS standby, current_database()::text AS database, current_user::text AS role,"
    " CASE WHEN NOT pg_is_in_recovery() THEN NULL WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0"
    "  ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END::float8 AS lag,"
    " current_setting('max_connections')::int AS max_connections,"
    " CASE WHEN CAST(:size AS boolean) THEN pg_database_size(current_database()) END AS size,"
    " xact_commit AS commits, xact_rollback AS rollbacks, blks_hit AS blocks_hit, blks_read AS blocks_read, deadlocks"
    " FROM pg_stat_database WHERE datname = current_database()"
)

_SESSIONS = text(
    "SELECT pid, backend_type AS kind, datname::text AS database, usename::text AS user, leader_pid AS leader,"
    " coalesce(application_name, '') AS application, state,"
    " coalesce(host(client_addr), CASE WHEN client_port = -1 THEN 'local' END) AS client,"
    " extract(epoch FROM clock_timestamp() - state_change)::float8 AS state_seconds,"
    " extract(epoch FROM clock_timestamp() - query_start)::float8 AS statement_seconds,"
    " extract(epoch FROM clock_timestamp() - xact_start)::float8 AS transaction_seconds,"
    " CASE WHEN state <> 'idle' THEN nullif(concat_ws(' ', wait_event_type, wait_event), '') END AS wait,"
    " query = '<insufficient privilege>' AND state IS NULL AS hidden,"
    " CASE WHEN CAST(:texts AS boolean) AND state <> 'idle' THEN left(query, 4000) END AS statement"
    " FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
)

_WAITS = text(
    "WITH locks AS MATERIALIZED (SELECT * FROM pg_locks), waits AS MATERIALIZED ("
    " SELECT l.*, coalesce(l.relation, (SELECT h.relation FROM locks h WHERE h.pid = l.pid AND h.locktype = 'tuple'"
    "  AND h.granted LIMIT 1)) AS about FROM locks l WHERE NOT l.granted AND l.pid <> pg_backend_pid()"
    " ORDER BY l.waitstart, l.pid LIMIT CAST(:most AS int))"
    " SELECT w.pid, pg_blocking_pids(w.pid) AS blocked_by, w.locktype, w.mode, w.about::bigint AS about,"
    " w.classid::bigint AS classid, w.objid::bigint AS objid, w.objsubid, w.transactionid::text AS transactionid,"
    " n.nspname::text AS schema, c.relname::text AS relation,"
    " extract(epoch FROM clock_timestamp() - w.waitstart)::float8 AS seconds"
    " FROM waits w LEFT JOIN pg_class c ON c.oid = w.about AND (c.relisshared OR EXISTS"
    "  (SELECT 1 FROM pg_stat_activity a WHERE a.pid = w.pid AND a.datname = current_database()))"
    " LEFT JOIN pg_namespace n ON n.oid = c.relnamespace"
)

_REPLICAS = text(
    "SELECT coalesce(application_name, '') AS application, host(client_addr) AS client, state,"
    " extract(epoch FROM replay_lag)::float8 AS lag, pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery()"
    " THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, replay_lsn)::bigint AS lag_bytes"
    " FROM pg_stat_replication ORDER BY 1, 2"
)


async def read_activity(source: AsyncConnection | AsyncSession, *, texts: bool = True, size: bool = True) -> Activity:
    """Look at the server once, in the source's transaction; the session that asks is left out.

    `texts` adds the statements that run, every literal in them blanked. `size` adds that of the database, which costs
    a look at each of its files. A role without pg_read_all_stats sees names and locks of others, and no more. Never
    commits. Raises `ConnectionFailed`, `StatementTimeout` and whatever else a statement may raise.
    """
    await source.execute(_ANEW)
    server: dict[str, Any] = dict((await source.execute(_SERVER, {"size": size})).mappings().one())
    rows = (await source.execute(_SESSIONS, {"texts": texts})).mappings().all()
    waits: tuple[LockWait, ...] = ()
    if any(row["hidden"] or (row["wait"] or "").startswith("Lock ") for row in rows):
        leaders: dict[int, int] = {row["pid"]: row["leader"] for row in rows if row["leader"] is not None}
        found = (await source.execute(_WAITS, {"most": _MOST_WAITS})).mappings().all()
        waits = tuple(_wait(row, leaders) for row in found)
    replicas = (await source.execute(_REPLICAS)).mappings().all()
    return Activity(
        at=server.pop("at"),
        server=Server(**server),
        sessions=tuple(_session(row) for row in rows),
        waits=waits,
        replicas=tuple(Replica(**row) for row in replicas),
    )


def _age(seconds: float | None) -> float | None:
    """The clock may have been set back since."""
    return None if seconds is None else max(seconds, 0.0)


def _session(row: Any) -> Session:
    values: dict[str, Any] = {
        name: _age(value) if name in _AGES else value for name, value in row.items() if name != "leader"
    }
    if values["statement"] is not None:
        values["statement"] = without_literals(values["statement"])
    return Session(**values)


def _wait(row: Any, leaders: Mapping[int, int]) -> LockWait:
    """The helpers of a parallel statement count as the session that started them."""
    pid, *others = (leaders.get(pid, pid) for pid in (row["pid"], *row["blocked_by"]))
    return LockWait(
        pid=pid,
        blocked_by=tuple(other for other in dict.fromkeys(others) if other != pid),
        target=_target(row),
        mode=row["mode"],
        seconds=_age(row["seconds"]),
    )


def _target(row: Any) -> str:
    """What is waited for, in words."""
    name = row["relation"] or (f"relation {row['about']}" if row["about"] is not None else None)
    if row["schema"] not in (None, "public"):
        name = f"{row['schema']}.{name}"
    match row["locktype"]:
        case "relation":
            return f"table {name}"
        case "tuple":
            return f"row of {name}"
        case "transactionid":
            return f"row of {name}" if name else f"end of transaction {row['transactionid']}"
        case "virtualxid":
            return "end of a transaction"
        case "advisory":
            # A single 64-bit key is stored as its two halves.
            halves = (row["classid"], row["objid"])
            key = str((halves[0] << 32) + halves[1]) if row["objsubid"] == 1 else f"{halves[0]}, {halves[1]}"
            return f"advisory lock {key}"
        case other:
            return f"{other} of {name}" if name else other
