"""One form of a user's name; what is tried with it; how sessions end and are taken up again; who changed a strategy."""

import sys
import unicodedata
from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | None = None
depends_on: str | None = None

lock_timeout: float = 2.0
statement_timeout: float = 600.0

# lint: allow adding-field-with-default - revisions are few: one for each change of a strategy that people make
# lint: allow changes-rows - users are few, and the names have to be in their one form before the check is
# lint: allow ban-drop-constraint - it is replaced by a stricter one in the same transaction

_BLANKS = r"\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_EDGE = rf"[^\u0001-\u0020\u007f-\u00a0{_BLANKS}]"
_INNER = r"[^\u0001-\u001f\u007f-\u009f\u2028\u2029]"
_PLAIN = rf"{_EDGE}({_INNER}*{_EDGE})?"
_HIDDEN = (
    r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    r"\ufeff\uffa0\ufff0-\uffff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_NAME = rf"{_EDGE[:-1]}A-Z{_HIDDEN}]({_INNER[:-1]}A-Z{_HIDDEN}]*{_EDGE[:-1]}A-Z{_HIDDEN}])?"
_KINDS = (
    "registered",
    "login",
    "login_refused",
    "login_delayed",
    "password_changed",
    "password_reset",
    "disabled",
    "enabled",
    "unlocked",
)
_ON_SESSIONS = {
    "bearer_hash": "octet_length(bearer_hash) = 32",
    "end_reason": "end_reason IN ('replaced', 'ended', 'revoked', 'expired') AND (end_reason IS NULL OR end_time IS NOT NULL)",
    "last_seen_at": "last_seen_at > '0001-01-01 00:00:00+00' AND last_seen_at < '9999-12-31 23:59:59.999999+00'",
    "told_expiry": "told_expiry > '0001-01-01 00:00:00+00' AND told_expiry < '9999-12-31 23:59:59.999999+00'",
}


def upgrade() -> None:
    _fold_names()
    _create_auth_events()
    _create_login_delays()
    _create_known_sources()
    sessions = "trading_sessions"
    op.add_column(sessions, sa.Column("bearer_hash", sa.LargeBinary()))
    op.add_column(sessions, sa.Column("end_reason", sa.Text(collation="C")))
    op.add_column(sessions, sa.Column("last_seen_at", sa.DateTime(timezone=True)))
    op.add_column(sessions, sa.Column("told_expiry", sa.DateTime(timezone=True)))
    for name, condition in _ON_SESSIONS.items():
        _add_check(sessions, name, condition)
    revisions = "strategy_revisions"
    op.add_column(revisions, sa.Column("change_id", sa.BigInteger(), sa.Identity(always=True), nullable=False))
    op.add_column(revisions, sa.Column("changed_by", sa.Text(collation="C")))
    _add_check(revisions, "changed_by", f"changed_by ~ '^{_PLAIN}$' AND length(changed_by) <= 200")


def downgrade() -> None:
    """Names stay in their one form: how they were typed is not known any more."""
    op.drop_column("strategy_revisions", "changed_by")
    op.drop_column("strategy_revisions", "change_id")
    for column in reversed(_ON_SESSIONS):
        op.drop_column("trading_sessions", column)
    for table in ("known_sources", "login_delays", "auth_events"):
        op.drop_table(table)
    op.drop_constraint(op.f("ck_users_username_normalized"), "users")
    op.drop_constraint(op.f("ck_users_username"), "users")
    _add_check("users", "username", f"username ~ '^{_PLAIN}$' AND length(username) <= 150")


def _fold_names() -> None:
    """Those of stored users, which are few: NFKC and case-folded. Two that become one stop the migration."""
    fold = f"""DO $$
DECLARE
    twins text;
BEGIN
    UPDATE users SET username = lower(normalize(username, NFKC)) WHERE username ~ '[A-Z]';
    UPDATE users SET username = {_folded("username")} WHERE username ~ '[^\\u0001-\\u007f]';
EXCEPTION
    WHEN unique_violation THEN
        SELECT string_agg(CAST(id AS text), ' and ' ORDER BY id) INTO twins
        FROM (SELECT id, {_folded("username")} AS form FROM users) u GROUP BY form HAVING count(*) > 1 ORDER BY min(id) LIMIT 1;
        RAISE EXCEPTION 'users % (by their id) have one name once it is brought to one form, NFKC and lower case: rename all but'
            ' one of them by UPDATE users SET username, then migrate again', twins
            USING ERRCODE = 'unique_violation', TABLE = 'users', CONSTRAINT = 'uq_users_username';
END
$$"""  # noqa: S608 - made of constants
    op.execute(fold)
    op.drop_constraint(op.f("ck_users_username"), "users")
    _add_check("users", "username", f"username ~ '^{_NAME}$' AND length(username) <= 150")
    _add_check("users", "username_normalized", "username IS NFKC NORMALIZED")


def _folded(column: str) -> str:
    single: dict[str, str] = {}
    text = f"normalize({column}, NFKC)"
    for character in map(chr, (*range(0xD800), *range(0xE000, sys.maxunicode + 1))):
        form = unicodedata.normalize("NFKC", character.casefold())
        if form == character or character != unicodedata.normalize("NFKC", character):
            continue
        if len(form) == 1:
            single[character] = form
        else:
            text = f"replace({text}, '{character}', '{form}')"
    return f"normalize(translate({text}, '{''.join(single)}', '{''.join(single.values())}'), NFKC)"


def _create_auth_events() -> None:
    table = "auth_events"
    op.create_table(
        table,
        sa.Column("event_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        _instant("occurred_at", default=sa.func.clock_timestamp()),
        sa.Column("kind", sa.Text(collation="C"), nullable=False),
        sa.Column("reason", sa.Text(collation="C")),
        sa.Column("user_id", sa.BigInteger()),
        sa.Column("name_digest", sa.LargeBinary(), nullable=False),
        sa.Column("source", sa.Text(collation="C")),
        sa.Column("actor", sa.Text(collation="C")),
        sa.PrimaryKeyConstraint("event_id", name=op.f(f"pk_{table}")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f(f"fk_{table}_user_id")),
        _is_instant(table, "occurred_at"),
        _check(table, "kind", f"kind IN ({', '.join(map(repr, _KINDS))})"),
        _check(table, "reason", "reason IN ('unknown_name', 'wrong_password', 'inactive')"),
        _check(table, "name_digest", "octet_length(name_digest) = 32"),
        _is_label(table, "source"),
        _is_label(table, "actor"),
    )
    op.create_index("ix_auth_events_user_id_event_id", table, ["user_id", "event_id"])
    op.create_index("ix_auth_events_name_digest_event_id", table, ["name_digest", "event_id"])
    op.create_index("ix_auth_events_occurred_at", table, ["occurred_at"])


def _create_login_delays() -> None:
    table = "login_delays"
    op.create_table(
        table,
        sa.Column("bucket", sa.LargeBinary(), nullable=False),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        _instant("failed_at"),
        _instant("waits_until"),
        sa.PrimaryKeyConstraint("bucket", name=op.f(f"pk_{table}")),
        _check(table, "bucket", "octet_length(bucket) = 32"),
        _check(table, "failures", "failures >= 1"),
        _is_instant(table, "failed_at"),
        _is_instant(table, "waits_until"),
    )
    op.create_index("ix_login_delays_failed_at", table, ["failed_at"])


def _create_known_sources() -> None:
    table = "known_sources"
    op.create_table(
        table,
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.Text(collation="C"), nullable=False),
        _instant("seen_at", default=sa.func.now()),
        sa.PrimaryKeyConstraint("user_id", "source", name=op.f(f"pk_{table}")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f(f"fk_{table}_user_id")),
        _is_label(table, "source"),
        _is_instant(table, "seen_at"),
    )


def _instant(name: str, *, default: Any = None) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False, server_default=default)


def _add_check(table: str, name: str, condition: str) -> None:
    op.create_check_constraint(op.f(f"ck_{table}_{name}"), table, condition, postgresql_not_valid=True)


def _check(table: str, name: str, condition: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(condition, name=op.f(f"ck_{table}_{name}"))


def _is_label(table: str, column: str) -> sa.CheckConstraint:
    return _check(table, column, f"{column} ~ '^{_PLAIN}$' AND length({column}) <= 200")


def _is_instant(table: str, column: str) -> sa.CheckConstraint:
    return _check(table, column, f"{column} > '0001-01-01 00:00:00+00' AND {column} < '9999-12-31 23:59:59.999999+00'")
