"""`python -m bench.latency`: how long one search takes, by line, against the goals for people who wait for it.

Everybody goes through the lines of the mix on his own, one line at a time; who is slow does it once, the others a few times
after a pass that is not counted. BENCH_DATABASE_URL is that of `python -m bench`.
"""

import argparse
import asyncio
import gc
import os
import time
from collections.abc import Mapping, Sequence

from bench.__main__ import positive
from bench.machine import describe, headline
from bench.samples import quantile
from bench.server import Target, opened_target
from bench.works.search import PANDA, ROWS, SEARCHERS, Searcher, lines, prepare

__all__ = ["GOALS", "main", "measured", "render"]

GOALS: tuple[tuple[float, float], ...] = ((0.50, 2e-3), (0.99, 10e-3))
"""Shares of the searches, and the seconds within which they shall be done."""
_PASSES = 5
_LONG = 5.0
"""Seconds for a pass, from which on one is enough."""


async def measured(target: Target, passes: int) -> dict[str, list[tuple[float, str]]]:
    """Seconds and line of every search, by who searched."""
    await prepare(target)
    taken: dict[str, list[tuple[float, str]]] = {}
    for name, opened in SEARCHERS.items():
        async with opened(target) as find:
            found = await _passed(find)
            if sum(seconds for seconds, _ in found) < _LONG:
                found = [one for _ in range(passes) for one in await _passed(find)]
        taken[name] = found
    return taken


async def _passed(find: Searcher) -> list[tuple[float, str]]:
    found: list[tuple[float, str]] = []
    gc.collect()
    gc.freeze()
    for line in lines():
        start = time.perf_counter()
        await find(line)
        found.append((time.perf_counter() - start, line))
    gc.unfreeze()
    return found


def render(taken: Mapping[str, Sequence[tuple[float, str]]]) -> str:
    """A table in milliseconds and a sentence for each goal; "best" is of each line's best, which a busy machine hardly moves."""
    said = [f"{'':32}{'p50':>9}{'p99':>9}{'max':>9}{'best p50':>10}{'best p99':>10}  slowest"]
    for name, found in taken.items():
        every, bests = [seconds for seconds, _ in found], _bests(found)
        figures = (quantile(every, 0.5), quantile(every, 0.99), max(every), quantile(bests, 0.5), quantile(bests, 0.99))
        cells = (f"{each * 1e3:{width}.2f}" for each, width in zip(figures, (9, 9, 9, 10, 10), strict=True))
        said.append(f"{name:32}{''.join(cells)}  {max(found)[1]}")
    said.append("")
    for share, limit in GOALS:
        reached = quantile([seconds for seconds, _ in taken[PANDA]], share)
        best = quantile(_bests(taken[PANDA]), share)
        verdict = "met" if reached <= limit else "MISSED"
        said.append(
            f"{PANDA}, p{share * 100:.0f} <= {limit * 1e3:g} ms: {reached * 1e3:.2f} (best {best * 1e3:.2f}): {verdict}"
        )
    return "\n".join(said)


def _bests(found: Sequence[tuple[float, str]]) -> list[float]:
    least: dict[str, float] = {}
    for seconds, line in found:
        least[line] = min(seconds, least.get(line, seconds))
    return list(least.values())


async def _run(passes: int) -> None:
    async with opened_target() as target:
        print(headline(await describe(target)), flush=True)
        taken = await measured(target, passes)
    print(f"\nsearch: {ROWS:,} instruments, {len(taken[PANDA]):,} searches, one at a time\n\n{render(taken)}")


def main() -> None:
    """Measure and print; the status is 0 whether the goals are met or not."""
    parser = argparse.ArgumentParser(prog="python -m bench.latency", description="How long one search takes.")
    default = os.environ.get("RUNS") or str(_PASSES)
    parser.add_argument("--runs", type=positive, default=default, help="how many passes over the lines")
    asyncio.run(_run(parser.parse_args().runs))


if __name__ == "__main__":
    main()
