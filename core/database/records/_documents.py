"""The documents inside JSONB columns."""

from decimal import Context, Decimal

from pydantic import BaseModel, ConfigDict, Field

from core.database.records._values import InstrumentToken, MoneyValue
from core.database.types import DocumentList, JsonObject

EXACT = Context(prec=200)
"""Sums and products of amounts without rounding, whatever the caller's decimal context is."""


def _absent(value: object) -> bool:
    return value is None


class Position(BaseModel):
    """One holding at the time of a snapshot. `quantity` is negative when short; money is in the portfolio's currency.

    `market_value` is what the holding adds to the portfolio's equity. Without it that is quantity x last price, as for shares;
    of a derivative on margin it usually is the P&L. The JSON has no such key where it is None.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, hide_input_in_errors=True, revalidate_instances="always"
    )

    instrument_token: InstrumentToken
    quantity: MoneyValue
    average_price: MoneyValue
    last_price: MoneyValue
    pnl: MoneyValue
    market_value: MoneyValue | None = Field(default=None, exclude_if=_absent)

    def worth(self) -> Decimal:
        """What the holding adds to equity, exact: up to 20 decimals where quantity and price have ten."""
        if self.market_value is not None:
            return self.market_value
        return EXACT.multiply(self.quantity, self.last_price)


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
