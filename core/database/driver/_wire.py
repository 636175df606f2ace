"""What a connection itself knows of its way to the server."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# asyncpg ships no type information; this room alone sees it.

import ssl
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from core.database.driver._connection import DriverConnection


@dataclass(frozen=True, kw_only=True, slots=True)
class WireFacts:
    """What was agreed when the connection was made."""

    server_pid: int
    """The process that answered then. A pooler makes one up: it differs from what `pg_backend_pid()` says."""
    tls: str | None
    """Such as TLSv1.3; None for plain text."""
    cipher: str | None
    certificate: bytes | None
    """The server's certificate as DER, whether it was verified or not."""


async def wire_facts(connection: AsyncConnection) -> WireFacts:
    """Of the driver's connection behind this one; nothing is sent."""
    raw: DriverConnection = (await connection.get_raw_connection()).driver_connection  # type: ignore[assignment]
    transport = getattr(raw, "_transport", None)
    secured: ssl.SSLObject | None = transport.get_extra_info("ssl_object") if transport is not None else None
    cipher = secured.cipher() if secured is not None else None
    return WireFacts(
        server_pid=raw.get_server_pid(),
        tls=secured.version() if secured is not None else None,
        cipher=cipher[0] if cipher else None,
        certificate=secured.getpeercert(binary_form=True) if secured is not None else None,
    )
