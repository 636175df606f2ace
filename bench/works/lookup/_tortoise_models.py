"""The table as Tortoise maps it."""

from tortoise import fields
from tortoise.models import Model

__all__ = ["Instrument"]


class Instrument(Model):
    token = fields.BigIntField(primary_key=True, generated=False)
    symbol = fields.TextField()
    name = fields.TextField()
    exchange = fields.TextField()
    kind = fields.TextField()
    strike = fields.DecimalField(max_digits=28, decimal_places=10)
    tick_size = fields.DecimalField(max_digits=28, decimal_places=10)
    lot_size = fields.IntField()
    expiry = fields.DateField()
    is_active = fields.BooleanField()
    updated_at = fields.DatetimeField()

    class Meta:  # pyright: ignore[reportIncompatibleVariableOverride]
        table = "bench_instruments"
