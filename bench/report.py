"""The figures for machines: every sample of every round, so that any other statistic can be formed later."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from bench.measure import Result
from bench.outcome import lines, verdicts

__all__ = ["report"]


def report(machine: Mapping[str, object], results: Sequence[Result]) -> dict[str, object]:
    """A document of plain values; times are seconds per unit."""
    return {"machine": dict(machine), "works": [_work(result) for result in results]}


def _work(result: Result) -> dict[str, object]:
    work = result.work
    return {
        "name": work.name,
        "title": work.title,
        "units": result.units,
        "tasks": work.tasks,
        "limit": work.limit,
        "entrants": [
            {
                "name": line.name,
                "seconds": list(result.seconds[line.name]),
                "cost": asdict(line.cost),
                "ratio": asdict(line.ratio),
            }
            for line in lines(result)
        ],
        "goals": [
            {**asdict(found.goal), "ratio": found.ratio, "between": found.between, "met": found.met, "sure": found.sure}
            for found in verdicts(result)
        ],
        "absent": dict(result.absent),
    }
