"""Encryption canaries: which keys have sealed secrets here, and whether a ring still holds them."""

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None

_TABLE = "encryption_canaries"
_ENVELOPE = r"""substring(envelope, 1, 1) = '\x01' AND octet_length(envelope) BETWEEN 49 AND 80
    AND get_byte(envelope, 1) = length(key_id)
    AND encode(substring(envelope, 3, length(key_id)), 'escape') = key_id"""


def upgrade() -> None:
    op.create_table(
        _TABLE,
        sa.Column("key_id", sa.Text(collation="C"), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("key_id", name=op.f(f"pk_{_TABLE}")),
        _check("key_id", "key_id ~ '^[A-Za-z0-9][A-Za-z0-9._-]*$' AND length(key_id) <= 32"),
        _check("envelope", _ENVELOPE),
        _check("created_at", "created_at > '0001-01-01 00:00:00+00' AND created_at < '9999-12-31 23:59:59.999999+00'"),
    )


def downgrade() -> None:
    op.drop_table(_TABLE)


def _check(column: str, condition: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(condition, name=op.f(f"ck_{_TABLE}_{column}"))
