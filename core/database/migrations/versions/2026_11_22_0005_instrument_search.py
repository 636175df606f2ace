"""Indexes by which instruments are searched: symbols by kind, contracts that are active apart from those that were, words."""

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None

lock_timeout: float = 2.0
statement_timeout: float = 600.0

_TABLE = "instruments"
_CONTRACT = "underlying IS NOT NULL"
_NO_OPTION = "instrument_type <> 'OPT'"
_WORDS = "(regexp_replace(upper(trading_symbol || ' ' || coalesce(name, '')), '[^A-Z0-9]+', ' ', 'g')::tsvector)"


def upgrade() -> None:
    op.create_index(
        "ix_instruments_contract",
        _TABLE,
        ["underlying", "is_active", "expiry", "strike"],
        postgresql_where=sa.text(_CONTRACT),
        postgresql_concurrently=True,
    )
    op.create_index(
        "ix_instruments_symbol",
        _TABLE,
        ["is_active", "instrument_type", sa.text("upper(trading_symbol)")],
        postgresql_where=sa.text(_NO_OPTION),
        postgresql_concurrently=True,
    )
    op.create_index(
        "ix_instruments_words",
        _TABLE,
        [sa.text(_WORDS)],
        postgresql_using="gin",
        postgresql_where=sa.text(_NO_OPTION),
        postgresql_with={"fastupdate": "off"},
        postgresql_concurrently=True,
    )
    op.drop_index("ix_instruments_underlying_expiry_strike", _TABLE, postgresql_concurrently=True)


def downgrade() -> None:
    op.create_index(
        "ix_instruments_underlying_expiry_strike",
        _TABLE,
        ["underlying", "expiry", "strike"],
        postgresql_where=sa.text(_CONTRACT),
        postgresql_concurrently=True,
    )
    for name in ("ix_instruments_words", "ix_instruments_symbol", "ix_instruments_contract"):
        op.drop_index(name, _TABLE, postgresql_concurrently=True)
