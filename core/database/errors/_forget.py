"""What may not be kept of a foreign error: values in its words and its attributes, and the locals of its frames."""

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from sqlalchemy import exc as sa

from core.database.errors._tree import PandaDatabaseError
from core.printable import printable_value

Function = TypeVar("Function", bound=Callable[..., Any])

# Messages of these classes quote values; the others quote names only.
_SPEAKING = frozenset({"08", "0A", "23", "25", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "XX"})
_QUOTING_STATES = frozenset({"42601"})
_SECRET_FIELDS = ("detail", "hint", "context", "query", "internal_query", "where")
_FRAMES_WITH_VALUES = frozenset({"core", "sqlalchemy", "asyncpg", "pydantic"})
_ARGUMENT = re.compile(r"query argument \$\d+")


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, nearest first; each once. Not what its caller was handling when it arose."""
    return _linked(error, handled=False)


def chain(error: BaseException) -> Iterator[BaseException]:
    """All that a report of the error would show: what it came from, what was being handled, the members of groups."""
    return _linked(error, handled=True)


def _linked(error: BaseException, *, handled: bool) -> Iterator[BaseException]:
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        queue += [getattr(current, "orig", None), current.__cause__]
        if handled:
            queue.append(current.__context__)
            if isinstance(current, BaseExceptionGroup):
                queue += cast("BaseExceptionGroup[BaseException]", current).exceptions


def scrub(error: BaseException) -> None:
    """Remove from a driver's exception and its causes all that may quote a value: DETAIL, CONTEXT, parameters.

    What is left of its words is made printable: names are quoted as somebody wrote them.
    """
    for current in chain(error):
        if isinstance(current, PandaDatabaseError):
            continue
        if isinstance(current, sa.StatementError):
            current.params = None
            current.hide_parameters = True
        if not is_driver_error(current):
            continue
        for name in _SECRET_FIELDS:
            if getattr(current, name, None) is not None:
                setattr(current, name, None)
        current.args = tuple(map(printable_value, current.args)) if speaks(current) else (plain(current),)
        if current.args and hasattr(current, "message"):
            current.message = current.args[0]  # type: ignore[attr-defined]


def forget_locals(error: BaseException) -> None:
    """Clear the local variables in the frames that SQLAlchemy, the driver and this package have left behind in the tracebacks.

    Parameters and passwords stand in them, and reporters of errors that record locals send these away. The lines of the
    traceback stay, and so do the caller's own frames.
    """
    for current in chain(error):
        step = current.__traceback__
        while step is not None:
            room: str = step.tb_frame.f_globals.get("__name__", "")
            if room.partition(".")[0] in _FRAMES_WITH_VALUES:
                with contextlib.suppress(RuntimeError):  # it is still running
                    step.tb_frame.clear()
            step = step.tb_next


def forgets(function: Function) -> Function:
    """Decorate a function, or a coroutine function, that is given a secret: no frame of what it raises keeps one.

    What is raised within a session's block is cleared when it leaves the block; this is for what has no such block.
    """

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except BaseException as error:
            forget_locals(error)
            del arguments, named
            raise

    @functools.wraps(function)
    async def call_and_await(*arguments: Any, **named: Any) -> Any:
        try:
            return await function(*arguments, **named)
        except BaseException as error:
            forget_locals(error)
            del arguments, named
            raise

    return cast("Function", call_and_await if inspect.iscoroutinefunction(function) else call)


def is_driver_error(error: BaseException) -> bool:
    """By the room of its class: only the driver's own room imports the driver."""
    return any(base.__module__.startswith(("asyncpg", "sqlalchemy.dialects")) for base in type(error).__mro__)


def arose_below(error: BaseException) -> bool:
    """In SQLAlchemy or the driver, not in code of the caller's that they have called."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    room: str = step.tb_frame.f_globals.get("__name__", "") if step is not None else ""
    return room.partition(".")[0] in _FRAMES_WITH_VALUES


def speaks(error: BaseException) -> bool:
    """Whether a driver's error may be quoted: its words name things and hold no value."""
    state: str | None = getattr(error, "sqlstate", None)
    if state is None:
        return not str(error.args[0] if error.args else "").startswith("invalid input")
    return state[:2] in _SPEAKING and state not in _QUOTING_STATES


def plain(error: BaseException) -> str:
    """A message without values: the condition's name, as the driver's class gives it."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__.removesuffix("Error")).lower()
    place = _ARGUMENT.search(str(error.args[0])) if error.args else None
    return f"{words} ({place.group()})" if place else words
