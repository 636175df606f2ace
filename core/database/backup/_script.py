"""The SQL that pg_restore makes of a dump, run on our own connection: one transaction, which is ours to end.

pg_restore never connects: it only translates. Its script for psql is run as it comes, the rows by COPY. Two kinds of lines
are left out: psql's own commands (backslash restrict) and a setting that servers before 17 do not know.
"""

import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from core.database.backup._tools import Tools, running
from core.database.driver import DriverConnection
from core.database.errors import BackupToolFailed

_CHUNK = 1024 * 1024
_END = b"\\.\n"
_NAME = r'"(?:[^"]|"")+"|[^\s"().,;]+'
_COPY = re.compile(rf"COPY (?:({_NAME})\.)?({_NAME}) ?(?:\(((?:{_NAME})(?:, (?:{_NAME}))*)\))? FROM stdin;")
_COLUMN = re.compile(_NAME)
_HEADER_END = "SET row_security = off;"
_IN_HEADER = re.compile(r"^(?:\\restrict [A-Za-z0-9]+|SET transaction_timeout = 0;)$", re.MULTILINE)
_AT_THE_END = re.compile(r"^\\unrestrict [A-Za-z0-9]+\s*\Z", re.MULTILINE)

OnRows = Callable[[str, int], None]
"""Called with the table being filled and the bytes of rows copied so far, over all tables."""


@dataclass(frozen=True, slots=True)
class Copy:
    """Where rows go."""

    schema: str | None
    table: str
    columns: tuple[str, ...] | None


class Script:
    """pg_restore's script of the rows, read piece by piece and never held whole."""

    def __init__(self, read: Callable[[], Awaitable[bytes]]) -> None:
        """`read` gives the next bytes, none at the end."""
        self._read = read
        self._buffer = b""

    async def statement(self) -> str | None:
        """The next statement, None at the end. After a COPY the rows must be read before."""
        lines: list[str] = []
        while (line := await self._line()) is not None:
            if not lines and (not line.strip() or line.startswith(("--", "\\"))):
                continue
            lines.append(line)
            if line.endswith(";"):
                return "\n".join(lines)
        if lines:
            raise BackupToolFailed("pg_restore's script ends in the middle of a statement")
        return None

    async def rows(self) -> AsyncGenerator[bytes]:
        """The rows of the COPY that was just read, as they are sent to the server."""
        while len(self._buffer) < len(_END):
            await self._more()
        if self._buffer.startswith(_END):
            self._buffer = self._buffer[len(_END) :]
            return
        while (end := self._buffer.find(b"\n" + _END)) < 0:
            keep = len(_END)  # a part of the end may stand there
            chunk, self._buffer = self._buffer[:-keep], self._buffer[-keep:]
            if chunk:
                yield chunk
            await self._more()
        chunk, self._buffer = self._buffer[: end + 1], self._buffer[end + 1 + len(_END) :]
        yield chunk

    async def _line(self) -> str | None:
        while (end := self._buffer.find(b"\n")) < 0:
            chunk = await self._read()
            if not chunk:
                last, self._buffer = self._buffer, b""
                return last.decode() or None
            self._buffer += chunk
        line, self._buffer = self._buffer[:end], self._buffer[end + 1 :]
        return line.decode()

    async def _more(self) -> None:
        chunk = await self._read()
        if not chunk:
            raise BackupToolFailed("pg_restore's script ends in the middle of a table's rows")
        self._buffer += chunk


def parsed_copy(statement: str) -> Copy | None:
    """The statement's target if it is a COPY."""
    found = _COPY.fullmatch(statement)
    if found is None:
        return None
    schema, table, columns = found.groups()
    names = tuple(_plain(name) for name in _COLUMN.findall(columns)) if columns else None
    return Copy(_plain(schema) if schema else None, _plain(table), names)


def without_psql(text: str) -> str:
    """The script without what a server does not take. Nothing but the header and the last line is looked at: functions are not."""
    header, end, body = text.partition(_HEADER_END)
    return _IN_HEADER.sub("", header) + end + _AT_THE_END.sub("", body)


async def listed(tools: Tools, descriptor: int, offset: int) -> list[str]:
    """The dump's table of contents, a line an entry, as pg_restore takes it back."""
    text = (await script(tools, descriptor, offset, ("--list",))).decode()
    return [line for line in text.splitlines() if line and not line.startswith(";")]


async def script(tools: Tools, descriptor: int, offset: int, arguments: Sequence[str]) -> bytes:
    """All that pg_restore makes of the dump at that place of the file."""
    parts: list[bytes] = []
    async with _pg_restore(tools, descriptor, offset, arguments) as read:
        while chunk := await read():
            parts.append(chunk)
    return b"".join(parts)


async def run_definitions(
    raw: DriverConnection, tools: Tools, descriptor: int, offset: int, arguments: Sequence[str]
) -> None:
    """Run a script without rows in the open transaction."""
    text = (await script(tools, descriptor, offset, arguments)).decode()
    await raw.execute(without_psql(text))


async def run_rows(
    raw: DriverConnection, tools: Tools, descriptor: int, offset: int, arguments: Sequence[str], *, on_rows: OnRows
) -> None:
    """Run the script of the rows in the open transaction."""
    copied = 0
    async with _pg_restore(tools, descriptor, offset, arguments) as read:
        commands = Script(read)
        while (statement := await commands.statement()) is not None:
            target = parsed_copy(statement)
            if target is None:
                if not _IN_HEADER.fullmatch(statement):
                    await raw.execute(statement)
                continue

            async def rows(table: str = target.table) -> AsyncGenerator[bytes]:
                nonlocal copied
                async for chunk in commands.rows():
                    copied += len(chunk)
                    yield chunk
                    on_rows(table, copied)

            untyped: Any = raw  # the driver's COPY methods carry no types
            await untyped.copy_to_table(target.table, source=rows(), schema_name=target.schema, columns=target.columns)


@asynccontextmanager
async def _pg_restore(
    tools: Tools, descriptor: int, offset: int, arguments: Sequence[str]
) -> AsyncGenerator[Callable[[], Awaitable[bytes]]]:
    # Where it stands in the file is shared with the child, which reads the dump out of the middle of it.
    os.lseek(descriptor, offset, os.SEEK_SET)
    output = () if "--list" in arguments else ("--file=-",)
    async with running((tools.pg_restore, *arguments, *output), environment={}, stdin=descriptor) as stream:
        yield lambda: stream.read(_CHUNK)


def _plain(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
