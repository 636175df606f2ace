"""The transaction of one broker's session: how it begins, and what is refused in it."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# asyncpg ships no type information; this room alone sees it.

import re
from typing import NoReturn

import asyncpg

from core.database.errors import InvalidInput, IsolationUnavailable, PandaDatabaseError, SessionMisuse, translate

_ROLE = "panda_app"
"""`models.RESTRICTED_ROLE`; the models take their time to load, and not every connection needs them."""
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_NO_ROLE = frozenset({"22023", "42501", "42704"})
"""No such role, or it may not be taken."""


def refuse_leaving() -> NoReturn:
    """Raise what a statement gets in a broker's session that ends its transaction or changes its role; nothing is sent."""
    raise SessionMisuse(
        "this statement would lead out of the broker's session; it was not sent",
        hint="Use commit() and rollback() of the session, or open get_session() without a broker.",
    )


def refuse_outside() -> NoReturn:
    """Raise what a statement gets on a broker's connection before the broker's transaction, or after it; nothing is sent."""
    raise SessionMisuse(
        "no transaction of the broker is open on this connection, and outside of one every broker would be seen",
        hint="Use raw_connection(session), which begins it, or run a statement of the session first.",
    )


def refuse_lasting() -> NoReturn:
    """Raise what a broker's session gets behind a pooler for what would stay on a connection of everybody; nothing is sent."""
    raise SessionMisuse(
        "this would outlive the transaction, on a connection that the pooler gives to other brokers; it was not sent",
        hint="Write SET LOCAL, CREATE TEMPORARY TABLE ... ON COMMIT DROP, pg_advisory_xact_lock(); a cursor without HOLD.",
    )


def begin_with(query: str, broker: str) -> str:
    """BEGIN, the role and the broker, in one message to the server.

    It does what `panda_set_broker()` does for other clients, at a fifth of its cost.
    """
    if _NAME.fullmatch(broker) is None:
        raise InvalidInput("broker: this is not the name of one", column="broker")
    return f"{query.rstrip(';')}; SET LOCAL panda.broker = '{broker}'; SET LOCAL ROLE {_ROLE}"


def not_begun(error: Exception, *, broker: str) -> PandaDatabaseError | None:
    """What a transaction that could not begin for its broker says."""
    if isinstance(error, asyncpg.PostgresError) and getattr(error, "sqlstate", None) in _NO_ROLE:
        return IsolationUnavailable(f"no session of the broker {broker} can be opened on this database")
    return translate(error)
