"""A process of its own that outlives a killed test run, removes what that left behind, and ends."""

import contextlib
import fcntl
import os
import shutil
import sys
import time
from pathlib import Path

_ATTEMPTS = 10


def clear(folder: Path) -> None:
    """Stop the server in a run's folder and remove all of it."""
    if (folder / "server").exists():
        from core.database.embedded import EmbeddedServer
        from core.database.errors import EmbeddedServerError

        # One that does not stop in time ends by itself within a minute, when it finds its folder gone.
        with contextlib.suppress(EmbeddedServerError):
            EmbeddedServer(folder / "server").stop(timeout=30)
    shutil.rmtree(folder, ignore_errors=True)


def wait_and_clear(folder: Path) -> None:
    """Wait until no process of the run holds its folder, then clear it; a run that ended in order has left nothing."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    # A program that the run was starting when it was killed may write for a moment yet.
    for _ in range(_ATTEMPTS):
        if not folder.exists():
            return
        clear(folder)
        time.sleep(0.5)


if __name__ == "__main__":
    wait_and_clear(Path(sys.argv[1]))
