"""The master as Python values: built at once from a frame, never changed afterwards."""

# pyright: reportUnknownMemberType=false
# The types of polars name numpy's, which is not installed.

from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, NamedTuple, TypeAlias

import polars as pl

_PIECE = 5_000
"""Rows between which other threads get their turn: what polars turns into Python values, it does without a pause."""
_DISTINCT = ("instrument_token", "broker_key", "exchange_token", "trading_symbol", "name")
"""Columns whose values hardly repeat. A value of the others is made once and shared by all rows that have it."""


class CachedInstrument(NamedTuple):
    """An instrument as the master had it when it was read; the fields are the table's. It never changes."""

    instrument_token: int
    source: str
    broker_key: str | None
    exchange: str
    exchange_token: str | None
    trading_symbol: str
    name: str | None
    segment: str
    instrument_type: str
    option_type: str | None
    underlying: str | None
    expiry: date | None
    strike: Decimal | None
    tick_size: Decimal | None
    lot_size: int | None
    last_price: Decimal | None
    """As the broker's file said; no live price."""
    is_active: bool
    valid_from: datetime


Row: TypeAlias = tuple[Any, ...]
"""The fields of a `CachedInstrument`. A plain tuple of plain values is nothing that the garbage collector looks at again, whereas
as many objects of a class would have it stop the process for a long moment every time that it goes over all."""


class Master:
    """One reading of the master, whole."""

    __slots__ = ("frame", "loaded_at", "made", "rows", "symbols")

    def __init__(self, frame: pl.DataFrame) -> None:
        """Blocking, for some tenths of a second per 100,000 rows."""
        self.frame = frame
        self.loaded_at = datetime.now(UTC)
        self.rows: dict[int, Row] = {}
        self.symbols: dict[str, dict[str, dict[str, int]]] = {}
        """Tokens by source, exchange and symbol."""
        self.made: dict[int, CachedInstrument] = {}
        """Those that have been asked for."""
        # The last of equal symbols stays: the one that `by_symbol` finds in the database.
        order = frame.sort(["is_active", "valid_from", "instrument_token"], descending=[False, False, True])
        for row in _rows(order):
            token, source, _, exchange, _, symbol, *_ = row
            self.rows[token] = row
            self.symbols.setdefault(source, {}).setdefault(exchange, {})[symbol] = token

    def get(self, token: int) -> CachedInstrument | None:
        return self.made.get(token) or self.make(token)

    def by_symbol(self, exchange: str, trading_symbol: str, source: str | None) -> CachedInstrument | None:
        sources = self.symbols if source is None else (source,)
        tokens = (self.symbols.get(name, {}).get(exchange, {}).get(trading_symbol) for name in sources)
        found = [instrument for token in tokens if token is not None and (instrument := self.get(token))]
        return max(found, key=_rank) if len(found) > 1 else found[0] if found else None

    def make(self, token: int) -> CachedInstrument | None:
        row = self.rows.get(token)
        return self.made.setdefault(token, CachedInstrument._make(row)) if row is not None else None


def _rank(instrument: CachedInstrument) -> tuple[bool, datetime, int]:
    return instrument.is_active, instrument.valid_from, -instrument.instrument_token


def _rows(frame: pl.DataFrame) -> Iterator[Row]:
    shared: dict[str, list[Any]] = {}
    columns: list[pl.Series] = []
    for column in frame.select(CachedInstrument._fields).iter_columns():
        if column.name in _DISTINCT:
            columns.append(column)
        else:
            shared[column.name], codes = _encoded(column)
            columns.append(codes)
    for piece in pl.DataFrame(columns).iter_slices(_PIECE):
        lists = (
            map(shared[column.name].__getitem__, column.to_list()) if column.name in shared else column.to_list()
            for column in piece.iter_columns()
        )
        yield from zip(*lists, strict=True)


def _encoded(column: pl.Series) -> tuple[list[Any], pl.Series]:
    """The values that there are, and for each row which of them it has."""
    values = column.unique(maintain_order=True).to_frame().with_row_index("code")
    rows = column.to_frame().join(values, on=column.name, how="left", nulls_equal=True, maintain_order="left")
    return values[column.name].to_list(), rows["code"].alias(column.name)
