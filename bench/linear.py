"""`python -m bench.linear`: seconds and memory of a load, by the number of rows.

Each size is loaded into an empty master by a process of its own, from a file. Its memory is what it needs beyond what the
interpreter, the imports and a connected manager take already. Figures and picture go to bench/results.
"""

import argparse
import asyncio
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import master, panda
from bench.__main__ import RESULTS
from bench.machine import describe, headline
from bench.server import Target, opened_target

SIZES = (100_000, 250_000, 500_000, 1_000_000)
MOST_MEGABYTES = 400
"""For the greatest size."""
_UNIT = 100_000
_MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class Point:
    """A load: of how many rows, in how many seconds, and with how many bytes at the most beyond those before it."""

    rows: int
    seconds: float
    memory: int

    @property
    def seconds_per_unit(self) -> float:
        """For 100,000 rows."""
        return self.seconds * _UNIT / self.rows


def grown(data: bytes, rows: int) -> bytes:
    """A file in Kite's format of `rows` rows: the given one's, and again under other tokens and symbols until there are as many."""
    header, *lines = data.splitlines(keepends=True)
    made = [header]
    for copy in range(-(-rows // len(lines))):
        for line in lines[: rows - len(made) + 1]:
            token, exchange_token, symbol, rest = line.split(b",", 3)
            made.append(
                b"%d,%s,%s%s,%s" % (int(token) + (copy << 40), exchange_token, symbol, b"~%d" % copy * (copy > 0), rest)
            )
    return b"".join(made)


def steepness(points: Sequence[Point]) -> float:
    """What a row of the largest load costs, by that of the smallest: 1 is linear."""
    least, most = min(points, key=lambda point: point.rows), max(points, key=lambda point: point.rows)
    return most.seconds_per_unit / least.seconds_per_unit


def rendered(points: Sequence[Point]) -> str:
    """A line for each load, and what they come to."""
    lines = [f"{'rows':>10} {'seconds':>9} {'per 100,000':>12} {'MB':>6}"]
    lines += [
        f"{point.rows:>10,} {point.seconds:>9.2f} {point.seconds_per_unit:>12.2f} {point.memory / _MEGABYTE:>6.0f}"
        for point in points
    ]
    most = max(points, key=lambda point: point.rows)
    held = "met" if most.memory < MOST_MEGABYTES * _MEGABYTE else "MISSED"
    lines.append(f"a row of the largest costs {steepness(points):.2f} times one of the smallest")
    lines.append(f"memory for {most.rows:,} rows: below {MOST_MEGABYTES} MB {held}")
    return "\n".join(lines)


def draw(points: Sequence[Point], caption: str, path: Path) -> None:
    """Write a PNG; ModuleNotFoundError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(caption, fontsize=8)
    left, right = figure.subplots(1, 2)
    rows = [point.rows / _MEGABYTE for point in points]
    first = points[0].seconds_per_unit * _MEGABYTE / _UNIT
    left.plot(rows, [first * row for row in rows], color="#9aa5b1", linestyle="--", label="as the smallest, linear")
    left.plot(rows, [point.seconds for point in points], color="#1b7f5c", marker="o", label="Alpha Panda")
    left.set_title("load into an empty master: seconds", fontsize=9, loc="left")
    right.plot(rows, [point.memory / _MEGABYTE for point in points], color="#1b7f5c", marker="o", label="Alpha Panda")
    right.axhline(MOST_MEGABYTES, color="#c0392b", linewidth=1, label="goal, for the largest")
    right.set_title("memory at the most: MB above the idle process", fontsize=9, loc="left")
    for axes in (left, right):
        axes.set_xlabel("million rows", fontsize=8)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=7)
    FigureCanvasAgg(figure).print_png(path)


async def measure(sizes: Sequence[int]) -> None:
    """Load each size, print, and keep the figures."""
    points: list[Point] = []
    async with opened_target() as target, master.connected(target) as connection:
        machine = await describe(target)
        print(headline(machine), flush=True)
        data = master.made()
        for rows in sizes:
            await master.truncate(connection)
            with tempfile.NamedTemporaryFile(prefix="panda-bench-", suffix=".csv") as file:
                file.write(grown(data, rows))
                file.flush()
                points.append(await _loaded(target, file.name, rows))
            print(f"{rows:,} rows: {points[-1].seconds:.2f} s", flush=True)
    print(rendered(points))
    keep(machine, points)


def keep(machine: dict[str, object], points: Sequence[Point]) -> None:
    """Write the JSON and the PNG, and say where they are."""
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / datetime.now(UTC).strftime("linear-%Y-%m-%dT%H-%M-%SZ")
    figures = stem.with_suffix(".json")
    figures.write_text(json.dumps({"machine": machine, "points": [asdict(point) for point in points]}, indent=1))
    print(f"Figures: {os.path.relpath(figures)}")
    try:
        draw(points, headline(machine), stem.with_suffix(".png"))
    except ModuleNotFoundError as error:
        print(f"No picture: {error.name} is not installed (pip install -r requirements/bench.lock)")
    else:
        print(f"Picture: {os.path.relpath(stem.with_suffix('.png'))}")


async def _loaded(target: Target, path: str, rows: int) -> Point:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.linear", "--child", path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await child.communicate(json.dumps(asdict(target)).encode())  # not as an argument: it may hold a password
    if child.returncode:
        raise SystemExit(f"the load of {rows:,} rows ended with status {child.returncode}")
    found: dict[str, Any] = json.loads(told)
    if found["added"] != rows:
        raise AssertionError(f"Expected {rows} rows, got {found['added']}")
    return Point(rows, found["seconds"], found["memory"])


async def _child(path: str) -> None:
    """Load one file and tell the figures as JSON."""
    from core.trading import instruments

    target = Target(**json.load(sys.stdin))
    async with panda.opened_manager(target) as manager:
        await manager.health_check()
        before, start = peak(), time.perf_counter()
        report = await instruments.load(manager, Path(path), trading_date=master.DAY)
        taken = time.perf_counter() - start
        print(json.dumps({"added": report.added, "seconds": taken, "memory": peak() - before}))


def peak() -> int:
    """Bytes that this process has held at the most. Linux counts into ru_maxrss what the parent held when it forked."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Measure; the status is 0 whether the goal is met or not."""
    parser = argparse.ArgumentParser(prog="python -m bench.linear", description="A load, by the number of its rows.")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of rows, the smallest first")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    asyncio.run(_child(wanted.child) if wanted.child else measure(wanted.sizes))


if __name__ == "__main__":
    main()
