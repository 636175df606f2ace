"""Portfolios and their history."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, NamedTuple, Self, cast

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from core.database.errors import InvalidInput
from core.database.records._base import ReadRecord, Record
from core.database.records._documents import EXACT, Position, Positions
from core.database.records._values import AwareUtc, BrokerName, Currency, Identifier, Label, MoneyValue
from core.database.types import MONEY_SCALE, invalid_input, round_money

_STEP = Decimal(1).scaleb(-MONEY_SCALE)
_SHOWN_PLACES = 20  # as many as a quantity times a price can have
_SNAPSHOT_MONEY = ("cash", "realized_pnl", "unrealized_pnl", "total_pnl", "equity")
_POSITION_MONEY = ("quantity", "average_price", "last_price", "pnl", "market_value")


class PortfolioCreate(Record):
    """A portfolio; its key is chosen by the application and never changes."""

    portfolio_id: Identifier
    broker: BrokerName
    strategy_id: Identifier | None = None
    currency: Currency
    name: Label


class PortfolioRead(PortfolioCreate, ReadRecord):
    created_at: AwareUtc


def _sum_of_pnl(given: dict[str, Any]) -> Decimal:
    return EXACT.add(given["realized_pnl"], given["unrealized_pnl"])


class _NoEquity(NamedTuple):
    reason: str


def _derived_equity(given: dict[str, Any]) -> Any:
    """The sum, or why there is none: what a default's factory raises would be no ValidationError."""
    positions: Positions = given["positions"]
    if not len(positions):
        return _NoEquity("must be given where there are no positions to derive it from")
    exact = _worth(given["cash"], positions)
    if exact != EXACT.quantize(exact, _STEP):
        return _NoEquity(
            f"cash and positions come to {_shown(exact)}, which has more than {MONEY_SCALE} digits after the point; "
            "give equity, or the positions' market_value, rounded with round_money()"
        )
    return exact


def _there_is_equity(value: Any) -> Any:
    if isinstance(value, _NoEquity):
        raise InvalidInput(value.reason)
    return value


def _worth(cash: Decimal, positions: Positions) -> Decimal:
    for position in positions:
        cash = EXACT.add(cash, position.worth())
    return cash


def _agree(equity: Decimal, exact: Decimal) -> bool:
    """Whether they are the same at ten decimals, however the last of them was rounded."""
    return abs(EXACT.subtract(equity, exact)) < _STEP


def _shown(amount: Decimal) -> str:
    shown = f"{EXACT.quantize(amount, Decimal(1).scaleb(-_SHOWN_PLACES)):f}"
    return shown.rstrip("0").rstrip(".")


class Rounding(NamedTuple):
    """An amount that was changed to fit: `field` is a path such as equity or positions.0.average_price."""

    field: str
    given: Decimal
    stored: Decimal


class _Snapshot(Record):
    """What is stored of a portfolio at one time."""

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
        if self.total_pnl != EXACT.add(self.realized_pnl, self.unrealized_pnl):
            raise InvalidInput("total_pnl must be realized_pnl + unrealized_pnl")
        return self


class PortfolioSnapshotCreate(_Snapshot):
    """A portfolio at one time, money in the portfolio's currency.

    `total_pnl` is the sum of the two others. Where there are positions `equity` is cash and what they are worth
    (`Position.worth`): derived exactly if left out, and compared at ten decimals if given. Without positions it is taken as it
    is given. Amounts of more than ten decimals are refused; `rounded` takes them.
    """

    equity: Annotated[MoneyValue, BeforeValidator(_there_is_equity)] = Field(
        default_factory=_derived_equity, validate_default=True
    )

    @model_validator(mode="after")
    def _equity(self) -> Self:
        self.check_equity()
        return self

    def check_equity(self) -> None:
        """Raise `InvalidInput` where equity and positions contradict each other, as a list of positions changed since may."""
        if not len(self.positions):
            return
        exact = _worth(self.cash, self.positions)
        if not _agree(self.equity, exact):
            raise InvalidInput(
                f"equity is {_shown(self.equity)}, but cash and positions come to {_shown(exact)}; leave equity out to have it"
                " derived, or give the market_value of positions that are not worth quantity x last_price",
                column="equity",
            )

    @classmethod
    def rounded(cls, **values: Any) -> "RoundedSnapshot":
        """The record of `values` with every amount rounded half-even to ten decimals, and what was changed by that.

        A position whose quantity or last price is rounded gets the market value of the figures given; sums are formed of
        rounded amounts. Raises `InvalidInput`, also where the figures given contradict each other by 1E-10 or more.
        """
        try:
            return _rounded(cls, dict(values))
        except ValidationError as fault:
            raise invalid_input(fault) from None


class PortfolioSnapshotRead(_Snapshot, ReadRecord):
    """A snapshot as it is stored, whoever stored it: equity is not compared with the positions."""


class RoundedSnapshot(NamedTuple):
    """What `PortfolioSnapshotCreate.rounded` makes."""

    snapshot: PortfolioSnapshotCreate
    changes: tuple[Rounding, ...]


def _rounded(cls: type[PortfolioSnapshotCreate], values: dict[str, Any]) -> RoundedSnapshot:
    changes: list[Rounding] = []
    given = {name: values[name] for name in _SNAPSHOT_MONEY if values.get(name) is not None}
    exact_worth = Decimal(0)
    if values.get("positions") is not None:
        positions = [_members(one) for one in values["positions"]]
        for place, position in enumerate(positions):
            exact_worth = EXACT.add(exact_worth, _round_position(position, f"positions.{place}.", changes))
        values["positions"] = Positions.model_validate(positions)
    for name, amount in given.items():
        values[name] = _round(amount, name, changes)
    if "total_pnl" in given and {"realized_pnl", "unrealized_pnl"} <= given.keys():
        _settle(values, "total_pnl", _sum_of_pnl(given), _sum_of_pnl(values), changes)
    if values.get("positions") and "cash" in given:
        exact = EXACT.add(given["cash"], exact_worth)
        _settle(values, "equity", exact, round_money(_worth(values["cash"], values["positions"])), changes)
    return RoundedSnapshot(cls(**values), tuple(changes))


def _settle(values: dict[str, Any], name: str, exact: Decimal, stored: Decimal, changes: list[Rounding]) -> None:
    """Let a sum be that of the rounded amounts, once it is known to be the sum of those given."""
    noted = next((change for change in changes if change.field == name), None)
    given = noted.given if noted is not None else values.get(name)
    if given is not None and not _agree(given, exact):
        raise InvalidInput(f"{name} is {_shown(given)}, but its parts come to {_shown(exact)}", column=name)
    if noted is not None:
        changes.remove(noted)
    given = exact if given is None else given
    if given != stored:
        changes.append(Rounding(name, given, stored))
    values[name] = stored


def _members(position: Any) -> dict[str, Any]:
    if isinstance(position, Position):
        return dict(position)
    if not isinstance(position, Mapping):
        raise InvalidInput(f"positions: takes positions, not {type(position).__name__}", column="positions")
    return dict(cast("Mapping[str, Any]", position))


def _round_position(position: dict[str, Any], path: str, changes: list[Rounding]) -> Decimal:
    """Round its amounts in place; what it was worth before."""
    before = {name: position[name] for name in _POSITION_MONEY if position.get(name) is not None}
    for name, amount in before.items():
        position[name] = _round(amount, path + name, changes)
    if "market_value" in before or not {"quantity", "last_price"} <= before.keys():
        return before.get("market_value", Decimal(0))
    exact = EXACT.multiply(before["quantity"], before["last_price"])
    if any(before[name] != position[name] for name in ("quantity", "last_price")):
        position["market_value"] = _round(exact, path + "market_value", changes)
    return exact


def _round(value: Any, field: str, changes: list[Rounding]) -> Decimal:
    try:
        stored = round_money(value)
    except InvalidInput as fault:
        raise InvalidInput(f"{field}: {fault.message}", column=field.partition(".")[0]) from None
    if stored != value:
        changes.append(Rounding(field, value, stored))
    return stored
