"""The table as Piccolo maps it; a table knows its engine, so it is made for one."""

from typing import Any

from piccolo.columns import BigInt, Boolean, Date, Integer, Numeric, Text, Timestamptz
from piccolo.engine.postgres import PostgresEngine
from piccolo.table import Table

__all__ = ["instrument_table"]


def instrument_table(engine: PostgresEngine) -> Any:
    """The table class, bound to `engine`."""

    class Instrument(Table, tablename="bench_instruments", db=engine):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
        token = BigInt(primary_key=True)
        symbol = Text()
        name = Text()
        exchange = Text()
        kind = Text()
        strike = Numeric(digits=(28, 10))
        tick_size = Numeric(digits=(28, 10))
        lot_size = Integer()
        expiry = Date()
        is_active = Boolean()
        updated_at = Timestamptz()

    return Instrument
