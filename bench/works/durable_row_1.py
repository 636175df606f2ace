"""One snapshot and its commit, with nobody else about: what the snapshot writer costs where it has nothing to gain.

Both start from the same validated record and leave the same row. The plain insert dumps the position and hands over the
amounts as they are; it neither looks for the row, nor for the month, nor checks that the positions still agree with equity.
"""

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
