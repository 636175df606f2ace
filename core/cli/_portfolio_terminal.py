"""A curve drawn with letters: in braille, eight dots to each, or with stars where the terminal has no such letters."""

import sys
from collections.abc import Sequence
from datetime import datetime

_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Of a braille letter's dots, by row and column."""


def braille_is_shown() -> bool:
    """Whether the standard output can write it."""
    try:
        "\u28ff".encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def curve(
    times: Sequence[datetime], values: Sequence[float], *, width: int, height: int, braille: bool = True
) -> list[str]:
    """`height` lines of `width` letters: time to the right, value upwards, from the lowest to the highest.

    NaN is left blank. The lines between the points are drawn too.
    """
    across, down = (2, 4) if braille else (1, 1)
    columns, rows = width * across - 1, height * down - 1
    known = [value for value in values if value == value]  # noqa: PLR0124 - NaN is not itself
    lowest, span = min(known, default=0.0), (max(known, default=0.0) - min(known, default=0.0)) or 1.0
    length = (times[-1] - times[0]).total_seconds() or 1.0
    cells: dict[tuple[int, int], int] = {}
    before: tuple[int, int] | None = None
    for at, value in zip(times, values, strict=True):
        if value != value:  # noqa: PLR0124
            before = None
            continue
        x = round((at - times[0]).total_seconds() / length * columns)
        y = round((1 - (value - lowest) / span) * rows) if max(known) > lowest else rows // 2
        for dot_x, dot_y in _line(before or (x, y), (x, y)):
            cell = dot_y // down, dot_x // across
            cells[cell] = cells.get(cell, 0) | _BITS[dot_y % down][dot_x % across]
        before = x, y
    return [
        "".join(_letter(cells.get((row, column), 0), braille=braille) for column in range(width))
        for row in range(height)
    ]


def _letter(bits: int, *, braille: bool) -> str:
    if not bits:
        return " "
    return chr(0x2800 + bits) if braille else "*"


def _line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    (x0, y0), (x1, y1) = start, end
    steps = max(abs(x1 - x0), abs(y1 - y0), 1)
    return [(round(x0 + (x1 - x0) * n / steps), round(y0 + (y1 - y0) * n / steps)) for n in range(steps + 1)]
