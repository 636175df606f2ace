"""Brokers kept apart: policies on what belongs to a broker, and the restricted role that a broker's session works as."""

from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | None = None
depends_on: str | None = None

lock_timeout: float = 2.0
statement_timeout: float = 60.0

_TABLES = ("trading_sessions", "portfolios", "portfolio_snapshots")
_SEES_ALL = """CREATE OR REPLACE FUNCTION panda_sees_all() RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CURRENT_USER <> 'panda_app'::name"""
_SET_BROKER = r"""CREATE OR REPLACE FUNCTION panda_set_broker(broker text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF broker IS NULL OR broker !~ '^[a-z][a-z0-9_-]{0,31}$' THEN
        RAISE EXCEPTION 'not the name of a broker' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    EXECUTE format('SET LOCAL panda.broker = %L', broker);
    IF current_user <> 'panda_app' THEN
        EXECUTE 'SET LOCAL ROLE panda_app';
    END IF;
END
$$"""

# A role belongs to the whole server, where other databases may be migrated at the same time: who comes second tries again. Who
# may not make or grant one goes on without; `panda roles plan` says what is left to do.
_ROLE = """DO $$
BEGIN
    FOR attempt IN 1..20 LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'panda_app') THEN
                CREATE ROLE panda_app LOGIN NOINHERIT;
            END IF;
            IF current_setting('server_version_num')::int >= 160000 THEN
                IF NOT pg_catalog.pg_has_role(current_user, 'panda_app', 'SET') THEN
                    EXECUTE 'GRANT panda_app TO CURRENT_USER WITH INHERIT FALSE, SET TRUE';
                END IF;
            ELSIF NOT pg_catalog.pg_has_role(current_user, 'panda_app', 'MEMBER') THEN
                EXECUTE 'GRANT panda_app TO CURRENT_USER';
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
_RIGHTS = """DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'panda_app') THEN
        GRANT SELECT, INSERT, UPDATE ON trading_sessions, portfolios TO panda_app;
        GRANT SELECT, INSERT ON portfolio_snapshots, encryption_canaries TO panda_app;
        GRANT SELECT ON strategies, strategy_revisions, instruments, instrument_versions, instrument_loads TO panda_app;
        GRANT SELECT (id, username, is_active, created_at, updated_at), UPDATE (updated_at) ON users TO panda_app;
        GRANT SELECT ON alembic_version TO panda_app;
    END IF;
END
$$"""
_NO_RIGHTS = """DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'panda_app') THEN
        REVOKE ALL ON trading_sessions, portfolios, portfolio_snapshots, encryption_canaries, strategies, strategy_revisions,
            instruments, instrument_versions, instrument_loads, users, alembic_version FROM panda_app;
        REVOKE ALL (id, username, is_active, created_at, updated_at) ON users FROM panda_app;
    END IF;
END
$$"""


def upgrade() -> None:
    op.execute(_SEES_ALL)
    op.execute(_SET_BROKER)
    for table in _TABLES:
        op.execute(f"CREATE POLICY application ON {table} USING (panda_sees_all())")
        op.execute(f"CREATE POLICY broker ON {table} USING (broker = current_setting('panda.broker', true))")
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    op.execute(_ROLE)
    op.execute(_RIGHTS)


def downgrade() -> None:
    """No row is lost. The brokers are apart no longer; the role stays, since other databases of the server may use it."""
    op.execute(_NO_RIGHTS)
    for table in _TABLES:
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
        op.execute(f"DROP POLICY broker ON {table}")
        op.execute(f"DROP POLICY application ON {table}")
    op.execute("DROP FUNCTION panda_set_broker(text)")
    op.execute("DROP FUNCTION panda_sees_all()")
