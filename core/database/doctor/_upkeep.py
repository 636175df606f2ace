"""Upkeep: dead rows, the age of transactions, indexes that are broken, doubled or idle."""

from sqlalchemy.ext.asyncio import AsyncConnection

from core.database.doctor._case import Case, row, rows
from core.database.doctor._finding import Finding, Note, listed, size_of, summed

_DEAD_ROWS, _DEAD_SHARE = 10_000, 0.2
_IDLE_BYTES, _IDLE_DAYS = 10 * 1024**2, 7
_AGE_GRAVE = 1_500_000_000  # of the 2,147,483,647 after which the server refuses to write

_TABLES = """
    SELECT s.relid::regclass::text AS name, s.n_live_tup AS live, s.n_dead_tup AS dead,
           coalesce(c.reloptions::text LIKE '%autovacuum_enabled=false%', false) AS excluded,
           greatest(s.last_analyze, s.last_autoanalyze) IS NULL AND s.n_live_tup > :many AS never_analyzed
    FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid ORDER BY s.n_dead_tup DESC
"""
_AGES = """
    SELECT age(datfrozenxid) AS transactions, mxid_age(datminmxid) AS multixacts,
           current_setting('autovacuum_freeze_max_age')::bigint AS freeze_at
    FROM pg_database WHERE datname = current_database()
"""
_INVALID = """
    SELECT i.indexrelid::regclass::text AS name FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE NOT i.indisvalid AND n.nspname NOT IN ('pg_catalog', 'pg_toast') AND c.relkind = 'i'
      AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid) ORDER BY 1
"""
_DOUBLED = """
    SELECT array_agg(d.name ORDER BY d.kept DESC, d.name) AS names FROM (
      SELECT i.indexrelid::regclass::text AS name, i.indrelid, c.relam, i.indnkeyatts, i.indkey::text AS key,
             i.indclass::text AS classes, i.indcollation::text AS collations, i.indoption::text AS options,
             pg_get_expr(i.indexprs, i.indrelid) AS expressions, pg_get_expr(i.indpred, i.indrelid) AS predicate,
             EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid)::int * 2 + i.indisunique::int AS kept
      FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE i.indisvalid AND NOT c.relispartition AND n.nspname NOT IN ('pg_catalog', 'pg_toast')) d
    GROUP BY indrelid, relam, indnkeyatts, key, classes, collations, options, expressions, predicate
    HAVING count(*) > 1 ORDER BY 1
"""
_UNUSED = """
    SELECT s.indexrelid::regclass::text AS name, pg_relation_size(s.indexrelid) AS bytes
    FROM pg_stat_user_indexes s JOIN pg_index i ON i.indexrelid = s.indexrelid
    WHERE s.idx_scan = 0 AND NOT i.indisunique AND i.indisvalid AND pg_relation_size(s.indexrelid) > :bytes
      AND (SELECT coalesce(d.stats_reset, pg_postmaster_start_time()) FROM pg_stat_database d
           WHERE d.datname = current_database()) < now() - make_interval(days => :days)
    ORDER BY 2 DESC
"""
_COLLATION = """
    SELECT quote_ident(datname) AS database, datcollversion AS recorded, pg_database_collation_actual_version(oid) AS actual
    FROM pg_database WHERE datname = current_database()
"""


async def vacuum(connection: AsyncConnection, case: Case) -> Finding:
    """Does autovacuum keep up?"""
    found = await rows(connection, _TABLES, many=_DEAD_ROWS)
    on = (
        await row(
            connection, "SELECT current_setting('autovacuum') = 'on' AND current_setting('track_counts') = 'on' AS yes"
        )
    ).yes
    notes: list[Note] = []
    if not on:
        mend = "ALTER SYSTEM SET autovacuum = on; ALTER SYSTEM SET track_counts = on; SELECT pg_reload_conf();"
        notes.append(Note(case.grave, "autovacuum is off: tables grow and transaction ids run out", mend))
    dead = [item for item in found if item.dead > _DEAD_ROWS and item.dead > _DEAD_SHARE * item.live]
    if dead:
        said = listed(f"{item.name} ({item.dead:,})" for item in dead)
        notes.append(
            Note("warning", f"many dead rows: {said}", "\n".join(f"VACUUM (ANALYZE) {item.name};" for item in dead[:3]))
        )
    for item in found:
        if item.excluded:
            mend = f"ALTER TABLE {item.name} RESET (autovacuum_enabled);"
            notes.append(Note("warning", f"{item.name} is excluded from autovacuum", mend))
    fresh = [item.name for item in found if item.never_analyzed]
    if fresh:
        mend = f"ANALYZE {', '.join(fresh)};"
        notes.append(Note("info", f"never analyzed, so plans are guessed: {listed(fresh)}", mend))
    total = sum(item.dead for item in found)
    details = {"dead_rows": {item.name: item.dead for item in found if item.dead}, "autovacuum": on}
    return summed("vacuum", notes, fine=f"autovacuum on, dead rows: {total:,}", details=details)


async def wraparound(connection: AsyncConnection, case: Case) -> Finding:
    """How far are transaction ids from running out?"""
    found = await row(connection, _AGES)
    return judge_ages(found.transactions, found.multixacts, freeze_at=found.freeze_at)


def judge_ages(transactions: int, multixacts: int, *, freeze_at: int) -> Finding:
    oldest = max(transactions, multixacts)
    details = {"transactions": transactions, "multixacts": multixacts, "autovacuum_freeze_max_age": freeze_at}
    said = f"the oldest row is {oldest / 1e6:,.0f} million transactions old, of 2,147 before writes stop"
    if oldest > _AGE_GRAVE:
        mend = "End what holds it back (see `transactions` and `replication`), then: VACUUM (FREEZE);"
        return Finding("wraparound", "error", said, mend, details)
    if oldest > 2 * freeze_at:
        mend = "Autovacuum does not keep up: see `vacuum` and `transactions`, then: VACUUM (FREEZE);"
        return Finding("wraparound", "warning", said, mend, details)
    return Finding("wraparound", "ok", f"{oldest / 1e6:,.0f} of 2,147 million transactions", None, details)


async def indexes(connection: AsyncConnection, case: Case) -> Finding:
    """Broken ones, doubles, those that nobody uses, and a collation that changed under them."""
    invalid = [item.name for item in await rows(connection, _INVALID)]
    doubled = [list(item.names) for item in await rows(connection, _DOUBLED)]
    unused = await rows(connection, _UNUSED, bytes=_IDLE_BYTES, days=_IDLE_DAYS)
    collation = await row(connection, _COLLATION)
    notes: list[Note] = []
    if invalid:
        mend = "\n".join(f"REINDEX INDEX CONCURRENTLY {name};" for name in invalid)
        notes.append(Note("warning", f"invalid, so written and never read: {listed(invalid)}", mend))
    for kept, *others in doubled:
        mend = "\n".join(f"DROP INDEX CONCURRENTLY {name};" for name in others)
        notes.append(Note("warning", f"{listed(others)} doubles {kept}", mend))
    if collation.recorded != collation.actual:
        mend = f"REINDEX DATABASE CONCURRENTLY {collation.database};\nALTER DATABASE {collation.database} REFRESH COLLATION VERSION;"
        said = f"the system's collation changed from {collation.recorded} to {collation.actual}: indexes on text may miss rows"
        notes.append(Note(case.grave, said, mend))
    if unused:
        said = listed(f"{item.name} ({size_of(item.bytes)})" for item in unused)
        notes.append(Note("info", f"not used for {_IDLE_DAYS} days here (replicas may): {said}"))
    details = {"invalid": invalid, "doubled": doubled, "unused": {item.name: item.bytes for item in unused}}
    return summed("indexes", notes, fine="all valid, none doubled", details=details)
