"""An equity curve in a terminal: braille dots, an axis of money and one of time."""

from collections.abc import Sequence
from datetime import datetime, tzinfo
from decimal import Decimal

from core.demo.trading_days import IST

__all__ = ["draw_curve"]

_BRAILLE = 0x2800
# Dots of a braille cell by (row from the top, column), as Unicode numbers their bits.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def draw_curve(
    points: Sequence[tuple[datetime, Decimal]],
    *,
    currency: str,
    width: int = 80,
    height: int = 10,
    zone: tzinfo = IST,
    plain: bool = False,
) -> list[str]:
    """Lines of at most `width` columns: the currency, `height` rows of curve, the time axis and its dates.

    Points are in order of time and evenly spread over the width, so that nights and weekends of a series recorded in sessions
    take no room. `plain` draws with ASCII, for terminals that have no braille. No point draws a sentence instead.
    """
    if not points:
        return ["no points to draw"]
    values = [value for _, value in points]
    low, high = min(values), max(values)
    labels = _labels(low, high, height)
    margin = max(len(currency), *map(len, labels))
    columns = max(2, width - margin - 2)
    tick, wall, corner, floor = ("+", "|", "+", "-") if plain else ("┤", "│", "└", "─")
    spans = _spans(values, columns if plain else columns * 2, height if plain else height * 4, low, high)
    rows = _characters(spans, height) if plain else _cells(spans, height)
    lines = [f"{currency:>{margin}}"]
    for label, row in zip(labels, rows, strict=True):
        lines.append(f"{label:>{margin}} {tick if label else wall}{row}".rstrip())
    lines.append(f"{'':{margin}} {corner}{floor * columns}")
    lines.append(f"{'':{margin}}  {_dates([time for time, _ in points], columns, zone)}".rstrip())
    return lines


def _labels(low: Decimal, high: Decimal, height: int) -> list[str]:
    """Money at the top, the bottom and every third row between; paise only where the curve is too flat without them."""
    if height == 1 or low == high:
        return [_money(high, exact=True) if row == height // 2 else "" for row in range(height)]
    exact = high - low < 3 * height
    shown = {0, height - 1} | set(range(3, height - 2, 3))
    step = (high - low) / (height - 1)
    return [_money(high - step * row, exact=exact) if row in shown else "" for row in range(height)]


def _money(value: Decimal, *, exact: bool) -> str:
    return f"{value:,.2f}" if exact else f"{value:,.0f}"


def _spans(values: list[Decimal], columns: int, levels: int, low: Decimal, high: Decimal) -> list[tuple[int, int]]:
    """For each column the lowest and highest level that the curve touches in it, level 0 at the bottom.

    Each span reaches to the last level of the column before, so that the line has no gaps; no peak is lost when there are
    more points than columns.
    """
    reach = high - low
    scaled = [
        int((value - low) * (levels - 1) / reach + Decimal("0.5")) if reach else (levels - 1) // 2 for value in values
    ]
    spans: list[tuple[int, int]] = []
    last = scaled[0]
    for column in range(columns):
        # With fewer points than columns a point is drawn wide; with more, its column shows their range.
        start = column * len(scaled) // columns
        here = scaled[start : max(start + 1, (column + 1) * len(scaled) // columns)]
        spans.append((min(*here, last), max(*here, last)))
        last = here[-1]
    return spans


def _cells(spans: list[tuple[int, int]], height: int) -> list[str]:
    grid = [[_BRAILLE] * (len(spans) // 2) for _ in range(height)]
    for column, (bottom, top) in enumerate(spans):
        for level in range(bottom, top + 1):
            row = height * 4 - 1 - level
            grid[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
    return ["".join(map(chr, row)).replace(chr(_BRAILLE), " ") for row in grid]


def _characters(spans: list[tuple[int, int]], height: int) -> list[str]:
    return [
        "".join("*" if bottom <= height - 1 - row <= top else " " for bottom, top in spans) for row in range(height)
    ]


def _dates(times: list[datetime], columns: int, zone: tzinfo) -> str:
    """The first day at the left, the last at the right and the middle one between, as far as they fit."""
    first, middle, last = (
        f"{time.astimezone(zone):%d %b %Y}" for time in (times[0], times[len(times) // 2], times[-1])
    )
    if columns < len(first) + len(last) + 1:
        return first[:columns]
    if first == last:
        return first
    between = columns - len(first) - len(last)
    return f"{first}{middle if between > len(middle) + 1 else '':^{between}}{last}"
