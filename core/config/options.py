"""Small frozen values that say how to talk to PostgreSQL, with every default in one place.

All durations are seconds. Values are checked when made: a negative limit or an unknown field is a `ValidationError` that
shows the field but never the value given.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

__all__ = [
    "Environment",
    "MonitoringOptions",
    "PoolOptions",
    "RetryOptions",
    "SchemaManagement",
    "Timeouts",
    "TlsMode",
    "TlsOptions",
]

Environment = Literal["development", "testing", "staging", "production"]
SchemaManagement = Literal["auto", "create_all", "migrations_only"]
TlsMode = Literal["disable", "prefer", "require", "verify-ca", "verify-full"]

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
SecondsOrOff = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]

_STRICT = ConfigDict(extra="forbid", hide_input_in_errors=True)


@dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class PoolOptions:
    """How many connections one process may hold.

    The budget of a process is `size + max_overflow + read_size`; times `processes` it must fit below the server's
    max_connections, which is checked when a manager connects.
    """

    size: Annotated[int, Field(ge=1, le=1_000)] = 10
    """Connections kept open for read-write work."""
    max_overflow: Annotated[int, Field(ge=0, le=1_000)] = 5
    """Further ones opened under load and closed when returned."""
    read_size: Annotated[int, Field(ge=1, le=1_000)] = 10
    """Connections of the pool behind `get_session(read_only=True)`; opened when first used."""
    wait: Seconds = 3.0
    """How long a caller waits for a free connection before `PoolExhausted`."""
    recycle: Seconds = 1_800.0
    """A connection older than this is replaced at its next use."""
    probe_after: SecondsOrOff = 5.0
    """A connection idle for longer is probed before use; 0 probes always."""
    processes: Annotated[int, Field(ge=1, le=10_000)] = 1
    """How many processes share the server with these options, for the connection budget."""

    @property
    def budget(self) -> int:
        """Connections that one process may hold at once."""
        return self.size + self.max_overflow + self.read_size


@dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class Timeouts:
    """Time limits. 0 turns a limit of the server's off; the client's own limits cannot be turned off."""

    connect: Seconds = 5.0
    """One host's TCP, TLS and authentication; a list of hosts gets this limit for each."""
    probe: Seconds = 2.0
    """The check of an idle connection, before it is given out."""
    health: Seconds = 2.0
    """A health check answers within this."""
    cleanup: Seconds = 5.0
    """Rollback and return of a connection; after that it is terminated."""
    statement: SecondsOrOff = 5.0
    """The server's statement_timeout for interactive work; bulk work and migrations set their own."""
    lock: SecondsOrOff = 2.0
    """The server's lock_timeout."""
    idle_in_transaction: SecondsOrOff = 5.0
    """The server's idle_in_transaction_session_timeout."""
    bulk: SecondsOrOff = 600.0
    """The statement_timeout of COPY and staged merges."""
    migration: SecondsOrOff = 600.0
    """The statement_timeout of one migration statement."""
    migration_lock: Seconds = 60.0
    """How long to wait for another process that is migrating."""


@dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class TlsOptions:
    """Transport security. Without a mode it follows the URL's sslmode, then the environment and host."""

    mode: TlsMode | None = None
    """None: verify-full for a non-local host in staging and production, prefer elsewhere."""
    ca_file: Path | None = None
    """The authority that signed the server's certificate; None takes the system's."""
    cert_file: Path | None = None
    key_file: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class RetryOptions:
    """How `run_transaction` tries again: full-jitter exponential back-off, bounded by attempts and by time."""

    max_attempts: Annotated[int, Field(ge=1, le=100)] = 5
    deadline: Seconds = 30.0
    """No attempt starts later than this after the first."""
    backoff: Seconds = 0.02
    """The longest pause before the second attempt; it doubles with each further one."""
    backoff_max: Seconds = 1.0


@dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class MonitoringOptions:
    """What is measured and when it is logged."""

    enabled: bool = True
    slow_query: SecondsOrOff = 0.5
    """A statement that takes longer is logged, without its parameters; 0 turns the log off."""
    slow_bulk: SecondsOrOff = 60.0
    """The same for bulk work: COPY, and the statements after it in its transaction."""
    long_session: SecondsOrOff = 30.0
    """A session open for longer is logged when it closes; 0 turns the log off."""
    max_statements: Annotated[int, Field(ge=1, le=100_000)] = 500
    """How many distinct statements the statistics keep; the least recently seen is dropped."""
