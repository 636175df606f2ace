"""The same as `reload-0`, when one instrument in a hundred has changed since."""

from functools import partial

from bench import master
from bench.measure import Entrant, Goal, Work
from bench.works.reload import DISTINCT, PANDA, UPSERT, panda_again, prepare, upsert

__all__ = ["WORK"]

WORK = Work(
    name="reload-1",
    title=f"{master.ROWS:,} instruments again, one in a hundred changed",
    entrants=(
        Entrant(UPSERT, partial(upsert, changed=True, spare=False)),
        Entrant(DISTINCT, partial(upsert, changed=True, spare=True)),
        Entrant(PANDA, partial(panda_again, changed=True)),
    ),
    limit=UPSERT,
    goals=(Goal(PANDA, UPSERT, at_most=0.2),),
    prepare=prepare,
    units=1,
    runs=7,
)
