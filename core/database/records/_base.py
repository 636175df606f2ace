"""What every record has in common."""

import json
from decimal import Decimal
from typing import Any, NoReturn, Self

from pydantic import BaseModel, ConfigDict

from core.database.errors import InvalidInput


class Record(BaseModel):
    """A row on its way in: strict, no unknown field, immutable, its errors never show the value given."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        revalidate_instances="always",
        allow_inf_nan=False,
    )

    def columns(self) -> dict[str, Any]:
        """The fields as they are, for `Model(**record.columns())` or `insert(Model).values(...)`."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """As Pydantic's, but a number whose digits its parser would lose raises `InvalidInput` instead."""
        json.loads(json_data, parse_float=_refuse_lossy, parse_constant=_refuse_constant)
        return super().model_validate_json(json_data, **options)


class ReadRecord(Record):
    """A row on its way out, made of a model's attributes: `UserRead.model_validate(user)`."""

    model_config = ConfigDict(from_attributes=True)


def _refuse_lossy(text: str) -> None:
    number = Decimal(text)
    if Decimal(repr(float(text))) != number:
        raise InvalidInput("a number in the JSON has more digits than a float holds; write it as text")


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidInput(f"{name} is not JSON")
