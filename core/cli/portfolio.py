"""`panda portfolio ...`: portfolios and their history."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.cli._command import command
from core.cli._output import Output
from core.cli._portfolio_curve import drawdown, equity
from core.cli._portfolio_files import export, import_
from core.cli._portfolio_print import amount, as_json, moment, table
from core.cli._portfolio_read import ZONE, Zone, clock_of, instant, unknown
from core.cli._portfolio_record import record
from core.cli._portfolio_store import downsample, partitions, prune
from core.cli._portfolio_summary import compare, summary

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from core.database.models import Portfolio, PortfolioSnapshot
    from core.trading.portfolios import LatestSnapshot

__all__ = ["register"]

New = Annotated[str, typer.Argument(metavar="PORTFOLIO", help="Its id, for ever.")]
Broker = Annotated[str, typer.Option("--broker", help="Such as kite, or paper.")]
Currency = Annotated[str, typer.Option("--currency", help="Its three letters.")]
Name = Annotated[str | None, typer.Option("--name", help="For people; else the id.")]
Strategy = Annotated[str | None, typer.Option("--strategy", help="The id of its strategy.")]
OfBroker = Annotated[str | None, typer.Option("--broker", help="Of this broker alone.")]
OfStrategy = Annotated[str | None, typer.Option("--strategy", help="Of this strategy alone.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="PORTFOLIO", help="Their ids; else all.")]
AsOf = Annotated[str | None, typer.Option("--as-of", metavar="WHEN", help="A day's end, a time, or 30d.")]

_HELP = "Portfolios and their history: record, ask, plot, export."


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(help=_HELP, no_args_is_help=True)
    verbs = {"create": create, "list": list_, "record": record, "import": import_, "latest": latest, "equity": equity}
    verbs |= {"drawdown": drawdown, "summary": summary, "compare": compare, "export": export}
    verbs |= {"partitions": partitions, "prune": prune, "downsample": downsample}
    for name, function in verbs.items():
        group.command(name)(command(function))
    app.add_typer(group, name="portfolio")


def create(
    out: Output,
    portfolio: New,
    *,
    broker: Broker,
    currency: Currency = "INR",
    name: Name = None,
    strategy: Strategy = None,
) -> None:
    """Add a portfolio, which snapshots are then recorded of.

    Its broker and its currency never change. Exit code 6 if there is one of that id, or no such strategy.
    """
    from core.cli._database import connected, run, settings_in_force
    from core.trading import portfolios

    async def work() -> "Portfolio":
        async with (
            connected(settings_in_force(), out, verify=True) as manager,
            manager.transaction() as session,
        ):
            return await _created(session, portfolios.create, portfolio, broker, currency, name or portfolio, strategy)

    made = run(work())
    out.data(as_json(made))
    out.line(f"{made.portfolio_id}: created, with {made.broker} in {made.currency}")


def list_(out: Output, *, broker: OfBroker = None, strategy: OfStrategy = None, zone: Zone = ZONE) -> None:
    """List the portfolios, and how each stands."""
    from core.cli._database import read
    from core.trading import portfolios

    clock = clock_of(zone)

    async def work(session: "AsyncSession") -> "tuple[list[Portfolio], dict[str, LatestSnapshot]]":
        found = await portfolios.find(session, broker=broker, strategy_id=strategy)
        newest = await portfolios.latest(session, [item.portfolio_id for item in found])
        return found, {item.portfolio_id: item for item in newest}

    found, newest = read(out, work)
    states = [newest.get(item.portfolio_id) for item in found]
    out.data({"portfolios": [as_json(a) | {"latest": as_json(b)} for a, b in zip(found, states, strict=True)]})
    if not found:
        out.note("there are no portfolios" + (" of these" if broker or strategy else " yet"))
        return
    table(
        out,
        [
            (
                item.portfolio_id,
                item.broker,
                item.strategy_id or "",
                f"{state.snapshot_time.astimezone(clock):%Y-%m-%d %H:%M}" if state else "",
                amount(state.equity if state else None),
                item.currency,
            )
            for item, state in zip(found, states, strict=True)
        ],
        ("portfolio", "broker", "strategy", f"latest ({clock.key})", "equity", ""),
        text=4,
    )


def latest(
    out: Output,
    portfolio: Ids = None,
    *,
    as_of: AsOf = None,
    broker: OfBroker = None,
    strategy: OfStrategy = None,
    zone: Zone = ZONE,
) -> int | None:
    """Show how portfolios stand, or stood at some time.

    Of one portfolio its positions too. Exit code 1 if there are no snapshots.
    """
    from core.cli._database import read
    from core.trading import portfolios

    clock = clock_of(zone)
    moment_of = instant(as_of, clock, until=True) if as_of else None

    async def work(session: "AsyncSession") -> "tuple[list[LatestSnapshot], dict[str, str], Any]":
        known = {item.portfolio_id: item.currency for item in await portfolios.find(session)}
        for name in portfolio or ():
            if name not in known:
                raise unknown(name)
        states = await portfolios.latest(session, portfolio, as_of=moment_of, broker=broker, strategy_id=strategy)
        whole = await _whole(session, states[0]) if states and len(portfolio or ()) == 1 else None
        return states, known, whole

    states, currencies, whole = read(out, work)
    found: list[dict[str, Any]] = [as_json(item) | {"currency": currencies[item.portfolio_id]} for item in states]
    if whole is not None:
        found[0]["positions"] = as_json(whole.positions)
    out.data({"snapshots": found})
    if not states:
        out.note("there are no snapshots" + (" of that time" if as_of else " yet"))
        return 1
    if whole is not None:
        _print_one(out, whole, currencies[whole.portfolio_id], clock)
        return None
    table(
        out,
        [
            (
                item.portfolio_id,
                f"{item.snapshot_time.astimezone(clock):%Y-%m-%d %H:%M}",
                amount(item.total_pnl),
                amount(item.equity),
                currencies[item.portfolio_id],
            )
            for item in states
        ],
        ("portfolio", f"time ({clock.key})", "P&L", "equity", ""),
        text=2,
    )
    return None


async def _created(session: "AsyncSession", create: Any, portfolio: str, *rest: Any) -> Any:
    from core.cli._failure import REFUSED, CommandError
    from core.database.errors import ForeignKeyViolation, UniqueViolation

    broker, currency, name, strategy = rest
    try:
        made = await create(
            session, portfolio_id=portfolio, broker=broker, currency=currency, name=name, strategy_id=strategy
        )
        await session.refresh(made)  # what the server has added
        return made
    except UniqueViolation:
        raise CommandError(
            f"there is a portfolio {portfolio!r} already", hint="`panda portfolio list` shows it.", code=REFUSED
        ) from None
    except ForeignKeyViolation:
        raise CommandError(
            f"there is no strategy {strategy!r}", hint="Give the id of a stored one, or none.", code=REFUSED
        ) from None


async def _whole(session: "AsyncSession", state: "LatestSnapshot") -> "PortfolioSnapshot | None":
    from core.database.models import PortfolioSnapshot

    return await session.get(PortfolioSnapshot, (state.portfolio_id, state.snapshot_time))


def _print_one(out: Output, one: "PortfolioSnapshot", currency: str, clock: Any) -> None:
    names = ("cash", "realized_pnl", "unrealized_pnl", "total_pnl", "equity")
    amounts = [amount(getattr(one, name)) for name in names]
    width = max(map(len, amounts))
    out.line(f"{one.portfolio_id} with {one.broker}, {moment(one.snapshot_time, clock)} ({clock.key})")
    out.table([(f"  {name}", text.rjust(width), currency) for name, text in zip(names, amounts, strict=True)])
    if one.positions.root:
        out.line("positions:")
        table(
            out,
            [
                (
                    f"  {item.instrument_token}",
                    *map(_short, (item.quantity, item.average_price, item.last_price)),
                    amount(item.pnl),
                )
                for item in one.positions.root
            ],
            ("  instrument", "quantity", "average", "last", "P&L"),
        )


def _short(value: Any) -> str:
    """Exact, without places that say nothing."""
    text = f"{value:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
