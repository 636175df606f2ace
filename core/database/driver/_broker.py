"""The transaction of one broker's session: how it begins, and the statements that would lead out of it."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# asyncpg ships no type information; this room alone sees it.

import re

import asyncpg

from core.database.errors import IsolationUnavailable, PandaDatabaseError, SessionMisuse, translate

_ROLE = "panda_app"
"""`models.RESTRICTED_ROLE`; the models take their time to load, and not every connection needs them."""
_COMMENTS = r"(?:\s+|--[^\n]*(?:\n|$)|/\*(?s:.*?)\*/|;)*"
_LEAVES = re.compile(
    _COMMENTS + r"(?:"
    r"(?:SET|RESET)\s+(?:LOCAL\s+|SESSION\s+)?(?:ROLE|SESSION\s+AUTHORIZATION|\"?panda\"?\s*\.\s*\"?broker)\b"
    r"|(?:COMMIT|END|ABORT|DISCARD|PREPARE\s+TRANSACTION)\b"
    r"|ROLLBACK\b(?!\s+(?:WORK\s+|TRANSACTION\s+)?TO\b)"
    r")",
    re.IGNORECASE,
)
_NO_ROLE = frozenset({"22023", "42501", "42704"})
"""No such role, or it may not be taken."""


def leaves_broker(statement: str) -> bool:
    """Whether the statement, by its first words, ends the transaction, leaves its role or names another broker."""
    return _LEAVES.match(statement) is not None


def refuse_leaving() -> None:
    """Raise what such a statement gets in a broker's session; nothing is sent."""
    raise SessionMisuse(
        "this statement would lead out of the broker's session; it was not sent",
        hint="Use commit() and rollback() of the session, or open get_session() without a broker.",
    )


def begin_with(query: str, broker: str) -> str:
    """BEGIN, the role and the broker, in one message to the server. The name has been checked: it holds no quote.

    It does what `panda_set_broker()` does for other clients, at a fifth of its cost.
    """
    return f"{query.rstrip(';')}; SET LOCAL panda.broker = '{broker}'; SET LOCAL ROLE {_ROLE}"


def not_begun(error: Exception, *, broker: str) -> PandaDatabaseError | None:
    """What a transaction that could not begin for its broker says."""
    if isinstance(error, asyncpg.PostgresError) and getattr(error, "sqlstate", None) in _NO_ROLE:
        return IsolationUnavailable(f"no session of the broker {broker} can be opened on this database")
    return translate(error)
