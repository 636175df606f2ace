"""A broker's columns as ours, by its mapping.

Numbers are never floats here. They are read as text, checked as text and sent as text, so that PostgreSQL is the first to
make numbers of them: exactly (`polars` would round when casting to Decimal).
"""

# pyright: reportUnknownMemberType=false
# The types of polars name numpy's, which is not installed.

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property

import polars as pl

from core.database.errors import InvalidInput
from core.database.types import checked_date
from core.trading.instruments._mapping import ExpiryRule, Field_, FormatMapping, Picked
from core.trading.instruments._numbers import canonical_decimals, whole_numbers

BEYOND = "beyond the last column"
LINE = "line"
DECIMALS: tuple[Field_, ...] = ("last_price", "strike", "tick_size")
TEXTS: tuple[Field_, ...] = ("exchange_token", "trading_symbol", "name", "segment", "underlying")


@dataclass(frozen=True)
class Layout:
    """A mapping bound to the header of one file; columns of the file are called `c0`, `c1`... in frames."""

    mapping: FormatMapping
    header: tuple[str, ...]

    @cached_property
    def _places(self) -> dict[str, str]:
        return {name: f"c{index}" for index, name in enumerate(self.header)}

    @property
    def columns(self) -> list[str]:
        return [f"c{index}" for index in range(len(self.header))]

    def place(self, name: str) -> str:
        return self._places[name]

    def has(self, name: str) -> bool:
        return name in self._places

    @cached_property
    def ignored(self) -> tuple[str, ...]:
        """Columns that are kept nowhere: those without a name, and those that the mapping drops."""
        return tuple(name for name in self.header if not name or name in self.mapping.attributes.drop)

    @cached_property
    def extra(self) -> tuple[str, ...]:
        """Columns that go to `attributes` as they are."""
        known = self.mapping.known()
        return tuple(name for name in self.header if name and name not in known)

    def label(self, field: Field_) -> str:
        """What the file calls a field of ours; our own name where the file has none."""
        picked = self.mapping.picked(field)
        return picked.column if picked is not None and self.has(picked.column) else field


def tidied(frame: pl.DataFrame, layout: Layout, *, plain: bool) -> pl.DataFrame:
    """Outer blanks are cut, and what is empty then is NULL.

    In `plain` text, which is ASCII without control characters and quotation marks, a blank is a space and what is empty is
    NULL already: few columns have anything to cut, and to look is cheaper than to cut.
    """
    names = layout.columns
    if plain:
        spaced = frame.select((pl.col(names).str.starts_with(" ") | pl.col(names).str.ends_with(" ")).any()).row(0)
        names = [name for name, found in zip(names, spaced, strict=True) if found]
    stripped = frame.with_columns(pl.col(names).str.strip_chars())
    return stripped.with_columns(pl.when(pl.col(column) != "").then(pl.col(column)).alias(column) for column in names)


def translated(frame: pl.DataFrame, layout: Layout) -> pl.DataFrame:
    """With our fields beside the file's; NULL where the file says nothing, or nothing that we can read.

    `number <field>` holds what was read as a number, `word` the type as the mapping has it, `expiry` a date in ISO's form.
    """
    mapping = layout.mapping
    kind = pl.col(layout.place(mapping.instrument_type.column)).fill_null("")
    names = mapping.instrument_type.names
    frame = frame.with_columns(
        kind.replace_strict(list(names), list(names.values()), default=None, return_dtype=pl.String).alias("word"),
        _exchange(layout).alias("exchange"),
        _expiry(frame, layout),
    )
    frame = frame.with_columns(_kind(layout).alias("instrument_type"), _option_type(layout).alias("option_type"))
    return frame.with_columns(
        *(_text(frame, layout, field).alias(field) for field in TEXTS),
        *_token(frame, layout),
        *(_decimal(frame, layout, field) for field in DECIMALS),
        _lot_size(frame, layout).alias("number lot_size"),
    )


def canonical(good: pl.DataFrame, layout: Layout) -> pl.DataFrame:
    """Valid rows, in the order in which they are staged."""
    column = pl.col
    derivative = column("instrument_type").is_in(["FUT", "OPT"])
    option = column("instrument_type") == "OPT"
    return good.select(
        "instrument_token",
        "broker_key",
        "exchange",
        "exchange_token",
        "trading_symbol",
        "name",
        "segment",
        "instrument_type",
        "option_type",
        pl.when(derivative).then(column("underlying")).alias("underlying"),
        "expiry",
        pl.when(option).then(column("number strike")).alias("strike"),
        column("number tick_size").alias("tick_size"),
        column("number lot_size").alias("lot_size"),
        _attributes(good, layout).alias("attributes"),
        column("number last_price").alias("last_price"),
        LINE,
    )


def _exchange(layout: Layout) -> pl.Expr:
    rule = layout.mapping.exchange
    raw = pl.col(layout.place(rule.column))
    if not rule.names:
        return raw
    return raw.replace_strict(list(rule.names), list(rule.names.values()), default=None, return_dtype=pl.String)


def _kind(layout: Layout) -> pl.Expr:
    word = pl.col("word")
    kind = pl.when(word.is_in(["CE", "PE"])).then(pl.lit("OPT")).otherwise(word)
    rule = layout.mapping.instrument_type.index_when
    if rule is None:
        return kind
    index = (word == "EQ") & pl.col(layout.place(rule.column)).str.contains(rule.pattern)
    return pl.when(index).then(pl.lit("IDX")).otherwise(kind)


def _option_type(layout: Layout) -> pl.Expr:
    word = pl.col("word")
    said = pl.when(word.is_in(["CE", "PE"])).then(word)
    rule = layout.mapping.option_type
    if rule is None:
        return said
    names, values = list(rule.names), list(rule.names.values())
    read = pl.col(layout.place(rule.column)).replace_strict(names, values, default=None, return_dtype=pl.String)
    return pl.when(word == "OPT").then(read).otherwise(said)


def _text(frame: pl.DataFrame, layout: Layout, field: Field_) -> pl.Expr:
    picked = layout.mapping.picked(field)
    if picked is None or not layout.has(picked.column):
        return pl.lit(None, dtype=pl.String)
    text = _picked(layout, picked)
    if field == "exchange_token" and not _all_whole(frame.select(text).to_series()):
        text = text.str.replace(r"^(\d+)\.0*$", "$1")  # a number that a spreadsheet has been at
    return text


def _all_whole(texts: pl.Series) -> bool:
    return texts.cast(pl.Int64, strict=False).null_count() == texts.null_count()


def _picked(layout: Layout, picked: Picked) -> pl.Expr:
    text = pl.col(layout.place(picked.column))
    for kind, other in picked.by_type.items():
        text = pl.when(pl.col("instrument_type") == kind).then(pl.col(layout.place(other))).otherwise(text)
    return text if picked.pattern is None else text.str.extract(picked.pattern)


def _token(frame: pl.DataFrame, layout: Layout) -> list[pl.Expr | pl.Series]:
    place = layout.place(layout.mapping.token.column)
    if layout.mapping.token.text is not None:
        return [pl.lit(None, dtype=pl.Int64).alias("instrument_token"), pl.col(place).alias("broker_key")]
    number = whole_numbers(frame[place])
    return [number.alias("instrument_token"), pl.lit(None, dtype=pl.String).alias("broker_key")]


def _decimal(frame: pl.DataFrame, layout: Layout, field: Field_) -> pl.Series | pl.Expr:
    picked = layout.mapping.picked(field)
    if picked is None or not layout.has(picked.column):
        return pl.lit(None, dtype=pl.String).alias(f"number {field}")
    text = frame.select(_picked(layout, picked).alias(field))[field]
    return canonical_decimals(text).alias(f"number {field}")


def _lot_size(frame: pl.DataFrame, layout: Layout) -> pl.Series | pl.Expr:
    picked = layout.mapping.picked("lot_size")
    if picked is None or not layout.has(picked.column):
        return pl.lit(None, dtype=pl.Int64)
    return whole_numbers(frame.select(_picked(layout, picked)).to_series())


def _expiry(frame: pl.DataFrame, layout: Layout) -> pl.Expr:
    rule = layout.mapping.expiry
    if rule is None or not layout.has(rule.column):
        return pl.lit(None, dtype=pl.String).alias("expiry")
    place = layout.place(rule.column)
    words: Sequence[str] = frame[place].drop_nulls().unique().to_list()  # a few hundred at the most
    days = [_day(word, rule) for word in words]
    if days == words:  # written as we write them
        return pl.col(place).alias("expiry")
    return pl.col(place).replace_strict(words, days, default=None, return_dtype=pl.String).alias("expiry")


def _day(word: str, rule: ExpiryRule) -> str | None:
    if not word.isascii():  # digits of another script, which strptime would take
        return None
    for form in rule.dates:
        try:
            return checked_date(_READ.get(form, _strptime(form))(word)).isoformat()
        except (ValueError, OverflowError, InvalidInput):
            continue
    return None


def _strptime(form: str) -> Callable[[str], date]:
    return lambda word: datetime.strptime(word, form).date()  # noqa: DTZ007 - only its day counts


_READ: dict[str, Callable[[str], date]] = {
    "epoch": lambda word: datetime.fromtimestamp(int(word), UTC).date(),
    "epoch_ms": lambda word: datetime.fromtimestamp(int(word) / 1_000, UTC).date(),
}


def _attributes(good: pl.DataFrame, layout: Layout) -> pl.Expr:
    """JSON text of the columns that are not mapped, and of those kept in the broker's words where ours differ."""
    pieces = [_piece(good, layout, name, pl.col(layout.place(name))) for name in layout.extra]
    for name in layout.mapping.attributes.keep:
        if layout.has(name):
            raw = pl.col(layout.place(name))
            told = pl.any_horizontal(raw == pl.col(ours) for ours in ("trading_symbol", "underlying", "option_type"))
            pieces.append(_piece(good, layout, name, pl.when(~told.fill_null(value=False)).then(raw)))
    if not pieces:
        return pl.lit(None, dtype=pl.String)
    body = pl.concat_str(pieces, separator=",", ignore_nulls=True)
    return pl.when(body != "").then(pl.concat_str(pl.lit("{"), body, pl.lit("}")))


def _piece(good: pl.DataFrame, layout: Layout, name: str, value: pl.Expr) -> pl.Expr:
    series = good[layout.place(name)]
    if series.str.contains(r'["\\]').any():
        value = value.str.replace_all("\\", "\\\\", literal=True).str.replace_all('"', '\\"', literal=True)
    head = json.dumps(name, ensure_ascii=False)
    return pl.concat_str(pl.lit(f'{head}:"'), value, pl.lit('"'))
