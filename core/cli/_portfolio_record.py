"""`panda portfolio record`: snapshots from options or from JSON."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast
from zoneinfo import ZoneInfo

import typer

from core.cli._failure import REFUSED, USAGE, CommandError
from core.cli._output import Output
from core.cli._portfolio_print import amount, as_json, moment
from core.cli._portfolio_read import ZONE, Which, Zone, clock_of, instant, portfolio_of

if TYPE_CHECKING:
    from core.database.models import Portfolio
    from core.database.records import PortfolioSnapshotCreate, Rounding

Amount = str | None
File = Annotated[str | None, typer.Argument(metavar="FILE", help="JSON: a snapshot or a list of them; - is stdin.")]
Time = Annotated[str | None, typer.Option("--time", metavar="WHEN", help="When it was so; else now.")]
Cash = Annotated[Amount, typer.Option("--cash", metavar="AMOUNT", help="Money that is in no position.")]
Realized = Annotated[Amount, typer.Option("--realized", metavar="AMOUNT", help="Realized profit; else 0.")]
Unrealized = Annotated[Amount, typer.Option("--unrealized", metavar="AMOUNT", help="Unrealized profit; else 0.")]
Equity = Annotated[Amount, typer.Option("--equity", metavar="AMOUNT", help="All it is worth; else of the positions.")]
Positions = Annotated[str | None, typer.Option("--positions", metavar="FILE", help="A JSON list of them; - is stdin.")]
Round = Annotated[bool, typer.Option("--round", help="Round what has more than ten decimals, and say so.")]

_MONEY = ("cash", "realized_pnl", "unrealized_pnl", "total_pnl", "equity")
_POSITION_MONEY = ("quantity", "average_price", "last_price", "pnl", "market_value")
_PLACES = 10
_LARGEST = 64 * 2**20


def record(
    out: Output,
    portfolio: Which,
    file: File = None,
    *,
    cash: Cash = None,
    realized: Realized = None,
    unrealized: Unrealized = None,
    equity: Equity = None,
    time: Time = None,
    positions: Positions = None,
    round: Round = False,
    zone: Zone = ZONE,
) -> None:
    """Record a snapshot, or those of a JSON file.

    One transaction: all of a file or nothing. Recording the same again changes nothing; another snapshot of the
    same time is exit code 6. A time without an offset is one of --zone.
    """
    clock = clock_of(zone)
    options = {"cash": cash, "realized_pnl": realized, "unrealized_pnl": unrealized, "equity": equity}
    given = {name: value for name, value in options.items() if value is not None}
    if file is not None:
        if given or time or positions:
            raise CommandError("FILE and options are two ways to say it", hint="Give one of them.", code=USAGE)
        documents = _documents(file)
    else:
        if cash is None or (equity is None and positions is None):
            hint = "Say --cash and --equity, or --cash and --positions, or name a JSON file."
            raise CommandError("that is no whole snapshot", hint=hint, code=USAGE)
        at = instant(time, clock) if time else datetime.now(UTC)
        nothing = {"realized_pnl": "0", "unrealized_pnl": "0", "snapshot_time": at.isoformat()}
        more = {"positions": _json(positions)} if positions else {}
        documents = [nothing | given | more]
    _record(out, portfolio, [_values(item, clock, exact=not round) for item in documents], clock, round_them=round)


def _record(
    out: Output, portfolio_id: str, documents: Sequence[dict[str, Any]], clock: ZoneInfo, *, round_them: bool
) -> None:
    from core.cli._database import connected, run, settings_in_force
    from core.trading import portfolios

    async def work() -> "list[tuple[PortfolioSnapshotCreate, bool, tuple[Rounding, ...]]]":
        async with (
            connected(settings_in_force(), out, verify=True) as manager,
            manager.transaction() as session,
        ):
            portfolio = await portfolio_of(session, portfolio_id)
            made = [_snapshot(portfolio, item, round_them=round_them) for item in documents]
            return [(one, await portfolios.record(session, one), changes) for one, changes in made]

    done = run(work())
    added = sum(new for _, new, _ in done)
    changes = [{"time": one.snapshot_time, **as_json(item)} for one, _, changes in done for item in changes]
    out.data({"portfolio_id": portfolio_id, "recorded": added, "known": len(done) - added, "rounded": changes})
    if len(done) == 1:
        one = done[0][0]
        word = "recorded" if added else "was recorded before, the same"
        out.line(f"{portfolio_id} at {moment(one.snapshot_time, clock)} ({clock.key}), {amount(one.equity)}: {word}")
    else:
        out.line(f"{portfolio_id}: {added:,} recorded, {len(done) - added:,} were there already, the same")
    for change in changes:
        out.line(f"  rounded {change['field']}: {change['given']:f} -> {change['stored']:f}")


def _snapshot(
    portfolio: "Portfolio", values: dict[str, Any], *, round_them: bool
) -> "tuple[PortfolioSnapshotCreate, tuple[Rounding, ...]]":
    """Raises `InvalidInput` and CommandError."""
    from pydantic import ValidationError

    from core.database.records import PortfolioSnapshotCreate
    from core.database.types import invalid_input

    owner: dict[str, Any] = {"portfolio_id": portfolio.portfolio_id, "broker": portfolio.broker}
    for name, value in owner.items():
        if values.get(name, value) != value:
            raise CommandError(f"{name} is {values[name]!r} there, and {value!r} here", code=REFUSED)
    try:
        if round_them:
            made = PortfolioSnapshotCreate.rounded(**(values | owner))
            return made.snapshot, made.changes
        return PortfolioSnapshotCreate(**(values | owner)), ()
    except ValidationError as fault:
        raise invalid_input(fault) from None


def _documents(file: str) -> list[dict[str, Any]]:
    found = _json(file)
    listed: list[Any] = cast("list[Any]", found) if isinstance(found, list) else [found]
    documents = [cast("dict[str, Any]", item) for item in listed if isinstance(item, dict)]
    if not listed or len(documents) < len(listed):
        raise CommandError(f"{_name(file)} is neither a snapshot nor a list of them", code=REFUSED)
    if not all("snapshot_time" in item for item in documents):
        raise CommandError("a snapshot has no snapshot_time", code=REFUSED)
    return documents


def _values(document: dict[str, Any], clock: ZoneInfo, *, exact: bool) -> dict[str, Any]:
    """With amounts as Decimals and an aware time; what has another type is left for the record to refuse."""
    values = _amounts(document, _MONEY, exact=exact)
    if isinstance(at := values.get("snapshot_time"), str):
        values["snapshot_time"] = instant(at, clock)
    positions = values.get("positions")
    if isinstance(positions, list):
        values["positions"] = [
            _amounts(cast("dict[str, Any]", item), _POSITION_MONEY, exact=exact) if isinstance(item, dict) else item
            for item in cast("list[Any]", positions)
        ]
    return values


def _amounts(document: dict[str, Any], names: Sequence[str], *, exact: bool) -> dict[str, Any]:
    return {name: _amount(value, name, exact=exact) if name in names else value for name, value in document.items()}


def _amount(value: Any, name: str, *, exact: bool) -> Any:
    if not isinstance(value, str):
        return value
    try:
        amount = Decimal(value.replace(",", ""))
    except InvalidOperation:
        raise CommandError(f"{name}: {value[:40]!r} is no number", hint="Write it as 1834.50.", code=REFUSED) from None
    _, digits, exponent = amount.as_tuple()
    if exact and isinstance(exponent, int) and exponent < -_PLACES and any(digits[exponent + _PLACES :]):
        hint = "Correct it, or say --round to have it rounded and to be told."
        raise CommandError(f"{name}: {value[:40]} has more than {_PLACES} decimals", hint=hint, code=REFUSED)
    return amount


def _json(file: str) -> Any:
    """Numbers with a point stay the text that they are, so that no digit is lost. Raises CommandError."""
    text = _text(file)
    try:
        return json.loads(text, parse_float=str, parse_constant=_refused)
    except RecursionError:
        raise CommandError("the JSON is too deep", code=REFUSED) from None
    except ValueError as error:
        raise CommandError(f"{_name(file)} is no JSON: {error}", code=REFUSED) from None


def _text(file: str) -> str:
    if file == "-":
        if sys.stdin is None or sys.stdin.isatty():  # pyright: ignore[reportUnnecessaryComparison] - so it is after `<&-`
            raise CommandError("nothing comes from standard input", hint="Name a file, or pipe one in.", code=USAGE)
        return sys.stdin.read()
    path = Path(file)
    try:
        if path.is_file() and path.stat().st_size > _LARGEST:
            hint = "Bring that many in by `panda portfolio import`."
            raise CommandError(f"{file} is larger than {_LARGEST >> 20} MB", hint=hint, code=REFUSED)
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise CommandError(f"{file} does not exist", hint="Check the path.", code=REFUSED) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise CommandError(f"{file} cannot be read: {reason}", code=REFUSED) from None


def _name(file: str) -> str:
    return "standard input" if file == "-" else file


def _refused(word: str) -> Any:
    raise ValueError(f"{word} is no amount")
