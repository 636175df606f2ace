"""Making a cluster, and the rules by which it lets clients in."""

import os
import shutil
import time
import uuid
from pathlib import Path

from core.database.embedded._account import Account, current_account
from core.database.embedded._binaries import MAJOR, Binaries
from core.database.embedded._folder import Layout, write_config
from core.database.embedded._processes import inhabitants
from core.database.errors import EmbeddedServerError

_INITDB_LIMIT = 300.0
_SWEEP_LIMIT = 10.0
_UNFINISHED = "data.new-"
_NOTICE = "# Written by Alpha Panda before each start of the server; changes made here are lost.\n"
_OWN = """\
CREATE ROLE panda LOGIN CREATEDB CREATEROLE NOSUPERUSER;

CREATE DATABASE panda OWNER panda;

"""


def create_cluster(layout: Layout, binaries: Binaries, account: Account, *, durable: bool) -> None:
    """initdb, then the application's role and database. Under the exclusive lock.

    All of it happens under another name; the last step is a rename, so `data` is complete or absent. What an earlier,
    killed attempt left is removed.
    """
    for leftover in layout.directory.glob(f"{_UNFINISHED}*"):
        _sweep(leftover, account)
    # A new name each time: the initdb of a killed process may still be at work under the old one.
    unfinished = layout.directory / f"{_UNFINISHED}{uuid.uuid4().hex[:8]}"
    unfinished.mkdir(mode=0o700)
    try:
        if account.is_other:
            os.chown(unfinished, account.uid, account.gid)
        _initdb(unfinished, binaries, account, durable=durable)
        _create_own(unfinished, binaries, account, durable=durable)
        unfinished.rename(layout.data)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _sync(layout.directory)


def require_our_version(layout: Layout) -> None:
    """Refuse data of another major version, and data that has lost its version file."""
    try:
        found = (layout.data / "PG_VERSION").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise EmbeddedServerError(
            f"{layout.data} is damaged: it has no PG_VERSION",
            hint="Restore it from a backup, or name a new folder: embedded:///absolute/folder",
        ) from None
    if found != str(MAJOR):
        raise EmbeddedServerError(
            f"{layout.data} was made by PostgreSQL {found}, and this server is PostgreSQL {MAJOR}",
            hint="Dump it with the version that made it (pg_dumpall) and restore the dump into a new folder.",
        )


def write_access_rules(layout: Layout, account: Account) -> None:
    """Only a local user of the operating system who is named here gets in, as `panda` or as the superuser `postgres`."""
    write_config(layout.hba, f"{_NOTICE}local all all peer map=panda\n")
    names = dict.fromkeys((account.name, current_account().name))
    lines = (f"panda {_quoted(name)} {role}\n" for name in names for role in ("panda", "postgres"))
    write_config(layout.ident, _NOTICE + "".join(lines))


def _quoted(name: str) -> str:
    return '"{}"'.format(name.replace('"', '""'))


def _initdb(folder: Path, binaries: Binaries, account: Account, *, durable: bool) -> None:
    command = [
        binaries.initdb,
        "--pgdata",
        folder,
        "--username=postgres",
        "--auth-local=peer",
        "--auth-host=reject",
        "--encoding=UTF8",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--locale=C",
        "--no-instructions",
        "--set=timezone=UTC",
        "--set=log_timezone=UTC",
        "--set=shared_buffers=128MB",
        "--set=max_connections=100",
    ]
    status, output = account.run([*command, *([] if durable else ["--no-sync"])], timeout=_INITDB_LIMIT)
    if status:
        raise _failed("initdb", folder, status, output)


def _create_own(folder: Path, binaries: Binaries, account: Account, *, durable: bool) -> None:
    options = ["-c", "exit_on_error=on", "-c", "log_checkpoints=off", *([] if durable else ["-c", "fsync=off"])]
    command = [binaries.postgres, "--single", "-j", "-D", folder, *options, "postgres"]
    status, output = account.run(command, stdin=_OWN, timeout=_INITDB_LIMIT)
    if status:
        raise _failed("the creation of the role and database panda", folder, status, output)


def _failed(what: str, folder: Path, status: int, output: str) -> EmbeddedServerError:
    lines = [line for line in output.splitlines() if line.strip()][-12:]
    return EmbeddedServerError(
        f"{what} in {folder.parent} failed with status {status}",
        lines=lines,
        hint=mend_of_failure(folder.parent),
    )


def mend_of_failure(directory: Path) -> str:
    """What to do about a server program that failed, whose own message stands above."""
    if shutil.disk_usage(directory).free < 100 * 1024 * 1024:
        return f"The file system of {directory} is nearly full: free some space, or name another folder."
    return "Mend what PostgreSQL names above and try again, or name another folder: embedded:///absolute/folder"


def _sweep(leftover: Path, account: Account) -> None:
    """Remove an unfinished cluster, once the programs that a killed process left at work in it have ended.

    They notice by themselves; if the folder vanished below them, they would leave shared memory behind.
    """
    begin = time.monotonic()
    while (at_work := inhabitants(leftover, account)) and time.monotonic() < begin + _SWEEP_LIMIT:
        if time.monotonic() > begin + _SWEEP_LIMIT / 2:
            for process in at_work:
                if process.certain:
                    process.shut_down()
        time.sleep(0.05)
    shutil.rmtree(leftover, ignore_errors=True)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
