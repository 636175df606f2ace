"""How a broker's file says what an instrument is: a small declarative mapping, the shipped formats and users' own alike."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from core.database.errors import InvalidInput
from core.database.records import BROKER_RULE, VENUE_RULE
from core.trading.instruments._errors import InstrumentFileHeader, InstrumentMappingInvalid

Kind: TypeAlias = Literal["EQ", "FUT", "OPT", "IDX"]
Field_: TypeAlias = Literal[
    "exchange_token", "trading_symbol", "name", "segment", "tick_size", "lot_size", "strike", "last_price", "underlying"
]
_DATES = ("epoch", "epoch_ms")
_MAX_MAPPING = 1_000_000  # bytes


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{value!r} is not a regular expression ({error.msg})") from None
    return value


def _date_format(value: str) -> str:
    if value in _DATES or ("%d" in value and re.search("%[yY]", value) and re.search("%[mbB]", value)):
        return value
    raise ValueError(f"{value!r} is no date format: write one of strptime's, such as %d-%b-%Y, or {', '.join(_DATES)}")


def _venue(value: str) -> str:
    try:
        return VENUE_RULE(value)
    except InvalidInput as error:
        raise ValueError(f"{value!r} {error.message}") from None


def _name(value: str) -> str:
    try:
        return BROKER_RULE(value)
    except InvalidInput as error:
        raise ValueError(f"{value!r} {error.message}") from None


Pattern: TypeAlias = Annotated[str, AfterValidator(_pattern)]
DateFormat: TypeAlias = Annotated[str, AfterValidator(_date_format)]
Venue: TypeAlias = Annotated[str, AfterValidator(_venue)]
Name: TypeAlias = Annotated[str, AfterValidator(_name)]
ColumnName: TypeAlias = Annotated[str, Field(min_length=1, max_length=200)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class TokenRule(_Table):
    """The broker's key: a whole number that is the instrument_token itself, or a text for which one is made."""

    integer: ColumnName | None = None
    text: ColumnName | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.integer is None) == (self.text is None):
            raise ValueError("takes either integer or text, the column with the broker's key")
        return self

    @property
    def column(self) -> str:
        return self.integer or self.text or ""


class Picked(_Table):
    """A column; another one for some types; and which part of its text, by the pattern's first group."""

    column: ColumnName
    by_type: dict[Kind, ColumnName] = {}
    pattern: Pattern | None = None

    @model_validator(mode="after")
    def _grouped(self) -> Self:
        if self.pattern is not None and re.compile(self.pattern).groups < 1:
            raise ValueError("pattern needs a group (...): what it holds is taken")
        return self

    def needs(self) -> tuple[str, ...]:
        return (self.column, *self.by_type.values())


class ExchangeRule(_Table):
    """The venue's column, and its canonical names; without names the broker's own must be canonical."""

    column: ColumnName
    names: dict[str, Venue] = {}


class IndexRule(_Table):
    column: ColumnName
    pattern: Pattern


class TypeRule(_Table):
    """The broker's word for each type; CE and PE say OPT and the option's type at once. "" stands for an empty field."""

    column: ColumnName
    names: dict[str, Literal["EQ", "FUT", "OPT", "IDX", "CE", "PE"]] = Field(min_length=1)
    index_when: IndexRule | None = None
    """An EQ whose column matches is an index."""


class OptionRule(_Table):
    column: ColumnName
    names: dict[str, Literal["CE", "PE"]] = Field(min_length=1)


class ExpiryRule(_Table):
    column: ColumnName
    dates: tuple[DateFormat, ...] = Field(min_length=1)
    """strptime's formats, tried in order; epoch and epoch_ms are seconds and milliseconds since 1970, UTC."""
    optional: bool = False
    """The file may lack the column: then it holds no derivatives."""


class AttributeRule(_Table):
    keep: tuple[ColumnName, ...] = ()
    """Columns that are mapped, whose own words are kept all the same."""
    drop: tuple[ColumnName, ...] = ()
    """Columns that are not mapped and not kept either."""


class FormatMapping(_Table):
    """One broker's format. Every column that it does not name goes to `attributes` by its own name."""

    format: Name
    source: Name
    token: TokenRule
    columns: dict[Field_, ColumnName | Picked]
    optional: dict[Field_, ColumnName | Picked] = {}
    """Like `columns`, but the file may lack them."""
    exchange: ExchangeRule
    instrument_type: TypeRule
    option_type: OptionRule | None = None
    expiry: ExpiryRule | None = None
    attributes: AttributeRule = AttributeRule()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if missing := [name for name in ("trading_symbol", "segment") if name not in self.columns]:
            raise ValueError(f"columns lacks {' and '.join(missing)}")
        if twice := sorted(set(self.columns) & set(self.optional)):
            raise ValueError(f"{', '.join(twice)} stands in columns and in optional")
        if "OPT" in self.instrument_type.names.values() and self.option_type is None:
            raise ValueError("an instrument type OPT needs the table option_type, which tells CE from PE")
        return self

    def picked(self, field: Field_) -> Picked | None:
        """Where a field of ours is found."""
        found = self.columns.get(field) or self.optional.get(field)
        return Picked(column=found) if isinstance(found, str) else found

    def required(self) -> tuple[str, ...]:
        """The columns without which the file is not in this format."""
        rules = [self.token.column, self.exchange.column, self.instrument_type.column]
        rules += [column for field in self.columns for column in self._needs(field)]
        if self.instrument_type.index_when is not None:
            rules.append(self.instrument_type.index_when.column)
        if self.option_type is not None:
            rules.append(self.option_type.column)
        if self.expiry is not None and not self.expiry.optional:
            rules.append(self.expiry.column)
        return tuple(dict.fromkeys(rules))

    def known(self) -> frozenset[str]:
        """Every column that the mapping names, those to drop included."""
        optional = [column for field in self.optional for column in self._needs(field)]
        expiry = [self.expiry.column] if self.expiry is not None else []
        return frozenset((*self.required(), *optional, *expiry, *self.attributes.drop))

    def _needs(self, field: Field_) -> tuple[str, ...]:
        picked = self.picked(field)
        return picked.needs() if picked is not None else ()


def load_mapping(mapping: Path | str | Mapping[str, Any]) -> FormatMapping:
    """A mapping from a TOML file or its tables. Raises `InstrumentMappingInvalid`, naming table, key and what is wrong."""
    if isinstance(mapping, Mapping):
        return _validated(mapping, "the mapping")
    path = Path(mapping)
    try:
        if path.stat().st_size > _MAX_MAPPING:
            raise InstrumentMappingInvalid(f"{path} is no mapping: it is larger than {_MAX_MAPPING:,} bytes")
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if isinstance(error, InstrumentMappingInvalid):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InstrumentMappingInvalid(f"{path} cannot be read as TOML: {reason}") from None
    return _validated(tables, str(path))


@cache
def shipped() -> Mapping[str, FormatMapping]:
    """The formats that come with the package, by name; the more demanding before the others."""
    folder = resources.files("core.trading.instruments") / "formats"
    found = [
        _validated(tomllib.loads(item.read_text(encoding="utf-8")), item.name)
        for item in folder.iterdir()
        if item.name.endswith(".toml")
    ]
    return {item.format: item for item in sorted(found, key=lambda item: (-len(item.required()), item.format))}


def recognised(header: Sequence[str], *, name: str) -> FormatMapping:
    """The shipped format whose columns the header has."""
    for candidate in shipped().values():
        if set(candidate.required()) <= set(header):
            return candidate
    nearest = min(shipped().values(), key=lambda item: len(set(item.required()) - set(header)))
    missing = [column for column in nearest.required() if column not in header]
    raise InstrumentFileHeader(
        f"{name} is in no format known here ({', '.join(shipped())}); for {nearest.format}'s its header lacks"
        f" {', '.join(missing)}"
    )


def checked_header(mapping: FormatMapping, header: Sequence[str], *, name: str) -> None:
    """Raises `InstrumentFileHeader` if the file lacks a column that the mapping needs."""
    if missing := [column for column in mapping.required() if column not in header]:
        raise InstrumentFileHeader(f"{name} is not in {mapping.format}'s format: its header lacks {', '.join(missing)}")


def _validated(tables: Mapping[str, Any], name: str) -> FormatMapping:
    try:
        return FormatMapping.model_validate(dict(tables))
    except ValidationError as error:
        faults = [
            f"{'.'.join(str(part) for part in fault['loc']) or 'the whole'}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors(include_input=False, include_url=False, include_context=False)
        ]
        raise InstrumentMappingInvalid(f"{name} is not a mapping: {'; '.join(faults[:5])}") from None
