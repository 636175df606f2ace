"""What the demo found, as one frozen value, and how it says where it is."""

from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, JsonValue

__all__ = [
    "Command",
    "CurvePoint",
    "DemoReport",
    "DemoReporter",
    "PortfolioLine",
    "SampleInstrument",
    "SilentReporter",
    "StepTiming",
]


class DemoReporter(Protocol):
    """Told of each step as it happens; called from the event loop, so it must not block."""

    def started(self, step: str) -> None:
        """`step` is a short sentence for people, such as "Load 100,000 instruments"."""
        ...

    def advanced(self, step: str, *, done: int, total: int) -> None:
        """So much of the step is done."""
        ...

    def finished(self, step: str, *, seconds: float, note: str) -> None:
        """`note` says what came out of it, such as "100,000 added"."""
        ...

    def failed(self, step: str) -> None:
        """The step ended by an error or was broken off."""
        ...


class SilentReporter:
    """A reporter that says nothing."""

    def started(self, step: str) -> None:
        """Say nothing."""

    def advanced(self, step: str, *, done: int, total: int) -> None:
        """Say nothing."""

    def finished(self, step: str, *, seconds: float, note: str) -> None:
        """Say nothing."""

    def failed(self, step: str) -> None:
        """Say nothing."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StepTiming(_Frozen):
    step: str
    seconds: float
    note: str


class SampleInstrument(_Frozen):
    instrument_token: int
    trading_symbol: str
    exchange: str
    instrument_type: str
    underlying: str | None
    expiry: date | None
    strike: Decimal | None
    tick_size: Decimal | None
    lot_size: int | None


class PortfolioLine(_Frozen):
    """A portfolio at its latest snapshot; money in `currency`."""

    portfolio_id: str
    name: str | None
    broker: str
    currency: str
    snapshot_time: datetime
    cash: Decimal
    total_pnl: Decimal
    equity: Decimal


class CurvePoint(_Frozen):
    time: datetime
    equity: Decimal


class Command(_Frozen):
    """Something to type next, and what it is for."""

    purpose: str
    command: str


class DemoReport(_Frozen):
    """Everything that the demo shows. `to_json()` is one object; Decimals are strings, times ISO 8601 in UTC."""

    url: str
    """The embedded URL, for DATABASE__POSTGRES_URL."""
    dsn: str
    """The plain libpq URL of the running server, for psql and other clients."""
    directory: Path
    first_run: bool
    as_of: date
    revision: str | None
    health: dict[str, JsonValue]
    counts: dict[str, int]
    """Rows per table."""
    instrument: SampleInstrument | None
    portfolios: tuple[PortfolioLine, ...]
    curve_portfolio: str
    curve: tuple[CurvePoint, ...]
    steps: tuple[StepTiming, ...]
    seconds: float
    next: tuple[Command, ...]

    def to_json(self) -> str:
        return self.model_dump_json(indent=2)
