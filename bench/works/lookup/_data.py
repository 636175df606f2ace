"""The table that all read, the limit's object, and the check that what was read is what was asked for."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import cycle
from typing import Any

import asyncpg

from bench import master
from bench.measure import expect
from bench.server import Target

__all__ = ["BY_TOKEN", "ROWS", "Instrument", "check", "fill_master", "make_table", "tokens"]

ROWS = 10_000
BY_TOKEN = "SELECT * FROM bench_instruments WHERE token = "

_TABLE = """
CREATE TABLE bench_instruments (
    token bigint PRIMARY KEY,
    symbol text NOT NULL,
    name text NOT NULL,
    exchange text NOT NULL,
    kind text NOT NULL,
    strike numeric(28, 10) NOT NULL,
    tick_size numeric(28, 10) NOT NULL,
    lot_size integer NOT NULL,
    expiry date NOT NULL,
    is_active boolean NOT NULL,
    updated_at timestamptz NOT NULL
)
"""
_ROWS = """
INSERT INTO bench_instruments
SELECT n, 'SYMBOL' || n, 'Instrument number ' || n, 'NFO', 'CE', n + 0.05, 0.05, 50, DATE '2030-01-01' + (n % 365)::integer,
       true, TIMESTAMPTZ '2026-01-01 00:00:00Z' + n * INTERVAL '1 second'
FROM generate_series(1, $1::bigint) AS n
"""
_MASTER = """
INSERT INTO instruments (instrument_token, source, exchange, trading_symbol, name, segment, instrument_type, option_type,
                         strike, tick_size, lot_size, expiry)
SELECT token, 'bench', exchange, symbol, name, 'NFO-OPT', 'OPT', kind, strike, tick_size, lot_size, expiry
FROM bench_instruments
"""


@dataclass(slots=True)
class Instrument:
    """A row as the bare driver's users hold it; its fields are in the table's order."""

    token: int
    symbol: str
    name: str
    exchange: str
    kind: str
    strike: Decimal
    tick_size: Decimal
    lot_size: int
    expiry: dt.date
    is_active: bool
    updated_at: dt.datetime


async def make_table(target: Target) -> None:
    """Create and fill the table, and leave nothing for autovacuum to do meanwhile."""
    connection = await asyncpg.connect(**target.keywords)
    try:
        await connection.execute(_TABLE)
        await connection.execute(_ROWS, ROWS)
        await connection.execute("VACUUM (ANALYZE, FREEZE) bench_instruments")
    finally:
        await connection.close()


async def fill_master(target: Target) -> None:
    """The same instruments in the instrument master, which must be there; for the cache reads nothing else."""
    connection = await asyncpg.connect(**target.keywords)
    try:
        await master.truncate(connection)
        await connection.execute(_MASTER)
    finally:
        await connection.close()


def tokens() -> Iterator[int]:
    """Keys in an order that visits every row before any twice, and neighbours never together."""
    return cycle((step * 7_919) % ROWS + 1 for step in range(ROWS))


def check(found: Any, token: int) -> None:
    """AssertionError unless `found`, of whatever kind, shows what the instrument of that token has."""
    expect(found and (found.token, found.strike), (token, token + Decimal("0.05")))
