"""The turn that writers take, what is not on record yet, and the rows of the outbox.

`strategy_revisions` is the outbox: its `change_id`s become visible in ascending order, since who writes one holds an
advisory lock from before it is drawn until the transaction has ended. It is the first lock of a writer, so that writers
do not wait for each other in a ring.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Text,
    any_,
    bindparam,
    case,
    func,
    inspect,
    literal,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import Session, SessionTransaction

from core.database.errors import InvalidInput
from core.database.models._strategies import Strategy, StrategyRevision
from core.database.models.revisions._conflict import RevisionChange
from core.database.models.revisions._differences import FieldChange, differences
from core.database.records import IDENTIFIER_RULE, LABEL_RULE, NOTE_RULE, StrategyConfig, StrategyParameters
from core.database.types import checked_text

CHANNEL: Final = "panda_strategies"
"""Where each transaction that changes strategies notifies, with the last `change_id` that it wrote."""

STATE: Final = ("name", "strategy_type", "config", "parameters", "active_brokers", "is_active")

SIGNED: Final = "alpha-panda: signed"
"""Key in `session.info`: what `write` is about to flush, and whose it is."""

_TURN_OF = "alpha-panda: turn"
_TOLD = 100
_TURN = text("SELECT pg_advisory_xact_lock(hashtextextended('alpha-panda: strategies', 0))")
_NOTIFY = select(func.pg_notify(CHANNEL, bindparam("last", type_=Text())))
_STRATEGIES: Any = Strategy.__table__
_REVISIONS: Any = StrategyRevision.__table__


@dataclass(frozen=True, slots=True)
class Origin:
    """Who makes a change, and why."""

    changed_by: str | None = None
    note: str | None = None

    @classmethod
    def of(cls, session: Session) -> "Origin":
        """What `session.info` says. Raises `InvalidInput`."""
        said: dict[str, str | None] = {}
        for name, rule in (("changed_by", LABEL_RULE), ("note", NOTE_RULE)):
            try:
                value: Any = session.info.get(name)
                said[name] = None if value is None else rule(value)
            except InvalidInput as fault:
                raise InvalidInput(f"session.info[{name!r}]: {fault.message}", column=name) from None
        return cls(**said)


def take_turn(session: Session) -> None:
    """Wait until no other transaction is changing strategies; nothing is sent if it is this one's turn already.

    Raises `LockTimeout`.
    """
    if not _has_turn(session):
        _connection(session).execute(_TURN)
        session.info[_TURN_OF] = session.get_nested_transaction() or session.get_transaction()


def _has_turn(session: Session) -> bool:
    """A savepoint that is rolled back gives the turn that was taken in it back."""
    taken_in = session.info.get(_TURN_OF)
    present: SessionTransaction | None = session.get_nested_transaction() or session.get_transaction()
    while present is not None and present is not taken_in:
        present = present.parent
    return present is not None


def _connection(session: Session) -> Connection:
    """Not `session.execute`, which would ask the listeners about these statements too."""
    return session.connection(bind_arguments={"mapper": inspect(Strategy)})


def locked(session: Session, strategy_ids: Collection[str] | None) -> dict[str, Strategy]:
    """Those there are of them, of all if None, by id, as they are and on record; the caller has its turn.

    They are kept from others until the transaction ends. What was written past the sessions comes on record here, as changed
    by nobody known.
    """
    session.flush()
    last, unsettled = _last_revision()
    # FOR NO KEY UPDATE, since a portfolio that points at the strategy holds a KEY SHARE on it.
    query = (
        select(Strategy, unsettled.label("unsettled"), last.c.version)
        .join(last, true(), isouter=True)
        .where(among(strategy_ids))
        .order_by(Strategy.strategy_id)
        .with_for_update(key_share=True, of=Strategy)
        .execution_options(populate_existing=True)
    )
    found: dict[str, Strategy] = {}
    for row in session.execute(query).all():
        strategy = found[row[0].strategy_id] = row[0]
        if row.unsettled:
            _settle(session, strategy.strategy_id, strategy.version, row.version, Origin())
            session.refresh(strategy)
    return found


def locked_versions(session: Session, strategy_ids: Collection[str]) -> dict[str, int]:
    """Their versions, settled and locked as by `locked`, whatever the session holds of them."""
    last, unsettled = _last_revision()
    query = _versions(last, unsettled).where(among(strategy_ids))
    return {
        row.strategy_id: _settle(session, row.strategy_id, row.version, row.recorded, Origin())
        if row.unsettled
        else row.version
        for row in _connection(session).execute(query).all()
    }


def settle(session: Session, origin: Origin, *, by_role: bool = False) -> None:
    """Put on record every strategy that is not as its last revision says; the caller has its turn."""
    last, unsettled = _last_revision()
    for row in _connection(session).execute(_versions(last, unsettled).where(unsettled)).all():
        _settle(session, row.strategy_id, row.version, row.recorded, origin, by_role=by_role)


def _versions(last: Any, unsettled: ColumnElement[bool]) -> Select[Any]:
    columns: list[Any] = [_STRATEGIES.c.strategy_id, _STRATEGIES.c.version, last.c.version.label("recorded")]
    query: Any = select(*columns, unsettled.label("unsettled")).join_from(_STRATEGIES, last, true(), isouter=True)
    return query.order_by(_STRATEGIES.c.strategy_id).with_for_update(key_share=True, of=_STRATEGIES)


def _last_revision() -> tuple[Any, ColumnElement[bool]]:
    """The last revision of each strategy, to be joined, and whether the strategy is anything else than that."""
    columns = [_REVISIONS.c[name] for name in ("version", *STATE)]
    query = select(*columns).where(_REVISIONS.c.strategy_id == _STRATEGIES.c.strategy_id)
    last = query.order_by(_REVISIONS.c.version.desc()).limit(1).lateral("last")
    unsettled = or_(*[_STRATEGIES.c[name].is_distinct_from(last.c[name]) for name in ("version", *STATE)])
    return last, unsettled


def among(strategy_ids: Collection[str] | None) -> ColumnElement[bool]:
    """That a strategy is one of them; what can be no id is none, and is not sent."""
    if strategy_ids is None:
        return true()
    possible = [one for one in strategy_ids if _is_id(one)]
    return _STRATEGIES.c.strategy_id == any_(literal(possible, ARRAY(Text())))


def _is_id(value: Any) -> bool:
    try:
        checked_text(value, IDENTIFIER_RULE.max_length)
    except InvalidInput:
        return False
    return True


def _settle(
    session: Session, strategy_id: str, version: int, recorded: int | None, origin: Origin, *, by_role: bool = False
) -> int:
    """Record what is there, as a version after the recorded one; the version."""
    if recorded is not None and version <= recorded:
        version = recorded + 1
        raised = update(_STRATEGIES).where(_STRATEGIES.c.strategy_id == strategy_id).values(version=version)
        _connection(session).execute(raised)
    append(session, [strategy_id], origin, by_role=by_role)
    return version


def append(session: Session, strategy_ids: Sequence[str], origin: Origin, *, by_role: bool = False) -> None:
    """Put what the rows are now into the outbox in that order, and tell those who listen, when the caller commits."""
    ids = literal(list(strategy_ids), ARRAY(Text()))
    who: ColumnElement[str | None] = literal(origin.changed_by, Text())
    if by_role and origin.changed_by is None:
        who = role_called(func.session_user())
    copied = ("strategy_id", "version", *STATE)
    # Not now(), which is when the transaction began: it may have waited for its turn since.
    rows = select(
        *[_STRATEGIES.c[name] for name in copied], literal(origin.note, Text()), who, func.clock_timestamp()
    ).where(_STRATEGIES.c.strategy_id == any_(ids))
    rows = rows.order_by(func.array_position(ids, _STRATEGIES.c.strategy_id))
    columns = [*copied, "note", "changed_by", "created_at"]
    # One that somebody has made by hand, in the same flush, is in its place.
    written = insert(_REVISIONS).from_select(columns, rows, include_defaults=False).on_conflict_do_nothing()
    change_ids = _connection(session).execute(written.returning(_REVISIONS.c.change_id)).scalars().all()
    if change_ids:
        tell(session, change_ids)


def role_called(name: ColumnElement[str]) -> ColumnElement[str | None]:
    """What history calls a role; one whose name is no label is nobody."""
    return case((name.op("~")(f"^{LABEL_RULE.pattern}$"), literal("role ", Text()).concat(name)))


def tell(session: Session, change_ids: Collection[int]) -> None:
    """Notify those who listen of these, of some if empty, when the caller commits."""
    _connection(session).execute(_NOTIFY, {"last": str(max(change_ids, default=""))})


def write(session: Session, changed: Collection[Strategy], origin: Origin) -> None:
    """Flush them, as changed by `origin` or else by whom the session says; the caller has its turn and has `locked` them."""
    said = Origin.of(session)
    signed = Origin(origin.changed_by or said.changed_by, origin.note or said.note)
    session.info[SIGNED] = (list(changed), signed)
    try:
        session.flush()
    finally:
        del session.info[SIGNED]


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


def changes_since(session: Session, strategy_id: str, version: int) -> tuple[RevisionChange, ...]:
    """The versions after that one, at most the last hundred, each with what it changed."""
    query = select(StrategyRevision).where(
        StrategyRevision.strategy_id == strategy_id, StrategyRevision.version >= version
    )
    newest = session.scalars(query.order_by(StrategyRevision.version.desc()).limit(_TOLD + 1)).all()
    before: StrategyRevision | None = None
    told: list[RevisionChange] = []
    for row in reversed(newest):
        if row.version > version and (before is not None or len(newest) <= _TOLD):
            changes = state_changes(state_of(before), state_of(row)) if before is not None else ()
            paths = tuple(change.where for change in changes) if before is not None else STATE
            told.append(RevisionChange(row.version, row.changed_by, row.created_at, row.note, paths))
        before = row
    return tuple(told)
