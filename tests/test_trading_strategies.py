"""Strategies and their revisions on a real server."""

import asyncio
import pickle
import re
import time
from datetime import date
from decimal import Decimal
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, SecretStr, computed_field, field_validator, model_validator
from sqlalchemy import select, text
from sqlalchemy.orm.exc import StaleDataError

from core.config.options import Timeouts
from core.config.settings import Settings
from core.database.connection import DatabaseManager
from core.database.errors import ConfigurationError, DeadlockDetected, InvalidInput, LockTimeout, UniqueViolation
from core.database.models import Portfolio, Strategy, StrategyRevision
from core.database.models.revisions import _log, differences, same
from core.database.records import MoneyValue, StrategyConfig
from core.trading import portfolios, strategies
from core.trading.strategies import (
    ABSENT,
    FieldChange,
    RevisionNotFound,
    StrategyModels,
    StrategyNotFound,
    StrategyRules,
    VersionConflict,
)

STATE = ("name", "strategy_type", "config", "parameters", "active_brokers", "is_active")


async def define(manager: DatabaseManager, strategy_id: str = "momentum", **fields: Any) -> Strategy:
    values: dict[str, Any] = {
        "name": "Momentum",
        "config": {"universe": "NIFTY 50"},
        "parameters": {"lookback": 20},
    } | fields
    async with manager.transaction() as session:
        return await strategies.define(session, strategy_id=strategy_id, **values)


async def versions(manager: DatabaseManager, strategy_id: str = "momentum") -> list[int]:
    async with manager.get_session() as session:
        return [revision.version for revision in await strategies.history(session, strategy_id)]


async def test_a_defined_strategy_is_read_back_as_version_1_with_its_revision(manager: DatabaseManager):
    await define(manager, strategy_type="trend", active_brokers=("zerodha", "paper"), note="first", changed_by="asha")
    async with manager.get_session(read_only=True) as session:
        strategy = await strategies.get(session, "momentum")
        (revision,) = await strategies.history(session, "momentum")
    assert strategy is not None
    assert (strategy.version, revision.version, revision.note, revision.changed_by) == (1, 1, "first", "asha")
    for field in STATE:
        assert getattr(strategy, field) == getattr(revision, field)
    assert dict(strategy.config.root) == {"universe": "NIFTY 50"}
    assert list(strategy.active_brokers) == ["zerodha", "paper"]


async def test_a_revision_changes_what_is_given_and_keeps_the_past(manager: DatabaseManager):
    await define(manager, strategy_type="trend")
    async with manager.transaction() as session:
        strategy = await strategies.revise(
            session,
            "momentum",
            expected_version=1,
            parameters={"stop": Decimal("0.015")},
            strategy_type=None,
            note="tighter",
            changed_by="asha",
        )
        assert (strategy.version, strategy.name, strategy.strategy_type) == (2, "Momentum", None)
        strategy.parameters["stop"] = Decimal("0.5")  # of the strategy alone: the revision shares nothing with it
        await session.flush()
    async with manager.get_session() as session:
        first, second, third = await strategies.history(session, "momentum")
    assert str(third.parameters.root["stop"]) == "0.5"
    assert dict(first.parameters.root) == {"lookback": 20}
    assert (first.strategy_type, second.strategy_type, second.note, second.changed_by) == (
        "trend",
        None,
        "tighter",
        "asha",
    )
    assert str(second.parameters.root["stop"]) == "0.015"


async def test_what_equals_the_present_makes_no_version(manager: DatabaseManager):
    await define(manager, active_brokers=["paper"], parameters={"lookback": 20, "stop": Decimal("0.10")})
    async with manager.transaction() as session:
        equal: dict[str, Any] = {"name": "Momentum", "parameters": {"stop": 0.1, "lookback": 20}}
        strategy = await strategies.revise(session, "momentum", expected_version=1, active_brokers=("paper",), **equal)
        await strategies.enable(session, "momentum")
        assert strategy.version == 1
    assert await versions(manager) == [1]
    async with manager.transaction() as session:
        # In Python 1 == True; in a configuration it is another thing.
        await strategies.revise(session, "momentum", expected_version=1, parameters={"stop": 1, "lookback": 20})
        await strategies.revise(session, "momentum", expected_version=2, parameters={"stop": True, "lookback": 20})
    assert await versions(manager) == [1, 2, 3]


async def test_of_two_who_revise_one_version_one_wins_and_the_other_is_told_who_changed_what(
    manager: DatabaseManager,
):
    await define(manager)

    async def revise(who: str, lookback: int) -> int:
        async with manager.transaction() as session:
            strategy = await strategies.revise(
                session,
                "momentum",
                expected_version=1,
                parameters={"lookback": lookback},
                changed_by=who,
                note=f"{who} wants {lookback}",
            )
            return strategy.version

    outcomes = await asyncio.gather(revise("asha", 30), revise("ravi", 40), return_exceptions=True)
    [conflict] = [outcome for outcome in outcomes if isinstance(outcome, VersionConflict)]
    winner = ("asha", 30) if outcomes[0] == 2 else ("ravi", 40)
    assert sorted(map(str, outcomes), key=len)[0] == "2"
    assert (conflict.expected, conflict.actual) == (1, 2)
    [change] = conflict.changes
    assert (change.version, change.changed_by, change.note) == (2, winner[0], f"{winner[0]} wants {winner[1]}")
    assert change.fields == ("parameters.lookback",)
    words = f"strategy 'momentum' is at version 2, not 1: version 2 by {winner[0]!r} at "
    assert words in str(conflict) and f": parameters.lookback ('{winner[0]} wants {winner[1]}')" in str(conflict)
    again = pickle.loads(pickle.dumps(conflict))
    assert (str(again), again.expected, again.changes) == (str(conflict), 1, conflict.changes)
    assert isinstance(conflict, StaleDataError) and not conflict.retryable
    async with manager.get_session() as session:
        strategy = await strategies.get(session, "momentum")
        assert strategy is not None and strategy.parameters == {"lookback": winner[1]}


async def test_of_16_writers_who_read_again_none_loses_an_update(manager: DatabaseManager):
    await define(manager, parameters={"count": 0, "by": []})
    conflicts = 0

    async def add(number: int) -> None:
        nonlocal conflicts
        while True:
            async with manager.get_session(read_only=True) as session:
                present = await strategies.get(session, "momentum")
            assert present is not None
            parameters = {"count": present.parameters["count"] + 1, "by": [*present.parameters["by"], number]}
            try:
                async with manager.transaction() as session:
                    await strategies.revise(
                        session, "momentum", expected_version=present.version, parameters=parameters
                    )
            except VersionConflict as conflict:
                assert conflict.actual is not None and conflict.actual > present.version
                conflicts += 1
            else:
                return

    await asyncio.gather(*(add(number) for number in range(16)))
    async with manager.get_session() as session:
        strategy = await strategies.get(session, "momentum")
        ids = list(await session.scalars(select(StrategyRevision.change_id).order_by(StrategyRevision.version)))
    assert strategy is not None and strategy.parameters["count"] == 16
    assert sorted(strategy.parameters["by"]) == list(range(16))
    assert conflicts > 0
    assert await versions(manager) == list(range(1, 18))
    assert ids == sorted(ids)


async def test_a_decision_made_on_an_old_version_is_refused(manager: DatabaseManager, monkeypatch: pytest.MonkeyPatch):
    await define(manager)
    async with manager.transaction() as session:
        for version in range(1, 8):
            await strategies.revise(session, "momentum", expected_version=version, name=f"Momentum {version}\u202e")
    async with manager.transaction() as session:
        with pytest.raises(VersionConflict, match=r"version 8, not 1: 2 more; version 4 by somebody at .*: name; "):
            await strategies.revise(session, "momentum", expected_version=1, name="Momentum 3")
        with pytest.raises(VersionConflict, match=r"version 8, not 9\. ") as caught:
            await strategies.revise(session, "momentum", expected_version=9, name="Momentum 3")
        assert caught.value.changes == ()
        monkeypatch.setattr(_log, "_TOLD", 3)
        with pytest.raises(VersionConflict, match=r": 4 more; version 6 by") as caught:
            await strategies.revise(session, "momentum", expected_version=1, name="Momentum 3")
        assert [(one.version, one.fields) for one in caught.value.changes] == [(n, ("name",)) for n in (6, 7, 8)]
        unknown: list[Any] = ["unknown", "nul\0", "\ud800", "x" * 200, None, 7]
        for strategy_id in unknown:  # what can be no id is not sent: the transaction goes on
            with pytest.raises(StrategyNotFound, match=f"no strategy {re.escape(repr(strategy_id))}"):
                await strategies.revise(session, strategy_id, expected_version=1, name="x")
        expected: list[Any] = [None, True, "8", 8.0]
        for version in expected:
            with pytest.raises(InvalidInput, match="expected_version: must be the version that was read"):
                await strategies.revise(session, "momentum", expected_version=version, name="x")
        for version in (10**20, -(10**20)):
            with pytest.raises(VersionConflict):
                await strategies.revise(session, "momentum", expected_version=version, name="x")
        with pytest.raises(TypeError, match="expected_version"):
            await strategies.revise(session, "momentum", name="x")  # type: ignore[call-arg]


async def test_the_caller_commits(manager: DatabaseManager):
    await define(manager)
    async with manager.get_session() as session:
        await strategies.revise(session, "momentum", expected_version=1, name="Other")
        await strategies.define(session, strategy_id="second", name="Second")
        await strategies.disable(session, "momentum")
    async with manager.get_session() as session:
        strategy = await strategies.get(session, "momentum")
        assert strategy is not None and strategy.name == "Momentum" and strategy.is_active
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
    ({"active_brokers": "paper"}, "active_brokers"),
    ({"parameters": {"x": float("inf")}}, r"parameters: .*\['x'\]"),
    ({"parameters": ["x"]}, "parameters"),
    ({"parameters": {"x": 10**5_000}}, r"parameters: has more than 1000 digits \(at \$\['x'\]\)"),
    ({"is_active": "yes"}, "is_active"),
    ({"note": "\x00"}, "note"),
    ({"changed_by": "a\nb"}, "changed_by"),
]


async def test_values_that_do_not_fit_are_refused_and_nothing_is_written(manager: DatabaseManager):
    await define(manager)
    async with manager.transaction() as session:
        for fields, words in MISFITS:
            with pytest.raises(InvalidInput, match=words):
                await strategies.define(session, **({"strategy_id": "second", "name": "Second"} | fields))  # type: ignore[arg-type]
            with pytest.raises(InvalidInput, match=words):
                await strategies.revise(session, "momentum", expected_version=1, **({"config": {"new": 1}} | fields))  # type: ignore[arg-type]
    async with manager.get_session() as session:
        strategy = await strategies.get(session, "momentum")
        assert strategy is not None and strategy.version == 1
        assert [one.strategy_id for one in await strategies.listing(session)] == ["momentum"]


# Stop, start, go back


async def test_a_stop_is_never_refused_and_stopping_twice_is_one_change(manager: DatabaseManager):
    rules = StrategyRules({"other": StrategyModels()})
    await define(manager)
    async with manager.transaction() as session:
        await strategies.revise(session, "momentum", expected_version=1, name="Momentum 2")
        for _ in range(2):
            strategy = await strategies.disable(session, "momentum", changed_by="risk desk", note="halt")
            assert (strategy.version, strategy.is_active) == (3, False)
        with pytest.raises(InvalidInput, match="strategy_type: is missing"):  # what the rules refuse does not start
            await strategies.enable(session, "momentum", rules=rules)
        assert (await strategies.enable(session, "momentum")).version == 4
        with pytest.raises(StrategyNotFound):
            await strategies.disable(session, "unknown")
    async with manager.get_session() as session:
        third = (await strategies.history(session, "momentum"))[2]
        assert (third.changed_by, third.note, third.is_active) == ("risk desk", "halt", False)


async def test_all_are_stopped_at_once_and_so_is_one_that_is_being_defined(manager: DatabaseManager):
    brokers = {"a": ["paper"], "b": ["paper", "zerodha"], "c": ["zerodha"]}
    for name, active_brokers in brokers.items():
        await define(manager, name, active_brokers=active_brokers)

    async def stop(**which: Any) -> list[str]:
        async with manager.transaction() as session:
            stopped = await strategies.disable_all(session, changed_by="risk desk", note="halt", **which)
            return [one.strategy_id for one in stopped]

    assert await stop(broker="paper") == ["a", "b"]
    assert await stop(broker="kite") == []
    async with manager.transaction() as session:
        await strategies.define(session, strategy_id="d", name="New")
        stopping = asyncio.create_task(stop())
        await asyncio.sleep(0.05)
        assert not stopping.done()
    assert await stopping == ["c", "d"]
    assert await stop() == []
    async with manager.get_session() as session:
        assert await strategies.listing(session, active_only=True) == []
        last = (await strategies.history(session, "d"))[-1]
        assert (last.version, last.changed_by, last.note, last.is_active) == (2, "risk desk", "halt", False)


async def test_a_rollback_is_a_version_of_its_own_and_starts_nothing(manager: DatabaseManager):
    await define(manager)
    async with manager.transaction() as session:
        await strategies.revise(session, "momentum", expected_version=1, parameters={"lookback": 30}, name="B")
        await strategies.disable(session, "momentum")
    async with manager.transaction() as session:
        strategy = await strategies.rollback(session, "momentum", to_version=1, expected_version=3, changed_by="asha")
        assert (strategy.version, strategy.name, strategy.is_active) == (4, "Momentum", False)
        assert strategy.parameters == {"lookback": 20}
        assert (await strategies.rollback(session, "momentum", to_version=1, expected_version=4)).version == 4
        with pytest.raises(RevisionNotFound, match="no version 9"):
            await strategies.rollback(session, "momentum", to_version=9, expected_version=4)
        with pytest.raises(VersionConflict):
            await strategies.rollback(session, "momentum", to_version=2, expected_version=3)
    async with manager.get_session() as session:
        assert [(one.note, one.changed_by) for one in await strategies.history(session, "momentum")][-1] == (
            "back to version 1",
            "asha",
        )


async def test_what_differs_between_versions_is_told_place_by_place(manager: DatabaseManager):
    await define(manager, config={"legs": [{"side": "buy"}, {"side": "sell"}], "universe": ["A", "B", "C"]})
    async with manager.transaction() as session:
        await strategies.revise(
            session,
            "momentum",
            expected_version=1,
            config={"legs": [{"side": "buy"}, {"side": "hold"}], "universe": ["A", "C", "D", "E"]},
            parameters={"a.b": None},
        )
    async with manager.get_session() as session:
        changes = await strategies.diff(session, "momentum", 1, 2)
        assert [(change.where, change.before, change.after) for change in changes] == [
            ("config.legs[1].side", "sell", "hold"),
            ("config.universe[1]", "B", ABSENT),
            ("config.universe[2]", ABSENT, "D"),
            ("config.universe[3]", ABSENT, "E"),
            ("parameters.lookback", 20, ABSENT),
            ('parameters["a.b"]', ABSENT, None),
        ]
        assert await strategies.diff(session, "momentum", 2, 2) == ()
        with pytest.raises(RevisionNotFound):
            await strategies.diff(session, "momentum", 1, 3)
        with pytest.raises(StrategyNotFound):
            await strategies.diff(session, "unknown", 1, 2)


async def test_when_a_change_came_into_force_is_when_it_had_its_turn(manager: DatabaseManager):
    async with manager.get_session() as early:
        await early.execute(text("SELECT 1"))  # its transaction begins here, and its change comes second
        await define(manager, "first")
        await strategies.define(early, strategy_id="second", name="Second")
        await early.commit()
    async with manager.get_session() as session:
        [first] = await strategies.history(session, "first")
        [second] = await strategies.history(session, "second")
    assert first.change_id < second.change_id and first.created_at < second.created_at


async def test_a_writer_that_waits_too_long_gets_a_lock_timeout(database_url: str):
    limits = Timeouts(lock=0.1)
    async with DatabaseManager(database_url, "testing", "migrations_only", timeouts=limits) as manager:
        await define(manager)
        async with manager.transaction() as session:
            await strategies.revise(session, "momentum", expected_version=1, name="Mine")
            with pytest.raises(LockTimeout):
                await define(manager, "second")


async def test_writers_who_hold_portfolios_of_a_strategy_do_not_deadlock(manager: DatabaseManager):
    await define(manager)

    async def both(number: int) -> None:
        async def work(session: Any) -> None:
            await portfolios.create(
                session,
                portfolio_id=f"p{number}",
                broker="paper",
                currency="INR",
                name="P",
                strategy_id="momentum",
            )
            await session.execute(text("SELECT pg_sleep(0.02)"))
            await strategies.disable(session, "momentum") if number % 2 else await strategies.enable(
                session, "momentum"
            )

        async with manager.transaction() as session:
            await work(session)

    outcomes = await asyncio.gather(*(both(number) for number in range(6)), return_exceptions=True)
    assert not [outcome for outcome in outcomes if isinstance(outcome, DeadlockDetected)]
    assert outcomes == [None] * 6
    async with manager.get_session() as session:
        assert len(list(await session.scalars(select(Portfolio.portfolio_id)))) == 6


# Rules


class Leg(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    side: Literal["buy", "sell"]
    since: date | None = None


class MomentumConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")
    universe: list[str]
    legs: tuple[Leg, ...] = ()


class MomentumParameters(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    lookback: int = Field(gt=0)
    risk: Decimal = Decimal("0.010")
    stop: MoneyValue | None = None
    decay: float = 0.5

    @model_validator(mode="after")
    def _small(self) -> "MomentumParameters":
        if self.risk > 1:
            raise ValueError(f"risk {self.risk} is more than all there is")
        return self


def rules_of(**more: Any) -> StrategyRules:
    rules = StrategyRules(brokers=Settings(_env_file=None).trading.broker_policies)
    rules.register("momentum", config=MomentumConfig, parameters=MomentumParameters)
    for name, model in more.items():
        rules.register(name, parameters=model)
    return rules


async def test_documents_are_held_by_the_models_of_their_type_and_read_back_as_them(manager: DatabaseManager):
    rules = rules_of()
    parameters = {"lookback": 20, "risk": Decimal("0.01500"), "stop": Decimal("1.5"), "decay": Decimal("0.25")}
    strategy = await define(
        manager,
        strategy_type="momentum",
        config={"universe": ["NIFTY 50"], "legs": [{"side": "buy", "since": "2026-11-30"}]},
        parameters=parameters,
        active_brokers=["paper"],
        rules=rules,
    )
    async with manager.get_session() as session:
        strategy = await session.get_one(Strategy, "momentum")
    assert strategy.parameters == {"lookback": 20, "risk": "0.01500", "stop": "1.5", "decay": Decimal("0.25")}
    read: MomentumParameters = rules.parameters_of(strategy)
    assert type(read) is MomentumParameters and str(read.risk) == "0.01500" and read.decay == 0.25
    config = rules.config_of(strategy, MomentumConfig)
    assert config.legs == (Leg(side="buy", since=date(2026, 11, 30)),)
    async with manager.transaction() as session:
        # The model itself is taken too; its defaults are on record, so that a later default changes nothing unasked.
        made = MomentumParameters(lookback=30)
        strategy = await strategies.revise(session, "momentum", expected_version=1, parameters=made, rules=rules)
        assert strategy.parameters == {"lookback": 30, "risk": "0.010", "stop": None, "decay": Decimal("0.5")}
        again = await strategies.revise(session, "momentum", expected_version=2, parameters=made, rules=rules)
        assert again.version == 2


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"strategy_type": "momentun"},
        "strategy_type: 'momentun' is not registered, did you mean 'momentum'?",
    ),
    ({"strategy_type": None}, "strategy_type: is missing; there are momentum"),
    ({"active_brokers": ["zerodah"]}, "active_brokers[0]: 'zerodah' is not configured, did you mean 'zerodha'?"),
    ({"active_brokers": ["paper", "zerodha", "paper"]}, "active_brokers[2]: 'paper' is there already"),
    ({"config": {}}, "config.universe: Field required"),
    (
        {"config": {"universe": ["A"], "legs": [{"side": "sec-ret"}]}},
        "config.legs[0].side: Input should be 'buy' o",
    ),
    ({"config": {"universe": ["A"], "more": "sec-ret"}}, "config.more: Extra inputs"),
    ({"parameters": {"lookback": 0}}, "parameters.lookback: Input should be greater than 0"),
    ({"parameters": {"lookback": "sec-ret"}}, "parameters.lookback: Input should be a valid intege"),
    ({"parameters": {"lookback": 5, "risk": Decimal("777.25")}}, "parameters: risk ... is more than all there is"),
    ({"parameters": {"lookback": 5, "risk": "sec-ret"}}, "parameters.risk: Input should be a valid decimal"),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED, ids=[words[:24] for _, words in REFUSED])
def test_what_the_rules_refuse_is_told_by_its_place_and_never_by_its_value(fields: dict[str, Any], words: str):
    given = {
        "strategy_type": "momentum",
        "config": {"universe": ["A"]},
        "parameters": {"lookback": 5},
        "active_brokers": ["paper"],
    } | fields
    with pytest.raises(InvalidInput) as caught:
        asyncio.run(strategies.define(None, strategy_id="s", name="S", rules=rules_of(), **given))  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert "sec-ret" not in repr(caught.value) and "777.25" not in str(caught.value)
    assert caught.value.column == next(iter(fields)) and caught.value.__context__ is None


def test_a_value_as_long_as_a_file_is_refused_at_once_and_not_repeated() -> None:
    class Quoting(BaseModel):
        side: str

        @field_validator("side")
        @classmethod
        def known(cls, value: str) -> str:
            raise ValueError(f"{value} is no side")

    rules = StrategyRules({"momentum": StrategyModels(config=Quoting)}, brokers=["paper"])
    state = {
        "strategy_type": "momentum",
        "active_brokers": ["b" * 4_000_000],
        "config": StrategyConfig({"side": "sec-ret" * 300_000}),
    }
    began = time.process_time()
    found = rules.problems(state)[1]
    assert time.process_time() - began < 1
    assert str(found[1]) == "config.side: ... is no side" and "did you mean" not in str(found[0])


async def test_another_type_takes_the_documents_of_its_own_model(manager: DatabaseManager):
    class Other(BaseModel):
        lookback: int
        window: int = 7

    rules = rules_of(other=Other)
    await define(manager, strategy_type="momentum", config={"universe": []}, parameters={"lookback": 5}, rules=rules)
    async with manager.transaction() as session:
        strategy = await strategies.revise(session, "momentum", expected_version=1, strategy_type="other", rules=rules)
        assert strategy.parameters == {"lookback": 5, "window": 7}
        assert rules.parameters_of(strategy, Other).window == 7
        with pytest.raises(ConfigurationError, match="no model is registered for the config"):
            rules.config_of(strategy)


def test_a_model_that_would_not_read_back_what_it_writes_is_refused():
    class Hidden(BaseModel):
        token: SecretStr

    with pytest.raises(ConfigurationError, match="Hidden does not read back") as caught:
        asyncio.run(
            strategies.define(
                None,  # type: ignore[arg-type]
                strategy_id="s",
                name="S",
                strategy_type="hidden",
                parameters={"token": "t0ken"},
                rules=rules_of(hidden=Hidden),
            )
        )
    assert "t0ken" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="registered already"):
        rules_of(momentum=Hidden)


def test_names_for_json_and_computed_fields_are_no_obstacle():
    class Named(BaseModel):
        look_back: int = Field(alias="lookBack")

        @computed_field
        @property
        def twice(self) -> int:
            return self.look_back * 2

        model_config = ConfigDict(extra="forbid")

    rules = rules_of(named=Named)
    strategy = Strategy(strategy_type="named", config={}, parameters={"lookBack": 20}, active_brokers=[])
    state = {field: getattr(strategy, field) for field in STATE}
    checked, problems = rules.problems(state)
    assert (checked["parameters"], problems) == ({"lookBack": 20}, [])
    assert rules.parameters_of(strategy, Named).twice == 40


def test_rules_say_nothing_of_what_they_were_not_told():
    state = {"strategy_type": "any", "active_brokers": ["unknown"], "config": None, "parameters": None}
    assert StrategyRules().problems(state) == (state, [])
    assert StrategyRules(brokers=[]).problems(state)[1][0].path == ("active_brokers", 0)
    assert StrategyRules(brokers=["a"]).with_brokers(["unknown"]).problems(state)[1] == []


class Numbers(BaseModel):
    model_config = ConfigDict(strict=True)
    amount: Decimal
    share: float
    days: dict[str, date]
    either: Decimal | str


DECIMALS = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**15), max_value=10**15)


@given(
    DECIMALS,
    st.floats(allow_nan=False, allow_infinity=False),
    st.dictionaries(st.text(max_size=3).filter(lambda key: key.isprintable()), st.dates(), max_size=2),
    DECIMALS | st.text(alphabet="ab ", max_size=5),
)
def test_what_a_model_holds_is_stored_and_read_back_exactly(
    amount: Decimal, share: float, days: dict[str, date], either: Decimal | str
):
    rules = StrategyRules({"numbers": StrategyModels(parameters=Numbers)})
    made = Numbers(amount=amount, share=share, days=days, either=either)
    strategy = Strategy(strategy_type="numbers", config={}, parameters={})
    state = {field: getattr(strategy, field) for field in STATE} | {"active_brokers": []}
    given: Any = made.model_dump(mode="json")
    checked, problems = rules.problems(
        state | {"parameters": type(strategy.parameters).model_validate({**given, "share": share})}
    )
    assert problems == []
    strategy.parameters = checked["parameters"]
    read: Numbers = rules.parameters_of(strategy)
    assert str(read.amount) == str(amount) and read.share == share and read.days == days
    assert str(read.either) == str(either)
    assert same(rules.problems(state | checked)[0]["parameters"].root, checked["parameters"].root)


# Differences

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | DECIMALS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=2), inner, max_size=4),
    max_leaves=25,
)


def patched(value: Any, changes: list[FieldChange]) -> Any:
    """`value` with the changes made, as `FieldChange` says what they mean."""
    if not changes:
        return value
    if changes[0].path == ():
        return changes[0].after
    heads: dict[str | int, list[FieldChange]] = {}
    for change in changes:
        heads.setdefault(change.path[0], []).append(FieldChange(change.path[1:], change.before, change.after))
    return _patched_list(value, heads) if isinstance(value, list) else _patched_object(value, heads)


def _patched_object(value: dict[str, Any], heads: dict[Any, list[FieldChange]]) -> dict[str, Any]:
    made = dict(value)
    for key, changes in heads.items():
        if changes[0].path == () and changes[0].after is ABSENT:
            assert same(made.pop(key), changes[0].before)
        else:
            made[key] = patched(made.get(key), changes)
    return made


def _patched_list(value: list[Any], heads: dict[Any, list[FieldChange]]) -> list[Any]:
    whole = {index: [one for one in changes if one.path == ()] for index, changes in heads.items()}
    gone = {index for index, changes in whole.items() for one in changes if one.after is ABSENT}
    made = [element for index, element in enumerate(value) if index not in gone]
    for index in sorted(heads):
        rest = [one for one in heads[index] if one.path != () or one.after is not ABSENT]
        if [one for one in rest if one.path == () and one.before is ABSENT]:
            made.insert(index, rest[0].after)
        elif rest:
            made[index] = patched(made[index], rest)
    return made


@given(JSON, JSON)
def test_differences_applied_to_the_first_give_the_second(before: Any, after: Any):
    changes = list(differences(before, after))
    assert same(patched(before, changes), after)
    assert bool(changes) is not same(before, after)


def test_a_list_that_grows_or_shrinks_tells_what_came_and_went_and_a_long_one_as_a_whole():
    def told(before: Any, after: Any) -> list[tuple[str, Any, Any]]:
        return [(one.where, one.before, one.after) for one in differences({"u": before}, {"u": after})]

    names = [f"S{n}" for n in range(100)]
    assert told(names, [*names[:40], *names[41:]]) == [("u[40]", "S40", ABSENT)]
    assert told(names, ["NEW", *names]) == [("u[0]", ABSENT, "NEW")]
    assert told([1, 2], [True, 2]) == [("u[0]", 1, True)]
    assert told([Decimal("1.0"), 2, 3], [1, 3]) == [("u[1]", 2, ABSENT)]
    long = list(range(3_000))
    assert told(long, long[1:]) == [("u[0]", 0, ABSENT)]
    [(where, before, _)] = told(long, long[::-2])
    assert (where, before) == ("u", long)
