"""Logins as Prometheus counts them."""

import weakref
from collections import Counter
from typing import TYPE_CHECKING, Final

from core.database.connection import DatabaseManager

if TYPE_CHECKING:
    from core.database.metrics import Families

OUTCOMES: Final = ("accepted", "refused", "delayed")
_counts: "weakref.WeakKeyDictionary[DatabaseManager, Counter[str]]" = weakref.WeakKeyDictionary()


def count(manager: DatabaseManager, outcome: str) -> None:
    """One more."""
    _counts.setdefault(manager, Counter())[outcome] += 1


class LoginMetrics:
    """The logins through one manager, by outcome: `DatabaseMetrics(manager, sources=[accounts.LoginMetrics(manager)])`.

    `accepted`, `refused`, and `delayed` for those that had to wait and were not tried; changes of one's own password are
    among them.
    """

    def __init__(self, manager: DatabaseManager) -> None:
        self._counts = _counts.setdefault(manager, Counter())

    def fill(self, families: "Families", database: str) -> None:
        """Called by the registry, from any thread."""
        for outcome in OUTCOMES:
            families.counter(
                "logins_total", "Logins by outcome.", self._counts[outcome], database=database, outcome=outcome
            )
