"""`panda portfolio summary` and `compare`."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias
from zoneinfo import ZoneInfo

import typer

from core.cli._failure import USAGE, CommandError
from core.cli._output import Output
from core.cli._portfolio_print import amount, as_json, moment, percent, ratio, table
from core.cli._portfolio_read import (
    ZONE,
    End,
    Flows,
    Start,
    Which,
    Zone,
    clock_of,
    empty,
    flows_of,
    limits,
    period_of,
    portfolio_of,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from core.database.models import Portfolio
    from core.trading.portfolios import Comparison, Summary

Periods = Annotated[float, typer.Option("--periods", help="Returns to the year: 252 trading days, or 365.")]
RiskFree = Annotated[float, typer.Option("--risk-free", help="The yearly rate without risk: 0.065 is 6.5 %.")]
By = Annotated[str, typer.Option("--by", metavar="WHAT", help="portfolio, strategy or broker.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="PORTFOLIO", help="Their ids; else all.")]
OfBroker = Annotated[str | None, typer.Option("--broker", help="Of this broker alone.")]
OfStrategy = Annotated[str | None, typer.Option("--strategy", help="Of this strategy alone.")]

Kind: TypeAlias = Literal["portfolio", "strategy", "broker"]

_KINDS: tuple[Kind, ...] = ("portfolio", "strategy", "broker")


def summary(
    out: Output,
    portfolio: Which,
    *,
    start: Start = None,
    end: End = None,
    zone: Zone = ZONE,
    periods: Periods = 252,
    risk_free: RiskFree = 0.0,
    flow: Flows = None,
) -> None:
    """Show what a portfolio came to: returns and risk.

    Of the last snapshot of each day of --zone. Deposits and withdrawals are gains and losses unless --flow names them.
    """
    from core.cli._database import read
    from core.trading import portfolios

    clock = clock_of(zone)
    first, last = limits(start, end, clock)
    came = flows_of(flow, clock)

    async def work(session: "AsyncSession") -> "tuple[Portfolio, Summary | None]":
        owner = await portfolio_of(session, portfolio)
        begin, until = await period_of(session, [portfolio], first, last)
        return owner, await portfolios.portfolio_summary(
            session,
            portfolio,
            begin,
            until,
            zone=clock.key,
            periods_per_year=periods,
            risk_free=risk_free,
            flows=came,
        )

    owner, found = read(out, work)
    if found is None:
        raise empty()
    out.data({"portfolio": as_json(owner), "zone": clock.key, "summary": as_json(found)})
    out.line(f"{owner.portfolio_id} in {owner.currency}, {_period(found.first_time, found.last_time, clock)}")
    rows = _rows(found, clock)
    width = max(len(value) for _, value, _ in rows)
    out.table([(f"  {name}", value.rjust(width), note) for name, value, note in rows])


def compare(
    out: Output,
    portfolio: Ids = None,
    *,
    by: By = "portfolio",
    broker: OfBroker = None,
    strategy: OfStrategy = None,
    start: Start = None,
    end: End = None,
    zone: Zone = ZONE,
    periods: Periods = 252,
    risk_free: RiskFree = 0.0,
) -> int | None:
    """Set portfolios, strategies or brokers side by side.

    The best return first. What is in several currencies stands in a line for each. Exit code 1 if there is nothing
    to compare.
    """
    from core.cli._database import read
    from core.trading import portfolios

    clock = clock_of(zone)
    kind: Kind | None = next((item for item in _KINDS if item == by), None)
    if kind is None:
        raise CommandError(f"{by!r} is nothing to compare by", hint=f"Say one of {', '.join(_KINDS)}.", code=USAGE)
    first, last = limits(start, end, clock)

    async def work(session: "AsyncSession") -> "list[Comparison]":
        for name in portfolio or ():
            await portfolio_of(session, name)
        begin, until = await period_of(session, portfolio, first, last)
        return await portfolios.compare(
            session,
            begin,
            until,
            by=kind,
            zone=clock.key,
            portfolio_ids=portfolio,
            broker=broker,
            strategy_id=strategy,
            periods_per_year=periods,
            risk_free=risk_free,
        )

    found = sorted(read(out, work), key=_rank, reverse=True)
    out.data({"by": kind, "zone": clock.key, "comparisons": [as_json(item) for item in found]})
    if not found:
        out.note("there is nothing to compare")
        return 1
    table(
        out,
        [(item.group or "none", *_figures(item.summary, item.currency)) for item in found],
        (kind, "profit", "", "return", "a year", "Sharpe", "deepest", "days"),
    )
    return None


def _rank(item: "Comparison") -> tuple[bool, float]:
    found = item.summary.total_return
    return found is not None, found or 0.0


def _figures(found: "Summary", currency: str) -> tuple[str, ...]:
    shares = (found.total_return, found.cagr)
    deepest = percent(found.maximum_drawdown)
    return (amount(found.profit), currency, *map(percent, shares), ratio(found.sharpe), deepest, str(found.days))


def _rows(found: "Summary", clock: ZoneInfo) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, Any, str]] = [
        ("first equity", amount(found.first_equity), moment(found.first_time, clock)),
        ("last equity", amount(found.last_equity), moment(found.last_time, clock)),
        ("net flow", amount(found.net_flow) if found.net_flow else "", "deposits less withdrawals"),
        ("profit", amount(found.profit), ""),
        ("total return", percent(found.total_return), ""),
        ("CAGR", percent(found.cagr), "a year"),
        ("volatility", percent(found.volatility), "a year"),
        ("Sharpe", ratio(found.sharpe), ""),
        ("Sortino", ratio(found.sortino), ""),
        ("Calmar", ratio(found.calmar), ""),
        ("maximum drawdown", percent(found.maximum_drawdown), _fall(found, clock)),
        ("hit rate", percent(found.hit_rate), "of the days that moved"),
        ("exposure", percent(found.exposure), "of the time in positions"),
        ("days", f"{found.days:,}", "with a snapshot"),
    ]
    return [row if row[1] else (row[0], "-", "") for row in rows if row[0] != "net flow" or row[1]]


def _fall(found: "Summary", clock: ZoneInfo) -> str:
    fall = found.drawdown
    if fall is None:
        return ""
    peak, trough = (f"{at.astimezone(clock):%Y-%m-%d}" for at in (fall.peak_time, fall.trough_time))
    back = f"back {fall.recovery_time.astimezone(clock):%Y-%m-%d}" if fall.recovery_time else "not back yet"
    return f"{peak} to {trough}, {back}"


def _period(first: datetime, last: datetime, clock: ZoneInfo) -> str:
    return f"{first.astimezone(clock):%Y-%m-%d} to {last.astimezone(clock):%Y-%m-%d} ({clock.key})"
