"""The demo's report for people: rich, within 80 columns."""

from rich.console import Console

from core.demo.report import DemoReport

__all__ = ["RichReporter", "render"]


class RichReporter:
    """A `DemoReporter` that prints a line per step on `console`."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def started(self, step: str) -> None:
        """Show a spinner for the step."""

    def finished(self, step: str, *, seconds: float, note: str) -> None:
        """Print the step's line."""


def render(report: DemoReport, console: Console) -> None:
    """Print the report on `console`."""
    raise NotImplementedError
