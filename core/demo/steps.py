"""The demo's steps: timed, and told to a reporter."""

import time
from collections.abc import Generator
from contextlib import contextmanager

from core.demo.report import DemoReporter, StepTiming

__all__ = ["Step", "Steps"]


class Step:
    """One step under way; `note` is what came out of it."""

    def __init__(self, name: str, reporter: DemoReporter) -> None:
        self.name = name
        self.note = ""
        self._reporter = reporter

    def advance(self, done: int, total: int) -> None:
        """So much of the step is done."""
        self._reporter.advanced(self.name, done=done, total=total)


class Steps:
    """Collects the timings of steps that succeed."""

    def __init__(self, reporter: DemoReporter) -> None:
        self.timings: list[StepTiming] = []
        self._reporter = reporter

    @contextmanager
    def step(self, name: str) -> Generator[Step]:
        step = Step(name, self._reporter)
        self._reporter.started(name)
        started = time.perf_counter()
        finished = False
        try:
            yield step
            finished = True
        finally:
            seconds = time.perf_counter() - started
            if finished:
                self.timings.append(StepTiming(step=name, seconds=round(seconds, 4), note=step.note))
                self._reporter.finished(name, seconds=seconds, note=step.note)
            else:
                self._reporter.failed(name)
