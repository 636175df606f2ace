"""asyncpg: connect with a limit per host, probe, raw access. Nothing else of the project imports it."""

from core.database.driver._connection import DriverConnection, OnStatement
from core.database.driver._connector import Connector, ConnectSpec, SessionAttrs
from core.database.driver._listen import listen
from core.database.driver._raw import probe, raw_connection, wipe
from core.database.driver._single import CommittingConnection
from core.database.driver._wire import WireFacts, wire_facts

__all__ = [
    "CommittingConnection",
    "ConnectSpec",
    "Connector",
    "DriverConnection",
    "OnStatement",
    "SessionAttrs",
    "WireFacts",
    "listen",
    "probe",
    "raw_connection",
    "wipe",
    "wire_facts",
]
