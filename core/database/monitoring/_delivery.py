"""Strangers' functions, called where they can hold nothing up: a bounded queue and a daemon thread for each."""

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import Any

from core.database.monitoring._events import Event, Hook
from core.database.monitoring._log import get_logger

QUEUE = 10_000
"""Events that wait for one hook at the most; more are dropped and counted."""
_GATHER = 0.05  # seconds between the first event and its delivery: a thread woken for each would disturb the event loop
_IDLE = 5.0  # seconds without an event after which the thread ends; the next event starts another
# The event loop waits for the interpreter while an event is delivered; after so many seconds the thread sleeps, since a mere
# offer of the interpreter is taken back before the other thread wakes. A queue that is half full is emptied without rests.
_SLICE = 100e-6
_REST = 1e-6

_log = get_logger()

Item = tuple[Callable[..., Event], tuple[Any, ...], float, Context]
"""The kind of event, its fields without the last, time.perf_counter() of its end, and the context of the code that caused it."""

_delivering: ContextVar[tuple["Delivery", ...]] = ContextVar("panda_delivering")
"""The hooks inside which the code runs, outermost first."""
_deliveries: "weakref.WeakSet[Delivery]" = weakref.WeakSet()


class Delivery:
    """One hook's queue. `put` is quick and never raises; everything else happens on the hook's thread."""

    __slots__ = (
        "__weakref__",
        "_alone",
        "_busy",
        "_idle",
        "_limit",
        "_lock",
        "_queue",
        "_thread",
        "_wake",
        "dropped",
        "failed",
        "hook",
    )

    def __init__(self, hook: Hook, *, limit: int = QUEUE) -> None:
        self.hook = hook
        self.dropped = 0
        self.failed = 0
        self._limit = limit
        self._alone = (self,)
        self._fresh()
        _deliveries.add(self)

    def put(self, item: Item) -> None:
        """Queue it, or count it as dropped. From any thread."""
        queue = self._queue
        if len(queue) >= self._limit:
            self.dropped += 1
            return
        queue.append(item)
        if self._idle:
            self._rouse()

    @property
    def pending(self) -> bool:
        """Whether an event waits or is with the hook."""
        return bool(self._queue) or self._busy

    def hasten(self) -> None:
        """Deliver what waits without gathering more."""
        self._wake.set()

    def _fresh(self) -> None:
        self._queue: deque[Item] = deque()
        self._idle = True  # nobody looks at the queue unless roused
        self._busy = False
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def _rouse(self) -> None:
        with self._lock:
            self._idle = False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"panda-hook-{self.hook.name}", daemon=True)
                self._thread.start()
            else:
                self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.clear()
            self._wake.wait(_GATHER)
            if self._queue:
                self._busy = True
                self._deliver()
                self._busy = False
            elif self._over():
                return

    def _over(self) -> bool:
        """Wait until there is something; True after so long without that the thread may end."""
        self._idle = True
        if not self._queue:  # what comes after this look rouses
            self._wake.wait(_IDLE)
        with self._lock:
            if not self._queue and not self._wake.is_set():
                self._thread = None
                return True
            self._idle = False
            return False

    def _deliver(self) -> None:
        queue = self._queue
        start = time.perf_counter()
        shift = time.time() - start
        while queue:
            kind, fields, at, context = queue.popleft()
            inside = context.get(_delivering)
            if inside is not None and self in inside:
                continue  # the hook's own use of the database
            context.copy().run(self._call, kind(*fields, at + shift), inside)
            if time.perf_counter() - start > _SLICE:
                time.sleep(_REST if len(queue) < self._limit / 2 else 0)
                start = time.perf_counter()
                shift = time.time() - start

    def _call(self, event: Event, inside: "tuple[Delivery, ...] | None") -> None:
        _delivering.set(self._alone if inside is None else (*inside, self))
        try:
            self.hook.call(event)
        except BaseException as error:  # a stranger's code on a thread of its own: nobody else would hear of it
            self.failed += 1
            if self.failed == 1:
                _log.warning("query hook failed", hook=self.hook.name, error=type(error).__name__)


def _after_fork() -> None:
    """The threads stayed with the parent, and so do the events that were theirs to deliver."""
    for delivery in list(_deliveries):
        delivery._fresh()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - this module's own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
