"""Where a request comes from, as the delays of logins take it."""

from typing import Annotated, TypeAlias

from fastapi import Depends
from starlette.requests import HTTPConnection

from core.database.errors import InvalidInput
from core.trading.accounts import source_of


def _client_source(connection: HTTPConnection) -> str | None:
    if connection.client is None:
        return None
    try:
        return source_of(connection.client.host)
    except InvalidInput:  # a unix socket has a path or nothing for it
        return None


ClientSource: TypeAlias = Annotated[str | None, Depends(_client_source)]
"""The client's address as `source` of `accounts.authenticate`; None where the server knows none.

Behind a proxy it is that of the proxy, until the server is told to believe its header (uvicorn: `--forwarded-allow-ips`).
"""
