"""Strategies: their configuration, what it was at each version, who changed it and why.

Every version is written as a `StrategyRevision` when it comes into force, the first one included. The functions here put
their changes on record; what is written past them, by the ORM or SQL, comes on record with the next change, by nobody known.
"""

from core.trading.strategies._apply import AppliedStrategy, ApplyReport, apply, documents_of
from core.trading.strategies._diff import ABSENT, FieldChange
from core.trading.strategies._document import StrategyDocument
from core.trading.strategies._errors import (
    FeedRewound,
    RevisionChange,
    RevisionNotFound,
    StrategyFileError,
    StrategyNotFound,
    VersionConflict,
)
from core.trading.strategies._reads import changes_between, diff, get, history, last_change, listing
from core.trading.strategies._record import CHANNEL
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
