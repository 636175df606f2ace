"""What is told to hooks, as frozen values, and how a hook says which of it it wants.

They are named tuples, since a frozen dataclass takes ten times as long to make. An event is queued as its fields without the
last, which is when it ended.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from core.database.errors import ConfigurationError
from core.database.monitoring._statements import first_word

CheckoutResult = Literal["ok", "exhausted", "failed", "cancelled"]
TransactionOutcome = Literal["committed", "rolled_back", "aborted", "cancelled", "unknown"]


@dataclass(frozen=True, slots=True)
class Server:
    """Where a connection leads."""

    host: str
    """A name, an address, or the folder of a unix socket."""
    port: int
    database: str | None


class QueryEvent(NamedTuple):
    """One statement that ended, well or not."""

    statement: str
    """SQL with placeholders; a literal that the caller wrote into the text is still in it."""
    seconds: float
    error: str | None
    """The name of the driver's exception, or None."""
    sqlstate: str | None
    read_only: bool
    """Whether it ran on the read-only pool."""
    failure: str | None = None
    """The name of our error class that `error` stands for; None where it ended well or the error is not the database's."""
    slow: bool = False
    """Whether it took longer than the limit of the slow-query log."""
    server: Server | None = None
    ended_at: float = 0.0
    """Seconds since the epoch."""

    @property
    def operation(self) -> str:
        """The first word, upper-case: SELECT, INSERT, COPY, COMMIT."""
        return first_word(self.statement)

    @property
    def cancelled(self) -> bool:
        """Whether the caller's task was cancelled while the statement was under way."""
        return self.error == "CancelledError"


class TransactionEvent(NamedTuple):
    """A transaction that ended."""

    outcome: TransactionOutcome
    """`committed`: stored. `rolled_back`: by choice, no statement of it had failed. `aborted`: an error or a lost
    connection ended it, nothing is stored. `cancelled`: its task was cancelled, nothing is stored. `unknown`: COMMIT was
    sent and its answer never came, so it may or may not be stored."""
    seconds: float
    """From BEGIN to the end."""
    read_only: bool
    """Whether it began READ ONLY."""
    ended_at: float = 0.0
    """Seconds since the epoch."""


class CheckoutEvent(NamedTuple):
    """A connection asked of a pool."""

    pool: str
    """`read_write` or `read_only`."""
    seconds: float
    """Waiting for a free one, connecting and probing, all together."""
    result: CheckoutResult
    failure: str | None
    """The name of our error class where the result is `exhausted` or `failed`."""
    ended_at: float = 0.0
    """Seconds since the epoch."""


class RetryEvent(NamedTuple):
    """A unit of work that is about to run again."""

    attempt: int
    """The number of the attempt that begins: 2 after the first failure."""
    failure: str
    """The name of our error class that ended the attempt before."""
    wait: float
    """Seconds of back-off before it."""
    ended_at: float = 0.0
    """Seconds since the epoch."""


class SessionEvent(NamedTuple):
    """A session that was closed."""

    seconds: float
    """How long it was open."""
    opened_at: tuple[str, int]
    """File and line of the code that opened it."""
    read_only: bool
    """Whether it read from the pool for single reads."""
    ended_at: float = 0.0
    """Seconds since the epoch."""


Event = QueryEvent | TransactionEvent | CheckoutEvent | RetryEvent | SessionEvent
EVENTS: tuple[type[Event], ...] = get_args(Event)

E = TypeVar("E", bound=Event)
QueryHook = Callable[[QueryEvent], None]
"""A function that is told of each statement. It runs on a thread of its own, in the caller's context; see `Hook`."""


class Hook:
    """A function with the kinds of events that it wants: `Hook(notify, TransactionEvent, RetryEvent)`; all without any.

    It runs on a daemon thread of its own, one event at a time and in their order, some milliseconds after the event, with
    the context variables of the code that caused it. What it raises is counted and logged once; while it blocks, its
    events wait in a bounded queue, and what does not fit is dropped and counted. Events that its own use of the database
    causes are not told to it.
    """

    __slots__ = ("call", "events", "name")

    def __init__(self, call: Callable[[Any], None], *events: type[Event], name: str | None = None) -> None:
        """`name` is what logs and metrics call it, the function's own name by default.

        Raises `ConfigurationError` for a coroutine function and for a kind that is none of `Event`.
        """
        unknown = [kind for kind in events if kind not in EVENTS]
        if unknown:
            raise ConfigurationError(
                f"{unknown[0]!r} is no kind of event", hint=f"Choose of {', '.join(kind.__name__ for kind in EVENTS)}."
            )
        if is_coroutine_function(call):
            raise ConfigurationError(
                "a hook is called on a thread without an event loop, so it cannot be a coroutine function",
                hint="Give a plain function; from it, asyncio.run_coroutine_threadsafe() reaches your loop.",
            )
        self.call = call
        self.events = events or EVENTS
        self.name = name or getattr(call, "__qualname__", None) or type(call).__name__


def is_coroutine_function(call: object) -> bool:
    """Also for an object whose `__call__` is one."""
    from inspect import iscoroutinefunction

    return iscoroutinefunction(call) or iscoroutinefunction(getattr(call, "__call__", None))  # noqa: B004 - not callable()
