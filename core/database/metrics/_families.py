"""Metric families in the making: one help text and type a name, samples added by whoever has some."""

from collections.abc import Iterator
from importlib.metadata import version

from prometheus_client import Metric

from core.database.monitoring import SHOWN, Histogram

PREFIX = "alpha_panda_database_"

_BOUNDS = (*map(str, SHOWN), "+Inf")


class Families:
    """What one scrape answers. `labels` of every sample begin with the database's name."""

    def __init__(self) -> None:
        self._made: dict[str, Metric] = {}
        self.gauge("build_info", "The release that measures.", 1, version=version("alpha-panda-core"))

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._made.values())

    def gauge(self, name: str, help: str, value: float, **labels: str) -> None:
        """A value that may go up and down."""
        self._family(name, help, "gauge").add_sample(PREFIX + name, labels, value)

    def counter(self, name: str, help: str, value: float, **labels: str) -> None:
        """A value that only grows; `name` ends in `_total`."""
        self._family(name.removesuffix("_total"), help, "counter").add_sample(PREFIX + name, labels, value)

    def histogram(self, name: str, help: str, value: Histogram, **labels: str) -> None:
        """Seconds, by the bounds `SHOWN`."""
        family = self._family(name, help, "histogram")
        for bound, count in zip(_BOUNDS, [*value.cumulative, value.count], strict=True):
            family.add_sample(f"{PREFIX}{name}_bucket", {**labels, "le": bound}, count)
        family.add_sample(f"{PREFIX}{name}_count", labels, value.count)
        family.add_sample(f"{PREFIX}{name}_sum", labels, value.total)

    def _family(self, name: str, help: str, kind: str) -> Metric:
        if name not in self._made:
            self._made[name] = Metric(PREFIX + name, help, kind)
        return self._made[name]
