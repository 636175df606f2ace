"""What an instrument was: on one day, and over all its days."""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

from sqlalchemy import bindparam, column, text
from sqlalchemy.dialects.postgresql import BIGINT, TEXT, TIMESTAMP
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.errors import InvalidInput
from core.database.models import Instrument
from core.database.records import InstrumentAttributes
from core.database.types import UtcDateTime, checked_date, checked_text

_BY_SYMBOL = re.compile(r"([A-Z][A-Z0-9_-]*):(.+)", re.DOTALL)
_BY_KEY = re.compile(r"([a-z][a-z0-9_-]*)/(.+)", re.DOTALL)
_STATE = (
    "source", "exchange", "exchange_token", "trading_symbol", "name", "segment", "instrument_type", "underlying",
    "option_type", "tick_size", "lot_size", "expiry", "strike", "is_active", "attributes", "valid_from",
)  # fmt: skip
_FIELDS = ("instrument_token", "broker_key", *_STATE, "valid_to")
_OWN = ", ".join(f"s.{name}" for name in _STATE)

_STATES = f"""
    SELECT s.instrument_token, s.broker_key, {_OWN}, CAST(NULL AS timestamptz) AS valid_to
    FROM instruments s WHERE {{condition}} {{present}}
    UNION ALL
    SELECT s.instrument_token, i.broker_key, {_OWN}, s.valid_to
    FROM instrument_versions s JOIN instruments i ON i.instrument_token = s.instrument_token
    WHERE {{condition}} {{past}}
"""  # noqa: S608
_TOKEN = "s.instrument_token = :token"  # noqa: S105
_TOKEN_OF_KEY = """s.instrument_token = (
    SELECT k.instrument_token FROM instruments k WHERE k.source = :source AND k.broker_key = :key
)"""  # noqa: S105
_SYMBOL = "s.trading_symbol = :symbol AND s.exchange = :exchange"


@dataclass(frozen=True, kw_only=True, slots=True)
class InstrumentState:
    """What an instrument was from `valid_from` until just before `valid_to`, which is None for the present state.

    Days begin at midnight UTC. `is_active` False says that the broker's file of that day did not name it, and the rest is what
    was last known of it.
    """

    instrument_token: int
    broker_key: str | None
    source: str
    exchange: str
    exchange_token: str | None
    trading_symbol: str
    name: str | None
    segment: str
    instrument_type: str
    underlying: str | None
    option_type: str | None
    tick_size: Decimal | None
    lot_size: int | None
    expiry: date | None
    strike: Decimal | None
    is_active: bool
    attributes: InstrumentAttributes
    valid_from: datetime
    valid_to: datetime | None


async def as_of(
    session: AsyncSession, instrument: int | str, day: date, *, source: str | None = None
) -> InstrumentState | None:
    """What an instrument was on a day, as that day's file said; None if it was not known yet.

    `instrument` is a token, "EXCHANGE:SYMBOL" such as "NFO:NIFTY26NOVFUT", or "source/key" such as "nuvama/38312_NFO" for a
    broker whose keys are text. A symbol is that of the day: who bore it then, whatever is called so now. Where several did, an
    active one goes before one that had left its file (`is_active` False), then the newest state; `source` says whose is meant.
    Raises `InvalidInput`, whose `column` names the argument.
    """
    condition, values = _which(instrument, "instrument")
    if source is not None:
        condition += " AND s.source = :wanted"
        values["wanted"] = _text("source", source)
    values["moment"] = datetime.combine(_day(day), time(), tzinfo=UTC)
    found = await _states(
        session,
        _STATES.format(
            condition=condition,
            present="AND s.valid_from <= :moment",
            past="AND s.valid_from <= :moment AND s.valid_to > :moment",
        )
        + " ORDER BY is_active DESC, valid_from DESC, instrument_token LIMIT 1",
        values,
    )
    return found[0] if found else None


async def history(session: AsyncSession, instrument: int | str) -> list[InstrumentState]:
    """All that an instrument was and is, the oldest state first, the present one last; empty if there is none.

    `instrument` is a token, "source/key", or "EXCHANGE:SYMBOL": then every state of whatever bore that symbol. Raises
    `InvalidInput`.
    """
    condition, values = _which(instrument, "instrument")
    sql = _STATES.format(condition=condition, present="", past="")
    return await _states(session, sql + " ORDER BY valid_from, instrument_token", values)


async def _states(session: AsyncSession, sql: str, values: dict[str, Any]) -> list[InstrumentState]:
    typed = text(sql).bindparams(*(bindparam(name, type_=_TYPES.get(name, TEXT())) for name in values))
    rows = await session.execute(typed.columns(*_COLUMNS), values)
    return [InstrumentState(**row) for row in rows.mappings()]


_TYPES: dict[str, Any] = {"token": BIGINT(), "moment": TIMESTAMP(timezone=True)}
_COLUMNS = tuple(
    column(name, UtcDateTime() if name == "valid_to" else Instrument.__table__.columns[name].type) for name in _FIELDS
)


def _which(instrument: int | str, argument: str) -> tuple[str, dict[str, Any]]:
    """The condition on `s` and its values."""
    if type(instrument) is int:
        if not -(1 << 63) <= instrument < 1 << 63:
            raise InvalidInput(f"{argument}: a token lies within 64 bits", column=argument)
        return _TOKEN, {"token": instrument}
    given = _text(argument, instrument)
    if found := _BY_SYMBOL.fullmatch(given):
        return _SYMBOL, {"exchange": found[1], "symbol": found[2]}
    if found := _BY_KEY.fullmatch(given):
        return _TOKEN_OF_KEY, {"source": found[1], "key": found[2]}
    raise InvalidInput(
        f'{argument}: takes a token, "EXCHANGE:SYMBOL" or "source/key"', hint="For example NSE:INFY.", column=argument
    )


def _text(name: str, value: Any) -> str:
    try:
        return checked_text(value)
    except InvalidInput as fault:
        raise InvalidInput(f"{name}: {fault.message}", column=name) from None


def _day(day: Any) -> date:
    try:
        return checked_date(day)
    except InvalidInput as fault:
        raise InvalidInput(f"day: {fault.message}", column="day") from None
