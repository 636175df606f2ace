"""Why an instrument file cannot be loaded. Each is raised before anything is written."""

from typing import Any

from core.database.errors import PandaDatabaseError
from core.trading.instruments._report import Shrink


class InstrumentFileError(PandaDatabaseError, ValueError):
    """The file as a whole cannot be used; what is stored stays as it is."""


class InstrumentFileMissing(InstrumentFileError):
    mend = "Check the path; the broker's file must be downloaded first."


class InstrumentFileUnreadable(InstrumentFileError):
    """It is a folder or a device, or this user may not read it."""

    mend = "Name a regular file that this user may read."


class InstrumentFileEmpty(InstrumentFileError):
    mend = "Download the file again; a broker's master is never empty."


class InstrumentFileTruncated(InstrumentFileError):
    """It ends in the middle: the rows behind the break are missing."""

    mend = "Download the file again, and compare its size with what the broker announces."


class InstrumentFileCorrupt(InstrumentFileError):
    """Its bytes are no gzip, no UTF-8 or no CSV."""

    mend = "Download the file again, and load it as it comes from the broker."


class InstrumentFileTooLarge(InstrumentFileError):
    mend = "Load the broker's file one exchange at a time."


class InstrumentFileHeader(InstrumentFileError):
    """The first line does not name the columns of the format."""

    mend = "Give the broker's own file with its header line, or name its format with `format`."


class InstrumentFileRejected(InstrumentFileError):
    """Not one row of it is valid."""

    mend = "Check that it is a file of instruments in the format given."


class InstrumentMappingInvalid(InstrumentFileError):
    """The mapping of a format says something that cannot be."""

    mend = "Correct the mapping; the guide has a worked example."


class StaleInstrumentFile(InstrumentFileError):
    """The master holds a later day of the same source and exchange."""

    mend = "Load a broker's files in the order of their days."


class MasterWouldShrink(InstrumentFileError):
    """The file lacks so much of what is stored that it is more likely to be broken than right."""

    mend = "Look at the file; if it is whole, load it with --allow-shrink (allow_shrink=True)."

    def __init__(self, message: str, *, shrinks: tuple[Shrink, ...] = (), **fields: Any) -> None:
        super().__init__(message, **fields)
        self.shrinks = shrinks
        """The exchanges that would lose more than the limit."""

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, (cls, message, fields) = super().__reduce__()
        return rebuild, (cls, message, {**fields, "shrinks": self.shrinks})
