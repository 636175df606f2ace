"""The main job: schema, instruments, a user, sessions, strategies, portfolios and their history; each step once."""

import asyncio
import json
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import polars as pl
from sqlalchemy import select

from core.config.brokers import DEFAULT_BROKERS, parse_brokers
from core.config.options import Timeouts
from core.database import schema
from core.database.connection import DatabaseManager
from core.database.errors import UniqueViolation
from core.database.models import Portfolio, Strategy
from core.demo.market import ROWS, made_master
from core.demo.steps import Step, Steps
from core.demo.trading_days import IST
from core.demo.walk import BOOKS, Moment, walk
from core.trading import accounts, instruments, portfolios, sessions, strategies

__all__ = ["fill"]

_USERNAME = "trader"
_PASSWORD = "panda-demo-password"  # noqa: S105 - of a database that only this user of the system can reach
_POLICIES = parse_brokers(DEFAULT_BROKERS)
_STAGES = ("read", "lock", "copy", "merge", "commit")
_STRATEGIES = (
    ("momentum", "Momentum on large companies", {"lookback_days": 20, "rebalance": "daily"}, {"top": 5, "stop": "0.05"}),
    ("mean-reversion", "Mean reversion within the day", {"lookback_minutes": 90}, {"entry_z": "2.0", "exit_z": "0.5"}),
)  # fmt: skip


async def fill(manager: DatabaseManager, steps: Steps, *, instruments: Path | None, as_of: date) -> str:
    """Do the job; the portfolio whose curve is worth drawing. What is there from an earlier run stays as it is."""
    await _migrate(manager, steps)
    await _load(manager, steps, instruments, as_of)
    user_id = await _register(manager, steps)
    brokers = sorted({book.broker for book in BOOKS})
    await _open_sessions(manager, steps, user_id, brokers)
    await _define_strategies(manager, steps, brokers)
    await _record(manager, steps, as_of)
    return BOOKS[0].portfolio_id


async def _migrate(manager: DatabaseManager, steps: Steps) -> None:
    with steps.step("Migrate to head") as step:
        pending = await schema.plan(manager.engine)
        state = await schema.upgrade(manager.engine, timeouts=Timeouts())
        step.note = f"revision {state.head}, {len(pending)} applied" if pending else f"at revision {state.head}"


async def _load(manager: DatabaseManager, steps: Steps, file: Path | None, as_of: date) -> None:
    name = f"Load {file.name}" if file else f"Load {ROWS:,} made instruments"
    with steps.step(name) as step:

        def progress(stage: str) -> None:
            step.advance(_STAGES.index(stage), len(_STAGES))

        source = file if file is not None else await asyncio.to_thread(made_master, as_of)
        report = await instruments.load(manager, source, trading_date=as_of, progress=progress)
        figures = {
            "added": report.added,
            "changed": report.changed,
            "reactivated": report.reactivated,
            "deactivated": report.deactivated,
            "unchanged": report.unchanged,
            "rejected": len(report.rejected),
        }
        step.note = ", ".join(f"{count:,} {what}" for what, count in figures.items() if count)


async def _register(manager: DatabaseManager, steps: Steps) -> int:
    with steps.step("Register a user (argon2id)") as step:
        try:
            async with manager.transaction() as session:
                user = await accounts.register(session, _USERNAME, _PASSWORD)
            step.note = user.username
        except UniqueViolation:
            user = await accounts.authenticate(manager, _USERNAME, _PASSWORD, source="panda demo")
            step.note = f"{user.username} is known, and the password fits"
        return user.id


async def _open_sessions(manager: DatabaseManager, steps: Steps, user_id: int, brokers: list[str]) -> None:
    with steps.step("Open a trading session per broker") as step:
        opened: list[str] = []
        async with manager.transaction() as session:
            for broker in brokers:
                if await sessions.active(session, user_id=user_id, broker=broker) is None:
                    made = await sessions.open(
                        session,
                        user_id=user_id,
                        broker=broker,
                        policy=_POLICIES[broker],
                        session_data={"opened_by": "panda demo"},
                    )
                    end = made.session.expires_at
                    opened.append(f"{broker} until {end.astimezone(IST):%H:%M} IST" if end else broker)
        step.note = ", ".join(opened) or "still open"


async def _define_strategies(manager: DatabaseManager, steps: Steps, brokers: list[str]) -> None:
    with steps.step("Define strategies and portfolios") as step:
        async with manager.transaction() as session:
            known = set(await session.scalars(select(Strategy.strategy_id)))
            for strategy_id, name, config, parameters in _STRATEGIES:
                if strategy_id not in known:
                    await strategies.define(
                        session,
                        strategy_id=strategy_id,
                        name=name,
                        strategy_type=strategy_id.replace("-", "_"),
                        config=config,
                        parameters=parameters,
                        active_brokers=brokers,
                        changed_by="panda demo",
                    )
            held = set(await session.scalars(select(Portfolio.portfolio_id)))
            for book in BOOKS:
                if book.portfolio_id not in held:
                    await portfolios.create(
                        session,
                        portfolio_id=book.portfolio_id,
                        broker=book.broker,
                        strategy_id=book.strategy_id,
                        currency="INR",
                        name=book.name,
                    )
        step.note = f"{len(_STRATEGIES)} strategies, {len(BOOKS)} portfolios"


async def _record(manager: DatabaseManager, steps: Steps, as_of: date) -> None:
    with steps.step("Record 90 days of snapshots") as step:
        async with manager.get_session() as session:
            stored = {row.portfolio_id: row.snapshot_time for row in await portfolios.latest(session)}
        frame = await asyncio.to_thread(_history, step, as_of, stored)
        async with manager.transaction() as session:
            added = await portfolios.record_many(session, frame, skip_existing=True)
        step.note = f"{added:,} added" if added else "all there"


def _history(step: Step, as_of: date, stored: dict[str, datetime]) -> pl.DataFrame:
    """What is not stored yet of the made history, as the frame that `record_many` takes."""
    columns: dict[str, list[object]] = {name: [] for name in portfolios.SNAPSHOT_COLUMNS}
    first: datetime | None = None
    end = datetime.combine(as_of, time(16), tzinfo=IST)
    for number, moment in enumerate(walk(as_of, after=stored)):
        first = first or moment.time
        if number % 1_000 == 0:
            step.advance(int((moment.time - first).total_seconds()), int((end - first).total_seconds()))
        for column, value in zip(columns.values(), _row(moment), strict=True):
            column.append(value)
    kinds: dict[str, Any] = dict.fromkeys(portfolios.SNAPSHOT_COLUMNS, pl.String)
    return pl.DataFrame(columns, schema=kinds | {"snapshot_time": pl.Datetime("us", "UTC")})


def _row(moment: Moment) -> tuple[object, ...]:
    """In the order of `SNAPSHOT_COLUMNS`, money as text."""
    positions = [
        {
            "instrument_token": holding.instrument_token,
            "quantity": str(holding.quantity),
            "average_price": str(holding.average_price),
            "last_price": str(holding.last_price),
            "pnl": str(holding.pnl),
        }
        for holding in moment.holdings
    ]
    money = (moment.cash, moment.realized, moment.unrealized, moment.total, moment.equity)
    return moment.portfolio_id, moment.time, moment.broker, json.dumps(positions), *map(str, money)
