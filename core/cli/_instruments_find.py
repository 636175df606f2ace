"""`panda instruments search`, `show`, `chain` and `history`."""

from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from core.cli._failure import REFUSED, USAGE, CommandError
from core.cli._instruments_print import COLUMNS, as_json, number, row_of, shown_date, shown_price
from core.cli._output import Output

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

T = TypeVar("T")

Text = Annotated[list[str], typer.Argument(metavar="TEXT", help="A symbol, a name, or a contract's terms.")]
Which = Annotated[str, typer.Argument(metavar="TOKEN|EXCHANGE:SYMBOL", help="Such as 256265 or NSE:TCS.")]
AsOf = Annotated[str | None, typer.Option("--as-of", metavar="DATE", help="As it was on that day.")]
Underlying = Annotated[str, typer.Argument(metavar="UNDERLYING", help="Such as NIFTY.")]
Expiry = Annotated[str | None, typer.Argument(metavar="EXPIRY", help="A date; else the expiries are listed.")]
Source = Annotated[str | None, typer.Option("--source", help="Of this source alone.")]
Exchange = Annotated[str | None, typer.Option("--exchange", help="Of this exchange alone.")]
Segment = Annotated[str | None, typer.Option("--segment", help="Of this segment alone.")]
Kind = Annotated[str | None, typer.Option("--type", help="EQ, FUT, OPT, IDX, CE or PE.")]
On = Annotated[str | None, typer.Option("--underlying", help="Contracts on this underlying alone.")]
Expiring = Annotated[str | None, typer.Option("--expiry", metavar="DATE", help="Contracts that expire that day.")]
Earliest = Annotated[str | None, typer.Option("--expiry-from", metavar="DATE", help="That expire then or later.")]
Latest = Annotated[str | None, typer.Option("--expiry-to", metavar="DATE", help="That expire then or earlier.")]
Lowest = Annotated[
    str | None, typer.Option("--strike-from", metavar="PRICE", help="Options of this strike or a higher.")
]
Highest = Annotated[str | None, typer.Option("--strike-to", metavar="PRICE", help="Options of this strike or a lower.")]
Everything = Annotated[bool, typer.Option("--all", help="Also those that are gone from their file.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=200, help="At most so many.")]


def search(
    out: Output,
    text: Text,
    *,
    source: Source = None,
    exchange: Exchange = None,
    segment: Segment = None,
    kind: Kind = None,
    underlying: On = None,
    expiry: Expiring = None,
    expiry_from: Earliest = None,
    expiry_to: Latest = None,
    strike_from: Lowest = None,
    strike_to: Highest = None,
    everything: Everything = False,
    limit: Limit = 20,
) -> int | None:
    """Find instruments, the likeliest first: nifty 25000 ce.

    Exit code 1 if there is none.
    """
    from core.cli._database import read
    from core.trading import instruments

    side, of = _kinds(kind)
    day, first, last = (shown_date(given) if given else None for given in (expiry, expiry_from, expiry_to))
    low, high = (shown_price(given) if given else None for given in (strike_from, strike_to))
    found = read(
        out,
        lambda session: instruments.search(
            session,
            " ".join(text),
            source=source,
            exchange=exchange,
            segment=segment,
            instrument_type=of,
            option_type=side,
            underlying=underlying,
            expiry=day,
            expiry_from=first,
            expiry_to=last,
            strike_from=low,
            strike_to=high,
            active_only=not everything,
            limit=limit,
        ),
    )
    out.data({"instruments": [as_json(item) for item in found]})
    if not found:
        out.note("nothing is like that")
        return 1
    out.table([row_of(item) for item in found], columns=COLUMNS)
    return None


def show(out: Output, instrument: Which, as_of: AsOf = None, source: Source = None) -> None:
    """Show everything that is stored of one instrument."""
    from core.cli._database import read
    from core.trading import instruments

    day = shown_date(as_of) if as_of else None

    async def work(session: "AsyncSession") -> Any:
        if day is not None:
            return await instruments.as_of(session, _key(instrument), day, source=source)
        return await _one(session, instrument, source)

    found = read(out, work)
    if found is None:
        raise CommandError(f"there was no {instrument} on {day}", code=REFUSED)
    values = as_json(found)
    out.data(values)
    attributes = values.pop("attributes", {})
    rows = [(name, number(value) if hasattr(value, "as_tuple") else str(value)) for name, value in values.items()]
    out.table([row for row in rows if row[1] != "None"])
    if attributes:
        out.line("attributes, in the broker's own words:")
        out.table([(f"  {name}", str(value)) for name, value in attributes.items()])


def chain(
    out: Output, underlying: Underlying, expiry: Expiry = None, exchange: Exchange = None, source: Source = None
) -> int | None:
    """Show the option chain of an expiry, or the expiries that there are."""
    from core.cli._database import read
    from core.trading import instruments

    if expiry is None:
        days = read(out, lambda session: instruments.expiries(session, underlying, exchange=exchange, source=source))
        out.data({"underlying": underlying, "expiries": list(days)})
        for item in days:
            out.line(str(item))
        return None if days else _nothing(out, f"no contract on {underlying} is active")
    day = shown_date(expiry)
    rows = read(
        out, lambda session: instruments.option_chain(session, underlying, day, exchange=exchange, source=source)
    )
    listed = [
        {
            "strike": row.strike,
            **{side: as_json(leg) if (leg := getattr(row, side)) else None for side in ("call", "put")},
        }
        for row in rows
    ]
    out.data({"underlying": underlying, "expiry": day, "strikes": listed})
    if not rows:
        return _nothing(out, f"no option on {underlying} expires on {day}")
    legs = [(_leg(row.call), number(row.strike), _leg(row.put)) for row in rows]
    out.table(
        [(*call, strike.rjust(12), *put) for call, strike, put in legs],
        columns=("call token", "call", "      strike", "put token", "put"),
    )
    return None


def history(out: Output, instrument: Which) -> None:
    """Show every state of an instrument, with the days that it was valid."""
    from core.cli._database import read
    from core.trading import instruments

    states = read(out, lambda session: instruments.history(session, _key(instrument)))
    if not states:
        raise CommandError(f"there is no instrument {instrument}", code=REFUSED)
    out.data({"instrument": instrument, "states": [as_json(item) for item in states]})
    out.table(
        [
            (
                f"{item.valid_from:%Y-%m-%d}",
                f"{item.valid_to:%Y-%m-%d}" if item.valid_to else "",
                *row_of(item)[1:6],
                "" if item.is_active else "gone",
            )
            for item in states
        ],
        columns=("from", "until", *COLUMNS[1:6], ""),
    )


def _kinds(kind: str | None) -> tuple[Any, Any]:
    """Side and type. Raises CommandError."""
    if kind in ("CE", "PE"):
        return kind, "OPT"
    if kind in (None, "EQ", "FUT", "OPT", "IDX"):
        return None, kind
    raise CommandError(f"there is no type {kind!r}", hint="There are EQ, FUT, OPT, IDX, CE and PE.", code=USAGE)


def _nothing(out: Output, text: str) -> int:
    out.note(text)
    return 1


def _leg(leg: Any) -> tuple[str, str]:
    return (str(leg.instrument_token), leg.trading_symbol) if leg is not None else ("", "")


def _key(text: str) -> int | str:
    return int(text) if _is_token(text) else text


def _is_token(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18


async def _one(session: "AsyncSession", text: str, source: str | None) -> Any:
    """By token or by symbol. Raises CommandError."""
    from core.trading import instruments

    if _is_token(text):
        found = await instruments.get(session, int(text))
    elif ":" in text:
        exchange, _, symbol = text.partition(":")
        found = await instruments.by_symbol(session, exchange, symbol, source=source)
    else:
        raise CommandError(
            f"{text!r} is neither a token nor EXCHANGE:SYMBOL", hint="`panda instruments search` finds it.", code=USAGE
        )
    if found is None:
        raise CommandError(f"there is no instrument {text}", hint="`panda instruments search` finds it.", code=REFUSED)
    return found
