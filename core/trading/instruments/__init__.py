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
"""

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
)
from core.trading.instruments._load import FileFormat, Progress, load
from core.trading.instruments._lookup import by_symbol, get
from core.trading.instruments._report import LoadReport, RejectedRow

__all__ = [
    "FileFormat",
    "InstrumentFileCorrupt",
    "InstrumentFileEmpty",
    "InstrumentFileError",
    "InstrumentFileHeader",
    "InstrumentFileMissing",
    "InstrumentFileRejected",
    "InstrumentFileTooLarge",
    "InstrumentFileTruncated",
    "InstrumentFileUnreadable",
    "LoadReport",
    "Progress",
    "RejectedRow",
    "by_symbol",
    "get",
    "load",
]
