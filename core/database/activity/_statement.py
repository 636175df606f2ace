"""What may be planned, refused in words before the server refuses it in its own."""

import re
from typing import Any

from core.database.errors import StatementFault
from core.database.monitoring import SqlToken, sql_tokens, without_literals

_PLANNED = ("SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "VALUES", "TABLE")
_DOLLAR = "PostgreSQL's parameters are $1, $2 and so on: write these."
_LOGGED = 2_000  # characters of a statement that the slow-query log keeps


def checked_statement(statement: str) -> str:
    """The statement without the semicolon behind it. Raises `StatementFault` for none, several or another kind."""
    pieces = [token for token in sql_tokens(statement) if token.kind not in ("space", "comment")]
    while pieces and pieces[-1].text == ";":
        pieces.pop()
        statement = statement[: statement.rindex(";")]
    if not pieces:
        raise StatementFault("there is no statement to explain", hint="Give one SELECT, INSERT, UPDATE or DELETE.")
    if any(token.text == ";" for token in pieces):
        raise StatementFault("only one statement can be explained, and this text holds several")
    first = next((token for token in pieces if token.text != "("), pieces[0])
    word = first.text.upper()
    if word == "EXPLAIN":
        raise StatementFault("the statement begins with EXPLAIN already", hint="Leave that word and its options out.")
    if first.kind != "word" or word not in _PLANNED:
        known = f"{word} has no plan" if first.kind == "word" else "this does not begin like a statement with a plan"
        raise StatementFault(known, hint="SELECT, INSERT, UPDATE, DELETE, MERGE and VALUES have one.")
    return statement.strip()


def explained_fault(error: StatementFault, statement: str, *, offset: int) -> StatementFault:
    """The server's refusal with the place in the statement, and the mend where the usual cause is in it."""
    message, hint = error.message, error.hint
    place = _position(error)
    if place is not None and place > offset:
        near = without_literals(statement[place - offset - 1 :][:200]).split(" ")[0]
        message = f"{message} at character {place - offset}" + (f", near {near}" if near else " (its end)")
    found = foreign_placeholder(statement)
    if found is not None:
        hint = f"{found} is a placeholder of a client library. {_DOLLAR}"
    elif len(statement) >= _LOGGED:
        hint = f"The slow-query log cuts a statement after {_LOGGED:,} characters; take it from the code."
    return StatementFault(message, hint=hint, sqlstate=error.sqlstate)


def foreign_placeholder(statement: str) -> str | None:
    """The first `%s`, `%(name)s`, `:name` or `?` outside of literals, which a client library would have replaced."""
    kept = [token for token in sql_tokens(statement) if token.kind != "comment"]
    for at, token in enumerate(kept):
        after = "".join(piece.text for piece in kept[at + 1 : at + 5] if _joins(piece))
        before = kept[at - 1] if at else SqlToken("space", "")
        if token.text == "%" and (found := re.match(r"s\b|\(\w+\)s\b", after)):
            return f"%{found[0]}"
        if token.text == ":" and before.text != ":" and (found := re.match(r"[A-Za-z_]\w*", after)):
            return f":{found[0]}"
        if token.text == "?":
            return "?"
    return None


def _joins(token: SqlToken) -> bool:
    return token.kind in ("word", "symbol", "number")


def _position(error: StatementFault) -> int | None:
    """Where in the text that was sent, counted from 1, as the driver's error says."""
    current: Any = error.orig
    while current is not None:
        position = getattr(current, "position", None)
        if position is not None and str(position).isdigit():
            return int(position)
        current = current.__cause__
    return None
