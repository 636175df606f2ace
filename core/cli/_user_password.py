"""Passwords for `panda user`: typed without echo, or read from stdin; never an argument, which every process can see."""

import sys
from typing import Annotated

import typer

from core.cli._failure import REFUSED, USAGE, CommandError

FromStdin = Annotated[bool, typer.Option("--password-stdin", help="Read it from stdin, a line.")]
BothFromStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the old and the new one, a line each.")]

_LONGEST = 10_000


def new_password(prompt: str, *, from_stdin: bool) -> str:
    """Asked for twice on a terminal."""
    return _line() if from_stdin else _typed(prompt, twice=True)


def old_and_new(*, from_stdin: bool) -> tuple[str, str]:
    """The present password and the one to come."""
    if from_stdin:
        return _line(), _line()
    return _typed("Present password", twice=False), _typed("New password", twice=True)


def _typed(prompt: str, *, twice: bool) -> str:
    if sys.stdin is None or not sys.stdin.isatty():  # pyright: ignore[reportUnnecessaryComparison] - so it is after `<&-`
        raise CommandError(
            "there is no terminal to ask for the password on",
            hint="Send it by stdin with --password-stdin.",
            code=USAGE,
        )
    return typer.prompt(prompt, hide_input=True, confirmation_prompt="Once more" if twice else False, err=True)


def _line() -> str:
    text = "" if sys.stdin is None else sys.stdin.readline(_LONGEST)  # pyright: ignore[reportUnnecessaryComparison]
    if not text:
        raise CommandError("stdin holds no password", hint="Send a line for each.", code=REFUSED)
    return text.removesuffix("\n").removesuffix("\r")
