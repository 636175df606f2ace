"""What the documents say is so: their code runs, their commands work, their links lead somewhere.

Python blocks run in order, in one namespace per document and on a fresh database at head, with `manager` connected and
DATABASE__POSTGRES_URL set, and that database in the place of `"embedded:"`; a `text` block directly below one is what it prints (`...` stands for anything). Commands of
`console` blocks that begin with `$ panda` run in order in an empty folder; they end with 0, or with what `$ echo $?` shows
below, and what they print has the lines that are shown, by their first word. SQL runs in a transaction that is rolled
back. A block below `<!-- file: test_x.py -->` is a test file of an application, and passes.
A block below `<!-- not run: reason -->` is left out.
"""

import asyncio
import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from unittest import mock

import asyncpg
import pytest

from core.cli.main import main
from core.config.settings import Settings, get_settings
from core.database.connection import DatabaseManager
from tests.documents import ROOT, anchors, blocks, commands, is_like, labels, links, run_python

RUN = [ROOT / "README.md", ROOT / "docs" / "guide.md", ROOT / "docs" / "operations.md"]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
pytestmark = pytest.mark.usefixtures("clean")
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.name)
async def test_the_code_of_a_document_runs(path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE__POSTGRES_URL", database_url)
    given = blocks(path, "python")
    assert given or blocks(path, "console"), "a document without code is not listed here"
    async with DatabaseManager(database_url) as manager:
        names = {"manager": manager, "__name__": path.stem}
        await run_python(given, names, instead={'"embedded:"': repr(str(database_url))})


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.name)
def test_the_commands_of_a_document_work(path: Path, database_url_sync: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE__POSTGRES_URL", database_url_sync)
    for command in commands(path):
        words = shlex.split(command.line)
        settings = dict(word.split("=", 1) for word in _leading_settings(words))
        words = words[len(settings) :]
        if not words or words[0] != "panda":
            continue
        code, printed = _panda(words[1:], settings)
        assert code == command.code, f"{command.place}: {command.line} ended with {code}\n{printed}"
        missing = labels(command.shown) - labels(printed)
        assert not missing, f"{command.place}: {command.line} does not print {sorted(missing)} but\n{printed}"


def _leading_settings(words: list[str]) -> list[str]:
    count = next((n for n, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), len(words))
    return words[:count]


def _panda(arguments: list[str], settings: dict[str, str]) -> tuple[int, str]:
    printed = io.StringIO()
    get_settings.cache_clear()
    with (
        mock.patch.dict(os.environ, settings),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        code = main(arguments)
    return code, printed.getvalue()


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.name)
def test_the_test_files_of_a_document_pass(path: Path, tmp_path: Path) -> None:
    files = [block for block in blocks(path, "python") if block.file is not None]
    if not files:
        return
    for block in files:
        (tmp_path / str(block.file)).write_text(block.text)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    result = subprocess.run([sys.executable, "-m", "pytest", "-q"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.name)
async def test_the_sql_of_a_document_runs(path: Path, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("BEGIN")
        for block in blocks(path, "sql"):
            if block.excuse is None:
                try:
                    await connection.execute(block.text)
                except asyncpg.PostgresError as error:
                    pytest.fail(f"{block.place}: {error}")
    finally:
        await connection.close()


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_the_toml_and_python_of_a_document_can_be_read(path: Path) -> None:
    for block in blocks(path, "toml"):
        tomllib.loads(block.text)
    if "reference" not in path.parts:  # signatures are no statements
        for block in blocks(path, "python"):
            compile(block.text, block.place, "exec", flags=0x2000)  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(path: Path) -> None:
    for link in links(path):
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        assert target.exists(), f"{path.name} links to {link}, which is not there"
        assert target.is_relative_to(ROOT), f"{path.name} links out of the project: {link}"
        if anchor:
            assert anchor in anchors(target), f"{path.name} links to {link}; there is no such heading"


def test_every_reason_not_to_run_a_block_is_one() -> None:
    for path in RUN:
        excused = [block for kind in ("python", "console", "sql") for block in blocks(path, kind) if block.excuse]
        assert all(len((block.excuse or "").split()) >= 3 for block in excused)
        assert path.read_text().count("<!-- not run") == len(excused), f"a comment in {path.name} excuses nothing"


def test_the_pages_of_the_reference_are_fresh_and_a_stale_one_is_found(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "docs" / "reference.py"), "--check"]
    code = (
        "import runpy, sys, pathlib\n"
        "names = runpy.run_path(sys.argv[1])\n"
        "text = names['pages']()['core.probes.md']\n"
        "assert 'def begin_shutdown() -> None' in text and 'Be not ready from now on' in text, text\n"
        "main = names['main']\n"
        "main.__globals__['PAGES'] = pathlib.Path(sys.argv[3])\n"
        "sys.argv[1:] = sys.argv[2:]\n"
        "sys.exit(main())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *script[1:], str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1, result.stderr
    assert "docs/reference/core.probes.md is stale" in result.stderr


def test_every_setting_stands_in_the_table_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| `?([^|`]+?)`?(?: on the command line)? \|", text, re.MULTILINE))
    monkeypatch.delenv("DATABASE__MONITORING__SLOW_QUERY")
    defaults = {setting.name: setting.value for setting in Settings(_env_file=None).in_force()}
    defaults["DATABASE__POSTGRES_URL"] = "embedded:"
    assert rows == defaults


def test_stated_output_is_held_to() -> None:
    assert is_like("a\nb 12 c\n", "a\nb ... c")
    assert not is_like("a\nb", "a\nc")


async def test_a_block_that_fails_shows_the_documents_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.md"
    path.write_text("# Title\n\n```python\nfine = await now()\n\nraise ValueError(fine)\n```\n")

    async def now() -> int:
        await asyncio.sleep(0)
        return 7

    with pytest.raises(ValueError, match="7") as caught:
        await run_python(blocks(path, "python"), {"now": now})
    assert caught.traceback[-1].lineno == 5  # counted from 0


def test_anchors_are_those_of_headings(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(
        "# One `two`: three\n\n```\n# not one\n```\n\n## Same\n\n## Same\n\n[a](#x) `[b](#y)` [c](http://z)\n"
    )
    assert anchors(path) == {"one-two-three", "same", "same-1"}
    assert links(path) == ["#x"]
