"""The table as plain SQLAlchemy maps it, and as this project's column types do."""

import datetime as dt
from decimal import Decimal

from sqlalchemy import BigInteger, DateTime, Numeric
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from core.database.types import Money, UtcDateTime

__all__ = ["PandaInstrument", "PlainInstrument"]


class _PlainBase(DeclarativeBase):
    pass


class _PandaBase(DeclarativeBase):
    pass


class PlainInstrument(_PlainBase):
    __tablename__ = "bench_instruments"

    token: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    symbol: Mapped[str]
    name: Mapped[str]
    exchange: Mapped[str]
    kind: Mapped[str]
    strike: Mapped[Decimal] = mapped_column(Numeric(28, 10))
    tick_size: Mapped[Decimal] = mapped_column(Numeric(28, 10))
    lot_size: Mapped[int]
    expiry: Mapped[dt.date]
    is_active: Mapped[bool]
    updated_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True))


class PandaInstrument(_PandaBase):
    __tablename__ = "bench_instruments"

    token: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    symbol: Mapped[str]
    name: Mapped[str]
    exchange: Mapped[str]
    kind: Mapped[str]
    strike: Mapped[Decimal] = mapped_column(Money())
    tick_size: Mapped[Decimal] = mapped_column(Money())
    lot_size: Mapped[int]
    expiry: Mapped[dt.date]
    is_active: Mapped[bool]
    updated_at: Mapped[dt.datetime] = mapped_column(UtcDateTime())
