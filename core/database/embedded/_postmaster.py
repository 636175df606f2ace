"""Finding, starting and stopping the postmaster of one data folder. Starting and stopping need the exclusive lock."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.database.embedded import _processes
from core.database.embedded._account import ENVIRONMENT, Account
from core.database.embedded._binaries import Binaries
from core.database.embedded._cluster import mend_of_failure
from core.database.embedded._folder import SOCKET_FILE, Layout, open_log, prepare_socket_folder, remove_socket_folder
from core.database.embedded._locks import FileLock
from core.database.embedded._processes import ServerProcess
from core.database.errors import EmbeddedServerError
from core.database.monitoring import get_logger

OWN_SETTINGS = frozenset(
    {
        "config_file",
        "data_directory",
        "external_pid_file",
        "hba_file",
        "ident_file",
        "listen_addresses",
        "port",
        "unix_socket_directories",
        "unix_socket_group",
        "unix_socket_permissions",
    }
)
"""Settings on which privacy or our own reading of the server depends; the caller cannot change them."""

_UNSEEN_LIMIT = 5.0  # seconds for processes that are ending out of our sight
_GRACE = 1.0  # orphans of a killed postmaster usually notice by themselves
_LAUNCH_LIMIT = 10.0  # a postmaster that still has no PID file then has lost it
# The shell ends at once, so that the server is nobody's child: not collected, warned of or signalled with this process.
_DETACH = '(exec "$@" </dev/null >&2) & echo $!'

_log = get_logger("core.database.embedded")


@dataclass(frozen=True, slots=True)
class Postmaster:
    """A live, verified postmaster as its PID file describes it."""

    process: ServerProcess
    socket_folder: Path
    ready: bool

    @property
    def reachable(self) -> bool:
        """Whether it takes connections and its socket has not been deleted, as tidiers of temporary folders may do."""
        return self.ready and (self.socket_folder / SOCKET_FILE).exists()


def find(layout: Layout) -> Postmaster | None:
    """The postmaster of that folder, if one runs. Needs no lock."""
    record = _read_pid_file(layout)
    if record is None:
        return None
    pid, socket, status = record
    process = _processes.postmaster(pid, layout.data, layout.data.stat().st_uid)
    return None if process is None else Postmaster(process, Path(socket), ready=bool(socket) and status == "ready")


def start(
    layout: Layout, account: Account, binaries: Binaries, socket: Path, settings: Mapping[str, str], *, deadline: float
) -> Postmaster | None:
    """Start a server that does not run and wait until it takes connections.

    None if one turns out to run after all: launched by a process that was killed before the server could say so.
    """
    life = FileLock(layout.server)
    try:
        if not _vacate(layout, account, life, deadline):
            return None
        _remove_stale_pid_file(layout)
        prepare_socket_folder(socket, account)
        log = open_log(layout)
        try:
            begin = os.fstat(log).st_size
            process = _launch(layout, account, binaries, _options(layout, socket, settings), log=log, life=life)
        finally:
            os.close(log)
    finally:
        life.release()
    if process and (running := wait_until_ready(layout, process, deadline)):
        return running
    raise EmbeddedServerError(
        f"PostgreSQL did not start in {layout.directory}",
        lines=_said(layout, begin),
        hint=mend_of_failure(layout.directory),
    )


def wait_until_ready(layout: Layout, process: ServerProcess, deadline: float) -> Postmaster | None:
    """The postmaster once it takes connections, which crash recovery may delay; None if it ends before."""
    pause = 0.005
    while process.alive:
        running = find(layout)
        if running is not None and running.ready and running.process.pid == process.pid:
            return running
        if time.monotonic() >= deadline:
            raise EmbeddedServerError(
                f"PostgreSQL (process {process.pid}) does not take connections yet",
                hint=f"It may be recovering from a crash: try again, and see {layout.log}",
            )
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    return None


def stop(layout: Layout, running: Postmaster, *, timeout: float) -> None:
    """Fast shutdown: open transactions are rolled back, committed ones are on disk. It is never killed."""
    running.process.shut_down()
    deadline = time.monotonic() + timeout
    while running.process.alive:
        if time.monotonic() >= deadline:
            raise EmbeddedServerError(
                f"PostgreSQL (process {running.process.pid}) has not shut down within {timeout:g} s",
                hint=f"It may still be writing to disk: wait, and see {layout.log}",
            )
        time.sleep(0.01)
    remove_socket_folder(layout, running.socket_folder)


def _read_pid_file(layout: Layout) -> tuple[int, str, str] | None:
    """The PID, socket folder and status that the PID file states; the last two are empty while a server starts."""
    try:
        lines = os.fsdecode((layout.data / "postmaster.pid").read_bytes()).splitlines()
        pid = int(lines[0])
    except (FileNotFoundError, IndexError, ValueError):
        return None
    socket, status = (lines[line].strip() if len(lines) > line else "" for line in (4, 7))
    return (pid, socket, status) if 1 < pid < 2**31 else None


def _vacate(layout: Layout, account: Account, life: FileLock, deadline: float) -> bool:
    """Wait until no process has the data folder open, and take the lock that proves it; False if a server runs after all.

    After kill -9 of a postmaster its children live on for a moment, and one that computes does not notice; it is asked to
    end. The lock covers processes that cannot be seen from here, the search those that were started by hand.
    """
    begin = time.monotonic()
    patience = begin + _GRACE
    while find(layout) is None:
        free = life.held or life.acquire(timeout=0)
        suspicious = not free or (layout.data / "postmaster.pid").exists()
        remaining = _processes.inhabitants(layout.data, account) if suspicious else []
        if free and not remaining:
            return True
        now = time.monotonic()
        if now >= deadline or (not remaining and now >= begin + _UNSEEN_LIMIT):
            raise _occupied(layout, remaining)
        if now >= patience:
            patience = now + _GRACE
            _end(
                [process for process in remaining if not process.is_postmaster or now >= begin + _LAUNCH_LIMIT], layout
            )
        time.sleep(0.05)
    return False


def _occupied(layout: Layout, remaining: Sequence[ServerProcess]) -> EmbeddedServerError:
    if remaining:
        return EmbeddedServerError(
            f"Processes of an earlier server still use {layout.data}: {[process.pid for process in remaining]}",
            hint="Wait until they have ended, or end them, and try again.",
        )
    return EmbeddedServerError(
        f"{layout.data} is in use by a server that cannot be seen from here, perhaps one in another container",
        hint="Stop it there, or give this process a folder of its own: embedded:///absolute/folder",
    )


def _remove_stale_pid_file(layout: Layout) -> None:
    """Once nobody uses the data: PostgreSQL removes a PID file whose process is gone, but believes one that is reused."""
    pid_file = layout.data / "postmaster.pid"
    if not pid_file.exists():
        return
    record = _read_pid_file(layout)
    if record is None or _processes.exists(record[0]):
        _log.info(f"{pid_file} does not name a server of this folder; removing it")
        pid_file.unlink()


def _end(orphans: Sequence[ServerProcess], layout: Layout) -> None:
    for process in orphans:
        if not process.certain:
            continue
        _log.warning(f"ending process {process.pid}, which a killed server left in {layout.data}")
        process.shut_down()


def _options(layout: Layout, socket: Path, settings: Mapping[str, str]) -> list[str]:
    own = {
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_directories": _one_of_list(socket),
        "unix_socket_permissions": "0700",
        "hba_file": str(layout.hba),
        "ident_file": str(layout.ident),
    }
    return [part for name, value in ({**settings, **own}).items() for part in ("-c", f"{name}={value}")]


def _one_of_list(path: Path) -> str:
    """One path, as an element of a list in which commas, spaces and quotes have a meaning."""
    return '"{}"'.format(str(path).replace('"', '""'))


def _launch(
    layout: Layout, account: Account, binaries: Binaries, options: Sequence[str], *, log: int, life: FileLock
) -> ServerProcess | None:
    """Start the program in a session of its own, with the log and its life lock; None if it ended at once."""
    command = ["/bin/sh", "-c", _DETACH, "sh", str(binaries.postgres), "-D", str(layout.data), *options]
    done = subprocess.run(  # noqa: S603  # the command is ours, and no part of it is read by the shell
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        check=True,
        cwd="/",
        env=ENVIRONMENT,
        umask=0o077,
        start_new_session=True,
        pass_fds=[life.fileno()],
        **account.switch(),
    )
    life.hand_over()
    return _processes.launched(int(done.stdout))


def _said(layout: Layout, begin: int) -> list[str]:
    """The last lines of the log since the start that failed."""
    with layout.log.open("rb") as log:
        log.seek(max(begin, log.seek(0, os.SEEK_END) - 16_384))
        lines = log.read().decode(errors="replace").splitlines()
    return lines[-12:] or ["it said nothing"]
