"""The instrument master and what it was."""

from datetime import date, datetime
from decimal import Decimal

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, func, text, true
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
from core.database.records import BROKER_RULE, LABEL_RULE, VENUE_RULE, InstrumentAttributes, RejectedLines
from core.database.types import Boolean, Date, Document, Integer64, Money, Text, TextArray, UtcDateTime

INSTRUMENT_WORDS = (
    "regexp_replace(upper(trading_symbol || ' ' || coalesce(name, '')), '[^A-Z0-9]+', ' ', 'g')::tsvector"
)
"""The words of an instrument in SQL: runs of letters and digits of its symbol and its name, in capitals."""


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

    `source` names whose file, `exchange` the venue, `exchange_token` the token there as text. A source whose keys are text
    has them in `broker_key`, and `instrument_token` is a number of the loader's making that stays theirs for ever; it lies
    above 2**52, beyond any broker's own. `valid_from` is when the present state began; what it
    was before stands in `InstrumentVersion`. A symbol may repeat, in time and even within a file.
    """

    __tablename__ = "instruments"

    instrument_token: Mapped[int] = mapped_column(Integer64(), primary_key=True, autoincrement=False, sort_order=-1)
    last_price: Mapped[Decimal | None] = mapped_column(Money(), sort_order=1)
    broker_key: Mapped[str | None] = mapped_column(Text(LABEL_RULE.max_length), sort_order=2)
    valid_from: Mapped[datetime] = mapped_column(UtcDateTime(), server_default=func.now(), sort_order=1)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime(), server_default=func.now(), sort_order=1)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime(), server_default=func.now(), onupdate=now, sort_order=1)

    __table_args__ = (
        *_state_checks(),
        money_check("last_price"),
        text_check("broker_key", LABEL_RULE),
        instant_check("created_at"),
        instant_check("updated_at"),
        Index("ix_instruments_trading_symbol_exchange", "trading_symbol", "exchange"),
        Index(
            "ix_instruments_contract",
            "underlying",
            "is_active",
            "expiry",
            "strike",
            postgresql_where=text("underlying IS NOT NULL"),
        ),
        Index(
            "ix_instruments_symbol",
            "is_active",
            "instrument_type",
            text("upper(trading_symbol)"),
            postgresql_where=text("instrument_type <> 'OPT'"),
        ),
        # Without its list of pending entries, which every search after a load would have to read.
        Index(
            "ix_instruments_words",
            text(f"({INSTRUMENT_WORDS})"),
            postgresql_using="gin",
            postgresql_where=text("instrument_type <> 'OPT'"),
            postgresql_with={"fastupdate": "off"},
        ),
        Index(
            "ix_instruments_source_broker_key",
            "source",
            "broker_key",
            unique=True,
            postgresql_where=text("broker_key IS NOT NULL"),
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


_COUNTS = (
    "rows",
    "added",
    "changed",
    "attributes_changed",
    "renamed",
    "deactivated",
    "reactivated",
    "unchanged",
    "repriced",
    "duplicates",
    "rejected",
)


class InstrumentLoad(Base):
    """A load that was stored: whose file, of which day, and what it did. Written once, in the load's transaction.

    `digest` is the SHA-256 of the file's content, `reading` of the mapping by which it was read; both in hexadecimal.
    """

    __tablename__ = "instrument_loads"

    load_id: Mapped[int] = mapped_column(Integer64(), Identity(always=True), primary_key=True)
    source: Mapped[str] = mapped_column(Text(BROKER_RULE.max_length))
    exchanges: Mapped[list[str]] = mapped_column(TextArray(VENUE_RULE.max_length))
    trading_date: Mapped[date] = mapped_column(Date())
    format: Mapped[str] = mapped_column(Text(BROKER_RULE.max_length))
    digest: Mapped[str] = mapped_column(Text(64))
    reading: Mapped[str] = mapped_column(Text(64))
    rows: Mapped[int] = mapped_column(Integer64())
    added: Mapped[int] = mapped_column(Integer64())
    changed: Mapped[int] = mapped_column(Integer64())
    attributes_changed: Mapped[int] = mapped_column(Integer64())
    renamed: Mapped[int] = mapped_column(Integer64())
    deactivated: Mapped[int] = mapped_column(Integer64())
    reactivated: Mapped[int] = mapped_column(Integer64())
    unchanged: Mapped[int] = mapped_column(Integer64())
    repriced: Mapped[int] = mapped_column(Integer64())
    duplicates: Mapped[int] = mapped_column(Integer64())
    rejected: Mapped[int] = mapped_column(Integer64())
    rejected_rows: Mapped[RejectedLines] = mapped_column(Document(RejectedLines), server_default=text("'[]'"))
    milliseconds: Mapped[int] = mapped_column(Integer64())
    loaded_at: Mapped[datetime] = mapped_column(UtcDateTime(), server_default=func.now())

    __table_args__ = (
        text_check("source", BROKER_RULE),
        date_check("trading_date"),
        text_check("format", BROKER_RULE),
        CheckConstraint("digest ~ '^[0-9a-f]{64}$'", name="digest"),
        CheckConstraint("reading ~ '^[0-9a-f]{64}$'", name="reading"),
        CheckConstraint(" AND ".join(f"{name} >= 0" for name in (*_COUNTS, "milliseconds")), name="counts"),
        CheckConstraint("jsonb_typeof(rejected_rows) = 'array'", name="rejected_rows"),
        instant_check("loaded_at"),
        Index("ix_instrument_loads_source_load_id", "source", "load_id"),
    )
