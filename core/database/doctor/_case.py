"""What is examined, as the checks see it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core.database.doctor._finding import Status
from core.database.driver import WireFacts
from core.database.engine import DatabaseUrl, EngineOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one host said when it was asked."""

    host: str
    port: int
    wire: WireFacts
    backend_pid: int
    standby: bool
    version: str

    @property
    def is_pooled(self) -> bool:
        """A direct server names, at the start, the process that answers later; a pooler cannot."""
        return self.wire.server_pid != self.backend_pid


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """The database in question and how an application would use it."""

    url: DatabaseUrl
    options: EngineOptions
    encryption_keys: str | None
    answer: Answer
    now: Callable[[], float]
    """Our clock, as seconds since 1970."""
    data_directory: Path | None = None
    """Of the built-in server; None for any other."""
    as_application: bool = True
    """The connection under examination is made as an application's would be, its time limits included."""

    @property
    def grave(self) -> Status:
        """What may pass on a developer's machine and not where money is real."""
        return "error" if self.is_guarded else "warning"

    @property
    def is_guarded(self) -> bool:
        return self.options.environment in ("staging", "production")


def reset_of(case: Case, name: str, source: str) -> str:
    """How to take back a server's setting, by where pg_settings says that it comes from."""
    role, database = f'"{case.url.user}"', f'"{case.url.database}"'
    match source:
        case "client" | "session":
            return f"Remove -c {name}=... from the options of the URL"
        case "database":
            return f"ALTER DATABASE {database} RESET {name};"
        case "user":
            return f"ALTER ROLE {role} RESET {name};"
        case "database user":
            return f"ALTER ROLE {role} IN DATABASE {database} RESET {name};"
        case _:
            return f"ALTER SYSTEM RESET {name}; SELECT pg_reload_conf();"


async def row(connection: AsyncConnection, sql: str, **values: Any) -> Any:
    """The one row of a query."""
    return (await connection.execute(text(sql), values)).one()


async def rows(connection: AsyncConnection, sql: str, **values: Any) -> Sequence[Any]:
    return (await connection.execute(text(sql), values)).all()
