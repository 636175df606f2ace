"""`python -m bench`: measure, print, and keep the figures and a picture in bench/results.

WORK is a comma-separated list of works (all by default), ROWS how many units make a sample, RUNS how many rounds;
BENCH_DATABASE_URL measures against a server of yours, where a database is created and dropped again.
"""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.catalog import chosen
from bench.machine import describe, headline
from bench.measure import Result, Unavailable, Work, run_work
from bench.plot import draw
from bench.report import report
from bench.server import opened_target
from bench.table import render

RESULTS = Path(__file__).parent / "results"


async def measure(works: Sequence[Work], units: int | None, runs: int | None) -> None:
    """Run `works` one after the other, printing each as it is done."""
    results: list[Result] = []
    async with opened_target() as target:
        machine = await describe(target)
        print(headline(machine), flush=True)
        for work in works:
            try:
                results.append(await run_work(work, target, units=units, runs=runs))
            except Unavailable as reason:
                print(f"\n{work.name}: not measured. {reason}", flush=True)
            else:
                print(f"\n{render(results[-1])}", flush=True)
    if results:
        keep(machine, results)


def keep(machine: dict[str, object], results: Sequence[Result]) -> None:
    """Write the JSON and the PNG, and say where they are."""
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    figures, picture = stem.with_suffix(".json"), stem.with_suffix(".png")
    figures.write_text(json.dumps(report(machine, results), indent=1))
    print(f"Figures: {os.path.relpath(figures)}")
    try:
        draw(results, headline(machine), picture)
    except ModuleNotFoundError as error:
        print(f"No picture: {error.name} is not installed (pip install -r requirements/bench.lock)")
    else:
        print(f"Picture: {os.path.relpath(picture)}")


def positive(name: str) -> int | None:
    """A whole number above 0 from the environment, None when unset; ValueError names the variable."""
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"{name} is a whole number above 0, not {text!r}")
    return int(text)


def main() -> int:
    """0 when everything was measured, whether goals are met or not; 2 for a wrong wish."""
    try:
        works, units, runs = chosen(os.environ.get("WORK", "")), positive("ROWS"), positive("RUNS")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    asyncio.run(measure(works, units, runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
