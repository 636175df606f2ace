"""Two files against each other, without a database, counted as the loader counts."""

# pyright: reportUnknownMemberType=false
# The types of polars name numpy's, which is not installed.

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import polars as pl

from core.database.errors import InvalidInput
from core.trading.instruments._errors import InstrumentFileRejected
from core.trading.instruments._file import InstrumentInput
from core.trading.instruments._reader import STAGED, Chunk, MasterFile, open_master
from core.trading.instruments._report import RejectedRow

Verdict: TypeAlias = Literal["added", "removed", "changed", "attributes_changed"]

_MONEY = pl.Decimal(28, 10)
_KINDS: dict[str, Any] = {"bigint": pl.Int64, "integer": pl.Int64, "numeric": _MONEY, "date": pl.Date}
_SCHEMA = {name: _KINDS.get(kind, pl.String) for name, kind in STAGED.items()}
_STATE = [name for name in STAGED if name not in ("instrument_token", "broker_key", "attributes", "last_price", "line")]
_NEW = "new "


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One instrument that differs. `fields` maps what differs of a changed one to its values before and after."""

    verdict: Verdict
    key: str
    exchange: str
    trading_symbol: str
    fields: Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class FileDiff:
    """What loading `after` would do to a master that was loaded from `before` alone, in rows, by a `LoadReport`'s names.

    `removed` is its `deactivated`: rows before whose exchange `after` has, and that it does not name. `rejected` and
    `duplicates` are those of `after`.
    """

    source: str
    format: str
    exchanges: tuple[str, ...]
    rows_before: int
    rows: int
    added: int
    changed: int
    attributes_changed: int
    renamed: int
    removed: int
    unchanged: int
    repriced: int
    duplicates: int
    rejected: tuple[RejectedRow, ...]
    rejected_before: int
    differences: tuple[Difference, ...]
    """The first of each kind, by symbol."""


@dataclass(frozen=True, slots=True)
class _Content:
    rows: pl.DataFrame
    total: int
    duplicates: int
    rejected: tuple[RejectedRow, ...]
    chunks: tuple[Chunk, ...]


def diff_files(
    before: InstrumentInput,
    after: InstrumentInput,
    *,
    format: str = "auto",
    mapping: Path | str | Mapping[str, Any] | None = None,
    show: int = 10,
) -> FileDiff:
    """Compare two files of one source. Blocking. `show` bounds the differences of each kind that are told one by one.

    Raises an `InstrumentFileError` for a file that cannot be used, and `InvalidInput` for files of two sources.
    """
    old, new = (open_master(file, format=format, mapping=mapping) for file in (before, after))
    if old.mapping.source != new.mapping.source:
        raise InvalidInput(
            f"{old.name} is a file of {old.mapping.source} and {new.name} one of {new.mapping.source}",
            hint="Compare two files of one broker.",
        )
    key = "instrument_token" if new.mapping.token.integer is not None else "broker_key"
    first, second = _content(old), _content(new)
    exchanges = sorted(set(second.rows["exchange"].unique().to_list()))
    both = _changes(first.rows, second.rows, key)
    added = second.rows.join(first.rows, on=key, how="anti")
    removed = _gone(first.rows.join(second.rows, on=key, how="anti"), second, exchanges)
    changed, attributes = both.filter("changed"), both.filter(~pl.col("changed") & pl.col("attributes_changed"))
    same = both.filter(~pl.col("changed") & ~pl.col("attributes_changed"))
    listed: tuple[tuple[Verdict, pl.DataFrame], ...] = (
        ("added", added),
        ("removed", removed),
        ("changed", changed),
        ("attributes_changed", attributes),
    )
    return FileDiff(
        source=new.mapping.source,
        format=new.format,
        exchanges=tuple(exchanges),
        rows_before=first.total,
        rows=second.total,
        added=added.height,
        changed=changed.height,
        attributes_changed=attributes.height,
        renamed=changed.filter(pl.col("trading_symbol").ne_missing(pl.col(f"{_NEW}trading_symbol"))).height,
        removed=removed.height,
        unchanged=same.height,
        repriced=same.filter(pl.col("last_price").ne_missing(pl.col(f"{_NEW}last_price"))).height,
        duplicates=second.duplicates,
        rejected=second.rejected,
        rejected_before=len(first.rejected),
        differences=tuple(item for verdict, rows in listed for item in _told(verdict, rows, key, show)),
    )


def _content(file: MasterFile) -> _Content:
    chunks = tuple(file.chunks())
    frames = [pl.read_csv(chunk.csv, has_header=False, schema=_SCHEMA) for chunk in chunks if chunk.count]
    rejected = tuple(row for chunk in chunks for row in chunk.rejected)
    if not frames:
        raise InstrumentFileRejected(f"not one row of {file.name} is valid")
    return _Content(
        pl.concat(frames),
        sum(chunk.rows for chunk in chunks),
        sum(chunk.duplicates for chunk in chunks),
        rejected,
        chunks,
    )


def _changes(before: pl.DataFrame, after: pl.DataFrame, key: str) -> pl.DataFrame:
    """The rows that both files have, with what became of them."""
    both = before.join(after.rename({name: _NEW + name for name in after.columns if name != key}), on=key)
    differs = pl.any_horizontal(pl.col(name).ne_missing(pl.col(_NEW + name)) for name in _STATE)
    both = both.with_columns(changed=differs, attributes_changed=pl.lit(value=False))
    # Their text differs by the order of the columns too, which is no change: what differs is compared by content.
    odd = pl.col("attributes").ne_missing(pl.col(f"{_NEW}attributes"))
    really = [
        _object(old) != _object(new) for old, new in both.filter(odd).select("attributes", f"{_NEW}attributes").rows()
    ]
    return pl.concat(
        [
            both.filter(~odd),
            both.filter(odd).with_columns(pl.Series("attributes_changed", really, dtype=pl.Boolean)),
        ]
    )


def _object(text: str | None) -> Any:
    return json.loads(text) if text else {}


def _gone(missing: pl.DataFrame, after: _Content, exchanges: Sequence[str]) -> pl.DataFrame:
    """Without those of other exchanges, and those that a rejected row names."""
    tokens = [token for chunk in after.chunks for token in chunk.refused_tokens]
    keys = [key for chunk in after.chunks for key in chunk.refused_keys]
    named = {pair for chunk in after.chunks for pair in chunk.refused_symbols}
    gone = missing.filter(
        pl.col("exchange").is_in(exchanges),
        ~pl.col("instrument_token").is_in(tokens).fill_null(value=False),
        ~pl.col("broker_key").is_in(keys).fill_null(value=False),
    )
    if not named:
        return gone
    return gone.filter([pair not in named for pair in gone.select("exchange", "trading_symbol").rows()])


def _told(verdict: Verdict, rows: pl.DataFrame, key: str, show: int) -> Iterator[Difference]:
    for row in rows.sort("exchange", "trading_symbol", key).head(show).iter_rows(named=True):
        fields: dict[str, tuple[Any, Any]] = {}
        if verdict == "attributes_changed":
            old, new = _object(row["attributes"]), _object(row[f"{_NEW}attributes"])
            fields = {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}
        elif verdict == "changed":
            fields = {name: (row[name], row[_NEW + name]) for name in _STATE if row[name] != row[_NEW + name]}
        yield Difference(
            verdict=verdict,
            key=str(row[key]),
            exchange=row["exchange"],
            trading_symbol=row["trading_symbol"],
            fields=fields,
        )
