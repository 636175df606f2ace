"""The first tables: users, sessions, strategies, instruments, portfolios and their history."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None

# lint: allow prefer-bigint-over-int - a strategy's version counts its revisions, and no one makes two billion

_BLANKS = r"\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_EDGE = rf"[^\u0001-\u0020\u007f-\u00a0{_BLANKS}]"
_PLAIN = rf"{_EDGE}([^\u0001-\u001f\u007f-\u009f\u2028\u2029]*{_EDGE})?"
_LOWER = "[a-z][a-z0-9_-]*"
_UPPER = "[A-Z][A-Z0-9_-]*"
_POSITIONS = """
    jsonb_typeof(positions) = 'array'
    AND NOT jsonb_path_exists(positions, 'strict $[*] ? (@.type() != "object")', silent => true)
    AND NOT jsonb_path_exists(positions, 'lax $[*] ? (!(
        @.instrument_token.type() == "number" && @.quantity.type() == "string" && @.average_price.type() == "string"
        && @.last_price.type() == "string" && @.pnl.type() == "string"))')
"""
_TABLES = (
    "portfolio_snapshots",
    "portfolios",
    "instrument_versions",
    "instruments",
    "strategy_revisions",
    "strategies",
    "trading_sessions",
    "users",
)


def upgrade() -> None:
    _create_users()
    _create_trading_sessions()
    _create_strategies()
    _create_strategy_revisions()
    _create_instruments()
    _create_instrument_versions()
    _create_portfolios()
    _create_portfolio_snapshots()


def downgrade() -> None:
    for table in _TABLES:
        op.drop_table(table)


def _text(name: str, *, nullable: bool = False, default: str | None = None) -> sa.Column[Any]:
    return sa.Column(name, sa.Text(collation="C"), nullable=nullable, server_default=default)


def _instant(name: str, *, nullable: bool = False, default: bool = True) -> sa.Column[Any]:
    server_default = sa.func.now() if default and not nullable else None
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=server_default)


def _flag(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.true())


def _money(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Numeric(28, 10), nullable=nullable)


def _json(name: str, default: str = "{}") -> sa.Column[Any]:
    return sa.Column(name, postgresql.JSONB(), nullable=False, server_default=sa.text(f"'{default}'"))


def _check(table: str, name: str, condition: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(condition, name=op.f(f"ck_{table}_{name}"))


def _is_text(table: str, column: str, pattern: str, length: int) -> sa.CheckConstraint:
    return _check(table, column, f"{column} ~ '^{pattern}$' AND length({column}) <= {length}")


def _is_instant(table: str, column: str) -> sa.CheckConstraint:
    return _check(table, column, f"{column} > '0001-01-01 00:00:00+00' AND {column} < '9999-12-31 23:59:59.999999+00'")


def _is_number(table: str, column: str, further: str = "") -> sa.CheckConstraint:
    return _check(table, column, f"{column} <> 'NaN'{further}")


def _is_object(table: str, column: str) -> sa.CheckConstraint:
    return _check(table, column, f"jsonb_typeof({column}) = 'object'")


def _create_users() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        _text("username"),
        _text("hashed_password"),
        _flag("is_active"),
        _instant("created_at"),
        _instant("updated_at"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("username", name=op.f("uq_users_username")),
        _is_text("users", "username", _PLAIN, 150),
        _is_text("users", "hashed_password", _PLAIN, 1024),
        _is_instant("users", "created_at"),
        _is_instant("users", "updated_at"),
    )
    op.create_index("uq_users_username_lower", "users", [sa.text("lower(username)")], unique=True)


def _create_trading_sessions() -> None:
    table = "trading_sessions"
    op.create_table(
        table,
        _text("session_id"),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        _text("broker", default="paper"),
        _instant("start_time"),
        _instant("end_time", nullable=True),
        _instant("expires_at", nullable=True),
        _flag("is_active"),
        _json("session_data"),
        sa.Column("credentials", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("session_id", name=op.f("pk_trading_sessions")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_trading_sessions_user_id")),
        _is_text(table, "session_id", _PLAIN, 128),
        _is_text(table, "broker", _LOWER, 32),
        _is_instant(table, "start_time"),
        _is_instant(table, "end_time"),
        _is_instant(table, "expires_at"),
        _is_object(table, "session_data"),
        _check(table, "period", "end_time >= start_time"),
        _check(table, "lifetime", "expires_at > start_time"),
        _check(table, "is_active", "is_active = (end_time IS NULL)"),
        _check(
            table,
            "credentials",
            r"substring(credentials, 1, 1) = '\x01' AND octet_length(credentials) BETWEEN 31 AND 65536",
        ),
    )
    active = sa.text("is_active")
    op.create_index(op.f("ix_trading_sessions_user_id"), table, ["user_id"])
    op.create_index("uq_trading_sessions_active", table, ["user_id", "broker"], unique=True, postgresql_where=active)
    op.create_index("ix_trading_sessions_expires_at", table, ["expires_at"], postgresql_where=active)


def _strategy_state() -> list[sa.Column[Any]]:
    return [
        _text("name"),
        _text("strategy_type", nullable=True),
        _json("config"),
        _json("parameters"),
        sa.Column("active_brokers", postgresql.ARRAY(sa.Text()), nullable=False, server_default=sa.text("'{}'")),
        _flag("is_active"),
    ]


def _strategy_checks(table: str) -> list[sa.CheckConstraint]:
    brokers = """strict $[*] ? (@.type() != "string" || !(@ like_regex "^[a-z][a-z0-9_-]{0,31}$"))"""
    return [
        _is_text(table, "strategy_id", _PLAIN, 128),
        _is_text(table, "name", _PLAIN, 200),
        _is_text(table, "strategy_type", _PLAIN, 200),
        _is_object(table, "config"),
        _is_object(table, "parameters"),
        _check(table, "active_brokers", f"NOT jsonb_path_exists(to_jsonb(active_brokers), '{brokers}')"),
        _check(table, "version", "version >= 1"),
        _is_instant(table, "created_at"),
    ]


def _create_strategies() -> None:
    op.create_table(
        "strategies",
        _text("strategy_id"),
        *_strategy_state(),
        sa.Column("version", sa.Integer(), nullable=False, server_default=sa.text("1")),
        _instant("created_at"),
        _instant("updated_at"),
        sa.PrimaryKeyConstraint("strategy_id", name=op.f("pk_strategies")),
        *_strategy_checks("strategies"),
        _is_instant("strategies", "updated_at"),
    )


def _create_strategy_revisions() -> None:
    table = "strategy_revisions"
    op.create_table(
        table,
        _text("strategy_id"),
        sa.Column("version", sa.Integer(), nullable=False),
        *_strategy_state(),
        _text("note", nullable=True),
        _instant("created_at"),
        sa.PrimaryKeyConstraint("strategy_id", "version", name=op.f("pk_strategy_revisions")),
        sa.ForeignKeyConstraint(
            ["strategy_id"], ["strategies.strategy_id"], name=op.f("fk_strategy_revisions_strategy_id")
        ),
        *_strategy_checks(table),
        _is_text(table, "note", _PLAIN, 1000),
    )


def _instrument_state() -> list[sa.Column[Any]]:
    return [
        _text("source"),
        _text("exchange"),
        _text("exchange_token", nullable=True),
        _text("trading_symbol"),
        _text("name", nullable=True),
        _text("segment"),
        _text("instrument_type"),
        _text("underlying", nullable=True),
        _text("option_type", nullable=True),
        _money("tick_size", nullable=True),
        sa.Column("lot_size", sa.BigInteger(), nullable=True),
        sa.Column("expiry", sa.Date(), nullable=True),
        _money("strike", nullable=True),
        _flag("is_active"),
        _json("attributes"),
    ]


def _instrument_checks(table: str) -> list[sa.CheckConstraint]:
    return [
        _is_text(table, "source", _LOWER, 32),
        _is_text(table, "exchange", _UPPER, 32),
        _is_text(table, "exchange_token", _PLAIN, 200),
        _is_text(table, "trading_symbol", _PLAIN, 200),
        _is_text(table, "name", _PLAIN, 200),
        _is_text(table, "segment", _UPPER, 32),
        _check(table, "instrument_type", "instrument_type IN ('EQ', 'FUT', 'OPT', 'IDX')"),
        _is_text(table, "underlying", _PLAIN, 200),
        _check(
            table,
            "option_type",
            "option_type IN ('CE', 'PE') AND (instrument_type = 'OPT') = (option_type IS NOT NULL)",
        ),
        _is_number(table, "tick_size", " AND tick_size >= 0"),
        _check(table, "lot_size", "lot_size >= 0"),
        _check(table, "expiry", "expiry > '0001-01-01' AND expiry < '9999-12-31'"),
        _check(table, "expiry_given", "(instrument_type IN ('FUT', 'OPT')) = (expiry IS NOT NULL)"),
        _is_number(table, "strike", " AND strike > 0"),
        _check(table, "strike_given", "(instrument_type = 'OPT') = (strike IS NOT NULL)"),
        _is_object(table, "attributes"),
        _is_instant(table, "valid_from"),
    ]


def _create_instruments() -> None:
    table = "instruments"
    op.create_table(
        table,
        sa.Column("instrument_token", sa.BigInteger(), autoincrement=False, nullable=False),
        *_instrument_state(),
        _money("last_price", nullable=True),
        _instant("valid_from"),
        _instant("created_at"),
        _instant("updated_at"),
        sa.PrimaryKeyConstraint("instrument_token", name=op.f("pk_instruments")),
        *_instrument_checks(table),
        _is_number(table, "last_price"),
        _is_instant(table, "created_at"),
        _is_instant(table, "updated_at"),
    )
    op.create_index("ix_instruments_trading_symbol_exchange", table, ["trading_symbol", "exchange"])
    op.create_index(
        "ix_instruments_underlying_expiry_strike",
        table,
        ["underlying", "expiry", "strike"],
        postgresql_where=sa.text("underlying IS NOT NULL"),
    )


def _create_instrument_versions() -> None:
    table = "instrument_versions"
    op.create_table(
        table,
        sa.Column("instrument_token", sa.BigInteger(), autoincrement=False, nullable=False),
        _instant("valid_from", default=False),
        *_instrument_state(),
        _instant("valid_to", default=False),
        sa.PrimaryKeyConstraint("instrument_token", "valid_from", name=op.f("pk_instrument_versions")),
        sa.ForeignKeyConstraint(
            ["instrument_token"],
            ["instruments.instrument_token"],
            name=op.f("fk_instrument_versions_instrument_token"),
        ),
        *_instrument_checks(table),
        _is_instant(table, "valid_to"),
        _check(table, "period", "valid_to > valid_from"),
    )
    op.create_index("ix_instrument_versions_trading_symbol_exchange", table, ["trading_symbol", "exchange"])


def _create_portfolios() -> None:
    table = "portfolios"
    op.create_table(
        table,
        _text("portfolio_id"),
        _text("broker"),
        _text("strategy_id", nullable=True),
        _text("currency"),
        _text("name"),
        _instant("created_at"),
        sa.PrimaryKeyConstraint("portfolio_id", name=op.f("pk_portfolios")),
        sa.UniqueConstraint("portfolio_id", "broker", name=op.f("uq_portfolios_portfolio_id_broker")),
        sa.ForeignKeyConstraint(["strategy_id"], ["strategies.strategy_id"], name=op.f("fk_portfolios_strategy_id")),
        _is_text(table, "portfolio_id", _PLAIN, 128),
        _is_text(table, "broker", _LOWER, 32),
        _is_text(table, "currency", "[A-Z]{3}", 3),
        _is_text(table, "name", _PLAIN, 200),
        _is_instant(table, "created_at"),
    )
    op.create_index(op.f("ix_portfolios_strategy_id"), table, ["strategy_id"])


def _create_portfolio_snapshots() -> None:
    table = "portfolio_snapshots"
    amounts = ("cash", "realized_pnl", "unrealized_pnl", "total_pnl", "equity")
    op.create_table(
        table,
        _text("portfolio_id"),
        _instant("snapshot_time", default=False),
        _text("broker"),
        _json("positions", default="[]"),
        *(_money(amount) for amount in amounts),
        sa.PrimaryKeyConstraint("portfolio_id", "snapshot_time", name=op.f("pk_portfolio_snapshots")),
        sa.ForeignKeyConstraint(
            ["portfolio_id", "broker"],
            ["portfolios.portfolio_id", "portfolios.broker"],
            name=op.f("fk_portfolio_snapshots_portfolio_id_broker"),
        ),
        _is_instant(table, "snapshot_time"),
        _check(table, "positions", _POSITIONS),
        *(_is_number(table, amount) for amount in amounts),
        _check(table, "total", "total_pnl = realized_pnl + unrealized_pnl"),
        postgresql_partition_by="RANGE (snapshot_time)",
    )
