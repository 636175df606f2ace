"""A name as it was typed, and the labels of where it came from and who acted."""

import unicodedata
from collections.abc import Callable

from core.database.errors import InvalidInput
from core.database.records import LABEL_RULE, checked_username

MIN_USERNAME = 3
"""In characters; the longest is that of the column."""
_NO_LETTERS = ("Cn", "Co", "Cs", "Cf")  # not assigned, private, surrogate, format
_BLANK = "\u2800\U0001d159"  # that count as symbols, and show nothing
_LONGEST_TYPED = 1_000  # what has more cannot be a name, however it shrinks when it is brought to its one form


def new_name(username: str) -> str:
    """A name that may be registered, in its one form. Raises `InvalidInput`, which names `username`.

    Of characters that this Python's Unicode knows: of others nobody can tell yet what their one form will be.
    """
    name = _checked("username", checked_username, username)
    if any(unicodedata.category(each) in _NO_LETTERS or each in _BLANK for each in name):
        raise InvalidInput("username: holds a character that is unknown, private or shows nothing", column="username")
    if len(name) < MIN_USERNAME:
        raise InvalidInput(f"username: must have at least {MIN_USERNAME} characters", column="username")
    return name


def name_of(typed: str) -> str | None:
    """The name in its one form; None for what cannot be one. Raises `InvalidInput` for what is no text at all."""
    if not isinstance(typed, str):  # pyright: ignore[reportUnnecessaryIsInstance] - values come from requests
        raise InvalidInput(f"username: takes str, not {type(typed).__name__}", column="username")
    if len(typed) > _LONGEST_TYPED:
        return None
    try:
        return checked_username(typed)
    except InvalidInput:
        return None


def form_of(typed: str) -> str:
    """What a name's attempts are counted and recorded under: its one form or, for what can be no name, the text itself."""
    name = name_of(typed)
    return typed if name is None else name


def checked_source(source: str | None) -> str | None:
    """Raises `InvalidInput`, which names `source`."""
    return None if source is None else _checked("source", LABEL_RULE, source)


def checked_actor(actor: str | None) -> str | None:
    """Raises `InvalidInput`, which names `actor`."""
    return None if actor is None else _checked("actor", LABEL_RULE, actor)


def _checked(column: str, rule: Callable[[str], str], value: str) -> str:
    try:
        return rule(value)
    except InvalidInput as fault:
        raise InvalidInput(f"{column}: {fault.message}", column=column) from None
