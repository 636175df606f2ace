"""asyncpg: connect with a limit per host, probe, raw access. Nothing else of the project imports it."""

from core.database.driver._connection import DriverConnection, OnStatement
from core.database.driver._connector import Connector, ConnectSpec, SessionAttrs
from core.database.driver._raw import probe, raw_connection

__all__ = [
    "ConnectSpec",
    "Connector",
    "DriverConnection",
    "OnStatement",
    "SessionAttrs",
    "probe",
    "raw_connection",
]
