"""`search`: instruments for what somebody types."""

from collections.abc import Callable
from datetime import date
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal, TypeVar

from sqlalchemy import TextClause, bindparam, select
from sqlalchemy import text as sql_text
from sqlalchemy.dialects.postgresql import ARRAY, BIGINT, DATE, INTEGER, TEXT
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.expression import TextualSelect

from core.database.errors import InvalidInput
from core.database.models import Instrument
from core.database.types import Money, checked_date, checked_money, checked_text
from core.trading.instruments._query import parse
from core.trading.instruments._search_sql import parameters_of, sql_of
from core.trading.instruments._shape import Shape, shape_of, values_of

MOST = 200
"""Instruments that one search gives at the most."""

_Value = TypeVar("_Value")
_CONDITIONS = {
    "source": "i.source = :source",
    "exchange": "i.exchange = :exchange",
    "segment": "i.segment = :segment",
    "instrument_type": "i.instrument_type = :instrument_type",
    "option_type": "i.option_type = :option_type",
    "underlying": "i.underlying = :underlying",
    "expiry": "i.expiry = :expiry",
    "expiry_from": "i.expiry >= :expiry_from",
    "expiry_to": "i.expiry <= :expiry_to",
    "strike_from": "i.strike >= :strike_from",
    "strike_to": "i.strike <= :strike_to",
}
_DATES = ("expiry", "expiry_from", "expiry_to", "day")
_NUMBERS = ("strike", "strike_from", "strike_to")


async def search(
    session: AsyncSession,
    text: str,
    *,
    source: str | None = None,
    exchange: str | None = None,
    segment: str | None = None,
    instrument_type: Literal["EQ", "IDX", "FUT", "OPT"] | None = None,
    option_type: Literal["CE", "PE"] | None = None,
    underlying: str | None = None,
    expiry: date | None = None,
    expiry_from: date | None = None,
    expiry_to: date | None = None,
    strike_from: Decimal | int | None = None,
    strike_to: Decimal | int | None = None,
    active_only: bool = True,
    limit: int = 20,
) -> list[Instrument]:
    """Instruments for a line such as "infy", "reliance industries", "nifty 25000 ce", "banknifty aug fut", best first.

    First those whose symbol it is (or whose token), then those whose symbol begins so, then those that have all of its words in
    symbol or name, and the contracts of an underlying that have its strike, side, kind and expiry (a month, "28 aug", "aug 2026",
    "2026-08-28"). Within each: active ones first, EQ, IDX, FUT, OPT, the nearest expiry, strike, symbol. A strike and a side of
    nobody's, "25000 ce", are looked for in the two nearest expiries of every underlying. Capitals do not matter, and no character
    has a meaning of its own. A name's words of one or two letters count as whole, longer ones as beginnings.

    The filters hold for every result; `expiry_to` and `strike_to` are included. Of at most `limit` (1 to 200). Raises
    `InvalidInput`, whose `column` names the argument.
    """
    query = parse(text)
    given = {
        **{name: _checked(name, value, checked_text) for name, value in (
            ("source", source), ("exchange", exchange), ("segment", segment), ("underlying", underlying),
        )},
        "instrument_type": _one_of("instrument_type", instrument_type, ("EQ", "IDX", "FUT", "OPT")),
        "option_type": _one_of("option_type", option_type, ("CE", "PE")),
        **{name: _checked(name, value, checked_date) for name, value in (
            ("expiry", expiry), ("expiry_from", expiry_from), ("expiry_to", expiry_to),
        )},
        **{name: _checked(name, value, checked_money) for name, value in (
            ("strike_from", strike_from), ("strike_to", strike_to),
        )},
    }  # fmt: skip
    filters = {name: (_CONDITIONS[name], value) for name, value in given.items() if value is not None}
    found, names = _select(shape_of(query, filters, active_only=active_only, limit=checked_limit(limit)))
    values = values_of(query, filters)
    return list(await session.scalars(found, {name: values[name] for name in names}))


def checked_limit(limit: int) -> int:
    """`limit`, or `InvalidInput`."""
    if type(limit) is not int or not 1 <= limit <= MOST:
        raise InvalidInput(f"limit: must be from 1 to {MOST}", column="limit")
    return limit


@lru_cache(maxsize=256)
def _select(shape: Shape) -> tuple[Any, tuple[str, ...]]:
    """The statement ready to be run, and its parameters; to build it takes longer than to run it."""
    sql = sql_of(shape)
    names = parameters_of(sql)
    typed: TextClause = sql_text(sql).bindparams(*(bindparam(name, type_=_type(name)) for name in names))
    columns: TextualSelect = typed.columns(*Instrument.__table__.columns)
    return select(Instrument).from_statement(columns), names


def _type(name: str) -> Any:
    if name in _DATES:
        return DATE()
    if name in _NUMBERS:
        return Money()
    if name == "token":
        return BIGINT()
    if name == "month" or name.startswith("number_"):
        return INTEGER()
    return ARRAY(TEXT()) if name == "beginnings" else TEXT()


def _checked(name: str, value: Any, check: Callable[[Any], _Value]) -> _Value | None:
    if value is None:
        return None
    try:
        return check(value)
    except InvalidInput as fault:
        raise InvalidInput(f"{name}: {fault.message}", column=name) from None


def _one_of(name: str, value: str | None, known: tuple[str, ...]) -> str | None:
    if value is not None and value not in known:
        raise InvalidInput(f"{name}: must be one of {', '.join(known)}", column=name)
    return value
