"""The tables. Their rules are constraints, so that a row by ORM, COPY or raw SQL obeys the same ones.

No engine is here, and no queries but those by which `revisions` puts the changes of strategies on record. Constraints and indexes are named by convention: ck_, fk_, uq_, ix_ and pk_, then the
table and what it is about. Relationships order the writes of one flush and are loaded only when asked for
(`selectinload`); touching one that is not raises. There are no triggers: updated_at, versions and revisions come from the application.
"""

from core.database.models._accounts import (
    ENVELOPE_MAX_BYTES,
    AuthEvent,
    KnownSource,
    LoginDelay,
    TradingSession,
    User,
)
from core.database.models._base import NAMING_CONVENTION, Base
from core.database.models._encryption import EncryptionCanary
from core.database.models._instruments import INSTRUMENT_WORDS, Instrument, InstrumentLoad, InstrumentVersion
from core.database.models._isolation import (
    ISOLATED_TABLES,
    MAKE_RESTRICTED_ROLE,
    RESTRICTED_RIGHTS,
    RESTRICTED_ROLE,
)
from core.database.models._portfolios import (
    Portfolio,
    PortfolioSnapshot,
    snapshot_partition_ddl,
    snapshot_partition_name,
)
from core.database.models._strategies import Strategy, StrategyRevision
from core.database.models.revisions import listen as _listen_to_sessions

_listen_to_sessions()

__all__ = [
    "ENVELOPE_MAX_BYTES",
    "INSTRUMENT_WORDS",
    "ISOLATED_TABLES",
    "MAKE_RESTRICTED_ROLE",
    "NAMING_CONVENTION",
    "RESTRICTED_RIGHTS",
    "RESTRICTED_ROLE",
    "AuthEvent",
    "Base",
    "EncryptionCanary",
    "Instrument",
    "InstrumentLoad",
    "InstrumentVersion",
    "KnownSource",
    "LoginDelay",
    "Portfolio",
    "PortfolioSnapshot",
    "Strategy",
    "StrategyRevision",
    "TradingSession",
    "User",
    "snapshot_partition_ddl",
    "snapshot_partition_name",
]
