"""A file of keys, as DATABASE__ENCRYPTION_KEYS_FILE names it: written whole or not at all, and for its owner alone."""

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Generator
from pathlib import Path

from core.cli._failure import REFUSED, CommandError


def put_first(file: Path, new: str) -> tuple[str, ...]:
    """Write `id:key` before the keys that are there, and return all ids. Raises CommandError and `InvalidKey`."""
    from core.database.encryption import KeyRing

    place = Path(os.path.realpath(file))  # the file that a link leads to is replaced, not the link
    try:
        with _alone_in(place.parent):
            before = place.read_text().strip() if place.exists() else ""
            has_keys = any(line.partition("#")[0].strip() for line in before.splitlines())
            if has_keys and new.partition(":")[0] in KeyRing.parse(before).key_ids:
                raise CommandError(
                    f"{file} has a key {new.partition(':')[0]!r} already",
                    hint="Give the new one another --id.",
                    code=REFUSED,
                )
            # Whoever has written a line for each key, or a comment, finds them as they were.
            between = "\n" if len(before.splitlines()) > 1 or "#" in before else ","
            whole = f"{new}{between}{before}" if before else new
            ids = KeyRing.parse(whole).key_ids
            _replace(place, whole + "\n")
    except UnicodeDecodeError:
        raise CommandError(f"{file} is no file of keys", code=REFUSED) from None
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror or type(error).__name__}") from None
    return ids


@contextlib.contextmanager
def _alone_in(folder: Path) -> Generator[None]:
    """One after the other, so that no key is lost which another has just put there; where a folder can be locked."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _replace(place: Path, text: str) -> None:
    """Of an owner who is not us the file stays theirs, where we may give it, and its group's if that alone might read it."""
    handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")  # 0600 from the first moment
    try:
        with os.fdopen(handle, "w") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        if place.exists():
            owner = place.stat()
            with contextlib.suppress(PermissionError):
                os.chown(name, owner.st_uid, owner.st_gid)
                if not owner.st_mode & stat.S_IROTH:
                    Path(name).chmod(0o600 | (owner.st_mode & stat.S_IRGRP))
        Path(name).replace(place)
    except BaseException:  # whatever ends it, no half-written file of keys is left
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    folder = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
