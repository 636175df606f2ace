"""Policies that keep brokers apart, and the role that they bind; what metadata cannot say hangs on its `after_create`.

A session of one broker works as the role `panda_app` with the setting `panda.broker`, both for one transaction, and sees and
writes the rows of that broker. Every other role sees all. The policies name the role in an expression, not in TO: so they can be
made, dumped and restored where the role does not exist yet, and nobody is bound by being its member.
"""

from typing import Any, Final

from sqlalchemy import Connection, event

from core.database.models._base import Base

RESTRICTED_ROLE: Final = "panda_app"
"""The role of a broker's session. It belongs to the server, not to one database."""

ISOLATED_TABLES: Final = ("trading_sessions", "portfolios", "portfolio_snapshots")
"""The tables whose rows belong to a broker, each by its column `broker`."""

RESTRICTED_RIGHTS: Final = {
    "trading_sessions": "SELECT, INSERT, UPDATE",
    "portfolios": "SELECT, INSERT, UPDATE",
    "portfolio_snapshots": "SELECT, INSERT",
    "encryption_canaries": "SELECT, INSERT",
    "strategies": "SELECT",
    "strategy_revisions": "SELECT",
    "instruments": "SELECT",
    "instrument_versions": "SELECT",
    "instrument_loads": "SELECT",
    "users": "SELECT (id, username, is_active, created_at, updated_at), UPDATE (updated_at)",
}
"""What the restricted role may, by table; nothing on the partitions of the snapshots, which would lead past their policy.

Of users no password hash; the update is what a lock on the row of a session's user asks for.
"""

# IMMUTABLE is more than it keeps: it is for the planner, which so decides it once for a plan and not for each row. A cached
# plan of a table with policies is made anew when the role is another.
_FUNCTIONS = (
    f"""CREATE OR REPLACE FUNCTION panda_sees_all() RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CURRENT_USER <> '{RESTRICTED_ROLE}'::name""",
    rf"""CREATE OR REPLACE FUNCTION panda_set_broker(broker text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF broker IS NULL OR broker !~ '^[a-z][a-z0-9_-]{{0,31}}$' THEN
        RAISE EXCEPTION 'not the name of a broker' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    EXECUTE format('SET LOCAL panda.broker = %L', broker);
    IF current_user <> '{RESTRICTED_ROLE}' THEN
        EXECUTE 'SET LOCAL ROLE {RESTRICTED_ROLE}';
    END IF;
END
$$""",
)

# Roles belong to the whole server, where other databases are migrated at the same time: who comes second tries again. Who may
# not make or grant one goes on without.
MAKE_RESTRICTED_ROLE: Final = f"""DO $$
BEGIN
    FOR attempt IN 1..20 LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '{RESTRICTED_ROLE}') THEN
                CREATE ROLE {RESTRICTED_ROLE} LOGIN NOINHERIT;
            END IF;
            IF current_setting('server_version_num')::int >= 160000 THEN
                IF NOT pg_catalog.pg_has_role(current_user, '{RESTRICTED_ROLE}', 'SET') THEN
                    EXECUTE 'GRANT {RESTRICTED_ROLE} TO CURRENT_USER WITH INHERIT FALSE, SET TRUE';
                END IF;
            ELSIF NOT pg_catalog.pg_has_role(current_user, '{RESTRICTED_ROLE}', 'MEMBER') THEN
                EXECUTE 'GRANT {RESTRICTED_ROLE} TO CURRENT_USER';
            END IF;
            RETURN;
        EXCEPTION
            WHEN insufficient_privilege OR read_only_sql_transaction THEN
                RETURN;
            WHEN unique_violation OR duplicate_object OR undefined_object OR internal_error THEN
                PERFORM pg_catalog.pg_sleep(0.02);
        END;
    END LOOP;
END
$$"""
"""Makes the role where it is missing and lets the current role take it; does nothing where it may not."""

_RIGHTS = "\n".join(
    [
        "DO $$",
        "BEGIN",
        f"    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '{RESTRICTED_ROLE}') THEN",
        *(f"        GRANT {rights} ON {table} TO {RESTRICTED_ROLE};" for table, rights in RESTRICTED_RIGHTS.items()),
        "        IF to_regclass('alembic_version') IS NOT NULL THEN",
        f"            GRANT SELECT ON alembic_version TO {RESTRICTED_ROLE};",
        "        END IF;",
        "    END IF;",
        "END",
        "$$",
    ]
)


def _policies(table: str) -> tuple[str, ...]:
    return (
        f"CREATE POLICY application ON {table} USING (panda_sees_all())",
        f"CREATE POLICY broker ON {table} USING (broker = current_setting('panda.broker', true))",
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
    )


def _isolate(_target: Any, connection: Connection, *, tables: Any = None, **_: Any) -> None:
    made = {table.name for table in tables or ()}
    if not made.issuperset(ISOLATED_TABLES):
        return
    policies = [statement for table in ISOLATED_TABLES for statement in _policies(table)]
    for statement in (*_FUNCTIONS, *policies, MAKE_RESTRICTED_ROLE, _RIGHTS):
        connection.exec_driver_sql(statement)


event.listen(Base.metadata, "after_create", _isolate)
