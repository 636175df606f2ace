"""A user's name has one form, in Python, in the database's rules, and for names that were stored before there was one."""

import contextlib
import sys
import unicodedata
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy import select, text

from core.database import schema
from core.database.connection import DatabaseManager
from core.database.engine import DatabaseUrl, EngineOptions, build_engine
from core.database.errors import CheckViolation, InvalidInput, MigrationFailed, UniqueViolation
from core.database.models import User
from core.database.records import USERNAME_RULE, UserCreate, checked_username
from core.database.types import folded, folding_sql

SAME = [
    ("trader", "TRADER", "tRaDeR", "\uff34\uff32\uff21\uff24\uff25\uff32", "\U0001d4c9rader", "\u24e3rader"),
    ("strasse", "STRASSE", "Stra\u00dfe", "STRA\u1e9eE", "\uff33TRASSE"),
    ("fix", "\ufb01x", "\ufb01X", "FIX"),
    ("andr\u00e9", "ANDRE\u0301", "Andr\u00c9", "andre\u0301"),
    (
        "\u03c3\u03af\u03c3\u03c5\u03c6\u03bf\u03c3",
        "\u03a3\u038a\u03a3\u03a5\u03a6\u039f\u03a3",
        "\u03c3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2",
    ),
    ("k\u00e5re 1", "\u212a\u212bre \u2460"),
    ("i\u0307stanbul", "\u0130stanbul", "I\u0307STANBUL"),
    ("\u03b1\u03b9", "\u1fb3", "\u1fbc"),
]
DIFFERENT = [
    ("i", "\u0131"),
    ("\u0131", "\u0130"),
    ("i", "\u0130"),
    ("a", "\u0430"),
    ("o", "0"),
    ("resume", "r\u00e9sum\u00e9"),
    ("a b", "ab"),
]
HIDDEN = "\u00ad\u034f\u061c\u115f\u180e\u200b\u200d\u200e\u200f\u202a\u202e\u2060\u2066\u2069\u3164\ufe0f\ufeff\uffa0\ufff9\U000e0041"
CONTROLS = "\x00\x01\t\n\r\x1b\x7f\x85\x9f\u2028\u2029"


def test_what_is_one_name_has_one_form_and_what_is_not_has_two():
    for same in SAME:
        assert {folded(each) for each in same} == {same[0]} == {checked_username(each) for each in same}
    for one, other in DIFFERENT:
        assert folded(one) != folded(other)


@given(st.text(max_size=20))
def test_the_form_is_fixed_and_does_not_depend_on_case_and_composition(value: str):
    form = folded(value)
    assert folded(form) == form == unicodedata.normalize("NFKC", form)
    for changed in (value.casefold(), *(unicodedata.normalize(kind, value) for kind in ("NFC", "NFD", "NFKC", "NFKD"))):
        assert folded(changed) == form


async def test_what_is_far_too_long_for_a_name_costs_no_time(manager: DatabaseManager):
    endless = "a" + "\u0301\u0316" * 500_000  # minutes, were it normalised
    assert folded(endless) == endless
    for make in (checked_username, lambda name: User(username=name)):
        with contextlib.suppress(InvalidInput):
            make(endless)
    async with manager.get_session() as session:
        assert (await session.scalars(select(User).where(User.username == endless))).all() == []


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20))
def test_a_name_that_passes_stays_what_it_is(value: str):
    try:
        name = checked_username(value)
    except InvalidInput:
        return
    assert checked_username(name) == name == UserCreate(username=value, hashed_password="hash").username
    assert name.isprintable() or not name.isascii()
    assert not set(name) & set(HIDDEN + CONTROLS)


@pytest.mark.parametrize("where", ["{}trader", "tra{}der", "trader{}"])
def test_what_cannot_be_seen_or_turns_the_line_round_is_in_no_name(where: str):
    for character in HIDDEN + CONTROLS:
        with pytest.raises(InvalidInput) as caught:
            checked_username(where.format(character))
        assert character not in str(caught.value)
        with pytest.raises(ValidationError):
            UserCreate(username=where.format(character), hashed_password="hash")


async def test_the_server_brings_names_to_the_same_form(manager: DatabaseManager):
    """Every letter that changes, some that do not, and words; of the letters that this Python knows."""
    known = [
        chr(code)
        for code in (*range(1, 0xD800), *range(0xE000, sys.maxunicode + 1))
        if unicodedata.category(chr(code)) not in ("Cn", "Co")
    ]
    letters = [each for place, each in enumerate(known) if folded(each) != each or place % 50 == 0]
    words = [word for same in SAME for word in same] + [one for pair in DIFFERENT for one in pair]
    words += ["".join(letters[place : place + 3]) for place in range(0, len(letters) - 3, 7)]
    statement = text(
        f"SELECT {folding_sql('w')} FROM unnest(CAST(:words AS text[])) WITH ORDINALITY t (w, n) ORDER BY n"
    )
    async with manager.get_session() as session:
        await session.execute(text("SET LOCAL statement_timeout = '60 s'"))
        found = list(await session.scalars(statement, {"words": letters}))
        assert [(one, form, folded(one)) for one, form in zip(letters, found, strict=True) if form != folded(one)] == []
        found = list(await session.scalars(statement, {"words": words}))
    wrong = [(one, form) for one, form in zip(words, found, strict=True) if form != folded(one)]
    assert wrong == []


async def test_a_name_is_taken_and_found_however_it_is_typed(manager: DatabaseManager):
    async with manager.transaction() as session:
        session.add_all([User(username=same[-1], hashed_password="hash") for same in SAME])
    for same in SAME:
        async with manager.get_session() as session:
            for typed in same:
                user = (await session.scalars(select(User).where(User.username == typed))).one()
                assert user.username == same[0]
                assert (await session.scalars(select(User).where(User.username.in_([typed, "x"])))).one() is user
                with pytest.raises(UniqueViolation) as refused:
                    async with session.begin_nested():
                        session.add(User(username=typed, hashed_password="hash"))
                        await session.flush()
                assert refused.value.constraint == "uq_users_username"
            with pytest.raises(UniqueViolation):
                await session.execute(sa.insert(User).values(username=same[-1], hashed_password="hash"))


async def test_sql_by_hand_is_held_to_the_form(manager: DatabaseManager):
    insert = text("INSERT INTO users (username, hashed_password) VALUES (:name, 'hash')")
    wrong = ["Trader", "\uff54rader", "\ufb01x", "andre\u0301", "\u212bre", " trader", "trader ", "", "x" * 151]
    wrong += [f"tra{character}der" for character in HIDDEN + CONTROLS if character != "\0"]
    async with manager.get_session() as session:
        for name in wrong:
            with pytest.raises(CheckViolation) as refused:
                async with session.begin_nested():
                    await session.execute(insert, {"name": name})
            assert refused.value.constraint in ("ck_users_username", "ck_users_username_normalized"), name
        for same in SAME:
            await session.execute(insert, {"name": same[0]})


def test_the_rule_is_for_a_name_in_its_form():
    with pytest.raises(InvalidInput):
        USERNAME_RULE("Trader")
    assert USERNAME_RULE(folded("Trader")) == "trader"


async def names_at_0006(url: str, *names: str) -> Any:
    engine = build_engine(DatabaseUrl.parse(url), EngineOptions())
    await schema.upgrade(engine, "0006")
    async with engine.begin() as connection:
        for name in names:
            await connection.execute(
                text("INSERT INTO users (username, hashed_password) VALUES (:name, 'hash')"), {"name": name}
            )
    return engine


async def stored(engine: Any) -> list[str]:
    async with engine.connect() as connection:
        return list((await connection.execute(text("SELECT username FROM users ORDER BY id"))).scalars())


async def test_stored_names_are_brought_to_the_form_by_the_migration(empty_database: str):
    names = ["plain", "Trader", "CAPS 1", *(same[-1] for same in SAME[1:]), "\u0130zmir", "x" * 150]
    engine = await names_at_0006(empty_database, *names)
    try:
        await schema.upgrade(engine, "head")
        assert await stored(engine) == [folded(name) for name in names]
        await schema.downgrade(engine, "0006")
        assert await stored(engine) == [folded(name) for name in names]
        await schema.upgrade(engine, "head")
    finally:
        await engine.dispose()


@pytest.mark.parametrize("twins", [("stra\u00dfe", "strasse"), ("\ufb01x", "FIX"), ("andr\u00e9", "ANDRE\u0301")])
async def test_two_stored_users_who_become_one_stop_the_migration_with_what_to_do(
    empty_database: str, twins: tuple[str, str]
):
    engine = await names_at_0006(empty_database, "other", *twins)
    try:
        with pytest.raises(MigrationFailed) as caught:
            await schema.upgrade(engine, "head")
        said = str(caught.value)
        assert "users 2 and 3 (by their id) have one name" in said and "rename all but one of them" in said
        assert await stored(engine) == ["other", *twins]
        async with engine.begin() as connection:
            await connection.execute(text("UPDATE users SET username = 'renamed' WHERE id = 3"))
        await schema.upgrade(engine, "head")
        assert await stored(engine) == ["other", folded(twins[0]), "renamed"]
    finally:
        await engine.dispose()
