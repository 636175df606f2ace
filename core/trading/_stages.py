"""The stages of long work: how long each took, and who is told as it begins."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager


class Stages:
    """Seconds of each stage by its name; of work that began anew, those of its last run."""

    def __init__(self, progress: Callable[[str], object] | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._stage: tuple[str, float] | None = None
        self._began = time.perf_counter()

    @property
    def milliseconds(self) -> int:
        """Since the work began."""
        return round((time.perf_counter() - self._began) * 1_000)

    def restart(self, *, keep: str) -> None:
        """Forget all but a stage that is not done again."""
        self.stop()
        for name in self.seconds.keys() - {keep}:
            del self.seconds[name]

    def start(self, name: str) -> None:
        """End the stage under way, if one is, and begin another."""
        self.stop()
        self._stage = (name, time.perf_counter())
        if self._progress is not None:
            self._progress(name)

    def stop(self) -> None:
        if self._stage is not None:
            name, began = self._stage
            self.seconds[name] = time.perf_counter() - began
            self._stage = None

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        self.start(name)
        try:
            yield
        finally:
            self.stop()
