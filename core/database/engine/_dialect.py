"""SQLAlchemy's asyncpg dialect, told at once what it would ask each server on the first connection.

The stock dialect spends four statements in a transaction on it, most of the time that connecting takes. The driver was
told the version and the string syntax in the server's greeting, and our connections pin the isolation level themselves.
"""

from collections.abc import Mapping
from typing import Any, cast

from sqlalchemy import Connection, Engine, event
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

from core.database.driver import DriverConnection
from core.database.engine._brokers import BROKER, begin_as_broker

DRIVER_NAME = "postgresql+panda"


class PandaDialect(PGDialect_asyncpg):
    """As `postgresql+asyncpg`; its first connection differs, and the option `BROKER` is one more that it knows."""

    supports_statement_cache = True

    def _get_server_version_info(self, connection: Connection) -> tuple[int, ...]:
        version = _raw(connection).get_server_version()
        return (version.major, version.minor)

    def _get_default_schema_name(self, connection: Connection) -> str:
        return "public"

    def get_default_isolation_level(self, dbapi_conn: Any) -> Any:
        return "READ COMMITTED"

    def set_engine_execution_options(self, engine: Engine, opts: Mapping[str, Any]) -> None:
        super().set_engine_execution_options(engine, opts)
        if BROKER in opts:
            event.listen(engine, "begin", begin_as_broker)

    def set_connection_execution_options(self, connection: Connection, opts: Mapping[str, Any]) -> None:
        super().set_connection_execution_options(connection, opts)
        if BROKER in opts:
            event.listen(connection, "begin", begin_as_broker)

    def _set_backslash_escapes(self, connection: Connection) -> None:
        settings: Any = cast("Any", _raw(connection)).get_settings()
        self._backslash_escapes = getattr(settings, "standard_conforming_strings", "on") == "off"


def _raw(connection: Connection) -> DriverConnection:
    raw: Any = connection.connection.driver_connection
    return raw


registry.register("postgresql.panda", __name__, PandaDialect.__name__)
