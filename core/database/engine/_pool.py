"""SQLAlchemy's pool, with a report of how long each connection was waited for."""

import time
from typing import cast

from sqlalchemy.pool import AsyncAdaptedQueuePool, PoolProxiedConnection

from core.database.monitoring import PoolMonitor


class WatchedPool(AsyncAdaptedQueuePool):
    """Reports to `watch`, if it has one; the wait includes connecting and probing."""

    _sqla_logger_namespace = "sqlalchemy.pool.impl.AsyncAdaptedQueuePool"
    """SQLAlchemy's own records stay under its own name."""
    watch: PoolMonitor | None = None

    def connect(self) -> PoolProxiedConnection:
        watch = self.watch
        if watch is None:
            return super().connect()
        start = time.perf_counter()
        watch.waiting += 1
        try:
            connection = super().connect()
        except BaseException as error:  # cancellation is reported too; nothing is swallowed
            watch.refused(time.perf_counter() - start, error)
            raise
        finally:
            watch.waiting -= 1
        watch.given(time.perf_counter() - start)
        return connection

    def recreate(self) -> "WatchedPool":
        pool = cast("WatchedPool", super().recreate())
        pool.watch = self.watch
        return pool
