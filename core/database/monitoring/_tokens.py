"""SQL text in pieces, as PostgreSQL's own scanner cuts it, also where the text is wrong or was cut off."""

import re
from collections.abc import Generator
from typing import Literal, NamedTuple

Kind = Literal["space", "comment", "string", "number", "parameter", "word", "quoted", "symbol"]

# Every character beyond ASCII belongs to a name, whatever Unicode thinks of it: the server's scanner sees bytes.
_NAME_START = r"A-Za-z_\u0080-\U0010ffff"
_SPACE = re.compile(r"[ \t\n\r\f\v]+")
_LINE_COMMENT = re.compile(r"--[^\n\r]*")
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_PLAIN_STRING = re.compile(r"(?:[bBnNxX]|[uU]&)?'")
_ESCAPE_STRING = re.compile(r"[eE]'(?:[^'\\]|\\.|'')*(')?", re.DOTALL)
_QUOTED = re.compile(r'(?:[uU]&)?"(?:[^"]|"")*(")?')
_DOLLAR = re.compile(rf"\$(?:[{_NAME_START}][{_NAME_START}0-9]*)?\$")
_PARAMETER = re.compile(r"\$[0-9]+")
_WORD = re.compile(rf"[{_NAME_START}][{_NAME_START}0-9$]*")
_NUMBER = re.compile(r"\.?[0-9][A-Za-z0-9_.]*(?:(?<=[eE])[+-][0-9][0-9_]*)?")


class SqlToken(NamedTuple):
    """A piece of SQL; `whole` is False for a literal without its end, or whose end is doubtful."""

    kind: Kind
    text: str
    whole: bool = True


def sql_tokens(sql: str) -> Generator[SqlToken]:
    """The pieces, in order; joined they are the text. Never fails.

    A quote behind a backslash ends a plain string or not by a setting of the session that wrote it: such a string
    takes in all that follows and is not whole.
    """
    position = 0
    while position < len(sql):
        token = _next(sql, position)
        yield token
        position += len(token.text)


def _next(sql: str, at: int) -> SqlToken:
    char = sql[at]
    if found := _SPACE.match(sql, at):
        return SqlToken("space", found[0])
    if char == "-" and (found := _LINE_COMMENT.match(sql, at)):
        return SqlToken("comment", found[0])
    if sql.startswith("/*", at):
        return _comment(sql, at)
    if found := _ESCAPE_STRING.match(sql, at):
        return SqlToken("string", found[0], found[1] is not None)
    if found := _PLAIN_STRING.match(sql, at):
        return _plain_string(sql, at, found.end())
    if found := _QUOTED.match(sql, at):
        return SqlToken("quoted", found[0], found[1] is not None)
    if char == "$":
        return _dollar(sql, at)
    if found := _WORD.match(sql, at):
        return SqlToken("word", found[0])
    if found := _NUMBER.match(sql, at):
        return SqlToken("number", found[0])
    return SqlToken("symbol", char)


def _comment(sql: str, at: int) -> SqlToken:
    """Comments nest."""
    depth = 0
    for edge in _COMMENT_EDGE.finditer(sql, at):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return SqlToken("comment", sql[at : edge.end()])
    return SqlToken("comment", sql[at:], whole=False)


def _plain_string(sql: str, at: int, inside: int) -> SqlToken:
    position = inside
    while (quote := sql.find("'", position)) >= 0:
        before = sql[inside:quote]
        if (len(before) - len(before.rstrip("\\"))) % 2:
            break
        if not sql.startswith("'", quote + 1):
            return SqlToken("string", sql[at : quote + 1])
        position = quote + 2
    return SqlToken("string", sql[at:], whole=False)


def _dollar(sql: str, at: int) -> SqlToken:
    if found := _PARAMETER.match(sql, at):
        return SqlToken("parameter", found[0])
    if found := _DOLLAR.match(sql, at):
        end = sql.find(found[0], found.end())
        return SqlToken("string", sql[at:] if end < 0 else sql[at : end + len(found[0])], end >= 0)
    return SqlToken("string", sql[at:], whole=False)  # half a tag, where the text was cut
