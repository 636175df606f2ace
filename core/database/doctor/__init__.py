"""Every check that a person would make of a database, each with the mend.

`examine` looks and changes nothing. A `Finding` is a value: `error` must be mended before the database is relied on,
`warning` should be, `info` asks for nothing, `skipped` says why it could not be examined. What may pass on a developer's
machine (fsync off, a password that anybody would try) is an error in staging and production.
"""

from core.database.doctor._examine import CHECKS, examine
from core.database.doctor._finding import Finding, Status

__all__ = ["CHECKS", "Finding", "Status", "examine"]
