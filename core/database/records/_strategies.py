"""Strategies and their revisions."""

from uuid import uuid4

from pydantic import Field

from core.database.records._base import ReadRecord, Record
from core.database.records._documents import StrategyConfig, StrategyParameters
from core.database.records._values import AwareUtc, BrokerName, Identifier, Label, Note, Version


def _new_id() -> str:
    return str(uuid4())


class StrategyCreate(Record):
    strategy_id: Identifier = Field(default_factory=_new_id)
    name: Label
    strategy_type: Label | None = None
    config: StrategyConfig = Field(default_factory=StrategyConfig)
    parameters: StrategyParameters = Field(default_factory=StrategyParameters)
    active_brokers: list[BrokerName] = Field(default_factory=list[BrokerName])
    is_active: bool = True


class StrategyRead(ReadRecord):
    strategy_id: Identifier
    name: Label
    strategy_type: Label | None
    config: StrategyConfig
    parameters: StrategyParameters
    active_brokers: list[BrokerName]
    is_active: bool
    version: Version
    created_at: AwareUtc
    updated_at: AwareUtc


class StrategyRevisionCreate(Record):
    """What a strategy was at `version`."""

    strategy_id: Identifier
    version: Version
    name: Label
    strategy_type: Label | None = None
    config: StrategyConfig
    parameters: StrategyParameters
    active_brokers: list[BrokerName]
    is_active: bool
    note: Note | None = None
    changed_by: Label | None = None


class StrategyRevisionRead(ReadRecord):
    strategy_id: Identifier
    version: Version
    name: Label
    strategy_type: Label | None
    config: StrategyConfig
    parameters: StrategyParameters
    active_brokers: list[BrokerName]
    is_active: bool
    note: Note | None
    created_at: AwareUtc
    change_id: int
    changed_by: Label | None
