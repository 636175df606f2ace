"""Strategies: their configuration, and what it was at each version.

Every version is written as a `StrategyRevision` when it comes into force, the first one included.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.exc import StaleDataError

from core.database.errors import PandaDatabaseError
from core.database.models import Strategy, StrategyRevision
from core.database.records import StrategyConfig, StrategyCreate, StrategyParameters, StrategyRevisionCreate
from core.database.types import invalid_input

__all__ = ["StrategyNotFound", "VersionConflict", "define", "get", "history", "listing", "revise"]


class StrategyNotFound(PandaDatabaseError, LookupError):
    """There is no strategy of that id."""


class VersionConflict(PandaDatabaseError, StaleDataError):
    """Somebody else revised the strategy first."""

    mend = "Read the strategy again and decide anew."


class _Unchanged:
    """Stands for an argument that is not given, where None is a value."""


_UNCHANGED: Final = _Unchanged()
_STATE = ("name", "strategy_type", "config", "parameters", "active_brokers", "is_active")


async def define(
    session: AsyncSession,
    *,
    strategy_id: str,
    name: str,
    strategy_type: str | None = None,
    config: Mapping[str, Any] | None = None,
    parameters: Mapping[str, Any] | None = None,
    active_brokers: Sequence[str] = (),
    is_active: bool = True,
    note: str | None = None,
) -> Strategy:
    """Add a strategy at version 1; the caller commits. Raises `InvalidInput`, and `UniqueViolation` if the id exists."""
    try:
        record = StrategyCreate(
            strategy_id=strategy_id,
            name=name,
            strategy_type=strategy_type,
            config=StrategyConfig.model_validate(dict(config or {})),
            parameters=StrategyParameters.model_validate(dict(parameters or {})),
            active_brokers=list(active_brokers),
            is_active=is_active,
        )
    except ValidationError as fault:
        raise invalid_input(fault) from None
    strategy = Strategy(**record.columns())
    async with session.begin_nested():
        session.add(strategy)
        await session.flush()
        await _write_revision(session, strategy, note)
    return strategy


async def revise(
    session: AsyncSession,
    strategy_id: str,
    *,
    expected_version: int | None = None,
    name: str | _Unchanged = _UNCHANGED,
    strategy_type: str | _Unchanged | None = _UNCHANGED,
    config: Mapping[str, Any] | _Unchanged = _UNCHANGED,
    parameters: Mapping[str, Any] | _Unchanged = _UNCHANGED,
    active_brokers: Sequence[str] | _Unchanged = _UNCHANGED,
    is_active: bool | _Unchanged = _UNCHANGED,
    note: str | None = None,
) -> Strategy:
    """Change what is given, as the next version; the caller commits. What equals the present state makes no version.

    The strategy's row is locked until then. `expected_version` is the version that the decision was made on: `VersionConflict`
    if it is no longer the present one. Raises `StrategyNotFound` and `InvalidInput`.
    """
    strategy = await session.get(Strategy, strategy_id, with_for_update=True, populate_existing=True)
    if strategy is None:
        raise StrategyNotFound(f"there is no strategy {strategy_id!r}")
    if expected_version is not None and strategy.version != expected_version:
        raise VersionConflict(f"strategy {strategy_id!r} is at version {strategy.version}, not {expected_version}")
    given: dict[str, Any] = {
        "name": name,
        "strategy_type": strategy_type,
        "config": _document(StrategyConfig, config),
        "parameters": _document(StrategyParameters, parameters),
        "active_brokers": active_brokers if isinstance(active_brokers, _Unchanged) else list(active_brokers),
        "is_active": is_active,
    }
    changes = {
        field: value for field, value in given.items() if value is not _UNCHANGED and value != getattr(strategy, field)
    }
    if not changes:
        return strategy
    state = {field: getattr(strategy, field) for field in _STATE} | changes
    _check_revision(strategy_id, strategy.version + 1, state, note)
    for field, value in changes.items():
        setattr(strategy, field, value)
    await session.flush()
    await _write_revision(session, strategy, note)
    return strategy


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


def _document(
    kind: type[StrategyConfig | StrategyParameters], value: Mapping[str, Any] | _Unchanged
) -> StrategyConfig | StrategyParameters | _Unchanged:
    if isinstance(value, _Unchanged):
        return value
    try:
        return kind.model_validate(dict(value))
    except ValidationError as fault:
        raise invalid_input(fault) from None


def _check_revision(strategy_id: str, version: int, state: dict[str, Any], note: str | None) -> dict[str, Any]:
    fields = state | {"strategy_id": strategy_id, "version": version, "note": note}
    fields["active_brokers"] = list(state["active_brokers"])
    try:
        return StrategyRevisionCreate.model_validate(fields).columns()
    except ValidationError as fault:
        raise invalid_input(fault) from None


async def _write_revision(session: AsyncSession, strategy: Strategy, note: str | None) -> None:
    state = {field: getattr(strategy, field) for field in _STATE}
    session.add(StrategyRevision(**_check_revision(strategy.strategy_id, strategy.version, state, note)))
    await session.flush()
