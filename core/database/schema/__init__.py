"""The database's schema: where it stands, how it gets to where this release wants it, and what is really there.

The state is read in one round trip, without Alembic. Migrations run under a lock that lets one process at a time change a
database, each in a transaction of its own; every function here that changes something owns its transactions.

A database is stamped in Alembic's own table `alembic_version` and nowhere else.
"""

from core.database.schema._adopt import Adoption, adopt, create_all
from core.database.schema._catalog import Catalog, CatalogEntry, catalog, differences
from core.database.schema._draft import draft, throwaway_engine
from core.database.schema._drift import Drift, drift
from core.database.schema._lint import Finding, lint
from core.database.schema._lock import migration_lock
from core.database.schema._migrate import downgrade, history, plan, preview, upgrade
from core.database.schema._new import Draft, new, require_writable
from core.database.schema._prepare import prepare
from core.database.schema._scripts import Revision
from core.database.schema._state import SchemaState, Status, inspect, verify
from core.database.schema._words import Difference

__all__ = [
    "Adoption",
    "Catalog",
    "CatalogEntry",
    "Difference",
    "Draft",
    "Drift",
    "Finding",
    "Revision",
    "SchemaState",
    "Status",
    "adopt",
    "catalog",
    "create_all",
    "differences",
    "downgrade",
    "draft",
    "drift",
    "history",
    "inspect",
    "lint",
    "migration_lock",
    "new",
    "plan",
    "prepare",
    "preview",
    "require_writable",
    "throwaway_engine",
    "upgrade",
    "verify",
]
