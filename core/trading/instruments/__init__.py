"""The daily instrument master: load a broker's file, look an instrument up.

InstrumentFileError
    InstrumentFileMissing
    InstrumentFileUnreadable
    InstrumentFileTooLarge
    InstrumentFileEmpty
    InstrumentFileTruncated
    InstrumentFileCorrupt
    InstrumentFileHeader
    InstrumentFileRejected
    InstrumentMappingInvalid
    StaleInstrumentFile
    MasterWouldShrink
"""

from core.trading.instruments._cache import InstrumentCache
from core.trading.instruments._cached import CachedInstrument
from core.trading.instruments._chain import ChainRow, expiries, option_chain
from core.trading.instruments._diff import Difference, FileDiff, diff_files
from core.trading.instruments._errors import (
    InstrumentFileCorrupt,
    InstrumentFileEmpty,
    InstrumentFileError,
    InstrumentFileHeader,
    InstrumentFileMissing,
    InstrumentFileRejected,
    InstrumentFileTooLarge,
    InstrumentFileTruncated,
    InstrumentFileUnreadable,
    InstrumentMappingInvalid,
    MasterWouldShrink,
    StaleInstrumentFile,
)
from core.trading.instruments._file import InstrumentInput
from core.trading.instruments._frame import frame
from core.trading.instruments._history import InstrumentState, as_of, history
from core.trading.instruments._journal import CHANNEL, loads
from core.trading.instruments._load import Progress, load
from core.trading.instruments._lookup import by_key, by_symbol, get
from core.trading.instruments._mapping import FormatMapping, load_mapping, shipped
from core.trading.instruments._report import LoadReport, RejectedRow, Shrink
from core.trading.instruments._search import search

__all__ = [
    "CHANNEL",
    "CachedInstrument",
    "ChainRow",
    "Difference",
    "FileDiff",
    "FormatMapping",
    "InstrumentCache",
    "InstrumentFileCorrupt",
    "InstrumentFileEmpty",
    "InstrumentFileError",
    "InstrumentFileHeader",
    "InstrumentFileMissing",
    "InstrumentFileRejected",
    "InstrumentFileTooLarge",
    "InstrumentFileTruncated",
    "InstrumentFileUnreadable",
    "InstrumentInput",
    "InstrumentMappingInvalid",
    "InstrumentState",
    "LoadReport",
    "MasterWouldShrink",
    "Progress",
    "RejectedRow",
    "Shrink",
    "StaleInstrumentFile",
    "as_of",
    "by_key",
    "by_symbol",
    "diff_files",
    "expiries",
    "frame",
    "get",
    "history",
    "load",
    "load_mapping",
    "loads",
    "option_chain",
    "search",
    "shipped",
]
