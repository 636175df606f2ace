"""The contracts of an underlying: on which days they expire, and the options of one day."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from itertools import groupby, zip_longest
from typing import Literal

from sqlalchemy import bindparam, select, text
from sqlalchemy.dialects.postgresql import TEXT
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.errors import InvalidInput
from core.database.models import Instrument
from core.database.types import checked_date, checked_text

# From one expiry to the next, by the index; of each, whether any contract passes the filters.
_EXPIRIES = """
    WITH RECURSIVE days(active, expiry) AS (
        (
            SELECT i.is_active, i.expiry FROM instruments i
            WHERE i.underlying = :underlying AND i.is_active = {state} AND i.expiry IS NOT NULL
            ORDER BY i.expiry LIMIT 1
        )
        UNION ALL
        SELECT d.active, (
            SELECT i.expiry FROM instruments i
            WHERE i.underlying = :underlying AND i.is_active = {state} AND i.expiry > d.expiry ORDER BY i.expiry LIMIT 1
        ) FROM days d WHERE d.expiry IS NOT NULL
    )
    SELECT d.expiry FROM days d WHERE d.expiry IS NOT NULL AND EXISTS (
        SELECT FROM instruments i
        WHERE i.underlying = :underlying AND i.is_active = d.active AND i.expiry = d.expiry {filters}
    )
"""
_FILTERS = ("exchange", "source", "instrument_type")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainRow:
    """One strike of an option chain on one exchange, by one source; the other side is None where there is no such option."""

    strike: Decimal
    exchange: str
    source: str
    call: Instrument | None
    put: Instrument | None


async def expiries(
    session: AsyncSession,
    underlying: str,
    *,
    exchange: str | None = None,
    source: str | None = None,
    instrument_type: Literal["FUT", "OPT"] | None = None,
    active_only: bool = True,
) -> list[date]:
    """The days on which contracts of that underlying expire, each once, the first one first. Raises `InvalidInput`."""
    values = {"underlying": _checked("underlying", underlying)}
    for name, value in zip(_FILTERS, (exchange, source, instrument_type), strict=True):
        if value is not None:
            values[name] = _checked(name, value)
    filters = "".join(f" AND i.{name} = :{name}" for name in values if name in _FILTERS)
    days: set[date] = set()
    for state in ("true",) if active_only else ("true", "false"):
        query = text(_EXPIRIES.format(state=state, filters=filters))
        typed = query.bindparams(*(bindparam(name, type_=TEXT()) for name in values))
        days.update(await session.scalars(typed, values))
    return sorted(days)


async def option_chain(
    session: AsyncSession,
    underlying: str,
    expiry: date,
    *,
    exchange: str | None = None,
    source: str | None = None,
    active_only: bool = True,
) -> list[ChainRow]:
    """The options of an underlying on one expiry, by strike, then exchange and source.

    Each row is of one exchange and one source: without those arguments, an underlying that several have gives several rows for
    a strike. Two options of the same strike and side, such as an adjusted contract beside a plain one, stand in rows of their
    own. `active_only` False takes contracts that have left the file too. Raises `InvalidInput`.
    """
    try:
        day = checked_date(expiry)
    except InvalidInput as fault:
        raise InvalidInput(f"expiry: {fault.message}", column="expiry") from None
    query = (
        select(Instrument)
        .where(
            Instrument.underlying == _checked("underlying", underlying),
            Instrument.expiry == day,
            Instrument.instrument_type == "OPT",
            Instrument.is_active.in_([True] if active_only else [True, False]),
        )
        .order_by(
            Instrument.strike, Instrument.exchange, Instrument.source, Instrument.is_active.desc(),
            Instrument.trading_symbol, Instrument.instrument_token,
        )
    )  # fmt: skip
    if exchange is not None:
        query = query.where(Instrument.exchange == _checked("exchange", exchange))
    if source is not None:
        query = query.where(Instrument.source == _checked("source", source))
    return list(_rows(list(await session.scalars(query))))


def _rows(options: list[Instrument]) -> Iterator[ChainRow]:
    for (strike, exchange, source), group in groupby(options, lambda one: (one.strike, one.exchange, one.source)):
        sides: dict[str | None, list[Instrument]] = {"CE": [], "PE": []}
        for option in group:
            sides[option.option_type].append(option)
        for call, put in zip_longest(sides["CE"], sides["PE"]):
            yield ChainRow(strike=strike or Decimal(0), exchange=exchange, source=source, call=call, put=put)


def _checked(name: str, value: str) -> str:
    try:
        return checked_text(value)
    except InvalidInput as fault:
        raise InvalidInput(f"{name}: {fault.message}", column=name) from None
