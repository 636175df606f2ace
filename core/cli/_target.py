"""The file that a command writes: whole or not there, and never over another one unasked."""

import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from core.cli._failure import REFUSED, CommandError


def check_target(file: Path, *, force: bool) -> None:
    """Before the work: whether `file` may be written. Raises CommandError."""
    if file.exists() or file.is_symlink():
        if not force:
            raise _there(file)
        if file.is_symlink() or not file.is_file():
            raise CommandError(f"{file} is no regular file, so it is not replaced", hint="Name another.", code=REFUSED)
    if not file.parent.is_dir():
        raise CommandError(f"there is no folder {file.parent}", hint=f"Make it: mkdir -p {file.parent}", code=REFUSED)


@contextmanager
def published(file: Path, *, force: bool) -> Generator[Path]:
    """A file to be written beside `file`, which gets its name in one step when it is whole and on the disk."""
    part = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        if force:
            part.replace(file)
        else:
            file.hardlink_to(part)  # fails where another file has come meanwhile
    except FileExistsError:
        raise _there(file) from None
    finally:
        part.unlink(missing_ok=True)


def _there(file: Path) -> CommandError:
    return CommandError(f"{file} exists", hint="Name a new file, or say --force to replace it.", code=REFUSED)
