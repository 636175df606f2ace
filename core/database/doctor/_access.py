"""The role: what it may, and what it should not be able to."""

from collections import defaultdict
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from core.database.doctor._case import Case, reset_of, row, rows
from core.database.doctor._finding import Finding, Note, listed, summed
from core.database.models import ISOLATED_TABLES, RESTRICTED_ROLE, Base

TABLES = sorted(Base.metadata.tables)
_CHANGED = ("instruments", "strategies", "trading_sessions", "users")
"""The tables whose rows are changed; the others are only added to."""
_FORGOTTEN = ("known_sources", "login_delays")
"""Those whose rows are changed, and removed when they count no more."""

_ROLE = """
    SELECT r.rolname AS name, quote_ident(r.rolname) AS quoted, r.rolsuper AS superuser, r.rolbypassrls AS bypasses,
           pg_has_role(d.datdba, 'MEMBER') AS owns_database,
           ARRAY(SELECT t FROM unnest(CAST(:tables AS text[])) t JOIN pg_class c ON c.oid = to_regclass(quote_ident(t))
                 WHERE pg_has_role(c.relowner, 'MEMBER') ORDER BY t) AS owned
    FROM pg_roles r, pg_database d WHERE r.rolname = current_user AND d.datname = current_database()
"""
_LACKING = """
    SELECT n.name, p.privilege
    FROM unnest(CAST(:names AS text[]), CAST(:privileges AS text[])) AS n (name, privileges),
         unnest(string_to_array(n.privileges, ' ')) AS p (privilege)
    WHERE to_regclass(quote_ident(n.name)) IS NOT NULL
      AND NOT has_table_privilege(to_regclass(quote_ident(n.name)), p.privilege) ORDER BY 1, 2
"""
_PLACES = """
    SELECT current_schema() AS schema, quote_ident(current_user) AS role, quote_ident(current_database()) AS database,
           has_database_privilege(current_database(), 'TEMP') AS temporary,
           coalesce(has_schema_privilege('public', 'USAGE'), false) AS usage,
           s.setting AS read_only, s.source AS read_only_by
    FROM pg_settings s WHERE s.name = 'default_transaction_read_only'
"""
_ISOLATION = """
    SELECT r.oid IS NOT NULL AS exists, coalesce(r.rolsuper OR r.rolbypassrls, false) AS mighty,
           coalesce(pg_has_role(session_user, r.oid, CASE WHEN current_setting('server_version_num')::int >= 160000
               THEN 'SET' ELSE 'MEMBER' END), false) AS may_take,
           (SELECT count(*) FROM unnest(CAST(:tables AS text[])) t WHERE to_regclass(quote_ident(t)) IS NOT NULL) AS present,
           ARRAY(SELECT c.relname::text FROM unnest(CAST(:tables AS text[])) t
                 JOIN pg_class c ON c.oid = to_regclass(quote_ident(t))
                 WHERE NOT (c.relrowsecurity AND c.relforcerowsecurity) ORDER BY 1) AS open,
           ARRAY(SELECT quote_ident(c.relname) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                 WHERE i.inhparent = to_regclass('portfolio_snapshots') AND r.oid IS NOT NULL AND NOT r.rolsuper
                   AND has_table_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE') ORDER BY 1) AS partitions
    FROM (VALUES (1)) one LEFT JOIN pg_roles r ON r.rolname = :restricted
"""


async def role(connection: AsyncConnection, case: Case) -> Finding:
    """Who we are there. A superuser is bound by no policy; an owner can drop what it should only fill."""
    found = await row(connection, _ROLE, tables=TABLES)
    notes: list[Note] = []
    if found.superuser:
        mend = f"Connect as a role of its own: CREATE ROLE app LOGIN PASSWORD '...'; or ALTER ROLE {found.quoted} NOSUPERUSER;"
        notes.append(Note("warning", f"{found.name} is a superuser: no policy and no missing right stops it", mend))
    elif found.bypasses:
        mend = f"ALTER ROLE {found.quoted} NOBYPASSRLS;"
        notes.append(Note("warning", f"{found.name} bypasses row-level security", mend))
    if found.owned and not found.superuser and case.is_guarded:
        mend = (
            "Migrate as the owner, run as another: `panda roles apply`, then CREATE ROLE app LOGIN PASSWORD '...'; "
            "GRANT panda_application TO app;"
        )
        notes.append(Note("warning", f"{found.name} owns the tables: it can drop them and their constraints", mend))
    what = "owns the tables" if found.owned else "owns none of the tables"
    details = {
        "role": found.name,
        "superuser": found.superuser,
        "bypasses_row_security": found.bypasses,
        "owns_database": found.owns_database,
        "owned_tables": list(found.owned),
    }
    return summed("role", notes, fine=f"{found.name}, no superuser, {what}", details=details)


async def rights(connection: AsyncConnection, case: Case) -> Finding:
    """May the role do what an application does: read and add everywhere, change where rows change, stage its loads?"""
    needed = dict.fromkeys(TABLES, "SELECT INSERT")
    needed |= dict.fromkeys(_CHANGED, "SELECT INSERT UPDATE") | dict.fromkeys(_FORGOTTEN, "SELECT INSERT UPDATE DELETE")
    needed["alembic_version"] = "SELECT"
    place = await row(connection, _PLACES)
    found = await rows(connection, _LACKING, names=list(needed), privileges=list(needed.values()))
    notes: list[Note] = []
    if not place.usage:
        notes.append(
            Note("error", "the schema public cannot be used", f"GRANT USAGE ON SCHEMA public TO {place.role};")
        )
    if found:
        names = list(dict.fromkeys(f"{item.privilege} on {item.name}" for item in found))
        notes.append(Note("error", f"missing: {listed(names)}", _grants(found, place.role)))
    if not place.temporary:
        mend = f"GRANT TEMPORARY ON DATABASE {place.database} TO {place.role};"
        notes.append(Note("error", "no temporary tables can be made, which bulk loads stage in", mend))
    if place.read_only == "on":
        mend = reset_of(case, "default_transaction_read_only", place.read_only_by)
        notes.append(Note("error", "default_transaction_read_only is on: every write is refused", mend))
    details = {"missing": [{"table": item.name, "privilege": item.privilege} for item in found]}
    return summed("rights", notes, fine="all that an application needs", details=details)


def _grants(found: Any, role: str) -> str:
    """One GRANT for the tables that lack the same."""
    lacking: defaultdict[str, list[str]] = defaultdict(list)
    for item in found:
        lacking[item.name].append(item.privilege)
    tables: defaultdict[str, list[str]] = defaultdict(list)
    for name, privileges in lacking.items():
        tables[", ".join(privileges)].append(name)
    return "\n".join(f"GRANT {privileges} ON {', '.join(names)} TO {role};" for privileges, names in tables.items())


async def isolation(connection: AsyncConnection, case: Case) -> Finding:
    """Are brokers kept apart: the policies in force, the restricted role there, bound by them and to be taken?"""
    found = await row(connection, _ISOLATION, tables=list(ISOLATED_TABLES), restricted=RESTRICTED_ROLE)
    details = {
        "restricted": RESTRICTED_ROLE,
        "exists": found.exists,
        "may_take": found.may_take,
        "open_tables": list(found.open),
        "partitions_open": list(found.partitions),
    }
    plan = "panda roles plan, then panda roles apply as a role that may"
    notes: list[Note] = []
    if found.present < len(ISOLATED_TABLES):
        return Finding("isolation", "skipped", "the tables are missing", "panda migrate upgrade", details)
    if found.open:
        mend = "\n".join(
            f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;" for name in found.open
        )
        notes.append(Note("error", f"row-level security is off on {listed(found.open)}", mend))
    if not found.exists:
        notes.append(
            Note("warning", f"the role {RESTRICTED_ROLE} is missing: no session of one broker can be opened", plan)
        )
    elif found.mighty:
        mend = f"ALTER ROLE {RESTRICTED_ROLE} NOSUPERUSER NOBYPASSRLS;"
        notes.append(Note("error", f"{RESTRICTED_ROLE} is bound by no policy", mend))
    elif not found.may_take:
        notes.append(
            Note("warning", f"this role may not work as {RESTRICTED_ROLE}, as sessions of one broker do", plan)
        )
    if found.partitions:
        mend = "\n".join(f"REVOKE ALL ON {name} FROM {RESTRICTED_ROLE}, PUBLIC;" for name in found.partitions)
        notes.append(
            Note("error", f"{RESTRICTED_ROLE} has rights on {listed(found.partitions)}, past the policy", mend)
        )
    return summed("isolation", notes, fine="a session of one broker sees that broker only", details=details)
