"""Strategies as they are, and as they were."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.models import Strategy, StrategyRevision
from core.database.models.revisions import FieldChange, state_changes, state_of
from core.trading.strategies._errors import RevisionNotFound, StrategyNotFound


async def get(session: AsyncSession, strategy_id: str) -> Strategy | None:
    """The strategy as it is now."""
    return await session.get(Strategy, strategy_id)


async def listing(session: AsyncSession, *, broker: str | None = None, active_only: bool = False) -> Sequence[Strategy]:
    """Strategies by name; those that trade with `broker`, if given."""
    query = select(Strategy).order_by(Strategy.name, Strategy.strategy_id)
    if active_only:
        query = query.where(Strategy.is_active)
    if broker is not None:
        query = query.where(Strategy.active_brokers.contains([broker]))
    return (await session.scalars(query)).all()


async def history(session: AsyncSession, strategy_id: str) -> Sequence[StrategyRevision]:
    """Every version of a strategy, the first one first; empty if there is none of that id."""
    query = select(StrategyRevision).where(StrategyRevision.strategy_id == strategy_id)
    return (await session.scalars(query.order_by(StrategyRevision.version))).all()


async def diff(session: AsyncSession, strategy_id: str, from_version: int, to_version: int) -> tuple[FieldChange, ...]:
    """What differs in `to_version`, place by place. Raises `StrategyNotFound` and `RevisionNotFound`."""
    query = select(StrategyRevision).where(
        StrategyRevision.strategy_id == strategy_id, StrategyRevision.version.in_((from_version, to_version))
    )
    found = {row.version: row for row in await session.scalars(query)}
    if not found and await session.get(Strategy, strategy_id) is None:
        raise StrategyNotFound(f"there is no strategy {strategy_id!r}")
    for version in (from_version, to_version):
        if version not in found:
            raise RevisionNotFound(f"strategy {strategy_id!r} has no version {version} on record")
    return changes_between(found[from_version], found[to_version])


def changes_between(before: Strategy | StrategyRevision, after: Strategy | StrategyRevision) -> tuple[FieldChange, ...]:
    """What differs in `after`, place by place."""
    return state_changes(state_of(before), state_of(after))


async def last_change(session: AsyncSession) -> int:
    """The `change_id` of the newest change that the session sees, 0 if there is none: where `watch` may take over."""
    return await session.scalar(select(func.max(StrategyRevision.change_id))) or 0
