"""Trading sessions: a user's standing with a broker, one active at most for each pair, many brokers side by side.

A session has a public `session_id`, for logs, lists and other rows, and a bearer, which the user's client presents to take
it up again and of which the database has the hash alone. It ends when the user logs out (`end`), when a newer one takes its
place, when somebody revokes it, or when the broker's login expires; all by the server's clock. `session_data` is what the
application notes in the open; a broker's token goes into `credentials`, which is sealed for the session's own row before it is
bound to a statement, and is erased when the session ends.

    TradingSessionError
    ├── SessionNotFound
    ├── SessionExpired
    ├── SessionRevoked      .reason: replaced | ended | revoked
    └── UserDisabled
"""

from core.trading.sessions._end import end, revoke, revoke_all
from core.trading.sessions._errors import (
    SessionExpired,
    SessionNotFound,
    SessionRevoked,
    TradingSessionError,
    UserDisabled,
)
from core.trading.sessions._events import SessionEnded, SessionEvent, SessionExpiring, SessionOpened, SessionRenewed
from core.trading.sessions._expiry import BrokerSessions, ExpiryReport, expire_due
from core.trading.sessions._find import SessionInfo, SessionState, find, get
from core.trading.sessions._open import OpenedSession, open, renew  # noqa: A004 - read with its room: sessions.open
from core.trading.sessions._resume import active, resume, touch
from core.trading.sessions._rotation import EnvelopeFault, RotationReport, VerifyReport, rotate, verify
from core.trading.sessions._secrets import credentials_of, seal_credentials
from core.trading.sessions._watch import SessionWatch

__all__ = [
    "BrokerSessions",
    "EnvelopeFault",
    "ExpiryReport",
    "OpenedSession",
    "RotationReport",
    "SessionEnded",
    "SessionEvent",
    "SessionExpired",
    "SessionExpiring",
    "SessionInfo",
    "SessionNotFound",
    "SessionOpened",
    "SessionRenewed",
    "SessionRevoked",
    "SessionState",
    "SessionWatch",
    "TradingSessionError",
    "UserDisabled",
    "VerifyReport",
    "active",
    "credentials_of",
    "end",
    "expire_due",
    "find",
    "get",
    "open",
    "renew",
    "resume",
    "revoke",
    "revoke_all",
    "rotate",
    "seal_credentials",
    "touch",
    "verify",
]
