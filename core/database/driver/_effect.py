"""What a statement does to its session, told by its words: that it leads out of a broker's transaction, or outlives any.

Names may be quoted and comments may stand between words, as PostgreSQL reads them. What cannot be told counts as both.
"""

import re
from collections.abc import Generator, Iterable
from enum import Flag
from functools import lru_cache

from core.database.monitoring import SqlToken, sql_tokens

_LONGEST_KEPT = 20_000  # characters; longer ones are scripts, which run once
_FIRST = 8  # words of a statement that are looked at

_NAMES = ("role", "session_authorization", "panda.broker")
_ANY = "\0"
"""A name written in escapes."""
_SUSPECT = ("set_config", "panda_set_broker", "pg_settings", "advisory_lock", "temp", 'u&"')
_HARMLESS = re.compile(rf"set_config\(\s*'(?!(?:{'|'.join(map(re.escape, _NAMES))})')[a-z0-9_.]+'\s*,")
_LOCAL = re.compile(r"set_config\([^()]*,\s*true\s*\)")
_OUTLIVES = re.compile(r"\bpg_(?:try_)?advisory_lock(?:_shared)?\b|\binto\s+(?:local\s+|global\s+)?temp(?:orary)?\b")
_DROPPED = re.compile(r"\bON\s+COMMIT\s+DROP\b", re.IGNORECASE)
_HOLD = re.compile(r"\bHOLD\b", re.IGNORECASE)
_TEMPORARY = frozenset({"temp", "temporary", "pg_temp"})
_ENDS = frozenset({"commit", "end", "abort", "discard"})
_LASTING = frozenset({"listen", "load"})
_UNKNOWN = frozenset({"do", "call"})
_OF_ROLES = frozenset({("alter", "role"), ("alter", "user"), ("drop", "owned"), ("reassign", "owned")})
"""What the restricted role might do to itself: change its password, give up its rights."""


class Effect(Flag):
    """On the session that runs it."""

    NONE = 0
    LEAVES = 1
    """It ends the transaction, leaves or changes the role, or names another broker."""
    OUTLIVES = 2
    """Something of it stays on the connection when the transaction is over: a setting, a temporary table, a cursor, a lock."""
    MAY_OUTLIVE = 4
    """It runs code of which nobody here knows."""


def effect_of(sql: str) -> Effect:
    """Of a statement, or of several in one message."""
    return _kept(sql) if len(sql) <= _LONGEST_KEPT else _effect_of(sql)


def _effect_of(sql: str) -> Effect:
    found = _of_functions(sql)
    for words in _statements(sql):
        found |= _of_words(words, sql)
    return found


_kept = lru_cache(maxsize=2_000)(_effect_of)


def _of_functions(sql: str) -> Effect:
    text = sql.lower()
    if not any(word in text for word in _SUSPECT):  # nearly every statement, and some are long
        return Effect.NONE
    found = Effect.NONE
    called = text.count("set_config")
    if called > len(_HARMLESS.findall(text)) or "panda_set_broker" in text:
        found |= Effect.LEAVES
    if called > len(_LOCAL.findall(text)) or _OUTLIVES.search(text):
        found |= Effect.OUTLIVES
    if 'u&"' in text or ("pg_settings" in text and "update" in text):
        found |= Effect.LEAVES | Effect.OUTLIVES
    return found


def _of_words(words: list[str], sql: str) -> Effect:
    first, second = words[0], words[1] if len(words) > 1 else ""
    if first in _ENDS or (first, second) in _OF_ROLES or (first, second) == ("prepare", "transaction"):
        return Effect.LEAVES
    if first == "rollback":
        after = [word for word in words[1:] if word not in ("work", "transaction")]
        return Effect.NONE if after[:1] == ["to"] else Effect.LEAVES
    if first in ("set", "reset"):
        return _of_setting(words)
    if first in _UNKNOWN:
        return Effect.MAY_OUTLIVE
    made = first == "create" and not _TEMPORARY.isdisjoint(words) and not _DROPPED.search(sql)
    held = first == "declare" and _HOLD.search(sql) is not None
    return Effect.OUTLIVES if made or held or first in _LASTING else Effect.NONE


def _of_setting(words: list[str]) -> Effect:
    local = words[1:2] == ["local"]
    rest = words[2:] if words[1:2] in (["local"], ["session"]) else words[1:]
    if rest[:2] == ["session", "authorization"] or rest[:1] == ["authorization"]:
        return Effect.LEAVES | Effect.OUTLIVES
    name = "".join(rest[:3]) if rest[1:2] == ["."] else "".join(rest[:1])
    leaves = Effect.LEAVES if _ANY in name or name in _NAMES else Effect.NONE
    stays = Effect.NONE if local or rest[:1] in (["transaction"], ["constraints"]) else Effect.OUTLIVES
    return leaves | stays


def _statements(sql: str) -> Generator[list[str]]:
    """The first words of each statement that has any."""
    words: list[str] = []
    several = ";" in sql.rstrip("; \t\r\n")
    for token in _pieces(sql_tokens(sql)):
        if token.kind in ("space", "comment"):
            continue
        if token.text == ";":
            if words:
                yield words
            words = []
        elif len(words) < _FIRST:
            words.append(_word(token))
        elif not several:
            break
    if words:
        yield words


def _pieces(tokens: Iterable[SqlToken]) -> Generator[SqlToken]:
    """The same, and what a string may hide whose end depends on a setting of the session."""
    for token in tokens:
        if token.whole or token.kind != "string":
            yield token
            continue
        yield SqlToken("string", "'")
        for piece in re.split(r"(;)", token.text)[1:]:
            yield from sql_tokens(piece)


def _word(token: SqlToken) -> str:
    if token.kind == "quoted":
        return _ANY if token.text[0] in "uU" else token.text[1:-1].replace('""', '"').lower()
    return token.text.lower()
