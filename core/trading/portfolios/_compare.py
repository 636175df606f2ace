"""Portfolios, strategies and brokers side by side."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import groupby
from typing import Literal, NamedTuple, get_args

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.errors import InvalidInput
from core.database.models import Portfolio
from core.trading.portfolios._calendar import DEFAULT_ZONE
from core.trading.portfolios._closes import Calendar, calendar_of, read_closes
from core.trading.portfolios._series import EXACT, NOTHING, DailyClose, Flow, Step, steps
from core.trading.portfolios._statistics import Summary, summary

CompareBy = Literal["portfolio", "strategy", "broker"]

_Numbered = Sequence[tuple[int, DailyClose]]
_Member = tuple[_Numbered, Sequence[Flow]]


class _Chosen(NamedTuple):
    portfolio: str
    strategy: str | None
    broker: str
    currency: str

    def group(self, by: CompareBy) -> str | None:
        return self.portfolio if by == "portfolio" else self.strategy if by == "strategy" else self.broker


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One line of a comparison: a portfolio, or all those of one strategy or broker that are in one currency.

    `group` is the portfolio_id, the strategy_id (None for portfolios without one) or the broker; money in `summary` is in
    `currency`.
    """

    group: str | None
    currency: str
    portfolio_ids: tuple[str, ...]
    summary: Summary


async def compare(
    session: AsyncSession,
    start: datetime,
    end: datetime,
    *,
    by: CompareBy = "portfolio",
    zone: str = DEFAULT_ZONE,
    portfolio_ids: Iterable[str] | None = None,
    broker: str | None = None,
    strategy_id: str | None = None,
    periods_per_year: float = 252,
    risk_free: float = 0.0,
    flows: Mapping[str, Iterable[Flow]] | None = None,
) -> list[Comparison]:
    """A `summary` of the daily closes of each portfolio, strategy or broker from `start` until just before `end`, by group.

    As `portfolio_summary` it begins with the last snapshot before `start`. A group is worth the sum of its portfolios' closes,
    each as it was last recorded; one that is first recorded in the middle is a deposit and no gain. Currencies are never
    added: a group has a line for each. `portfolio_ids`, `broker` and `strategy_id` choose, and portfolios without a snapshot
    in the period are left out. `flows` are by portfolio_id. One statement a portfolio: in a read-only transaction on one
    snapshot if that matters. Raises `InvalidInput`.
    """
    if by not in get_args(CompareBy):
        raise InvalidInput(f"by must be one of {', '.join(get_args(CompareBy))}", column="by")
    calendar = calendar_of(start, end, zone).since_ever
    chosen = await _chosen(session, portfolio_ids, broker, strategy_id)
    given = _flows(flows or {}, chosen)

    def key(row: _Chosen) -> tuple[bool, str, str]:
        group = row.group(by)
        return group is None, group or "", row.currency

    found: list[Comparison] = []
    for (_, _, currency), rows in groupby(sorted(chosen, key=key), key):
        of_group = list(rows)
        members = await _members(session, [row.portfolio for row in of_group], calendar, given)
        if not members:
            continue
        points, came = _added([*members.values()])
        figures = summary(points, zone=zone, periods_per_year=periods_per_year, risk_free=risk_free, flows=came)
        group = of_group[0].group(by)
        found.append(Comparison(group=group, currency=currency, portfolio_ids=tuple(members), summary=figures))
    return found


async def _chosen(
    session: AsyncSession, portfolio_ids: Iterable[str] | None, broker: str | None, strategy_id: str | None
) -> list[_Chosen]:
    wanted = select(Portfolio.portfolio_id, Portfolio.strategy_id, Portfolio.broker, Portfolio.currency)
    if portfolio_ids is not None:
        wanted = wanted.where(Portfolio.portfolio_id.in_(list(portfolio_ids)))
    if broker is not None:
        wanted = wanted.where(Portfolio.broker == broker)
    if strategy_id is not None:
        wanted = wanted.where(Portfolio.strategy_id == strategy_id)
    return [_Chosen(*row) for row in await session.execute(wanted.order_by(Portfolio.portfolio_id))]


def _flows(flows: Mapping[str, Iterable[Flow]], chosen: list[_Chosen]) -> dict[str, list[Flow]]:
    if strange := sorted(set(flows) - {row.portfolio for row in chosen}):
        raise InvalidInput(f"flows: {', '.join(strange)} are not among the portfolios compared", column="flows")
    return {portfolio_id: list(came) for portfolio_id, came in flows.items()}


async def _members(
    session: AsyncSession, portfolio_ids: Sequence[str], calendar: Calendar, flows: Mapping[str, Sequence[Flow]]
) -> dict[str, _Member]:
    """The closes of each, of those that have a snapshot in the period."""
    members: dict[str, _Member] = {}
    for portfolio_id in portfolio_ids:
        closes = await read_closes(session, portfolio_id, calendar)
        if any(number for number, _ in closes):
            members[portfolio_id] = closes, flows.get(portfolio_id, ())
    return members


def _added(members: Sequence[_Member]) -> tuple[list[DailyClose], list[Flow]]:
    """The closes of all together, and what came in from outside, each flow at the close that has it first."""
    by_day: dict[int, list[tuple[int, DailyClose, Decimal]]] = defaultdict(list)
    begin = min(closes[0][0] for closes, _ in members)
    for member, (closes, flows) in enumerate(members):
        for (number, close), step in zip(closes, steps((close for _, close in closes), flows), strict=True):
            by_day[number].append((member, close, _came(step, joins=number > begin and close is closes[0][1])))
    points: list[DailyClose] = []
    came: list[Flow] = []
    standing: dict[int, DailyClose] = {}
    for number in sorted(by_day):
        flow, time = NOTHING, max(close.snapshot_time for _, close, _ in by_day[number])
        for member, close, added in by_day[number]:
            standing[member] = close
            flow = EXACT.add(flow, added)
        points.append(_sum(standing.values(), by_day[number][0][1], time))
        if flow:
            came.append(Flow(time, flow))
    return points, came


def _came(step: Step, *, joins: bool) -> Decimal:
    return step.equity if joins else step.flow


def _sum(standing: Iterable[DailyClose], like: DailyClose, time: datetime) -> DailyClose:
    equity, pnl, invested = NOTHING, NOTHING, False
    for close in standing:
        equity, pnl = EXACT.add(equity, close.equity), EXACT.add(pnl, close.total_pnl)
        invested = invested or close.invested
    return DailyClose(like.day, time, equity, pnl, invested)
