"""What every change has in common: its turn, the state that it leaves, and its row in the outbox.

`strategy_revisions` is the outbox: its `change_id`s become visible in ascending order, since who writes one holds an
advisory lock from before it is drawn until the transaction has ended. It is the first lock of a writer, so that writers
do not wait for each other in a ring.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError
from sqlalchemy import Text, any_, func, literal, select, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.models import Strategy, StrategyRevision
from core.database.notify import notify
from core.database.records import StrategyConfig, StrategyParameters, StrategyRevisionCreate
from core.trading.strategies._diff import FieldChange, differences
from core.trading.strategies._errors import RevisionChange, StrategyNotFound, VersionConflict
from core.trading.strategies._rules import Problem, StrategyRules, refusal

CHANNEL: Final = "panda_strategies"
"""Where each transaction that changes strategies notifies, with the last `change_id` that it wrote."""

STATE: Final = ("name", "strategy_type", "config", "parameters", "active_brokers", "is_active")

_TOLD = 100
_TURN = text("SELECT pg_advisory_xact_lock(hashtextextended('alpha-panda: strategies', 0))")


@dataclass(frozen=True, slots=True)
class Origin:
    """Who makes a change, and why."""

    changed_by: str | None
    note: str | None


async def take_turn(session: AsyncSession) -> None:
    """Wait until no other transaction is changing strategies. Raises `LockTimeout`."""
    await session.execute(_TURN)


async def locked(session: AsyncSession, strategy_id: str) -> Strategy:
    """The strategy as it is, kept from others until the transaction ends, and on record. Raises `StrategyNotFound`."""
    await take_turn(session)
    found = await locked_all(session, [strategy_id])
    if strategy_id not in found:
        raise StrategyNotFound(f"there is no strategy {strategy_id!r}")
    return found[strategy_id]


async def locked_all(session: AsyncSession, strategy_ids: Collection[str] | None) -> dict[str, Strategy]:
    """Those there are of them, of all if None, by id; the caller has its turn.

    What was written past these functions, by the ORM or SQL, comes on record here, as changed by nobody known.
    """
    # FOR NO KEY UPDATE, since a portfolio that points at the strategy holds a KEY SHARE on it.
    query = select(Strategy).order_by(Strategy.strategy_id).with_for_update(key_share=True)
    if strategy_ids is not None:
        query = query.where(Strategy.strategy_id == any_(literal(list(strategy_ids), ARRAY(Text()))))
    await session.flush()
    found = {one.strategy_id: one for one in await session.scalars(query.execution_options(populate_existing=True))}
    versions = await recorded_versions(session, found)
    await write(
        session,
        [one for one in found.values() if versions.get(one.strategy_id, 0) < one.version],
        Origin(None, None),
    )
    return found


async def recorded_versions(session: AsyncSession, strategy_ids: Collection[str]) -> dict[str, int]:
    """The last version on record of each."""
    query = select(StrategyRevision.strategy_id, func.max(StrategyRevision.version)).where(
        StrategyRevision.strategy_id == any_(literal(list(strategy_ids), ARRAY(Text())))
    )
    return {row[0]: row[1] for row in await session.execute(query.group_by(StrategyRevision.strategy_id))}


def state_of(row: Strategy | StrategyRevision) -> dict[str, Any]:
    return {field: getattr(row, field) for field in STATE}


def plain_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The same as one JSON value, for comparing."""
    return {
        field: value.root if isinstance(value, StrategyConfig | StrategyParameters) else value
        for field, value in state.items()
    }


def state_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[FieldChange, ...]:
    return tuple(differences(plain_state(before), plain_state(after)))


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


async def write(session: AsyncSession, changed: Iterable[Strategy], origin: Origin) -> None:
    """Put what they are now into the outbox in that order, and tell those who listen, when the caller commits."""
    last = 0
    for strategy in changed:
        # Validated once more, which copies: a document that two rows share would change in both.
        columns, problems = validated(strategy.strategy_id, strategy.version, state_of(strategy), origin)
        if problems:
            raise refusal(problems)
        # Not now(), which is when the transaction began: it may have waited for its turn since.
        row = StrategyRevision(**columns, created_at=func.clock_timestamp())
        session.add(row)
        await session.flush()  # one at a time: a bulk insert may number them in another order
        last = row.change_id
    if last:
        await notify(session, CHANNEL, str(last))


async def refuse_lost_update(session: AsyncSession, strategy: Strategy, expected: int) -> None:
    """Raise `VersionConflict` if the strategy has moved on from the version that a decision was made on."""
    if strategy.version == expected:
        return
    raise VersionConflict.of(
        strategy.strategy_id,
        expected=expected,
        actual=strategy.version,
        changes=await changes_since(session, strategy.strategy_id, expected),
    )


async def changes_since(session: AsyncSession, strategy_id: str, version: int) -> tuple[RevisionChange, ...]:
    """The versions after that one, at most the last hundred, each with what it changed."""
    present = (await recorded_versions(session, [strategy_id])).get(strategy_id, 0)
    version = max(version, present - _TOLD)
    query = select(StrategyRevision).where(
        StrategyRevision.strategy_id == strategy_id, StrategyRevision.version >= version
    )
    before: StrategyRevision | None = None
    told: list[RevisionChange] = []
    for row in await session.scalars(query.order_by(StrategyRevision.version)):
        if row.version > version:
            changes = state_changes(state_of(before), state_of(row)) if before is not None else ()
            paths = tuple(change.where for change in changes) if before is not None else STATE
            told.append(RevisionChange(row.version, row.changed_by, row.created_at, row.note, paths))
        before = row
    return tuple(told)
