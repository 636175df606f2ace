"""pg_dump and pg_restore: those at hand, the one that fits, and running it."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from core.database.embedded import client_folders
from core.database.errors import BackupRefused, BackupToolFailed

_FOLDERS = (
    "/usr/lib/postgresql/*/bin",  # Debian
    "/usr/pgsql-*/bin",  # the project's packages for Red Hat
    "/usr/local/opt/postgresql@*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/opt/homebrew/opt/libpq/bin",
)
_VERSION = re.compile(r"\(PostgreSQL\) (([0-9]+)\S*)")
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
_CHATTER = re.compile(r"pg_(dump|restore): (?!error|warning|detail|hint)")
_WRAPPER = "pg_wrapper"  # Debian's in /usr/bin: it starts those of /usr/lib/postgresql, which are found there
_LIMIT = 20.0  # seconds for a program to say its version
_CHUNK = 1024 * 1024
_SAID = 12  # lines of what a failed program said last

OnLine = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Tools:
    """A folder with pg_dump and pg_restore of one version."""

    folder: Path
    version: str
    """Such as 15.14."""
    major: int

    @property
    def pg_dump(self) -> Path:
        return self.folder / "pg_dump"

    @property
    def pg_restore(self) -> Path:
        return self.folder / "pg_restore"

    def speaks_tls(self) -> bool:
        """Whether its library can encrypt: it is asked to, at a socket that is not there, and says whether it could."""
        environment = {"PGHOST": "/nonexistent", "PGSSLMODE": "require", "PGDATABASE": "nobody", "PGUSER": "nobody"}
        done = _said([self.pg_dump, "--no-password"], environment)
        return done is not None and "not compiled in" not in done


def find_tools(*, at_least: int, tls: bool = False, folder: Path | None = None) -> Tools:
    """The oldest tools that are new enough, since their dumps can be restored into the most servers.

    Looks into `folder` alone if given, else the system's folders, PATH and the built-in server's wheel. `tls` asks for tools
    that can encrypt, which the wheel's cannot. Blocks. Raises BackupRefused, which names what to install.
    """
    found = available_tools(folder)
    fit = sorted((tools for tools in found if tools.major >= at_least), key=lambda tools: tools.major)
    for tools in fit:
        if not tls or tools.speaks_tls():
            return tools
    have = ", ".join(f"{tools.version} in {tools.folder}" for tools in found) or "none at all"
    what = " with TLS" if tls and fit else ""
    raise BackupRefused(
        f"pg_dump and pg_restore of PostgreSQL {at_least} or newer{what} are needed; found: {have}",
        hint=_install(at_least),
    )


def available_tools(folder: Path | None = None) -> list[Tools]:
    """Every usable pair of pg_dump and pg_restore, in the order in which they were found."""
    found: list[Tools] = []
    for place in _places() if folder is None else [folder]:
        if folder is None and (place / "pg_dump").resolve().name == _WRAPPER:
            continue
        if all(os.access(place / name, os.X_OK) for name in ("pg_dump", "pg_restore")):
            version = _VERSION.search(_said([place / "pg_dump", "--version"], {}) or "")
            if version is not None and version[1] is not None:
                found.append(Tools(place, version[1], int(version[2])))
    return found


@asynccontextmanager
async def running(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    stdin: int | None = None,
    on_line: OnLine | None = None,
) -> AsyncGenerator[asyncio.StreamReader]:
    """A program's output, as it comes. On leaving it must have ended well, or BackupToolFailed says what it said.

    If the block is left by an exception, cancellation included, the program is ended first. It sees nothing of this
    process's environment but `environment`. `on_line` is told each line that it writes to stderr.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL if stdin is None else stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**_ENVIRONMENT, **environment},
        cwd="/",
        limit=_CHUNK,
        start_new_session=True,  # Ctrl-C is ours to handle
    )
    assert process.stdout is not None
    assert process.stderr is not None
    said: list[str] = []
    listener = asyncio.ensure_future(_listen(process.stderr, said, on_line))
    try:
        yield process.stdout
        async for _ in _rest(process.stdout):
            pass
        status = await process.wait()
        await listener
    except BackupToolFailed as error:  # its output ended too soon: it says why itself
        status = await process.wait() if process.stdout.at_eof() else 0
        await asyncio.wait([listener], timeout=1)
        if status:
            raise failed(Path(command[0]).name, status, said) from error
        raise
    finally:
        if process.returncode is None:
            await _end(process)
        listener.cancel()
    if status:
        raise failed(Path(command[0]).name, status, said)


def failed(name: str, status: int, said: Sequence[str]) -> BackupToolFailed:
    """The error of a program that ended with that status after those lines."""
    errors = [line for line in said if line.strip()][-_SAID:]
    how = f"was ended by signal {-status}" if status < 0 else f"failed with status {status}"
    return BackupToolFailed(f"{name} {how}", lines=errors)


async def _listen(stream: asyncio.StreamReader, said: list[str], on_line: OnLine | None) -> None:
    """Collect what is no progress; the last lines of it."""
    while True:
        try:
            raw = await stream.readuntil(b"\n")
        except asyncio.IncompleteReadError as rest:
            raw = rest.partial
        except asyncio.LimitOverrunError as error:
            raw = await stream.readexactly(error.consumed)
        if not raw:
            return
        line = raw.decode("utf-8", "replace").rstrip()
        if on_line is not None:
            on_line(line)
        if not _CHATTER.match(line):
            said.append(line)
            del said[:-_SAID]


async def _rest(stream: asyncio.StreamReader) -> AsyncGenerator[bytes]:
    while chunk := await stream.read(_CHUNK):
        yield chunk


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask it to end, then make it; a cancelled caller waits too, a moment only."""
    try:
        process.terminate()
        async with asyncio.timeout(2):
            await process.wait()
    except ProcessLookupError:
        return
    except TimeoutError:
        process.kill()
        await process.wait()


def _places() -> list[Path]:
    system = [place for pattern in _FOLDERS for place in sorted(Path("/").glob(pattern[1:]))]
    path = [Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep) if entry]
    return list(dict.fromkeys([*system, *path, *client_folders()]))


def _said(command: Sequence[str | Path], environment: Mapping[str, str]) -> str | None:
    """Everything that a program prints; None if it cannot be run."""
    try:
        done = subprocess.run(  # noqa: S603 - found by its name in the system's folders
            command, env={**_ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=_LIMIT, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout + done.stderr


def _install(version: int) -> str:
    if sys.platform == "darwin":
        return (
            f"Install them: brew install postgresql@{version}. A folder that is not in PATH is named with --programs."
        )
    manager = (
        f"dnf install postgresql{version}" if shutil.which("dnf") else f"apt-get install postgresql-client-{version}"
    )
    return (
        f"Install them: {manager} (from PostgreSQL's own repository, postgresql.org/download, where the system has none that"
        " new). A folder that is not in PATH is named with --programs."
    )
