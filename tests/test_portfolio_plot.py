"""Pictures of an equity curve, and the same in letters."""

import builtins
import struct
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.cli._portfolio_terminal import curve
from core.database.errors import InvalidInput
from core.trading.portfolios import EquityPoint, plot_equity

START = datetime(2026, 1, 1, tzinfo=UTC)
HOLLOW = "\u2800"


def points(*worths: str | int, step: timedelta = timedelta(days=1)) -> list[EquityPoint]:
    return [EquityPoint(START + n * step, Decimal(worth), Decimal(0)) for n, worth in enumerate(worths)]


def texts(picture: bytes) -> str:
    """What is written in an SVG: matplotlib draws letters as paths and keeps each text in a comment."""
    return " | ".join(part.split("-->")[0].strip() for part in picture.decode().split("<!--")[1:])


def svg(found: list[EquityPoint], **options: Any) -> str:
    given: dict[str, Any] = {"title": "Paper", "currency": "INR", "format": "svg"}
    return texts(plot_equity(found, **(given | options)))


@pytest.mark.parametrize(("format", "begin"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_picture_is_drawn_in_each_format(format: Any, begin: bytes) -> None:
    assert plot_equity(points(100, 90, 110), title="Paper", currency="INR", format=format).startswith(begin)


def test_print_has_more_dots_and_the_same_size() -> None:
    sizes = [
        struct.unpack(">II", plot_equity(points(1, 2), title="p", currency="INR", dpi=dpi)[16:24]) for dpi in (150, 300)
    ]
    assert sizes == [(960, 780), (1920, 1560)]


def test_a_picture_names_the_currency_the_zone_and_the_deepest_fall() -> None:
    written = svg(points(100, 80, 110), title="Paper $a_1$", zone="Asia/Kolkata")
    for words in ("Paper $a_1$", "Equity (INR)", "Drawdown", "Time (Asia/Kolkata)"):
        assert words in written
    assert "deepest −20% on 2026-01-02" in written


def test_large_amounts_are_drawn_in_units_and_near_ones_apart() -> None:
    assert "Equity (INR, billions)" in svg(points(123_456_789_012, 123_556_789_012))
    assert "Equity (INR, millions)" in svg(points(-23_456_789, 12))
    near = svg(points("1000.001", "1000.002"))
    assert {"1,000.0010", "1,000.0020"} <= set(near.split(" | "))


@pytest.mark.parametrize(
    "worths", [(5,), (0,), (7, 7, 7), (-5, -3, -9), (0, 0), ("0.0000000001", "0.0000000001"), (-1, 1, "0.5")]
)
def test_what_has_no_spread_no_peak_or_no_length_is_drawn(worths: tuple[Any, ...]) -> None:
    assert "Equity (INR" in svg(points(*worths))


def test_letters_that_the_font_lacks_are_no_warning() -> None:
    assert plot_equity(points(1, 2), title="\u0928\u092e\u0938\u094d\u0924\u0947", currency="INR")


def test_the_same_points_give_the_same_bytes() -> None:
    pictures = [plot_equity(points(1, 3, 2), title="p", currency="INR") for _ in range(2)]
    assert pictures[0] == pictures[1]


def test_no_points_and_no_such_zone_are_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        plot_equity([], title="p", currency="INR")
    assert caught.value.column == "points"
    with pytest.raises(InvalidInput) as caught:
        plot_equity(points(1), title="p", currency="INR", zone="Nowhere/City")
    assert caught.value.column == "zone"


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "alpha-panda-core\[plot\]"'):
        plot_equity(points(1), title="p", currency="INR")


def test_letters_rise_from_the_lowest_to_the_highest() -> None:
    found = points(0, 1, 2, 3)
    lines = curve([at for at, _, _ in found], [0.0, 1.0, 2.0, 3.0], width=4, height=4, braille=False)
    assert lines == ["   *", "  * ", " *  ", "*   "]
    assert curve([START, START + timedelta(1)], [0.0, 7.0], width=1, height=1) == ["\u285c"]


def test_letters_leave_out_what_is_unknown_and_stand_time_to_scale() -> None:
    times = [START + timedelta(hours=hour) for hour in (0, 1, 9)]
    assert curve(times, [1.0, 1.0, 1.0], width=10, height=1, braille=False) == ["*" * 10]
    assert curve(times, [1.0, float("nan"), 1.0], width=10, height=1, braille=False) == ["*        *"]
    assert curve(times, [float("nan")] * 3, width=3, height=2, braille=False) == ["   ", "   "]


@given(
    st.lists(st.floats(-1e15, 1e15), min_size=1, max_size=30),
    st.integers(1, 40),
    st.integers(1, 10),
    st.booleans(),
)
def test_letters_fill_their_room_and_never_more(values: list[float], width: int, height: int, braille: bool) -> None:
    times = [START + n * timedelta(minutes=7) for n in range(len(values))]
    lines = curve(times, values, width=width, height=height, braille=braille)
    assert [len(line) for line in lines] == [width] * height
    drawn = [any(line[column] not in (" ", HOLLOW) for line in lines) for column in range(width)]
    assert all(drawn) or len(values) == 1
    assert not any(a and not b and any(drawn[n:]) for n, (a, b) in enumerate(pairwise(drawn)) if len(values) > 1)
