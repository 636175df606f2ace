"""The instrument master and what it was."""

from datetime import date, datetime
from decimal import Decimal

from sqlalchemy import CheckConstraint, ForeignKey, Index, func, text, true
from sqlalchemy.orm import Mapped, mapped_column, relationship

from core.database.models._base import (
    Base,
    date_check,
    instant_check,
    money_check,
    now,
    object_check,
    text_check,
)
from core.database.records import BROKER_RULE, LABEL_RULE, VENUE_RULE, InstrumentAttributes
from core.database.types import Boolean, Date, Document, Integer64, Money, Text, UtcDateTime


class _InstrumentState:
    """What a broker's file says about an instrument, its last price aside."""

    source: Mapped[str] = mapped_column(Text(BROKER_RULE.max_length))
    exchange: Mapped[str] = mapped_column(Text(VENUE_RULE.max_length))
    exchange_token: Mapped[str | None] = mapped_column(Text(LABEL_RULE.max_length))
    trading_symbol: Mapped[str] = mapped_column(Text(LABEL_RULE.max_length))
    name: Mapped[str | None] = mapped_column(Text(LABEL_RULE.max_length))
    segment: Mapped[str] = mapped_column(Text(VENUE_RULE.max_length))
    instrument_type: Mapped[str] = mapped_column(Text(3))
    underlying: Mapped[str | None] = mapped_column(Text(LABEL_RULE.max_length))
    option_type: Mapped[str | None] = mapped_column(Text(2))
    tick_size: Mapped[Decimal | None] = mapped_column(Money())
    lot_size: Mapped[int | None] = mapped_column(Integer64())
    expiry: Mapped[date | None] = mapped_column(Date())
    strike: Mapped[Decimal | None] = mapped_column(Money())
    is_active: Mapped[bool] = mapped_column(Boolean(), server_default=true())
    attributes: Mapped[InstrumentAttributes] = mapped_column(
        Document(InstrumentAttributes), server_default=text("'{}'")
    )


def _state_checks() -> tuple[CheckConstraint, ...]:
    return (
        text_check("source", BROKER_RULE),
        text_check("exchange", VENUE_RULE),
        text_check("exchange_token", LABEL_RULE),
        text_check("trading_symbol", LABEL_RULE),
        text_check("name", LABEL_RULE),
        text_check("segment", VENUE_RULE),
        CheckConstraint("instrument_type IN ('EQ', 'FUT', 'OPT', 'IDX')", name="instrument_type"),
        text_check("underlying", LABEL_RULE),
        CheckConstraint(
            "option_type IN ('CE', 'PE') AND (instrument_type = 'OPT') = (option_type IS NOT NULL)", name="option_type"
        ),
        money_check("tick_size", " AND tick_size >= 0"),
        CheckConstraint("lot_size >= 0", name="lot_size"),
        date_check("expiry"),
        CheckConstraint("(instrument_type IN ('FUT', 'OPT')) = (expiry IS NOT NULL)", name="expiry_given"),
        money_check("strike", " AND strike > 0"),
        CheckConstraint("(instrument_type = 'OPT') = (strike IS NOT NULL)", name="strike_given"),
        object_check("attributes"),
        instant_check("valid_from"),
    )


class Instrument(_InstrumentState, Base):
    """An instrument as its broker's file says now; one that has left the file is kept, not active.

    `source` names whose file, `exchange` the venue, `exchange_token` the token there as text; sources whose tokens are
    text give `instrument_token` a number of the loader's making. `valid_from` is when the present state began; what it
    was before stands in `InstrumentVersion`. A symbol may repeat, in time and even within a file.
    """

    __tablename__ = "instruments"

    instrument_token: Mapped[int] = mapped_column(Integer64(), primary_key=True, autoincrement=False, sort_order=-1)
    last_price: Mapped[Decimal | None] = mapped_column(Money(), sort_order=1)
    valid_from: Mapped[datetime] = mapped_column(UtcDateTime(), server_default=func.now(), sort_order=1)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime(), server_default=func.now(), sort_order=1)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime(), server_default=func.now(), onupdate=now, sort_order=1)

    __table_args__ = (
        *_state_checks(),
        money_check("last_price"),
        instant_check("created_at"),
        instant_check("updated_at"),
        Index("ix_instruments_trading_symbol_exchange", "trading_symbol", "exchange"),
        Index(
            "ix_instruments_underlying_expiry_strike",
            "underlying",
            "expiry",
            "strike",
            postgresql_where=text("underlying IS NOT NULL"),
        ),
    )


class InstrumentVersion(_InstrumentState, Base):
    """What an instrument was from `valid_from` until just before `valid_to`; written when the state is superseded.

    The present state is in `Instrument` alone, so that a first load writes each row once. As of a time, an instrument is
    its `Instrument` if `valid_from` is not later, else the version whose period holds the time.
    """

    __tablename__ = "instrument_versions"

    instrument_token: Mapped[int] = mapped_column(
        Integer64(),
        ForeignKey("instruments.instrument_token"),
        primary_key=True,
        autoincrement=False,
        sort_order=-2,
    )
    valid_from: Mapped[datetime] = mapped_column(UtcDateTime(), primary_key=True, sort_order=-1)
    valid_to: Mapped[datetime] = mapped_column(UtcDateTime(), sort_order=1)

    instrument: Mapped[Instrument] = relationship(lazy="raise")

    __table_args__ = (
        *_state_checks(),
        instant_check("valid_to"),
        CheckConstraint("valid_to > valid_from", name="period"),
        Index("ix_instrument_versions_trading_symbol_exchange", "trading_symbol", "exchange"),
    )
