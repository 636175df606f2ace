"""Transactions that begin as a broker. Whoever names none pays nothing for it: listeners stand where the option was given."""

from typing import Any

from sqlalchemy import Connection

from core.database.driver import DriverConnection
from core.database.errors import SessionMisuse

BROKER = "panda_broker"
"""The execution option, of an engine or a connection, that names the broker of its transactions."""


def begin_as_broker(connection: Connection) -> None:
    """Listens to `begin`: the transaction begins as the broker of the connection's options, and of none where they name none."""
    options = connection.get_execution_options()
    broker: str | None = options.get(BROKER)
    if broker is not None and options.get("isolation_level") == "AUTOCOMMIT":
        raise SessionMisuse("a broker's session is always in a transaction; AUTOCOMMIT would lead out of it")
    raw = driver_connection(connection)
    if raw is not None:
        raw.broker = broker


def driver_connection(connection: Connection | None) -> DriverConnection | None:
    """The driver's own, of a connection that is open and sound."""
    if connection is None or connection.closed or connection.invalidated:
        return None
    raw: Any = connection.connection.driver_connection
    return raw
