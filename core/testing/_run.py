"""One test run: the folder that its processes share, and how it ends.

Every process of a run, the controller of pytest-xdist included, holds a shared flock on the folder. The one that made the
folder stops the server and removes everything when the run ends, whatever its outcome. For a run that is killed, a small
process of its own waits until it gets the lock exclusively, when the last process of the run is gone, and does the same.
"""

import fcntl
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from core.testing._watch import clear

_PREFIX = "panda-tests-"
_ROOMY = 2**30  # bytes: a run needs far less, but memory is others' too
_KEY: pytest.StashKey["Run"] = pytest.StashKey()
_WORKER_INPUT = "panda_folder"
# The shell ends at once, so that the watcher is nobody's child and holds none of this process's outputs.
_DETACH = 'exec "$@" </dev/null >/dev/null 2>&1 &'


class Run:
    """The run, as one of its processes sees it."""

    def __init__(self, folder: Path, *, worker: str, owner: bool) -> None:
        """Join the run in that folder. Raises FileNotFoundError if it has ended."""
        self.folder = folder
        self.worker = worker
        """The name of this process within the run: gw0, gw1, ... under pytest-xdist, else main."""
        self.owner = owner
        """Whether it is for this process to end the run."""
        self._lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        os.register_at_fork(after_in_child=self._disown)

    @property
    def name(self) -> str:
        """Eight hexadecimal digits that no other run has."""
        return self.folder.name.removeprefix(_PREFIX)

    @property
    def server_folder(self) -> Path:
        return self.folder / "server"

    @property
    def databases_mark(self) -> Path:
        """Exists once a process of the run has connected to a server that is not the run's own."""
        return self.folder / "databases"

    def watch(self) -> None:
        """See to it that the run's server does not outlive the run, even if that is killed. Once is enough for a run."""
        try:
            (self.folder / "watched").touch(exist_ok=False)
        except FileExistsError:
            return
        # -P, since the folder of a stranger's tests may hold a `core` too; sys.path, since ours may come from nowhere else.
        subprocess.run(  # noqa: S603  # the shell reads a constant; the rest are its arguments
            ["/bin/sh", "-c", _DETACH, "sh", sys.executable, "-P", "-m", "core.testing._watch", str(self.folder)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            cwd="/",
            check=True,
            start_new_session=True,
        )

    def end(self) -> None:
        """This process leaves the run; if it is the one that made the folder, the server and the folder go."""
        if self._lock < 0:
            return
        if self.owner:
            clear(self.folder)
        self._disown()

    def _disown(self) -> None:
        """Also in the child of a fork: the run is its parent's."""
        self.owner = False
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def run_of(config: pytest.Config) -> Run:
    """The run that this process takes part in, begun when first asked for."""
    run = config.stash.get(_KEY, None)
    if run is None:
        run = config.stash[_KEY] = _join(config)
    return run


def known_run(config: pytest.Config) -> Run | None:
    """The run, if one has begun."""
    return config.stash.get(_KEY, None)


def hand_to_worker(config: pytest.Config, worker_input: dict[str, object]) -> None:
    """Tell a worker of pytest-xdist, from its controller, where the run is."""
    worker_input[_WORKER_INPUT] = str(run_of(config).folder)


def _join(config: pytest.Config) -> Run:
    worker: dict[str, str] | None = getattr(config, "workerinput", None)
    if worker is None or _WORKER_INPUT not in worker:
        return Run(_new_folder(), worker="main" if worker is None else worker["workerid"], owner=True)
    try:
        return Run(Path(worker[_WORKER_INPUT]), worker=worker["workerid"], owner=False)
    except FileNotFoundError:
        message = "panda: the test run that this worker belongs to has ended"
        raise pytest.fail.Exception(message, pytrace=False) from None


def _new_folder() -> Path:
    """In memory where there is room. Root's can be entered by all, since the server runs as another user."""
    memory = Path("/dev/shm")  # noqa: S108  # the name below is nobody's to guess, and mkdir refuses one that exists
    roomy = memory.is_dir() and os.access(memory, os.W_OK | os.X_OK) and shutil.disk_usage(memory).free > _ROOMY
    folder = (memory if roomy else Path(tempfile.gettempdir()).resolve()) / f"{_PREFIX}{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        folder.chmod(0o711)
    return folder
