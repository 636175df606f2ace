"""Room: connections and disk."""

import shutil
from pathlib import Path
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from core.database.doctor._case import Case, row
from core.database.doctor._finding import Finding, Note, size_of, summed

_CONNECTIONS = """
    SELECT current_setting('max_connections')::int AS most,
           current_setting('superuser_reserved_connections')::int
             + coalesce(current_setting('reserved_connections', true), '0')::int AS reserved,
           (SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL AND usesysid IS NOT NULL AND pid <> pg_backend_pid()
              AND coalesce(backend_type, 'client backend') = 'client backend') AS used,
           (SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL AND usesysid IS NOT NULL AND pid <> pg_backend_pid()
              AND coalesce(backend_type, 'client backend') = 'client backend' AND application_name <> :ours) AS others,
           r.rolname AS role, r.rolconnlimit AS role_limit, d.datname AS database, d.datconnlimit AS database_limit,
           r.rolsuper AS superuser
    FROM pg_roles r, pg_database d WHERE r.rolname = current_user AND d.datname = current_database()
"""
_SIZES = """
    SELECT pg_database_size(current_database()) AS database,
           has_function_privilege('pg_ls_waldir()', 'EXECUTE') AS sees_wal,
           CASE WHEN pg_has_role('pg_read_all_settings', 'USAGE') THEN current_setting('data_directory') END AS directory
"""
_FREE_TROUBLE, _FREE_GRAVE = 0.10, 0.02
_GRAVE_BYTES = 512 * 1024**2


async def connections(connection: AsyncConnection, case: Case) -> Finding:
    """The pools of all processes against what the server allows."""
    ours = case.url.application_name or case.options.application_name
    found = await row(connection, _CONNECTIONS, ours=ours)
    pool = case.options.pool
    wanted, allowed = pool.budget * pool.processes, found.most - found.reserved
    sum_of = f"{pool.processes} x {pool.budget} = {wanted}" if pool.processes > 1 else str(wanted)
    details: dict[str, Any] = {
        "processes": pool.processes,
        "per_process": pool.budget,
        "wanted": wanted,
        "max_connections": found.most,
        "reserved": found.reserved,
        "in_use": found.used,
        "in_use_by_others": found.others,
    }
    if case.answer.is_pooled:
        said = f"{found.used} of {allowed} in use; the pooler bounds ours, not max_connections"
        return Finding("connections", "ok", said, None, details)
    notes: list[Note] = []
    bounds = [(allowed, "the server allows"), (found.role_limit, f"role {found.role} may have")]
    bounds.append((found.database_limit, f"database {found.database} may have"))
    for bound, whose in bounds:
        if 0 <= bound < wanted:
            mend = _smaller(
                case, bound, f"ALTER SYSTEM SET max_connections = {wanted + found.reserved + 10}; and restart"
            )
            notes.append(Note(case.grave, f"the pools may want {sum_of}, {whose} {bound}", mend))
    if not notes and wanted + found.others > allowed:
        said = f"the pools may want {sum_of}, and others use {found.others} of the {allowed} that the server allows"
        notes.append(Note("warning", said, _smaller(case, allowed - found.others, "raise max_connections and restart")))
    if found.used >= allowed * 0.9:
        mend = (
            "SELECT usename, application_name, state, count(*) FROM pg_stat_activity GROUP BY 1, 2, 3 ORDER BY 4 DESC;"
        )
        notes.append(Note("warning", f"{found.used} of {allowed} connections are in use", mend))
    fine = f"the pools may want {sum_of} of {allowed}, {found.used} in use now"
    return summed("connections", notes, fine=fine, details=details)


def _smaller(case: Case, bound: int, otherwise: str) -> str:
    """The pool sizes that fit, in the proportions of now."""
    pool = case.options.pool
    share = bound / (pool.budget * pool.processes)
    size, overflow, read = (int(part * share) for part in (pool.size, pool.max_overflow, pool.read_size))
    if bound < 1 or min(size, read) < 1:
        return f"Fewer processes, a PgBouncer before the server, or {otherwise}"
    return (
        f"DATABASE__POOL__SIZE={size} DATABASE__POOL__MAX_OVERFLOW={overflow} DATABASE__POOL__READ_SIZE={read}, or "
        f"{otherwise}"
    )


async def disk(connection: AsyncConnection, case: Case) -> Finding:
    """Free space where the data lie, if they lie where we can see them."""
    found = await row(connection, _SIZES)
    details: dict[str, Any] = {"database_bytes": found.database}
    sizes = f"the database takes {size_of(found.database)}"
    if found.sees_wal:
        wal = details["wal_bytes"] = (
            await row(connection, "SELECT sum(size)::bigint AS size FROM pg_ls_waldir()")
        ).size
        sizes += f", the WAL {size_of(wal)}"
    data = case.data_directory or _visible(case, found.directory)
    if data is None:
        said = f"free space cannot be seen from here; {sizes}"
        return Finding("disk", "info", said, None, details)
    total, _, free = shutil.disk_usage(data)
    details |= {"directory": str(data), "free_bytes": free, "total_bytes": total}
    return judge_disk(free, total, sizes=sizes, details=details)


def judge_disk(free: int, total: int, *, sizes: str, details: dict[str, Any]) -> Finding:
    said = f"{size_of(free)} of {size_of(total)} free; {sizes}"
    if free < max(total * _FREE_GRAVE, _GRAVE_BYTES):
        mend = "Free space on the server's disk now: with none left, writes stop and the server may not start again"
        return Finding("disk", "error", said, mend, details)
    if free < total * _FREE_TROUBLE:
        return Finding("disk", "warning", said, "Free space on the server's disk, or enlarge it", details)
    return Finding("disk", "ok", said, None, details)


def _visible(case: Case, directory: str | None) -> Path | None:
    """The data directory, if it is certain to be on this machine: by a socket of ours, not by a port that may be forwarded."""
    if directory is None or not all(host.startswith("/") for host, _ in case.url.hosts):
        return None
    path = Path(directory)
    return path if path.is_dir() else None
