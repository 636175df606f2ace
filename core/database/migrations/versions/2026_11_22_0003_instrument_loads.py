"""Instrument loads: which file was loaded when and what it did; the broker's text key of an instrument."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None

lock_timeout: float = 2.0
statement_timeout: float = 600.0

_EDGE = r"[^\u0001-\u0020\u007f-\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_PLAIN = rf"{_EDGE}([^\u0001-\u001f\u007f-\u009f\u2028\u2029]*{_EDGE})?"
_NAME = "[a-z][a-z0-9_-]*"
_COUNTS = (
    "rows",
    "added",
    "changed",
    "attributes_changed",
    "renamed",
    "deactivated",
    "reactivated",
    "unchanged",
    "repriced",
    "duplicates",
    "rejected",
)


def upgrade() -> None:
    op.add_column("instruments", sa.Column("broker_key", sa.Text(collation="C")))
    op.create_check_constraint(
        op.f("ck_instruments_broker_key"),
        "instruments",
        f"broker_key ~ '^{_PLAIN}$' AND length(broker_key) <= 200",
        postgresql_not_valid=True,
    )
    table = "instrument_loads"
    op.create_table(
        table,
        sa.Column("load_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("source", sa.Text(collation="C"), nullable=False),
        sa.Column("exchanges", postgresql.ARRAY(sa.Text(), dimensions=1), nullable=False),
        sa.Column("trading_date", sa.Date(), nullable=False),
        sa.Column("format", sa.Text(collation="C"), nullable=False),
        sa.Column("digest", sa.Text(collation="C"), nullable=False),
        sa.Column("reading", sa.Text(collation="C"), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _COUNTS),
        sa.Column("rejected_rows", postgresql.JSONB(), nullable=False, server_default=sa.text("'[]'")),
        sa.Column("milliseconds", sa.BigInteger(), nullable=False),
        sa.Column("loaded_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("load_id", name=op.f(f"pk_{table}")),
        _check(table, "source", f"source ~ '^{_NAME}$' AND length(source) <= 32"),
        _check(table, "trading_date", "trading_date > '0001-01-01' AND trading_date < '9999-12-31'"),
        _check(table, "format", f"format ~ '^{_NAME}$' AND length(format) <= 32"),
        _check(table, "digest", "digest ~ '^[0-9a-f]{64}$'"),
        _check(table, "reading", "reading ~ '^[0-9a-f]{64}$'"),
        _check(table, "counts", " AND ".join(f"{name} >= 0" for name in (*_COUNTS, "milliseconds"))),
        _check(table, "rejected_rows", "jsonb_typeof(rejected_rows) = 'array'"),
        _check(
            table, "loaded_at", "loaded_at > '0001-01-01 00:00:00+00' AND loaded_at < '9999-12-31 23:59:59.999999+00'"
        ),
    )
    op.create_index("ix_instrument_loads_source_load_id", table, ["source", "load_id"])


def downgrade() -> None:
    op.drop_table("instrument_loads")
    op.drop_column("instruments", "broker_key")


def _check(table: str, name: str, condition: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(condition, name=op.f(f"ck_{table}_{name}"))
