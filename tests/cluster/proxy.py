"""A TCP proxy before a server that can freeze, cut, and, where no TLS hides it, lose the answer to COMMIT."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Self
from urllib.parse import parse_qs, urlsplit

_COMMIT = b"COMMIT;\x00"


class FaultProxy:
    """Forwards both ways until told otherwise; `url` is the server's URL through it."""

    def __init__(self, server_url: str) -> None:
        parts = urlsplit(server_url)
        folder = parse_qs(parts.query).get("host")
        self._socket = f"{folder[0]}/.s.PGSQL.5432" if folder else None
        self._server_port = parts.port or 5432
        self._parts = parts._replace(query="sslmode=disable") if folder else parts
        self._flow = asyncio.Event()
        self._flow.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.lose_commit_reply = False
        self.commits_lost = 0
        self.port = 0

    @property
    def url(self) -> str:
        credentials = self._parts.netloc.rpartition("@")[0]
        host = "localhost" if self._socket is None else "127.0.0.1"  # the name that the certificate is for
        return self._parts._replace(netloc=f"{credentials}@{host}:{self.port}").geturl()

    def freeze(self) -> None:
        """Hold every byte back, in both directions, without closing anything."""
        self._flow.clear()

    def thaw(self) -> None:
        self._flow.set()

    def cut(self) -> None:
        """Break every connection at once."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._flow.wait()
            upstream_reader, upstream = await self._open()
            self._writers |= {writer, upstream}
            try:
                lost = asyncio.Event()
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, upstream, lost, to_server=True))
                    group.create_task(self._pump(upstream_reader, writer, lost, to_server=False))
            except* OSError:
                pass
            finally:
                self._writers -= {writer, upstream}
                upstream.transport.abort()
        writer.transport.abort()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._socket is not None:
            return await asyncio.open_unix_connection(self._socket)
        return await asyncio.open_connection("127.0.0.1", self._server_port)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lost: asyncio.Event, *, to_server: bool
    ) -> None:
        while data := await reader.read(65_536):
            await self._flow.wait()
            if to_server and self.lose_commit_reply and _COMMIT in data:
                lost.set()
            elif lost.is_set():
                continue
            writer.write(data)
            await writer.drain()
            if lost.is_set():
                self.commits_lost += 1
                await asyncio.sleep(0.05)  # the server gets and carries out what its client will never hear of
                raise ConnectionResetError
        raise ConnectionResetError


@contextlib.asynccontextmanager
async def fault_proxy(server_url: str) -> AsyncGenerator[FaultProxy]:
    async with FaultProxy(server_url) as proxy:
        yield proxy
