"""What a forked child inherits and must not touch: its parent's connections."""

import os
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T", bound=object)

_watched: "weakref.WeakKeyDictionary[Any, Callable[[Any], None]]" = weakref.WeakKeyDictionary()
_kept: list[Any] = []


def forget_after_fork(owner: T, abandon: Callable[[T], None]) -> None:
    """Call `abandon(owner)` in every child that this process forks, as long as the owner lives."""
    _watched[owner] = abandon


def abandon_pool(engine: AsyncEngine) -> None:
    """Give the engine a new pool without a word on the old one's sockets, which stay referenced: closing is a word."""
    _kept.append(engine.sync_engine.pool)
    engine.sync_engine.dispose(close=False)


def _after_fork() -> None:
    for owner, abandon in list(_watched.items()):
        abandon(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
