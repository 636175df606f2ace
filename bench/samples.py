"""Statistics over samples taken in rounds: medians and quartiles, and ratios formed within a round before they are summed up.

A machine's speed drifts from second to second, so two entrants are comparable only inside one round. The ratio of two medians
mixes rounds; the median of the rounds' ratios does not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["ENOUGH_ROUNDS", "Spread", "interval", "quantile", "ratios", "spread"]

ENOUGH_ROUNDS = 6
"""With fewer, not even the extremes hold the true median with 95 % confidence."""
_Z95 = 1.96  # standard deviations on each side of the mean that hold 95 % of a normal distribution


@dataclass(frozen=True, slots=True)
class Spread:
    """Five numbers of one series: the extremes, the quartiles and the median, in the series' own unit."""

    low: float
    first: float
    median: float
    third: float
    high: float


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the series lies, interpolated linearly between neighbours."""
    if not values:
        raise ValueError("No values, so no quantile")
    if not 0 <= share <= 1:
        raise ValueError(f"A share lies between 0 and 1, not at {share}")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(values: Sequence[float]) -> Spread:
    """The five numbers of `values`; ValueError when there are none."""
    return Spread(
        low=quantile(values, 0),
        first=quantile(values, 0.25),
        median=median(values),
        third=quantile(values, 0.75),
        high=quantile(values, 1),
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Between which two values of the series the true median lies, with 95 % confidence (less below ENOUGH_ROUNDS).

    By order statistics, so without a guess at the distribution: of n rounds, about n/2 fall below the true median, give
    or take the square root of n.
    """
    if not values:
        raise ValueError("No values, so no interval")
    ordered = sorted(values)
    rank = max(0, math.floor((len(ordered) - _Z95 * math.sqrt(len(ordered))) / 2) - 1)
    return ordered[rank], ordered[len(ordered) - 1 - rank]


def ratios(values: Sequence[float], against: Sequence[float]) -> tuple[float, ...]:
    """Each round's value over the same round's reference; ValueError unless both have the same rounds."""
    return tuple(value / reference for value, reference in zip(values, against, strict=True))
