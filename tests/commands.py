"""`panda` as tests call it where the start of a process is not their subject; the fixture `clean` undoes what it configures."""

import contextlib
import io
import os
import subprocess
import warnings
from unittest import mock

from core.cli.main import main
from core.config.settings import get_settings


def panda(*arguments: str, url: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which is quick; what it writes is kept as a process's output would be.

    Not for `wait` with a short limit: when its time is up it may end the process, and that is this one.
    """
    names = environment | ({"DATABASE__POSTGRES_URL": url} if url else {})
    out, err = io.StringIO(), io.StringIO()
    get_settings.cache_clear()
    with (
        mock.patch.dict(os.environ, names),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = main(arguments)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
