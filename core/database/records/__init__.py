"""What goes into a table and comes out of it, as Pydantic models, and the documents inside JSONB.

`...Create` is a row on its way in, `...Read` one on its way out: no hash and no credential is in a `...Read`. A misfit
raises `pydantic.ValidationError`, which never shows the value; `types.invalid_input` makes an `InvalidInput` of it. The
rules are those of the tables' constraints: what a record takes the table takes, and what it refuses the table refuses.

Decimals are text in the records' JSON (`model_dump_json`), those of free-form documents too.
"""

from core.database.records._accounts import TradingSessionCreate, TradingSessionRead, UserCreate, UserRead
from core.database.records._base import ReadRecord, Record
from core.database.records._documents import (
    InstrumentAttributes,
    Position,
    Positions,
    SessionData,
    StrategyConfig,
    StrategyParameters,
)
from core.database.records._instruments import (
    InstrumentCreate,
    InstrumentRead,
    InstrumentVersionCreate,
    InstrumentVersionRead,
)
from core.database.records._portfolios import (
    PortfolioCreate,
    PortfolioRead,
    PortfolioSnapshotCreate,
    PortfolioSnapshotRead,
)
from core.database.records._strategies import (
    StrategyCreate,
    StrategyRead,
    StrategyRevisionCreate,
    StrategyRevisionRead,
)
from core.database.records._values import (
    BROKER_RULE,
    CURRENCY_RULE,
    IDENTIFIER_RULE,
    LABEL_RULE,
    NOTE_RULE,
    PASSWORD_HASH_RULE,
    USERNAME_RULE,
    VENUE_RULE,
    AwareUtc,
    BrokerName,
    CalendarDate,
    Currency,
    Identifier,
    InstrumentToken,
    InstrumentType,
    Label,
    LotSize,
    MoneyValue,
    Note,
    OptionType,
    PasswordHash,
    Strike,
    Symbol,
    TextRule,
    TickSize,
    UserId,
    Username,
    Venue,
    Version,
)

__all__ = [
    "BROKER_RULE",
    "CURRENCY_RULE",
    "IDENTIFIER_RULE",
    "LABEL_RULE",
    "NOTE_RULE",
    "PASSWORD_HASH_RULE",
    "USERNAME_RULE",
    "VENUE_RULE",
    "AwareUtc",
    "BrokerName",
    "CalendarDate",
    "Currency",
    "Identifier",
    "InstrumentAttributes",
    "InstrumentCreate",
    "InstrumentRead",
    "InstrumentToken",
    "InstrumentType",
    "InstrumentVersionCreate",
    "InstrumentVersionRead",
    "Label",
    "LotSize",
    "MoneyValue",
    "Note",
    "OptionType",
    "PasswordHash",
    "PortfolioCreate",
    "PortfolioRead",
    "PortfolioSnapshotCreate",
    "PortfolioSnapshotRead",
    "Position",
    "Positions",
    "ReadRecord",
    "Record",
    "SessionData",
    "StrategyConfig",
    "StrategyCreate",
    "StrategyParameters",
    "StrategyRead",
    "StrategyRevisionCreate",
    "StrategyRevisionRead",
    "Strike",
    "Symbol",
    "TextRule",
    "TickSize",
    "TradingSessionCreate",
    "TradingSessionRead",
    "UserCreate",
    "UserId",
    "UserRead",
    "Username",
    "Venue",
    "Version",
]
