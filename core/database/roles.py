"""Who may do what in the database: owner, application, restricted, reader; what is missing of it, and making it so.

The owner made the tables and migrates. The application is the group of the logins that run: they read and write every row, but
of auth_events, to which they only add, own nothing, and may take the restricted role, as which a broker's session works. The reader sees every row and no secret. Roles
belong to the whole server; rights to one database. A plan holds statements only, no password: logins are made by hand and put
into a group (GRANT panda_application TO the_login).
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from core.database.errors import ConfigurationError, PermissionDenied, SchemaMissing, translate
from core.database.models import RESTRICTED_RIGHTS, RESTRICTED_ROLE, Base

__all__ = ["APPLICATION_ROLE", "READER_ROLE", "RoleStep", "RolesPlan", "apply", "plan"]

APPLICATION_ROLE: Final = "panda_application"
READER_ROLE: Final = "panda_reader"

_SECRETS = frozenset({"hashed_password", "credentials", "envelope", "bearer_hash", "name_digest", "bucket"})
"""Columns that the reader may not read, sealed or hashed as they are; of a name that was typed it may be a password."""
_APPENDED = frozenset({"auth_events"})
"""Tables that the application adds to, and never changes."""
_CLOSED_TO_READER = frozenset({"encryption_canaries"})
_RIGHT = re.compile(r"(\w+)(?: \(([^)]*)\))?")
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
    SELECT n.name, r.oid IS NOT NULL AS there, coalesce(r.rolsuper OR r.rolbypassrls OR r.rolcreaterole OR r.rolcreatedb, false)
        AS mighty, coalesce(pg_has_role(current_user, r.oid, 'MEMBER WITH ADMIN OPTION'), false) AS given_on,
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
_LEAKS = text("""
    SELECT quote_ident(c.relname) AS name FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid, pg_roles r
    WHERE r.rolname = :restricted AND i.inhparent = to_regclass('portfolio_snapshots')
      AND (has_table_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')
           OR has_any_column_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE')) ORDER BY 1
""")
_CHANGES = text("""
    SELECT quote_ident(c.relname) AS name, quote_ident(r.rolname) AS role FROM pg_class c, aclexplode(c.relacl) a, pg_roles r
    WHERE c.oid = ANY (SELECT to_regclass(name) FROM unnest(CAST(:names AS text[])) n (name)) AND r.oid = a.grantee
      AND r.rolname = :application AND r.oid <> c.relowner AND a.privilege_type IN ('UPDATE', 'DELETE', 'TRUNCATE')
    GROUP BY 1, 2 ORDER BY 1
""")


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleStep:
    """One statement that is still to be run."""

    role: str
    why: str
    sql: str
    """Without its semicolon."""
    allowed: bool
    """The role that we are connected as may run it."""


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
        for step in found.steps:
            try:
                await connection.exec_driver_sql(step.sql)
            except SQLAlchemyError as error:
                raise translate(error) or error from error
        return found


async def _plan(connection: AsyncConnection, application: str, reader: str) -> RolesPlan:
    for name in (application, reader):
        if _NAME.fullmatch(name) is None or name.startswith("pg_") or name == RESTRICTED_ROLE:
            raise ConfigurationError(f"{name!r} is no name for a role here", hint="Write small letters, digits and _.")
    place: Any = (await connection.execute(_PLACE)).one_or_none()
    if place is None:
        raise SchemaMissing("our tables are not here")
    names = [RESTRICTED_ROLE, application, reader]
    roles: dict[str, Any] = {row.name: row for row in await connection.execute(_ROLES, {"names": names})}
    steps = [
        *_role_steps(place, roles),
        *await _membership_steps(connection, place, roles[RESTRICTED_ROLE], application),
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
            sql = f"ALTER ROLE {name} NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB"
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
    rights = _rights(application, reader)
    parts = [
        (role, table, found[1], column.strip())
        for role, tables in rights.items()
        for table, text_ in tables.items()
        for found in _RIGHT.finditer(text_)
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
    changes = await connection.execute(_CHANGES, {"names": sorted(_APPENDED), "application": application})
    steps += [
        RoleStep(
            role=application,
            why="may change what is only added to",
            sql=f"REVOKE UPDATE, DELETE, TRUNCATE ON {row.name} FROM {row.role}",
            allowed=place.owns,
        )
        for row in changes
    ]
    leaks = (await connection.execute(_LEAKS, {"restricted": RESTRICTED_ROLE})).scalars()
    return steps + [
        RoleStep(
            role=RESTRICTED_ROLE,
            why="has rights on a partition, which lead past its policy",
            sql=f"REVOKE ALL ON {name} FROM {RESTRICTED_ROLE}",
            allowed=place.owns,
        )
        for name in leaks
    ]


def _rights(application: str, reader: str) -> dict[str, dict[str, str]]:
    """By role and table, as GRANT writes them."""
    tables = Base.metadata.tables
    readable: dict[str, str] = {}
    for name, table in sorted(tables.items()):
        secret = any(column.name in _SECRETS for column in table.columns)
        shown = ", ".join(column.name for column in table.columns if column.name not in _SECRETS)
        readable[name] = f"SELECT ({shown})" if secret else "SELECT"
    stamp = {"alembic_version": "SELECT"}
    return {
        RESTRICTED_ROLE: dict(RESTRICTED_RIGHTS) | stamp,
        application: {
            name: "SELECT, INSERT" if name in _APPENDED else "SELECT, INSERT, UPDATE, DELETE" for name in sorted(tables)
        }
        | stamp,
        reader: {name: text_ for name, text_ in readable.items() if name not in _CLOSED_TO_READER} | stamp,
    }
