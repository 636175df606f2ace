"""What was granted beside what is wanted, and would lead past the policies or to a secret."""

from collections import defaultdict
from typing import Any

from sqlalchemy import text
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from core.database.models import RESTRICTED_ROLE
from core.database.roles._rights import RIGHT, RoleStep, rights_of

_quote = postgresql.dialect().identifier_preparer.quote
_PUBLIC = "PUBLIC"

_GRANTED = text("""
    WITH t AS (
        SELECT to_regclass(quote_ident(name)) AS oid, name AS of FROM unnest(CAST(:names AS text[])) n (name)
        UNION SELECT i.inhrelid, '' FROM pg_inherits i WHERE i.inhparent = to_regclass('portfolio_snapshots')
    ), granted AS (
        SELECT t.of, c.oid, a.grantee, a.privilege_type, NULL AS field FROM t JOIN pg_class c USING (oid), aclexplode(c.relacl) a
        UNION ALL SELECT t.of, c.oid, a.grantee, a.privilege_type, f.attname
        FROM t JOIN pg_class c USING (oid) JOIN pg_attribute f ON f.attrelid = c.oid, aclexplode(f.attacl) a
    )
    SELECT g.of, g.oid::regclass::text AS name, coalesce(r.rolname, 'PUBLIC') AS role, g.privilege_type AS privilege, g.field
    FROM granted g JOIN pg_class c USING (oid) LEFT JOIN pg_roles r ON r.oid = g.grantee
    WHERE (g.grantee = 0 OR r.rolname = ANY (CAST(:roles AS text[]))) AND g.grantee <> c.relowner ORDER BY 2, 3, 5, 4
""")
_FUTURE = text("""
    SELECT pg_get_userbyid(d.defaclrole) AS owner, quote_ident(n.nspname) AS schema, coalesce(r.rolname, 'PUBLIC') AS role
    FROM pg_default_acl d CROSS JOIN aclexplode(d.defaclacl) a LEFT JOIN pg_namespace n ON n.oid = d.defaclnamespace
    LEFT JOIN pg_roles r ON r.oid = a.grantee
    WHERE d.defaclobjtype = 'r' AND (a.grantee = 0 OR r.rolname = :restricted) AND d.defaclrole = (
        SELECT relowner FROM pg_class WHERE oid = to_regclass('portfolios'))
      AND (n.nspname IS NULL OR n.nspname = current_schema()) GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
""")
_MEMBERSHIPS = text("""
    SELECT g.rolname AS granted, bool_or(pg_has_role(current_user, g.oid, 'MEMBER WITH ADMIN OPTION')) AS given_on
    FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid JOIN pg_roles r ON r.oid = m.member
    WHERE r.rolname = :restricted GROUP BY 1 ORDER BY 1
""")
_SETTINGS = text("""
    SELECT split_part(c.setting, '=', 1) AS name, quote_ident(d.datname) AS database, s.setrole <> 0 AS of_role
    FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) c (setting) LEFT JOIN pg_database d ON d.oid = s.setdatabase
    WHERE s.setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = :restricted))
      AND (d.datname IS NULL OR d.datname = current_database())
      AND split_part(c.setting, '=', 1) IN ('panda.broker', 'role') ORDER BY 1, 2
""")


async def excess_steps(connection: AsyncConnection, place: Any, *, application: str, reader: str) -> list[RoleStep]:
    """Of the restricted role, the reader and PUBLIC; where a REVOKE takes wanted columns along, they are granted again."""
    restricted = {"restricted": RESTRICTED_ROLE}
    return [
        *await _rights_steps(connection, place, rights_of(application, reader), (RESTRICTED_ROLE, reader)),
        *[
            RoleStep(
                role=row.role,
                why="would have rights on each new table and partition",
                sql=f"ALTER DEFAULT PRIVILEGES FOR ROLE {_quote(row.owner)}{f' IN SCHEMA {row.schema}' if row.schema else ''}"
                f" REVOKE ALL ON TABLES FROM {_named(row.role)}",
                allowed=place.owns,
            )
            for row in await connection.execute(_FUTURE, restricted)
        ],
        *[
            RoleStep(
                role=RESTRICTED_ROLE,
                why=f"may what {row.granted} may, past its policies",
                sql=f"REVOKE {_quote(row.granted)} FROM {RESTRICTED_ROLE}",
                allowed=place.superuser or row.given_on,
            )
            for row in await connection.execute(_MEMBERSHIPS, restricted)
        ],
        *[_setting_step(row, place) for row in await connection.execute(_SETTINGS, restricted)],
    ]


async def _rights_steps(
    connection: AsyncConnection, place: Any, wanted: dict[str, dict[str, str]], roles: tuple[str, ...]
) -> list[RoleStep]:
    names = sorted({name for tables in wanted.values() for name in tables})
    excess: defaultdict[tuple[str, str, str], dict[str, None]] = defaultdict(dict)
    for row in await connection.execute(_GRANTED, {"names": names, "roles": list(roles)}):
        whole, columns = _parts(wanted.get(row.role, {}).get(row.of, ""))
        if row.role == _PUBLIC:
            excess[row.role, row.of, row.name]["ALL"] = None
        elif row.field is None and row.privilege not in whole:
            excess[row.role, row.of, row.name][row.privilege] = None
        elif row.field is not None and row.privilege not in whole and row.field not in columns.get(row.privilege, ()):
            excess[row.role, row.of, row.name][f"{row.privilege} ({_quote(row.field)})"] = None
    steps: list[RoleStep] = []
    for (role, of, name), rights in excess.items():
        why = "has rights beside its own" if of else "has rights on a partition, which lead past its policy"
        revoke = f"REVOKE {', '.join(rights)} ON {name} FROM {_named(role)}"
        steps.append(RoleStep(role=role, why=why, sql=revoke, allowed=place.owns))
        mine = wanted.get(role, {}).get(of, "")
        if "(" in mine and not rights.keys().isdisjoint(_parts(mine)[1]):
            grant = f"GRANT {mine} ON {name} TO {_quote(role)}"
            steps.append(RoleStep(role=role, why="keeps its columns", sql=grant, allowed=place.owns))
    return steps


def _parts(rights: str) -> tuple[set[str], dict[str, set[str]]]:
    """Of rights as GRANT writes them: those on the whole table, and those on columns."""
    whole: set[str] = set()
    columns: dict[str, set[str]] = {}
    for found in RIGHT.finditer(rights):
        if found[2] is None:
            whole.add(found[1])
        else:
            columns[found[1]] = {name.strip() for name in found[2].split(",")}
    return whole, columns


def _setting_step(row: Any, place: Any) -> RoleStep:
    where = f"DATABASE {row.database}"
    if row.of_role:
        where = f"ROLE {RESTRICTED_ROLE}" + (f" IN {where}" if row.database else "")
    sql = f"ALTER {where} RESET {row.name}"
    return RoleStep(role=RESTRICTED_ROLE, why=f"begins with {row.name} set", sql=sql, allowed=place.superuser)


def _named(role: str) -> str:
    return role if role == _PUBLIC else _quote(role)
