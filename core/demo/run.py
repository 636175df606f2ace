"""`panda demo`: the main job, from nothing to an equity curve, on a database of its own."""

from datetime import date
from pathlib import Path

from core.config.options import Environment
from core.demo.report import DemoReport, DemoReporter

__all__ = ["run_demo"]


async def run_demo(
    *,
    directory: Path | None = None,
    instruments: Path | None = None,
    fresh: bool = False,
    environment: Environment = "development",
    as_of: date | None = None,
    reporter: DemoReporter | None = None,
) -> DemoReport:
    """Start the demo's own embedded server, fill it, and gather what there is to show."""
    raise NotImplementedError
