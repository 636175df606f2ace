"""End another session's statement, or the session itself."""

import datetime as dt
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from core.database.errors import InvalidInput

End = Literal["cancel", "terminate"]

_PATIENCE = 2.0  # seconds until a signal counts as not heeded

_ANEW = text("SELECT pg_stat_clear_snapshot()")  # a transaction goes on seeing the sessions of its first look
_FIND = text(
    "SELECT pid, backend_start AS began, datname::text AS database, usename::text AS user, coalesce(application_name, '') AS application, state,"
    " backend_type AS kind, pid = pg_backend_pid() AS own,"
    " greatest(extract(epoch FROM clock_timestamp() - xact_start), 0)::float8 AS transaction_seconds"
    " FROM pg_stat_activity WHERE pid = :pid"
)
_SAME = (
    " FROM pg_stat_activity WHERE pid = :pid AND backend_start IS NOT DISTINCT FROM CAST(:began AS timestamptz)"
    " AND pid <> pg_backend_pid()"
)
_CANCEL = text("SELECT pg_cancel_backend(pid)" + _SAME)
_TERMINATE = text("SELECT pg_terminate_backend(pid, CAST(:patience AS bigint))" + _SAME)


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A client's session that may be ended, as it was found."""

    pid: int
    began: dt.datetime | None
    """When it connected: its number may by now be another session's."""
    user: str | None
    application: str
    state: str | None
    transaction_seconds: float | None


async def find_target(source: AsyncConnection | AsyncSession, pid: int, how: End) -> Target:
    """The session with that number, if ending it in that way makes sense.

    Raises `InvalidInput` where there is none, where it is the asking one, where it is the server's own process, and
    for the cancel of a session that runs nothing: its locks would stay.
    """
    await source.execute(_ANEW)
    row = (await source.execute(_FIND, {"pid": pid})).mappings().one_or_none()
    if row is None:
        raise InvalidInput(f"no session has the number {pid}", hint="`panda top` lists those that there are.")
    if row["own"]:
        raise InvalidInput(f"{pid} is the session that asks", hint="Name another one.")
    if (row["kind"] or "client backend") != "client backend" or row["database"] is None or row["user"] is None:
        raise InvalidInput(f"{pid} is a process of the server ({row['kind'] or 'background'}), not a client's session")
    if how == "cancel" and row["state"] is not None and row["state"] != "active":
        raise InvalidInput(
            f"session {pid} is {row['state']}: it runs no statement that could be cancelled",
            hint=f"End the session, its transaction and its locks with `panda top --terminate {pid}`.",
        )
    return Target(**{name: row[name] for name in Target.__slots__})


async def end_session(source: AsyncConnection | AsyncSession, target: Target, how: End) -> bool:
    """Cancel the statement of that very session, or terminate it; nothing happens to another with its number.

    A terminated session is waited for, 2 s at the most. Returns whether the server took the order; False where the
    session has gone by itself, or has not ended in time. Raises `PermissionDenied` for another role's session.
    """
    await source.execute(_ANEW)
    values = {"pid": target.pid, "began": target.began}
    if how == "cancel":
        return bool((await source.execute(_CANCEL, values)).scalar())
    return bool((await source.execute(_TERMINATE, values | {"patience": int(_PATIENCE * 1_000)})).scalar())
