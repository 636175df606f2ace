"""Write a new migration file: numbered, dated, after the head, and never one that does nothing in silence."""

import contextlib
import datetime as dt
import fcntl
import os
import re
import tempfile
import unicodedata
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from core.config.options import Timeouts
from core.database.errors import ConfigurationError, SchemaError, SchemaMultipleHeads
from core.database.schema._scripts import MIGRATIONS, Revision, Scripts, read

_SLUG = 40  # characters
_MESSAGE = 200  # characters
_INSTALLED = {"site-packages", "dist-packages"}


@dataclass(frozen=True, slots=True)
class Draft:
    """The bodies of a migration, from a comparison of the models with what the migrations make."""

    upgrade: str = ""
    """Python, indented by four blanks; empty where nothing was found to do."""
    downgrade: str = ""
    imports: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What the bodies leave undone, or get wrong, in sentences."""


def new(
    message: str,
    *,
    versions: Path | None = None,
    draft: Draft | None = None,
    timeouts: Timeouts | None = None,
    today: dt.date | None = None,
) -> Revision:
    """Write the file of a new migration after the head and return what it says of itself.

    It is named YYYY_MM_DD_NNNN_slug.py after `today` (by default today in UTC), the next number and the message, which is
    its docstring, and declares the limits of `timeouts`. Without a draft, or with an empty one, its functions raise until
    they are written. `versions` is the folder, by default this project's; it may be empty.

    Raises `ConfigurationError` for a message without a word, or a folder that is not there, belongs to an installed
    package or may not be written; `SchemaMultipleHeads`; `SchemaError` for files that are no history. Then nothing is
    written, and no file is ever overwritten.
    """
    folder = _folder(versions)
    text = _checked(message)
    with _alone(folder):
        head, number = _next(folder)
        day = today or dt.datetime.now(dt.UTC).date()
        path = folder / f"{day:%Y_%m_%d}_{number}_{slug(text)}.py"
        source = _source(text, number, head, draft or Draft(), timeouts or Timeouts())
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(source)
        except FileExistsError:
            raise ConfigurationError(f"{path} is there already", hint="Say it in other words.") from None
        except OSError as error:
            path.unlink(missing_ok=True)
            raise _unwritable(folder, error.strerror or type(error).__name__) from error
    return read(folder).revisions[number]


def require_writable(message: str, *, versions: Path | None = None) -> None:
    """Raise what `new` would, before the work that a draft is."""
    folder = _folder(versions)
    _checked(message)
    _next(folder)


def slug(message: str) -> str:
    """The message as part of a file's name: [a-z0-9_], at most 40 characters, cut between words if it can be."""
    plain = unicodedata.normalize("NFKD", message).encode("ascii", "ignore").decode().lower()
    words = re.findall(r"[a-z0-9]+", plain)
    found = ""
    for word in words:
        longer = f"{found}_{word}" if found else word[:_SLUG]
        if len(longer) > _SLUG:
            break
        found = longer
    return found or "migration"


def _checked(message: str) -> str:
    text = " ".join(message.split())
    if not any(map(str.isalnum, text)):
        raise ConfigurationError("a migration needs a message", hint='Say what it does: `panda migrate new "Add ..."`.')
    if not text.isprintable():
        raise ConfigurationError("the message holds a character that cannot be printed", hint="Say it in plain text.")
    if len(text) > _MESSAGE:
        raise ConfigurationError(f"the message is longer than {_MESSAGE} characters", hint="Say it in a line.")
    # Double quotes could end the docstring, a backslash is escaped by none in a raw one, and it must not come last.
    text = text.replace('"', "'")
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _folder(versions: Path | None) -> Path:
    folder = MIGRATIONS / "versions" if versions is None else versions
    if versions is None and _INSTALLED & set(folder.parts):
        raise ConfigurationError(
            f"{folder} belongs to an installed package",
            hint="Work in a checkout of it, or name your application's folder of migrations with --directory.",
        )
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is no folder", hint="Make it, or name another one with --directory.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _unwritable(folder, "no permission")
    return folder


def _unwritable(folder: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"no file can be written into {folder} ({reason})",
        hint="Change its permissions, or name your application's folder of migrations with --directory.",
    )


@contextlib.contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Two at once would take the same number. The lock is on the folder itself and leaves nothing behind."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _next(folder: Path) -> tuple[str | None, str]:
    """The revision to follow and the number to take."""
    if not any(path for path in folder.glob("*.py") if not path.name.startswith((".", "__"))):
        return None, "0001"
    scripts = read(folder)
    if len(scripts.heads) > 1:
        raise SchemaMultipleHeads(
            f"The migration files have more than one head: {scripts.head}.",
            hint="Let one follow the other first: change its down_revision, and its number if it is yours alone.",
        )
    number = _number(scripts)
    if number in scripts.revisions:
        raise SchemaError(f"number {number} is taken", hint="`panda migrate history` lists the revisions.")
    return scripts.head, number


def _number(scripts: Scripts) -> str:
    numbers = [int(name) for name in scripts.revisions if name.isascii() and name.isdigit()]
    return f"{max(numbers, default=len(scripts.revisions)) + 1:04}"


def _source(message: str, number: str, head: str | None, draft: Draft, timeouts: Timeouts) -> str:
    from alembic.util import template_to_file  # late: Alembic is loaded only where it is used

    unwritten = f'    raise NotImplementedError("{number} is not written yet")'
    with tempfile.TemporaryDirectory(prefix="panda-new-") as name:
        made = Path(name) / "made.py"
        template_to_file(
            str(MIGRATIONS / "script.py.mako"),
            str(made),
            "utf-8",
            quoted=('r"""' if "\\" in message else '"""') + message + '"""',
            imports=draft.imports,
            up_revision=number,
            down_revision=head,
            lock_timeout=timeouts.lock,
            statement_timeout=timeouts.migration,
            upgrade=draft.upgrade or unwritten,
            downgrade=draft.downgrade or unwritten,
        )
        return made.read_text(encoding="utf-8")
