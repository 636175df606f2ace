"""The same as `session`, by 64 tasks that share a pool of 20: what is left when connections have to be waited for."""

from bench import peers
from bench.measure import Goal, Work
from bench.works.session import LIMIT, READ_ONLY, READ_WRITE, SQLALCHEMY, session_entrants

__all__ = ["WORK"]

WORK = Work(
    name="session-64",
    title=f"open a session, SELECT 1, close it: 64 tasks on a pool of {peers.POOL}",
    entrants=session_entrants(opened=peers.POOL),
    limit=LIMIT,
    goals=(Goal(READ_ONLY, LIMIT, at_most=4.5), Goal(READ_WRITE, SQLALCHEMY)),
    units=1_280,
    runs=9,
    tasks=64,
    alone=True,
)
