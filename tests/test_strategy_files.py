"""Strategies as files: read exactly and safely, written so that they read back, applied whole or not at all."""

import asyncio
import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput, ReadOnlyViolation
from core.database.models import Strategy
from core.trading import strategies
from core.trading.strategies import (
    StrategyDocument,
    StrategyFileError,
    StrategyModels,
    StrategyRules,
    VersionConflict,
    read_documents,
    write_documents,
)
from core.trading.strategies._diff import same
from tests.documents import ROOT, blocks


def one(values: str) -> Any:
    """What `x` is in a file where it is written so."""
    [document] = read_documents(f"strategies:\n- strategy_id: s\n  config:\n    x: {values}\n")
    return document.config["x"]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("20", 20),
        ("-0", 0),
        ("+7", 7),
        ("0.10", Decimal("0.10")),
        ("0.1234567890123456789012345678901", Decimal("0.1234567890123456789012345678901")),
        ("-1.5e-10", Decimal("-1.5E-10")),
        (".5", Decimal("0.5")),
        ("'0.10'", "0.10"),
        ("!!str 0.10", "0.10"),
        ("2026-11-30", "2026-11-30"),
        ("2026-11-30T10:00:00Z", "2026-11-30T10:00:00Z"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("", None),
        ("09:15", "09:15"),
        ("1.2.3", "1.2.3"),
        ("[a, {b: 1.0}]", ["a", {"b": Decimal("1.0")}]),
        ("|\n      two\n      lines\n", "two\nlines\n"),
        ('"\\u00e9\\n"', "é\n"),
    ],
)
def test_scalars_are_what_yaml_1_2_says_and_numbers_keep_every_digit(written: str, value: Any) -> None:
    found = one(written)
    assert type(found) is type(value) and str(found) == str(value)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED = [
    ("", "is empty"),
    ("# nothing\n", "no YAML|is empty"),
    ("a: 1", "has no list of strategies"),
    ("[]", "has no list of strategies"),
    (
        "strategies: [{strategy_id: s}]\nstrategie: 5",
        r"line 2, position 12: 'strategie' is no part of it, did you mean",
    ),
    ("strategies:", r"line 1, position 12: strategies: takes a list"),
    ("strategies: {a: 1}", r"line 1, position 13: strategies: takes a list"),
    ("strategies:\n- 5", r"line 2, position 3: strategies: takes a list of objects"),
    (
        "strategies:\n- strategy_id: s\n  parms: 1",
        r"strategy 's': line 3: parms: is no part of a strategy, did you mean 'par",
    ),
    ("strategies:\n- name: s", "line 2: strategy_id: is missing"),
    ("strategies:\n- strategy_id: 5", "strategy_id: must be text; put a number in quotes"),
    ("strategies:\n- {strategy_id: s, version: true}", "line 2: version: must be a whole number"),
    ("strategies:\n- {strategy_id: s, is_active: yes}", "line 2: is_active: must be true or false"),
    ("strategies:\n- {strategy_id: s, config: [1]}", "config: must be an object"),
    ("strategies:\n- {strategy_id: s, active_brokers: paper}", "active_brokers: must be a list of brokers' names"),
    (
        "strategies:\n- {strategy_id: s, name: 1}\n- {strategy_id: t, nam: 1}",
        r"(?s)line 2: name.*line 3: nam: is no part",
    ),
    (
        "strategies:\n- strategy_id: s\n  config: {a: 1,\n    a: 2}",
        r"line 4, position 5: the key 'a' stands there twice",
    ),
    ("strategies: []\n---\nstrategies: []", r"line 2, position 1: a second document"),
    ("strategies:\n- strategy_id: !!python/name:os.system s", r"line 2, position 16: a tag is not understood"),
    ("strategies:\n- strategy_id: !secret s", r"line 2, position 16: a tag"),
    ("strategies: !!set {a}", r"line 1, position 13: a tag"),
    ("strategies:\n- strategy_id: s\n  config: {t: !!timestamp 2026-11-30}", r"line 3, position 15: a tag"),
    ("strategies:\n- {strategy_id: s, config: {n: 1_000}}", "1_000 is no plain number"),
    ("strategies:\n- {strategy_id: s, config: {n: 010}}", "010 is no plain number"),
    ("strategies:\n- {strategy_id: s, config: {n: 0x1F}}", "0x1F is no plain number"),
    ("strategies:\n- {strategy_id: s, config: {n: .nan}}", "nan is no plain number"),
    ("strategies:\n- {strategy_id: s, config: {n: -.inf}}", "inf is no plain number"),
    ("strategies:\n- {strategy_id: s, config: {n: " + "9" * 1_001 + "}}", "more than 1,000 digits"),
    ("strategies:\n- {strategy_id: s, config: {1: a}}", "a key must be text"),
    ("strategies:\n- {strategy_id: s, config: {[a]: b}}", "a key must be plain text"),
    ("strategies:\n- {strategy_id: s, config: {<<: 5}}", "<< takes an object"),
    ("strategies: *a", "no such anchor"),
    ("strategies: &a [*a]", "an anchor holds itself"),
    ("strategies: [", "expected"),
    ("strategies: " + "[" * 5_000, "too deep"),
    ("\tstrategies: []", "line 1, position 1"),
    ("strategies: \x07", "a character that YAML does not allow"),
    ("%YAML 1.1\n---\nstrategies: []", "leave the %YAML line out"),
    (LAUGHS, "comes to more than 200,000 values"),
    ("#" * (4 * 2**20 + 1), "larger than 4 MB"),
    (b"strategies: [\xff]", "no UTF-8"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED, ids=[words[:30] for _, words in REFUSED])
def test_what_is_no_file_of_strategies_is_refused_at_its_place_and_quickly(text: str | bytes, words: str) -> None:
    started = time.process_time()
    with pytest.raises(StrategyFileError, match=words) as caught:
        read_documents(text, name="s.yaml")
    assert time.process_time() - started < 3.0
    assert str(caught.value).startswith("s.yaml")
    if "position" in str(caught.value):
        assert caught.value.line is not None and caught.value.position is not None


@given(
    st.text(max_size=60) | st.text(alphabet="strategies:[]{}&*!|>-'\"\n #%,?<a1.", max_size=60) | st.binary(max_size=30)
)
def test_any_text_is_read_or_refused_in_our_words(text: str | bytes) -> None:
    try:
        read_documents(text)
    except StrategyFileError as error:
        assert str(error).startswith("the file")


TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="\0") | st.sampled_from("\n\t :#-?*&!|>%@`'\"\x07\x85\u2028\ufeff"),
    max_size=12,
) | st.sampled_from(
    ["1_0", "0.10", "no", "null", "~", "<<", "2026-11-30", "=", "", " ", "---", "x" * 1_500, "1e5", "0o7", ".5", "1."]
)
NUMBER = st.integers() | st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**20), max_value=10**20)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=15,
)


@given(
    st.dictionaries(TEXT, JSON, max_size=4), st.none() | st.booleans(), st.lists(st.sampled_from(["no", "on", "paper"]))
)
@example({"x": "2026-11-30", "1": Decimal("1E+3"), "y" * 2_000: {"z" * 2_000: []}}, False, ["no"])
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back_the_same(
    config: dict[str, Any], is_active: bool | None, brokers: list[str]
) -> None:
    document = StrategyDocument(
        strategy_id="1.0",
        name="no: #1",
        config=config,
        parameters={"p": config},
        active_brokers=tuple(brokers),
        is_active=is_active,
        version=3,
    )
    text = write_documents([document, document])
    first, second = read_documents(text)
    assert first == second
    assert (first.strategy_id, first.name, first.is_active, first.version) == ("1.0", "no: #1", is_active, 3)
    assert list(first.active_brokers) == brokers
    assert same(first.config, config) and same(first.parameters, {"p": config})
    assert write_documents([first, second]) == text


def test_anchors_and_merges_serve_the_whole_file_and_what_is_said_wins() -> None:
    first, second = read_documents(
        "strategies:\n"
        "- strategy_id: a\n  config: &desk {universe: &u [A, B], hedge: true}\n"
        "- strategy_id: b\n  config: {<<: *desk, hedge: false, more: *u}\n"
    )
    assert first.config == {"universe": ["A", "B"], "hedge": True}
    assert second.config == {"hedge": False, "more": ["A", "B"], "universe": ["A", "B"]}


def test_the_file_in_the_guide_is_one() -> None:
    [block] = blocks(ROOT / "docs" / "guide.md", "yaml")
    [found] = read_documents(block.text)
    assert (found.strategy_id, found.parameters["risk"]) == ("carry", Decimal("0.015"))


# Applied


def document(strategy_id: str, **fields: Any) -> dict[str, Any]:
    return {"strategy_id": strategy_id, "active_brokers": ["paper"], **fields}


async def test_documents_are_applied_in_one_transaction_and_again_without_a_change(manager: DatabaseManager) -> None:
    given: list[Any] = [document("b", parameters={"n": Decimal("0.10")}), document("a", is_active=False)]
    async with manager.transaction() as session:
        report = await strategies.apply(session, given, changed_by="asha", note="first")
        assert [(one.strategy_id, one.outcome, one.version) for one in report.strategies] == [
            ("b", "created", 1),
            ("a", "created", 1),
        ]
        assert report.changed and not report.dry_run
        again = await strategies.apply(session, given)
        assert not again.changed and again.count("unchanged") == 2
    given[0] = StrategyDocument.of(document("b", parameters={"n": True}, name="B", version=1))
    async with manager.transaction() as session:
        report = await strategies.apply(session, given)
        assert [(change.where, change.before, change.after) for change in report.strategies[0].changes] == [
            ("name", "b", "B"),
            ("parameters.n", Decimal("0.10"), True),
        ]
        strategy = await session.get_one(Strategy, "b")
        assert (strategy.version, strategy.parameters["n"]) == (2, True)
        assert not (await strategies.apply(session, given)).changed  # its version has gone, and nothing is to be done
    async with manager.get_session() as session:
        documents = await strategies.documents_of(session)
        assert [(one.strategy_id, one.is_active) for one in documents] == [("a", False), ("b", None)]
        assert [one.version for one in await strategies.history(session, "b")] == [1, 2]
        for text in (
            write_documents(documents),
            write_documents(await strategies.documents_of(session, versions=True)),
        ):
            assert not (await strategies.apply(session, read_documents(text), prune=True)).changed


async def test_all_that_is_wrong_is_told_and_nothing_is_done(manager: DatabaseManager) -> None:
    class Model(BaseModel):
        n: int

    rules = StrategyRules({"m": StrategyModels(parameters=Model)}, brokers=["paper"])
    wrong: list[Any] = [
        document("a", strategy_type="m", parameters={"n": 1}),
        document("b", strategy_type="m", parameters={"n": "sec-ret"}, active_brokers=["papr"]),
        document("c", strategy_type="n"),
        document("d", strategy_type="m", parameters={"n": float("nan")}),
        document("e", version=2, strategy_type="m", parameters={"n": 1}),
    ]
    async with manager.transaction() as session:
        with pytest.raises(InvalidInput) as caught:
            await strategies.apply(session, wrong, rules=rules)
        lines = caught.value.lines
        assert [line.split(":")[0] for line in lines] == [f"strategy '{name}'" for name in "bcde"]
        assert "'papr' is not configured" in lines[0] and "parameters.n: Input should be a valid integer" in lines[0]
        assert "did you mean 'm'" in lines[1] or "there are m" in lines[1]
        assert "sec-ret" not in str(caught.value)
        with pytest.raises(InvalidInput, match="'a' is declared 2 times"):
            await strategies.apply(session, [wrong[0], wrong[0]])
        with pytest.raises(InvalidInput, match="pruning would disable every one"):
            await strategies.apply(session, [], prune=True)
        with pytest.raises(InvalidInput, match="strategy_idd: is no part of a strategy, did you mean") as unknown:
            await strategies.apply(session, [{"strategy_idd": "x"}])
        assert unknown.value.column is None, "it names a column, and no key of somebody's file"
        assert await strategies.listing(session) == []


async def test_a_dry_run_tells_the_same_writes_nothing_and_needs_no_right_to(manager: DatabaseManager) -> None:
    async with manager.transaction() as session:
        await strategies.apply(session, [document("a"), document("b")])
    given = [document("a", name="A"), document("c")]
    async with manager.get_session(read_only=True, consistent=True) as session:
        dry = await strategies.apply(session, given, prune=True, dry_run=True)
        assert await strategies.last_change(session) == 2
        with pytest.raises(ReadOnlyViolation):
            await strategies.apply(session, given)
    async with manager.transaction() as session:
        done = await strategies.apply(session, given, prune=True)
    assert dry.strategies == done.strategies and (dry.dry_run, done.dry_run) == (True, False)
    assert [(one.strategy_id, one.outcome, one.version, one.is_active) for one in done.strategies] == [
        ("a", "changed", 2, True),
        ("c", "created", 1, True),
        ("b", "disabled", 2, False),
    ]


async def test_a_version_in_a_document_refuses_a_lost_update_and_the_rest_with_it(manager: DatabaseManager) -> None:
    async with manager.transaction() as session:
        await strategies.apply(session, [document("a"), document("b")])
        await strategies.disable(session, "a", changed_by="ravi")
    async with manager.transaction() as session:
        with pytest.raises(VersionConflict, match=r"version 2 by 'ravi' at .*: is_active") as caught:
            await strategies.apply(session, [document("b", name="B"), document("a", name="A", version=1)])
        assert (caught.value.expected, caught.value.actual) == (1, 2)
    async with manager.get_session() as session:
        assert [one.name for one in await strategies.listing(session)] == ["a", "b"]


async def test_files_applied_at_once_leave_what_one_of_them_says(manager: DatabaseManager) -> None:
    async def applied(number: int) -> None:
        names = [f"s{n}" for n in range(5)]
        if number % 2:
            names.reverse()
        async with manager.transaction() as session:
            await strategies.apply(session, [document(name, parameters={"by": number}) for name in names], prune=True)

    await asyncio.gather(*map(applied, range(8)))
    async with manager.get_session() as session:
        found = await strategies.listing(session)
        assert len(found) == 5 and len({one.parameters["by"] for one in found}) == 1
        for one in found:
            assert [item.version for item in await strategies.history(session, one.strategy_id)] == list(range(1, 9))


@given(st.lists(st.dictionaries(st.text("ab", max_size=2), JSON, max_size=3), min_size=1, max_size=3))
@settings(max_examples=15, deadline=None)
def test_an_export_applied_to_the_stored_changes_nothing(configs: list[dict[str, Any]]) -> None:
    strategies_stored = [
        Strategy(
            strategy_id=f"s{n}", name="S", config=config, parameters={"p": config}, active_brokers=[], is_active=n > 0
        )
        for n, config in enumerate(configs)
    ]
    documents = [StrategyDocument.from_strategy(one) for one in strategies_stored]
    for before, after in zip(strategies_stored, read_documents(write_documents(documents)), strict=True):
        state = after.state(is_active=before.is_active)
        assert same(before.config.root, state["config"].root)
        assert same(before.parameters.root, state["parameters"].root)
        assert state["is_active"] == before.is_active
