"""Portfolios and their history."""

from decimal import Context, Decimal
from typing import Any, Self

from pydantic import Field, model_validator

from core.database.errors import InvalidInput
from core.database.records._base import ReadRecord, Record
from core.database.records._documents import Positions
from core.database.records._values import AwareUtc, BrokerName, Currency, Identifier, Label, MoneyValue


class PortfolioCreate(Record):
    """A portfolio; its key is chosen by the application and never changes."""

    portfolio_id: Identifier
    broker: BrokerName
    strategy_id: Identifier | None = None
    currency: Currency
    name: Label


class PortfolioRead(PortfolioCreate, ReadRecord):
    created_at: AwareUtc


_add = Context(prec=40).add
"""Exact for any two amounts, whatever the caller's decimal context is."""


def _sum_of_pnl(given: dict[str, Any]) -> Decimal:
    return _add(given["realized_pnl"], given["unrealized_pnl"])


class PortfolioSnapshotCreate(Record):
    """A portfolio at one time, money in the portfolio's currency. `total_pnl` is the sum of the two others."""

    portfolio_id: Identifier
    broker: BrokerName
    snapshot_time: AwareUtc
    positions: Positions = Field(default_factory=Positions)
    cash: MoneyValue
    realized_pnl: MoneyValue
    unrealized_pnl: MoneyValue
    total_pnl: MoneyValue = Field(default_factory=_sum_of_pnl, validate_default=True)
    equity: MoneyValue

    @model_validator(mode="after")
    def _total(self) -> Self:
        if self.total_pnl != _add(self.realized_pnl, self.unrealized_pnl):
            raise InvalidInput("total_pnl must be realized_pnl + unrealized_pnl")
        return self


class PortfolioSnapshotRead(PortfolioSnapshotCreate, ReadRecord):
    pass
