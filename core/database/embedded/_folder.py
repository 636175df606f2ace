"""The folder of an embedded server: what lies where, whose it is, and the private folder of its socket."""

import errno
import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from core.database.embedded._account import Account
from core.database.errors import EmbeddedServerError

SOCKET_FILE = ".s.PGSQL.5432"
_SUN_PATH = 103 if sys.platform == "darwin" else 107
_LOG_LIMIT = 10 * 1024 * 1024
_NOBODYS = frozenset({"lost+found"})  # what a fresh volume holds


@dataclass(frozen=True, slots=True)
class Layout:
    """The names inside one server's folder."""

    directory: Path

    @property
    def lock(self) -> Path:
        """The exclusive lock; the file also marks the folder as ours."""
        return self.directory / "alpha-panda.lock"

    @property
    def users(self) -> Path:
        """Each user of the server holds a shared lock on it."""
        return self.directory / "users"

    @property
    def server(self) -> Path:
        """Every process of the server holds the exclusive lock on it that was taken at the start, for its whole life."""
        return self.directory / "server"

    @property
    def keep(self) -> Path:
        return self.directory / "keep"

    @property
    def data(self) -> Path:
        """The cluster; it stands under this name only when it is complete."""
        return self.directory / "data"

    @property
    def socket(self) -> Path:
        return self.directory / "socket"

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    @property
    def hba(self) -> Path:
        return self.directory / "pg_hba.conf"

    @property
    def ident(self) -> Path:
        return self.directory / "pg_ident.conf"


@contextmanager
def explained(doing: str) -> Generator[None]:
    """Turn what the file system refuses into an EmbeddedServerError that says which file, why, and the mend."""
    try:
        yield
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise EmbeddedServerError(f"Cannot {doing}: {error.strerror or error}{where}", hint=_mend(error)) from error


def _mend(error: OSError) -> str:
    match error:
        case PermissionError():
            return "Name a folder that this OS user may write: embedded:///absolute/folder"
        case NotADirectoryError() | FileExistsError():
            return "Name another folder: embedded:///absolute/folder"
        case _:
            return "Free space on that file system or make it writable, or name another folder: embedded:///absolute/folder"


def claim(layout: Layout) -> None:
    """Make the folder, or take an empty one, or recognise ours; refuse everything else.

    It belongs to the user of this process and to nobody else. An empty folder that is taken gets mode 0700, as initdb
    does with one; root's gets 0711, so that the server's user can reach its own two folders and list nothing.
    """
    directory = layout.directory
    make_folders(directory)
    owner = directory.stat().st_uid
    if owner != os.geteuid():
        raise EmbeddedServerError(
            f"{directory} belongs to another OS user (id {owner})",
            hint="Run as that user, or name a folder of your own: embedded:///absolute/folder",
        )
    if layout.lock.exists():
        return
    strange = any(entry.name not in {*_NOBODYS, layout.lock.name} for entry in directory.iterdir())
    if strange and not layout.lock.exists():  # another process may have claimed it meanwhile; the lock is made first
        raise EmbeddedServerError(
            f"{directory} is not empty and not the folder of an embedded server",
            hint="Name an empty or new folder: embedded:///absolute/folder",
        )
    directory.chmod(0o711 if os.geteuid() == 0 else 0o700)


def make_folders(directory: Path) -> None:
    """Make a folder and its missing parents; those that root makes can be entered by all whatever its umask."""
    for folder in (*reversed(directory.parents), directory):
        if not folder.exists():
            with suppress(FileExistsError):
                folder.mkdir()
                if os.geteuid() == 0:
                    folder.chmod(0o755)
    if not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))


def write_config(path: Path, text: str) -> None:
    """Write a generated file that the server's user can read, whole or not at all; nothing if it reads so already."""
    with suppress(FileNotFoundError):
        if path.read_text(encoding="utf-8") == text:
            return
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.chmod(0o644 if os.geteuid() == 0 else 0o600)
    unfinished.replace(path)


def open_log(layout: Layout) -> int:
    """A descriptor that appends to the log; one that has grown large is put aside first, over its predecessor."""
    with suppress(FileNotFoundError):
        if layout.log.stat().st_size > _LOG_LIMIT:
            layout.log.replace(layout.log.with_name("server.log.1"))
    return os.open(layout.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def socket_folder(layout: Layout, account: Account) -> Path:
    """Where the socket goes: the server's own folder, or a short one if clients could not use that name."""
    if _usable(layout.socket):
        return layout.socket
    digest = hashlib.sha256(os.fsencode(layout.directory)).hexdigest()[:16]
    for base in dict.fromkeys((Path(tempfile.gettempdir()).resolve(), Path("/tmp").resolve())):  # noqa: S108  # verified below
        short = base / f"alpha-panda-{digest}-{account.uid}"
        if _usable(short):
            if account.is_other:
                account.require_entry(base)
            return short
    raise EmbeddedServerError(
        f"No name for a socket is short enough or without a comma, neither below {layout.directory}"
        f" nor below {tempfile.gettempdir()}",
        hint="Name a folder with a shorter, plain path: embedded:///absolute/folder",
    )


def _usable(folder: Path) -> bool:
    """Whether the socket's name fits into a socket address, and no client takes the folder for a list of hosts."""
    return "," not in str(folder) and len(os.fsencode(folder / SOCKET_FILE)) <= _SUN_PATH


def prepare_socket_folder(folder: Path, account: Account) -> None:
    """Make the folder private to the server's user, or verify that it is, and clear what a killed server left in it."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        state = os.fstat(descriptor)
        if state.st_uid == os.geteuid() and account.is_other:  # just made by root, now or by a start that was killed
            os.fchown(descriptor, account.uid, account.gid)
            state = os.fstat(descriptor)
        _refuse_shared(folder, state, account)
        for name in (SOCKET_FILE, f"{SOCKET_FILE}.lock"):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=descriptor)
    finally:
        os.close(descriptor)


def verify_socket_folder(folder: Path, account: Account) -> None:
    """Refuse to name a folder to clients in which another user could have put the socket."""
    _refuse_shared(folder, folder.lstat(), account)


def _refuse_shared(folder: Path, state: os.stat_result, account: Account) -> None:
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != account.uid or state.st_mode & 0o077:
        raise EmbeddedServerError(
            f"{folder} is not a folder private to the OS user {account.name!r}, so no socket in it is trusted",
            hint="Look at who made it and remove it.",
        )


def remove_socket_folder(layout: Layout, folder: Path) -> None:
    """Remove a short folder once its server has stopped."""
    if folder != layout.socket:
        with suppress(OSError):
            folder.rmdir()
