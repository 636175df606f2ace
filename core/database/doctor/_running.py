"""What runs there now: long transactions, replicas, and who holds WAL back."""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from core.database.doctor._case import Case, row, rows
from core.database.doctor._finding import Finding, Note, listed, size_of, span_of, summed

LONG, IDLE, PREPARED = 300.0, 60.0, 300.0  # seconds
_HELD_BYTES = 1024**3
_LAG_TROUBLE = 30.0  # seconds

_ACTIVITY = """
    SELECT pid, coalesce(usename::text, '-') AS role, coalesce(application_name, '') AS application, state,
           extract(epoch FROM clock_timestamp() - xact_start)::float8 AS age,
           extract(epoch FROM clock_timestamp() - state_change)::float8 AS since
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
      AND coalesce(backend_type, 'client backend') = 'client backend' ORDER BY xact_start
"""
_PREPARED_SQL = """
    SELECT quote_literal(gid) AS gid, extract(epoch FROM clock_timestamp() - prepared)::float8 AS age
    FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared
"""
_SEES_ALL = "SELECT pg_has_role('pg_read_all_stats', 'USAGE') AS yes, quote_ident(current_user) AS role"
_STANDBY = """
    SELECT extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8 AS silence,
           coalesce(pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn(), false) AS caught_up,
           pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::float8 AS behind
"""
_REPLICAS = """
    SELECT coalesce(application_name, '-') AS name, state, sync_state,
           pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::float8 AS behind,
           extract(epoch FROM replay_lag)::float8 AS lag
    FROM pg_stat_replication ORDER BY 1
"""
_SLOTS = """
    SELECT slot_name AS name, quote_literal(slot_name) AS quoted, active, wal_status,
           pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::float8 AS held
    FROM pg_replication_slots WHERE NOT temporary ORDER BY 1
"""


async def transactions(connection: AsyncConnection, case: Case) -> Finding:
    """Transactions that hold locks and dead rows for longer than work of this kind takes."""
    found = await rows(connection, _ACTIVITY)
    notes: list[Note] = []
    for item in found:
        idle = str(item.state or "").startswith("idle in transaction")
        if (idle and item.since > IDLE) or item.age > LONG:
            what = (
                f"idle in its transaction for {span_of(item.since)}"
                if idle
                else f"in one transaction for {span_of(item.age)}"
            )
            who = f"{item.pid} ({item.role}{', ' + item.application if item.application else ''})"
            notes.append(Note("warning", f"process {who} is {what}", f"SELECT pg_terminate_backend({item.pid});"))
    for item in await rows(connection, _PREPARED_SQL):
        if item.age > PREPARED:
            said = f"the prepared transaction {item.gid} waits for {span_of(item.age)}"
            notes.append(Note("warning", said, f"COMMIT PREPARED {item.gid}; or ROLLBACK PREPARED {item.gid};"))
    sight = await row(connection, _SEES_ALL)
    fine = "none is long, none idle" if sight.yes else "none of this role's is long; others' are hidden from it"
    details: dict[str, Any] = {"open": len(found), "sees_all": sight.yes}
    if found:
        details["longest_seconds"] = round(max(item.age for item in found), 3)
    return summed("transactions", notes, fine=fine, details=details)


async def replication(connection: AsyncConnection, case: Case) -> Finding:
    """A standby's lag; or, on a primary, its replicas and the slots that hold WAL back."""
    if (await row(connection, "SELECT pg_is_in_recovery() AS standby")).standby:
        return await _of_standby(connection, case)
    replicas, slots = await rows(connection, _REPLICAS), await rows(connection, _SLOTS)
    names = (await row(connection, "SELECT current_setting('synchronous_standby_names') AS names")).names
    notes = [note for slot in slots for note in _of_slot(slot)]
    notes += [
        Note("warning", f"replica {item.name} is {span_of(item.lag)} behind ({size_of(item.behind or 0)})")
        for item in replicas
        if item.lag is not None and item.lag > _LAG_TROUBLE
    ]
    sees_all = (await row(connection, _SEES_ALL)).yes
    if names and not replicas:
        mend = "Start the standbys, or: ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf();"
        notes.append(Note("error", f"commits wait for synchronous standbys ({names}), and none is connected", mend))
    details = {
        "role": "primary",
        "replicas": [
            {"name": item.name, "state": item.state, "sync": item.sync_state, "lag": item.lag} for item in replicas
        ],
        "slots": [{"name": slot.name, "active": slot.active, "held_bytes": slot.held} for slot in slots],
        "synchronous_standby_names": names,
        "sees_all": sees_all,
    }
    fine = (
        f"primary with {len(replicas)} replicas: {listed(item.name for item in replicas)}"
        if replicas
        else "primary, no replicas"
    )
    return summed("replication", notes, fine=fine, details=details)


def _of_slot(slot: Any) -> list[Note]:
    if slot.wal_status == "lost":
        return [Note("warning", f"slot {slot.name} has lost its WAL: its replica must be made anew", _drop(slot))]
    if not slot.active:
        held = f", holding back {size_of(slot.held)} of WAL" if slot.held is not None else ""
        status = "error" if (slot.held or 0) > _HELD_BYTES else "warning"
        return [
            Note(
                status, f"nobody reads slot {slot.name}{held}", f"Start its replica, or if that is gone: {_drop(slot)}"
            )
        ]
    if (slot.held or 0) > _HELD_BYTES:
        return [Note("warning", f"slot {slot.name} holds back {size_of(slot.held)} of WAL", "See why its replica lags")]
    return []


def _drop(slot: Any) -> str:
    return f"SELECT pg_drop_replication_slot({slot.quoted});"


async def _of_standby(connection: AsyncConnection, case: Case) -> Finding:
    found = await row(connection, _STANDBY)
    lag = 0.0 if found.caught_up or found.silence is None else found.silence
    details = {"role": "standby", "lag_seconds": lag, "behind_bytes": found.behind, "silence_seconds": found.silence}
    notes = [
        Note(
            "error",
            "the server is a standby: every write is refused",
            "Name the primary in the URL, or every host of the cluster: postgresql://user:password@a:5432,b:5432/database",
        )
    ]
    if lag > _LAG_TROUBLE:
        notes.append(Note("warning", f"it is {span_of(lag)} behind its primary"))
    return summed("replication", notes, fine="", details=details)
