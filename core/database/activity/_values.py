"""What is seen of a server at one moment, as frozen values. Durations are seconds, sizes bytes."""

import datetime as dt
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """The server, and the counters of the one database that was asked."""

    version: str
    uptime: float
    standby: bool
    lag: float | None
    """Of a standby: how far it is behind what it has received; None on a primary or where nothing was replayed."""
    database: str
    role: str
    """The role that asks."""
    max_connections: int
    size: int | None
    """Of the database; None where it was not asked for."""
    commits: int
    rollbacks: int
    blocks_hit: int
    blocks_read: int
    deadlocks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """One session of the server, as pg_stat_activity tells of it."""

    pid: int
    kind: str | None
    """client backend, autovacuum worker and so on; None where it is hidden."""
    database: str | None
    user: str | None
    application: str
    client: str | None
    """The client's address, or `local` for a unix socket; None where it is hidden."""
    state: str | None
    """active, idle, idle in transaction, idle in transaction (aborted) and so on; None where it is hidden."""
    state_seconds: float | None
    statement_seconds: float | None
    """Since the statement began that runs, or that ran last."""
    transaction_seconds: float | None
    wait: str | None
    """Type and event, such as `Lock transactionid`; None while it waits for nothing."""
    statement: str | None
    """What runs, or ran last in the open transaction, every literal blanked; None where it was not asked for."""
    hidden: bool
    """The asking role may not see more of it than its names."""

    @property
    def is_client(self) -> bool:
        """A connection of an application; where that is hidden, whatever has a user."""
        return self.kind == "client backend" or (self.kind is None and self.user is not None)

    @property
    def seconds(self) -> float:
        """By what it is called slow: the age of its statement while that runs, else of its transaction."""
        age = self.statement_seconds if self.state == "active" else self.transaction_seconds
        return age or 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LockWait:
    """A session that waits for a lock."""

    pid: int
    blocked_by: tuple[int, ...]
    """The sessions that hold it or wait before this one; 0 stands for a prepared transaction."""
    target: str
    """What is to be locked: `table orders`, `row of orders`, `advisory lock 1, 7`."""
    mode: str
    """ShareLock, AccessExclusiveLock and so on."""
    seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Replica:
    """A standby that streams from the server."""

    application: str
    client: str | None
    state: str | None
    lag: float | None
    lag_bytes: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Activity:
    """A server at one moment. The session that asked is in none of it."""

    at: dt.datetime
    """The server's clock."""
    server: Server
    sessions: tuple[Session, ...]
    waits: tuple[LockWait, ...]
    replicas: tuple[Replica, ...]

    @property
    def hidden(self) -> int:
        """How many sessions the asking role may not look into."""
        return sum(session.hidden for session in self.sessions)


@dataclass(frozen=True, kw_only=True, slots=True)
class ApplicationUse:
    """The connections of one application, user and client; the server cannot tell apart the processes in them."""

    application: str
    user: str | None
    client: str | None
    connections: int
    active: int
    idle: int
    idle_in_transaction: int
    other: int
    """In no state of these, or hidden."""
    oldest_transaction: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What happened between two looks, a second; None where the counters were reset in between."""

    seconds: float
    commits: float | None
    rollbacks: float | None
    hit_share: float | None
    """Of the blocks wanted, those found in the server's memory, 0 to 1; None where none was wanted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LockLine:
    """A line of the tree of who blocks whom."""

    pid: int
    depth: int
    """0 for who blocks others; who waits for them is one deeper."""
    wait: LockWait | None
    """None for one that waits for nobody."""
    also_behind: int
    """How many further sessions it waits for, besides the one above it."""
    circular: bool
    """It stands first only because its waits form a circle, which the server will end as a deadlock."""
