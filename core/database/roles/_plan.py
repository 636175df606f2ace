"""What is missing, as steps, and running them."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from core.database.errors import ConfigurationError, PermissionDenied, SchemaMissing, translate
from core.database.models import RESTRICTED_ROLE
from core.database.roles._excess import excess_steps
from core.database.roles._rights import APPENDED, APPLICATION_ROLE, READER_ROLE, RIGHT, RoleStep, rights_of

_MOST_STEPS = 1_000
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_quote = postgresql.dialect().identifier_preparer.quote

_PLACE = text("""
    SELECT current_setting('server_version_num')::int AS version, current_user::text AS name, r.rolsuper AS superuser,
           r.rolcreaterole AS makes_roles, pg_get_userbyid(c.relowner)::text AS owner, pg_has_role(c.relowner, 'USAGE') AS owns,
           quote_ident(n.nspname) AS schema, pg_has_role(n.nspowner, 'USAGE') AS owns_schema
    FROM pg_roles r, pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE r.rolname = current_user AND c.oid = to_regclass('portfolios')
""")
_ROLES = text("""
    SELECT n.name, r.oid IS NOT NULL AS there, coalesce(r.rolsuper, false) AS superuser,
        coalesce(r.rolsuper OR r.rolbypassrls OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication, false) AS mighty,
        coalesce(pg_has_role(current_user, r.oid, 'MEMBER WITH ADMIN OPTION'), false) AS given_on,
        coalesce(has_schema_privilege(r.oid, current_schema(), 'USAGE'), has_schema_privilege('public', current_schema(), 'USAGE'))
        AS enters
    FROM unnest(CAST(:names AS text[])) n (name) LEFT JOIN pg_roles r ON r.rolname = n.name
""")
_MEMBER = text("""
    SELECT m.name FROM unnest(CAST(:names AS text[])) m (name) JOIN pg_roles r ON r.rolname = m.name
    JOIN pg_roles g ON g.rolname = :granted
    WHERE pg_has_role(r.oid, g.oid, CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END)
""")
_LACKING = text("""
    SELECT n.role, n.name FROM unnest(CAST(:roles AS text[]), CAST(:names AS text[]), CAST(:rights AS text[]),
        CAST(:columns AS text[])) AS n (role, name, privilege, field)
    LEFT JOIN pg_roles r ON r.rolname = n.role
    WHERE to_regclass(quote_ident(n.name)) IS NOT NULL AND (r.oid IS NULL OR NOT CASE WHEN n.field = ''
        THEN has_table_privilege(r.oid, to_regclass(quote_ident(n.name)), n.privilege)
        ELSE has_column_privilege(r.oid, to_regclass(quote_ident(n.name)), n.field, n.privilege) END)
    GROUP BY 1, 2 ORDER BY 1, 2
""")
_CHANGES = text("""
    SELECT quote_ident(c.relname) AS name, quote_ident(r.rolname) AS role FROM pg_class c, aclexplode(c.relacl) a, pg_roles r
    WHERE c.oid = ANY (SELECT to_regclass(name) FROM unnest(CAST(:names AS text[])) n (name)) AND r.oid = a.grantee
      AND r.rolname = :application AND r.oid <> c.relowner AND a.privilege_type IN ('UPDATE', 'DELETE', 'TRUNCATE')
    GROUP BY 1, 2 ORDER BY 1
""")


@dataclass(frozen=True, kw_only=True, slots=True)
class RolesPlan:
    """What is missing; nothing, where `steps` is empty."""

    owner: str
    application: str
    restricted: str
    reader: str
    user: str
    """Who we are connected as."""
    steps: tuple[RoleStep, ...]

    @property
    def forbidden(self) -> tuple[RoleStep, ...]:
        return tuple(step for step in self.steps if not step.allowed)

    @property
    def sql(self) -> str:
        """Every step as a statement, a line each."""
        return "".join(f"{step.sql};\n" for step in self.steps)


async def plan(engine: AsyncEngine, *, application: str = APPLICATION_ROLE, reader: str = READER_ROLE) -> RolesPlan:
    """Look what is missing. Changes nothing. Raises `SchemaMissing` where our tables are not."""
    async with engine.connect() as connection:
        return await _plan(connection, application, reader)


async def apply(engine: AsyncEngine, *, application: str = APPLICATION_ROLE, reader: str = READER_ROLE) -> RolesPlan:
    """Run every step in one transaction and return what was run; a second run finds nothing to do.

    Raises `PermissionDenied`, with nothing done, where a step needs another role than ours.
    """
    async with engine.begin() as connection:
        found = await _plan(connection, application, reader)
        if found.forbidden:
            raise PermissionDenied(
                f"{found.user} may not run {len(found.forbidden)} of {len(found.steps)} steps; nothing was done",
                hint="Run `panda roles apply` as a superuser, or give the output of `panda roles plan --sql` to one.",
            )
        ran: list[RoleStep] = []
        while found.steps and len(ran) < _MOST_STEPS:  # a right that PUBLIC gave may be missed once it is gone
            for step in found.steps:
                try:
                    await connection.exec_driver_sql(step.sql)
                except SQLAlchemyError as error:
                    raise translate(error) or error from error
            ran += found.steps
            found = await _plan(connection, application, reader)
        return replace(found, steps=tuple(ran))


async def _plan(connection: AsyncConnection, application: str, reader: str) -> RolesPlan:
    for name in (application, reader):
        if _NAME.fullmatch(name) is None or name.startswith("pg_") or name == RESTRICTED_ROLE:
            raise ConfigurationError(f"{name!r} is no name for a role here", hint="Write small letters, digits and _.")
    place: Any = (await connection.execute(_PLACE)).one_or_none()
    if place is None:
        raise SchemaMissing("our tables are not here")
    names = [RESTRICTED_ROLE, application, reader]
    roles: dict[str, Any] = {row.name: row for row in await connection.execute(_ROLES, {"names": names})}
    for name in (application, reader):
        if roles[name].superuser:
            raise ConfigurationError(
                f"{name} is a superuser, whom no policy binds: who is its member may become it",
                hint="Name another role with --application or --reader; one that is not there is made.",
            )
    steps = [
        *_role_steps(place, roles),
        *await _membership_steps(connection, place, roles[RESTRICTED_ROLE], application),
        *await excess_steps(connection, place, application=application, reader=reader),
        *await _right_steps(connection, place, roles, application, reader),
    ]
    return RolesPlan(
        owner=place.owner,
        application=application,
        restricted=RESTRICTED_ROLE,
        reader=reader,
        user=place.name,
        steps=tuple(steps),
    )


def _role_steps(place: Any, roles: Mapping[str, Any]) -> list[RoleStep]:
    may = place.superuser or place.makes_roles
    steps: list[RoleStep] = []
    for name, role in roles.items():
        login = "LOGIN NOINHERIT" if name == RESTRICTED_ROLE else "NOLOGIN"
        if not role.there:
            steps.append(RoleStep(role=name, why="missing", sql=f"CREATE ROLE {_quote(name)} {login}", allowed=may))
        elif role.mighty and name == RESTRICTED_ROLE:
            sql = f"ALTER ROLE {name} NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB NOREPLICATION"
            steps.append(RoleStep(role=name, why="may more than it should", sql=sql, allowed=place.superuser))
        if not role.enters:
            sql = f"GRANT USAGE ON SCHEMA {place.schema} TO {_quote(name)}"
            steps.append(RoleStep(role=name, why="cannot use the schema", sql=sql, allowed=place.owns_schema))
    return steps


async def _membership_steps(
    connection: AsyncConnection, place: Any, restricted: Any, application: str
) -> list[RoleStep]:
    """Owner and application may take the restricted role, without its rights becoming theirs."""
    wanted = list(dict.fromkeys((place.owner, application)))
    found = await connection.execute(_MEMBER, {"names": wanted, "granted": RESTRICTED_ROLE})
    members = set(found.scalars())
    if place.version >= 160_000:
        may, how = restricted.given_on or not restricted.there, " WITH INHERIT FALSE, SET TRUE"
    else:
        may, how = place.makes_roles, ""
    return [
        RoleStep(
            role=name,
            why=f"may not work as {RESTRICTED_ROLE}",
            sql=f"GRANT {RESTRICTED_ROLE} TO {_quote(name)}{how}",
            allowed=may or place.superuser,
        )
        for name in wanted
        if name not in members
    ]


async def _right_steps(
    connection: AsyncConnection, place: Any, roles: Mapping[str, Any], application: str, reader: str
) -> list[RoleStep]:
    rights = rights_of(application, reader)
    parts = [
        (role, table, found[1], column.strip())
        for role, tables in rights.items()
        for table, text_ in tables.items()
        for found in RIGHT.finditer(text_)
        for column in (found[2] or "").split(",")
    ]
    values: dict[str, list[str]] = dict(
        zip(("roles", "names", "rights", "columns"), map(list, zip(*parts, strict=True)), strict=True)
    )
    lacking: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for row in await connection.execute(_LACKING, values):
        lacking[row.role, rights[row.role][row.name]].append(row.name)
    steps = [
        RoleStep(
            role=role,
            why="lacks rights",
            sql=f"GRANT {text_} ON {', '.join(map(_quote, tables))} TO {_quote(role)}",
            allowed=place.owns,
        )
        for (role, text_), tables in lacking.items()
    ]
    changes = await connection.execute(_CHANGES, {"names": sorted(APPENDED), "application": application})
    steps += [
        RoleStep(
            role=application,
            why="may change what is only added to",
            sql=f"REVOKE UPDATE, DELETE, TRUNCATE ON {row.name} FROM {row.role}",
            allowed=place.owns,
        )
        for row in changes
    ]
    return steps
