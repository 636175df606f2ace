"""The database's schema: where it stands, how it gets to where this release wants it, and what is really there.

The state is read in one round trip, without Alembic. Migrations run under a lock that lets one process at a time change a
database, each in a transaction of its own; every function here that changes something owns its transactions.

A database is stamped in Alembic's own table `alembic_version` and nowhere else.
"""

from core.database.schema._catalog import Catalog, CatalogEntry, catalog, differences
from core.database.schema._migrate import downgrade, history, plan, preview, upgrade
from core.database.schema._prepare import prepare
from core.database.schema._scripts import Revision
from core.database.schema._state import SchemaState, Status, inspect, verify

__all__ = [
    "Catalog",
    "CatalogEntry",
    "Revision",
    "SchemaState",
    "Status",
    "catalog",
    "differences",
    "downgrade",
    "history",
    "inspect",
    "plan",
    "prepare",
    "preview",
    "upgrade",
    "verify",
]
