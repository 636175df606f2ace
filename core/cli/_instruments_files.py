"""`panda instruments diff`, `export` and `formats`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.cli._failure import USAGE, CommandError
from core.cli._instruments_print import as_json, hints, number, print_counts, print_folded, print_rejected
from core.cli._output import Output
from core.cli._target import check_target, published

if TYPE_CHECKING:
    from polars import DataFrame

    from core.trading.instruments import FileDiff

Before = Annotated[str, typer.Argument(metavar="A", help="The file before.")]
After = Annotated[str, typer.Argument(metavar="B", help="The file after.")]
Format = Annotated[str, typer.Option("--format", help="See `panda instruments formats`.")]
Mapping = Annotated[Path | None, typer.Option("--mapping", dir_okay=False, help="A TOML file that says their format.")]
Show = Annotated[int, typer.Option("--show", min=0, max=100_000, help="How many of each kind to list.")]
Target = Annotated[Path, typer.Argument(metavar="FILE", help="A new .csv or .parquet file.")]
Force = Annotated[bool, typer.Option("--force", help="Replace FILE, once the new one is whole.")]
Source = Annotated[str | None, typer.Option("--source", help="Of this source alone.")]
Exchange = Annotated[str | None, typer.Option("--exchange", help="Of this exchange alone.")]
Everything = Annotated[bool, typer.Option("--all", help="Also those that are gone from their file.")]
Name = Annotated[str | None, typer.Argument(metavar="NAME", help="Print this format's mapping.")]


def diff(
    out: Output, before: Before, after: After, *, format: Format = "auto", mapping: Mapping = None, show: Show = 5
) -> None:
    """Compare two files of a broker, without a database.

    The figures are those of loading B into a master that was loaded from A alone.
    """
    from core.trading.instruments import diff_files

    with out.status("Comparing"), hints():
        found = diff_files(before, after, format=format, mapping=mapping, show=show)
    out.data(as_json(found))
    print_folded(out, f"{found.source} {', '.join(found.exchanges)}")
    print_folded(out, f"A: {before}, {found.rows_before:,} rows", indent="  ")
    print_folded(out, f"B: {after}", indent="  ")
    print_counts(out, found, (("removed", "in A, and no longer in B"),))
    print_rejected(out, found.rejected)
    _print_differences(out, found)


def export(
    out: Output,
    file: Target,
    *,
    source: Source = None,
    exchange: Exchange = None,
    everything: Everything = False,
    force: Force = False,
) -> None:
    """Write the master into a CSV or Parquet file.

    Prices are exact. FILE appears when it is whole, and is never replaced without --force.
    """
    from core.cli._database import connected, run, settings_in_force
    from core.trading import instruments

    write = _writer(file)
    check_target(file, force=force)

    async def work() -> "DataFrame":
        async with (
            connected(settings_in_force(), out, verify=True) as manager,
            manager.get_session(read_only=True, consistent=True) as session,
        ):
            return await instruments.frame(session, source=source, exchange=exchange, active_only=not everything)

    rows: Any = run(work())
    rows = rows.sort("source", "exchange", "trading_symbol", "instrument_token")
    with published(file, force=force) as part:
        write(rows, part)
    out.data({"file": str(file), "rows": rows.height, "columns": rows.columns, "bytes": file.stat().st_size})
    out.line(f"{file}: {rows.height:,} instruments, {file.stat().st_size:,} bytes")


def formats(out: Output, name: Name = None) -> None:
    """List the formats that are recognised, or print the mapping of one as a start for your own."""
    from core.trading.instruments import shipped

    if name is not None:
        out.data({"format": name, "mapping": _mapping(name)[0]})
        out.raw(_mapping(name)[1].rstrip("\n"))
        return
    found = shipped().values()
    out.data(
        {"formats": [{"format": item.format, "source": item.source, "required": item.required()} for item in found]}
    )
    for item in found:
        key = "whole number" if item.token.integer else "text"
        out.line(f"{item.format}: of {item.source}, key {item.token.column} ({key}); its header has")
        print_folded(out, ", ".join(item.required()), indent="  ")


def _print_differences(out: Output, found: "FileDiff") -> None:
    for verdict in ("added", "removed", "changed", "attributes_changed"):
        listed = [item for item in found.differences if item.verdict == verdict]
        for item in listed:
            out.line(f"  {verdict}: {item.exchange}:{item.trading_symbol} ({item.key})")
            for name, (old, new) in item.fields.items():
                out.line(f"    {name}: {_short(old)} -> {_short(new)}")
        if listed and (left := getattr(found, verdict) - len(listed)):
            out.line(f"  {verdict}: and {left:,} more")


def _short(value: Any) -> str:
    from decimal import Decimal

    text = number(value) if isinstance(value, Decimal) else "none" if value is None else str(value)
    return text if len(text) <= 30 else text[:27] + "..."


def _mapping(name: str) -> tuple[dict[str, Any], str]:
    import tomllib
    from importlib import resources

    from core.trading.instruments import shipped

    if name not in shipped():
        raise CommandError(f"there is no format {name!r}", hint=f"There are {', '.join(shipped())}.", code=USAGE)
    text = (resources.files("core.trading.instruments") / "formats" / f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text), text


def _writer(file: Path) -> "Callable[[DataFrame, Path], Any]":
    match file.suffix.lower():
        case ".csv":
            return lambda rows, part: rows.write_csv(part)
        case ".parquet":
            return lambda rows, part: rows.write_parquet(part)
        case _:
            raise CommandError(f"{file} is neither .csv nor .parquet", hint="Name it by its kind.", code=USAGE)
