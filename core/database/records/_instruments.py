"""Instruments and what they were."""

from typing import Self

from pydantic import Field, model_validator

from core.database.errors import InvalidInput
from core.database.records._base import ReadRecord, Record
from core.database.records._documents import InstrumentAttributes
from core.database.records._values import (
    AwareUtc,
    BrokerName,
    CalendarDate,
    InstrumentToken,
    InstrumentType,
    Label,
    LotSize,
    MoneyValue,
    OptionType,
    Strike,
    Symbol,
    TickSize,
    Venue,
)


class InstrumentState(Record):
    """What a broker's file says about an instrument, prices aside.

    A derivative (FUT, OPT) has an expiry, an option also `option_type` and a strike; nothing else has them.
    """

    instrument_token: InstrumentToken
    source: BrokerName
    exchange: Venue
    exchange_token: Label | None = None
    trading_symbol: Symbol
    name: Label | None = None
    segment: Venue
    instrument_type: InstrumentType
    underlying: Symbol | None = None
    option_type: OptionType | None = None
    tick_size: TickSize | None = None
    lot_size: LotSize | None = None
    expiry: CalendarDate | None = None
    strike: Strike | None = None
    is_active: bool = True
    attributes: InstrumentAttributes = Field(default_factory=InstrumentAttributes)

    @model_validator(mode="after")
    def _derivative(self) -> Self:
        option = self.instrument_type == "OPT"
        if option != (self.option_type is not None):
            raise InvalidInput("option_type is given for options (OPT), and for them only")
        if option != (self.strike is not None):
            raise InvalidInput("strike is given for options (OPT), and for them only")
        if (self.instrument_type in {"FUT", "OPT"}) != (self.expiry is not None):
            raise InvalidInput("expiry is given for derivatives (FUT, OPT), and for them only")
        return self


class InstrumentCreate(InstrumentState):
    last_price: MoneyValue | None = None


class InstrumentRead(InstrumentCreate, ReadRecord):
    valid_from: AwareUtc
    created_at: AwareUtc
    updated_at: AwareUtc


class InstrumentVersionCreate(InstrumentState):
    """What an instrument was from `valid_from` until just before `valid_to`."""

    valid_from: AwareUtc
    valid_to: AwareUtc

    @model_validator(mode="after")
    def _period(self) -> Self:
        if self.valid_to <= self.valid_from:
            raise InvalidInput("valid_to must be after valid_from")
        return self


class InstrumentVersionRead(InstrumentVersionCreate, ReadRecord):
    pass
