"""Amounts, shares and times as people read them, and as JSON."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from core.cli._output import Output


def amount(value: Decimal | None) -> str:
    """Exact, with thousands separators, and at least two places."""
    if value is None:
        return ""
    whole, _, places = f"{value:,f}".partition(".")
    return f"{whole}.{places.rstrip('0'):0<2}"


def percent(share: float | None) -> str:
    """Short, however large: a few good days come to much in a year."""
    if share is None:
        return ""
    return f"{share:,.2%}" if abs(share) < 100 else f"{share * 100:.3g}%"


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def moment(at: datetime | None, clock: ZoneInfo) -> str:
    """To the second, or as fine as it was recorded."""
    if at is None:
        return ""
    local = at.astimezone(clock)
    return f"{local:%Y-%m-%d %H:%M:%S}" + (f".{local.microsecond:06}".rstrip("0") if local.microsecond else "")


def table(out: Output, rows: Sequence[Sequence[str]], columns: Sequence[str], *, text: int = 1) -> None:
    """Under `columns`, all but the first `text` of them set to the right, as numbers are."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]

    def set_right(row: Sequence[str]) -> list[str]:
        return [
            cell if place < text else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]

    out.table([set_right(row) for row in rows], columns=set_right(columns))


def as_json(value: Any) -> Any:
    """Named tuples and dataclasses by their fields, rows of the database by their columns; what is in them likewise."""
    from dataclasses import fields, is_dataclass

    from pydantic import BaseModel
    from sqlalchemy import inspect
    from sqlalchemy.orm import DeclarativeBase

    whole: Any = value
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    names: Any = None
    if isinstance(value, DeclarativeBase):
        names = [column.key for column in inspect(value).mapper.column_attrs]
    elif is_dataclass(value):
        names = [field.name for field in fields(value)]
    elif isinstance(value, tuple):
        names = getattr(value, "_fields", None)  # pyright: ignore[reportUnknownArgumentType]
    if names is not None:
        return {name: as_json(getattr(whole, name)) for name in names}
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in whole.items()}
    return [as_json(item) for item in whole] if isinstance(value, list | tuple) else whole
