"""DatabaseManager: lifecycle, sessions, transactions - nothing else."""

from core.database.connection._internals import Internals, internals
from core.database.connection._manager import DatabaseManager, IsolationLevel
from core.database.connection._session import PandaSession

__all__ = ["DatabaseManager", "Internals", "IsolationLevel", "PandaSession", "internals"]
