"""Column types: what goes in comes back the same, and what would change is refused before anything is sent."""

import asyncio
import copy
import json
import pickle
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal, getcontext, localcontext
from typing import Any, cast

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.dialects.postgresql import dialect
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, configure_mappers, mapped_column
from sqlalchemy.schema import CreateTable

from core.database.engine import DatabaseUrl, EngineOptions, build_engine
from core.database.errors import InvalidInput, SessionMisuse
from core.database.types import (
    MAX_JSON_DEPTH,
    Boolean,
    Bytes,
    Date,
    Document,
    DocumentList,
    DocumentModel,
    Integer32,
    Integer64,
    JsonObject,
    Money,
    Text,
    TextArray,
    UtcDateTime,
    checked_date,
    checked_json,
    checked_money,
    checked_text,
    checked_utc,
    invalid_input,
    round_money,
    strict_json_dumps,
    strict_json_loads,
)

in_database = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


class Base(DeclarativeBase):
    pass


class Lot(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    token: int
    price: Decimal


class Lots(DocumentList[Lot]):
    pass


class Leg(DocumentModel):
    side: str
    tags: list[str] = Field(default_factory=list)


class Plan(DocumentModel):
    leg: Leg
    since: datetime | None = None
    legs: dict[str, Leg] = Field(default_factory=dict)
    pair: tuple[Leg, ...] = ()


class Row(Base):
    __tablename__ = "typed"

    id: Mapped[int] = mapped_column(Integer64(), sa.Identity(), primary_key=True)
    amount: Mapped[Decimal | None] = mapped_column(Money())
    at: Mapped[datetime | None] = mapped_column(UtcDateTime())
    day: Mapped[date | None] = mapped_column(Date())
    small: Mapped[int | None] = mapped_column(Integer32())
    big: Mapped[int | None] = mapped_column(Integer64())
    flag: Mapped[bool | None] = mapped_column(Boolean())
    label: Mapped[str | None] = mapped_column(Text(10))
    note: Mapped[str | None] = mapped_column(Text())
    raw: Mapped[bytes | None] = mapped_column(Bytes(8))
    names: Mapped[list[str] | None] = mapped_column(TextArray(10))
    free: Mapped[JsonObject] = mapped_column(Document(JsonObject), server_default=sa.text("'{}'"))
    lots: Mapped[Lots] = mapped_column(Document(Lots), default=list)
    plan: Mapped[Plan | None] = mapped_column(Document(Plan))


@pytest.fixture(scope="module")
def typed_url(panda_new_database) -> Iterator[str]:
    """A database with the table, for all tests of this module: they leave rows but look only at their own."""

    async def make(url: str) -> None:
        engine = build_engine(DatabaseUrl.parse(url), EngineOptions())
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        await engine.dispose()

    with panda_new_database(empty=True) as url:
        asyncio.run(make(url))
        yield url


@pytest.fixture
async def engine(typed_url: str) -> AsyncIterator[AsyncEngine]:
    engine = build_engine(DatabaseUrl.parse(typed_url), EngineOptions())
    yield engine
    async with engine.begin() as connection:
        await connection.execute(sa.text("DELETE FROM typed"))
    await engine.dispose()


@pytest.fixture
async def session(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine, expire_on_commit=False) as session:
        yield session


async def stored(session: AsyncSession, row: Row) -> Row:
    """The row as another session reads it."""
    await session.commit()
    async with AsyncSession(session.bind) as other:
        return (await other.execute(sa.select(Row).where(Row.id == row.id))).scalar_one()


# Values

WRONG = [
    ("amount", 1.5, "not float"),
    ("amount", True, "not bool"),
    ("amount", "1", "not str"),
    ("amount", Decimal("NaN"), "finite"),
    ("amount", Decimal("sNaN"), "finite"),
    ("amount", Decimal("Infinity"), "finite"),
    ("amount", Decimal("-Infinity"), "finite"),
    ("amount", Decimal("1.00000000001"), "after the point"),
    ("amount", Decimal(10) ** 18, "before the point"),
    ("amount", 10**18, "before the point"),
    ("at", datetime(2026, 1, 1), "naive"),
    ("at", date(2026, 1, 1), "not date"),
    ("at", "2026-01-01T00:00:00Z", "not str"),
    ("at", datetime.max.replace(tzinfo=UTC), "infinity"),
    ("at", datetime.min.replace(tzinfo=UTC), "infinity"),
    ("at", datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))), "outside the calendar"),
    ("day", datetime(2026, 1, 1, tzinfo=UTC), "not datetime"),
    ("day", date.max, "infinity"),
    ("day", date.min, "infinity"),
    ("day", "2026-01-01", "not str"),
    ("small", 5.7, "not float"),
    ("small", True, "not bool"),
    ("small", "5", "not str"),
    ("small", 2**31, "must be from"),
    ("small", -(2**31) - 1, "must be from"),
    ("big", 2**63, "must be from"),
    ("big", Decimal(5), "not Decimal"),
    ("flag", 1, "not int"),
    ("flag", "true", "not str"),
    ("label", 5, "not int"),
    ("label", "a\0b", "NUL"),
    ("label", "\ud800", "surrogate"),
    ("label", "x" * 11, "longer than 10"),
    ("raw", "text", "not str"),
    ("raw", b"123456789", "longer than 8"),
    ("raw", bytearray(b"1"), "not bytearray"),
    ("names", "paper", "not str"),
    ("names", ["a", None], "not NoneType"),
    ("names", ["a", "\0"], "NUL"),
    ("names", ["x" * 11], "longer than 10"),
    ("free", [1], "takes an object"),
    ("free", {"a": float("nan")}, "finite"),
    ("free", {1: "a"}, "keys must be str"),
    ("lots", [{"token": 1, "price": 1.5}], "0.price"),
    ("lots", {"token": 1}, "list"),
    ("plan", {"leg": {"side": "buy"}, "extra": 1}, "extra"),
]


@pytest.mark.parametrize(("field", "value", "reason"), WRONG, ids=[f"{f}-{n}" for n, (f, _, _) in enumerate(WRONG)])
async def test_a_value_that_would_change_is_refused_in_rows_and_in_comparisons_naming_the_column(
    session: AsyncSession, field: str, value: Any, reason: str
) -> None:
    column = getattr(Row, field)
    with pytest.raises(InvalidInput, match=reason) as refused:
        session.add(Row(**{field: value}))
        await session.commit()
    assert (refused.value.column, refused.value.table) == (field, "typed")
    await session.rollback()
    with pytest.raises(InvalidInput, match=reason):
        await session.execute(sa.insert(Row).values({field: value}))
    await session.rollback()
    if "longer than 10" in reason:
        return  # what is too long to be stored is not found; see below
    with pytest.raises(InvalidInput, match=reason):
        await session.execute(sa.select(Row.id).where(column == value))


async def test_refusals_never_repeat_the_value(session: AsyncSession) -> None:
    for row in (lambda: Row(label="secret-token-1234"), lambda: Row(plan={"leg": {"side": 7}, "secret-token": "hush"})):
        with pytest.raises(InvalidInput) as refused:
            session.add(row())
            await session.commit()
        assert "1234" not in str(refused.value)
        assert "hush" not in str(refused.value)
        await session.rollback()


async def test_text_too_long_to_be_stored_is_not_found_instead_of_refused(session: AsyncSession) -> None:
    session.add(Row(label="short"))
    await session.commit()
    assert (await session.scalars(sa.select(Row).where(Row.label == "x" * 200))).all() == []
    assert len((await session.scalars(sa.select(Row).where(Row.label.like("s" + "%" * 20)))).all()) == 1


money = st.decimals(
    min_value=Decimal("-999999999999999999.9999999999"),
    max_value=Decimal("999999999999999999.9999999999"),
    places=10,
)
instants = st.datetimes(
    min_value=datetime(2, 1, 1),
    max_value=datetime(9998, 1, 1),
    timezones=st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10)
numbers = st.one_of(
    st.integers(-(2**80), 2**80),
    st.decimals(allow_nan=False, allow_infinity=False).filter(
        lambda n: -300 < cast("int", n.as_tuple().exponent) < 300
    ),
    st.booleans(),
    st.none(),
)
json_values = st.recursive(
    st.one_of(numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)


@in_database
@given(
    amount=money,
    at=instants,
    day=st.dates(date(1, 1, 2), date(9999, 12, 30)),
    small=st.integers(-(2**31), 2**31 - 1),
    big=st.integers(-(2**63), 2**63 - 1),
    flag=st.booleans(),
    label=texts,
    raw=st.binary(max_size=8),
    names=st.lists(texts, max_size=3),
    free=st.dictionaries(texts, json_values, max_size=4),
)
async def test_what_goes_in_comes_back_the_same(session: AsyncSession, **values: Any) -> None:
    row = Row(**values)
    session.add(row)
    back = await stored(session, row)
    for field, value in values.items():
        found = getattr(back, field)
        assert found == value, field
        assert getattr(row, field) == value, field
    assert type(back.amount) is Decimal
    assert back.at is not None
    assert back.at.tzinfo is UTC
    assert back.flag is values["flag"]


@in_database
@given(amount=money, at=instants, label=texts)
async def test_raw_sql_reads_what_the_orm_wrote(
    session: AsyncSession, amount: Decimal, at: datetime, label: str
) -> None:
    row = Row(amount=amount, at=at, label=label, lots=[{"token": 1, "price": amount}])
    session.add(row)
    await session.commit()
    statement = sa.text("SELECT amount::text, at, label, lots->0->>'price' FROM typed WHERE id = :id")
    written = (await session.execute(statement, {"id": row.id})).one()
    assert Decimal(written[0]) == amount
    assert written[1] == at
    assert written[2] == label
    assert Decimal(written[3]) == amount


async def test_money_does_not_depend_on_the_callers_decimal_context() -> None:
    with localcontext() as context:
        context.prec = 3
        assert checked_money(Decimal("123456789.0123456789")) == Decimal("123456789.0123456789")
        assert round_money(Decimal("123456789.01234567894")) == Decimal("123456789.0123456789")
    assert getcontext().prec == 28


@given(st.decimals(allow_nan=True, allow_infinity=True))
def test_money_is_taken_exactly_or_not_at_all(value: Decimal) -> None:
    try:
        taken = checked_money(value)
    except InvalidInput:
        if value.is_finite():
            assert abs(value) >= 10**18 or value != round(value, 10)
    else:
        assert taken == value


def test_rounding_happens_only_when_asked_for() -> None:
    assert round_money(Decimal("0.12345678905")) == Decimal("0.1234567890")
    assert round_money(Decimal("0.12345678905"), "ROUND_HALF_UP") == Decimal("0.1234567891")
    assert round_money(7) == 7
    for value in (Decimal("NaN"), Decimal("Infinity"), Decimal(10) ** 18, Decimal("999999999999999999.99999999999")):
        with pytest.raises(InvalidInput):
            round_money(value)
    with pytest.raises(InvalidInput):
        round_money(1.5)  # type: ignore[arg-type]


def test_a_zero_of_any_exponent_is_plain_zero() -> None:
    assert str(checked_money(Decimal("0E+500000"))) == "0"


def test_subclasses_are_reduced_to_what_they_are() -> None:
    class Mine(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "other"

    class Exact(Decimal):
        pass

    assert checked_text(Mine("kept")) == "kept"
    assert type(checked_money(Exact("1.5"))) is Decimal
    assert Integer32().convert(Count.ONE) == 1


class Count(int):
    ONE: "Count"


Count.ONE = Count(1)


@given(instants)
def test_every_zone_becomes_utc(at: datetime) -> None:
    assert checked_utc(at) == at
    assert checked_utc(at).tzinfo is UTC


async def test_a_stored_infinity_is_refused_when_read(session: AsyncSession) -> None:
    await session.execute(sa.text("INSERT INTO typed (at, lots) VALUES ('infinity', '[]')"))
    with pytest.raises(InvalidInput, match="infinity"):
        await session.execute(sa.select(Row))


async def test_times_take_part_in_arithmetic(session: AsyncSession) -> None:
    now = datetime.now(UTC)
    session.add(Row(at=now, day=date(2026, 1, 10), small=3, amount=Decimal("1.5"), label="ab"))
    await session.commit()
    matching = sa.select(Row.id).where(
        Row.at - timedelta(days=1) < now,
        Row.at + timedelta(hours=1) > now,
        Row.day - 3 == date(2026, 1, 7),
        Row.day + timedelta(days=1) == datetime(2026, 1, 11),
        Row.small + 1 == 4,
        Row.small * Decimal("0.5") == Decimal("1.5"),
        Row.amount * 2 == 3,
        Row.amount.in_([Decimal("1.5"), 2]),
        Row.label + "c" == "abc",
    )
    assert len((await session.execute(matching)).all()) == 1


async def test_types_are_part_of_the_statement_cache(engine: AsyncEngine) -> None:
    for kind in (Money(), UtcDateTime(), Date(), Integer32(), Text(3), TextArray(3), Document(Plan), Bytes(3)):
        assert kind._static_cache_key == type(kind)._static_cache_key.fget(kind)  # type: ignore[attr-defined]
    assert Text(3)._static_cache_key != Text(4)._static_cache_key
    assert Document(Plan)._static_cache_key != Document(Lots)._static_cache_key


def test_text_sorts_by_bytes_on_every_server() -> None:
    assert 'COLLATE "C"' in str(CreateTable(cast("sa.Table", Row.__table__)).compile(dialect=dialect()))


def test_dates_and_texts_have_rules_of_their_own() -> None:
    assert checked_date(date(2026, 1, 1)) == date(2026, 1, 1)
    with pytest.raises(InvalidInput):
        checked_date(datetime(2026, 1, 1, tzinfo=UTC))


# JSON


@given(json_values)
def test_json_text_reads_back_as_the_same_value(value: Any) -> None:
    text = strict_json_dumps(value)
    assert strict_json_loads(text) == value
    assert strict_json_loads(text.encode()) == value
    json.loads(text)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_is_written_as_the_shortest_decimal_that_means_it(value: float) -> None:
    back = strict_json_loads(strict_json_dumps(value))
    assert back == Decimal(repr(value))
    assert float(back) == value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a": [float("nan")]}, r"finite .*\$\['a'\]\[0\]"),
        (float("inf"), "finite"),
        (Decimal("NaN"), "finite"),
        ({1: "a"}, "keys must be str, not int"),
        ({None: "a"}, "keys must be str, not NoneType"),
        ({"a": {"b": b""}}, r"not bytes .*\$\['a'\]\['b'\]"),
        (datetime(2026, 1, 1, tzinfo=UTC), "not datetime"),
        ({"a": {1, 2}}, "not set"),
        ("a\0b", "NUL"),
        ({"\ud800": 1}, "surrogate"),
        (10**1000, "1000 digits"),
        (Decimal("1E+5000"), "1000 digits"),
        (Decimal("1E-5000"), "1000 digits"),
    ],
)
def test_what_json_cannot_say_is_refused_with_its_path(value: Any, reason: str) -> None:
    for work in (strict_json_dumps, checked_json):
        with pytest.raises(InvalidInput, match=reason):
            work(value)


@pytest.mark.parametrize(
    "text", ["NaN", "[Infinity]", '{"a": -Infinity}', "{", "", "1e999999999999999999999", "9" * 5_000, "[" * 100_000]
)
def test_text_that_is_not_strict_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        strict_json_loads(text)


def test_json_deeper_than_the_limit_is_refused_both_ways() -> None:
    value: Any = 1
    for _ in range(MAX_JSON_DEPTH):
        value = [value]
    text = strict_json_dumps(value)
    assert strict_json_loads(text) == value
    assert strict_json_loads("[" + ",".join(["[]"] * 100) + "]") == [[]] * 100
    for work in (lambda: strict_json_dumps([value]), lambda: strict_json_loads(f'{{"a": {text}}}')):
        with pytest.raises(InvalidInput, match="64 levels"):
            work()


async def test_json_of_thousands_of_levels_is_refused_cleanly_wherever_it_comes_from(session: AsyncSession) -> None:
    value: Any = {}
    for _ in range(3_000):
        value = {"a": value}
    with pytest.raises(InvalidInput, match="levels"):
        Row(free=value)
    deep = "repeat('[', 3000) || repeat(']', 3000)"
    with pytest.raises(InvalidInput, match="levels"):
        await session.execute(sa.text(f"SELECT ({deep})::jsonb"))


def test_loops_in_a_value_end_at_the_depth_limit() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(InvalidInput, match="levels"):
        strict_json_dumps(value)


# Documents


async def test_exact_numbers_survive_in_a_free_form_document(session: AsyncSession) -> None:
    values = {"big": 2**70, "exact": Decimal("0.1234567890123456789012345678901234567890"), "price": Decimal("1.50")}
    row = Row(free=values)
    session.add(row)
    back = await stored(session, row)
    assert back.free == values
    kinds = {key: type(value) for key, value in back.free.items()}
    assert kinds == {"big": int, "exact": Decimal, "price": Decimal}


async def test_a_float_in_a_free_form_document_is_the_same_before_and_after_it_is_stored(session: AsyncSession) -> None:
    row = Row(free={"threshold": 0.1, "deep": [{"x": 1e-7}]})
    session.add(row)
    before = row.free.model_dump()
    assert before == {"threshold": Decimal("0.1"), "deep": [{"x": Decimal("1E-7")}]}
    back = await stored(session, row)
    assert back.free == before
    assert back.free == {"threshold": 0.1, "deep": [{"x": 1e-7}]}
    assert back.free != {"threshold": 0.2}
    assert back.free != {"threshold": object()}
    assert back.free != 5


async def test_documents_are_documents_from_assignment_on(session: AsyncSession) -> None:
    row = Row(free={"a": 1}, lots=[{"token": 1, "price": Decimal("1.5")}], plan={"leg": {"side": "buy"}})
    assert isinstance(row.free, JsonObject)
    assert isinstance(row.lots, Lots)
    assert row.lots[0].price == Decimal("1.5")
    assert row.plan is not None
    assert row.plan.leg.side == "buy"
    same = row.free
    row.free = same
    assert row.free is same


CHANGES = {
    "set a key": lambda row: row.free.__setitem__("x", 1),
    "set a nested key": lambda row: row.free["a"]["b"].__setitem__("c", Decimal("1.5")),
    "delete a key": lambda row: row.free.__delitem__("a"),
    "pop a key": lambda row: row.free.pop("a"),
    "popitem": lambda row: row.free.root.popitem(),
    "setdefault": lambda row: row.free.setdefault("y", {"z": 1}),
    "nested setdefault": lambda row: row.free["a"].setdefault("y", []).append(1),
    "update": lambda row: row.free.update({"x": 1}, y=2),
    "nested |=": lambda row: row.free["a"].__ior__({"k": "v"}),
    "clear": lambda row: row.free.clear(),
    "nested clear": lambda row: row.free["a"].clear(),
    "append deep": lambda row: row.free["l"][1].append({"m": 1}),
    "append then reach in": lambda row: (row.free["l"].append({"m": {}}), row.free["l"][-1]["m"].update(n=1)),
    "extend": lambda row: row.free["l"].extend([1, [2]]),
    "+=": lambda row: row.free["l"].__iadd__([1]),
    "*=": lambda row: row.free["l"].__imul__(2),
    "insert": lambda row: row.free["l"].insert(0, "first"),
    "set an index": lambda row: row.free["l"].__setitem__(0, "other"),
    "set a slice": lambda row: row.free["l"].__setitem__(slice(0, 1), ["p", "q"]),
    "delete an index": lambda row: row.free["l"].__delitem__(0),
    "list pop": lambda row: row.free["l"].pop(),
    "remove": lambda row: row.free["l"].remove(3),
    "list clear": lambda row: row.free["l"].clear(),
    "sort": lambda row: row.free["s"].sort(reverse=True),
    "reverse": lambda row: row.free["s"].reverse(),
    "replace the root": lambda row: setattr(row.free, "root", {"n": [1]}),
    "replace the root and reach in": lambda row: (setattr(row.free, "root", {"n": [1]}), row.free["n"].append(2)),
    "lots append": lambda row: row.lots.append(Lot(token=2, price=Decimal(2))),
    "lots append a dict": lambda row: row.lots.append({"token": 2, "price": Decimal(2)}),
    "lots root append": lambda row: row.lots.root.append(Lot(token=2, price=Decimal(2))),
    "lots set": lambda row: row.lots.__setitem__(0, Lot(token=3, price=Decimal(3))),
    "lots slice": lambda row: row.lots.__setitem__(slice(0, 0), [Lot(token=3, price=Decimal(3))]),
    "lots delete": lambda row: row.lots.__delitem__(0),
    "plan attribute": lambda row: setattr(row.plan, "since", datetime(2026, 1, 1, tzinfo=UTC)),
    "plan nested attribute": lambda row: setattr(row.plan.leg, "side", "sell"),
    "plan nested list": lambda row: row.plan.leg.tags.append("hedge"),
    "plan dict of models": lambda row: row.plan.legs.__setitem__("b", Leg(side="sell")),
    "plan model in a dict": lambda row: setattr(row.plan.legs["a"], "side", "sell"),
    "plan list in a model in a dict": lambda row: row.plan.legs["a"].tags.append("x"),
    "plan model in a tuple": lambda row: setattr(row.plan.pair[0], "side", "sell"),
    "plan replaced part": lambda row: (setattr(row.plan, "leg", Leg(side="x")), row.plan.leg.tags.append("y")),
    "plan unset": lambda row: setattr(row, "plan", None),
    "names append": lambda row: row.names.append("zerodha"),
    "names sort": lambda row: row.names.sort(),
    "assigned whole": lambda row: (setattr(row, "free", {"n": {}}), row.free["n"].update(k=1)),
    "assigned names": lambda row: (setattr(row, "names", ("x",)), row.names.append("y")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
async def test_a_change_at_any_depth_is_stored(session: AsyncSession, change: Any) -> None:
    row = Row(
        free={"a": {"b": {}}, "l": [1, [2], 3], "s": ["a", "c", "b"]},
        lots=[Lot(token=1, price=Decimal("1.5"))],
        plan=Plan(leg=Leg(side="buy"), legs={"a": Leg(side="buy")}, pair=(Leg(side="buy"),)),
        names=["paper", "beta"],
    )
    session.add(row)
    await session.commit()
    async with AsyncSession(session.bind, expire_on_commit=False) as later:
        loaded = await later.get_one(Row, row.id)
        before = [copy.deepcopy(getattr(loaded, field)) for field in ("free", "lots", "plan", "names")]
        for changed in (row, loaded):
            change(changed)
        assert row in session.dirty
        after = [getattr(loaded, field) for field in ("free", "lots", "plan", "names")]
        assert after != before
        await later.commit()
        await later.refresh(loaded)
        assert [getattr(loaded, field) for field in ("free", "lots", "plan", "names")] == after
    back = await stored(session, row)
    assert [getattr(back, field) for field in ("free", "lots", "plan", "names")] == after


async def test_reading_changes_nothing(session: AsyncSession) -> None:
    row = Row(free={"a": {"b": [1]}}, lots=[], names=["x"], plan={"leg": {"side": "buy"}})
    session.add(row)
    await session.commit()
    assert row.free["a"]["b"][0] == 1
    assert "a" in row.free
    assert row.free.get("z") is None
    assert list(row.free) == ["a"]
    assert len(row.free) == 1
    assert dict(row.free) == {"a": {"b": [1]}}
    assert row.names is not None
    assert sorted(row.names) == ["x"]
    assert row.lots == []
    assert list(row.lots) == []
    assert row not in session.dirty


async def test_a_change_that_is_refused_leaves_the_document_as_it_was(session: AsyncSession) -> None:
    row = Row(free={"a": [1]}, lots=[{"token": 1, "price": Decimal(1)}])
    session.add(row)
    await session.commit()
    for change in (
        lambda: row.free.update(b=1, c=float("nan")),
        lambda: row.free["a"].extend([2, b""]),
        lambda: row.free.__setitem__(5, 1),  # type: ignore[arg-type]
        lambda: row.lots.append({"token": "x"}),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError):
            change()
    assert row.free == {"a": [1]}
    assert len(row.lots) == 1


async def test_what_validation_would_refuse_does_not_slip_in_through_a_list_inside(session: AsyncSession) -> None:
    row = Row(lots=[], plan={"leg": {"side": "buy"}})
    session.add(row)
    await session.commit()
    key = row.id
    row.lots.root.append("garbage")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="lots"):
        await session.commit()
    await session.rollback()
    fresh = await session.get_one(Row, key, populate_existing=True)
    assert fresh.plan is not None
    fresh.plan.leg.tags.append(5)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="tags"):
        await session.commit()


async def test_what_is_put_in_is_copied(session: AsyncSession) -> None:
    inner: dict[str, Any] = {"n": 1}
    row = Row(free={"a": inner}, plan={"leg": {"side": "buy"}})
    inner["n"] = 2
    assert row.free == {"a": {"n": 1}}
    leg = Leg(side="sell")
    assert row.plan is not None
    row.plan.legs["x"] = leg
    leg.side = "changed"
    assert row.plan.legs["x"].side == "sell"


async def test_a_document_of_a_row_that_was_read_again_refuses_to_be_changed_unseen(session: AsyncSession) -> None:
    row = Row(free={"a": [1]}, names=["x"])
    session.add(row)
    await session.commit()
    document, names = row.free, row.names
    assert names is not None
    await session.refresh(row)
    for change in (lambda: document["a"].append(2), lambda: document.update(b=1), lambda: names.append("y")):
        with pytest.raises(SessionMisuse, match="read again"):
            change()
    row.free["a"].append(3)
    assert (await stored(session, row)).free == {"a": [1, 3]}


async def test_a_document_that_was_replaced_is_free_again(session: AsyncSession) -> None:
    row = Row(free={"a": 1})
    session.add(row)
    await session.commit()
    document = row.free
    row.free = {"b": 1}  # type: ignore[assignment]
    await session.commit()
    document["c"] = 1
    assert row not in session.dirty


async def test_a_document_whose_row_is_gone_refuses_to_be_changed_unseen(session: AsyncSession) -> None:
    row = Row(free={"a": [1]}, names=["x"], plan={"leg": {"side": "buy"}})
    session.add(row)
    await session.commit()
    key = row.id
    del row

    async def again() -> Row:
        return await session.get_one(Row, key)

    with pytest.raises(SessionMisuse, match=r"is gone.*Keep the row in a variable"):
        (await again()).free["a"].append(2)
    with pytest.raises(SessionMisuse, match="is gone"):
        (await again()).names.append("y")  # type: ignore[union-attr]
    with pytest.raises(SessionMisuse, match="is gone"):
        (await again()).plan.leg.side = "sell"  # type: ignore[union-attr]
    free = copy.deepcopy((await again()).free)
    free["a"].append(2)
    row = await again()
    old, row.free = row.free, free
    await session.commit()
    del row
    old["b"] = 1  # it was replaced, so that nothing is lost
    assert (await again()).free == {"a": [1, 2]}


async def test_one_document_may_stand_in_two_rows(session: AsyncSession) -> None:
    shared = JsonObject({"a": 1})
    rows = [Row(free=shared), Row(free=shared)]
    session.add_all(rows)
    await session.commit()
    shared["b"] = 2
    assert all(row in session.dirty for row in rows)
    for row in rows:
        assert (await stored(session, row)).free == {"a": 1, "b": 2}


async def test_rows_that_were_pickled_or_merged_still_tell_of_changes(session: AsyncSession) -> None:
    row = Row(free={"a": [1]}, names=["x"], plan={"leg": {"side": "buy"}}, lots=[{"token": 1, "price": Decimal(1)}])
    session.add(row)
    await session.commit()
    session.expunge(row)
    twin = pickle.loads(pickle.dumps(row))
    assert (twin.free, twin.names, twin.plan, twin.lots) == (row.free, row.names, row.plan, row.lots)
    for load in (True, False):
        async with AsyncSession(session.bind, expire_on_commit=False) as other:
            merged = await other.merge(pickle.loads(pickle.dumps(row)), load=load)
            merged.free["a"].append(2)
            merged.names.append("y")
            merged.plan.leg.tags.append("z")
            await other.commit()
    twin.free["b"] = 1
    async with AsyncSession(session.bind, expire_on_commit=False) as other:
        other.add(twin)
        assert twin in other.dirty
        await other.commit()
    back = await stored(session, row)
    assert back.free == {"a": [1], "b": 1}
    assert back.names == ["x", "y"]


def test_copies_and_pickles_of_a_document_are_equal_and_apart() -> None:
    for document in (
        JsonObject({"a": [{"b": Decimal("1.5")}]}),
        Lots([Lot(token=1, price=Decimal(1))]),
        Plan(leg=Leg(side="buy", tags=["x"])),
    ):
        for twin in (
            copy.copy(document),
            copy.deepcopy(document),
            document.model_copy(),
            document.model_copy(deep=True),
            pickle.loads(pickle.dumps(document)),
            type(document).model_validate(document),
        ):
            assert twin == document
            assert twin is not document
    original = JsonObject({"a": [1]})
    twin = copy.copy(original)
    twin["a"].append(2)
    assert original == {"a": [1]}
    assert type(copy.copy(original["a"])) is list
    assert type(copy.deepcopy(original.root)) is dict


def test_free_form_documents_take_members_and_json_text() -> None:
    assert JsonObject() == {}
    assert JsonObject(a=1) == {"a": 1}
    exact = Decimal("1.1234567890123456789012345")
    assert JsonObject.model_validate_json('{"a": 1.1234567890123456789012345}')["a"] == exact
    assert JsonObject.model_validate_json(bytearray(b'{"a": 1}')) == {"a": 1}
    assert JsonObject(a=1) == JsonObject(a=1)
    with pytest.raises(TypeError):
        hash(JsonObject())


def test_what_could_change_unseen_cannot_stand_in_a_document() -> None:
    class Loose(BaseModel):
        x: int = 1

    class Holder(DocumentModel):
        part: Loose = Field(default_factory=Loose)

    class Bag(DocumentModel):
        names: set[str] = Field(default_factory=set)

    class Free(DocumentModel):
        rest: JsonObject = Field(default_factory=JsonObject)

    for make, reason in ((Holder, "frozen"), (Bag, "set"), (Free, "whole document")):
        with pytest.raises(TypeError, match=reason):
            make()


def test_lists_inside_frozen_parts_are_watched_too() -> None:
    class Frozen(BaseModel):
        model_config = ConfigDict(frozen=True)
        tags: list[str]

    class Holder(DocumentModel):
        part: Frozen

    shared = Frozen(tags=["a"])
    holder = Holder(part=shared)
    row = Row()
    assert holder.part == shared
    assert type(shared.tags) is list
    assert type(holder.part.tags) is not list
    assert row.plan is None


async def test_documents_are_found_by_content_and_by_part(session: AsyncSession) -> None:
    session.add(Row(free={"a": {"b": [1]}, "p": Decimal("1.50")}, lots=[], names=["x", "y"]))
    await session.commit()
    matching = sa.select(Row.id).where(
        Row.free == {"a": {"b": [1]}, "p": 1.5},
        Row.free != {"a": 1},
        Row.free["a"]["b"][0].as_integer() == 1,
        Row.free["p"].astext == "1.50",
        Row.free.contains({"a": {}}),
        Row.free.has_key("a"),
        Row.lots == [],
        Row.names == ["x", "y"],
        Row.names.contains(["x"]),
        Row.names[1] == "x",
        sa.literal("y") == sa.any_(Row.names),
        Row.plan.is_(None),
    )
    assert len((await session.execute(matching)).all()) == 1
    parts = sa.select(Row.free["a"], Row.free["p"], Row.names[2], Row.free, Row.names)
    assert tuple((await session.execute(parts)).one()) == (
        {"b": [1]},
        Decimal("1.50"),
        "y",
        {"a": {"b": [1]}, "p": Decimal("1.50")},
        ["x", "y"],
    )


async def test_sql_expressions_pass_into_tracked_columns(session: AsyncSession) -> None:
    row = Row(free={"a": 1}, names=["x"])
    session.add(row)
    await session.commit()
    row.free = sa.func.jsonb_build_object("b", 2)
    row.names = sa.text("ARRAY['p', 'q']")  # type: ignore[assignment]
    await session.flush()
    await session.refresh(row)
    assert (row.free, row.names) == ({"b": 2}, ["p", "q"])
    row.free["c"] = 3
    assert (await stored(session, row)).free == {"b": 2, "c": 3}


async def test_none_is_null_and_not_json_null(session: AsyncSession) -> None:
    row = Row(plan=None, names=None)
    session.add(row)
    await session.commit()
    query = sa.text("SELECT plan IS NULL AND names IS NULL FROM typed WHERE id = :id")
    assert (await session.scalar(query, {"id": row.id})) is True


async def test_stored_json_that_does_not_fit_is_refused_when_read(session: AsyncSession) -> None:
    for lots in ('[{"token": 1, "price": "x"}]', '[{"token": 1.5, "price": "1"}]', '{"a": 1}', "[1]"):
        await session.execute(sa.text("INSERT INTO typed (lots) VALUES (CAST(:lots AS jsonb))"), {"lots": lots})
        with pytest.raises(InvalidInput, match="lots: what is stored does not fit Lots"):
            await session.execute(sa.select(Row.lots))
        await session.rollback()


async def test_numbers_that_raw_sql_stored_are_read_exactly_by_a_typed_document(session: AsyncSession) -> None:
    exact = "0.1234567890123456789012345678901234567890"
    lots = f'[{{"token": 1, "price": {exact}}}, {{"token": 2, "price": 1.50}}]'
    await session.execute(sa.text("INSERT INTO typed (lots) VALUES (CAST(:lots AS jsonb))"), {"lots": lots})
    found = (await session.scalars(sa.select(Row.lots))).one()
    assert [lot.price for lot in found] == [Decimal(exact), Decimal("1.50")]


async def test_literal_rendering_quotes_documents(session: AsyncSession) -> None:
    statement = sa.select(sa.literal({"a": "it's"}, Document(JsonObject)))
    text = str(statement.compile(dialect=session.get_bind().dialect, compile_kwargs={"literal_binds": True}))
    written = (await session.execute(sa.text(text.replace(":", "\\:")))).scalar_one()
    assert strict_json_loads(written) == {"a": "it's"}


async def test_core_inserts_and_updates_validate_documents(session: AsyncSession) -> None:
    await session.execute(sa.insert(Row), [{"free": {"n": n}, "lots": []} for n in range(3)])
    await session.execute(sa.update(Row).values(free={"n": 9}))
    assert (await session.scalars(sa.select(Row.free))).all() == [{"n": 9}] * 3
    with pytest.raises(InvalidInput):
        await session.execute(sa.update(Row).values(free={"n": float("nan")}))


async def test_mapped_subclasses_are_watched_once(session: AsyncSession) -> None:
    class Special(Row):
        pass

    configure_mappers()
    row = Special(free={"a": 1})
    session.add(row)
    await session.commit()
    row.free["b"] = 2
    assert row in session.dirty
    await session.commit()


def test_validation_errors_become_ours_without_the_value() -> None:
    with pytest.raises(ValueError) as fault:
        Leg.model_validate({"side": "buy", "tags": ["ok", 12345]})
    told = invalid_input(fault.value)  # type: ignore[arg-type]
    assert "tags.1" in told.message
    assert told.column == "tags"
    assert "12345" not in str(told)


@given(st.lists(st.sampled_from(list(CHANGES)), max_size=3))
def test_changes_on_a_document_that_stands_in_no_row_are_plain_changes(names: list[str]) -> None:
    assume(all(not name.startswith(("plan", "lots", "names", "assigned")) for name in names))

    class Holder:
        free = JsonObject({"a": {"b": {}}, "l": [1, [2], 3], "s": ["a", "c", "b"]})

    for name in names[:1]:
        CHANGES[name](Holder)
        assert JsonObject(Holder.free.model_dump()) == Holder.free
