"""Broker files, from bytes to validated rows, without a database."""

import csv
import gzip
import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.database.errors import InvalidInput
from core.database.records import VENUE_RULE
from core.trading.instruments import (
    InstrumentFileCorrupt,
    InstrumentFileEmpty,
    InstrumentFileError,
    InstrumentFileHeader,
    InstrumentFileMissing,
    InstrumentFileTooLarge,
    InstrumentFileTruncated,
    InstrumentFileUnreadable,
    InstrumentInput,
    InstrumentMappingInvalid,
    RejectedRow,
    load_mapping,
    shipped,
)
from core.trading.instruments._file import read_file
from core.trading.instruments._numbers import exact_decimal, whole_numbers
from core.trading.instruments._reader import STAGED, open_master

KITE_COLUMNS = (
    "instrument_token",
    "exchange_token",
    "tradingsymbol",
    "name",
    "last_price",
    "expiry",
    "strike",
    "tick_size",
    "lot_size",
    "instrument_type",
    "segment",
    "exchange",
)
HEADER = ",".join(KITE_COLUMNS) + "\n"
ACC = "5633,22,ACC,ACC LTD,1834.5,,0.0,0.05,1,EQ,NSE,NSE\n"
CALL = "9331458,36451,NIFTY26NOV24300CE,NIFTY,0.0,2026-11-24,24300.0,0.05,65,CE,NFO-OPT,NFO\n"


@dataclass(frozen=True)
class Parsed:
    """A whole file, read: the sums of its pieces."""

    csv: bytes
    count: int
    rows: int
    duplicates: int
    exchanges: tuple[str, ...]
    rejected: tuple[RejectedRow, ...]
    refused_tokens: tuple[int, ...]
    refused_keys: tuple[str, ...]
    refused_symbols: tuple[tuple[str, str], ...]


def read(file: InstrumentInput, **options: Any) -> Parsed:
    chunks = list(open_master(file, **options).chunks())
    return Parsed(
        csv=b"".join(chunk.csv for chunk in chunks),
        count=sum(chunk.count for chunk in chunks),
        rows=sum(chunk.rows for chunk in chunks),
        duplicates=sum(chunk.duplicates for chunk in chunks),
        exchanges=tuple(sorted({venue for chunk in chunks for venue in chunk.exchanges})),
        rejected=tuple(row for chunk in chunks for row in chunk.rejected),
        refused_tokens=tuple(token for chunk in chunks for token in chunk.refused_tokens),
        refused_keys=tuple(key for chunk in chunks for key in chunk.refused_keys),
        refused_symbols=tuple(pair for chunk in chunks for pair in chunk.refused_symbols),
    )


def parse(*rows: str, header: str = HEADER) -> Parsed:
    return read((header + "".join(rows)).encode())


def staged(parsed: Parsed) -> list[dict[str, str]]:
    return [dict(zip(STAGED, row, strict=True)) for row in csv.reader(io.StringIO(parsed.csv.decode()))]


def row(**fields: str) -> str:
    values = dict(zip(KITE_COLUMNS, ACC.strip().split(","), strict=True)) | fields
    return ",".join(values[column] for column in KITE_COLUMNS) + "\n"


def test_a_stock_and_an_option_become_canonical_rows():
    parsed = parse(ACC, CALL)
    assert parsed.rejected == ()
    assert parsed.exchanges == ("NFO", "NSE")
    stock, option = staged(parsed)
    assert stock == {
        "instrument_token": "5633", "broker_key": "", "attributes": "", "exchange": "NSE", "exchange_token": "22", "trading_symbol": "ACC", "name": "ACC LTD",
        "segment": "NSE", "instrument_type": "EQ", "option_type": "", "underlying": "", "expiry": "", "strike": "",
        "tick_size": "0.05", "lot_size": "1", "last_price": "1834.5", "line": "2",
    }  # fmt: skip
    assert (option["instrument_type"], option["option_type"], option["underlying"]) == ("OPT", "CE", "NIFTY")
    assert (option["expiry"], option["strike"]) == ("2026-11-24", "24300.0")


@pytest.mark.parametrize("segment", ["INDICES", "NSE-INDICES"])
def test_an_index_row_has_type_idx_and_keeps_its_zeros(segment: str):
    (index,) = staged(parse(row(tradingsymbol="NIFTY 50", tick_size="0.0", lot_size="0", segment=segment)))
    assert (index["instrument_type"], index["trading_symbol"], index["exchange"]) == ("IDX", "NIFTY 50", "NSE")
    assert (index["tick_size"], index["lot_size"]) == ("0.0", "0")


def test_columns_are_found_by_name_and_unknown_ones_become_attributes():
    shuffled = [*reversed(KITE_COLUMNS), "asm"]
    values = dict(zip(KITE_COLUMNS, ACC.strip().split(","), strict=True)) | {"asm": "stage 2"}
    parsed = parse(",".join(values[name] for name in shuffled) + "\n", header=",".join(shuffled) + "\n")
    (only,), (plain,) = staged(parsed), staged(parse(ACC))
    assert only == {**plain, "attributes": '{"asm":"stage 2"}'}


def test_carriage_returns_blank_lines_and_a_byte_order_mark_are_no_content():
    data = b"\xef\xbb\xbf" + (HEADER + ACC + "\n" + CALL).replace("\n", "\r\n").encode()
    assert read(data) == parse(ACC, "\n", CALL)


def test_quoted_fields_keep_commas_and_quotes_through_to_the_copy():
    (only,) = staged(parse(row(name='"A ""B"", C"')))
    assert only["name"] == 'A "B", C'


def test_numbers_written_as_floats_are_whole_and_outer_blanks_are_cut():
    (only,) = staged(parse(row(instrument_token="5633.0", lot_size="25.00", name="  ACC LTD ")))
    assert (only["instrument_token"], only["lot_size"], only["name"]) == ("5633", "25", "ACC LTD")


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"instrument_token": ""}, "instrument_token", "is missing"),
        ({"instrument_token": "12x"}, "instrument_token", "'12x' is not a whole number"),
        ({"instrument_token": "-5"}, "instrument_token", "'-5' is not a whole number"),
        ({"instrument_token": "١٢"}, "instrument_token", "'١٢' is not a whole number"),
        ({"instrument_token": "0"}, "instrument_token", "'0' must be above 0"),
        ({"tradingsymbol": " "}, "tradingsymbol", "is missing"),
        ({"tradingsymbol": "A\x1eB"}, "tradingsymbol", "'A\\x1eB' holds a control character"),
        ({"name": "A\rB"}, "name", "'A\\rB' holds a control character"),
        ({"name": "A\x00"}, "name", "'A\\x00' holds a control character"),
        ({"name": "N" * 201}, "name", f"'{'N' * 40}' is longer than 200 characters"),
        ({"lot_size": "1.5"}, "lot_size", "'1.5' is not a whole number"),
        ({"name": "A\x85B"}, "name", "'A\\x85B' holds a control character"),
        ({"lot_size": "1" * 19}, "lot_size", f"'{'1' * 19}' is not a whole number"),
        ({"tick_size": "-0.05"}, "tick_size", "'-0.05' is negative"),
        ({"expiry": "28/AUG/25"}, "expiry", "'28/AUG/25' is not a date of the form %Y-%m-%d"),
        ({"expiry": "2026-02-30"}, "expiry", "'2026-02-30' is not a date of the form %Y-%m-%d"),
        ({"expiry": "٢٠٢٦-11-26"}, "expiry", "'٢٠٢٦-11-26' is not a date of the form %Y-%m-%d"),
        ({"instrument_type": "BOND"}, "instrument_type", "'BOND' is none of 'EQ', 'FUT', 'CE', 'PE'"),
        ({"exchange": "n$e"}, "exchange", f"'n$e' {VENUE_RULE.reason}"),
        ({"segment": "N" * 33}, "segment", f"'{'N' * 33}' {VENUE_RULE.reason}"),
        ({"expiry": "2026-11-24"}, "expiry", "'2026-11-24' is given on what does not expire"),
        ({"expiry": "9999-12-31"}, "expiry", "'9999-12-31' is not a date of the form %Y-%m-%d"),
        ({"instrument_type": "FUT"}, "expiry", "is missing on a derivative"),
        ({"instrument_type": "PE", "expiry": "2026-11-24"}, "strike", "is missing on an option"),
        ({"exchange": "NSE,NSE"}, "line", "has more fields than the header"),
    ],
)
def test_a_bad_field_rejects_its_row_and_no_other(fields: dict[str, str], field: str, reason: str):
    parsed = parse(CALL, row(**fields), ACC)
    assert parsed.count == 2
    (rejected,) = parsed.rejected
    assert (rejected.line, rejected.field, rejected.reason) == (3, field, reason)


@pytest.mark.parametrize(
    "number", ["NaN", "inf", "1e400", "0.12345678901", "1234567890123456789", "1,5", "0x10", "1_0", "٣"]
)
@pytest.mark.parametrize("field", ["last_price", "strike", "tick_size"])
def test_a_number_that_numeric_28_10_cannot_hold_exactly_is_rejected(field: str, number: str):
    option = dict(zip(KITE_COLUMNS, CALL.strip().split(","), strict=True))
    parsed = parse(row(**{**option, field: f'"{number}"'}), ACC)
    assert [(bad.field, bad.line) for bad in parsed.rejected] == [(field, 2)]


def test_a_rejected_row_still_says_which_instrument_it_names():
    parsed = parse(ACC, CALL.replace("2026-11-24", "soon"), row(instrument_token="x", tradingsymbol="TCS"))
    assert parsed.refused_tokens == (9331458,)
    assert ("NSE", "TCS") in parsed.refused_symbols


def test_equal_rows_count_once_and_contradicting_ones_are_rejected():
    parsed = parse(ACC, CALL, ACC, ACC.replace("ACC LTD", "OTHER LTD"), ACC)
    assert (parsed.rows, parsed.count, parsed.duplicates) == (5, 2, 2)
    (clash,) = parsed.rejected
    assert (clash.line, clash.reason) == (5, "5633 stands in line 2 for another instrument")


@given(
    st.one_of(
        st.decimals(allow_nan=True, allow_infinity=True).map(str),
        st.from_regex(r"[+-]?[0-9]{0,20}\.?[0-9]{0,14}([eE][+-]?[0-9]{1,3})?", fullmatch=True),
        st.text(max_size=12),
    )
)
def test_a_decimal_is_kept_exactly_or_refused(text: str):
    canonical = exact_decimal(text)
    if canonical is not None:
        value = Decimal(canonical)
        assert value == Decimal(text)
        assert "e" not in canonical.lower()
        assert value == value.quantize(Decimal("1e-10")) and abs(value) < Decimal(10) ** 18
        return
    try:
        value = Decimal(text)
    except InvalidOperation:
        return
    plain = text.isascii() and text.strip() == text and "_" not in text and value.is_finite()
    assert not plain or abs(value) >= Decimal(10) ** 18 or value.as_tuple().exponent < -10  # type: ignore[operator]


_NUMBERS = st.one_of(
    st.integers(min_value=-(10**20), max_value=10**20).map(str),
    st.from_regex(r"[+-]?[0-9_]{0,25}(\.[0-9]{0,3})?([eE][0-9]{1,2})?", fullmatch=True),
    st.text(max_size=6),
    st.none(),
)


@given(st.lists(_NUMBERS, min_size=1, max_size=4))
def test_a_whole_number_is_digits_alone_whatever_stands_beside_it(texts: list[str | None]):
    def read(text: str | None) -> int | None:
        found = re.fullmatch(r"([0-9]{1,18})(\.0*)?", text or "", flags=re.ASCII)
        return int(found[1]) if found else None

    assert whole_numbers(pl.Series(texts, dtype=pl.String)).to_list() == [read(text) for text in texts]


_CELLS = ["", " ", "ACC", " ACC", "ACC ", "0", "1", "7 ", " 0.05", "5.0", "+5", "-1", "x", "2026-11-24", " 2026-11-24", "CE", "NFO", "OPT"]  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(st.lists(st.dictionaries(st.sampled_from(KITE_COLUMNS), st.sampled_from(_CELLS), max_size=3), max_size=5))
def test_plain_text_is_read_as_any_other_is(rows: list[dict[str, str]]):
    lines = [row(**fields) for fields in [*rows, {"instrument_token": "77"}]]
    quoted = ['"' + line.strip("\n").replace(",", '","') + '"\n' for line in lines]
    assert parse(*lines) == parse(*quoted) == parse(*(line.replace("\n", "\r\n") for line in lines))


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=10**28 - 1))
def test_every_price_that_the_table_holds_survives_parsing(units: int):
    price = Decimal(units).scaleb(-10)
    for text in (f"{price:f}", f"{price:e}"):
        (only,) = staged(parse(row(last_price=text)))
        assert Decimal(only["last_price"]) == price


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_parsed_or_refused_with_a_typed_error(noise: bytes):
    for data in (noise, HEADER.encode() + ACC.encode() + noise, HEADER.encode() + noise + ACC.encode()):
        try:
            parsed = read(data)
        except InstrumentFileError:
            continue
        assert parsed.rows == parsed.count + parsed.duplicates + len(parsed.rejected)
        assert len(staged(parsed)) == parsed.count


@settings(deadline=None)
@given(st.lists(st.sampled_from([ACC, CALL, "", "\n", ",,,\n", "x\n", '"\n', ACC.replace("NSE", "BSE")]), max_size=8))
def test_every_row_of_a_file_is_accounted_for(parts: list[str]):
    try:
        parsed = parse(*parts)
    except InstrumentFileError:
        return
    assert parsed.rows == parsed.count + parsed.duplicates + len(parsed.rejected)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"", InstrumentFileEmpty, "is empty"),
        (b"\r\n \n", InstrumentFileEmpty, "is empty"),
        (HEADER.encode(), InstrumentFileEmpty, "a header and no rows"),
        (b"token,symbol\n1,A\n", InstrumentFileHeader, "is in no format known here"),
        (HEADER.replace("name,", "name,name,").encode() + b"\n1\n", InstrumentFileHeader, "twice"),
        (b"5633,22,ACC\n", InstrumentFileHeader, "is in no format known here"),
        (b"\rtoken\n1\n", InstrumentFileHeader, "a first line that is no CSV header"),
        (b"token" * 200_000 + b"\n1\n", InstrumentFileHeader, "a first line that is no CSV header"),
        (b"\xff\xfe" + HEADER.encode(), InstrumentFileCorrupt, "is UTF-16 text"),
        (HEADER.encode() + b"\xe9", InstrumentFileCorrupt, "byte 0xe9 in line 2"),
        ((HEADER + ACC.replace("ACC LTD", '"ACC') + CALL).encode(), InstrumentFileCorrupt, "opened and not closed"),
        ((HEADER + row(name='"A') + ACC + row(name='B"')).encode(), InstrumentFileCorrupt, "over several lines"),
        ((HEADER + ACC + CALL[:30]).encode(), InstrumentFileTruncated, "the middle of line 3"),
        ((HEADER + ACC + ACC.replace("NSE,NSE", "NSE,NS").strip()).encode(), InstrumentFileTruncated, "line 3"),
        (gzip.compress((HEADER + ACC).encode(), mtime=0)[:-9], InstrumentFileTruncated, "ends in the middle"),
        (gzip.compress((HEADER + ACC).encode(), mtime=0)[:-8] + b"\x00" * 8, InstrumentFileCorrupt, "damaged gzip"),
        (b"\x1f\x8bnonsense", InstrumentFileCorrupt, "damaged gzip"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused_with_its_own_error(
    tmp_path: Path, content: bytes, error: type[InstrumentFileError], words: str
):
    path = tmp_path / "master.csv"
    path.write_bytes(content)
    with pytest.raises(error) as caught:
        read(path)
    assert type(caught.value) is error
    assert words in caught.value.message
    assert caught.value.hint


def test_gzip_is_known_by_its_content_and_may_have_several_members(tmp_path: Path):
    path = tmp_path / "master.csv"
    path.write_bytes(gzip.compress(HEADER.encode()) + gzip.compress(ACC.encode()) + b"\x00" * 8)
    assert read_file(path) == (HEADER + ACC).encode()


def test_an_unpacked_size_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("core.trading.instruments._file.MAX_BYTES", 1_000)
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b"0" * 1_001))
    with pytest.raises(InstrumentFileTooLarge):
        read_file(path)
    path.write_bytes(b"0" * 1_001)
    with pytest.raises(InstrumentFileTooLarge):
        read_file(path)


def test_a_path_that_is_no_readable_file_is_refused(tmp_path: Path):
    with pytest.raises(InstrumentFileMissing, match="does not exist"):
        read_file(tmp_path / "absent.csv")
    with pytest.raises(InstrumentFileUnreadable, match="is a folder"):
        read_file(tmp_path)
    with pytest.raises(InstrumentFileUnreadable, match="cannot be read"):
        read_file(Path("a\x00b"))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InstrumentFileUnreadable, match="not a regular file"):
        read_file(pipe)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_of_somebody_else_is_refused(tmp_path: Path):
    path = tmp_path / "private.csv"
    path.write_text(HEADER + ACC)
    path.chmod(0)
    with pytest.raises(InstrumentFileUnreadable, match="cannot be read"):
        read_file(path)


def test_a_last_row_without_a_line_end_is_a_row():
    assert parse(ACC, CALL, ACC.replace("5633", "5634").strip()).count == 3
    assert parse(ACC.strip()).count == 1


SHARED = Path(os.environ.get("PANDA_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "count", "exchanges", "indices"),
    [
        ("kite_nfo_2026-08_day1.csv.gz", 34_764, ("NFO",), 0),
        ("kite_nfo_bfo_2026-08_day2.csv.gz", 39_941, ("BFO", "NFO"), 0),
        ("kite_nse_2026-07-12.csv", 9_946, ("NSE",), 136),
        ("kite_nse_2017-11-24.csv", 6_401, ("NSE",), 36),
    ],
)
def test_real_files_of_kite_are_accepted_whole(name: str, count: int, exchanges: tuple[str, ...], indices: int):
    path = SHARED / name
    if not path.exists():
        pytest.skip("the real files are not beside the checkout")
    data = read_file(path)
    parsed = read(path)
    assert (parsed.count, parsed.rows, parsed.rejected, parsed.exchanges) == (count, count, (), exchanges)
    assert sum(line["instrument_type"] == "IDX" for line in staged(parsed)) == indices
    for raw, ours in zip(csv.DictReader(io.StringIO(data.decode(), newline="")), staged(parsed), strict=True):
        assert ours["trading_symbol"] == raw["tradingsymbol"] and ours["name"] == raw["name"].strip()
        assert Decimal(ours["tick_size"]) == Decimal(raw["tick_size"])
        assert Decimal(ours["strike"] or 0) == Decimal(raw["strike"])


UPSTOX = '"instrument_key","exchange_token","tradingsymbol","name","last_price","expiry","strike","tick_size","lot_size","instrument_type","option_type","exchange"\n'
NUVAMA = "exchangetoken,tradingsymbol,symbolname,description,expiry,strikeprice,ticksize,lotsize,optiontype,series,assettype,exchange,isin,asmgsmmsg\n"
OWN = """
format = "own"
source = "house"

[token]
text = "id"

[columns]
trading_symbol = "ticker"
segment = "board"
strike = "k"
underlying = { column = "ticker", pattern = '^([A-Z]+)' }

[exchange]
column = "venue"
names = { XNSE = "NSE", XNFO = "NFO" }

[instrument_type]
column = "kind"
names = { share = "EQ", future = "FUT", call = "CE", put = "PE" }

[expiry]
column = "last_day"
dates = ["%d-%b-%Y", "%d%b%Y", "epoch", "epoch_ms"]
"""


def test_upstox_has_text_keys_its_own_venues_and_tickers_inside_symbols():
    parsed = read(
        (
            UPSTOX
            + '"NSE_EQ|INE0J1E01027","10293","KCK","KCK INDUSTRIES LTD","20.4","","","0.05","2500","EQUITY","","NSE_EQ"\n'
            + '"NSE_FO|50911","50911","NATIONALUM26FEB355PE","NATIONAL ALUMINIUM CO LTD","10.95","2026-02-24","355.0","0.05","3750","OPTSTK","PE","NSE_FO"\n'
            + '"BSE_FO|855001","855001","SENSEX2631985500PE","SENSEX","0","2026-03-19","85500.0","0.05","20","OPTIDX","PE","BSE_FO"\n'
            + '"NSE_INDEX|Nifty 50","26000","NIFTY 50","Nifty 50","5804.1","","","","","INDEX","INDEX","NSE_INDEX"\n'
            + '"NSE_COM|4","4","BRENTCRUDEOIL","BRCRUDE","0","","0.0","100.0","1","","COM","NSE_COM"\n'
        ).encode()
    )
    assert parsed.rejected == ()
    share, option, weekly, index, spot = staged(parsed)
    assert (share["instrument_token"], share["broker_key"], share["exchange"], share["segment"]) == (
        "", "NSE_EQ|INE0J1E01027", "NSE", "NSE_EQ",
    )  # fmt: skip
    assert (option["exchange"], option["underlying"], option["option_type"], option["strike"]) == (
        "NFO", "NATIONALUM", "PE", "355.0",
    )  # fmt: skip
    assert json.loads(option["attributes"]) == {"instrument_type": "OPTSTK"}
    assert weekly["underlying"] == "SENSEX"
    assert (index["instrument_type"], index["tick_size"], index["lot_size"]) == ("IDX", "", "")
    assert (spot["instrument_type"], spot["expiry"], spot["strike"]) == ("EQ", "", "")


def test_nuvama_has_isins_for_symbols_its_own_dates_and_numbers_that_mean_none():
    parsed = read(
        (
            NUVAMA
            + '531716_BSE,INE843F01014,TRICOMFRU,TRICOM FRUIT,,,0.01,1,,XT,EQUITY,BSE,INE843F01014,"Under ""GSM"", stage \\ 1"\n'
            + "52171_NFO,ABB25OCTFUT,ABB,ABB25OCTFUT,28/OCT/25,-0.01,0.5,125,XX,,FUTSTK,NFO,,\n"
            + "4967_CDS,EURUSD26MAR1.2PE,EURUSD,EURUSD26MAR1.2PE,27/MAR/26,1.2,1.0E-4,1,PE,,OPTCUR,CDS,,\n"
            + "JEERA_NCDEX,JEERAUNJHA11SEP25CE30400,JEERAUNJHA19SEP2025,J,11/SEP/25,30400.0,2.0,3,CE,,OPTFUT,NCDEX,,\n"
            + "-104,BSE200,BSE 200,BSE 200,,,,,,,INDEX,BSE,,\n"
            + "\x1e_MCX,X25AUGFUT,X,X,28/AUG/25,0.0,1.0,1,XX,,FUTCOM,MCX,,\n"
        ).encode()
    )
    share, future, option, commodity, index = staged(parsed)
    assert (share["trading_symbol"], share["name"], share["exchange_token"]) == ("TRICOMFRU", "TRICOM FRUIT", "531716")
    assert json.loads(share["attributes"]) == {
        "series": "XT", "isin": "INE843F01014", "tradingsymbol": "INE843F01014", "asmgsmmsg": 'Under "GSM", stage \\ 1',
    }  # fmt: skip
    assert (future["instrument_type"], future["strike"], future["expiry"]) == ("FUT", "", "2025-10-28")
    assert (option["tick_size"], option["strike"], option["underlying"]) == ("0.0001", "1.2", "EURUSD")
    assert commodity["underlying"] == "JEERAUNJHA"
    assert (index["broker_key"], index["exchange_token"], index["instrument_type"]) == ("-104", "", "IDX")
    (bad,) = parsed.rejected
    assert (bad.line, bad.field, bad.reason) == (7, "exchangetoken", "'\\x1e_MCX' holds a control character")


def test_kite_with_eight_columns_is_recognised():
    header = "instrument_token,tradingsymbol,exchange,name,segment,instrument_type,lot_size,tick_size\n"
    (only,) = staged(read((header + "12345,RELIANCE,NSE,RELIANCE,NSE,EQ,1,0.05\n").encode()))
    assert (only["instrument_token"], only["trading_symbol"], only["tick_size"], only["last_price"]) == (
        "12345", "RELIANCE", "0.05", "",
    )  # fmt: skip


@pytest.mark.parametrize("day", ["26-Nov-2026", "26NOV2026", "1795651200", "1795651200000"])
def test_a_mapping_of_ones_own_reads_any_spelling_of_a_date(tmp_path: Path, day: str):
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    data = f"id,ticker,board,k,venue,kind,last_day\na1,ACC-FUT,F,,XNFO,future,{day}\n".encode()
    (only,) = staged(read(data, mapping=path))
    assert (only["broker_key"], only["exchange"], only["expiry"], only["underlying"]) == (
        "a1", "NFO", "2026-11-26", "ACC",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('text = "id"', ""), "token: takes either integer or text"),
        (("[token]", "[tokens]"), "tokens: Extra inputs are not permitted"),
        (("'^([A-Z]+)'", "'^[A-Z]+'"), "columns.underlying"),
        (("'^([A-Z]+)'", "'^(['"), "is not a regular expression"),
        (('"%d-%b-%Y"', '"DD-MM"'), "is no date format"),
        (('XNSE = "NSE"', 'XNSE = "nse"'), "exchange.names.XNSE"),
        (('share = "EQ"', 'share = "STOCK"'), "instrument_type.names.share"),
        (('segment = "board"', ""), "columns lacks segment"),
        (('call = "CE"', 'call = "OPT"'), "needs the table option_type"),
        (("[token]", "[token"), "cannot be read as TOML"),
    ],
)
def test_a_mapping_that_cannot_be_names_table_and_key(tmp_path: Path, change: tuple[str, str], words: str):
    path = tmp_path / "own.toml"
    assert change[0] in OWN
    path.write_text(OWN.replace(*change))
    with pytest.raises(InstrumentMappingInvalid) as caught:
        load_mapping(path)
    assert words in caught.value.message
    assert str(path) in caught.value.message


def test_a_mapping_file_that_is_not_there_is_said_so(tmp_path: Path):
    with pytest.raises(InstrumentMappingInvalid, match="No such file"):
        load_mapping(tmp_path / "absent.toml")
    with pytest.raises(InstrumentMappingInvalid, match="none of auto, "):
        open_master(HEADER.encode() + ACC.encode(), format="zerodha")


def test_shipped_formats_are_recognised_by_their_own_columns():
    for name, mapping in shipped().items():
        header = ",".join(dict.fromkeys(mapping.required())) + "\n"
        assert open_master(header.encode() + b"x\n").format == name


def test_frames_and_dictionaries_are_read_like_files():
    rows = [
        {
            "instrument_token": 9331458, "exchange_token": "36451", "tradingsymbol": "NIFTY26NOV24300CE", "name": "NIFTY",
            "last_price": 0.0, "expiry": date(2026, 11, 24), "strike": 24300.0, "tick_size": 0.05, "lot_size": 65,
            "instrument_type": "CE", "segment": "NFO-OPT", "exchange": "NFO",
        },
        {**dict(zip(KITE_COLUMNS, ACC.strip().split(","), strict=True)), "expiry": "", "strike": 0.0},
    ]  # fmt: skip
    from_rows, from_file = read(rows), parse(CALL, ACC)
    for ours, theirs in zip(staged(from_rows), staged(from_file), strict=True):
        assert {**ours, "strike": "", "tick_size": ""} == {**theirs, "strike": "", "tick_size": ""}
        assert Decimal(ours["tick_size"]) == Decimal(theirs["tick_size"])
    frame = pl.read_csv(io.StringIO(HEADER + CALL + ACC), try_parse_dates=True)
    assert [row["expiry"] for row in staged(read(frame))] == ["2026-11-24", ""]


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ([{"instrument_token": [1]}], "holds a list"),
        (["x"], "a list of dictionaries"),
        (pl.DataFrame({"instrument_token": [[1]]}), "lists or structures"),
        (io.StringIO("text"), "must be binary"),
    ],
)
def test_input_that_is_no_table_is_refused(file: Any, words: str):
    with pytest.raises(InvalidInput, match=words):
        open_master(file)


def test_a_stream_is_read_to_its_end():
    assert read(io.BytesIO((HEADER + ACC).encode())) == parse(ACC)


def zipped(*files: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return buffer.getvalue()


def test_a_zip_of_one_file_is_unpacked():
    plain = (HEADER + ACC).encode()
    assert read(zipped(("master.csv", plain), ("__MACOSX/._master.csv", b"x"))) == parse(ACC)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: zipped(("a.csv", b"a"), ("b.csv", b"b")), InstrumentFileCorrupt, "archive of 2 files"),
        (lambda: zipped(("a.csv", (HEADER + ACC).encode()))[:-30], InstrumentFileCorrupt, "damaged zip archive"),
        (lambda: zipped(("a.csv", b"0" * 40_000_000)), InstrumentFileTooLarge, "unpacks to more than"),
        (lambda: gzip.compress(b"0" * 40_000_000), InstrumentFileTooLarge, "unpacks to more than"),
        (lambda: b"\xfe\xff" + HEADER.encode("utf-16-be"), InstrumentFileCorrupt, "UTF-16"),
    ],
)
def test_packed_files_that_are_wrong_or_made_to_fill_the_memory_are_refused(
    make: Callable[[], bytes], error: type[InstrumentFileError], words: str
):
    with pytest.raises(error) as caught:
        open_master(make())
    assert words in caught.value.message


def test_a_field_of_a_megabyte_rejects_its_row_alone():
    parsed = parse(row(name="N" * 1_000_000), CALL)
    assert parsed.count == 1
    assert parsed.rejected[0].reason.endswith("is longer than 200 characters")
    wide = read(
        (HEADER.strip() + ",note\n" + ACC.strip() + "," + "n" * 1_000_000 + "\n" + CALL.strip() + ",x\n").encode()
    )
    assert (wide.count, wide.rejected[0].field) == (1, "note")


def test_pieces_know_of_each_other(monkeypatch: pytest.MonkeyPatch):
    whole = parse(ACC, CALL, ACC, ACC.replace("ACC LTD", "OTHER"), CALL, row(expiry="soon"))
    monkeypatch.setattr("core.trading.instruments._reader._CHUNK", 1)
    parts = parse(ACC, CALL, ACC, ACC.replace("ACC LTD", "OTHER"), CALL, row(expiry="soon"))
    assert parts == whole
    assert (whole.count, whole.duplicates) == (2, 2)
    assert [bad.line for bad in whole.rejected] == [5, 7]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([ACC, CALL, ACC.replace("5633", "7"), "x\n", ACC.replace("LTD", "L")]), max_size=12))
def test_how_a_file_is_cut_into_pieces_changes_nothing(rows: list[str]):
    import core.trading.instruments._reader as reader

    before = reader._CHUNK
    outcomes: list[Any] = []
    for size in (before, 1, 150):
        reader._CHUNK = size
        try:
            outcomes.append(parse(*rows))
        except InstrumentFileError as error:
            outcomes.append((type(error), error.message))
        finally:
            reader._CHUNK = before
    assert outcomes[0] == outcomes[1] == outcomes[2]


@given(
    st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=40)
    .map(str.strip)
    .filter(bool)
)
def test_any_text_of_an_unmapped_column_comes_through_as_json(text: str):
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([[*KITE_COLUMNS, "note"], [*ACC.strip().split(","), text]])
    (only,) = staged(read(buffer.getvalue().encode()))
    assert json.loads(only["attributes"]) == {"note": text}


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "format", "rows", "duplicates", "rejected"),
    [
        ("nuvama_instruments_2025-08-25.csv.gz", "nuvama", 153_818, 1_286, 1),
        ("nuvama_instruments_2025-09-15.csv.gz", "nuvama", 157_566, 1_282, 0),
        ("upstox_complete_2026-02-09.csv.gz", "upstox", 204_218, 0, 0),
    ],
)
def test_real_files_of_other_brokers_are_read_whole(name: str, format: str, rows: int, duplicates: int, rejected: int):
    path = SHARED / name
    if not path.exists():
        pytest.skip("the real files are not beside the checkout")
    assert open_master(path).format == format
    parsed = read(path)
    assert (parsed.rows, parsed.duplicates, len(parsed.rejected)) == (rows, duplicates, rejected)
    assert parsed.count == rows - duplicates - rejected
