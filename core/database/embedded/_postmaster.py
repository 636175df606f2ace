"""Finding, starting and stopping the postmaster of one data folder. Starting and stopping need the exclusive lock."""

import logging
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
from core.database.embedded._folder import Layout, open_log, prepare_socket_folder, remove_socket_folder
from core.database.embedded._processes import ServerProcess
from core.database.errors import EmbeddedServerError

OWN_SETTINGS = frozenset(
    {
        "config_file",
        "data_directory",
        "external_pid_file",
        "hba_file",
        "ident_file",
        "listen_addresses",
        "log_line_prefix",
        "port",
        "unix_socket_directories",
        "unix_socket_group",
        "unix_socket_permissions",
    }
)
"""Settings on which privacy or our own reading of the server depends; the caller cannot change them."""

_LOCK_FILE_EXISTS = " F0001 "  # the SQLSTATE, in the log, of a data folder that something still uses
_GRACE = 1.0  # orphans of a killed postmaster usually notice by themselves
# The shell ends at once, so that the server is nobody's child: not collected, warned of or signalled with this process.
_DETACH = '(exec "$@" </dev/null >&2) & echo $!'

_log = logging.getLogger("core.database.embedded")


@dataclass(frozen=True, slots=True)
class Postmaster:
    """A live, verified postmaster as its PID file describes it."""

    process: ServerProcess
    socket_folder: Path
    ready: bool


def find(layout: Layout, account: Account) -> Postmaster | None:
    """The postmaster of that folder, if one runs. Needs no lock."""
    record = _read_pid_file(layout)
    if record is None:
        return None
    pid, socket, status = record
    process = _processes.postmaster(pid, layout.data, account.uid)
    return None if process is None else Postmaster(process, Path(socket), ready=bool(socket) and status == "ready")


def start(
    layout: Layout, account: Account, binaries: Binaries, socket: Path, settings: Mapping[str, str], *, timeout: float
) -> Postmaster:
    """Start a server that does not run and wait until it takes connections."""
    deadline = time.monotonic() + timeout
    blocked = False
    while True:
        _evict(layout, account, deadline, search=blocked)
        prepare_socket_folder(socket, account)
        log = open_log(layout)
        try:
            begin = os.fstat(log).st_size
            process = _launch(layout, account, binaries, _options(layout, socket, settings), log)
        finally:
            os.close(log)
        if process and (running := wait_until_ready(layout, account, process, deadline)):
            return running
        said = _said(layout, begin)
        # Something still uses the data and no PID file says who: look for it, and try again.
        blocked = _LOCK_FILE_EXISTS in said
        if not blocked or time.monotonic() >= deadline:
            raise EmbeddedServerError(
                f"PostgreSQL did not start in {layout.directory}:\n{said}", hint=mend_of_failure(layout.directory)
            )
        time.sleep(0.2)


def wait_until_ready(layout: Layout, account: Account, process: ServerProcess, deadline: float) -> Postmaster | None:
    """The postmaster once it takes connections, which crash recovery may delay; None if it ends before."""
    pause = 0.005
    while process.alive:
        running = find(layout, account)
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
    return (pid, socket, status) if pid > 1 else None


def _evict(layout: Layout, account: Account, deadline: float, *, search: bool) -> None:
    """Make sure that no process has the data folder open, then remove a PID file that names a stranger.

    After kill -9 of a postmaster its children may live on for a moment, and one that computes does not notice; it is
    asked to end. A PID file whose process is gone is left to PostgreSQL, which checks it, and the shared memory, itself.
    """
    if not search and not (layout.data / "postmaster.pid").exists():
        return
    patience = time.monotonic() + _GRACE
    while remaining := _processes.inhabitants(layout.data, account.uid):
        now = time.monotonic()
        if now >= deadline:
            raise EmbeddedServerError(
                f"Processes of an earlier server still use {layout.data}: {[process.pid for process in remaining]}",
                hint="Wait until they have ended, or end them, and try again.",
            )
        if now >= patience:
            for process in remaining:
                if process.certain:
                    _log.warning("ending process %d, which a killed server left in %s", process.pid, layout.data)
                    process.shut_down()
            patience = now + _GRACE
        time.sleep(0.05)
    record = _read_pid_file(layout)
    if record is not None and _processes.exists(record[0]):
        _log.info("%s names process %d, which is not its server; removing it", layout.data / "postmaster.pid", record[0])
        (layout.data / "postmaster.pid").unlink(missing_ok=True)


def _options(layout: Layout, socket: Path, settings: Mapping[str, str]) -> list[str]:
    own = {
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_directories": _one_of_list(socket),
        "unix_socket_permissions": "0700",
        "hba_file": str(layout.hba),
        "ident_file": str(layout.ident),
        "log_line_prefix": "%m [%p] %e ",
    }
    return [part for name, value in ({**settings, **own}).items() for part in ("-c", f"{name}={value}")]


def _one_of_list(path: Path) -> str:
    """One path, as an element of a list in which commas, spaces and quotes have a meaning."""
    return '"{}"'.format(str(path).replace('"', '""'))


def _launch(layout: Layout, account: Account, binaries: Binaries, options: Sequence[str], log: int) -> ServerProcess | None:
    """Start the program in a session of its own, holding nothing of ours but the log; None if it ended at once."""
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
        **account.switch(),
    )
    return _processes.launched(int(done.stdout))


def _said(layout: Layout, begin: int) -> str:
    """The last lines of the log since the start that failed."""
    with layout.log.open("rb") as log:
        log.seek(max(begin, log.seek(0, os.SEEK_END) - 16_384))
        lines = log.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-12:]) or "it said nothing"
