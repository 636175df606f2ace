"""What a server is doing, who waits for whom, how to end it, and how it would run a statement.

Everything here reads what any role may read of pg_stat_activity, pg_locks and EXPLAIN; nothing needs an extension except
`slowest_statements`. Text that other sessions wrote leaves with its literals blanked.
"""

from core.database.activity._derive import by_application, by_state, hit_share, lock_tree, rates, running
from core.database.activity._end import End, Target, end_session, find_target
from core.database.activity._nodes import PlanNode
from core.database.activity._observe import Observation
from core.database.activity._plan import Plan, explain
from core.database.activity._read import read_activity
from core.database.activity._slow_plans import SlowQueryPlans
from core.database.activity._slowest import SlowStatement, slowest_statements
from core.database.activity._values import (
    Activity,
    ApplicationUse,
    LockLine,
    LockWait,
    Rates,
    Replica,
    Server,
    Session,
)

__all__ = [
    "Activity",
    "ApplicationUse",
    "End",
    "LockLine",
    "LockWait",
    "Observation",
    "Plan",
    "PlanNode",
    "Rates",
    "Replica",
    "Server",
    "Session",
    "SlowQueryPlans",
    "SlowStatement",
    "Target",
    "by_application",
    "by_state",
    "end_session",
    "explain",
    "find_target",
    "hit_share",
    "lock_tree",
    "rates",
    "read_activity",
    "running",
    "slowest_statements",
]
