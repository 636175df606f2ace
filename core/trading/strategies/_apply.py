"""Bring the strategies to what documents declare."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.errors import InvalidInput
from core.database.models import Strategy
from core.database.models.revisions import STATE, FieldChange, Origin, among, state_changes, state_of
from core.trading.strategies._document import StrategyDocument
from core.trading.strategies._record import judged, locked_all, refuse_lost_update, take_turn, write
from core.trading.strategies._rules import StrategyRules, told
from core.trading.strategies._write import apply_state

Outcome = Literal["created", "changed", "unchanged", "disabled"]


@dataclass(frozen=True, slots=True)
class AppliedStrategy:
    """What became of one strategy; `version` is the one after it, `changes` are those from before."""

    strategy_id: str
    outcome: Outcome
    version: int
    is_active: bool
    changes: tuple[FieldChange, ...] = ()


@dataclass(frozen=True, slots=True)
class ApplyReport:
    """What `apply` has done or, in a dry run, would do: in the documents' order, then what was disabled."""

    strategies: tuple[AppliedStrategy, ...]
    dry_run: bool

    def count(self, outcome: Outcome) -> int:
        return sum(one.outcome == outcome for one in self.strategies)

    @property
    def changed(self) -> bool:
        """Whether anything is not as it was."""
        return any(one.outcome != "unchanged" for one in self.strategies)


@dataclass(frozen=True, slots=True)
class _Step:
    """What is to be done with one strategy, None being one that is not there yet."""

    strategy: Strategy | None
    report: AppliedStrategy
    state: Mapping[str, Any]


async def apply(
    session: AsyncSession,
    documents: Iterable[StrategyDocument | Mapping[str, Any]],
    *,
    rules: StrategyRules | None = None,
    prune: bool = False,
    dry_run: bool = False,
    changed_by: str | None = None,
    note: str | None = None,
) -> ApplyReport:
    """Create and change strategies until they are as declared, all or none; the caller commits.

    What is as declared is left alone. With `prune` the active strategies that are not declared are disabled, never
    deleted: their history and their portfolios stay. A dry run writes nothing and takes no lock.

    Raises `InvalidInput` that tells all that is wrong with any document, and `VersionConflict` for one that would change a
    strategy which is at another version than its `version`.
    """
    given = [item if isinstance(item, StrategyDocument) else StrategyDocument.of(item) for item in documents]
    _refuse_twins(given)
    if prune and not given:
        raise InvalidInput("no strategy is declared, and pruning would disable every one")
    origin = Origin(changed_by, note)
    if dry_run:
        steps = await _plan(session, given, await _present(session, given, prune=prune), origin, rules, prune=prune)
    else:
        async with session.begin_nested():
            await take_turn(session)
            wanted = None if prune else [item.strategy_id for item in given]
            steps = await _plan(session, given, await locked_all(session, wanted), origin, rules, prune=prune)
            await _carry_out(session, steps, origin)
    return ApplyReport(tuple(step.report for step in steps), dry_run)


async def documents_of(
    session: AsyncSession, strategy_ids: Sequence[str] | None = None, *, versions: bool = False
) -> tuple[StrategyDocument, ...]:
    """The strategies by id, those there are of the ids if given, as documents that change nothing when they are applied.

    With `versions` each can only be applied while its strategy is at the version that it has now.
    """
    query = select(Strategy).order_by(Strategy.strategy_id)
    query = query.where(among(strategy_ids))
    return tuple(StrategyDocument.from_strategy(one, version=versions) for one in await session.scalars(query))


async def _present(session: AsyncSession, given: Sequence[StrategyDocument], *, prune: bool) -> dict[str, Strategy]:
    query = select(Strategy).order_by(Strategy.strategy_id).execution_options(populate_existing=True)
    query = query.where(among(None if prune else [item.strategy_id for item in given]))
    return {one.strategy_id: one for one in await session.scalars(query)}


async def _plan(
    session: AsyncSession,
    given: Sequence[StrategyDocument],
    present: Mapping[str, Strategy],
    origin: Origin,
    rules: StrategyRules | None,
    *,
    prune: bool,
) -> list[_Step]:
    steps: list[_Step] = []
    refused: list[InvalidInput] = []
    for document in given:
        try:
            steps.append(_step(document, present.get(document.strategy_id), origin, rules))
        except InvalidInput as fault:
            refused.append(fault)
    if refused:
        message, lines = told(refused)
        raise InvalidInput(message, lines=lines, column=refused[0].column)
    for document, step in zip(given, steps, strict=True):
        if step.strategy is not None and step.report.outcome == "changed" and document.version is not None:
            await refuse_lost_update(session, step.strategy, document.version)
    declared = {document.strategy_id for document in given}
    left = [one for key, one in present.items() if prune and key not in declared and one.is_active]
    return steps + [_disabling(one) for one in left]


def _step(document: StrategyDocument, strategy: Strategy | None, origin: Origin, rules: StrategyRules | None) -> _Step:
    before = state_of(strategy) if strategy is not None else None
    version = strategy.version if strategy is not None else 0
    if strategy is None and document.version is not None:
        raise InvalidInput(
            f"strategy {document.strategy_id!r}: is not there, at version {document.version} or any other; leave version out"
        )
    try:
        state = document.state(is_active=strategy is None or strategy.is_active)
    except InvalidInput as fault:
        raise InvalidInput(f"strategy {document.strategy_id!r}: {fault.message}", column=fault.column) from None
    columns, problems = judged(document.strategy_id, version + 1, state, origin, rules)
    if problems:
        raise document.refusal(problems)
    after = {field: columns[field] for field in STATE}
    changes = state_changes(before, after) if before is not None else ()
    outcome: Outcome = "created" if before is None else "changed" if changes else "unchanged"
    return _Step(
        strategy,
        AppliedStrategy(document.strategy_id, outcome, version + (outcome != "unchanged"), after["is_active"], changes),
        after,
    )


def _disabling(strategy: Strategy) -> _Step:
    before = state_of(strategy)
    after = before | {"is_active": False}
    changes = state_changes(before, after)
    return _Step(
        strategy,
        AppliedStrategy(strategy.strategy_id, "disabled", strategy.version + 1, is_active=False, changes=changes),
        after,
    )


async def _carry_out(session: AsyncSession, steps: Sequence[_Step], origin: Origin) -> None:
    written: list[Strategy] = []
    for step in steps:
        if step.strategy is None:
            strategy = Strategy(strategy_id=step.report.strategy_id, **step.state)
            session.add(strategy)
            written.append(strategy)
        elif apply_state(step.strategy, step.state):
            written.append(step.strategy)
    await write(session, written, origin)


def _refuse_twins(given: Sequence[StrategyDocument]) -> None:
    counts = Counter(item.strategy_id for item in given)
    twins = [strategy_id for strategy_id, count in counts.items() if count > 1]
    if twins:
        raise InvalidInput(f"strategy {twins[0]!r} is declared {counts[twins[0]]} times", column="strategy_id")
