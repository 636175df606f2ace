"""flock(2) with a time limit, safe across fork."""

import fcntl
import os
import threading
import time
from pathlib import Path

_PAUSE = 0.02

_guard = threading.RLock()
"""Held while a descriptor is opened or closed and across every fork, so that a child knows all that it inherited."""
_held: set["FileLock"] = set()


class FileLock:
    """One flock, exclusive or shared, on an open file of its own.

    The kernel drops it when the process dies, however it dies. Two of them on one path exclude each other within a
    process too. A forked child owns none of its parent's: its copies are closed at once, which leaves the parent's lock
    as it is.
    """

    __slots__ = ("_fd", "_mode", "path")

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        self.path = path
        self._mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._fd = -1

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def acquire(self, *, timeout: float) -> bool:
        """Whether the lock was obtained within `timeout` seconds; 0 tries once. Raises OSError if the file cannot be opened."""
        deadline = time.monotonic() + timeout
        while not self._try():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_PAUSE)
        return True

    def release(self) -> None:
        """Let go; does nothing if not held."""
        with _guard:
            if self._fd < 0:
                return
            # Unlocked explicitly: a copy of the descriptor may live for a moment in a child that another thread spawns.
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            self._forget()

    def fileno(self) -> int:
        return self._fd

    def hand_over(self) -> None:
        """Leave the lock to a child that was given the descriptor: it is held until the child and all its children end."""
        with _guard:
            self._forget()

    def _try(self) -> bool:
        with _guard:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            _held.add(self)
            locked = False
            try:
                fcntl.flock(self._fd, self._mode | fcntl.LOCK_NB)
                # A lock on a file that was deleted meanwhile protects nothing.
                locked = os.path.samestat(os.fstat(self._fd), self.path.stat())
            except (BlockingIOError, FileNotFoundError):
                pass
            finally:
                if not locked:
                    self._forget()
            return locked

    def _forget(self) -> None:
        os.close(self._fd)
        self._fd = -1
        _held.discard(self)


def shared_holders(path: Path) -> int | None:
    """How many hold a shared lock on the file, over all processes; None where the system does not tell (not Linux)."""
    try:
        inode = path.stat().st_ino
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return 0 if Path("/proc/locks").exists() else None
    # Only the inode is compared: the device that the kernel prints is not what stat(2) says on every file system.
    holders = (line.split() for line in lines if " FLOCK " in line and " READ " in line and "->" not in line)
    return sum(1 for fields in holders if fields[5].endswith(f":{inode}"))


def _drop_inherited() -> None:
    for lock in list(_held):
        lock._forget()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    _guard.release()


os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_drop_inherited)
