"""COPY stands inside the caller's transaction, its errors are ours, and a merge writes only what differs."""

import io
from collections.abc import Iterator
from decimal import Decimal

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text, text

from core.database import bulk
from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput, PandaDatabaseError, StatementFault, StatementTimeout, TransactionAborted

TARGET = Table(
    "kept", MetaData(), Column("id", Integer, primary_key=True), Column("name", Text), Column("hits", Integer)
)


@pytest.fixture
async def kept(manager: DatabaseManager) -> DatabaseManager:
    async with manager.transaction() as session:
        await session.execute(text("CREATE TABLE kept (id int PRIMARY KEY, name text, hits int)"))
    return manager


async def rows(manager: DatabaseManager) -> list[tuple]:
    async with manager.get_session() as session:
        return [tuple(row) for row in await session.execute(text("SELECT id, name FROM kept ORDER BY id"))]


async def test_copy_as_the_first_act_of_a_session_is_rolled_back_with_it(kept: DatabaseManager) -> None:
    async with kept.get_session() as session:
        assert await bulk.copy_records(session, "kept", [(1, "a"), (2, "b")], columns=["id", "name"]) == 2
    async with kept.get_session() as session:
        assert await bulk.copy_csv(session, "kept", b"1,a\n2,b\n", columns=["id", "name"]) == 2
        await session.rollback()
    assert await rows(kept) == []


async def test_a_value_of_another_type_is_refused_with_its_row_and_the_callers_own_errors_pass(
    kept: DatabaseManager,
) -> None:
    for wrong in ("x", 2**40, Decimal("NaN"), object()):
        async with kept.get_session() as session:
            with pytest.raises(InvalidInput, match="row 2 of the COPY into kept") as caught:
                await bulk.copy_records(session, "kept", [(1, "a"), (wrong, "b")], columns=["id", "name"])
            assert caught.value.__context__ is None
            with pytest.raises(TransactionAborted):
                await session.commit()

    def rows_of(mistake: Exception) -> Iterator[tuple[int, str]]:
        yield 1, "a"
        raise mistake

    for mistake in (ValueError("mine"), TypeError("mine")):
        async with kept.get_session() as session:
            with pytest.raises(type(mistake), match="mine"):
                await bulk.copy_records(session, "kept", rows_of(mistake), columns=["id", "name"])


async def test_what_is_copied_is_stored_by_the_callers_commit(kept: DatabaseManager, tmp_path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,name\n1,a\n2,\n")
    async with kept.transaction() as session:
        assert await bulk.copy_csv(session, "kept", path, columns=["id", "name"], header=True) == 2
    assert await rows(kept) == [(1, "a"), (2, None)]
    output = io.BytesIO()
    async with kept.get_session() as session:
        assert (
            await bulk.copy_out(session, "SELECT id, name FROM kept WHERE id > $1 ORDER BY id", 0, output=output) == 2
        )
    assert output.getvalue() == b"id,name\n1,a\n2,\n"


async def test_an_error_of_copy_is_typed_and_the_transaction_cannot_commit(kept: DatabaseManager) -> None:
    async with kept.get_session() as session:
        await session.execute(text("INSERT INTO kept VALUES (9, 'z')"))
        with pytest.raises(PandaDatabaseError) as caught:
            await bulk.copy_csv(session, "kept", b"1,a\nsecret-x,b\n", columns=["id", "name"])
        assert isinstance(caught.value, InvalidInput)
        assert "secret-x" not in str(caught.value)
        with pytest.raises(TransactionAborted):
            await session.commit()
    assert await rows(kept) == []


async def test_a_record_of_the_wrong_type_leaves_nothing(kept: DatabaseManager) -> None:
    async with kept.get_session() as session:
        with pytest.raises((InvalidInput, TypeError, ValueError)):
            await bulk.copy_records(session, "kept", [(1, "a"), ("x", "b")], columns=["id", "name"])
        with pytest.raises(TransactionAborted):
            await session.commit()
    assert await rows(kept) == []


async def test_a_source_that_fails_midway_leaves_nothing(kept: DatabaseManager) -> None:
    async def source():
        yield b"1,a\n"
        raise KeyError("the source broke")

    async with kept.get_session() as session:
        with pytest.raises(KeyError):
            await bulk.copy_csv(session, "kept", source(), columns=["id", "name"])
        with pytest.raises(TransactionAborted):
            await session.commit()
    assert await rows(kept) == []


async def test_a_missing_table_is_a_fault_of_the_statement(kept: DatabaseManager) -> None:
    async with kept.get_session() as session:
        with pytest.raises(StatementFault):
            await bulk.copy_records(session, "nowhere", [(1,)], columns=["id"])


async def test_copy_has_a_time_limit_of_its_own(kept: DatabaseManager) -> None:
    async with kept.get_session() as session:
        with pytest.raises(StatementTimeout):
            await bulk.copy_out(session, "SELECT pg_sleep(5)", output=io.BytesIO(), timeout=0.2)


async def test_a_staging_table_goes_with_its_transaction(kept: DatabaseManager) -> None:
    async with kept.get_session() as session:
        first = await bulk.stage(session, {"id": "int", "select": "text"})
        second = await bulk.stage(session, {"id": "int"})
        assert first != second
        await bulk.copy_records(session, first, [(1, "x")], columns=["id", "select"])
        await session.commit()
        with pytest.raises(StatementFault):
            await session.execute(text(f"SELECT * FROM {first}"))


async def test_a_merge_inserts_updates_and_leaves_equal_rows_unwritten(kept: DatabaseManager) -> None:
    async def merge(records: list[tuple]) -> bulk.MergeResult:
        async with kept.transaction() as session:
            staged = await bulk.stage(session, {"id": "int", "name": "text", "hits": "int"})
            await bulk.copy_records(session, staged, records, columns=["id", "name", "hits"])
            return await bulk.merge(
                session, TARGET, staged, key=["id"], columns=["name"], untouched={"hits": "excluded.hits"}
            )

    assert await merge([(1, "a", 0), (2, None, 0)]) == bulk.MergeResult(inserted=2, updated=0, unchanged=0)
    async with kept.get_session() as session:
        before = dict((await session.execute(text("SELECT id, xmin::text FROM kept"))).all())
    assert await merge([(1, "a", 5), (2, "b", 5), (3, "c", 5)]) == bulk.MergeResult(inserted=1, updated=1, unchanged=1)
    async with kept.get_session() as session:
        after = dict((await session.execute(text("SELECT id, xmin::text FROM kept"))).all())
    assert before[1] == after[1]
    assert before[2] != after[2]
    assert await rows(kept) == [(1, "a"), (2, "b"), (3, "c")]


async def test_decimals_pass_through_copy_digit_for_digit(kept: DatabaseManager) -> None:
    value = Decimal("123456789012345678.0123456789")
    async with kept.get_session() as session:
        staged = await bulk.stage(session, {"value": "numeric(28,10)"})
        await bulk.copy_records(session, staged, [(value,)], columns=["value"])
        assert (await session.execute(text(f"SELECT value FROM {staged}"))).scalar_one() == value


async def test_a_file_that_is_not_there_is_the_callers_own_error_and_leaves_nothing(kept, tmp_path) -> None:
    async with kept.get_session() as session:
        await session.execute(text("INSERT INTO kept VALUES (9, 'z')"))
        with pytest.raises(FileNotFoundError) as caught:
            await bulk.copy_csv(session, "kept", tmp_path / "none.csv", columns=["id", "name"])
        assert caught.value.__cause__ is None
        with pytest.raises(TransactionAborted):
            await session.commit()
    assert await rows(kept) == []
