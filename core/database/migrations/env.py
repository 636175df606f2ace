"""Alembic's entry: runs on the connection and metadata handed in by `core.database.schema`; reads no URL and no file."""

from alembic import context

_handed = context.config.attributes

context.configure(
    connection=_handed["connection"],
    dialect_name="postgresql+asyncpg",  # of a rendering without a connection
    target_metadata=_handed["metadata"],
    transaction_per_migration=True,
    literal_binds=context.is_offline_mode(),
)
with context.begin_transaction():
    context.run_migrations()
