"""The original Alpha Panda's database becomes ours, with its data.

The original's tables move to a schema of their own, ours take their place, and every row of the five tables is moved or
set aside with the reason. One transaction: a process killed in the middle leaves the original as it was.
"""

from core.trading.adoption._adopt import adopt, drop_original, is_original, left_aside
from core.trading.adoption._original import ORIGINAL_SCHEMA
from core.trading.adoption._report import AdoptionReport, Rounded, SetAside, TableCount

__all__ = [
    "ORIGINAL_SCHEMA",
    "AdoptionReport",
    "Rounded",
    "SetAside",
    "TableCount",
    "adopt",
    "drop_original",
    "is_original",
    "left_aside",
]
