"""Strategies and their revisions on a real server."""

import asyncio
from decimal import Decimal

import pytest

from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput, UniqueViolation
from core.database.models import Strategy
from core.trading import strategies
from core.trading.strategies import StrategyNotFound, VersionConflict


async def define(manager: DatabaseManager, strategy_id: str = "momentum", **fields: object) -> Strategy:
    values = {"name": "Momentum", "config": {"universe": "NIFTY 50"}, "parameters": {"lookback": 20}} | fields
    async with manager.transaction() as session:
        return await strategies.define(session, strategy_id=strategy_id, **values)  # type: ignore[arg-type]


async def test_a_defined_strategy_is_read_back_as_version_1_with_its_revision(manager: DatabaseManager):
    await define(manager, strategy_type="trend", active_brokers=("zerodha", "paper"), note="first")
    async with manager.get_session(read_only=True) as session:
        strategy = await strategies.get(session, "momentum")
        (revision,) = await strategies.history(session, "momentum")
    assert strategy is not None
    assert (strategy.version, revision.version, revision.note) == (1, 1, "first")
    for field in ("name", "strategy_type", "config", "parameters", "active_brokers", "is_active"):
        assert getattr(strategy, field) == getattr(revision, field)
    assert dict(strategy.config.root) == {"universe": "NIFTY 50"}
    assert list(strategy.active_brokers) == ["zerodha", "paper"]


async def test_a_revision_changes_what_is_given_and_keeps_the_past(manager: DatabaseManager):
    await define(manager, strategy_type="trend")
    async with manager.transaction() as session:
        strategy = await strategies.revise(
            session, "momentum", parameters={"stop": Decimal("0.015")}, strategy_type=None, note="tighter"
        )
        assert (strategy.version, strategy.name, strategy.strategy_type) == (2, "Momentum", None)
    async with manager.get_session() as session:
        first, second = await strategies.history(session, "momentum")
    assert dict(first.parameters.root) == {"lookback": 20}
    assert (first.strategy_type, second.strategy_type, second.note) == ("trend", None, "tighter")
    assert str(second.parameters.root["stop"]) == "0.015"


async def test_a_revision_that_changes_nothing_makes_no_version(manager: DatabaseManager):
    await define(manager, active_brokers=["paper"])
    async with manager.transaction() as session:
        strategy = await strategies.revise(
            session, "momentum", name="Momentum", parameters={"lookback": 20}, active_brokers=("paper",)
        )
        assert strategy.version == 1
        assert len(await strategies.history(session, "momentum")) == 1


async def test_revisions_at_the_same_time_follow_one_another(manager: DatabaseManager):
    await define(manager)

    async def revise(number: int) -> int:
        async with manager.transaction() as session:
            return (await strategies.revise(session, "momentum", parameters={"lookback": number})).version

    versions = await asyncio.gather(*(revise(number) for number in range(100, 106)))
    assert sorted(versions) == [2, 3, 4, 5, 6, 7]
    async with manager.get_session() as session:
        strategy = await strategies.get(session, "momentum")
        history = await strategies.history(session, "momentum")
    assert strategy is not None and strategy.parameters == history[-1].parameters
    assert [revision.version for revision in history] == [1, 2, 3, 4, 5, 6, 7]


async def test_a_decision_made_on_an_old_version_is_refused(manager: DatabaseManager):
    await define(manager)
    async with manager.transaction() as session:
        await strategies.revise(session, "momentum", expected_version=1, name="Momentum 2")
    async with manager.transaction() as session:
        with pytest.raises(VersionConflict, match="version 2, not 1"):
            await strategies.revise(session, "momentum", expected_version=1, name="Momentum 3")
        with pytest.raises(StrategyNotFound, match="no strategy 'unknown'"):
            await strategies.revise(session, "unknown", name="x")


async def test_the_caller_commits(manager: DatabaseManager):
    await define(manager)
    async with manager.get_session() as session:
        await strategies.revise(session, "momentum", name="Other")
        await strategies.define(session, strategy_id="second", name="Second")
    async with manager.get_session() as session:
        strategy = await strategies.get(session, "momentum")
        assert strategy is not None and strategy.name == "Momentum"
        assert await strategies.get(session, "second") is None
        assert len(await strategies.history(session, "momentum")) == 1


async def test_an_id_can_be_defined_once_and_the_transaction_goes_on(manager: DatabaseManager):
    await define(manager)
    async with manager.transaction() as session:
        with pytest.raises(UniqueViolation):
            await strategies.define(session, strategy_id="momentum", name="Again")
        await strategies.define(session, strategy_id="second", name="Second")
    async with manager.get_session() as session:
        assert [one.name for one in await strategies.listing(session)] == ["Momentum", "Second"]


async def test_strategies_are_listed_by_name_broker_and_activity(manager: DatabaseManager):
    await define(manager, "b", name="Beta", active_brokers=["zerodha"])
    await define(manager, "a", name="Alpha", active_brokers=["paper", "zerodha"], is_active=False)
    await define(manager, "c", name="Gamma")
    async with manager.get_session() as session:
        assert [one.strategy_id for one in await strategies.listing(session)] == ["a", "b", "c"]
        assert [one.strategy_id for one in await strategies.listing(session, broker="zerodha")] == ["a", "b"]
        assert [one.strategy_id for one in await strategies.listing(session, broker="zerodha", active_only=True)] == [
            "b"
        ]


MISFITS = [
    ({"name": " "}, "name"),
    ({"active_brokers": ["Zerodha"]}, "active_brokers"),
    ({"parameters": {"x": float("inf")}}, "x"),
    ({"is_active": "yes"}, "is_active"),
    ({"note": "\x00"}, "note"),
]


async def test_values_that_do_not_fit_are_refused_and_nothing_is_written(manager: DatabaseManager):
    await define(manager)
    async with manager.transaction() as session:
        for fields, words in MISFITS:
            with pytest.raises(InvalidInput, match=words):
                await strategies.define(session, **({"strategy_id": "second", "name": "Second"} | fields))  # type: ignore[arg-type]
            with pytest.raises(InvalidInput, match=words):
                await strategies.revise(session, "momentum", **({"config": {"new": 1}} | fields))  # type: ignore[arg-type]
    async with manager.get_session() as session:
        strategy = await strategies.get(session, "momentum")
        assert strategy is not None and strategy.version == 1
        assert [one.strategy_id for one in await strategies.listing(session)] == ["momentum"]
