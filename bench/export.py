"""How much memory an export takes above the interpreter: `python -m bench.export [ROWS]`, 5,000,000 unless said otherwise.

The rows are made by the server. Each form is written by a process of its own, whose largest resident size is compared with what
it was when everything was imported and connected.
"""

import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import panda, snapshots
from bench.server import Target, opened_target

__all__ = ["main"]

_ROWS = 5_000_000
_PORTFOLIOS = 100
_LIMIT = 500.0  # MB
_FORMS = ("csv", "csv.gz", "parquet")
_URL = "BENCH_EXPORT_URL"


def _largest() -> float:
    """The largest resident size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def _export(url: str, path: Path) -> None:
    """Print what it took as JSON."""
    from core.trading import portfolios

    async with panda.opened_manager(Target.from_url(url)) as manager:
        async with manager.get_session(read_only=True) as session:
            await portfolios.latest(session, [])
        before, start = _largest(), time.perf_counter()
        report = await portfolios.export_snapshots(manager, path)
        taken = time.perf_counter() - start
    print(json.dumps({"rows": report.rows, "size": report.size, "seconds": taken, "above": _largest() - before}))


async def main(rows: int) -> bool:
    """Whether every form stays below the limit."""
    fine = True
    async with opened_target() as target:
        await snapshots.fill(target, portfolios=_PORTFOLIOS, rows=rows)
        with tempfile.TemporaryDirectory(prefix="panda-export-") as folder:
            for form in _FORMS:
                path = Path(folder) / f"snapshots.{form}"
                done = subprocess.run(
                    [sys.executable, "-m", "bench.export", "--child", str(path)],
                    env=os.environ | {_URL: target.url},
                    stdout=subprocess.PIPE,
                    check=True,
                )
                path.unlink()
                found = json.loads(done.stdout)
                fine = fine and found["above"] < _LIMIT
                print(
                    f"{form:8} {found['rows']:>10,} rows {found['size'] / 1e6:>8,.1f} MB {found['seconds']:>7.1f} s "
                    f"{found['above']:>6.1f} MB above the interpreter (at most {_LIMIT:.0f})",
                    flush=True,
                )
    return fine


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        asyncio.run(_export(os.environ[_URL], Path(sys.argv[2])))
    else:
        sys.exit(0 if asyncio.run(main(int(sys.argv[1]) if sys.argv[1:] else _ROWS)) else 1)
