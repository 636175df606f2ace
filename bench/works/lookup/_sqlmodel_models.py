"""The table as SQLModel maps it."""

import datetime as dt
from decimal import Decimal

from sqlalchemy import BigInteger, DateTime, Numeric
from sqlmodel import Field, SQLModel

__all__ = ["Instrument"]


class Instrument(SQLModel, table=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
    __tablename__ = "bench_instruments"  # pyright: ignore[reportAssignmentType]

    token: int = Field(primary_key=True, sa_type=BigInteger)
    symbol: str
    name: str
    exchange: str
    kind: str
    strike: Decimal = Field(sa_type=Numeric(28, 10))  # pyright: ignore[reportArgumentType]  # an instance serves as well
    tick_size: Decimal = Field(sa_type=Numeric(28, 10))  # pyright: ignore[reportArgumentType]
    lot_size: int
    expiry: dt.date
    is_active: bool
    updated_at: dt.datetime = Field(sa_type=DateTime(timezone=True))  # pyright: ignore[reportArgumentType]
