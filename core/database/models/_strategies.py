"""Strategies and their revisions."""

from datetime import datetime
from uuid import uuid4

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, func, text, true
from sqlalchemy.orm import Mapped, mapped_column, relationship

from core.database.models._base import Base, instant_check, now, object_check, text_check
from core.database.records import (
    BROKER_RULE,
    IDENTIFIER_RULE,
    LABEL_RULE,
    NOTE_RULE,
    StrategyConfig,
    StrategyParameters,
)
from core.database.types import Boolean, Document, Integer32, Integer64, Text, TextArray, UtcDateTime


class _StrategyState:
    """What a strategy is, and was."""

    name: Mapped[str] = mapped_column(Text(LABEL_RULE.max_length))
    strategy_type: Mapped[str | None] = mapped_column(Text(LABEL_RULE.max_length))
    config: Mapped[StrategyConfig] = mapped_column(Document(StrategyConfig), server_default=text("'{}'"))
    parameters: Mapped[StrategyParameters] = mapped_column(Document(StrategyParameters), server_default=text("'{}'"))
    active_brokers: Mapped[list[str]] = mapped_column(TextArray(BROKER_RULE.max_length), server_default=text("'{}'"))
    is_active: Mapped[bool] = mapped_column(Boolean(), server_default=true())


def _state_checks() -> tuple[CheckConstraint, ...]:
    # BROKER_RULE for each element. Strict, since a lax path looks into the arrays of an array.
    brokers = """strict $[*] ? (@.type() != "string" || !(@ like_regex "^[a-z][a-z0-9_-]{0,31}$"))"""
    return (
        text_check("strategy_id", IDENTIFIER_RULE),
        text_check("name", LABEL_RULE),
        text_check("strategy_type", LABEL_RULE),
        object_check("config"),
        object_check("parameters"),
        CheckConstraint(f"NOT jsonb_path_exists(to_jsonb(active_brokers), '{brokers}')", name="active_brokers"),
        CheckConstraint("version >= 1", name="version"),
        instant_check("created_at"),
    )


class Strategy(_StrategyState, Base):
    """A strategy's configuration. `version` counts its changes: a write on top of another's raises `VersionConflict`.

    Every one is put on record as a `StrategyRevision`: see `core.database.models.revisions`.
    """

    __tablename__ = "strategies"

    strategy_id: Mapped[str] = mapped_column(
        Text(IDENTIFIER_RULE.max_length), primary_key=True, default=lambda: str(uuid4()), sort_order=-1
    )
    version: Mapped[int] = mapped_column(Integer32(), server_default=text("1"), sort_order=1)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime(), server_default=func.now(), sort_order=1)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime(), server_default=func.now(), onupdate=now, sort_order=1)

    __mapper_args__ = {  # noqa: RUF012 - SQLAlchemy declares it for instances
        "version_id_col": version
    }
    __table_args__ = (*_state_checks(), instant_check("updated_at"))


class StrategyRevision(_StrategyState, Base):
    """What a strategy was at `version`, who made it so and why: written once, by the session that changes it; never changed.

    It is the outbox of the strategies too: `change_id` grows in the order of the commits, since who writes one holds a lock.
    """

    __tablename__ = "strategy_revisions"

    strategy_id: Mapped[str] = mapped_column(
        Text(IDENTIFIER_RULE.max_length), ForeignKey("strategies.strategy_id"), primary_key=True, sort_order=-2
    )
    version: Mapped[int] = mapped_column(Integer32(), primary_key=True, sort_order=-1)
    note: Mapped[str | None] = mapped_column(Text(NOTE_RULE.max_length), sort_order=1)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime(), server_default=func.now(), sort_order=1)
    change_id: Mapped[int] = mapped_column(Integer64(), Identity(always=True), sort_order=1)
    changed_by: Mapped[str | None] = mapped_column(Text(LABEL_RULE.max_length), sort_order=1)

    strategy: Mapped[Strategy] = relationship(lazy="raise")

    __table_args__ = (
        *_state_checks(),
        text_check("note", NOTE_RULE),
        text_check("changed_by", LABEL_RULE),
        Index("uq_strategy_revisions_change_id", "change_id", unique=True),
    )
