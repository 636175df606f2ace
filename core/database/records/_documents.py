"""The documents inside JSONB columns."""

from pydantic import BaseModel, ConfigDict

from core.database.records._values import InstrumentToken, MoneyValue
from core.database.types import DocumentList, JsonObject


class Position(BaseModel):
    """One holding at the time of a snapshot. `quantity` is negative when short; money is in the portfolio's currency."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, hide_input_in_errors=True, revalidate_instances="always"
    )

    instrument_token: InstrumentToken
    quantity: MoneyValue
    average_price: MoneyValue
    last_price: MoneyValue
    pnl: MoneyValue


class Positions(DocumentList[Position]):
    """`portfolio_snapshots.positions`: the holdings, Decimals as text."""


class SessionData(JsonObject):
    """`trading_sessions.session_data`: what the application notes about a session. Never a token or a password."""


class StrategyConfig(JsonObject):
    """`strategies.config`: how a strategy is set up."""


class StrategyParameters(JsonObject):
    """`strategies.parameters`: the numbers that a strategy works with."""


class InstrumentAttributes(JsonObject):
    """`instruments.attributes`: the broker's other columns, as they came."""


class RejectedLine(BaseModel):
    """A row of a broker's file that a load left out: where it stood and what was wrong with which field."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, hide_input_in_errors=True, revalidate_instances="always"
    )

    line: int
    field: str
    reason: str


class RejectedLines(DocumentList[RejectedLine]):
    """`instrument_loads.rejected_rows`: the first of them, by line."""
