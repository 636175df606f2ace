"""A schema of two tables in three revisions, so that tests of the machinery do not depend on the project's own tables."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import (
    DDL,
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Identity,
    Index,
    MetaData,
    Numeric,
    Table,
    Text,
    event,
)
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool

from core.config.options import PoolOptions, Timeouts
from core.database.engine import DatabaseUrl, EngineOptions, build_engine

QUICK = Timeouts(lock=0.3, migration=30.0, migration_lock=60.0)

ROW_SECURITY = "ALTER TABLE entry ENABLE ROW LEVEL SECURITY"
POLICY = "CREATE POLICY entry_all ON entry USING (amount <> 13)"

FIRST = '''"""Create the accounts."""

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None


def upgrade() -> None:
    op.create_table(
        "account",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.CheckConstraint("name NOT LIKE '%:%'", name="ck_account_name"),
    )


def downgrade() -> None:
    op.drop_table("account")
'''

SECOND = f'''"""Create the entries."""

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"


def upgrade() -> None:
    op.create_table(
        "entry",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("account_id", sa.BigInteger, sa.ForeignKey("account.id", name="fk_entry_account"), nullable=False),
        sa.Column("amount", sa.Numeric(28, 10), nullable=False),
    )
    op.execute("{ROW_SECURITY}")
    op.execute("{POLICY}")


def downgrade() -> None:
    op.drop_table("entry")
'''

THIRD = '''"""Index the entries without blocking writers."""

from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.create_index("ix_entry_account_id", "entry", ["account_id"], postgresql_concurrently=True)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.drop_index("ix_entry_account_id", "entry", postgresql_concurrently=True)
'''

REVISIONS = {
    "2026_01_05_0001_accounts.py": FIRST,
    "2026_02_05_0002_entries.py": SECOND,
    "2026_03_05_0003_entry_index.py": THIRD,
}


def metadata() -> MetaData:
    """The models that the three revisions lead to."""
    tables = MetaData()
    Table(
        "account",
        tables,
        Column("id", BigInteger, Identity(), primary_key=True),
        Column("name", Text, nullable=False),
        CheckConstraint("name NOT LIKE '%:%'", name="ck_account_name"),
    )
    entry = Table(
        "entry",
        tables,
        Column("id", BigInteger, Identity(), primary_key=True),
        Column("account_id", BigInteger, ForeignKey("account.id", name="fk_entry_account"), nullable=False),
        Column("amount", Numeric(28, 10), nullable=False),
        Index("ix_entry_account_id", "account_id"),
    )
    event.listen(entry, "after_create", DDL(ROW_SECURITY))
    event.listen(entry, "after_create", DDL(POLICY))
    return tables


def write(folder: Path, *, upto: int = 3, **more: str) -> Path:
    """The first `upto` revisions as files in `folder`, and further ones by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in list(REVISIONS.items())[:upto]:
        (folder / name).write_text(source)
    for name, source in more.items():
        (folder / f"{name}.py").write_text(source)
    return folder


def revision(number: str, after: str, upgrade: str, downgrade: str = "pass") -> str:
    """The source of a revision that does `upgrade`, statements separated by newlines."""
    body = upgrade.replace("\n", "\n    ")
    return (
        f'"""Do {number}."""\nimport time\nfrom alembic import op\nrevision: str = "{number}"\n'
        f'down_revision: str | None = "{after}"\n\ndef upgrade():\n    {body}\n\ndef downgrade():\n    {downgrade}\n'
    )


@asynccontextmanager
async def engine_on(url: str, **pool: int) -> AsyncGenerator[AsyncEngine]:
    """An engine as the manager makes it."""
    engine = build_engine(
        DatabaseUrl.parse(url), EngineOptions(pool=PoolOptions(**pool), application_name="schema-test")
    )
    try:
        yield engine
    finally:
        await engine.dispose()


def checked_out(engine: AsyncEngine) -> int:
    """How many connections of the engine's pool are in use."""
    pool = engine.sync_engine.pool
    assert isinstance(pool, QueuePool)
    return pool.checkedout()
