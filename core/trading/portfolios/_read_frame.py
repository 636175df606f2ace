"""Snapshots as a data frame, every digit in its place."""

# pyright: reportUnknownMemberType=false
# The types of polars name numpy's, which is not installed.

import asyncio
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import polars as pl
from sqlalchemy.ext.asyncio import AsyncSession

from core.database import bulk
from core.database.errors import InvalidInput
from core.database.types import MONEY_PRECISION, MONEY_SCALE, checked_utc
from core.trading.portfolios._frames import SNAPSHOT_COLUMNS

_MONEY = pl.Decimal(MONEY_PRECISION, MONEY_SCALE)

SNAPSHOT_SCHEMA: dict[str, pl.DataType] = {
    "portfolio_id": pl.String(),
    "snapshot_time": pl.Datetime("us", "UTC"),
    "broker": pl.String(),
    "positions": pl.String(),
    **dict.fromkeys(SNAPSHOT_COLUMNS[4:], _MONEY),
}
"""Of a frame of snapshots, and of a Parquet file of them: amounts are Decimal(28, 10), positions JSON text."""

MICROSECONDS = "(extract(epoch FROM snapshot_time) * 1000000)::bigint"
"""The time in a form that no setting of the server or the session changes."""


async def snapshot_frame(
    session: AsyncSession,
    portfolio_ids: str | Iterable[str] | None = None,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    positions: bool = True,
) -> pl.DataFrame:
    """The snapshots of all portfolios, or of those given, from `start` until just before `end`, by portfolio and time.

    One statement, hence one snapshot of the database. Amounts are exact: Decimal(28, 10) as in the table, never through a
    float; times are in UTC; `positions` are JSON text and left out on request. `record_many` takes such a frame as it is. It
    holds all of its rows in memory, about 150 bytes each without positions: `export_snapshots` streams. Raises `InvalidInput`.
    """
    schema = {name: kind for name, kind in SNAPSHOT_SCHEMA.items() if positions or name != "positions"}
    where, values = conditions(portfolio_ids, start, end)
    chosen = ", ".join(MICROSECONDS if name == "snapshot_time" else name for name in schema)
    pieces: list[bytes] = []

    async def take(piece: bytes) -> None:
        pieces.append(piece)

    query = f"SELECT {chosen} FROM portfolio_snapshots{where}"  # noqa: S608 - names of our own
    await bulk.copy_out(session, query, *values, output=take, header=False)
    return await asyncio.to_thread(_sorted, b"".join(pieces), schema)


def conditions(
    portfolio_ids: str | Iterable[str] | None, start: datetime | None, end: datetime | None
) -> tuple[str, list[Any]]:
    """A WHERE clause with `$1`..., and its values."""
    first, last = checked_period(start, end)
    parts: list[str] = []
    values: list[Any] = []
    for template, value in (
        ("portfolio_id = ANY(${}::text[])", checked_ids(portfolio_ids)),
        ("snapshot_time >= ${}::timestamptz", first),
        ("snapshot_time < ${}::timestamptz", last),
    ):
        if value is not None:
            values.append(value)
            parts.append(template.format(len(values)))
    return (f" WHERE {' AND '.join(parts)}" if parts else ""), values


def checked_ids(portfolio_ids: str | Iterable[str] | None) -> list[str] | None:
    if portfolio_ids is None:
        return None
    return [portfolio_ids] if isinstance(portfolio_ids, str) else list(portfolio_ids)


def checked_period(start: datetime | None, end: datetime | None) -> tuple[datetime | None, datetime | None]:
    """Both in UTC; raises `InvalidInput`."""
    first, last = (_utc(value, field) for value, field in ((start, "start"), (end, "end")))
    if first is not None and last is not None and last <= first:
        raise InvalidInput("end must be after start", column="end")
    return first, last


def parsed(data: bytes, schema: dict[str, pl.DataType]) -> pl.DataFrame:
    """CSV with times in microseconds since 1970, typed. Blocking."""
    arrives: dict[str, Any] = {
        name: pl.Int64() if isinstance(kind, pl.Datetime) else kind for name, kind in schema.items()
    }
    if not data:
        return pl.DataFrame(schema=schema)
    frame = pl.read_csv(data, has_header=False, schema=arrives)
    return frame.with_columns(pl.col(name).cast(kind) for name, kind in schema.items() if isinstance(kind, pl.Datetime))


def _sorted(data: bytes, schema: dict[str, pl.DataType]) -> pl.DataFrame:
    return parsed(data, schema).sort("portfolio_id", "snapshot_time")


def _utc(value: datetime | None, field: str) -> datetime | None:
    try:
        return None if value is None else checked_utc(value)
    except InvalidInput as fault:
        raise InvalidInput(f"{field}: {fault.message}", column=field) from None
