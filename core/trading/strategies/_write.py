"""Define, revise, enable, disable, roll back: each in the caller's transaction, who commits."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.attributes import flag_modified

from core.database.models import Strategy, StrategyRevision
from core.database.models.revisions import STATE, Origin, plain_state, same, state_of
from core.database.records import StrategyConfig, StrategyParameters
from core.trading.strategies._errors import RevisionNotFound
from core.trading.strategies._record import judged, locked, locked_all, refuse_lost_update, take_turn, write
from core.trading.strategies._rules import StrategyRules, document_of, refusal


class _Unchanged:
    """Stands for an argument that is not given, where None is a value."""

    def __repr__(self) -> str:
        return "UNCHANGED"


_UNCHANGED: Final = _Unchanged()
_FIRST: Final = 1


async def define(
    session: AsyncSession,
    *,
    strategy_id: str,
    name: str,
    strategy_type: str | None = None,
    config: Mapping[str, Any] | BaseModel | None = None,
    parameters: Mapping[str, Any] | BaseModel | None = None,
    active_brokers: Sequence[str] = (),
    is_active: bool = True,
    changed_by: str | None = None,
    note: str | None = None,
    rules: StrategyRules | None = None,
) -> Strategy:
    """Add a strategy at version 1; the caller commits.

    Raises `InvalidInput` for what the rules or the table refuse, and `UniqueViolation` if the id exists.
    """
    state: dict[str, Any] = {
        "name": name,
        "strategy_type": strategy_type,
        "config": document_of(StrategyConfig, config if config is not None else {}),
        "parameters": document_of(StrategyParameters, parameters if parameters is not None else {}),
        "active_brokers": active_brokers,
        "is_active": is_active,
    }
    origin = Origin(changed_by, note)
    columns, problems = judged(strategy_id, _FIRST, state, origin, rules)
    if problems:
        raise refusal(problems)
    async with session.begin_nested():
        await take_turn(session)
        strategy = Strategy(strategy_id=strategy_id, **{field: columns[field] for field in STATE})
        session.add(strategy)
        await write(session, [strategy], origin)
    return strategy


async def revise(
    session: AsyncSession,
    strategy_id: str,
    *,
    expected_version: int,
    name: str | _Unchanged = _UNCHANGED,
    strategy_type: str | _Unchanged | None = _UNCHANGED,
    config: Mapping[str, Any] | BaseModel | _Unchanged = _UNCHANGED,
    parameters: Mapping[str, Any] | BaseModel | _Unchanged = _UNCHANGED,
    active_brokers: Sequence[str] | _Unchanged = _UNCHANGED,
    is_active: bool | _Unchanged = _UNCHANGED,
    changed_by: str | None = None,
    note: str | None = None,
    rules: StrategyRules | None = None,
) -> Strategy:
    """Change what is given, as the next version; the caller commits. What equals the present state makes no version.

    `expected_version` is the version that the decision was made on: if it is no longer the present one, `VersionConflict`
    tells who changed what since. `config` and `parameters` are replaced whole. Strategies are locked against other writers
    until the transaction ends. Raises `StrategyNotFound` and `InvalidInput`.
    """
    given: dict[str, Any] = {
        "name": name,
        "strategy_type": strategy_type,
        "config": config if isinstance(config, _Unchanged) else document_of(StrategyConfig, config),
        "parameters": parameters if isinstance(parameters, _Unchanged) else document_of(StrategyParameters, parameters),
        "active_brokers": active_brokers,
        "is_active": is_active,
    }
    chosen = {field: value for field, value in given.items() if not isinstance(value, _Unchanged)}
    strategy = await locked(session, strategy_id)
    await refuse_lost_update(session, strategy, expected_version)
    return await _change(session, strategy, chosen, Origin(changed_by, note), rules)


async def enable(
    session: AsyncSession,
    strategy_id: str,
    *,
    changed_by: str | None = None,
    note: str | None = None,
    rules: StrategyRules | None = None,
) -> Strategy:
    """Let it trade; nothing happens if it may. The caller commits. Raises `StrategyNotFound` and, by rules, `InvalidInput`."""
    strategy = await locked(session, strategy_id)
    return await _change(session, strategy, {"is_active": True}, Origin(changed_by, note), rules)


async def disable(
    session: AsyncSession, strategy_id: str, *, changed_by: str | None = None, note: str | None = None
) -> Strategy:
    """Stop it, at whatever version it is, and whatever rules say of it; nothing happens if it is stopped.

    The caller commits. Raises `StrategyNotFound`.
    """
    strategy = await locked(session, strategy_id)
    return await _change(session, strategy, {"is_active": False}, Origin(changed_by, note), None)


async def disable_all(
    session: AsyncSession, *, broker: str | None = None, changed_by: str | None = None, note: str | None = None
) -> list[Strategy]:
    """Stop every active one, or every one that trades with `broker`; those that were stopped, by id. The caller commits.

    One that is being defined or enabled at the same moment by another transaction is waited for and stopped too.
    """
    await take_turn(session)
    found = await locked_all(session, None)
    wanted = [one for one in found.values() if one.is_active and (broker is None or broker in one.active_brokers)]
    return [await _change(session, one, {"is_active": False}, Origin(changed_by, note), None) for one in wanted]


async def rollback(
    session: AsyncSession,
    strategy_id: str,
    *,
    to_version: int,
    expected_version: int,
    changed_by: str | None = None,
    note: str | None = None,
    rules: StrategyRules | None = None,
) -> Strategy:
    """Make the state of an earlier version the next version; the caller commits. `is_active` stays as it is.

    Raises `StrategyNotFound`, `RevisionNotFound`, `VersionConflict` as `revise` does, and `InvalidInput` if the rules of
    today refuse what was right then.
    """
    strategy = await locked(session, strategy_id)
    await refuse_lost_update(session, strategy, expected_version)
    query = select(StrategyRevision).where(
        StrategyRevision.strategy_id == strategy_id, StrategyRevision.version == to_version
    )
    row = (await session.scalars(query)).one_or_none()
    if row is None:
        raise RevisionNotFound(f"strategy {strategy_id!r} has no version {to_version} on record")
    state = state_of(row) | {"is_active": strategy.is_active}
    why = note if note is not None else f"back to version {to_version}"
    return await _change(session, strategy, state, Origin(changed_by, why), rules)


async def _change(
    session: AsyncSession,
    strategy: Strategy,
    chosen: Mapping[str, Any],
    origin: Origin,
    rules: StrategyRules | None,
) -> Strategy:
    present = state_of(strategy)
    columns, problems = judged(strategy.strategy_id, strategy.version + 1, {**present, **chosen}, origin, rules)
    if problems:
        raise refusal(problems)
    # Of another type the documents are other models', with other defaults.
    taken = {*chosen, "config", "parameters"} if "strategy_type" in chosen else set(chosen)
    revised = {**present, **{field: columns[field] for field in taken}}
    if apply_state(strategy, revised):
        await write(session, [strategy], origin)
    return strategy


def apply_state(strategy: Strategy, state: Mapping[str, Any]) -> bool:
    """Set what differs; whether anything does."""
    before, after = plain_state(state_of(strategy)), plain_state(state)
    differing = [field for field in STATE if not same(before[field], after[field])]
    for field in differing:
        setattr(strategy, field, state[field])
        flag_modified(strategy, field)  # to the ORM, as to Python, true is 1
    return bool(differing)
