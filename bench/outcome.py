"""What a result means: each entrant's cost and its ratio to the limit, and whether the goals are met."""

from dataclasses import dataclass
from statistics import median

from bench.measure import Goal, Result
from bench.samples import ENOUGH_ROUNDS, Spread, interval, ratios, spread

__all__ = ["Line", "Verdict", "lines", "verdicts"]


@dataclass(frozen=True, slots=True)
class Line:
    """One entrant: seconds per unit, and how many times the limit's, both over the rounds."""

    name: str
    cost: Spread
    ratio: Spread


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal and what was found; without rounds when one of the two could not take part."""

    goal: Goal
    rounds: tuple[float, ...]
    """The ratio in each round."""

    @property
    def ratio(self) -> float | None:
        """The median."""
        return median(self.rounds) if self.rounds else None

    @property
    def between(self) -> tuple[float, float] | None:
        """Where the true ratio lies, with 95 % confidence."""
        return interval(self.rounds) if self.rounds else None

    @property
    def met(self) -> bool | None:
        """By the median; None where nothing was measured or nothing was demanded."""
        if self.ratio is None or self.goal.at_most is None:
            return None
        return self.ratio <= self.goal.at_most

    @property
    def sure(self) -> bool:
        """Whether the bound lies outside of what the median may be; if not, another run may say the contrary."""
        if self.between is None or self.goal.at_most is None or len(self.rounds) < ENOUGH_ROUNDS:
            return False
        low, high = self.between
        return not low <= self.goal.at_most <= high


def lines(result: Result) -> tuple[Line, ...]:
    """Everybody who took part, in the work's order."""
    limit = result.seconds[result.work.limit]
    return tuple(Line(name, spread(taken), spread(ratios(taken, limit))) for name, taken in result.seconds.items())


def verdicts(result: Result) -> tuple[Verdict, ...]:
    """One for each goal of the work, in its order."""
    return tuple(Verdict(goal, _rounds(result, goal)) for goal in result.work.goals)


def _rounds(result: Result, goal: Goal) -> tuple[float, ...]:
    taken, against = result.seconds.get(goal.entrant), result.seconds.get(goal.against)
    return ratios(taken, against) if taken and against else ()
