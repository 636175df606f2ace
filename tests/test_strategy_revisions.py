"""Every change of a strategy is on record, also what sessions write past the functions of core.trading.strategies."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.exc import StaleDataError

from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput, SerializationFailure, UniqueViolation
from core.database.models import Portfolio, Strategy, StrategyRevision
from core.database.models.revisions import _log
from core.trading import strategies
from core.trading.strategies import HistoryKept, VersionConflict
from tests.test_strategy_feed import taken

Told = tuple[int, str | None, str | None, tuple[str, ...]]


@pytest.fixture
async def role(manager: DatabaseManager) -> str:
    async with manager.get_session() as session:
        return f"role {await session.scalar(sa.text('SELECT session_user'))}"


async def told(manager: DatabaseManager, strategy_id: str = "s") -> list[Told]:
    """Version, who, why, and what changed, as history has them; the last is the strategy itself."""
    async with manager.get_session() as session:
        rows = await strategies.history(session, strategy_id)
        strategy = await session.get_one(Strategy, strategy_id)
    assert [row.version for row in rows] == sorted({row.version for row in rows})
    assert rows and (rows[-1].version, strategies.changes_between(rows[-1], strategy)) == (strategy.version, ())
    found = [(), *(strategies.changes_between(a, b) for a, b in itertools.pairwise(rows))]
    return [
        (row.version, row.changed_by, row.note, tuple(change.where for change in changes))
        for row, changes in zip(rows, found, strict=True)
    ]


@contextlib.asynccontextmanager
async def plain(manager: DatabaseManager, **options: Any) -> AsyncGenerator[AsyncSession]:
    """A session as SQLAlchemy has it, made by nothing of ours."""
    async with AsyncSession(manager.engine, **options) as session:
        yield session


async def add(manager: DatabaseManager, *strategy_ids: str, **columns: Any) -> None:
    async with manager.transaction() as session:
        session.add_all([Strategy(strategy_id=one, name=one, **columns) for one in strategy_ids or ("s",)])


async def test_each_flush_of_a_session_is_on_record_in_its_transaction_and_in_the_feed(
    manager: DatabaseManager, role: str
) -> None:
    async with contextlib.aclosing(strategies.watch(manager)) as feed:
        begun = asyncio.create_task(taken(feed, 1))
        await asyncio.sleep(0.1)
        async with plain(manager) as session:
            session.add(Strategy(strategy_id="s", name="S", parameters={"lookback": 20}))
            await session.commit()
        [first] = await begun
        async with manager.get_session() as session:
            strategy = await session.get_one(Strategy, "s")
            session.info["changed_by"] = "asha"
            strategy.parameters["lookback"] = 25
            await session.flush()
            session.info["note"] = "calmer"
            strategy.active_brokers.append("paper")
            strategy.name = sa.func.upper("momentum")  # pyright: ignore[reportAttributeAccessIssue]
            await session.flush()
            assert strategy.version == 3
            await session.commit()
            strategy.is_active = False
            await session.flush()
            await session.rollback()
        second, third = await taken(feed, 2)
    assert await told(manager) == [
        (1, role, None, ()),
        (2, "asha", None, ("parameters.lookback",)),
        (3, "asha", "calmer", ("name", "active_brokers[0]")),
    ]
    assert [one.fields for one in (second, third)] == [("parameters",), ("name", "active_brokers")]
    assert first.change_id < second.change_id < third.change_id


async def test_functions_and_flushes_of_one_session_record_each_change_once(
    manager: DatabaseManager, role: str
) -> None:
    async with manager.transaction() as session:
        strategy = await strategies.define(session, strategy_id="s", name="S", changed_by="asha")
        strategy.name = "T"
        await strategies.disable(session, "s", changed_by="ravi", note="halt")  # flushes what is pending first
        strategy.parameters["lookback"] = 5
    async with manager.transaction() as session:
        session.info.update(changed_by="mira", note="morning")
        await strategies.enable(session, "s")
        await strategies.disable(session, "s", changed_by="ravi")
    assert await told(manager) == [
        (1, "asha", None, ()),
        (2, role, None, ("name",)),
        (3, "ravi", "halt", ("is_active",)),
        (4, role, None, ("parameters.lookback",)),
        (5, "mira", "morning", ("is_active",)),
        (6, "ravi", "morning", ("is_active",)),
    ]


async def test_a_lost_update_is_refused_and_told_by_whom_it_would_have_been_undone(manager: DatabaseManager) -> None:
    await add(manager, "s", parameters={"lookback": 20})
    async with plain(manager, expire_on_commit=False) as session:
        stale = await session.get_one(Strategy, "s")
        async with manager.transaction() as other:
            await strategies.revise(other, "s", expected_version=1, parameters={"lookback": 30}, changed_by="asha")
        async with manager.transaction() as other:
            other.info["changed_by"] = "ravi"
            (await other.get_one(Strategy, "s")).name = "Ravi's"
        stale.parameters["lookback"] = 99
        words = r"version 3, not 1: version 2 by 'asha' at .*: parameters.lookback; version 3 by 'ravi' at .*: name"
        with pytest.raises(VersionConflict, match=words) as caught:
            await session.flush()
        assert (caught.value.expected, caught.value.actual) == (1, 3) and isinstance(caught.value, StaleDataError)
        with pytest.raises(VersionConflict):  # nor at the next try
            await session.commit()
        await session.refresh(stale)
        stale.parameters["lookback"] += 1
        await session.commit()
    async with manager.get_session() as session:
        strategy = await session.get_one(Strategy, "s")
        assert (strategy.version, strategy.name, strategy.parameters) == (4, "Ravi's", {"lookback": 31})


async def test_of_many_sessions_that_change_and_read_again_none_loses_an_update(manager: DatabaseManager) -> None:
    await add(manager, "s", parameters={"by": []})

    async def change(number: int) -> None:
        while True:
            with contextlib.suppress(VersionConflict):
                async with manager.transaction() as session:
                    strategy = await session.get_one(Strategy, "s")
                    strategy.parameters["by"].append(number)
                return

    await asyncio.gather(*map(change, range(8)))
    async with manager.get_session() as session:
        strategy = await session.get_one(Strategy, "s")
        ids = list(await session.scalars(sa.select(StrategyRevision.change_id).order_by(StrategyRevision.version)))
        assert sorted(strategy.parameters["by"]) == list(range(8)) and strategy.version == 9
        assert ids == sorted(ids)
    assert len(await told(manager)) == 9


async def test_a_flush_takes_its_turn_so_that_a_late_commit_is_not_missed(manager: DatabaseManager) -> None:
    await add(manager, "a", "b")
    async with manager.get_session() as session:
        begun = await strategies.last_change(session)
    async with contextlib.aclosing(strategies.watch(manager, after=begun)) as feed:
        async with plain(manager) as slow:
            (await slow.get_one(Strategy, "a")).name = "A"
            await slow.flush()
            async with manager.transaction() as quick:
                (await quick.get_one(Strategy, "b")).name = "B"
                waiting = asyncio.create_task(quick.flush())
                await asyncio.sleep(0.1)
                assert not waiting.done()
                await slow.commit()
                await waiting
        assert [change.strategy_id for change in await taken(feed, 2)] == ["a", "b"]


# Statements


async def test_an_update_of_many_is_a_version_of_each_and_the_session_goes_on_with_what_it_has(
    manager: DatabaseManager, role: str
) -> None:
    await add(manager, "a", "b", "c")
    async with manager.transaction() as session:
        session.info.update(changed_by="risk desk", note="halt")
        held = await session.get_one(Strategy, "a")
        stop = sa.update(Strategy).where(Strategy.strategy_id != "c").values(is_active=False)
        returned = await session.scalars(stop.returning(Strategy))
        assert [(one.strategy_id, one.version, one.is_active) for one in returned] == [("a", 2, False), ("b", 2, False)]
        assert (held.version, held.is_active) == (2, False)
        held.name = "A"
        await session.flush()
        (await session.get_one(Strategy, "b")).name = "B"
    assert await told(manager, "c") == [(1, role, None, ())]
    for name in "ab":
        assert [row[1:] for row in await told(manager, name)][1:] == [
            ("risk desk", "halt", ("is_active",)),
            ("risk desk", "halt", ("name",)),
        ]


UPDATES: dict[str, Any] = {
    "of the table": sa.update(Strategy.__table__).values(name="new"),  # type: ignore[arg-type]
    "with ordered values": sa.update(Strategy).ordered_values((Strategy.name, "new")),
    "with a version": sa.update(Strategy).values(name="new", version=1),
    "without synchronizing": sa.update(Strategy).values(name="new").execution_options(synchronize_session=False),
    "inside a SELECT": sa.select(Strategy).from_statement(sa.update(Strategy).values(name="new").returning(Strategy)),
    "an upsert": upsert(Strategy)
    .values([{"strategy_id": "s", "name": "new"}, {"strategy_id": "more", "name": "new"}])
    .on_conflict_do_update(index_elements=["strategy_id"], set_={"name": "new"}),
}


@pytest.mark.parametrize("statement", UPDATES.values(), ids=UPDATES)
async def test_whatever_the_statement_is_its_changes_are_on_record(manager: DatabaseManager, statement: Any) -> None:
    await add(manager)
    async with manager.transaction() as session:
        await strategies.define(session, strategy_id="new", name="new")
        session.info["changed_by"] = "asha"
        await session.execute(statement)
    assert [row[1:] for row in await told(manager)][1:] == [("asha", None, ("name",))]


async def test_rows_by_statement_stream_and_key_are_on_record(manager: DatabaseManager) -> None:
    rows: list[dict[str, Any]] = [{"strategy_id": name, "name": name} for name in "ab"]
    async with manager.transaction() as session:
        session.info["changed_by"] = "asha"
        inserted = await session.scalars(sa.insert(Strategy).returning(Strategy), rows)
        assert [one.version for one in inserted] == [1, 1]
        table: Any = Strategy.__table__
        stream = await session.stream_scalars(sa.update(table).values(name="c").returning(table.c.version))
        assert [version async for version in stream] == [2, 2]
        await session.execute(sa.update(Strategy), [{"strategy_id": "a", "name": "d", "version": 2}])
        with pytest.raises(VersionConflict, match="at version 3, not 2: version 3 by 'asha'"):
            await session.execute(sa.update(Strategy), [{"strategy_id": "a", "name": "e", "version": 2}])
        with pytest.raises(InvalidInput, match="the version that was read"):
            await session.execute(sa.update(Strategy), [{"strategy_id": "a", "name": "e"}])
    assert [row[0::3] for row in await told(manager, "a")] == [(1, ()), (2, ("name",)), (3, ("name",))]
    assert [row[1] for row in await told(manager, "b")] == ["asha", "asha"]


async def test_the_history_is_kept(manager: DatabaseManager) -> None:
    await add(manager)
    async with manager.transaction() as session:
        strategy = await session.get_one(Strategy, "s")
        revision = await session.get_one(StrategyRevision, ("s", 1))
        for statement in (
            sa.delete(Strategy),
            sa.delete(Strategy.__table__),  # type: ignore[arg-type]
            sa.delete(StrategyRevision),
            sa.update(StrategyRevision).values(note="x"),
        ):
            with pytest.raises(HistoryKept):
                await session.execute(statement)
        await session.delete(strategy)
        with pytest.raises(HistoryKept, match=r"Strategy\(strategy_id='s'\) is never deleted.* Stop it: "):
            await session.flush()
        session.expunge(strategy)
        revision.note = "x"
        with pytest.raises(HistoryKept, match=r"version=1.* is never changed"):
            await session.flush()
        session.expunge(revision)
        strategy = await session.get_one(Strategy, "s")
        for name, value in (("version", 7), ("strategy_id", "t")):
            setattr(strategy, name, value)
            with pytest.raises(InvalidInput, match=f"{name}: is not for changing") as caught:
                await session.flush()
            assert caught.value.column == name
            await session.refresh(strategy)
        strategy.name = "T"
    assert [row[0] for row in await told(manager)] == [1, 2]


async def test_who_and_why_are_as_strict_as_their_columns(manager: DatabaseManager) -> None:
    bad: list[tuple[str, Any]] = [("changed_by", "a\nb"), ("changed_by", 7), ("note", "\0"), ("note", "x" * 1_001)]
    for name, value in bad:
        async with manager.get_session() as session:
            session.info[name] = value
            session.add(Strategy(strategy_id="s", name="S"))
            with pytest.raises(InvalidInput, match=rf"session.info\['{name}'\]: ") as caught:
                await session.flush()
            assert caught.value.column == name
            with pytest.raises(InvalidInput):
                await strategies.define(session, strategy_id="t", name="T")


async def test_a_role_whose_name_is_no_label_is_nobody(manager: DatabaseManager) -> None:
    names = ["panda", "o'dd \"x", "odd\n", " odd", "odd\x1b[2K"]
    async with manager.get_session() as session:
        called = [await session.scalar(sa.select(_log.role_called(sa.literal(name, sa.Text())))) for name in names]
    assert called == ["role panda", "role o'dd \"x", None, None, None]


# What sessions do not hear


RAW = {
    "counting": "UPDATE strategies SET parameters = '{\"lookback\": 25}', version = version + 1",
    "not counting": "UPDATE strategies SET parameters = '{\"lookback\": 25}'",
    "counting back": "UPDATE strategies SET parameters = '{\"lookback\": 25}', version = 1",
}


@pytest.mark.parametrize("statement", RAW.values(), ids=RAW)
async def test_what_sql_has_changed_comes_on_record_before_the_next_change(
    manager: DatabaseManager, statement: str
) -> None:
    async with manager.transaction() as session:
        for name in "abc":
            await strategies.define(session, strategy_id=name, name=name, parameters={"lookback": 20}, changed_by="x")
            await strategies.disable(session, name, changed_by="x")
    async with manager.get_session() as session:
        stale = await session.get_one(Strategy, "b")
        async with manager.transaction() as other:
            await other.execute(sa.text(statement))
        stale.name = "B"
        with pytest.raises(
            VersionConflict, match=r"version 3, not 2: version 3 by somebody at .*: parameters.lookback"
        ):
            await session.commit()
    async with manager.transaction() as session:
        with pytest.raises(
            VersionConflict, match=r"version 3, not 2: version 3 by somebody at .*: parameters.lookback"
        ):
            await strategies.revise(session, "a", expected_version=2, name="A")
        strategy = await strategies.revise(session, "a", expected_version=3, name="A", changed_by="asha")
        assert (strategy.version, strategy.parameters) == (4, {"lookback": 25})
        session.info["changed_by"] = "ravi"
        strategy = await session.get_one(Strategy, "b", populate_existing=True)
        await session.execute(sa.update(Strategy).where(Strategy.strategy_id == "c").values(name="C"))
    last = [(3, None, None, ("parameters.lookback",)), (4, "asha", None, ("name",))]
    assert (await told(manager, "a"))[2:] == last
    assert [row[1] for row in await told(manager, "c")][2:] == [None, "ravi"]


async def test_a_strategy_of_sql_alone_has_a_first_version_on_record_with_its_first_change(
    manager: DatabaseManager,
) -> None:
    async with manager.transaction() as session:
        await session.execute(sa.text("INSERT INTO strategies (strategy_id, name, version) VALUES ('s', 'S', 4)"))
    async with manager.transaction() as session:
        (await session.get_one(Strategy, "s")).name = "T"
    assert [row[0::3] for row in await told(manager)] == [(4, ()), (5, ("name",))]


async def test_a_revision_made_by_hand_stands_for_its_change(manager: DatabaseManager) -> None:
    async with contextlib.aclosing(strategies.watch(manager, after=0)) as feed:
        async with manager.transaction() as session:
            session.add(Strategy(strategy_id="s", name="S"))
            session.add(StrategyRevision(strategy_id="s", version=1, name="S", note="by hand"))
        assert [change.note for change in await taken(feed, 1, within=1.0)] == ["by hand"]
    assert [row[2] for row in await told(manager)] == ["by hand"]


# Turns


async def test_a_turn_that_a_savepoint_gave_back_is_taken_again(manager: DatabaseManager) -> None:
    await add(manager, "a", "b")
    async with manager.transaction() as session:
        with pytest.raises(UniqueViolation):
            async with session.begin_nested():
                (await session.get_one(Strategy, "a")).name = "lost"
                await session.flush()
                session.add(Portfolio(portfolio_id="p", broker="paper", currency="INR", name="P"))
                await session.flush()
                await session.execute(
                    sa.insert(Portfolio).values(portfolio_id="p", broker="paper", currency="INR", name="P")
                )
        async with manager.transaction() as other:
            (await other.get_one(Strategy, "a")).name = "kept"
        async with session.begin_nested():
            (await session.get_one(Strategy, "b")).name = "B"
        async with manager.transaction() as other:
            (await other.get_one(Strategy, "a")).name = "waits"
            waiting = asyncio.create_task(other.flush())
            await asyncio.sleep(0.1)
            assert not waiting.done()
            await session.commit()
            await waiting
    assert [row[3] for row in await told(manager, "a")][1:] == [("name",), ("name",)]
    assert len(await told(manager, "b")) == 2


async def test_under_snapshots_a_change_on_an_older_one_is_to_be_tried_again(manager: DatabaseManager) -> None:
    await add(manager)
    with pytest.raises(SerializationFailure):
        async with manager.transaction(isolation_level="REPEATABLE READ") as session:
            strategy = await session.get_one(Strategy, "s")
            async with manager.transaction() as other:
                (await other.get_one(Strategy, "s")).name = "T"
            strategy.name = "U"
    assert len(await told(manager)) == 2


async def test_recording_costs_a_function_no_more_than_one_statement_and_others_none(manager: DatabaseManager) -> None:
    sent: list[str] = []

    def count(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement.split()[0])

    event.listen(manager.engine.sync_engine, "before_cursor_execute", count)
    async with manager.transaction() as session:
        await strategies.define(session, strategy_id="s", name="S")
    assert sent.count("SELECT") == 2 and sent.count("INSERT") == 2, sent
    sent.clear()
    async with manager.transaction() as session:
        await strategies.disable(session, "s")
    assert sent == ["SELECT", "SELECT", "UPDATE", "INSERT", "SELECT"]  # turn, row, change, revision, notification
    sent.clear()
    async with manager.transaction() as session:
        session.add(Portfolio(portfolio_id="p", broker="paper", currency="INR", name="P"))
    assert sent == ["INSERT"]


async def test_decimals_and_documents_are_copied_as_they_stand(manager: DatabaseManager) -> None:
    await add(manager, "s", parameters={"stop": Decimal("0.0150"), "deep": {"a": [None, True, "x"]}})
    async with manager.get_session() as session:
        [revision] = await strategies.history(session, "s")
    assert str(revision.parameters["stop"]) == "0.0150" and revision.parameters["deep"] == {"a": [None, True, "x"]}
