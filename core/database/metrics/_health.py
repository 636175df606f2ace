"""The last answer of a health check, as metrics."""

import time
from typing import Any, get_args

from core.database.metrics._families import Families
from core.database.schema import Status

_STATES: tuple[str, ...] = get_args(Status)


class HealthReading:
    """A report with its age; one that is too old says that the database is not up."""

    def __init__(self, *, max_age: float) -> None:
        """`max_age` is in seconds."""
        self._max_age = max_age
        self._read: tuple[float, float, dict[str, Any]] | None = None

    def note(self, report: dict[str, Any]) -> None:
        """Keep the report of a check that has just ended."""
        self._read = (time.monotonic(), time.time(), report)

    @property
    def up(self) -> bool:
        """Whether the database answered the last check, and that lately."""
        return self._fresh() is not None

    def fill(self, families: Families, database: str) -> None:
        """Whether it answers; and if so where it stands."""
        families.gauge("up", "Whether the database answers (1) or not (0).", self.up, database=database)
        if self._read is not None:
            families.gauge("last_check_timestamp_seconds", "When it was asked last.", self._read[1], database=database)
        report = self._fresh()
        if report is None:
            return
        standby = report["role"] == "standby"
        families.gauge(
            "in_recovery", "Whether the server is a standby (1) or a primary (0).", standby, database=database
        )
        if report["replica_lag"] is not None:
            families.gauge(
                "replica_lag_seconds",
                "Age of the last transaction that the standby has replayed.",
                report["replica_lag"],
                database=database,
            )
        if (schema := report["schema"]) is not None:
            _fill_schema(families, database, schema)

    def _fresh(self) -> dict[str, Any] | None:
        if self._read is None or time.monotonic() - self._read[0] > self._max_age:
            return None
        report = self._read[2]
        return None if report["status"] == "unhealthy" else report


def _fill_schema(families: Families, database: str, schema: dict[str, Any]) -> None:
    for state in _STATES:
        families.gauge(
            "schema_state",
            "Where the schema stands against this release: 1 at the state it is in.",
            schema["status"] == state,
            database=database,
            state=state,
        )
    families.gauge(
        "schema_info",
        "The revision recorded in the database, and the head of this release.",
        1,
        database=database,
        revision=",".join(schema["current"]),
        head=schema["head"],
    )
