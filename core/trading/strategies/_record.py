"""What every change has in common: its turn, the strategy as it is, what is refused, and its place on record."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.errors import InvalidInput
from core.database.models import Strategy, revisions
from core.database.models.revisions import STATE, Origin, RevisionChange, VersionConflict
from core.database.records import StrategyRevisionCreate
from core.trading.strategies._errors import StrategyNotFound
from core.trading.strategies._rules import Problem, StrategyRules


async def take_turn(session: AsyncSession) -> None:
    """Wait until no other transaction is changing strategies. Raises `LockTimeout`."""
    await session.run_sync(revisions.take_turn)


async def locked(session: AsyncSession, strategy_id: str) -> Strategy:
    """The strategy as it is, kept from others until the transaction ends, and on record. Raises `StrategyNotFound`."""
    await take_turn(session)
    found = await locked_all(session, [strategy_id])
    if strategy_id not in found:
        raise StrategyNotFound(f"there is no strategy {strategy_id!r}")
    return found[strategy_id]


async def locked_all(session: AsyncSession, strategy_ids: Collection[str] | None) -> dict[str, Strategy]:
    """Those there are of them, of all if None, by id, as they are and on record; the caller has its turn."""
    return await session.run_sync(revisions.locked, strategy_ids)


def validated(
    strategy_id: str, version: int, state: Mapping[str, Any], origin: Origin
) -> tuple[dict[str, Any], list[Problem]]:
    """The columns of a revision, and what its record refuses of them."""
    fields = {"strategy_id": strategy_id, "version": version, "note": origin.note, "changed_by": origin.changed_by}
    brokers: Any = state["active_brokers"]
    # A list that is tracked, or a tuple, as the strict record takes it; text stays what it is, to be refused.
    listed: Any = brokers if isinstance(brokers, str) or not isinstance(brokers, Sequence) else [*brokers]
    try:
        return StrategyRevisionCreate.model_validate({**state, **fields, "active_brokers": listed}).columns(), []
    except ValidationError as fault:
        errors = fault.errors(include_url=False, include_context=False, include_input=False)
        return {}, [Problem(one["loc"], one["msg"].removeprefix("Value error, ")) for one in errors]


def judged(
    strategy_id: str, version: int, state: Mapping[str, Any], origin: Origin, rules: StrategyRules | None
) -> tuple[dict[str, Any], list[Problem]]:
    """The columns of a revision as record and rules have them, and all that either refuses."""
    columns, problems = validated(strategy_id, version, state, origin)
    if problems or rules is None:
        return columns, problems
    checked, problems = rules.problems({field: columns[field] for field in STATE})
    return {**columns, **checked}, problems


async def write(session: AsyncSession, changed: Collection[Strategy], origin: Origin) -> None:
    """Flush them and put what they are now on record; the caller has its turn."""
    await session.run_sync(revisions.write, changed, origin)


async def refuse_lost_update(session: AsyncSession, strategy: Strategy, expected: int) -> None:
    """Raise `VersionConflict` if the strategy has moved on from the version that a decision was made on."""
    if type(expected) is not int:
        raise InvalidInput("expected_version: must be the version that was read, a whole number", column="version")
    actual = strategy.version
    if actual == expected:
        return
    changes: tuple[RevisionChange, ...] = ()
    if expected < actual:
        changes = await session.run_sync(revisions.changes_since, strategy.strategy_id, max(expected, 0))
    raise VersionConflict.of(strategy.strategy_id, expected=expected, actual=actual, changes=changes)
