"""Which process is which: a PID is believed only after the process behind it has been looked at."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# psutil ships no type information; this is the only room that sees it.

import signal
from dataclasses import dataclass
from pathlib import Path

import psutil

from core.database.embedded._account import Account


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A live postgres process on our data folder. A signal goes to this very process or, if it is gone, to none."""

    pid: int
    is_postmaster: bool
    certain: bool
    """False where the system does not show us the process's folder, so that it may be another server's."""
    _process: psutil.Process

    @property
    def alive(self) -> bool:
        """Whether it still runs; one that has ended but was not yet collected by its parent does not."""
        return _alive(self._process)

    @property
    def program(self) -> Path | None:
        """The path that it was started by; None if it has ended."""
        try:
            return Path(self._process.cmdline()[0])
        except (psutil.Error, IndexError):
            return None

    def shut_down(self) -> bool:
        """Ask for a fast shutdown of the postmaster, or for the end of an orphan; False if it is gone."""
        try:
            self._process.send_signal(signal.SIGINT if self.is_postmaster else signal.SIGTERM)
        except psutil.NoSuchProcess:
            return False
        return True


def postmaster(pid: int, data: Path, uid: int) -> ServerProcess | None:
    """The process with that PID, if it is the live postmaster of that data folder run by that user."""
    try:
        process = psutil.Process(pid)
        ours = _alive(process) and process.uids().effective == uid and _is_postmaster_of(process, data)
    except (psutil.Error, ValueError):
        return None
    return ServerProcess(pid, is_postmaster=True, certain=True, _process=process) if ours else None


def launched(pid: int) -> ServerProcess | None:
    """The process that was started a moment ago, whatever it has become since; None if it has ended."""
    try:
        return ServerProcess(pid, is_postmaster=True, certain=True, _process=psutil.Process(pid))
    except psutil.NoSuchProcess:
        return None


def inhabitants(data: Path, account: Account) -> list[ServerProcess]:
    """Every live postgres process that has that data folder open: a server's own, or orphans of a killed postmaster."""
    found: list[ServerProcess] = []
    for process in psutil.process_iter():
        try:
            if process.name() != "postgres" or process.uids().effective != account.uid or not _alive(process):
                continue
            is_postmaster = _is_postmaster_of(process, data)
            certain = _works_in(process, data, account)
        except (psutil.Error, FileNotFoundError):  # it has ended, or its folder is gone
            continue
        if is_postmaster or certain is not False:
            found.append(ServerProcess(process.pid, is_postmaster, is_postmaster or certain is True, process))
    return found


def exists(pid: int) -> bool:
    """Whether any process, ours or a stranger's, ended or not, has that PID."""
    return psutil.pid_exists(pid)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
    except psutil.NoSuchProcess:
        return False


def _is_postmaster_of(process: psutil.Process, data: Path) -> bool:
    """By its command line, which a backend replaces by a title of its own."""
    command = process.cmdline()
    if len(command) < 3 or Path(command[0]).name != "postgres" or command[1] != "-D":
        return False
    try:
        return data.samefile(command[2])  # the folder may have another name elsewhere
    except OSError:
        return False


def _works_in(process: psutil.Process, data: Path, account: Account) -> bool | None:
    """Whether its working folder is the data folder, as that of every postgres process is; None if that is not shown."""
    try:
        return data.samefile(process.cwd())
    except psutil.AccessDenied:
        # Root without CAP_SYS_PTRACE, as in a container, may not look; the server's own user may.
        status, folder = account.run(["readlink", f"/proc/{process.pid}/cwd"], timeout=10)
        return data.samefile(folder.strip("\n")) if status == 0 else None
