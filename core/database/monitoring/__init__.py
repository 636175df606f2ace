"""What statements, transactions and pools cost: events for hooks, statistics, a log of what is slow.

No parameter is ever seen here: the driver hands over SQL text with placeholders, seconds and the error. What the project
itself does with an event (statistics, counters, the log) is done on the spot and takes about a microsecond; strangers'
hooks run on threads of their own.
"""

from core.database.monitoring._delivery import Delivery
from core.database.monitoring._events import (
    CheckoutEvent,
    CheckoutResult,
    Event,
    Hook,
    QueryEvent,
    QueryHook,
    RetryEvent,
    Server,
    SessionEvent,
    TransactionEvent,
    TransactionOutcome,
)
from core.database.monitoring._literals import without_literals
from core.database.monitoring._log import SESSION, LoggedSession, get_logger
from core.database.monitoring._monitor import QueryMonitor
from core.database.monitoring._reports import ConnectionMonitor, PoolMonitor
from core.database.monitoring._statements import operation
from core.database.monitoring._statistics import SHOWN, Histogram, StatementStatistics, Tally
from core.database.monitoring._tokens import SqlToken, sql_tokens

__all__ = [
    "SESSION",
    "SHOWN",
    "CheckoutEvent",
    "CheckoutResult",
    "ConnectionMonitor",
    "Delivery",
    "Event",
    "Histogram",
    "Hook",
    "LoggedSession",
    "PoolMonitor",
    "QueryEvent",
    "QueryHook",
    "QueryMonitor",
    "RetryEvent",
    "Server",
    "SessionEvent",
    "SqlToken",
    "StatementStatistics",
    "Tally",
    "TransactionEvent",
    "TransactionOutcome",
    "get_logger",
    "operation",
    "sql_tokens",
    "without_literals",
]
