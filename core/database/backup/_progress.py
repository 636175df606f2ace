"""What a long command says of itself while it works."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Step:
    """How far one activity is."""

    activity: Literal[
        "checking the file", "dumping", "digesting rows", "restoring", "comparing rows", "building indexes"
    ]
    done: int
    total: int | None
    unit: Literal["bytes", "tables"]
    what: str = ""
    """The table at hand, where it is known."""


OnStep = Callable[[Step], None]
"""Called often, on the event loop or in a thread of its own; it must be quick and must not raise."""


def silent(step: Step) -> None:
    """For who wants no progress."""
