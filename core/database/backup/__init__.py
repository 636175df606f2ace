"""Backup and restore of a whole database: one file, and a restore that is proven equal before it counts.

`backup` lets pg_dump dump one snapshot and digests every row of the same snapshot; the digests stand in the file beside the
dump. `restore` runs what pg_restore makes of the dump in one transaction of its own, digests every row again, and commits
only if all of them agree. `verify_backup` checks a file, and with `deep` restores it where nothing else is. The functions take
a URL and values, own their transactions, and leave nothing half done: not a file, not a database.
"""

from core.database.backup._contents import compare, differences, read_contents
from core.database.backup._dump import BackupReport, backup
from core.database.backup._manifest import Contents, Manifest, SequenceValue, TableDigest
from core.database.backup._progress import OnStep, Step
from core.database.backup._restore import RestoreReport, restore
from core.database.backup._verify import VerifyReport, verify_backup

__all__ = [
    "BackupReport",
    "Contents",
    "Manifest",
    "OnStep",
    "RestoreReport",
    "SequenceValue",
    "Step",
    "TableDigest",
    "VerifyReport",
    "backup",
    "compare",
    "differences",
    "read_contents",
    "restore",
    "verify_backup",
]
