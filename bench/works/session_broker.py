"""What a broker's session costs over one without: the role and the broker go with BEGIN, in one message."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

from sqlalchemy import text

from bench import panda
from bench.measure import Entrant, Goal, Unit, Work, expect
from bench.server import Target

__all__ = ["WORK"]

ANY = "Alpha Panda, any broker"
AGAIN = "Alpha Panda, any broker, once more"
ONE = "Alpha Panda, one broker"
BY_HAND = "a broker by two statements"

_COUNT = text("SELECT count(*) FROM portfolios WHERE portfolio_id = 'none'")
_SET = text("SELECT panda_set_broker('paper')")


@asynccontextmanager
async def _panda(broker: str | None, by_hand: bool, target: Target) -> AsyncGenerator[Unit]:
    await panda.migrate(target)
    async with panda.opened_manager(target) as manager:

        async def unit() -> None:
            async with manager.get_session(broker=broker) as session:
                if by_hand:
                    await session.execute(_SET)
                expect(await session.scalar(_COUNT), 0)

        yield unit


WORK = Work(
    name="session-broker",
    title="open a session, look for a portfolio, close it: of all brokers and of one",
    entrants=(
        Entrant(ANY, partial(_panda, None, False)),
        Entrant(ONE, partial(_panda, "paper", False)),
        Entrant(AGAIN, partial(_panda, None, False)),
        Entrant(BY_HAND, partial(_panda, None, True)),
    ),
    limit=ANY,
    goals=(Goal(ONE, ANY, at_most=1.10),),
    units=10,
    runs=400,
)
"""The two without a broker differ by what the machine adds; as far as they do, nothing can be told apart."""
