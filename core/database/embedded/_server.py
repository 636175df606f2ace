"""EmbeddedServer: one folder's server, as one of its users sees it.

Two locks, always in this order: the exclusive one around every start and stop, then the one on `users`, shared by those
who use the server. Users come and go only inside the exclusive lock; a releaser that then gets `users` exclusively is the
last one, and nobody can become a user before it has stopped the server. The kernel drops the locks of the dead.
"""

import os
import re
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Self

from core.database.embedded import _postmaster
from core.database.embedded._account import Account, Progress, current_account, owner_account, server_account
from core.database.embedded._address import directory_of, server_url
from core.database.embedded._binaries import program_version, system_binaries, wheel_binaries
from core.database.embedded._cluster import create_cluster, require_our_version, write_access_rules
from core.database.embedded._folder import Layout, claim, explained, socket_folder, verify_socket_folder
from core.database.embedded._locks import FileLock, shared_holders
from core.database.embedded._postmaster import OWN_SETTINGS, Postmaster
from core.database.errors import ConfigurationError, EmbeddedServerError
from core.database.monitoring import get_logger

_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_$]*)?")
_ATTEMPTS = 4
_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
_OFF = frozenset({"off", "of", "false", "f", "no", "n", "0"})


_log = get_logger("core.database.embedded")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedStatus:
    """What is known of a server without touching it."""

    directory: Path
    running: bool
    pid: int | None
    url: str | None
    """Where clients connect; None if it does not run or does not take connections yet."""
    version: str | None
    """Of PostgreSQL, such as 18.4: the running server's, else that of the next start."""
    kept: bool
    """Whether it goes on running when its last user lets go."""
    users: int | None
    """How many hold it, over all processes; None where the system does not tell."""
    log_file: Path


class EmbeddedServer:
    """The PostgreSQL in one folder, started when first needed and shared by all who name the folder.

    An object is one user of the server from `ensure()` to `release()`, or until its process dies. All methods block and
    may be called from any thread. They raise EmbeddedServerError with the reason and the mend.
    """

    def __init__(self, directory: Path, *, settings: Mapping[str, str] = _NO_SETTINGS, timeout: float = 60.0) -> None:
        """`settings` are further settings of PostgreSQL, given to a server that this object starts; they do not change
        one that runs. `timeout` is how many seconds to wait for another process's start or stop, and for our own start.
        Nothing is touched yet. Raises ConfigurationError for a setting that is not the caller's to change, and for what can
        be no folder.
        """
        try:
            self._layout = Layout(directory.resolve())
        except (ValueError, OSError, RuntimeError) as error:  # a NUL, a lone surrogate, a circle of links
            words = error.strerror if isinstance(error, OSError) else "it is no path"
            raise ConfigurationError(f"{str(directory)!r} cannot be the server's folder: {words}") from None
        self._settings = dict(settings)
        self._timeout = timeout
        self._use = FileLock(self._layout.users, shared=True)
        for name in self._settings:
            if not _SETTING.fullmatch(name) or name.lower() in OWN_SETTINGS:
                raise ConfigurationError(
                    f"{name!r} cannot be set on an embedded server", hint="Use a server of your own if you need it."
                )

    @classmethod
    def from_url(cls, url: str, *, settings: Mapping[str, str] = _NO_SETTINGS, timeout: float = 60.0) -> Self:
        """The server that `embedded:` or `embedded:///absolute/folder` names. Raises InvalidUrl for any other form."""
        return cls(directory_of(url), settings=settings, timeout=timeout)

    @property
    def directory(self) -> Path:
        return self._layout.directory

    def ensure(self, *, progress: Progress | None = None) -> str:
        """Make sure that the server runs and that this object is a user of it; the URL of its database `panda`.

        Creates and starts it as needed; quick if it runs. `progress` is told, in sentences, what takes time and what is
        created on this system.
        """
        say = progress or _say_nothing
        with explained("use the embedded server"):
            if self._use.held and (running := self._find()) and running.reachable:
                return server_url(running.socket_folder)
            self._require_entry(say)
            claim(self._layout)
            with self._exclusive(), ExitStack() as undo:
                if not self._use.held:
                    # Only a releaser inside the exclusive lock ever holds it exclusively, so it is free now.
                    self._use.acquire(timeout=self._timeout)
                    undo.callback(self._use.release)
                url = self._bring_up(say)
                undo.pop_all()
                return url

    def release(self) -> None:
        """This object no longer uses the server. If nobody else does and it is not kept, it is stopped."""
        if not self._use.held:
            return
        lock = FileLock(self._layout.lock)
        with explained("release the embedded server"), ExitStack() as undo:
            undo.callback(self._use.release)
            # Whoever holds the lock for that long is a user, who will be the one to stop it.
            if not self._layout.lock.exists() or not lock.acquire(timeout=self._timeout):
                return
            undo.pop_all()
            undo.callback(lock.release)
            self._use.release()
            others = FileLock(self._layout.users)
            if not others.acquire(timeout=0):
                return
            undo.callback(others.release)
            if not self._layout.keep.exists() and (running := self._find()):
                _postmaster.stop(self._layout, running, timeout=self._timeout)

    def keep(self) -> None:
        """Let the server run on when its last user lets go, until `stop()`. Does not start it."""
        with explained("keep the embedded server"):
            claim(self._layout)
            with self._exclusive():
                self._layout.keep.touch(mode=0o600)

    def stop(self, *, timeout: float = 60.0) -> bool:
        """Shut the server down, whoever uses it, and forget `keep()`; False if it did not run.

        Open transactions are rolled back. A user's next `ensure()` starts it again.
        """
        with explained("stop the embedded server"):
            if not self._layout.lock.exists():
                return False
            with self._exclusive():
                self._layout.keep.unlink(missing_ok=True)
                self._use.release()
                running = self._find()
                if running is None:
                    return False
                _postmaster.stop(self._layout, running, timeout=timeout)
                return True

    def status(self) -> EmbeddedStatus:
        """What is so at this moment; starts, stops and creates nothing, and waits for nobody."""
        with explained("look at the embedded server"):
            running = self._find()
            return EmbeddedStatus(
                directory=self.directory,
                running=running is not None,
                pid=running.process.pid if running else None,
                url=server_url(running.socket_folder) if running and running.ready else None,
                version=self._version(running),
                kept=self._layout.keep.exists(),
                users=shared_holders(self._layout.users),
                log_file=self._layout.log,
            )

    def _bring_up(self, say: Progress) -> str:
        for _ in range(_ATTEMPTS):
            running = self._find()
            if running is not None:
                deadline = time.monotonic() + self._timeout
                running = _postmaster.wait_until_ready(self._layout, running.process, deadline)
            if running is not None and not running.reachable:
                _log.warning(f"the socket in {running.socket_folder} is gone; restarting the embedded server")
                _postmaster.stop(self._layout, running, timeout=self._timeout)
                running = None
            if running is None:
                running = self._start(say)
            if running is not None and running.reachable:
                verify_socket_folder(running.socket_folder, self._account(say))
                return server_url(running.socket_folder)
        raise EmbeddedServerError(
            f"The server in {self.directory} starts, but its socket is gone each time",
            hint=f"Look at what else removes files there or ends processes, and see {self._layout.log}",
        )

    def _start(self, say: Progress) -> Postmaster | None:
        layout = self._layout
        account = self._account(say)
        if account.is_other:
            account.require_entry(layout.directory)
        binaries = system_binaries(account, say) if account.is_other else wheel_binaries()
        if not layout.data.exists():
            say(f"Creating a PostgreSQL cluster in {layout.data}")
            durable = self._settings.get("fsync", "on").lower() not in _OFF
            create_cluster(layout, binaries, account, durable=durable)
        require_our_version(layout)
        write_access_rules(layout, account)
        say(f"Starting PostgreSQL in {layout.directory}")
        socket, deadline = socket_folder(layout, account), time.monotonic() + self._timeout
        running = _postmaster.start(layout, account, binaries, socket, self._settings, deadline=deadline)
        if running is not None:
            _log.info(f"started the embedded server in {layout.directory} (process {running.process.pid})")
        return running

    def _find(self) -> Postmaster | None:
        return _postmaster.find(self._layout) if self._layout.data.exists() else None

    def _account(self, say: Progress) -> Account:
        if self._layout.data.exists():
            return owner_account(self._layout.data)
        return server_account(say) if os.geteuid() == 0 else current_account()

    def _require_entry(self, say: Progress) -> None:
        """Before anything is made in a new place: could the server's user reach it?"""
        if self._layout.lock.exists():
            return
        account = self._account(say)
        if account.is_other:
            account.require_entry(next(parent for parent in self.directory.parents if parent.exists()))

    @contextmanager
    def _exclusive(self) -> Generator[None]:
        lock = FileLock(self._layout.lock)
        if not lock.acquire(timeout=self._timeout):
            raise EmbeddedServerError(
                f"Another process has been starting or stopping the server in {self.directory} for {self._timeout:g} s",
                hint=f"Wait for it and try again; what the server does stands in {self._layout.log}",
            )
        try:
            yield
        finally:
            lock.release()

    def _version(self, running: Postmaster | None) -> str | None:
        if running is not None:
            program = running.process.program
            return program_version(program, owner_account(self._layout.data)) if program else None
        return program_version(wheel_binaries().postgres, current_account())


def _say_nothing(sentence: str) -> None:
    """The progress of a caller who wants none; everything is logged as well."""
