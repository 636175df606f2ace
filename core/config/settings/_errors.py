"""What is said about settings that cannot be used."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from core.printable import printable


@dataclass(frozen=True, slots=True)
class SettingProblem:
    """One bad setting: the name it goes by in the environment, and what is wrong. Never its value."""

    setting: str
    message: str
    origin: str = ""
    """Where it was set, if not in the environment: `.env`."""

    def __str__(self) -> str:
        text = f"{self.setting} in {self.origin} {self.message}" if self.origin else f"{self.setting} {self.message}"
        return printable(text)


class SettingsError(ValueError):
    """Settings that cannot be used; `problems` holds one entry for each, and `str()` one line for each."""

    def __init__(self, problems: Sequence[SettingProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


class SettingsWarning(UserWarning):
    """A setting that works but is probably not what was meant."""


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`; did you mean X?`, or nothing when nothing known is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def flatten(error: ValidationError) -> list[tuple[tuple[str, ...], str]]:
    """Each problem of a validation error as the place of the field and plain words, without the value."""
    return [(tuple(map(str, item["loc"])), _words(item)) for item in error.errors(include_url=False)]


def _words(item: ErrorDetails) -> str:
    kind, text = item["type"], item["msg"]
    if kind == "literal_error":
        choices = str(item.get("ctx", {})["expected"])
        near = did_you_mean(str(item["input"]).strip().lower(), [choice.strip("'") for choice in choices.split()])
        return f"must be {choices}, spelled exactly so{near}"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return "is not a setting"
    if kind == "value_error":
        return f"is wrong: {text.removeprefix('Value error, ')}"
    return text.removeprefix("Input ") if text.startswith("Input ") else f"is wrong: {text}"
