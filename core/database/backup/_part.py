"""The file while it is being written: beside its place, under another name, until it is whole."""

import errno
import fcntl
import hashlib
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from core.database.backup._container import BLOCK, DUMP, header, tail
from core.database.errors import BackupError, BackupRefused

SUFFIX = ".panda-part"


class PartFile:
    """An unfinished backup. The final name appears in one step, when everything is on the disk."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.descriptor = descriptor
        self._path = path
        self._digest = hashlib.sha256()
        self.dump_bytes = 0
        os.lseek(descriptor, BLOCK, os.SEEK_SET)

    @property
    def sha256(self) -> str:
        """Of the dump so far."""
        return self._digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Append to the dump. Raises BackupError where the disk is full."""
        self._write(chunk)
        self._digest.update(chunk)
        self.dump_bytes += len(chunk)

    def finish(self, manifest: bytes, *, mtime: int) -> int:
        """Add what surrounds the dump and bring all of it to the disk; the size of the whole."""
        os.lseek(self.descriptor, BLOCK + self.dump_bytes, os.SEEK_SET)  # who has read the dump meanwhile has moved it
        self._write(tail(self.dump_bytes, self.sha256, manifest, mtime))
        try:
            os.pwrite(self.descriptor, header(DUMP, self.dump_bytes, mtime), 0)
            os.fsync(self.descriptor)
        except OSError as error:
            raise self._failed(error) from error
        return os.fstat(self.descriptor).st_size

    def publish(self, target: Path, *, force: bool) -> None:
        """Give it its name; without `force` never in the place of another file."""
        try:
            if force:
                self._path.replace(target)
            else:
                _link(self._path, target)
            _sync(target.parent)
        except FileExistsError:
            raise already_there(target) from None
        except OSError as error:
            raise BackupError(f"{target} cannot be made: {error.strerror}") from error

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self.descriptor, left) :]
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> BackupError:
        return BackupError(
            f"the backup cannot be written to {self._path.parent}: {error.strerror}"
            f" (after {self.dump_bytes} bytes of the dump)",
            hint="Free space there, or name a file on another disk. The unfinished file was removed.",
        )


def check_path(path: Path) -> None:
    """Refuse what can be the name of no file here. Raises BackupRefused."""
    try:
        path.lstat()
    except ValueError:  # a NUL, or a lone surrogate that stands for no byte
        raise BackupRefused(f"{str(path)!r} is no path", hint="Name another file.") from None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise BackupRefused(f"{path} is no path here: {error.strerror}", hint="Name another file.") from error


def check_target(target: Path, *, force: bool) -> None:
    """Refuse a name under which no backup can be made, before any work. Raises BackupRefused."""
    check_path(target)
    if target.is_dir():
        raise BackupRefused(f"{target} is a folder", hint=f"Name a file in it, such as {target / 'panda.backup'}.")
    if target.is_symlink() or target.exists():
        if not force:
            raise already_there(target)
        if target.is_symlink() or not target.is_file():
            raise BackupRefused(f"{target} is no regular file, so it is not replaced", hint="Name another file.")
    if not target.parent.is_dir():
        raise BackupRefused(f"there is no folder {target.parent}", hint=f"Make it (mkdir -p {target.parent}).")


def already_there(target: Path) -> BackupRefused:
    return BackupRefused(
        f"{target} exists", hint="Name a new file, or say --force to replace it when the new one is whole."
    )


@contextmanager
def part_file(target: Path) -> Generator[PartFile]:
    """An unfinished file beside `target`, removed on leaving unless it was published; one that a killed run left is removed.

    Raises BackupRefused while another process writes a backup to the same name, and where the folder cannot be written.
    """
    path = target.with_name(target.name + SUFFIX)
    try:
        descriptor = _claim(path)
    except BlockingIOError:
        raise BackupRefused(f"another process is writing {path}", hint="Wait for it, or name another file.") from None
    except OSError as error:
        raise BackupRefused(
            f"no file can be made in {path.parent}: {error.strerror}", hint="Name a folder that you may write to."
        ) from error
    try:
        yield PartFile(path, descriptor)
    finally:
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), path.lstat()):  # not once it bears its final name
                path.unlink()
        os.close(descriptor)


def _claim(path: Path) -> int:
    """A new file under that name, locked as long as this process lives, which tells it from one that was left behind."""
    while True:
        with suppress(FileNotFoundError):
            leftover = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(leftover, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Removed, never written over: a run that was killed in its last step has linked it to the final name.
                if os.path.samestat(os.fstat(leftover), path.lstat()):
                    path.unlink()
            finally:
                os.close(leftover)
        with suppress(FileExistsError):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.fchmod(descriptor, 0o600)
                ours = os.path.samestat(os.fstat(descriptor), path.lstat())
            except BaseException:  # whatever ends the attempt, nothing is left open
                os.close(descriptor)
                raise
            if ours:  # else another run took it for a leftover, before it was locked
                return descriptor
            os.close(descriptor)


def _link(path: Path, target: Path) -> None:
    try:
        target.hardlink_to(path)
    except FileExistsError:
        raise
    except (
        OSError
    ):  # a file system without hard links: the look before leaves a moment in which another may be replaced
        if target.is_symlink() or target.exists():
            raise FileExistsError from None
        path.rename(target)
    else:
        path.unlink()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
