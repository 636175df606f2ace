"""Portfolios and their history, partitioned by month."""

from datetime import UTC, date, datetime
from decimal import Decimal

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from core.database.errors import InvalidInput
from core.database.models._base import Base, instant_check, money_check, text_check
from core.database.models._strategies import Strategy
from core.database.records import BROKER_RULE, CURRENCY_RULE, IDENTIFIER_RULE, LABEL_RULE, Positions
from core.database.types import Document, Money, Text, UtcDateTime

# An array of objects whose amounts are text. Strict finds what is no object, since a lax path looks into arrays; lax finds
# what an object lacks, since a strict path finds a missing key unknown.
_POSITIONS = """
    jsonb_typeof(positions) = 'array'
    AND NOT jsonb_path_exists(positions, 'strict $[*] ? (@.type() != "object")', silent => true)
    AND NOT jsonb_path_exists(positions, 'lax $[*] ? (!(
        @.instrument_token.type() == "number" && @.quantity.type() == "string" && @.average_price.type() == "string"
        && @.last_price.type() == "string" && @.pnl.type() == "string"))')
"""


class Portfolio(Base):
    """A portfolio with one broker, in one currency. Its key is chosen by the application and never changes."""

    __tablename__ = "portfolios"

    portfolio_id: Mapped[str] = mapped_column(Text(IDENTIFIER_RULE.max_length), primary_key=True)
    broker: Mapped[str] = mapped_column(Text(BROKER_RULE.max_length))
    strategy_id: Mapped[str | None] = mapped_column(
        Text(IDENTIFIER_RULE.max_length), ForeignKey("strategies.strategy_id"), index=True
    )
    currency: Mapped[str] = mapped_column(Text(CURRENCY_RULE.max_length))
    name: Mapped[str] = mapped_column(Text(LABEL_RULE.max_length))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime(), server_default=func.now())

    strategy: Mapped[Strategy | None] = relationship(lazy="raise")

    __table_args__ = (
        text_check("portfolio_id", IDENTIFIER_RULE),
        text_check("broker", BROKER_RULE),
        text_check("currency", CURRENCY_RULE),
        text_check("name", LABEL_RULE),
        instant_check("created_at"),
        UniqueConstraint("portfolio_id", "broker"),  # what holds a snapshot's broker to its portfolio's
    )


class PortfolioSnapshot(Base):
    """A portfolio at one time: append-only, money in the portfolio's currency, `broker` that of the portfolio.

    Partitioned by UTC month without a default partition: a month's partition is made before its first row, with
    `snapshot_partition_ddl`; without it the insert fails.
    """

    __tablename__ = "portfolio_snapshots"

    portfolio_id: Mapped[str] = mapped_column(Text(IDENTIFIER_RULE.max_length), primary_key=True)
    snapshot_time: Mapped[datetime] = mapped_column(UtcDateTime(), primary_key=True)
    broker: Mapped[str] = mapped_column(Text(BROKER_RULE.max_length))
    positions: Mapped[Positions] = mapped_column(Document(Positions), server_default=text("'[]'"))
    cash: Mapped[Decimal] = mapped_column(Money())
    realized_pnl: Mapped[Decimal] = mapped_column(Money())
    unrealized_pnl: Mapped[Decimal] = mapped_column(Money())
    total_pnl: Mapped[Decimal] = mapped_column(Money())
    equity: Mapped[Decimal] = mapped_column(Money())

    portfolio: Mapped[Portfolio] = relationship(lazy="raise")

    __table_args__ = (
        ForeignKeyConstraint(["portfolio_id", "broker"], ["portfolios.portfolio_id", "portfolios.broker"]),
        instant_check("snapshot_time"),
        CheckConstraint(_POSITIONS, name="positions"),
        *(money_check(column) for column in ("cash", "realized_pnl", "unrealized_pnl", "total_pnl", "equity")),
        CheckConstraint("total_pnl = realized_pnl + unrealized_pnl", name="total"),
        {"postgresql_partition_by": "RANGE (snapshot_time)"},
    )


def snapshot_partition_name(month: date) -> str:
    """The name of the partition of a month: any day in it, or an aware datetime, taken in UTC."""
    first = _first_of(month)
    return f"portfolio_snapshots_y{first.year:04}m{first.month:02}"


def snapshot_partition_ddl(month: date) -> str:
    """The statement that makes a month's partition unless it is there; the caller holds the lock and commits."""
    first = _first_of(month)
    # The month after December 9999 is one that Python's calendar does not have and PostgreSQL's does.
    year, following = (first.year + 1, 1) if first.month == 12 else (first.year, first.month + 1)
    return (
        f"CREATE TABLE IF NOT EXISTS {snapshot_partition_name(month)} PARTITION OF portfolio_snapshots "
        f"FOR VALUES FROM ('{first.isoformat()} 00:00:00+00') TO ('{year:04}-{following:02}-01 00:00:00+00')"
    )


def _first_of(month: date) -> date:
    if isinstance(month, datetime):
        if month.utcoffset() is None:
            raise InvalidInput("a naive datetime belongs to no month; give it a time zone")
        month = month.astimezone(UTC).date()
    return month.replace(day=1)
