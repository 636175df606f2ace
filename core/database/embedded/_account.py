"""The operating system's user that the server runs as, and running programs as that user."""

import errno
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from core.database.embedded._address import system_folder
from core.database.errors import EmbeddedServerError
from core.database.monitoring import get_logger

SERVER_USER = "alpha-panda"
_FALLBACKS = ("postgres", "_postgres", "nobody")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"
_ENTER = 'for folder; do cd "$folder" 2>/dev/null || { printf %s "$folder"; exit 1; }; done'

ENVIRONMENT = {"PATH": _PATH, "LC_ALL": "C", "TZ": "UTC"}
"""All that our child processes see of an environment: no PG* variable reaches the server, nor a secret of the caller's."""

_log = get_logger("core.database.embedded")

Progress = Callable[[str], None]
"""Called with a sentence before something that takes time or changes the system."""


class Switch(TypedDict):
    """Keyword arguments of `subprocess.run` that make it run something as another user."""

    user: int | None
    group: int | None
    extra_groups: list[int] | None


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the operating system."""

    name: str
    uid: int
    gid: int

    @property
    def is_other(self) -> bool:
        """Whether it is another user than this process runs as, which needs root."""
        return self.uid != os.geteuid()

    def switch(self) -> Switch:
        if not self.is_other:
            return {"user": None, "group": None, "extra_groups": None}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def run(self, command: Sequence[str | Path], *, stdin: str = "", timeout: float) -> tuple[int, str]:
        """Run a program as this user; its exit status and everything that it printed."""
        try:
            done = subprocess.run(  # noqa: S603  # no shell, and the command is ours
                command,
                input=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                timeout=timeout,
                check=False,
                cwd="/",
                env=ENVIRONMENT,
                umask=0o077,
                start_new_session=True,
                **self.switch(),
            )
        except subprocess.TimeoutExpired:
            raise EmbeddedServerError(
                f"{Path(command[0]).name} did not finish within {timeout:g} s",
                hint="Look at the load and the free space of this machine, then try again.",
            ) from None
        except OSError as error:
            mend = "Run as an ordinary user, or allow this process to switch users (CAP_SETUID and CAP_SETGID)."
            if error.errno == errno.EACCES:
                mend = "Look at the permissions of that file, and whether its file system is mounted noexec."
            raise EmbeddedServerError(
                f"{command[0]} cannot be run as the OS user {self.name!r}: {error.strerror}", hint=mend
            ) from error
        return done.returncode, done.stdout

    def require_entry(self, directory: Path) -> None:
        """Refuse a folder that this user cannot enter. None is opened for it: that is for its owner to decide."""
        folders = [str(folder) for folder in (*reversed(directory.parents), directory)]
        status, closed = self.run(["/bin/sh", "-c", _ENTER, "sh", *folders], timeout=30)
        if status:
            raise EmbeddedServerError(
                f"The OS user {self.name!r}, which runs the server because root may not, cannot enter {closed}",
                hint=f"Use a folder that every user can enter, such as {system_folder() / 'embedded'},"
                " or run as an ordinary user.",
            )


def current_account() -> Account:
    """The user that this process runs as. PostgreSQL needs it to have a name."""
    try:
        entry = pwd.getpwuid(os.geteuid())
    except KeyError:
        raise EmbeddedServerError(
            f"The OS user id {os.geteuid()} has no name, and PostgreSQL refuses to run without one",
            hint="Add a line for it to /etc/passwd, or run as a user that exists.",
        ) from None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def owner_account(folder: Path) -> Account:
    """The user that owns a data folder, and so the one whose server may run on it."""
    uid = folder.stat().st_uid
    if uid == os.geteuid() != 0:
        return current_account()
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        entry = None
    if entry is None or uid == 0:
        whose = (
            "root, and PostgreSQL refuses to run as root" if uid == 0 else f"the OS user id {uid}, which has no name"
        )
        raise EmbeddedServerError(
            f"{folder} belongs to {whose}",
            hint=f"Give it back to the user that it was created for: chown -R {SERVER_USER} {folder}",
        )
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def server_account(progress: Progress) -> Account:
    """The unprivileged user that runs root's server; made when first needed, which `progress` and the log are told."""
    if (account := _find(SERVER_USER)) or (account := _create(progress)):
        return account
    for name in _FALLBACKS:
        if account := _find(name):
            _log.warning(f"no OS user could be created, so the embedded server runs as {name}")
            progress(f"Running PostgreSQL as the existing OS user {name}, since none could be created")
            return account
    raise EmbeddedServerError(
        "PostgreSQL refuses to run as root, and no OS user for it could be found or created",
        hint=f"Create one (useradd --system {SERVER_USER}) or run as an ordinary user.",
    )


def _find(name: str) -> Account | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _create(progress: Progress) -> Account | None:
    """The new user, by whichever tool this system has: useradd, Debian's adduser, busybox's adduser."""
    home = str(system_folder())
    shell = next((path for path in ("/usr/sbin/nologin", "/sbin/nologin") if Path(path).exists()), "/bin/false")
    plans = (
        [
            [
                "useradd",
                "--system",
                "--user-group",
                "--no-create-home",
                "--home-dir",
                home,
                "--shell",
                shell,
                SERVER_USER,
            ]
        ],
        [["adduser", "--system", "--group", "--no-create-home", "--home", home, "--shell", shell, SERVER_USER]],
        [
            ["addgroup", "-S", SERVER_USER],
            ["adduser", "-S", "-D", "-H", "-h", home, "-s", shell, "-G", SERVER_USER, SERVER_USER],
        ],
    )
    told = False
    for plan in plans:
        tools = [shutil.which(command[0], path=_PATH) for command in plan]
        if not all(tools):
            continue
        if not told:
            told = True
            progress(f"Creating the OS user {SERVER_USER}, because PostgreSQL refuses to run as root")
        outcomes = [current_account().run(command, timeout=60) for command in plan]
        if account := _find(SERVER_USER):
            _log.info(f"created the OS user {account.name} (uid {account.uid}) to run the embedded server")
            return account
        _log.info(f"{plan[-1][0]} could not create the OS user: {outcomes[-1][1].strip()}")
    return None
