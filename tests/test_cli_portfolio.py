"""`panda portfolio`: what it prints, what it returns, and that nothing is lost or half done."""

import io
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.cli._failure import CommandError
from core.cli._portfolio_curve import _falls, _turning
from core.cli._portfolio_print import amount, percent
from core.cli._portfolio_read import ZONE, instant
from core.trading.portfolios import EquityPoint, drawdown
from core.trading.portfolios._calendar import DEFAULT_ZONE
from tests.test_cli import answer, panda

pytestmark = pytest.mark.usefixtures("clean")

KOLKATA = ZoneInfo("Asia/Kolkata")
POSITIONS = """[
  {"instrument_token": 408065, "quantity": "10", "average_price": 1500.2500000001, "last_price": 1512.5,
   "pnl": "122.5"},
  {"instrument_token": 933, "quantity": -65, "average_price": 110, "last_price": "98.4", "pnl": 754,
   "market_value": 754}
]"""


def run(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return panda("portfolio", *arguments, url=url)


def made(url: str, *ids: str, **options: str) -> None:
    given = {"broker": "paper"} | options
    for portfolio in ids:
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        assert run(url, "create", portfolio, *words).returncode == 0


def curve(url: str, portfolio: str, *worths: int | str, first: str = "2026-03-02T15:30+05:30") -> None:
    """A snapshot a day."""
    start = datetime.fromisoformat(first)
    rows = [
        {
            "snapshot_time": (start + timedelta(days=n)).isoformat(),
            "cash": str(worth),
            "realized_pnl": 0,
            "unrealized_pnl": 0,
            "equity": str(worth),
        }
        for n, worth in enumerate(worths)
    ]
    Path("curve.json").write_text(json.dumps(rows))
    result = run(url, "record", portfolio, "curve.json")
    assert result.returncode == 0, result.stderr


def lines(result: subprocess.CompletedProcess[str]) -> list[list[str]]:
    assert (result.returncode, result.stderr) == (0, "")
    assert max(map(len, result.stdout.splitlines())) <= 80
    return [line.split() for line in result.stdout.splitlines()]


def test_a_portfolio_is_created_once_and_listed_with_how_it_stands(database_url_sync: str) -> None:
    url = database_url_sync
    made(url, "p1", name="Options, paper")
    made(url, "p2", broker="kite", currency="USD")
    again = run(url, "create", "p1", "--broker", "kite")
    assert (again.returncode, "there is a portfolio 'p1' already" in again.stderr) == (6, True)
    assert run(url, "create", "p3", "--broker", "Kite").returncode == 6
    assert run(url, "create", "p3", "--broker", "kite", "--strategy", "none").returncode == 6
    curve(url, "p1", "1234567.125")
    assert lines(run(url, "list"))[1:] == [
        ["p1", "paper", "2026-03-02", "15:30", "1,234,567.125", "INR"],
        ["p2", "kite", "USD"],
    ]
    listed = answer(run(url, "list", "--json"))["portfolios"]
    assert [(item["name"], item["latest"] and item["latest"]["equity"]) for item in listed] == [
        ("Options, paper", "1234567.1250000000"),
        ("p2", None),
    ]
    assert [item[0] for item in lines(run(url, "list", "--broker", "kite"))[1:]] == ["p2"]
    assert "no portfolios of these" in run(url, "list", "--broker", "none").stderr


def test_a_snapshot_is_recorded_exactly_once(database_url_sync: str) -> None:
    url = database_url_sync
    made(url, "p1")
    given = ["p1", "--cash", "10,000.0000000001", "--unrealized", "-48.75", "--equity", "12000"]
    at = ["--time", "2026-11-20T15:30"]
    assert run(url, "record", *given, *at).stdout.endswith("15:30:00 (Asia/Kolkata), 12,000.00: recorded\n")
    assert "was recorded before, the same" in run(url, "record", *given, *at).stdout
    other = run(url, "record", "p1", "--cash", "1", "--equity", "12000", *at)
    assert (other.returncode, "differ in cash, unrealized_pnl, total_pnl" in other.stderr) == (6, True)
    [one] = answer(run(url, "latest", "--json"))["snapshots"]
    assert (one["cash"], one["total_pnl"], one["snapshot_time"]) == (
        "10000.0000000001",
        "-48.7500000000",
        "2026-11-20T10:00:00+00:00",
    )
    before = datetime.now(UTC)
    assert run(url, "record", *given).returncode == 0
    newest = datetime.fromisoformat(answer(run(url, "latest", "--json"))["snapshots"][0]["snapshot_time"])
    assert before <= newest <= datetime.now(UTC)


def test_positions_are_recorded_from_json_without_losing_a_digit(
    database_url_sync: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = database_url_sync
    made(url, "p1")
    (tmp_path / "positions.json").write_text(POSITIONS)
    options = ["--cash", "100", "--positions", "positions.json", "--time", "2026-11-20"]
    assert "15,979.00: recorded" in run(url, "record", "p1", *options).stdout
    first = answer(run(url, "latest", "p1", "--json"))["snapshots"][0]["positions"][0]
    assert (first["average_price"], first["last_price"]) == ("1500.2500000001", "1512.5")
    assert ["933", "-65", "110", "98.4", "754.00"] in lines(run(url, "latest", "p1"))
    wrong = run(url, "record", "p1", *options, "--equity", "5")
    assert (wrong.returncode, "come to 15979" in wrong.stderr) == (6, True)
    whole = json.dumps({"snapshot_time": "2026-11-21T00:00Z", "cash": 1, "realized_pnl": 0, "unrealized_pnl": 0})
    document = whole[:-1] + f', "positions": {POSITIONS}}}'
    monkeypatch.setattr("sys.stdin", io.StringIO(document))
    assert answer(run(url, "record", "p1", "-", "--json"))["recorded"] == 1


def test_more_than_ten_decimals_are_refused_or_rounded_and_told(database_url_sync: str) -> None:
    url = database_url_sync
    made(url, "p1")
    given = ["p1", "--cash", "0.12345678905", "--equity", "3", "--time", "2026-11-20"]
    refused = run(url, "record", *given)
    assert (refused.returncode, "cash: 0.12345678905 has more than 10 decimals" in refused.stderr) == (6, True)
    assert "--round" in refused.stderr and run(url, "latest").returncode == 1
    assert "  rounded cash: 0.12345678905 -> 0.1234567890\n" in run(url, "record", *given, "--round").stdout
    assert run(url, "record", "p1", "--cash", "1.50000000000", "--equity", "3").returncode == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "neither a snapshot nor a list"),
        ("[1]", "neither a snapshot nor a list"),
        ("{}", "has no snapshot_time"),
        ("{x", "is no JSON"),
        ('{"snapshot_time": "2026-01-01", "cash": NaN}', "NaN is no amount"),
        ('{"snapshot_time": "2026-01-01", "cash": "ten"}', "cash: 'ten' is no number"),
        ('{"snapshot_time": "2026-01-01", "cash": 1, "equity": 2}', "realized_pnl: "),
        ('{"snapshot_time": "2026-01-01", "portfolio_id": "p2"}', "portfolio_id is 'p2' there"),
        ('{"snapshot_time": "2026-01-01", "positions": [3]}', "positions"),
        ("[" * 100_000, "too deep"),
    ],
)
def test_json_that_is_no_snapshot_is_refused_and_nothing_is_stored(
    database_url_sync: str, tmp_path: Path, content: str, words: str
) -> None:
    made(database_url_sync, "p1")
    good = '{"snapshot_time": "2026-01-01", "cash": 1, "realized_pnl": 0, "unrealized_pnl": 0, "equity": 1}'
    (tmp_path / "s.json").write_text(f"[{good}, {content}]" if content.startswith('{"') else content)
    result = run(database_url_sync, "record", "p1", "s.json")
    assert (result.returncode, result.stdout) == (6, "")
    assert words in result.stderr
    assert run(database_url_sync, "latest").returncode == 1


def test_the_equity_curve_is_printed_within_80_columns_and_exact_in_json(database_url_sync: str) -> None:
    url = database_url_sync
    made(url, "p1")
    curve(url, "p1", 1_000_000, "900000.0000000001", 1_100_000)
    printed = lines(run(url, "equity", "p1"))
    assert printed[0] == ["time", "(Asia/Kolkata)", "equity", "(INR)", "change", "P&L"]
    assert printed[2] == ["2026-03-03", "15:30:00", "900,000.0000000001", "-99,999.9999999999", "0.00"]
    found = answer(run(url, "equity", "p1", "--start", "2026-03-03", "--end", "2026-03-03", "--json"))
    assert [point["equity"] for point in found["points"]] == ["900000.0000000001"]
    assert len(answer(run(url, "equity", "p1", "--points", "1", "--json"))["points"]) == 1


def test_a_plot_is_a_whole_file_that_replaces_nothing_unasked(database_url_sync: str, tmp_path: Path) -> None:
    url = database_url_sync
    made(url, "p1")
    curve(url, "p1", 100, 90, 110)
    assert lines(run(url, "equity", "p1", "--plot", "p1.PNG"))[0][:3] == ["p1.PNG:", "3", "points,"]
    first = (tmp_path / "p1.PNG").read_bytes()
    again = run(url, "equity", "p1", "--plot", "p1.PNG")
    assert (again.returncode, "p1.PNG exists" in again.stderr) == (6, True)
    assert run(url, "equity", "p1", "--plot", "p1.PNG", "--force", "--zone", "UTC").returncode == 0
    assert (tmp_path / "p1.PNG").read_bytes() != first
    assert answer(run(url, "equity", "p1", "--plot", "p1.svg", "--json"))["plot"] == "p1.svg"
    for name, code in (("p1.gif", 2), ("none/p1.png", 6), ("p1", 2)):
        assert run(url, "equity", "p1", "--plot", name).returncode == code
    assert not list(tmp_path.glob(".*part"))


def test_a_plot_without_matplotlib_says_how_to_get_it(database_url_sync: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run(database_url_sync, "equity", "p1", "--plot", "p1.png")
    assert (result.returncode, 'pip install "alpha-panda-core[plot]"' in result.stderr) == (1, True)


def test_a_plot_in_letters_has_equity_above_and_drawdown_below(database_url_sync: str) -> None:
    url = database_url_sync
    made(url, "p1", name="Paper")
    curve(url, "p1", 100, 80, 110)
    drawn = lines(run(url, "equity", "p1", "--plot", "terminal"))
    words = [line[0] for line in drawn]
    assert (words[0], words[1], words[16]) == ("Paper", "equity", "drawdown")
    assert [words[2], words[15], words[17], words[21]] == ["110.00", "80.00", "0.00%", "-20.00%"]


def test_the_deepest_falls_are_told_with_their_peaks_and_recoveries(database_url_sync: str) -> None:
    url = database_url_sync
    made(url, "p1", "p2")
    curve(url, "p1", 100, 90, 80, 85, 100, 95, 120, 60)
    printed = lines(run(url, "drawdown", "p1", "--worst", "2"))
    assert printed[0] == ["p1", "in", "INR,", "2026-03-02", "to", "2026-03-09,", "8", "snapshots"]
    assert printed[2:] == [
        ["2026-03-08", "15:30", "2026-03-09", "15:30", "not", "yet", "50.00%", "60.00"],
        ["2026-03-02", "15:30", "2026-03-04", "15:30", "2026-03-06", "15:30", "20.00%", "20.00"],
    ]
    found = answer(run(url, "drawdown", "p1", "--json", "--series"))
    assert [fall["amount"] for fall in found["worst"]] == ["60.0000000000", "20.0000000000", "5.0000000000"]
    assert {name: found["maximum"][name] for name in ("peak_time", "trough_time", "recovery_time", "fraction")} == {
        name: found["worst"][0][name] for name in ("peak_time", "trough_time", "recovery_time", "fraction")
    }
    assert [point["fraction"] for point in found["series"]][:3] == [0.0, 0.1, 0.2]
    flow = ["--flow", "2026-03-09=-60"]
    assert answer(run(url, "drawdown", "p1", "--json", *flow))["maximum"]["fraction"] == 0.2
    curve(url, "p2", 1, 2, 3)
    assert "never below its highest worth" in run(url, "drawdown", "p2").stdout


@given(st.lists(st.integers(-3, 6), min_size=1, max_size=40))
def test_the_falls_are_those_of_every_snapshot(worths: list[int]) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    points = [EquityPoint(start + timedelta(days=n), Decimal(worth), Decimal(0)) for n, worth in enumerate(worths)]
    schema = {"snapshot_time": pl.Datetime("us", "UTC"), "equity": pl.Decimal(28, 10), "total_pnl": pl.Decimal(28, 10)}
    few = [EquityPoint(*row) for row in _turning(pl.DataFrame(points, schema=schema, orient="row")).iter_rows()]
    assert _falls(drawdown(few)) == _falls(drawdown(points))
    assert drawdown(few).maximum == drawdown(points).maximum
    deepest = _falls(drawdown(points))[:1]
    maximum = drawdown(points).maximum
    assert [fall["trough_time"] for fall in deepest] == ([maximum.trough_time] if maximum else [])


def test_a_summary_and_a_comparison_tell_returns_and_risk(database_url_sync: str) -> None:
    url = database_url_sync
    made(url, "p1", "p2")
    made(url, "p3", currency="USD")
    curve(url, "p1", 100, 90, 110)
    curve(url, "p2", 100, 150)
    curve(url, "p3", 10, 5)
    printed = lines(run(url, "summary", "p1"))
    assert ["profit", "10.00"] in printed and ["total", "return", "10.00%"] in printed
    assert ["net", "flow", "5.00", "deposits", "less", "withdrawals"] in lines(
        run(url, "summary", "p1", "--flow", "2026-03-03=5")
    )
    found = answer(run(url, "summary", "p1", "--json"))["summary"]
    assert (found["first_equity"], found["days"]) == ("100.0000000000", 3)
    compared = lines(run(url, "compare"))
    assert [line[:4] for line in compared[1:]] == [
        ["p2", "50.00", "INR", "50.00%"],
        ["p1", "10.00", "INR", "10.00%"],
        ["p3", "-5.00", "USD", "-50.00%"],
    ]
    by = answer(run(url, "compare", "--by", "broker", "--json"))["comparisons"]
    assert sorted((item["group"], item["currency"]) for item in by) == [("paper", "INR"), ("paper", "USD")]
    assert run(url, "compare", "--by", "moon").returncode == 2
    assert run(url, "compare", "none").returncode == 6


def test_latest_may_be_asked_of_an_earlier_time(database_url_sync: str) -> None:
    url = database_url_sync
    made(url, "p1", "p2")
    curve(url, "p1", 100, 90, 110)
    assert [line[4] for line in lines(run(url, "latest", "--as-of", "2026-03-03"))[1:]] == ["90.00"]
    assert run(url, "latest", "--as-of", "2026-03-01").returncode == 1
    assert run(url, "latest", "p2").returncode == 1
    assert run(url, "latest", "p2", "p1", "--broker", "none").returncode == 1


def test_a_curve_comes_in_from_a_file_and_goes_out_whole(database_url_sync: str, tmp_path: Path) -> None:
    url = database_url_sync
    made(url, "p1", currency="USD")
    text = "day,total,note\n2026-01-01,100.5,a\n2026-01-02,inf,b\n2026-01-03,1.12345678901,c\n2026-01-03,x,c\n"
    (tmp_path / "a.csv").write_text(text)
    how = ["a.csv", "--portfolio", "p1", "--column", "snapshot_time=day", "--column", "equity=total"]
    tried = lines(run(url, "import", *how, "--dry-run"))
    assert tried[0] == ["a.csv", "into", "p1:", "dry", "run,", "nothing", "was", "stored"]
    assert ["rejected", "3"] in tried and ["rejected:"] in tried
    assert run(url, "latest").returncode == 1
    report = answer(run(url, "import", *how, "--round", "--json"))
    assert (report["added"], report["rejected"], report["ignored_columns"]) == (2, 2, ["note"])
    assert run(url, "import", *how, "--strict").returncode == 6
    for name in ("out.csv", "out.parquet"):
        assert lines(run(url, "export", name))[0][:4] == [f"{name}:", "2", "snapshots", "of"]
    assert pl.read_parquet(tmp_path / "out.parquet")["equity"].to_list() == [Decimal("100.5"), Decimal("1.123456789")]
    assert answer(run(url, "import", "out.csv", "--json"))["existing"] == 2
    again = run(url, "export", "out.csv")
    assert (again.returncode, "out.csv exists" in again.stderr) == (6, True)
    assert run(url, "export", "out.csv", "--force", "--end", "2026-01-02").returncode == 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2
    assert (run(url, "export", "out.xls").returncode, run(url, "import", "none.csv").returncode) == (2, 6)
    assert run(url, "import", "a.csv", "--column", "equity").returncode == 2


def test_a_wrong_portfolio_period_or_zone_is_said_plainly(database_url_sync: str) -> None:
    url = database_url_sync
    made(url, "p1", "p2")
    curve(url, "p1", 100, 90)
    for verb in ("equity", "drawdown", "summary"):
        for arguments, code, words in (
            (["none"], 6, "there is no portfolio 'none'"),
            (["p2"], 6, "there are no snapshots yet"),
            (["p1", "--start", "2027-01-01"], 6, "reaches from 2026-03-02 10:00:00 UTC to 2026-03-03 10:00:00 UTC"),
            (["p1", "--end", "2026-03-01"], 6, "there are no snapshots in that period"),
            (["p1", "--start", "2026-03-02T16:00", "--end", "2026-03-03T09:00"], 6, "no snapshots in that period"),
            (["p1", "--start", "2026-03-03", "--end", "2026-03-02"], 2, "--end must be after --start"),
            (["p1", "--zone", "Mars/Base"], 2, "there is no time zone 'Mars/Base'"),
            (["p1", "--start", "yesterday"], 2, "'yesterday' is neither"),
        ):
            result = run(url, verb, *arguments)
            assert (result.returncode, result.stdout) == (code, ""), (verb, arguments, result.stderr)
            assert words in result.stderr
    assert run(url, "record", "none", "--cash", "1", "--equity", "1").returncode == 6
    assert run(url, "record", "p1").returncode == 2
    assert run(url, "latest", "none").returncode == 6
    assert run(url, "drawdown", "p1", "--flow", "2026-03-03").returncode == 2


@pytest.mark.parametrize("verb", [["record", "p1", "-"], ["import", "-"]])
def test_an_interrupt_while_it_waits_for_input_ends_it_with_exit_code_130(verb: list[str]) -> None:
    program = """
import signal, sys, threading
from core.cli.main import main

class Input:
    real = sys.stdin.buffer
    isatty = real.isatty

    def read(self, *size):
        main_thread = threading.main_thread().ident
        threading.Timer(0.2, signal.pthread_kill, (main_thread, signal.SIGINT)).start()
        return self.real.read(*size)

Input.buffer = sys.stdin = Input()
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, "portfolio", *verb],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        code = process.wait(60)  # its input stays open
        assert process.stdout is not None and process.stderr is not None
        assert (code, process.stdout.read(), process.stderr.read()) == (130, "", "error: interrupted\n")


def test_times_are_read_by_the_clock_of_the_zone() -> None:
    assert ZONE == DEFAULT_ZONE
    midnight = datetime(2026, 1, 30, 18, 30, tzinfo=UTC)
    assert instant("2026-01-31", KOLKATA) == midnight
    assert instant("2026-01-31", KOLKATA, until=True) == midnight + timedelta(days=1)
    assert instant("2026-01-31T15:30", KOLKATA) == datetime(2026, 1, 31, 10, tzinfo=UTC)
    assert instant("2026-01-31T15:30:00Z", KOLKATA) == datetime(2026, 1, 31, 15, 30, tzinfo=UTC)
    summer = ZoneInfo("Europe/Berlin")
    assert instant("2026-03-29", summer, until=True) - instant("2026-03-29", summer) == timedelta(hours=23)
    for text, span in (("12h", timedelta(hours=12)), ("30d", timedelta(days=30)), ("8w", timedelta(weeks=8))):
        assert abs(datetime.now(UTC) - span - instant(text, KOLKATA)) < timedelta(seconds=10)
    for text in ("", "30", "999999w", "2026-02-30", "9999-12-31", "9999-12-31T25:00", "now"):
        with pytest.raises(CommandError):
            instant(text, KOLKATA, until=True)


def test_shares_stay_short_however_large() -> None:
    assert [percent(share) for share in (0.0, -0.12345, 12.5, None)] == ["0.00%", "-12.35%", "1,250.00%", ""]
    assert percent(4.5e60) == "4.5e+62%"


def test_amounts_are_exact_with_separators() -> None:
    cases: dict[Any, str] = {
        Decimal("1234567.8900000001"): "1,234,567.8900000001",
        Decimal("-0.1000000000"): "-0.10",
        Decimal("1E+3"): "1,000.00",
        Decimal(0): "0.00",
        None: "",
    }
    assert {value: amount(value) for value in cases} == cases
