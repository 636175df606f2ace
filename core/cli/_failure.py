"""An exception as people and scripts are told of it: exit code, plain words, causes, the mend, no secret.

0 done; 1 failed; 2 wrong usage, settings or URL; 3 the schema is not the one this release works with; 4 the database
cannot be reached or is not fit; 5 somebody else holds a lock; 6 a value or a file was refused; 130 interrupted; 141 who
read the output has gone.
"""

import re
import sys
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

EXIT_CODES = (
    (0, "done"),
    (1, "failed"),
    (2, "wrong usage, settings or URL; nothing was done"),
    (3, "the schema is behind, ahead, missing or damaged"),
    (4, "the database cannot be reached, is unhealthy, or was not ready in time"),
    (5, "another process holds the lock"),
    (6, "a value or an input file was refused"),
    (130, "interrupted"),
)

FAILED, USAGE, SCHEMA, NOT_READY, LOCKED, REFUSED, INTERRUPTED, CLOSED = 1, 2, 3, 4, 5, 6, 130, 141

_IN_URL = re.compile(r"(://[^\s:/@]*:)[^\s]*@|(password=)[^\s&'\")]*")
_IDENTIFIERS = ("sqlstate", "constraint", "table", "column", "revision")
_SILENT = ("sqlalchemy", "asyncpg", "pydantic", "alembic")


class CommandError(Exception):
    """A command that cannot go on, in words that need no translation."""

    def __init__(self, message: str, *, hint: str | None = None, code: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code


@dataclass(frozen=True, slots=True)
class Failure:
    """What is said about an exception."""

    type: str
    message: str
    hint: str | None
    code: int
    lines: tuple[str, ...] = ()
    """What a program said of it, or the single problems of bad settings."""
    causes: tuple[tuple[str, str], ...] = ()
    """Type and text of what led to it, nearest first."""
    details: dict[str, Any] = field(default_factory=dict[str, Any])
    """The server's identifiers, and the single problems of bad settings."""

    def to_json(self) -> dict[str, Any]:
        causes = [{"type": kind, "message": text} for kind, text in self.causes]
        return {
            "error": {
                "type": self.type,
                "message": "\n".join((self.message, *self.lines)),
                "hint": self.hint,
                "causes": causes,
                "exit_code": self.code,
                **self.details,
            }
        }


def describe(error: BaseException) -> Failure:
    """Of any exception; never raises."""
    hide = _Censor()
    code, message, hint = _of(error)
    lines = _lines(error)
    causes: list[tuple[str, str]] = []
    said = "\n".join((message, *lines))
    for cause in _causes(error):
        text = _of(cause)[1]
        if text and text not in said:
            causes.append((type(cause).__name__, hide(text)))
            said += text
    details: dict[str, Any] = {
        name: value for name in _IDENTIFIERS if isinstance(value := getattr(error, name, None), str) and value
    }
    problems = getattr(error, "problems", None)
    if problems and type(error).__name__ == "SettingsError":
        details["problems"] = [{"setting": item.setting, "message": hide(item.message)} for item in problems]
    return Failure(
        type(error).__name__,
        hide(message),
        hide(hint) if hint else None,
        code,
        lines=tuple(map(hide, lines)),
        causes=tuple(causes),
        details=details,
    )


def censored(text: str) -> str:
    """The text without passwords: those of the settings in force, and those of any URL in it."""
    return _Censor()(text)


def _of(error: BaseException) -> tuple[int, str, str | None]:
    """Exit code, words and hint of one exception, causes aside."""
    if isinstance(error, CommandError):
        return error.code, error.message, error.hint
    if _is_a(error, "core.config.settings", "SettingsError"):
        hint = "Correct them where they are set: the environment, or .env in this folder."
        return USAGE, "the settings cannot be used", hint
    if _is_a(error, "core.database.errors", "PandaDatabaseError"):
        return _code(error), str(getattr(error, "message", error)), getattr(error, "hint", None)
    if isinstance(error, OSError):
        name = f": {error.filename}" if isinstance(error.filename, str) else ""
        return FAILED, f"{error.strerror or error or type(error).__name__}{name}", None
    if any(base.__module__.startswith(_SILENT) for base in type(error).__mro__):
        return FAILED, "", None  # their texts may quote values; ours have said it
    words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return FAILED, f"unexpected {words}", "This is a defect; run it again with --debug and report what that prints."


def _lines(error: BaseException) -> list[str]:
    """What stands below the words of an exception."""
    if _is_a(error, "core.config.settings", "SettingsError"):
        return [str(problem) for problem in getattr(error, "problems", ())]
    if _is_a(error, "core.database.errors", "PandaDatabaseError"):
        return list(getattr(error, "lines", ()))
    return []


def _code(error: BaseException) -> int:
    from sqlalchemy.orm.exc import StaleDataError

    from core.database import errors as e

    if isinstance(error, e.ConfigurationError | e.InvalidKey):
        return USAGE
    if isinstance(error, e.SchemaLockTimeout | e.LockTimeout):
        return LOCKED
    if isinstance(error, e.SchemaError):
        return FAILED if isinstance(error, e.MigrationFailed) else SCHEMA
    if isinstance(error, e.ConnectionFailed | e.PoolExhausted):
        return NOT_READY
    # Errors of the rooms above the database say by a foreign class what they are: a name that is not there, a lost update.
    foreign = (ValueError, LookupError, StaleDataError)
    return REFUSED if isinstance(error, (e.InvalidInput, e.SnapshotConflict, *foreign)) else FAILED


def _is_a(error: BaseException, module: str, name: str) -> bool:
    """Without importing the module: an exception of a class that was never loaded is none of its."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(error, getattr(loaded, name))


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found and len(found) < 10:
        found.append(current)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return found[1:]


class _Censor:
    """The last guard: texts should hold no secret in the first place."""

    def __init__(self) -> None:
        words = sorted(_secrets(), key=len, reverse=True)
        self._secrets = re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in words)) if words else None

    def __call__(self, text: str) -> str:
        text = _IN_URL.sub(lambda found: f"{found[1]}***@" if found[1] else f"{found[2]}***", text)
        return self._secrets.sub("***", text) if self._secrets else text


def _secrets() -> set[str]:
    """The passwords and keys of the settings in force, as written and decoded."""
    room = sys.modules.get("core.config.settings")
    if room is None:
        return set()
    try:
        database = room.get_settings().database
    except ValueError:  # bad settings: then nothing was done with any of them
        return set()
    url: str = database.postgres_url
    before_host, _, rest = url.partition("://")[2].rpartition("@")
    user, _, password = before_host.partition(":")
    found = {password, *re.findall(r"password=([^&]*)", url)}
    if database.encryption_keys is not None:
        keys: str = database.encryption_keys.get_secret_value()
        found |= {keys, *re.split(r"[\s,;:]+", keys)}
    found |= {unquote(secret) for secret in found}
    # A password that is also the user or the database cannot be told from these in a sentence.
    return {secret for secret in found if len(secret) > 3} - {user, rest.partition("/")[2].partition("?")[0]}
