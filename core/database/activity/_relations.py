"""What the catalog knows of the tables in a plan."""

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core.database.activity._nodes import PlanNode

_RELATIONS = text(
    "SELECT n.nspname::text AS schema, c.relname::text AS name,"
    " greatest(c.reltuples, coalesce(s.n_live_tup, 0), 0)::float8 AS rows,"
    " coalesce(s.n_mod_since_analyze, 0)::bigint AS changed,"
    " c.relkind = 'r' AND pg_relation_size(c.oid) > 0 AND (c.reltuples < 0 OR (s.last_analyze IS NULL"
    "  AND s.last_autoanalyze IS NULL AND has_table_privilege(c.oid, 'SELECT') AND NOT EXISTS"
    "  (SELECT 1 FROM pg_stats t WHERE t.schemaname = n.nspname AND t.tablename = c.relname))) AS unknown,"
    " (SELECT json_object_agg(ic.relname, pg_get_indexdef(i.indexrelid, 1, true)) FROM pg_index i"
    "  JOIN pg_class ic ON ic.oid = i.indexrelid WHERE i.indrelid = c.oid AND i.indisvalid)::text AS indexes,"
    " p.relname::text AS parent, (SELECT count(*) FROM pg_inherits o WHERE o.inhparent = p.oid) AS siblings,"
    " (SELECT array_agg(a.attname::text) FROM pg_partitioned_table k JOIN pg_attribute a"
    "  ON a.attrelid = k.partrelid AND a.attnum = ANY (k.partattrs) WHERE k.partrelid = p.oid) AS keys"
    " FROM unnest(CAST(:schemas AS text[]), CAST(:names AS text[])) AS w(schema, name)"
    " JOIN pg_namespace n ON n.nspname = w.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name"
    " LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid"
    " LEFT JOIN pg_inherits h ON h.inhrelid = c.oid AND c.relispartition LEFT JOIN pg_class p ON p.oid = h.inhparent"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """A table, and the partitioned table above it."""

    schema: str
    name: str
    rows: float
    """The planner's or the statistics' count, whichever is larger."""
    changed: int
    """Rows changed since the last ANALYZE."""
    unknown: bool
    """It holds rows and was never analyzed."""
    first_columns: dict[str, str]
    """The first column, or expression, of each valid index by the index's name."""
    parent: str | None
    siblings: int
    """Partitions of the parent."""
    keys: tuple[str, ...]
    """Columns of the parent's partition key."""


Relations = dict[tuple[str, str], Relation]


async def read_relations(connection: AsyncConnection, root: PlanNode) -> Relations:
    """Every table that the plan names, by schema and name."""
    wanted = sorted({(node.schema, node.relation) for node in root.walk() if node.schema and node.relation})
    if not wanted:
        return {}
    names = {"schemas": [schema for schema, _ in wanted], "names": [name for _, name in wanted]}
    rows = (await connection.execute(_RELATIONS, names)).mappings().all()
    return {(row["schema"], row["name"]): _relation(dict(row)) for row in rows}


def _relation(row: dict[str, Any]) -> Relation:
    indexes, keys = row.pop("indexes"), row.pop("keys")
    return Relation(**row, first_columns=json.loads(indexes) if indexes else {}, keys=tuple(keys or ()))
