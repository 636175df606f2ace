"""Where a manager's database is: at a URL, or on a built-in server that runs for it."""

import asyncio
import threading

from core.database.embedded import EmbeddedServer, is_embedded_url
from core.database.engine import DatabaseUrl
from core.database.errors import ManagerNotConnected


class Place:
    """Raises `InvalidUrl` at construction for a URL that cannot work; nothing is started yet."""

    def __init__(self, db_url: str) -> None:
        self._server = EmbeddedServer.from_url(db_url) if is_embedded_url(db_url) else None
        self.url = DatabaseUrl.parse(db_url) if self._server is None else None
        """None for the built-in server, whose URL is known once it runs."""
        self._wanted = False
        self._turn = threading.Lock()

    def __str__(self) -> str:
        return str(self._server.directory if self._server is not None else self.url)

    @property
    def built_in(self) -> bool:
        return self._server is not None

    async def reach(self) -> DatabaseUrl:
        """The URL, with the built-in server up. A caller who is cancelled waits for nothing, and the server is let go."""
        if self.url is not None:
            return self.url
        self._wanted = True
        try:
            return DatabaseUrl.parse(await asyncio.to_thread(self._ensure))
        except asyncio.CancelledError:
            self._wanted = False
            asyncio.get_running_loop().run_in_executor(None, self._let_go)  # the start goes on in its thread
            raise

    async def restart(self) -> None:
        """Have the built-in server up again. Raises `ManagerNotConnected` once it was let go."""
        await asyncio.to_thread(self._ensure)

    async def leave(self) -> None:
        """Let go of the built-in server, which is stopped if nobody else uses it."""
        self._wanted = False
        if self._server is not None:
            await asyncio.to_thread(self._let_go)

    def forget_threads(self) -> None:
        """In the child of a fork, where nobody is left to finish a turn."""
        self._turn = threading.Lock()

    def _ensure(self) -> str:
        assert self._server is not None
        with self._turn:
            if not self._wanted:
                raise ManagerNotConnected("this manager is not connected")
            return self._server.ensure()

    def _let_go(self) -> None:
        assert self._server is not None
        with self._turn:
            if not self._wanted:
                self._server.release()
