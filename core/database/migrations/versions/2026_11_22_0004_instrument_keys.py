"""One instrument for each text key of a broker."""

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None

lock_timeout: float = 2.0
statement_timeout: float = 600.0


def upgrade() -> None:
    op.create_index(
        "ix_instruments_source_broker_key",
        "instruments",
        ["source", "broker_key"],
        unique=True,
        postgresql_where=sa.text("broker_key IS NOT NULL"),
        postgresql_concurrently=True,
    )
    op.execute("ALTER TABLE instruments VALIDATE CONSTRAINT ck_instruments_broker_key")


def downgrade() -> None:
    op.drop_index("ix_instruments_source_broker_key", "instruments", postgresql_concurrently=True)
