"""`panda strategy`: what it prints, what it returns, and that a file is applied whole or not at all."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import pytest

from tests.test_cli import answer, panda, process

pytestmark = pytest.mark.usefixtures("clean")

FILE = """\
# The desk's strategies.
strategies:
  - strategy_id: momentum
    name: Momentum, slow
    strategy_type: momentum
    active_brokers: [paper, zerodha]
    config: &desk
      universe: [NIFTY 50, NIFTY BANK]
    parameters:
      lookback: 20
      risk: 0.01500000000000000000001
      since: 2026-11-30
  - strategy_id: carry
    active_brokers: [paper]
    config:
      <<: *desk
      universe: [GOLD]
"""


def run(url: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return panda("strategy", *arguments, url=url, **environment)


def text_of(result: subprocess.CompletedProcess[str], code: int = 0) -> str:
    assert result.returncode == code, result.stdout + result.stderr
    assert max(map(len, result.stdout.splitlines()), default=0) <= 80
    return result.stdout


def applied(url: str, text: str = FILE, *options: str) -> dict:
    Path("strategies.yaml").write_text(text)
    result = run(url, "apply", "-f", "strategies.yaml", "--json", *options)
    assert result.returncode == 0, result.stdout
    return answer(result)


def test_a_file_is_applied_told_and_applied_again_without_a_change(database_url_sync: str) -> None:
    url = database_url_sync
    Path("strategies.yaml").write_text(FILE)
    dry = text_of(run(url, "apply", "-f", "strategies.yaml", "--dry-run"))
    assert dry.splitlines()[-1] == "2 created, 0 changed, 0 unchanged, 0 disabled; nothing was written"
    assert answer(run(url, "list", "--json"))["strategies"] == []
    done = text_of(run(url, "apply", "-f", "strategies.yaml", "--by", "asha", "--note", "first"))
    assert done.splitlines() == [
        "+ momentum: created, version 1",
        "+ carry: created, version 1",
        "2 created, 0 changed, 0 unchanged, 0 disabled",
    ]
    assert applied(url)["unchanged"] == 2
    [carry, momentum] = sorted(answer(run(url, "list", "--json"))["strategies"], key=lambda one: one["strategy_id"])
    assert momentum["parameters"] == {"lookback": 20, "risk": "0.01500000000000000000001", "since": "2026-11-30"}
    assert (carry["name"], carry["config"]) == ("carry", {"universe": ["GOLD"]})
    changed = text_of(_piped(url, FILE.replace("20\n", "30\n")))
    assert changed.splitlines() == [
        "~ momentum: changed, version 2",
        "    ~ parameters.lookback: 20 -> 30",
        "0 created, 1 changed, 1 unchanged, 0 disabled",
    ]
    [first, second] = answer(run(url, "history", "momentum", "--json"))["versions"]
    assert (first["changed_by"], first["note"], first["changed"]) == ("asha", "first", [])
    assert second["changed"] == ["parameters.lookback"] and second["changed_by"]  # the user of this system


def _piped(url: str, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    before, sys.stdin = sys.stdin, io.StringIO(text)
    try:
        return run(url, "apply", "-f", "-", *options)
    finally:
        sys.stdin = before


def test_a_file_that_is_wrong_is_refused_whole_with_its_lines(database_url_sync: str) -> None:
    url = database_url_sync
    wrong = FILE.replace("carry\n", "carry\n    parametres: {}\n").replace("zerodha]", "zerodah]")
    refused = _piped(url, wrong)
    assert (refused.returncode, refused.stdout) == (6, "")
    assert "line 14: parametres: is no part of a strategy, did you mean 'parameters'?" in refused.stderr
    unknown = _piped(url, FILE.replace("zerodha]", "zerodah]").replace("[GOLD]", "[GOLD]\n    name: ' '"))
    assert unknown.returncode == 6
    assert "strategy 'momentum': line 6: active_brokers[1]: 'zerodah' is not configured, did you" in unknown.stderr
    assert "strategy 'carry': line 18: name: must not be empty" in unknown.stderr
    assert _piped(url, FILE.replace("zerodha]", "zerodah]"), "--quiet").returncode == 6
    assert answer(run(url, "list", "--json"))["strategies"] == []
    assert _piped(url, "strategies: [").stderr.startswith("error: standard input, line 1, position 14: ")
    assert "prune" not in _piped(url, "strategies: []").stderr
    assert _piped(url, "strategies: []", "--prune").returncode == 6
    assert run(url, "apply", "-f", "none.yaml").returncode == 6


def test_pruning_disables_and_what_was_stopped_stays_so(database_url_sync: str) -> None:
    url = database_url_sync
    applied(url)
    stopped = text_of(run(url, "disable", "momentum", "carry", "--note", "halt", "--by", "risk desk"))
    assert stopped.splitlines() == ["momentum: disabled, version 2", "carry: disabled, version 2"]
    again = run(url, "apply", "-f", "strategies.yaml")
    assert text_of(again) == "0 created, 0 changed, 2 unchanged, 0 disabled\n"
    assert again.stderr == "disabled, and left so: momentum, carry\n"
    assert text_of(run(url, "enable", "momentum")) == "momentum: active, version 3\n"
    assert text_of(run(url, "enable", "momentum")) == "momentum: active already\n"
    carry = "strategies: [{strategy_id: carry, active_brokers: [paper], is_active: true, config: {universe: [GOLD]}}]"
    unasked = _piped(url, carry, "--prune")
    assert (unasked.returncode, unasked.stdout) == (2, "")
    assert "--prune would stop momentum: it asks first, and nobody is there to answer" in unasked.stderr
    report = applied(url, carry, "--prune", "--yes")
    assert [(one["strategy_id"], one["outcome"], one["version"]) for one in report["strategies"]] == [
        ("carry", "changed", 3),
        ("momentum", "disabled", 4),
    ]
    assert report["strategies"][1]["changes"] == [{"path": ["is_active"], "before": True, "after": False}]
    missing = run(url, "disable", "carry", "unknown")
    assert (missing.returncode, "there is no strategy 'unknown'" in missing.stderr) == (6, True)
    assert [one[:2] for one in _listed(url)] == [["carry", "active"], ["momentum", "momentum"]]
    assert text_of(run(url, "disable", "--all", "--broker", "paper")) == "carry: disabled, version 4\n"
    assert run(url, "disable", "--all").stderr == "none of them is active\n"
    for unclear in ((), ("carry", "--all"), ("carry", "--broker", "paper"), ("--broker", "paper")):
        refused = run(url, "disable", *unclear)
        assert (refused.returncode, "say --all" in refused.stderr) == (2, True)


def _listed(url: str, *options: str) -> list[list[str]]:
    return [line.split() for line in text_of(run(url, "list", *options)).splitlines()[1:]]


def test_strategies_are_listed_shown_compared_and_rolled_back(database_url_sync: str) -> None:
    url = database_url_sync
    applied(url)
    applied(
        url, FILE.replace("lookback: 20", "lookback: 30").replace("NIFTY 50, ", ""), "--note", "slower", "--by", "asha"
    )
    assert [line[:4] for line in _listed(url)] == [
        ["carry", "active", "1", _listed(url)[0][3]],
        ["momentum", "momentum", "active", "2"],
    ]
    assert [line[0] for line in _listed(url, "--broker", "zerodha", "--active")] == ["momentum"]
    shown = text_of(run(url, "show", "momentum")).splitlines()
    assert shown[0] == "momentum: active, version 2"
    assert shown[1].endswith("(Asia/Kolkata) by asha") and shown[2] == "note: slower"
    assert "      lookback: 30" in shown and "        - NIFTY BANK" in shown
    past = text_of(run(url, "show", "momentum", "--version", "1"))
    assert past.startswith("momentum: active, version 1 of 2\n") and "lookback: 20" in past
    assert run(url, "show", "momentum", "--version", "7").returncode == 6
    assert run(url, "show", "unknown").returncode == 6
    told = text_of(run(url, "history", "momentum")).splitlines()
    assert [line.split()[0] for line in told] == ["1", "defined", "2", "config.universe[0],"]
    assert told[2].endswith("  asha  slower")
    assert text_of(run(url, "diff", "momentum")).splitlines() == [
        "momentum: version 1 to 2, 2 changes",
        '  - config.universe[0]: "NIFTY 50"',
        "  ~ parameters.lookback: 20 -> 30",
    ]
    assert answer(run(url, "diff", "momentum", "2", "1", "--json"))["changes"][0] == {
        "path": ["config", "universe", 0],
        "after": "NIFTY 50",
    }
    lost = run(url, "rollback", "momentum", "1", "--at", "1")
    assert lost.returncode == 6 and "is at version 2, not 1: version 2 by 'asha' at " in lost.stderr
    assert text_of(run(url, "rollback", "momentum", "1")) == "momentum: version 3 is what version 1 was\n"
    assert text_of(run(url, "rollback", "momentum", "1")) == "momentum: is so already\n"
    assert run(url, "rollback", "momentum", "9").returncode == 6
    assert answer(run(url, "history", "momentum", "--json"))["versions"][2]["note"] == "back to version 1"


def test_what_is_exported_applies_without_a_change_and_with_versions_only_to_these(database_url_sync: str) -> None:
    url = database_url_sync
    applied(url)
    assert run(url, "disable", "carry").returncode == 0
    out = text_of(run(url, "export"))
    assert "risk: 0.01500000000000000000001" in out and "is_active: false" in out and "version" not in out
    assert text_of(run(url, "export", "-f", "all.yaml")) == "all.yaml: 2 strategies\n"
    assert Path("all.yaml").read_text() == out
    assert run(url, "export", "-f", "all.yaml").returncode == 6
    assert text_of(run(url, "apply", "-f", "all.yaml")).startswith("0 created, 0 changed, 2 unchanged")
    assert text_of(run(url, "export", "carry", "--versions", "-f", "all.yaml", "--force")) == "all.yaml: 1 strategy\n"
    assert run(url, "enable", "carry").returncode == 0
    refused = run(url, "apply", "-f", "all.yaml")
    assert (refused.returncode, "is at version 3, not 2: version 3 by " in refused.stderr) == (6, True)
    assert run(url, "export", "unknown").returncode == 6
    assert [one["strategy_id"] for one in answer(run(url, "export", "--json"))["strategies"]] == ["carry", "momentum"]


RULES = """
from decimal import Decimal
from pydantic import BaseModel
from core.trading.strategies import StrategyRules

class Momentum(BaseModel):
    lookback: int
    risk: Decimal

rules = StrategyRules()
rules.register("momentum", parameters=Momentum)
other = 5
"""


def test_the_applications_rules_hold_for_every_command_that_writes(
    database_url_sync: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = database_url_sync
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "desk_rules.py").write_text(RULES)
    text = "strategies: [{strategy_id: m, strategy_type: momentum, parameters: {lookback: many, risk: 0.50}}]"
    for options, names in (
        (["--rules", "desk_rules:rules"], {}),
        ([], {"TRADING__STRATEGY_RULES": "desk_rules:rules"}),
    ):
        for name, value in names.items():
            monkeypatch.setenv(name, value)
        refused = _piped(url, text, *options)
        assert refused.returncode == 6
        assert "strategy 'm': line 1: parameters.lookback: Input should be a valid integer" in refused.stderr
        assert "many" not in refused.stderr
    assert text_of(_piped(url, text.replace("many", "5"))).startswith("+ m: created")
    assert 'risk: "0.50"' in text_of(run(url, "export"))
    assert text_of(_piped(url, text.replace("many", "5"))).startswith("0 created, 0 changed, 1 unchanged")
    monkeypatch.delenv("TRADING__STRATEGY_RULES")
    for place, words in (
        ("desk_rules", "no place"),
        ("desk_rules:none", "cannot be loaded"),
        ("desk_rules:other", "int"),
    ):
        wrong = run(url, "enable", "m", "--rules", place)
        assert (wrong.returncode, words in wrong.stderr) == (2, True), wrong.stderr


def test_a_stop_tries_again_while_another_writer_holds_the_lock(database_url_sync: str) -> None:
    url = database_url_sync
    applied(url)
    holding, letting_go = threading.Event(), threading.Event()
    waiters = (
        "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
        " WHERE d.datname = current_database() AND locktype = 'advisory' AND NOT granted"
    )

    async def hold() -> None:
        """Until somebody has waited in vain after `letting_go`."""
        connection = await asyncpg.connect(url)
        async with asyncio.timeout(60), connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('alpha-panda: strategies', 0))")
            holding.set()
            while not (letting_go.is_set() and await connection.fetchval(waiters)):
                await asyncio.sleep(0.005)
            while await connection.fetchval(waiters):
                await asyncio.sleep(0.005)
        await connection.close()

    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(asyncio.run, hold())
        assert holding.wait(60)
        limits = {"DATABASE__TIMEOUTS__LOCK": "0.1"}
        assert run(url, "enable", "carry", **limits).returncode == 5
        letting_go.set()
        stopped = run(url, "disable", "carry", **limits)
        held.result()
    assert text_of(stopped) == "carry: disabled, version 2\n"
    assert "another writer of strategies holds the lock; trying again" in stopped.stderr


def test_the_feed_prints_a_line_a_change_from_any_number_on(database_url_sync: str) -> None:
    url = database_url_sync
    applied(url, FILE, "--by", "asha")
    assert run(url, "disable", "carry", "--note", "halt\u202e", "--by", "ravi").returncode == 0
    lines = text_of(run(url, "watch", "--after", "0", "--count", "3")).splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert lines[0].endswith("  momentum v1  asha: defined") and lines[2].endswith(
        "  carry v2  ravi: disabled  halt\\u202e"
    )
    told = run(url, "watch", "--after", "2", "--count", "1", "--json")
    assert answer(told)["fields"] == ["is_active"] and told.stdout.count("\n") == 1
    assert run(url, "watch", "--after", "99").returncode == 1


def test_ctrl_c_ends_the_feed_with_130(database_url_sync: str) -> None:
    url = database_url_sync
    applied(url)
    command = [sys.executable, "-m", "core.cli.main", "strategy", "watch", "--after", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "DATABASE__POSTGRES_URL": url}
    ) as watching:
        assert watching.stdout is not None
        assert "momentum v1" in watching.stdout.readline()  # flushed at once, through a pipe too
        watching.send_signal(signal.SIGINT)
        assert watching.wait(60) == 130


def test_json_is_read_as_yaml_is(database_url_sync: str) -> None:
    url = database_url_sync
    text = json.dumps({"strategies": [{"strategy_id": "j", "parameters": {"risk": 0.5}}]}, indent=2)
    assert text_of(_piped(url, text)).startswith("+ j: created")
    help_text = process("strategy", "--help").stdout
    assert max(map(len, help_text.splitlines())) <= 80
