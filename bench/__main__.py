"""`python -m bench`: measure, print, and keep the figures and a picture in bench/results.

WORK or --work is a comma-separated list of works (all by default), ROWS or --rows how many units make a sample (in a work
whose size is that of its data: how many rows there are), RUNS or --runs how many rounds. BENCH_DATABASE_URL measures against a
server of yours, where a database is created and dropped again.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.catalog import WORKS, chosen
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


def wishes(arguments: Sequence[str], environment: Mapping[str, str]) -> argparse.Namespace:
    """What to measure, by arguments or else by the environment; SystemExit with status 2 for what makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="This project, its peers and the physical limit."
    )
    # An empty variable is what `make` passes on for one that is not set.
    given = {name: environment.get(name.upper()) or None for name in ("work", "rows", "runs")}
    parser.add_argument("--work", type=works_of, default=given["work"] or "", help=f"of {', '.join(names())}")
    parser.add_argument(
        "--rows", type=positive, default=given["rows"], help="how many units make a sample, or rows there are"
    )
    parser.add_argument("--runs", type=positive, default=given["runs"], help="how many rounds")
    return parser.parse_args(arguments)


def names() -> list[str]:
    """The works there are."""
    return [work.name for work in WORKS]


def works_of(text: str) -> tuple[Work, ...]:
    """`chosen`, whose complaint argparse shows."""
    try:
        return chosen(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number above 0, not {text!r}")
    return int(text)


def main() -> None:
    """Measure; the status is 0 whether goals are met or not."""
    wanted = wishes(sys.argv[1:], os.environ)
    asyncio.run(measure(wanted.work, wanted.rows, wanted.runs))


if __name__ == "__main__":
    main()
