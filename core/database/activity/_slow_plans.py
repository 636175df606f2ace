"""A hook that adds the plan to the slow-query log."""

import asyncio
import time
from collections import OrderedDict
from concurrent.futures import CancelledError

from sqlalchemy.ext.asyncio import AsyncEngine

from core.config.options import SecondsOrOff
from core.database.activity._plan import explain
from core.database.activity._statement import checked_statement
from core.database.errors import ManagerNotConnected, PandaDatabaseError, StatementFault
from core.database.monitoring import QueryEvent, get_logger, without_literals

_REMEMBERED = 500
_SHOWN = 2_000  # characters of a statement
_WIDTH = 100
_GRACE = 5.0  # seconds beyond the server's limit until a plan is given up, pool and network included

_log = get_logger()


class SlowQueryPlans:
    """A query hook that logs the plan of a slow statement as `slow query plan`, each statement's once in a while.

    Give it to the manager (`hooks=[plans]`), and `start` it when that is connected. Nothing waits for it: it is called on
    the hook's own thread and borrows one connection at a time from the engine, with which `explain` executes nothing. A
    statement that cannot be planned, or no connection in time, is a line at INFO. Literals are blanked.
    """

    def __init__(self, *, again_after: SecondsOrOff = 3_600.0, timeout: float = 2.0) -> None:
        """`again_after` seconds pass until the same statement is planned again; `timeout` is the server's for each."""
        self._again_after = again_after
        self._timeout = timeout
        self._seen: OrderedDict[str, float] = OrderedDict()
        self._place: tuple[AsyncEngine, asyncio.AbstractEventLoop] | None = None

    def start(self, engine: AsyncEngine) -> None:
        """From now on, by connections of this engine and on the running event loop."""
        try:
            self._place = (engine, asyncio.get_running_loop())
        except RuntimeError as error:
            raise ManagerNotConnected("plans are made on the manager's event loop, and none is running here") from error

    def stop(self) -> None:
        """Log no further plan; call it before the manager closes."""
        self._place = None

    def __call__(self, event: QueryEvent) -> None:
        """On the hook's thread, which this blocks until the plan is logged."""
        place = self._place
        if not event.slow or place is None or not place[1].is_running() or not self._due(event.statement):
            return
        work = self._log_plan(place[0], event)
        try:
            future = asyncio.run_coroutine_threadsafe(work, place[1])
        except RuntimeError:  # the loop was closed this moment
            work.close()
            return
        try:
            future.result(self._timeout + _GRACE)
        except (TimeoutError, CancelledError):
            future.cancel()

    def _due(self, statement: str) -> bool:
        try:
            checked_statement(statement)
        except StatementFault:  # COMMIT, COPY and all else without a plan
            return False
        now = time.monotonic()
        last = self._seen.get(statement)
        if last is not None and now - last < self._again_after:
            return False
        self._seen[statement] = now
        self._seen.move_to_end(statement)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return True

    async def _log_plan(self, engine: AsyncEngine, event: QueryEvent) -> None:
        shown = without_literals(event.statement)[:_SHOWN]
        try:
            plan = await explain(engine, event.statement, timeout=self._timeout)
        except PandaDatabaseError as error:
            _log.info("slow query without plan", statement=shown, error=type(error).__name__)
            return
        _log.warning(
            "slow query plan",
            statement=shown,
            seconds=round(event.seconds, 6),
            plan=plan.text(_WIDTH, literals=False),
            observations=[item.text for item in plan.observations],
        )
