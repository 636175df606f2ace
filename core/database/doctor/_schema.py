"""The schema against this release, and the months that are about to come."""

from datetime import UTC, date, datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from core.database import schema as schemas
from core.database.doctor._case import Case, row
from core.database.doctor._finding import Finding, Note, summed
from core.database.errors import SchemaError
from core.database.models import snapshot_partition_ddl, snapshot_partition_name

_PARTITIONS = """
    SELECT pg_has_role(c.relowner, 'USAGE') AND has_schema_privilege(c.relnamespace, 'CREATE') AS may_create,
           pg_get_userbyid(c.relowner) AS owner,
           (SELECT partdefid::regclass::text FROM pg_partitioned_table WHERE partrelid = c.oid AND partdefid <> 0) AS fallback,
           ARRAY(SELECT p.relname::text FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhrelid
                 WHERE i.inhparent = c.oid) AS present
    FROM pg_class c WHERE c.oid = to_regclass('portfolio_snapshots')
"""


async def schema(connection: AsyncConnection, case: Case) -> Finding:
    """At head and whole? What differs inside the tables is told by `panda migrate check`."""
    state = await schemas.inspect(connection)
    details = {
        "status": state.status,
        "current": list(state.current),
        "head": state.head,
        "pending": list(state.pending),
        "missing_tables": list(state.missing_tables),
    }
    try:
        state.raise_unless_at_head()
    except SchemaError as error:
        return Finding("schema", "error", error.message.removesuffix("."), error.hint, details)
    return Finding("schema", "ok", f"at head, revision {state.head}", None, details)


async def partitions(connection: AsyncConnection, case: Case) -> Finding:
    """Is there a place for the snapshots of this month and the next?"""
    if (await row(connection, "SELECT to_regclass('portfolio_snapshots') IS NULL AS missing")).missing:
        return Finding("partitions", "skipped", "the table portfolio_snapshots is missing", "panda migrate upgrade")
    found = await row(connection, _PARTITIONS)
    this = datetime.fromtimestamp(case.now(), UTC).date().replace(day=1)
    months = {"this month": this, "next month": _after(this)}
    missing = {which: day for which, day in months.items() if snapshot_partition_name(day) not in found.present}
    notes = [] if found.may_create else [_missing(which, day, found.owner) for which, day in missing.items()]
    if found.fallback:
        mend = f"Move its rows to partitions of their months, then: DROP TABLE {found.fallback};"
        notes.append(Note("warning", f"the default partition {found.fallback} makes reading the latest slow", mend))
    details = {"present": sorted(found.present), "may_create": found.may_create, "owner": found.owner}
    if missing and not notes:
        said = f"none for {' and '.join(missing)}; the first write makes it, which this role may do"
        return Finding("partitions", "info", said, None, details)
    fine = f"{len(found.present)} months, this and the next among them"
    return summed("partitions", notes, fine=fine, details=details)


def _missing(which: str, month: date, owner: str) -> Note:
    """A write into that month fails; by the role's rights it cannot make the partition itself."""
    status = "error" if which == "this month" else "warning"
    said = f"{which} has no partition, and this role may not make it"
    return Note(status, said, f"As {owner}: {snapshot_partition_ddl(month)};")


def _after(month: date) -> date:
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)
