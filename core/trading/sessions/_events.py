"""What is told of sessions, to every process that listens; nothing in it is secret."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, get_args

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.records import BROKER_RULE, IDENTIFIER_RULE, EndReason
from core.database.types import checked_utc, strict_json_loads

CHANNEL = "panda_sessions"
"""Where they are told, as JSON objects with a `kind` and the fields of the event."""

_TELL = sa.text("SELECT pg_notify(:channel, payload) FROM unnest(:payloads) AS payload").bindparams(
    sa.bindparam("payloads", type_=ARRAY(sa.Text()))
)


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """Something happened to a session."""

    session_id: str
    user_id: int
    broker: str
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class SessionOpened(SessionEvent):
    """A user has logged in to a broker."""


@dataclass(frozen=True, slots=True)
class SessionRenewed(SessionEvent):
    """The session expires at another time than was said before."""


@dataclass(frozen=True, slots=True)
class SessionExpiring(SessionEvent):
    """The session is about to expire: the user must log in again if trading is to go on."""


@dataclass(frozen=True, slots=True)
class SessionEnded(SessionEvent):
    """The session is over, and its credentials are erased."""

    reason: EndReason


_KINDS: dict[str, type[SessionEvent]] = {
    "opened": SessionOpened,
    "renewed": SessionRenewed,
    "expiring": SessionExpiring,
    "ended": SessionEnded,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


async def tell(session: AsyncSession, events: Sequence[SessionEvent]) -> None:
    """Tell whoever listens, in order, when the caller's transaction commits and never if it does not."""
    if events:
        await session.execute(_TELL, {"channel": CHANNEL, "payloads": [written(event) for event in events]})


def written(event: SessionEvent) -> str:
    """As it is sent."""
    fields: dict[str, Any] = {"kind": _NAMES[type(event)], **asdict(event)}
    if event.expires_at is not None:
        fields["expires_at"] = event.expires_at.astimezone(UTC).isoformat()
    return json.dumps(fields)


def read(payload: str) -> SessionEvent | None:
    """What `written` wrote; None for the words of somebody else."""
    try:
        fields = strict_json_loads(payload)
        kind = _KINDS[fields.pop("kind")]
        at = fields["expires_at"]
        fields["expires_at"] = None if at is None else checked_utc(datetime.fromisoformat(at))
        event = kind(**fields)
        IDENTIFIER_RULE(event.session_id)
        BROKER_RULE(event.broker)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if type(event.user_id) is not int or (isinstance(event, SessionEnded) and event.reason not in get_args(EndReason)):
        return None
    return event
