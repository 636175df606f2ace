"""A broker's master of 100,000 instruments and its table: what the works about loading have in common.

Everybody brings the same made file in Kite's format into the project's own table `instruments`, under its constraints and with its
indexes, in one transaction. What a sample leaves behind is checked after the clock has stopped, and cleared away likewise.
"""

import io
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import date
from typing import TYPE_CHECKING, Any

from bench import panda
from bench.measure import expect
from bench.server import Target

if TYPE_CHECKING:
    from core.database.connection import DatabaseManager
    from core.trading.instruments import LoadReport

__all__ = [
    "COLUMNS",
    "DAY",
    "FROM_STAGED",
    "ROWS",
    "check",
    "connected",
    "load",
    "made",
    "one_in_a_hundred",
    "respelt",
    "stage",
    "truncate",
]

ROWS = 100_000
DAY = date(2026, 11, 20)
_TICK = 7  # its place in a line
COLUMNS: tuple[str, ...] = (
    "instrument_token", "source", "exchange", "exchange_token", "trading_symbol", "name", "segment", "instrument_type",
    "underlying", "option_type", "tick_size", "lot_size", "expiry", "strike", "last_price", "valid_from",
)  # fmt: skip
_STAGE = """
CREATE TEMPORARY TABLE staged (
    instrument_token bigint, exchange_token text, tradingsymbol text, name text, last_price numeric, expiry date,
    strike numeric, tick_size numeric, lot_size bigint, instrument_type text, segment text, exchange text
) ON COMMIT DROP
"""
FROM_STAGED = f"""
INSERT INTO instruments ({", ".join(COLUMNS)})
SELECT instrument_token, 'kite', exchange, exchange_token, tradingsymbol, name, segment,
    CASE WHEN segment = 'INDICES' THEN 'IDX' WHEN instrument_type IN ('CE', 'PE') THEN 'OPT' ELSE instrument_type END,
    CASE WHEN instrument_type <> 'EQ' THEN name END,
    CASE WHEN instrument_type IN ('CE', 'PE') THEN instrument_type END,
    tick_size, lot_size, expiry, CASE WHEN instrument_type IN ('CE', 'PE') THEN strike END, last_price,
    TIMESTAMPTZ '{DAY} 00:00:00Z'
FROM staged
"""
_SUM = f"""
SELECT count(*), sum(hashtextextended(row({", ".join(COLUMNS)})::text, 0)) FROM instruments WHERE is_active
"""


def made() -> bytes:
    """The file."""
    from core.demo.market import made_master

    return made_master(DAY)


def one_in_a_hundred(data: bytes) -> bytes:
    """The same with another tick size in every hundredth row."""
    lines = data.splitlines(keepends=True)
    for place in range(1, len(lines), 100):
        lines[place] = _with_tick(lines[place], b"0.25")
    return b"".join(lines)


def respelt(data: bytes) -> bytes:
    """The same in other bytes: a zero more behind one number."""
    lines = data.splitlines(keepends=True)
    lines[1] = _with_tick(lines[1], lines[1].split(b",")[_TICK] + b"0")
    return b"".join(lines)


def _with_tick(line: bytes, tick: bytes) -> bytes:
    fields = line.split(b",")
    fields[_TICK] = tick
    return b",".join(fields)


async def load(manager: "DatabaseManager", data: bytes) -> "LoadReport":
    """Alpha Panda's way."""
    from core.trading import instruments

    return await instruments.load(manager, data, trading_date=DAY)


async def stage(connection: Any, data: bytes) -> None:
    """COPY the file as it is into a temporary table `staged`, in the transaction that is open. Validates nothing."""
    await connection.execute(_STAGE)
    await connection.copy_to_table("staged", source=io.BytesIO(data), format="csv", header=True)


async def truncate(connection: Any) -> None:
    """An empty master, and nothing in memory or on disk that an earlier one has left."""
    await connection.execute("TRUNCATE instruments, instrument_versions, instrument_loads")


async def check(connection: Any, wanted: tuple[Any, ...] | None = None) -> tuple[Any, ...]:
    """How many active instruments there are, and a sum over all that they are; AssertionError unless as `wanted`."""
    found = tuple(await connection.fetchrow(_SUM))
    expect(found[0], ROWS)
    if wanted is not None:
        expect(found, wanted)
    return found


@asynccontextmanager
async def connected(target: Target) -> AsyncGenerator[Any]:
    """A bare connection of the driver, on a database with the project's schema."""
    import asyncpg

    await panda.migrate(target)
    connection = await asyncpg.connect(**target.keywords)
    try:
        yield connection
    finally:
        await connection.close()
