"""What SQLAlchemy's sessions tell of strategies, and what is done about it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from sqlalchemy import event, inspect
from sqlalchemy.engine import Result
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import ORMExecuteState, Session

from core.database.errors import InvalidInput
from core.database.models._strategies import Strategy, StrategyRevision
from core.database.models.revisions._conflict import HistoryKept, VersionConflict
from core.database.models.revisions._log import (
    SIGNED,
    Origin,
    append,
    changes_since,
    locked_versions,
    settle,
    take_turn,
    tell,
)

_FLUSHING: Final = "alpha-panda: flushing"


_Row: TypeAlias = Strategy | StrategyRevision


@dataclass(frozen=True, slots=True)
class _Flush:
    """Strategies that a function writes, those that others write past the functions, revisions that are made by hand."""

    signed: Sequence[Strategy]
    origin: Origin
    others: Sequence[Strategy]
    said: Origin
    by_hand: Sequence[StrategyRevision]


def listen() -> None:
    """Listen to every session from now on; done once, when the models are imported."""
    event.listen(Session, "before_flush", _before_flush)
    event.listen(Session, "after_flush", _after_flush)
    event.listen(Session, "do_orm_execute", _execute)


def _before_flush(session: Session, *_: Any) -> None:
    session.info.pop(_FLUSHING, None)
    for one in session.deleted:
        if isinstance(one, Strategy | StrategyRevision):
            raise _kept(type(one), f"{one!r} is")
    added = [one for one in session.new if isinstance(one, Strategy | StrategyRevision)]
    changed = [
        one for one in session.dirty if isinstance(one, Strategy | StrategyRevision) and session.is_modified(one)
    ]
    if added or changed:
        session.info[_FLUSHING] = _prepared(session, added, changed)


def _prepared(session: Session, added: Sequence[_Row], changed: Sequence[_Row]) -> _Flush:
    """What is to be put on record after the flush, under the lock that it takes here."""
    signed, origin = session.info.get(SIGNED, ((), Origin()))
    known = set(map(id, signed))
    new = [one for one in added if isinstance(one, Strategy) and id(one) not in known]
    revised: list[Strategy] = []
    for one in changed:
        if isinstance(one, StrategyRevision):
            raise _kept(StrategyRevision, f"{one!r} is")
        if id(one) not in known:
            revised.append(one)
    by_hand = [one for one in added if isinstance(one, StrategyRevision)]
    if new or revised or by_hand:
        take_turn(session)
        _refuse_lost_updates(session, _versions_read(revised))
    return _Flush(signed, origin, [*new, *revised], Origin.of(session), by_hand)


def _after_flush(session: Session, *_: Any) -> None:
    flush: _Flush | None = session.info.pop(_FLUSHING, None)
    if flush is None:
        return
    if flush.by_hand:
        tell(session, [one.change_id for one in flush.by_hand])
    if flush.signed:
        append(session, [one.strategy_id for one in flush.signed], flush.origin)
    if flush.others:
        append(session, [one.strategy_id for one in flush.others], flush.said, by_role=True)


def _versions_read(changed: Iterable[Strategy]) -> dict[str, int]:
    read: dict[str, int] = {}
    for one in changed:
        state = inspect(one)
        for name in ("strategy_id", "version"):
            if state.attrs[name].history.deleted:
                raise InvalidInput(f"{name}: is not for changing, of {one!r}", column=name)
        read[one.strategy_id] = one.version
    return read


def _versions_given(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Of an UPDATE by keys, whose rows SQLAlchemy compares with versions of theirs."""
    given: dict[str, int] = {}
    for row in rows:
        if "strategy_id" not in row or "version" not in row:
            raise InvalidInput(
                "an UPDATE of rows by their keys takes the strategy_id of each and the version that was read"
            )
        given[row["strategy_id"]] = row["version"]
    return given


def _refuse_lost_updates(session: Session, read: Mapping[str, int]) -> None:
    """Raise `VersionConflict` if one of them is at another version than it was read at; they are locked."""
    present = locked_versions(session, sorted(read)) if read else {}
    for strategy_id, version in sorted(read.items()):
        actual = present.get(strategy_id)
        if actual is None:
            raise VersionConflict(f"strategy {strategy_id!r} is no longer there", expected=version)
        if actual != version:
            changes = changes_since(session, strategy_id, version)
            raise VersionConflict.of(strategy_id, expected=version, actual=actual, changes=changes)


def _execute(state: ORMExecuteState) -> Result[Any] | None:
    """INSERT and UPDATE statements of a session: of any rows, so what they did is found by comparing."""
    if not (state.is_insert or state.is_update or state.is_delete):
        return None
    statement: Any = state.statement
    statement = getattr(statement, "element", statement)  # in from_statement()
    table = statement.entity_description["table"]
    if table is StrategyRevision.__table__ and state.is_insert:
        take_turn(state.session)  # made by hand
        tell(state.session, ())
        return None
    if table is StrategyRevision.__table__:
        raise _kept(StrategyRevision, "revisions are")
    if table is not Strategy.__table__:
        return None
    if state.is_delete:
        raise _kept(Strategy, "strategies are")
    session, origin = state.session, Origin.of(state.session)
    take_turn(session)
    settle(session, Origin())
    if state.is_update and isinstance(state.parameters, Sequence):
        _refuse_lost_updates(session, _versions_given(state.parameters))
    elif state.is_update and statement is state.statement:
        state.statement = _counting(statement)
    result = state.invoke_statement()
    settle(session, origin, by_role=True)
    return result


def _counting(statement: Any) -> Any:
    """The UPDATE, counting versions as a flush does, so that what it returns and objects in the session have the new one."""
    try:
        return statement.values({Strategy.version: Strategy.version + 1})
    except InvalidRequestError:  # its values are ordered; settling counts
        return statement


def _kept(kind: type[_Row], subject: str) -> HistoryKept:
    if kind is StrategyRevision:
        return HistoryKept(f"{subject} never changed or deleted", table=StrategyRevision.__tablename__)
    hint = "Stop it: `strategies.disable`, or is_active = False."
    return HistoryKept(f"{subject} never deleted, since the history is kept", hint=hint, table=Strategy.__tablename__)
