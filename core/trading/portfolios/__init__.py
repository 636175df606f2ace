"""Portfolios and their history: record, latest, equity curve.

Snapshots are append-only and lie in a partition for each UTC month, which must exist before its first row. `record` and
`record_many` see to it within the caller's transaction. Making one takes an exclusive lock on the whole table until that
transaction ends, once a month: a service that records from many processes calls `ensure_partitions(manager, ...)` ahead of
time, which does it in a short transaction of its own.
"""

from core.trading.portfolios._frames import SNAPSHOT_COLUMNS
from core.trading.portfolios._partitions import ensure_partitions
from core.trading.portfolios._reads import EquityPoint, LatestSnapshot, equity_curve, latest
from core.trading.portfolios._writes import create, record, record_many

__all__ = [
    "SNAPSHOT_COLUMNS",
    "EquityPoint",
    "LatestSnapshot",
    "create",
    "ensure_partitions",
    "equity_curve",
    "latest",
    "record",
    "record_many",
]
