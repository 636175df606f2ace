"""`panda instruments`: what it prints, what it returns, and that a refused file changes nothing."""

import io
import json
import os
import subprocess
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from tests.test_cli import answer, panda

pytestmark = pytest.mark.usefixtures("clean")

HEADER = (
    "instrument_token,exchange_token,tradingsymbol,name,last_price,expiry,strike,tick_size,lot_size,instrument_type,"
    "segment,exchange\n"
)
ACC = "5633,22,ACC,ACC LTD,1834.5,,0.0,0.05,1,EQ,NSE,NSE\n"
TCS = "2953217,11536,TCS,TATA CONSULTANCY,3051.25,,0.0,0.1,1,EQ,NSE,NSE\n"
INFY = "408065,1594,INFY,INFOSYS,1500.0,,0.0,0.05,1,EQ,NSE,NSE\n"
CALL = "9331458,36451,NIFTY26NOV24300CE,NIFTY,1.0E-4,2026-11-24,24300.0,0.05,65,CE,NFO-OPT,NFO\n"
PUT = "9331714,36452,NIFTY26NOV24300PE,NIFTY,1.0E-4,2026-11-24,24300.0,0.05,65,PE,NFO-OPT,NFO\n"

MAPPING = """
format = "lanternfish"
source = "lanternfish"

[token]
text = "Ref"

[columns]
trading_symbol = "Ticker"
name = "Company"
segment = "Board"
tick_size = "Step"
lot_size = "Lot"
strike = "Strike"
underlying = { column = "Ticker", pattern = '^([A-Z]+)' }

[exchange]
column = "Venue"
names = { N = "NSE", F = "NFO" }

[instrument_type]
column = "Kind"
names = { share = "EQ", future = "FUT", call = "CE", put = "PE" }

[option_type]
column = "Kind"
names = { call = "CE", put = "PE" }

[expiry]
column = "Ends"
dates = ["%d.%m.%Y"]
"""
OWN = (
    "Ref,Venue,Kind,Ticker,Company,Board,Ends,Strike,Step,Lot,ISIN\n"
    "n-17,N,share,ACC,ACC Limited,CASH,,,0.05,1,INE012A01025\n"
    "f-99,F,call,NIFTY 24300 C,,DERIV,24.11.2026,24300,0.05,65,\n"
)


def file(folder: Path, name: str, *rows: str) -> str:
    (folder / name).write_text(HEADER + "".join(rows))
    return name


def load(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return panda("instruments", "load", *arguments, url=url)


def stored(url: str) -> int:
    return sum(item["added"] for item in answer(panda("instruments", "loads", "--json", url=url))["loads"])


def test_load_prints_its_report_within_80_columns(database_url_sync: str, tmp_path: Path) -> None:
    bad = [f"{n},1,S{n},,0.0,,0.0,0.05,x,EQ,NSE,NSE\n" for n in range(100, 112)]
    result = load(database_url_sync, file(tmp_path, "a.csv", ACC, CALL, *bad), "--date", "2026-11-20")
    lines = result.stdout.splitlines()
    assert (result.returncode, result.stderr) == (0, "")
    assert lines[0] == "kite NFO, NSE as of 2026-11-20: loaded"
    assert [line.split()[:2] for line in lines[1:3]] == [["rows", "14"], ["added", "2"]]
    assert sum(line.startswith("    line ") for line in lines) == 10
    assert "    line 4, lot_size: " in result.stdout
    assert "    and 2 more, all of them with --json" in lines
    assert max(map(len, lines)) <= 80


def test_load_reports_by_the_loaders_names_in_json(database_url_sync: str, tmp_path: Path) -> None:
    report = answer(load(database_url_sync, file(tmp_path, "a.csv", ACC, TCS, "x\n"), "--date", "2026-11-20", "--json"))
    assert (report["rows"], report["added"], report["source"], report["exchanges"]) == (3, 2, "kite", ["NSE"])
    assert [sorted(row) for row in report["rejected"]] == [["field", "line", "reason"]]
    assert {"changed", "attributes_changed", "renamed", "deactivated", "reactivated", "unchanged"} <= set(report)
    assert {"duplicates", "repriced", "digest", "format", "dry_run", "seconds", "trading_date"} <= set(report)


def test_load_reads_standard_input_and_a_dry_run_stores_nothing(
    database_url_sync: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for more, count in ((["--dry-run"], 0), ([], 2)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((HEADER + ACC + TCS).encode())))
        result = load(database_url_sync, "-", "--date", "2026-11-20", *more)
        assert result.returncode == 0, result.stderr
        assert ("dry run, nothing was stored" in result.stdout) == bool(more)
        assert stored(database_url_sync) == count


def test_a_refused_file_is_exit_code_6_and_changes_nothing(database_url_sync: str, tmp_path: Path) -> None:
    load(database_url_sync, file(tmp_path, "a.csv", ACC, TCS, INFY), "--date", "2026-11-20")
    shrunk = file(tmp_path, "b.csv", ACC)
    (tmp_path / "c.csv").write_text("no,such,header\n1,2,3\n")
    for arguments, words in (
        ([shrunk, "--date", "2026-11-23"], "2 of 3 of NSE (67%)"),
        ([shrunk, "--date", "2026-11-19", "--allow-shrink"], "as of 2026-11-20"),
        (["c.csv", "--date", "2026-11-23"], "is in no format known here"),
        (["none.csv"], "none.csv does not exist"),
    ):
        result = load(database_url_sync, *arguments)
        assert (result.returncode, result.stdout) == (6, "")
        assert words in result.stderr and "hint:" in result.stderr
    assert stored(database_url_sync) == 3
    allowed = load(database_url_sync, shrunk, "--date", "2026-11-23", "--max-shrink", "0.7", "--json")
    assert answer(allowed)["deactivated"] == 2


def test_hints_name_the_options_of_the_command(database_url_sync: str, tmp_path: Path) -> None:
    load(database_url_sync, file(tmp_path, "a.csv", ACC, TCS, INFY), "--date", "2026-11-20")
    (tmp_path / "c.csv").write_text("no,such,header\n1,2,3\n")
    for arguments, option in (
        ([file(tmp_path, "b.csv", ACC), "--date", "2026-11-23"], "with --allow-shrink."),
        (["a.csv", "--date", "2026-11-23", "--source", "other"], "with --source kite;"),
        (["c.csv"], "with --format."),
    ):
        said = load(database_url_sync, *arguments).stderr
        assert option in said
        assert not {"allow_shrink", "source=", "`format`"} & set(said.replace("(", " ").split())
    assert "with --format." in panda("instruments", "diff", "c.csv", "c.csv").stderr


def test_search_takes_ranges_of_expiries_and_strikes(database_url_sync: str, tmp_path: Path) -> None:
    later = "9400000,36719,NIFTY26DEC24400CE,NIFTY,0,2026-12-29,24400.0,0.05,65,CE,NFO-OPT,NFO\n"
    load(database_url_sync, file(tmp_path, "a.csv", CALL, PUT, later), "--date", "2026-11-20")

    def found(*options: str) -> list[str]:
        result = panda("instruments", "search", "nifty", *options, "--json", url=database_url_sync)
        return [item["trading_symbol"] for item in answer(result)["instruments"]]

    near, far = ["NIFTY26NOV24300CE", "NIFTY26NOV24300PE"], ["NIFTY26DEC24400CE"]
    assert found() == near + far
    assert (
        found("--expiry", "2026-12-29")
        == found("--expiry-from", "2026-11-25")
        == found("--strike-from", "24300.5")
        == far
    )
    assert found("--expiry-to", "2026-11-24") == found("--strike-to", "24399.95") == near
    assert found("--strike-from", "24300", "--strike-to", "24400") == near + far
    for wrong in (["--strike-from", "1e5"], ["--strike-to", "nan"], ["--expiry-from", "soon"]):
        assert panda("instruments", "search", "nifty", *wrong, url=database_url_sync).returncode == 2


def test_nothing_is_wider_than_80_columns(database_url_sync: str, tmp_path: Path) -> None:
    folder = tmp_path / "a-folder-whose-name-is-long" / "and-another-one-in-it" / "until-the-line-is-full"
    folder.mkdir(parents=True)
    odd = "77,1,ODD,,0.0,,0.0,0.05," + "x" * 15 + ",EQ,NSE,NSE\n"
    name = file(folder, "a.csv", ACC, odd)
    shown = [
        panda("instruments", "diff", str(folder / name), str(folder / name)),
        panda("instruments", "formats"),
        load(database_url_sync, str(folder / name), "--date", "2026-11-20"),
    ]
    for result in shown:
        assert result.returncode == 0
        assert max(map(len, result.stdout.splitlines())) <= 80
    assert f"A:{folder / name},2rows" in "".join(shown[0].stdout.split())  # whole, though in several lines


def test_wrong_usage_is_exit_code_2(database_url_sync: str, tmp_path: Path) -> None:
    name = file(tmp_path, "a.csv", ACC)
    assert load(database_url_sync, name, "--date", "20.11.2026").returncode == 2
    for arguments in (["show", "ACC"], ["search", "acc", "--type", "XX"], ["export", "a.xlsx"], ["formats", "none"]):
        assert panda("instruments", *arguments, url=database_url_sync).returncode == 2


def test_diff_counts_as_the_loader_counts(database_url_sync: str, tmp_path: Path) -> None:
    gone_elsewhere = PUT
    before = file(tmp_path, "a.csv", ACC, TCS, INFY, gone_elsewhere)
    after = file(
        tmp_path,
        "b.csv",
        ACC.replace("1834.5", "1900"),
        TCS.replace(",TCS,", ",TCSX,"),
        "7,1,NEW,,0.0,,0.0,0.05,1,EQ,NSE,NSE\n",
        "408065,1594,INFY,INFOSYS,1500.0,,0.0,0.05,many,EQ,NSE,NSE\n",
    )
    found = answer(panda("instruments", "diff", before, after, "--json"))
    load(database_url_sync, before, "--date", "2026-11-20")
    report = answer(load(database_url_sync, after, "--date", "2026-11-23", "--json", "--allow-shrink"))
    names = ("rows", "added", "changed", "attributes_changed", "renamed", "unchanged", "repriced", "duplicates")
    assert {name: found[name] for name in names} == {name: report[name] for name in names}
    assert (found["removed"], report["deactivated"]) == (0, 0)
    assert found["rejected"] == report["rejected"]
    [changed] = [item for item in found["differences"] if item["verdict"] == "changed"]
    assert changed["fields"] == {"trading_symbol": ["TCS", "TCSX"]}


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("before", "after", "figures"),
    [
        ("kite_nfo_2026-08_day1.csv.gz", "kite_nfo_bfo_2026-08_day2.csv.gz", (5_177, 0, 74)),
        ("nuvama_instruments_2025-09-12.csv.gz", "nuvama_instruments_2025-09-15.csv.gz", (1_126, 625, 444)),
    ],
)
def test_diff_of_real_files_gives_their_known_figures(before: str, after: str, figures: tuple[int, int, int]) -> None:
    from core.trading.instruments import diff_files

    folder = Path(os.environ.get("PANDA_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the real files are not here")
    found = diff_files(folder / before, folder / after, show=0)
    assert (found.added, found.removed, found.changed + found.attributes_changed) == figures


def test_files_of_two_brokers_are_not_compared(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text(OWN)
    (tmp_path / "own.toml").write_text(MAPPING)
    result = panda("instruments", "diff", file(tmp_path, "a.csv", ACC), "own.csv")
    assert result.returncode == 6
    same = answer(panda("instruments", "diff", "own.csv", "own.csv", "--mapping", "own.toml", "--json"))
    assert (same["unchanged"], same["differences"]) == (2, [])


def test_a_format_of_ones_own_is_loaded_by_its_mapping(database_url_sync: str, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text(OWN)
    (tmp_path / "own.toml").write_text(MAPPING)
    report = answer(load(database_url_sync, "own.csv", "--mapping", "own.toml", "--date", "2026-11-20", "--json"))
    assert (report["source"], report["added"], report["rejected"]) == ("lanternfish", 2, [])
    shown = answer(panda("instruments", "show", "NFO:NIFTY 24300 C", "--json", url=database_url_sync))
    assert (shown["underlying"], shown["strike"], shown["expiry"]) == ("NIFTY", "24300.0000000000", "2026-11-24")
    assert shown["broker_key"] == "f-99"
    share = answer(panda("instruments", "show", "NSE:ACC", "--json", url=database_url_sync))
    assert share["attributes"] == {"ISIN": "INE012A01025"}


def test_finding_by_text_symbol_day_and_chain(database_url_sync: str, tmp_path: Path) -> None:
    load(database_url_sync, file(tmp_path, "a.csv", ACC, TCS, CALL, PUT), "--date", "2026-11-20")
    renamed = file(tmp_path, "b.csv", ACC, TCS.replace(",TCS,", ",TCSX,"), CALL, PUT)
    load(database_url_sync, renamed, "--date", "2026-11-23")
    url = database_url_sync
    found = panda("instruments", "search", "nifty", "24300", "ce", url=url)
    assert found.stdout.splitlines()[1].split() == ["9331458", "NFO:NIFTY26NOV24300CE", "CE", "2026-11-24", "24300", "65", "kite"]  # fmt: skip
    assert panda("instruments", "search", "no such thing", url=url).returncode == 1
    assert answer(panda("instruments", "show", "2953217", "--json", url=url))["trading_symbol"] == "TCSX"
    then = answer(panda("instruments", "show", "NSE:TCS", "--as-of", "2026-11-21", "--json", url=url))
    assert (then["instrument_token"], then["trading_symbol"]) == (2953217, "TCS")
    assert panda("instruments", "show", "2953217", "--as-of", "2026-11-01", url=url).returncode == 6
    states = answer(panda("instruments", "history", "2953217", "--json", url=url))["states"]
    assert [item["trading_symbol"] for item in states] == ["TCS", "TCSX"]
    assert len(panda("instruments", "history", "2953217", url=url).stdout.splitlines()) == 3
    assert panda("instruments", "chain", "NIFTY", url=url).stdout == "2026-11-24\n"
    chain = panda("instruments", "chain", "NIFTY", "2026-11-24", url=url).stdout.splitlines()
    assert chain[1].split() == ["9331458", "NIFTY26NOV24300CE", "24300", "9331714", "NIFTY26NOV24300PE"]
    assert panda("instruments", "chain", "NIFTY", "2027-01-01", url=url).returncode == 1


def test_export_is_exact_whole_and_replaces_nothing_unasked(database_url_sync: str, tmp_path: Path) -> None:
    load(database_url_sync, file(tmp_path, "a.csv", ACC, CALL), "--date", "2026-11-20")
    for name in ("out.csv", "out.parquet"):
        assert panda("instruments", "export", name, url=database_url_sync).returncode == 0
        again = panda("instruments", "export", name, "--source", "none", url=database_url_sync)
        assert (again.returncode, f"{name} exists" in again.stderr) == (6, True)
    rows = pl.read_parquet(tmp_path / "out.parquet")
    assert rows["strike"].to_list() == [Decimal(24300), None]
    assert ",24300.0000000000,0.0500000000," in (tmp_path / "out.csv").read_text()
    forced = panda("instruments", "export", "out.csv", "--force", "--exchange", "NSE", url=database_url_sync)
    assert forced.returncode == 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2
    assert not list(tmp_path.glob(".*part"))


def test_the_shipped_formats_are_listed_and_one_is_printed_as_a_start_for_ones_own(tmp_path: Path) -> None:
    names = [item["format"] for item in answer(panda("instruments", "formats", "--json"))["formats"]]
    assert {"kite", "kite-reduced", "upstox", "nuvama"} <= set(names)
    (tmp_path / "mine.toml").write_text(panda("instruments", "formats", "kite").stdout)
    name = file(tmp_path, "a.csv", ACC)
    result = panda("instruments", "diff", name, name, "--mapping", "mine.toml", "--json")
    assert json.loads(result.stdout)["unchanged"] == 1
