"""What the measurement of growing loads computes; nothing here measures anything."""

from bench.linear import Point, grown, peak, rendered, steepness
from core.demo.market import HEADER, made_master
from core.trading.instruments._reader import open_master

HEAD = HEADER.encode() + b"\n"
ROW = b"256265,1001,NIFTY 50,NIFTY 50,46075.35,,0.0,0.0,0,EQ,INDICES,NSE\n"
OTHER = b"256521,1002,NIFTY 100,NIFTY 100,53557.0,,0.0,0.0,0,EQ,INDICES,NSE\n"


def test_a_file_grows_by_copies_of_other_tokens_and_symbols():
    copy = b"%d,1001,NIFTY 50~1,NIFTY 50,46075.35,,0.0,0.0,0,EQ,INDICES,NSE\n" % (256265 + (1 << 40))
    assert grown(HEAD + ROW + OTHER, 3) == HEAD + ROW + OTHER + copy


def test_a_file_may_shrink_too():
    assert grown(HEAD + ROW + OTHER, 1) == HEAD + ROW


def test_every_row_of_a_grown_file_is_a_valid_instrument_of_its_own():
    lines = made_master().splitlines(keepends=True)[:1_001]
    chunks = list(open_master(grown(b"".join(lines), 2_500)).chunks())
    assert sum(chunk.count for chunk in chunks) == 2_500
    assert not any(chunk.rejected or chunk.duplicates for chunk in chunks)


def test_steepness_is_the_cost_of_a_row_in_the_largest_load_by_that_in_the_smallest():
    assert steepness([Point(100_000, 2.0, 0), Point(500_000, 90.0, 0), Point(1_000_000, 30.0, 0)]) == 1.5


def test_the_goal_of_memory_is_that_of_the_largest_load():
    small, large = Point(100_000, 2.0, 50_000_000), Point(1_000_000, 20.0, 399_000_000)
    assert rendered([small, large]).endswith("memory for 1,000,000 rows: below 400 MB met")
    assert "   100,000      2.00         2.00     50" in rendered([small, large])
    assert rendered([small, Point(1_000_000, 20.0, 400_000_000)]).endswith("below 400 MB MISSED")


def test_the_peak_never_falls_and_counts_what_was_held():
    before = peak()
    held = bytearray(b"x") * 300_000_000
    assert peak() - before >= 0
    assert peak() >= len(held)
