"""Which months have their partition, as far as a writer knows, and the making of those that have none."""

import asyncio
import copy
from datetime import datetime

from core.database.connection import DatabaseManager
from core.database.errors import PandaDatabaseError, WriterClosed
from core.trading.portfolios._lane import is_passing, pause_after
from core.trading.portfolios._partitions import ensure_partitions


class Months:
    """Each is made once, by a task of its own on a connection of its own, for all rows that wait for it."""

    def __init__(self, manager: DatabaseManager) -> None:
        self._manager = manager
        self._known: set[tuple[int, int]] = set()
        self._making: dict[tuple[int, int], asyncio.Task[None]] = {}

    def knows(self, time: datetime) -> bool:
        return (time.year, time.month) in self._known

    def forget(self, time: datetime) -> None:
        """Its partition was found missing."""
        self._known.discard((time.year, time.month))

    def stop(self) -> None:
        """End what is being made; who waits for it gets `WriterClosed`."""
        for task in list(self._making.values()):
            task.cancel()

    async def ensure(self, time: datetime, due: float) -> None:
        """Have the month's partition made. Raises what that meets, and `TimeoutError` when the loop's time `due` has come."""
        month = (time.year, time.month)
        task = self._making.get(month)
        if task is None:
            task = self._making[month] = asyncio.create_task(self._make(time, due), name="snapshot partition")
            task.add_done_callback(_seen)  # whoever waited for it may have been cancelled
        try:
            async with asyncio.timeout_at(due):
                await asyncio.shield(task)
        except PandaDatabaseError as error:
            raise copy.copy(error) from error
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise WriterClosed("the snapshot writer was closed before it came to this row") from None

    async def _make(self, time: datetime, due: float) -> None:
        month, failures = (time.year, time.month), 0
        try:
            while True:
                try:
                    await ensure_partitions(self._manager, time, time)
                except PandaDatabaseError as error:
                    failures += 1
                    pause = pause_after(failures)
                    if not is_passing(error) or asyncio.get_running_loop().time() + pause > due:
                        raise
                    await asyncio.sleep(pause)
                else:
                    self._known.add(month)
                    return
        finally:
            del self._making[month]


def _seen(task: "asyncio.Task[None]") -> None:
    if not task.cancelled():
        task.exception()
