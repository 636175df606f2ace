"""Prometheus: what a manager measures, what a health check says, and what the server itself counts.

    async with DatabaseManager(url) as manager, DatabaseMetrics(manager):
        ...                                     # scraped from prometheus_client's default registry

Nothing here waits for the database when Prometheus asks: a scrape reads counters in memory and the last answer of a check
that runs beside it. All names begin with `alpha_panda_database_`, and every sample says which `database` it is of.
"""

from core.database.metrics._exporter import Exporter
from core.database.metrics._families import Families
from core.database.metrics._manager import DatabaseMetrics
from core.database.metrics._registry import Source

__all__ = ["DatabaseMetrics", "Exporter", "Families", "Source"]
