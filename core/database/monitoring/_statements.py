"""SQL text: its first word."""

import re

_COMMANDS = """
    ALTER ANALYZE BEGIN CALL COMMIT COPY CREATE DELETE DO DROP EXPLAIN GRANT INSERT LISTEN LOCK MERGE NOTIFY REFRESH
    RELEASE REVOKE ROLLBACK SAVEPOINT SELECT SET SHOW TABLE TRUNCATE UPDATE VACUUM VALUES WITH
"""
_OPERATIONS = frozenset(_COMMANDS.split())
OTHER = "OTHER"

_LEADING = re.compile(r"(?:\s+|\(|--[^\n]*(?:\n|$)|/\*.*?\*/)*", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+")


def first_word(statement: str) -> str:
    """SELECT, INSERT, COPY..., upper-case, past blanks, parentheses and comments; empty where there is none."""
    start = _LEADING.match(statement)
    found = _WORD.match(statement, start.end() if start else 0)
    return found.group().upper() if found else ""


def operation(statement: str) -> str:
    """The first word where it is one of PostgreSQL's commands, else OTHER: a label with few values."""
    word = first_word(statement)
    return word if word in _OPERATIONS else OTHER
