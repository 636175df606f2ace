"""The original's users and sessions into ours."""
# ruff: noqa: S608 - every name in a statement is one of our own or quoted, every value is bound

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, TEXT
from sqlalchemy.ext.asyncio import AsyncConnection

from core.database.encryption import MAX_SECRET_BYTES, KeyRing
from core.database.errors import ConfigurationError, InvalidInput
from core.database.types import folding_sql, strict_json_dumps, strict_json_loads
from core.trading import sessions
from core.trading.adoption._original import ORIGINAL_SCHEMA
from core.trading.adoption._report import TableCount
from core.trading.adoption._secrets import split
from core.trading.adoption._stage import analyze, batches, judge, refuse, run, settle, stage, staged

_MAKE_KEY = (
    "python -c 'from core.database.encryption import KeyRing; print(\"k1:\" + KeyRing.generate_key())' prints one."
)
_NO_PASSWORD = "!"  # noqa: S105 - the hash of no password
_OPEN = f"{ORIGINAL_SCHEMA}.trading_sessions"

_SECRETS = """
    CREATE TEMPORARY TABLE adopting_secrets (
        session_id text, notes text, envelope bytea, reason text) ON COMMIT DROP
"""
_ADD_SECRETS = text("INSERT INTO adopting_secrets SELECT * FROM unnest(:ids, :notes, :envelopes, :reasons)").bindparams(
    bindparam("ids", type_=ARRAY(TEXT())),
    bindparam("notes", type_=ARRAY(TEXT())),
    bindparam("envelopes", type_=ARRAY(BYTEA())),
    bindparam("reasons", type_=ARRAY(TEXT())),
)
_FOLDED = f"""
    CREATE OR REPLACE FUNCTION pg_temp.folded(name text) RETURNS text LANGUAGE sql IMMUTABLE STRICT
    RETURN {folding_sql("name")}
"""
_USERS = f"""
    INSERT INTO adopting_users (id, username, hashed_password, is_active, created_at, updated_at, _key, _reason)
    SELECT id, pg_temp.folded(username), hashed_password, true, COALESCE(created_at, now()), COALESCE(created_at, now()),
        CAST(id AS text), CASE WHEN id < 1 THEN 'id is below 1' END
    FROM {ORIGINAL_SCHEMA}.users
"""
_SAME_NAME = """(
    SELECT _key AS twin, first_value(id) OVER (PARTITION BY username ORDER BY id) AS elder
    FROM adopting_users WHERE _reason IS NULL) d
"""
_NEXT_ID = """
    SELECT setval(pg_get_serial_sequence('users', 'id'), GREATEST((SELECT max(id) FROM users), 1),
        EXISTS (SELECT FROM users))
"""
_ACCOUNTS = f"""
    INSERT INTO adopting_users (username, hashed_password, is_active, created_at, updated_at, _key)
    SELECT DISTINCT ON (name) name, '{_NO_PASSWORD}', false, now(), now(), user_id
    FROM (SELECT user_id, pg_temp.folded(user_id) AS name FROM {_OPEN}) o
    WHERE NOT EXISTS (SELECT FROM users u WHERE u.username = o.name COLLATE "C")
    ORDER BY name, user_id COLLATE "C"
"""
_ADD_ACCOUNTS = """
    INSERT INTO users (username, hashed_password, is_active, created_at, updated_at)
    SELECT username, hashed_password, is_active, created_at, updated_at FROM adopting_users
    WHERE _reason IS NULL ORDER BY username
"""
# The last one of a user and broker stays active; the original's index on user_id allowed one, an older release's did not.
_SESSIONS = f"""
    WITH read AS (
        SELECT o.*, u.id AS account, x.envelope, x.reason, CAST(x.notes AS jsonb) AS notes,
            COALESCE(o.start_time, o.created_at) AS began
        FROM {_OPEN} o JOIN adopting_secrets x ON x.session_id = o.session_id COLLATE "C"
        LEFT JOIN users u ON u.username = pg_temp.folded(o.user_id) COLLATE "C"
    ), named AS (
        SELECT read.*, COALESCE(lower(NULLIF(btrim(notes ->> 'broker'), '')),
            CASE notes ->> 'login_method' WHEN 'mock' THEN 'paper' ELSE 'zerodha' END) AS broker
        FROM read
    ), ranked AS (
        SELECT named.*, is_active AND row_number() OVER (
            PARTITION BY account, broker, is_active ORDER BY updated_at DESC NULLS LAST, session_id) = 1 AS stays
        FROM named
    )
    INSERT INTO adopting_trading_sessions (session_id, user_id, broker, start_time, end_time, expires_at, is_active,
        session_data, credentials, _key, _reason)
    SELECT session_id, account, broker, began,
        CASE WHEN NOT stays THEN GREATEST(began, LEAST(updated_at, end_time)) END, end_time, stays,
        notes, envelope, session_id,
        COALESCE(reason, CASE WHEN account IS NULL THEN 'its user_id can be the name of no user' END)
    FROM ranked
"""
_SUPERSEDED = f"""
    SELECT count(*) FROM adopting_trading_sessions s JOIN {_OPEN} o ON o.session_id = s._key COLLATE "C"
    WHERE o.is_active AND NOT s.is_active AND s._reason IS NULL
"""
_KEEP_SEALED = f"""
    UPDATE {ORIGINAL_SCHEMA}.set_aside SET sealed = x.envelope FROM adopting_secrets x
    WHERE source_table = 'trading_sessions' AND row_key = x.session_id AND x.envelope IS NOT NULL
"""


_COLUMNS_AWAY = text(
    "SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = 'trading_sessions'::regclass"
    " AND attnum > 0 AND NOT attisdropped AND attname <> 'session_data' AND attgenerated = ''"
)

_Parted = tuple[str, str | None, bytes | None, str | None]
"""A session's id, its notes without secrets as JSON, the envelope of these, and why it is set aside."""


@dataclass(slots=True)
class Secrets:
    """What the pass over the sessions found."""

    sealed: int = 0
    as_objects: int = 0
    """Sessions with other secrets than a lone access token."""
    erased: int = 0
    """Those too long to be sealed."""


@dataclass(frozen=True, slots=True)
class MovedUsers:
    count: TableCount
    accounts_made: int
    password_resets: int


async def seal_secrets(connection: AsyncConnection, ring: KeyRing | None) -> Secrets:
    """Part each session's notes from its secrets and seal these, in batches, before the table is moved.

    Without a ring raises `ConfigurationError` at the first secret.
    """
    await run(connection, _SECRETS)
    found = Secrets()
    query = "SELECT session_id, CAST(session_data AS text) FROM trading_sessions"
    async for part in batches(connection, query, name="adopting_notes"):
        parted = [_parted(row[0], row[1], ring, found) for row in part]
        ids, notes, envelopes, reasons = (list(column) for column in zip(*parted, strict=True))
        values = {"ids": ids, "notes": notes, "envelopes": envelopes, "reasons": reasons}
        await connection.execute(_ADD_SECRETS, values)
    await analyze(connection, "adopting_secrets")
    return found


async def move_sessions_away(connection: AsyncConnection) -> None:
    """Put the sessions into the original's schema without their secrets.

    They are written into a new table and the old one is dropped: an update would leave the tokens in dead rows.
    """
    await run(connection, f"CREATE TABLE {_OPEN} (LIKE trading_sessions INCLUDING ALL)")
    names = list(await connection.scalars(_COLUMNS_AWAY))
    await run(
        connection,
        f"INSERT INTO {_OPEN} ({', '.join(names)}, session_data)"
        f" SELECT {', '.join(f'o.{name}' for name in names)}, CAST(x.notes AS json)"
        ' FROM trading_sessions o JOIN adopting_secrets x ON x.session_id = o.session_id COLLATE "C"',
    )
    await run(connection, "DROP TABLE trading_sessions")
    await analyze(connection, _OPEN)


async def move_users(connection: AsyncConnection, *, read: int, verifiable: Callable[[str], bool]) -> MovedUsers:
    """Move the users under their ids, and make an inactive one for each session's user that there is none for.

    The original's sessions name the broker's client id, which is text and points at no user.
    """
    await run(connection, _FOLDED)
    await stage(connection, "users")
    await run(connection, _USERS)
    await analyze(connection, staged("users"))
    await judge(connection, "users")
    reason = "format('username is another spelling of that of user %s', d.elder)"
    await refuse(connection, "users", reason, "d.twin = s._key AND d.elder <> s.id", joined=_SAME_NAME)
    moved, aside = await settle(connection, "users", source="users", key="id")
    hashes = await connection.scalars(text("SELECT hashed_password FROM users"))
    resets = sum(not verifiable(hashed) for hashed in hashes)
    await run(connection, _NEXT_ID)
    await run(connection, f"TRUNCATE {staged('users')}")
    await run(connection, _ACCOUNTS)
    await judge(connection, "users")
    made = await run(connection, _ADD_ACCOUNTS)
    await analyze(connection, "users")
    count = TableCount(table="users", into="users", read=read, moved=moved, set_aside=aside)
    return MovedUsers(count, made, resets)


async def move_sessions(connection: AsyncConnection, *, read: int, notes: list[str]) -> TableCount:
    """Move the sessions, active ones open and the others ended; what was their end is when they expire."""
    await stage(connection, "trading_sessions")
    await run(connection, _SESSIONS)
    await analyze(connection, staged("trading_sessions"))
    await judge(connection, "trading_sessions")
    superseded = await connection.scalar(text(_SUPERSEDED)) or 0
    if superseded:
        notes.append(f"active sessions that are ended: {superseded:,}; their user has a later one with the same broker")
    moved, aside = await settle(connection, "trading_sessions", source="trading_sessions", key="session_id")
    await run(connection, _KEEP_SEALED)
    await run(connection, "DROP FUNCTION pg_temp.folded(text)")
    return TableCount(table="trading_sessions", into="trading_sessions", read=read, moved=moved, set_aside=aside)


def _parted(session_id: str, stored: str | None, ring: KeyRing | None, found: Secrets) -> _Parted:
    reason: str | None = None
    try:
        document = None if stored is None else strict_json_loads(stored)
        clean, secret = split(document)
        notes = None if clean is None else strict_json_dumps(clean)
    except InvalidInput as fault:  # what cannot be read may hold anything
        clean, notes, secret, reason = None, None, stored, f"session_data {fault.message}"
    if clean is None and reason is None:
        reason = "session_data is no JSON object"
    if secret is None:
        return session_id, notes, None, reason
    if ring is None:
        raise ConfigurationError(
            "the sessions hold tokens in the open, and they are only stored sealed",
            hint=f"Set DATABASE__ENCRYPTION_KEYS to a new key and keep that key well: {_MAKE_KEY}",
        )
    if len(secret.encode()) > MAX_SECRET_BYTES:
        found.erased += 1
        return session_id, notes, None, f"its secrets are longer than {MAX_SECRET_BYTES:,} bytes and were erased"
    found.sealed += 1
    found.as_objects += secret.startswith("{")
    # An empty id is no place to seal for; such a row is set aside, and the envelope with it.
    return session_id, notes, sessions.seal_credentials(secret, session_id=session_id or "-", ring=ring), reason
