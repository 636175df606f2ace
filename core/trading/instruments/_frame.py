"""The master as a polars frame, by COPY."""

# pyright: reportUnknownMemberType=false
# The types of polars name numpy's, which is not installed.

import asyncio
from collections.abc import Callable, Sequence

import polars as pl
from sqlalchemy.ext.asyncio import AsyncSession

from core.database import bulk
from core.database.errors import InvalidInput
from core.database.models import Instrument
from core.database.records import BROKER_RULE, VENUE_RULE

_MONEY = pl.Decimal(28, 10)  # as NUMERIC(28,10): every stored digit has its place, so that none is rounded away
_MOMENT = pl.Datetime("us", "UTC")

COLUMNS: dict[str, pl.DataType] = {
    "instrument_token": pl.Int64(),
    "source": pl.String(),
    "broker_key": pl.String(),
    "exchange": pl.String(),
    "exchange_token": pl.String(),
    "trading_symbol": pl.String(),
    "name": pl.String(),
    "segment": pl.String(),
    "instrument_type": pl.String(),
    "option_type": pl.String(),
    "underlying": pl.String(),
    "expiry": pl.Date(),
    "strike": _MONEY,
    "tick_size": _MONEY,
    "lot_size": pl.Int64(),
    "last_price": _MONEY,
    "is_active": pl.Boolean(),
    "valid_from": _MOMENT,
}
"""What a frame has unless other columns are asked for."""

_ON_REQUEST: dict[str, pl.DataType] = {"attributes": pl.String(), "created_at": _MOMENT, "updated_at": _MOMENT}
_ALL = COLUMNS | _ON_REQUEST
_KEY = "instrument_token"
_Rule = Callable[[str], str]
_TABLE = Instrument.__tablename__


async def frame(
    session: AsyncSession,
    *,
    source: str | None = None,
    exchange: str | None = None,
    active_only: bool = True,
    columns: Sequence[str] | None = None,
) -> pl.DataFrame:
    """The stored master, or one source's or exchange's part of it, in no particular order.

    Prices are exact: Decimal(28, 10) as in the table, never through a float. `columns` are names of the table's; `attributes`
    (JSON text), `created_at` and `updated_at` come only by being named. One statement, hence one snapshot. Raises `InvalidInput`
    for a column that there is not.
    """
    chosen = _checked(columns)
    # NULL is an empty field, and a line of one empty field is no line: the key, which is never NULL, is always read.
    read = chosen if _KEY in chosen else (_KEY, *chosen)
    conditions, values = _where(source=source, exchange=exchange, active_only=active_only)
    pieces: list[bytes] = []

    async def take(piece: bytes) -> None:
        pieces.append(piece)

    query = f"SELECT {', '.join(map(_expression, read))} FROM {_TABLE}{conditions}"  # noqa: S608 - names of our own
    await bulk.copy_out(session, query, *values, output=take, header=False)
    return await asyncio.to_thread(_parsed, b"".join(pieces), read, chosen)


def _checked(columns: Sequence[str] | None) -> tuple[str, ...]:
    if columns is None:
        return tuple(COLUMNS)
    chosen = (columns,) if isinstance(columns, str) else tuple(columns)
    if unknown := [name for name in chosen if name not in _ALL]:
        raise InvalidInput(f"columns: {unknown[0]!r} is none of {', '.join(_ALL)}", column="columns")
    if not chosen or len(set(chosen)) < len(chosen):
        raise InvalidInput("columns: takes each column once, and at least one", column="columns")
    return chosen


def _where(*, source: str | None, exchange: str | None, active_only: bool) -> tuple[str, list[str]]:
    conditions = ["is_active"] if active_only else []
    values: list[str] = []
    rules: tuple[tuple[str, str | None, _Rule], ...] = (
        ("source", source, BROKER_RULE),
        ("exchange", exchange, VENUE_RULE),
    )
    for name, value, rule in rules:
        if value is not None:
            values.append(_valid(name, value, rule))
            conditions.append(f"{name} = ${len(values)}")
    return (f" WHERE {' AND '.join(conditions)}" if conditions else ""), values


def _valid(name: str, value: str, rule: _Rule) -> str:
    try:
        return rule(value)
    except InvalidInput as fault:
        raise InvalidInput(f"{name}: {fault.message}", column=name) from None


def _expression(column: str) -> str:
    """The column in a form that no setting of the server or the session changes, as DateStyle and TimeZone would."""
    kind = _ALL[column]
    if kind == pl.Date:
        return f"{column} - DATE '1970-01-01'"
    if kind == _MOMENT:
        return f"(extract(epoch FROM {column}) * 1000000)::bigint"
    return column


def _parsed(data: bytes, read: Sequence[str], chosen: Sequence[str]) -> pl.DataFrame:
    """Blocking."""
    schema = {name: _ALL[name] for name in read}
    if not data:
        return pl.DataFrame(schema=schema).select(chosen)
    found = pl.read_csv(data, has_header=False, schema={name: _arrives_as(kind) for name, kind in schema.items()})
    return found.select(_typed(name, _ALL[name]) for name in chosen)


def _arrives_as(kind: pl.DataType) -> pl.DataType:
    if kind == pl.Boolean:
        return pl.String()
    return pl.Int32() if kind == pl.Date else pl.Int64() if kind == _MOMENT else kind


def _typed(name: str, kind: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    if kind == pl.Boolean:
        return column == "t"
    return column.cast(kind) if _arrives_as(kind) != kind else column
