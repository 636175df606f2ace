"""Why a file of snapshots cannot be taken in or written. Nothing is stored then, and no file is left half written."""

from core.database.errors import PandaDatabaseError


class SnapshotFileError(PandaDatabaseError, ValueError):
    """The file as a whole cannot be used; what is stored stays as it is."""


class SnapshotFileMissing(SnapshotFileError):
    mend = "Check the path."


class SnapshotFileUnreadable(SnapshotFileError):
    """It is a folder or a device, or this user may not read it."""

    mend = "Name a regular file that this user may read."


class SnapshotFileEmpty(SnapshotFileError):
    mend = "Give a file with a header and rows."


class SnapshotFileTruncated(SnapshotFileError):
    """It ends in the middle: the rows behind the break are missing."""

    mend = "Make or download the file again."


class SnapshotFileCorrupt(SnapshotFileError):
    """Its bytes are no gzip, no UTF-8, no CSV or no Parquet."""

    mend = "Give UTF-8 CSV (plain, gzip or zip) or Parquet."


class SnapshotFileTooLarge(SnapshotFileError):
    mend = "Import it in parts, a portfolio or a period at a time."


class SnapshotFileHeader(SnapshotFileError):
    """Its columns are not those of snapshots."""

    mend = "Say which column is which: columns={'snapshot_time': ..., 'equity': ...} (--column equity=NAME)."


class SnapshotFileRejected(SnapshotFileError):
    """Not one row of it is valid; with `strict`, one is not."""

    mend = "Look at the rows with a dry run."


class SnapshotFileNotWritten(PandaDatabaseError, OSError):
    """The file could not be written; what stood in its place is as it was."""

    mend = "Check the folder, its free space, and that this user may write there."
