"""Strategies: their configuration, what it was at each version, who changed it and why.

Every version is written as a `StrategyRevision` when it comes into force, the first one included, also what a session writes past
the functions here; `core.database.models.revisions` says how, and what comes on record only with the next change.
"""

from core.database.models.revisions import (
    ABSENT,
    CHANNEL,
    FieldChange,
    HistoryKept,
    RevisionChange,
    VersionConflict,
)
from core.trading.strategies._apply import AppliedStrategy, ApplyReport, apply, documents_of
from core.trading.strategies._document import StrategyDocument
from core.trading.strategies._errors import (
    FeedRewound,
    RevisionNotFound,
    StrategyFileError,
    StrategyNotFound,
)
from core.trading.strategies._reads import changes_between, diff, get, history, last_change, listing
from core.trading.strategies._rules import Problem, StrategyModels, StrategyRules
from core.trading.strategies._watch import StrategyChange, watch
from core.trading.strategies._write import define, disable, disable_all, enable, revise, rollback
from core.trading.strategies._yaml import LARGEST_FILE, read_documents, write_documents

__all__ = [
    "ABSENT",
    "CHANNEL",
    "LARGEST_FILE",
    "AppliedStrategy",
    "ApplyReport",
    "FeedRewound",
    "FieldChange",
    "HistoryKept",
    "Problem",
    "RevisionChange",
    "RevisionNotFound",
    "StrategyChange",
    "StrategyDocument",
    "StrategyFileError",
    "StrategyModels",
    "StrategyNotFound",
    "StrategyRules",
    "VersionConflict",
    "apply",
    "changes_between",
    "define",
    "diff",
    "disable",
    "disable_all",
    "documents_of",
    "enable",
    "get",
    "history",
    "last_change",
    "listing",
    "read_documents",
    "revise",
    "rollback",
    "watch",
    "write_documents",
]
