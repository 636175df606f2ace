"""Counts and times in memory of fixed size."""

from bisect import bisect_left
from dataclasses import dataclass

# 10 us to 500 s. Each bucket is at most 21 % wider than the one before, so that a percentile is off by 10 % at the most, and
# 1, 2.5 and 5 of each power of ten are among the bounds, which are those that Prometheus is shown.
_STEPS = (1, 1.2, 1.44, 1.73, 2.08, 2.5, 2.97, 3.54, 4.2, 5, 5.95, 7.07, 8.41)
BOUNDS: tuple[float, ...] = tuple(float(f"{step}e{power}") for power in range(-5, 3) for step in _STEPS)[:-3]
SHOWN: tuple[float, ...] = tuple(
    bound for bound in BOUNDS if 1e-4 <= bound <= 100 and f"{bound:e}"[:8] in {"1.000000", "2.500000", "5.000000"}
)
"""The bounds of the histograms in Prometheus, seconds: 100 us to 100 s."""


class Tally:
    """Runs of one kind: how many, how long, in which bucket. Written by one thread, read by any."""

    __slots__ = ("buckets", "count", "errors", "is_copy", "longest", "operation", "total")

    def __init__(self, operation: str = "") -> None:
        self.operation = operation
        self.is_copy = operation == "COPY"
        self.count = 0
        self.errors = 0
        self.total = 0.0
        self.longest = 0.0
        self.buckets = [0] * (len(BOUNDS) + 1)

    def add(self, seconds: float) -> None:
        self.count += 1
        self.total += seconds
        if seconds > self.longest:  # noqa: PLR1730 - a call of max() takes as long as all the rest
            self.longest = seconds
        self.buckets[bisect_left(BOUNDS, seconds)] += 1

    def include(self, other: "Tally") -> None:
        """Add all that another has counted."""
        self.count += other.count
        self.errors += other.errors
        self.total += other.total
        self.longest = max(self.longest, other.longest)
        self.buckets = [mine + theirs for mine, theirs in zip(self.buckets, other.buckets, strict=True)]

    def percentile(self, share: float) -> float:
        """The middle of the bucket in which the share-th run lies, never above the longest run."""
        rank = share * self.count
        seen = 0
        for index, count in enumerate(self.buckets):
            seen += count
            if count and seen >= rank:
                return min(_middle(index), self.longest)
        return self.longest

    def histogram(self) -> "Histogram":
        """As Prometheus wants it."""
        buckets = list(self.buckets)
        cumulative: list[int] = []
        seen, start = 0, 0
        for bound in SHOWN:
            end = bisect_left(BOUNDS, bound) + 1
            seen += sum(buckets[start:end])
            start = end
            cumulative.append(seen)
        return Histogram(tuple(cumulative), seen + sum(buckets[start:]), self.total)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Times by bucket: `cumulative[i]` of them took at most `SHOWN[i]` seconds, `count` in all took `total`."""

    cumulative: tuple[int, ...]
    count: int
    total: float


def _middle(index: int) -> float:
    """The geometric middle of a bucket; of those without a lower or upper bound, the other one."""
    if index == 0:
        return BOUNDS[0]
    if index == len(BOUNDS):
        return BOUNDS[-1]
    return (BOUNDS[index - 1] * BOUNDS[index]) ** 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class StatementStatistics:
    """All runs of one statement; times are seconds, percentiles within 10 %."""

    statement: str
    count: int
    errors: int
    total: float
    max: float
    p50: float
    p95: float
    p99: float

    @property
    def mean(self) -> float:
        return self.total / self.count

    @classmethod
    def of(cls, statement: str, tally: Tally) -> "StatementStatistics":
        return cls(
            statement=statement,
            count=tally.count,
            errors=tally.errors,
            total=tally.total,
            max=tally.longest,
            p50=tally.percentile(0.50),
            p95=tally.percentile(0.95),
            p99=tally.percentile(0.99),
        )
