"""Users: register and log in, and what an administrator does for them; every event of it on record.

    InvalidCredentials
    TooManyAttempts
    UserNotFound

Passwords are hashed with Argon2id (pwdlib's recommended parameters: 64 MiB, 3 passes, 4 lanes) in threads, a few at once.
They are brought to Unicode NFC first, so that the same password typed on two keyboards is the same. A bcrypt hash, as the
original Alpha Panda made them, is verified where the package bcrypt is installed, and replaced at the first login; elsewhere,
like any hash of an unknown kind, it matches no password.

Names are kept and compared as `types.folded`. A function that takes a session leaves the commit to its caller; one that takes
the manager owns its transactions. `user` is an id or a name.
"""

from core.trading.accounts._audit import PruneReport, events, prune_events
from core.trading.accounts._delays import LoginDelays
from core.trading.accounts._errors import InvalidCredentials, TooManyAttempts, UserNotFound
from core.trading.accounts._login import authenticate, change_password
from core.trading.accounts._metrics import LoginMetrics
from core.trading.accounts._names import MIN_USERNAME
from core.trading.accounts._passwords import MAX_PASSWORD, MIN_PASSWORD, can_verify, verify_password
from core.trading.accounts._sources import remember_device, source_of
from core.trading.accounts._users import (
    disable,
    enable,
    find,
    listing,
    register,
    set_password,
    unlock,
    waits,
)

__all__ = [
    "MAX_PASSWORD",
    "MIN_PASSWORD",
    "MIN_USERNAME",
    "InvalidCredentials",
    "LoginDelays",
    "LoginMetrics",
    "PruneReport",
    "TooManyAttempts",
    "UserNotFound",
    "authenticate",
    "can_verify",
    "change_password",
    "disable",
    "enable",
    "events",
    "find",
    "listing",
    "prune_events",
    "register",
    "remember_device",
    "set_password",
    "source_of",
    "unlock",
    "verify_password",
    "waits",
]
