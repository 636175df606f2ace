"""A search in two parts: what decides its SQL, and the values of its parameters."""

from dataclasses import dataclass
from typing import Any

from core.trading.instruments._query import Query, after


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What of a search decides its SQL. All else is a parameter, so that searches of one shape share one statement."""

    blanks: bool
    """The text has blanks, so that it and what is left without them are two symbols to look for."""
    token: bool
    digits: bool
    words: bool
    name: bool
    strike: bool
    option_type: bool
    kind: str | None
    expiry: bool
    month: bool
    numbers: int
    filters: tuple[str, ...]
    """The conditions on `i`, whose parameters are the arguments' names."""
    wanted: str | None
    """The only instrument type, where the caller has said one."""
    given: str
    """The underlying that the caller has said: "", "fits" the name in the text, or "other"."""
    active_only: bool
    limit: int

    @property
    def has_terms(self) -> bool:
        """As of the query."""
        return self.strike or self.option_type or self.kind is not None or self.expiry or self.month


def shape_of(query: Query, filters: dict[str, tuple[str, Any]], *, active_only: bool, limit: int) -> Shape:
    """`filters` are conditions on `i` with the values that they name."""
    given = {name: value for name, (_, value) in filters.items()}
    underlying = given.get("underlying")
    fits = underlying is None or "".join(underlying.split()).startswith(query.name)
    return Shape(
        blanks=query.text != query.squeezed,
        token=query.text.isascii() and query.text.isdigit() and int(query.text) < 1 << 63,
        digits=any(character.isdigit() for character in query.squeezed),
        words=bool(query.words),
        name=bool(query.name),
        strike=query.strike is not None,
        option_type=query.option_type is not None,
        kind=query.kind,
        expiry=query.expiry is not None,
        month=query.month is not None,
        numbers=len(query.numbers),
        filters=tuple(condition for condition, _ in filters.values()),
        wanted=given.get("instrument_type"),
        given="" if underlying is None else "fits" if fits else "other",
        active_only=active_only,
        limit=limit,
    )


def values_of(query: Query, filters: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    """Every parameter that the SQL of any shape may name."""
    given = {name: value for name, (_, value) in filters.items()}
    squeezed = query.squeezed
    values: dict[str, Any] = {
        "text": query.text,
        "squeezed": squeezed,
        "name": given.get("underlying") or query.name,
        "words": query.lexemes,
        "strike": query.strike,
        "side": query.option_type,
        "day": query.expiry,
        "month": query.month,
        "beginnings": [squeezed[:end] for end in range(1, min(len(squeezed), 30) + 1)],
        **given,
        **{f"number_{place}": number for place, number in enumerate(query.numbers)},
    }
    if query.text.isascii() and query.text.isdigit():
        values["token"] = int(query.text)
    for name, text in (("text", query.text), ("squeezed", squeezed), ("name", query.name)):
        values[f"{name}_from"], values[f"{name}_to"] = text, after(text) if text else ""
    return values
