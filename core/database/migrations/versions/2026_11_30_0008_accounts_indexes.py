"""One session for a bearer, one number for a change; what the migration before could not check under its lock."""

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | None = None
depends_on: str | None = None

lock_timeout: float = 2.0
statement_timeout: float = 600.0

_CHECKS = {
    "users": ("username", "username_normalized"),
    "trading_sessions": ("bearer_hash", "end_reason", "last_seen_at", "told_expiry"),
    "strategy_revisions": ("changed_by",),
}


def upgrade() -> None:
    op.create_index(
        "uq_trading_sessions_bearer_hash",
        "trading_sessions",
        ["bearer_hash"],
        unique=True,
        postgresql_concurrently=True,
    )
    op.create_index(
        "uq_strategy_revisions_change_id",
        "strategy_revisions",
        ["change_id"],
        unique=True,
        postgresql_concurrently=True,
    )
    op.drop_index("uq_users_username_lower", "users", postgresql_concurrently=True)
    for table, names in _CHECKS.items():
        for name in names:
            op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT ck_{table}_{name}")


def downgrade() -> None:
    op.create_index(
        "uq_users_username_lower", "users", [sa.text("lower(username)")], unique=True, postgresql_concurrently=True
    )
    op.drop_index("uq_strategy_revisions_change_id", "strategy_revisions", postgresql_concurrently=True)
    op.drop_index("uq_trading_sessions_bearer_hash", "trading_sessions", postgresql_concurrently=True)
