"""Broker files, from bytes to validated rows, without a database."""

import csv
import gzip
import io
import os
from decimal import Decimal, InvalidOperation
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.database.records import VENUE_RULE
from core.trading.instruments import (
    InstrumentFileCorrupt,
    InstrumentFileEmpty,
    InstrumentFileError,
    InstrumentFileHeader,
    InstrumentFileMissing,
    InstrumentFileRejected,
    InstrumentFileTooLarge,
    InstrumentFileTruncated,
    InstrumentFileUnreadable,
)
from core.trading.instruments._checks import exact_decimal
from core.trading.instruments._file import read_file, unpacked
from core.trading.instruments._parse import KITE_COLUMNS, STAGED, Parsed, parse_kite

HEADER = ",".join(KITE_COLUMNS) + "\n"
ACC = "5633,22,ACC,ACC LTD,1834.5,,0.0,0.05,1,EQ,NSE,NSE\n"
CALL = "9331458,36451,NIFTY26NOV24300CE,NIFTY,0.0,2026-11-24,24300.0,0.05,65,CE,NFO-OPT,NFO\n"


def parse(*rows: str, header: str = HEADER) -> Parsed:
    return parse_kite((header + "".join(rows)).encode(), name="master.csv")


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
        "instrument_token": "5633", "exchange": "NSE", "exchange_token": "22", "trading_symbol": "ACC", "name": "ACC LTD",
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


def test_columns_are_found_by_name_and_unknown_ones_are_told():
    shuffled = [*reversed(KITE_COLUMNS), "asm"]
    values = dict(zip(KITE_COLUMNS, ACC.strip().split(","), strict=True)) | {"asm": "stage 2"}
    parsed = parse(",".join(values[name] for name in shuffled) + "\n", header=",".join(shuffled) + "\n")
    assert parsed.csv == parse(ACC).csv
    assert parsed.ignored_columns == ("asm",)


def test_carriage_returns_blank_lines_and_a_byte_order_mark_are_no_content():
    data = b"\xef\xbb\xbf" + (HEADER + ACC + "\n" + CALL).replace("\n", "\r\n").encode()
    assert parse_kite(unpacked(data, name="x"), name="x") == parse(ACC, "\n", CALL)


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
        ({"expiry": "28/AUG/25"}, "expiry", "'28/AUG/25' is not a date such as 2026-11-26"),
        ({"expiry": "2026-02-30"}, "expiry", "'2026-02-30' is not a date such as 2026-11-26"),
        ({"expiry": "2026-2-3"}, "expiry", "'2026-2-3' is not a date such as 2026-11-26"),
        ({"instrument_type": "BOND"}, "instrument_type", "'BOND' is none of EQ, FUT, CE, PE"),
        ({"exchange": "n$e"}, "exchange", f"'n$e' {VENUE_RULE.reason}"),
        ({"segment": "N" * 33}, "segment", f"'{'N' * 33}' {VENUE_RULE.reason}"),
        ({"expiry": "2026-11-24"}, "expiry", "'2026-11-24' is given on what does not expire"),
        ({"expiry": "9999-12-31"}, "expiry", "'9999-12-31' is not a date such as 2026-11-26"),
        ({"instrument_type": "FUT"}, "expiry", "is missing on a derivative"),
        ({"instrument_type": "PE", "expiry": "2026-11-24"}, "strike", "'0.0' is missing on an option"),
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
    parsed = parse(row(**{field: f'"{number}"'}), ACC.replace("5633", "5634"))
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


@given(st.integers(min_value=0, max_value=10**28 - 1))
def test_every_price_that_the_table_holds_survives_parsing(units: int):
    price = Decimal(units).scaleb(-10)
    for text in (f"{price:f}", f"{price:e}"):
        (only,) = staged(parse(row(last_price=text)))
        assert Decimal(only["last_price"]) == price


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_parsed_or_refused_with_a_typed_error(noise: bytes):
    for data in (noise, HEADER.encode() + ACC.encode() + noise, HEADER.encode() + noise + ACC.encode()):
        try:
            parsed = parse_kite(unpacked(data, name="x"), name="x")
        except InstrumentFileError:
            continue
        assert parsed.rows == parsed.count + parsed.duplicates + len(parsed.rejected)
        assert len(staged(parsed)) == parsed.count


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
        (b"token,symbol\n1,A\n", InstrumentFileHeader, "lacks instrument_token, exchange_token"),
        (HEADER.replace("name,", "name,name,").encode() + b"\n1\n", InstrumentFileHeader, "twice"),
        (ACC.encode(), InstrumentFileHeader, "not in Kite's format"),
        (b"\xff\xfe" + HEADER.encode(), InstrumentFileCorrupt, "not UTF-8 text: byte 0xff in line 1"),
        (HEADER.encode() + b"\xe9", InstrumentFileCorrupt, "byte 0xe9 in line 2"),
        ((HEADER + ACC.replace("ACC LTD", '"ACC') + CALL).encode(), InstrumentFileCorrupt, "opened and not closed"),
        ((HEADER + row(name='"A') + ACC + row(name='B"')).encode(), InstrumentFileCorrupt, "over several lines"),
        ((HEADER + ACC + CALL[:30]).encode(), InstrumentFileTruncated, "the middle of line 3"),
        ((HEADER + ACC + ACC.replace("NSE,NSE", "NSE,NS").strip()).encode(), InstrumentFileTruncated, "line 3"),
        ((HEADER + ACC.replace("EQ", "??")).encode(), InstrumentFileRejected, "line 2: instrument_type '??' is none of"),
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
        parse_kite(read_file(path), name="master.csv")
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
    parsed = parse_kite(data, name=name)
    assert (parsed.count, parsed.rows, parsed.rejected, parsed.exchanges) == (count, count, (), exchanges)
    assert sum(line["instrument_type"] == "IDX" for line in staged(parsed)) == indices
    for raw, ours in zip(csv.DictReader(io.StringIO(data.decode(), newline="")), staged(parsed), strict=True):
        assert ours["trading_symbol"] == raw["tradingsymbol"] and ours["name"] == raw["name"].strip()
        assert Decimal(ours["tick_size"]) == Decimal(raw["tick_size"])
        assert Decimal(ours["strike"] or 0) == Decimal(raw["strike"])
