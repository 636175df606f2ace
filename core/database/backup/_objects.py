"""What lies in a database besides rows: who may read it, what a restore would have to remove, whose it is."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from core.database.backup._contents import NOT_OF_EXTENSION, USER_SCHEMAS
from core.database.errors import PermissionDenied
from core.database.models import RESTRICTED_ROLE

_SHOWN = 8  # names in a message
_LOOKS = 5  # at which tables there are, until that has not changed while they were locked

_RIGHTS = text(rf"""
    SELECT format('%I.%I', s.nspname, c.relname) AS name, has_schema_privilege(s.oid, 'USAGE') AND CASE c.relkind
        WHEN 'S' THEN has_sequence_privilege(c.oid, 'SELECT') ELSE has_table_privilege(c.oid, 'SELECT') END AS readable,
        c.relrowsecurity AND row_security_active(c.oid) AND NOT (current_user <> '{RESTRICTED_ROLE}' AND (
            SELECT bool_and(p.polpermissive) AND bool_or(p.polcmd = '*' AND p.polroles = '{{0}}'
                AND pg_get_expr(p.polqual, p.polrelid) ~ '^(public\.)?panda_sees_all\(\)$')
            FROM pg_catalog.pg_policy p WHERE p.polrelid = c.oid) IS TRUE) AS filtered
    FROM pg_catalog.pg_class c JOIN ({USER_SCHEMAS}) s ON s.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'm', 'S') AND c.relpersistence <> 't' AND {NOT_OF_EXTENSION}
""")  # noqa: S608 - constants
_TABLES = text(f"""
    SELECT format('%I.%I', s.nspname, c.relname) AS name
    FROM pg_catalog.pg_class c JOIN ({USER_SCHEMAS}) s ON s.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND {NOT_OF_EXTENSION}
""")  # noqa: S608 - constants
_ROLES = text("""
    SELECT DISTINCT r.rolname::text FROM pg_catalog.pg_roles r WHERE r.oid IN (
        SELECT d.refobjid FROM pg_catalog.pg_shdepend d
        WHERE d.dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
        AND d.refclassid = 'pg_catalog.pg_authid'::regclass AND d.deptype IN ('a', 'r')
        UNION SELECT defaclrole FROM pg_catalog.pg_default_acl)
    ORDER BY 1
""")
_MISSING_ROLES = text(
    "SELECT n FROM unnest(CAST(:names AS text[])) n WHERE n NOT IN (SELECT rolname::text FROM pg_catalog.pg_roles)"
)
# Views first, types last; sequences and types that belong to a column or a table go with it, partitions with their parent.
_THINGS = text(f"""
    WITH spaces AS ({USER_SCHEMAS}), things AS (
        SELECT CASE c.relkind WHEN 'v' THEN 1 WHEN 'm' THEN 1 WHEN 'S' THEN 4 ELSE 2 END AS rank,
            'pg_catalog.pg_class'::regclass::oid AS class, c.oid, c.relkind IN ('r', 'p', 'f') AS holds_rows
        FROM pg_catalog.pg_class c JOIN spaces s ON s.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm', 'S') AND NOT c.relispartition AND {NOT_OF_EXTENSION}
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
            AND c.relkind = 'S' AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i'))
        UNION ALL
        SELECT 3, 'pg_catalog.pg_proc'::regclass::oid, p.oid, false
        FROM pg_catalog.pg_proc p JOIN spaces s ON s.oid = p.pronamespace
        WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
            WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype IN ('e', 'i'))
        UNION ALL
        SELECT 5, 'pg_catalog.pg_type'::regclass::oid, y.oid, false
        FROM pg_catalog.pg_type y JOIN spaces s ON s.oid = y.typnamespace
        LEFT JOIN pg_catalog.pg_class c ON c.oid = y.typrelid
        WHERE (y.typtype IN ('d', 'e', 'r') OR c.relkind = 'c') AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
            WHERE d.classid = 'pg_catalog.pg_type'::regclass AND d.objid = y.oid AND d.deptype = 'e')
        UNION ALL
        SELECT 6, 'pg_catalog.pg_namespace'::regclass::oid, s.oid, false FROM spaces s WHERE s.nspname <> 'public')
    SELECT i.type, i.identity, t.holds_rows FROM things t
    CROSS JOIN LATERAL pg_catalog.pg_identify_object(t.class, t.oid, 0) i
    ORDER BY t.rank, i.identity COLLATE "C"
""")  # noqa: S608 - constants


@dataclass(frozen=True, slots=True)
class Thing:
    """Something in a database that a restore would collide with."""

    kind: str
    """As SQL names it: table, view, function, schema, ..."""
    identity: str
    """Quoted where SQL needs it: public.users."""
    holds_rows: bool

    def __str__(self) -> str:
        return f"{self.kind} {self.identity}"


async def refuse_unreadable(connection: AsyncConnection, *, role: str) -> None:
    """Raise `PermissionDenied`, naming all of them, if there are tables of which this role cannot read every row."""
    rows = (await connection.execute(_RIGHTS)).all()
    closed = sorted(row.name for row in rows if not row.readable)
    if closed:
        raise PermissionDenied(
            f"role {role} may not read {shortened(closed)}",
            hint=f"GRANT SELECT ON {', '.join(closed[:_SHOWN])} TO {role} (and USAGE on the schema), or back up as the owner.",
        )
    filtered = sorted(row.name for row in rows if row.filtered)
    if filtered:
        raise PermissionDenied(
            f"policies may hide rows of {shortened(filtered)} from role {role}, and a backup must hold all",
            hint="Back up as a role with BYPASSRLS or as a superuser.",
        )


async def lock_tables(connection: AsyncConnection, engine: AsyncEngine) -> None:
    """Lock every table against changes of its form, without taking the transaction's snapshot yet.

    Must be the first in the transaction. The names are read on connections of their own.
    """
    locked: set[str] = set()
    for _ in range(_LOOKS):
        async with engine.connect() as other:
            names = set((await other.execute(_TABLES)).scalars())
        if not (new := sorted(names - locked)):
            return
        await connection.exec_driver_sql(f"LOCK TABLE {', '.join(f'ONLY {name}' for name in new)} IN ACCESS SHARE MODE")
        locked |= names


async def roles_named(connection: AsyncConnection) -> tuple[str, ...]:
    """The roles that policies and privileges name, owners aside, sorted."""
    return tuple((await connection.execute(_ROLES)).scalars())


async def missing_roles(connection: AsyncConnection, names: Collection[str]) -> list[str]:
    return list((await connection.execute(_MISSING_ROLES, {"names": list(names)})).scalars())


async def things(connection: AsyncConnection) -> list[Thing]:
    """Everything in the database but what belongs to an extension and the schema public itself, in the order of removal."""
    rows: Any = (await connection.execute(_THINGS)).all()
    return [Thing(row.type, row.identity, row.holds_rows) for row in rows]


async def remove(connection: AsyncConnection, found: Collection[Thing]) -> None:
    """Drop them with all that hangs on them, in the caller's transaction."""
    for thing in found:
        await connection.exec_driver_sql(f"DROP {thing.kind.upper()} IF EXISTS {thing.identity} CASCADE")


def shortened(names: Collection[object]) -> str:
    """The first of them, and how many more."""
    shown = ", ".join(str(name) for name in list(names)[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
