"""Portfolios and their history: record, latest, equity curve.

Snapshots are append-only and lie in a partition for each UTC month, which must exist before its first row. `record` and
`record_many` see to it within the caller's transaction, which nobody who reads or records has to wait for. A service whose role
may not make tables has a daily job call `ensure_ahead(manager)` instead. Old months are removed by `prune` and thinned out by
`downsample`.
"""

from core.trading.portfolios._calendar import day_of, day_start
from core.trading.portfolios._closes import daily_closes, portfolio_summary
from core.trading.portfolios._compare import CompareBy, Comparison, compare
from core.trading.portfolios._downsample import DownsampledMonth, DownsampleReport, downsample
from core.trading.portfolios._drawdown import Drawdown, DrawdownPoint, MaximumDrawdown, drawdown
from core.trading.portfolios._export import ExportFormat, ExportProgress, export_snapshots
from core.trading.portfolios._file_errors import (
    SnapshotFileCorrupt,
    SnapshotFileEmpty,
    SnapshotFileError,
    SnapshotFileHeader,
    SnapshotFileMissing,
    SnapshotFileNotWritten,
    SnapshotFileRejected,
    SnapshotFileTooLarge,
    SnapshotFileTruncated,
    SnapshotFileUnreadable,
)
from core.trading.portfolios._file_reports import (
    ConflictingSnapshot,
    ExportReport,
    ImportReport,
    Oddity,
    RejectedSnapshot,
    RepeatedSnapshot,
    RoundedField,
)
from core.trading.portfolios._frames import SNAPSHOT_COLUMNS
from core.trading.portfolios._import import ImportProgress, OnConflict, import_snapshots
from core.trading.portfolios._intake import SnapshotInput
from core.trading.portfolios._inventory import PartitionInfo, PartitionState, partitions
from core.trading.portfolios._list import RecordedPeriod, find, get, recorded_period
from core.trading.portfolios._maintenance import MaintenanceProgress
from core.trading.portfolios._partitions import ensure_ahead, ensure_partitions
from core.trading.portfolios._plot import PlotFormat, plot_equity
from core.trading.portfolios._read_frame import snapshot_frame
from core.trading.portfolios._reads import EquityPoint, LatestSnapshot, equity_curve, latest
from core.trading.portfolios._retention import PruneReport, prune
from core.trading.portfolios._series import DailyClose, Flow, Valued
from core.trading.portfolios._statistics import DailyReturn, Summary, returns, summary
from core.trading.portfolios._writer import SnapshotWriter, WriterStatistics
from core.trading.portfolios._writes import create, record, record_many

__all__ = [
    "SNAPSHOT_COLUMNS",
    "CompareBy",
    "Comparison",
    "ConflictingSnapshot",
    "DailyClose",
    "DailyReturn",
    "DownsampleReport",
    "DownsampledMonth",
    "Drawdown",
    "DrawdownPoint",
    "EquityPoint",
    "ExportFormat",
    "ExportProgress",
    "ExportReport",
    "Flow",
    "ImportProgress",
    "ImportReport",
    "LatestSnapshot",
    "MaintenanceProgress",
    "MaximumDrawdown",
    "Oddity",
    "OnConflict",
    "PartitionInfo",
    "PartitionState",
    "PlotFormat",
    "PruneReport",
    "RecordedPeriod",
    "RejectedSnapshot",
    "RepeatedSnapshot",
    "RoundedField",
    "SnapshotFileCorrupt",
    "SnapshotFileEmpty",
    "SnapshotFileError",
    "SnapshotFileHeader",
    "SnapshotFileMissing",
    "SnapshotFileNotWritten",
    "SnapshotFileRejected",
    "SnapshotFileTooLarge",
    "SnapshotFileTruncated",
    "SnapshotFileUnreadable",
    "SnapshotInput",
    "SnapshotWriter",
    "Summary",
    "Valued",
    "WriterStatistics",
    "compare",
    "create",
    "daily_closes",
    "day_of",
    "day_start",
    "downsample",
    "drawdown",
    "ensure_ahead",
    "ensure_partitions",
    "equity_curve",
    "export_snapshots",
    "find",
    "get",
    "import_snapshots",
    "latest",
    "partitions",
    "plot_equity",
    "portfolio_summary",
    "prune",
    "record",
    "record_many",
    "recorded_period",
    "returns",
    "snapshot_frame",
    "summary",
]
