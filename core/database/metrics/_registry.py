"""One collector in each registry, however many databases are watched: a name may be exposed only once."""

import threading
import weakref
from collections.abc import Iterable
from typing import Protocol

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from core.database.errors import ConfigurationError
from core.database.metrics._families import Families
from core.printable import printable

_LONGEST_NAME = 200


class Source(Protocol):
    """Somebody who has samples."""

    def fill(self, families: Families, database: str) -> None:
        """Add them, labelled with the database's name. Called from any thread; must not wait."""
        ...


class _Sources(Collector):
    def __init__(self) -> None:
        self.by_name: dict[str, Source] = {}

    def collect(self) -> Iterable[Metric]:
        families = Families()
        for name, source in list(self.by_name.items()):
            source.fill(families, name)
        return families


_collectors: "weakref.WeakKeyDictionary[CollectorRegistry, _Sources]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def add(registry: CollectorRegistry, database: str, source: Source) -> None:
    """Expose the source under that name. Raises `ConfigurationError` where another has it, or it is no label's value."""
    if printable(database) != database or len(database) > _LONGEST_NAME:
        raise ConfigurationError(
            f"{database[:_LONGEST_NAME]!r} is no name for a database's samples",
            hint=f"Give at most {_LONGEST_NAME} characters that can be seen.",
        )
    with _lock:
        collector = _collectors.setdefault(registry, _Sources())
        if database in collector.by_name:
            raise ConfigurationError(
                f"a database named {database!r} is in this registry already",
                hint='Give one of them another name: DatabaseMetrics(manager, database="...").',
            )
        collector.by_name[database] = source
        if len(collector.by_name) == 1:
            registry.register(collector)


def remove(registry: CollectorRegistry, database: str, source: Source) -> None:
    """Expose it no more; does nothing where it is not exposed."""
    with _lock:
        collector = _collectors.get(registry)
        if collector is None or collector.by_name.get(database) is not source:
            return
        del collector.by_name[database]
        if not collector.by_name:
            registry.unregister(collector)
