"""One snapshot and its commit, with nobody else about: what the snapshot writer costs where it has nothing to gain."""

from functools import partial

from bench.measure import Entrant, Goal, Work
from bench.works.durable_row import DIRECT, PANDA, prepare, timed_direct, timed_writer

__all__ = ["WORK"]

WORK = Work(
    name="durable-row-1",
    title="one snapshot and its commit, one task",
    entrants=(Entrant(DIRECT, timed_direct), Entrant(PANDA, partial(timed_writer, 1))),
    limit=DIRECT,
    goals=(Goal(PANDA, DIRECT, at_most=1.05),),
    prepare=prepare,
    units=500,
    runs=15,
    alone=True,
)
