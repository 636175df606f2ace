"""Every change of a strategy on record, by whatever session it is made.

There are no triggers, so this listens to the sessions of SQLAlchemy: what a flush or an INSERT or UPDATE statement of a session
writes to `strategies` gets its `StrategyRevision` in the same transaction, under the same lock and with the same notification
as what the functions of `core.trading.strategies` write. `session.info["changed_by"]` says who makes the changes of a session,
`session.info["note"]` why; without them it is `role ...`, the database's user. Text that is sent as SQL, a statement on a
connection and SQLAlchemy's legacy `bulk_...` methods are not heard: what they wrote comes on record with the next change, as changed
by nobody known.
"""

from core.database.models.revisions._conflict import HistoryKept, RevisionChange, VersionConflict, quoted
from core.database.models.revisions._differences import ABSENT, FieldChange, Path, differences, plain, same, written
from core.database.models.revisions._listen import listen
from core.database.models.revisions._log import (
    CHANNEL,
    STATE,
    Origin,
    among,
    changes_since,
    locked,
    plain_state,
    state_changes,
    state_of,
    take_turn,
    write,
)

__all__ = [
    "ABSENT",
    "CHANNEL",
    "STATE",
    "FieldChange",
    "HistoryKept",
    "Origin",
    "Path",
    "RevisionChange",
    "VersionConflict",
    "among",
    "changes_since",
    "differences",
    "listen",
    "locked",
    "plain",
    "plain_state",
    "quoted",
    "same",
    "state_changes",
    "state_of",
    "take_turn",
    "write",
    "written",
]
