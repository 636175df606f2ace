"""Rows that every rule of the tables accepts, each different from the one before.

Keyword arguments are the columns' names and override what a factory chooses; what it does not choose (times of creation,
for one) is left to the database. Nothing is random and nothing is read from a clock: the n-th call makes the same row in
every run. Nothing is sent either: the caller adds the objects to a session and commits.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

from sqlalchemy import inspect

from core.database.models import Instrument, Portfolio, PortfolioSnapshot, Strategy, TradingSession, User
from core.database.records import Positions, SessionData, StrategyConfig, StrategyParameters

USER_PASSWORD = "correct horse battery staple"  # noqa: S105  # a password of nobody
"""The password of every user that `make_user` makes."""

_PASSWORD_HASH = "$argon2id$v=19$m=65536,t=3,p=4$mywqfrGT4+5Okq9SunbwHw$0wxbvK5bwzTamiC6KAkmFRiLTWW+hyl+SCVA0z9KvJI"  # noqa: S105
_START = datetime(2026, 1, 5, 10, tzinfo=UTC)
_EXPIRY = date(2026, 12, 31)

_users, _instruments, _strategies, _sessions, _portfolios, _snapshots = (count(1) for _ in range(6))


def make_user(**columns: Any) -> User:
    """An active user named user-1, user-2, ... whose password is `USER_PASSWORD`."""
    return User(**{"username": f"user-{next(_users)}", "hashed_password": _PASSWORD_HASH, "is_active": True, **columns})


def make_instrument(**columns: Any) -> Instrument:
    """An active stock at NSE. With `instrument_type` IDX, FUT or OPT it has what such a one needs: expiry, strike, kind."""
    number = next(_instruments)
    by_type = _BY_TYPE[columns.get("instrument_type", "EQ")]
    return Instrument(**{**_instrument(number), **by_type(number), **columns})


def make_strategy(**columns: Any) -> Strategy:
    """An active strategy, strategy-1, strategy-2, ..., at its first version, that trades on paper."""
    number = next(_strategies)
    chosen: dict[str, Any] = {
        "strategy_id": f"strategy-{number}",
        "name": f"Strategy {number}",
        "strategy_type": "momentum",
        "config": StrategyConfig.model_validate({"universe": "NIFTY 50"}),
        "parameters": StrategyParameters.model_validate({"lookback": 20}),
        "active_brokers": ["paper"],
        "is_active": True,
    }
    return Strategy(**{**chosen, **columns})


def make_trading_session(user: User | None = None, **columns: Any) -> TradingSession:
    """An active session of `user` on paper that does not expire, or, given an `end_time`, one that has ended.

    Without a user and a `user_id` it brings a new user, stored together with it. A user has one active session a broker.
    """
    number = next(_sessions)
    chosen: dict[str, Any] = {
        "session_id": f"session-{number}",
        "broker": "paper",
        "start_time": _START,
        "is_active": columns.get("end_time") is None,
        "session_data": SessionData.model_validate({}),
    }
    if "user_id" not in columns:
        chosen |= _parent("user", user or make_user(), user_id="id")
    return TradingSession(**{**chosen, **columns})


def make_portfolio(strategy: Strategy | None = None, **columns: Any) -> Portfolio:
    """A portfolio on paper in INR, portfolio-1, portfolio-2, ..., of `strategy` if one is given."""
    number = next(_portfolios)
    chosen: dict[str, Any] = {
        "portfolio_id": f"portfolio-{number}",
        "broker": "paper",
        "currency": "INR",
        "name": f"Portfolio {number}",
    }
    if strategy is not None and "strategy_id" not in columns:
        chosen |= _parent("strategy", strategy, strategy_id="strategy_id")
    return Portfolio(**{**chosen, **columns})


def make_snapshot(portfolio: Portfolio | None = None, **columns: Any) -> PortfolioSnapshot:
    """A snapshot of `portfolio`, a minute after the one made before, from 5 January 2026; 100,000 in cash and no positions.

    `total_pnl` is the sum of its parts and `equity` is cash and what the positions are worth, unless given. Without a
    portfolio and a `portfolio_id` it brings a new portfolio. Its month's partition must be there before it is stored:
    `core.trading.portfolios.ensure_partitions`.
    """
    chosen: dict[str, Any] = {
        "broker": "paper",
        "snapshot_time": _START + timedelta(minutes=next(_snapshots)),
        "positions": Positions([]),
        "cash": Decimal(100_000),
        "realized_pnl": Decimal(0),
        "unrealized_pnl": Decimal(0),
    }
    if "portfolio_id" not in columns:
        chosen |= _parent("portfolio", portfolio or make_portfolio(), portfolio_id="portfolio_id", broker="broker")
    values = {**chosen, **columns}
    values.setdefault("total_pnl", values["realized_pnl"] + values["unrealized_pnl"])
    values.setdefault("equity", values["cash"] + _worth(values["positions"]))
    return PortfolioSnapshot(**values)


def make_snapshots(
    number: int,
    portfolio: Portfolio | None = None,
    *,
    start: datetime = _START,
    step: timedelta = timedelta(days=1),
    **columns: Any,
) -> list[PortfolioSnapshot]:
    """The first `number` points of an equity curve of one portfolio, `step` apart: steps up of 300 and down of 200 in turn."""
    if "portfolio_id" not in columns:
        portfolio = portfolio or make_portfolio()
    made: list[PortfolioSnapshot] = []
    realized = Decimal(0)
    for index in range(number):
        values: dict[str, Any] = {
            "snapshot_time": start + index * step,
            "cash": 100_000 + realized,
            "realized_pnl": realized,
        }
        made.append(make_snapshot(portfolio, **{**values, **columns}))
        realized += 300 if index % 2 == 0 else -200
    return made


def _instrument(number: int) -> dict[str, Any]:
    return {
        "instrument_token": 1_000_000 + number,
        "source": "kite",
        "exchange": "NSE",
        "exchange_token": str(number),
        "trading_symbol": f"STOCK{number}",
        "name": f"STOCK {number} LTD",
        "segment": "NSE",
        "instrument_type": "EQ",
        "tick_size": Decimal("0.05"),
        "lot_size": 1,
        "last_price": Decimal(100),
        "is_active": True,
    }


def _index(number: int) -> dict[str, Any]:
    return {"trading_symbol": f"INDEX {number}", "segment": "INDICES", "tick_size": Decimal(0), "lot_size": 0}


def _future(number: int) -> dict[str, Any]:
    return {
        "exchange": "NFO",
        "trading_symbol": f"STOCK{number}26DECFUT",
        "segment": "NFO-FUT",
        "underlying": f"STOCK{number}",
        "expiry": _EXPIRY,
        "lot_size": 50,
    }


def _option(number: int) -> dict[str, Any]:
    call: dict[str, Any] = {"trading_symbol": f"STOCK{number}26DEC100CE", "segment": "NFO-OPT"}
    return {**_future(number), **call, "option_type": "CE", "strike": Decimal(100)}


_BY_TYPE: dict[str, Callable[[int], dict[str, Any]]] = {
    "EQ": lambda number: {},
    "IDX": _index,
    "FUT": _future,
    "OPT": _option,
}


def _parent(relationship: str, parent: Any, **keys: str) -> dict[str, Any]:
    """The columns that point at a parent, and the parent itself if it is still to be stored."""
    pointing = {column: getattr(parent, attribute) for column, attribute in keys.items()}
    return pointing if inspect(parent).has_identity else {**pointing, relationship: parent}


def _worth(positions: Any) -> Decimal:
    held = Positions.model_validate(positions)
    return sum((position.worth() for position in held), Decimal(0))
