"""The PostgreSQL that everybody works against: the project's own embedded one, or the one that BENCH_DATABASE_URL names."""

import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import URL, make_url

__all__ = ["Target", "opened_target"]


@dataclass(frozen=True, slots=True)
class Target:
    """One database, in the words that each driver uses. `host` is a name or the folder of a unix socket."""

    host: str
    port: int
    user: str
    password: str | None
    database: str

    @property
    def url(self) -> str:
        """The URL that this project takes; it holds the password."""
        parts = URL.create("postgresql", username=self.user, password=self.password, database=self.database)
        if self.host.startswith("/"):
            url = parts.set(query={"host": self.host, "port": str(self.port)})
        else:
            url = parts.set(host=self.host, port=self.port)
        return url.render_as_string(hide_password=False)

    @property
    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of `asyncpg.connect`, which most peers hand on."""
        password = {} if self.password is None else {"password": self.password}
        return {"host": self.host, "port": self.port, "user": self.user, "database": self.database, **password}

    @classmethod
    def from_url(cls, url: str) -> "Target":
        """Read a plain PostgreSQL URL; a socket folder may stand in its query as `host`."""
        parsed = make_url(url)
        host = parsed.host or str(parsed.query.get("host", "127.0.0.1"))
        port = parsed.port or int(str(parsed.query.get("port", 5432)))
        password = None if parsed.password is None else str(parsed.password)
        return cls(host, port, parsed.username or "postgres", password, parsed.database or "postgres")


@asynccontextmanager
async def opened_target() -> AsyncGenerator[Target]:
    """An empty database of our own, dropped afterwards."""
    with _server_url() as url:
        server = Target.from_url(url)
        name = f"panda_bench_{secrets.token_hex(4)}"
        await _execute(server, f"CREATE DATABASE {name}")
        try:
            yield Target(server.host, server.port, server.user, server.password, name)
        finally:
            await _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def _server_url() -> Generator[str]:
    if given := os.environ.get("BENCH_DATABASE_URL"):
        yield given
        return
    from core.database.embedded import EmbeddedServer

    folder = Path(tempfile.mkdtemp(prefix="panda-bench-"))
    folder.chmod(0o755)  # when root measures, another user runs the server and must be able to enter
    server = EmbeddedServer.from_url(f"embedded://{folder / 'server'}")
    try:
        yield server.ensure()
    finally:
        server.stop()
        shutil.rmtree(folder)


async def _execute(target: Target, statement: str) -> None:
    connection = await asyncpg.connect(**target.keywords)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
