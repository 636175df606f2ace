"""A staged file against the stored master: only what differs is written.

Runs in the loader's transaction. One join finds the rows that are new, changed, back or gone; equal rows are neither written nor
locked. A state that is superseded goes to `instrument_versions`, unless it began on the same day: then it is a correction.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from sqlalchemy import TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, BIGINT, DATE, INTEGER, TEXT, TIMESTAMP
from sqlalchemy.ext.asyncio import AsyncSession

from core.config.options import Timeouts
from core.database import bulk
from core.trading.instruments._errors import InstrumentFileRejected, MasterWouldShrink, StaleInstrumentFile
from core.trading.instruments._merge_sql import (
    ACTIVE,
    ADD,
    ARCHIVE,
    BY_KEY,
    BY_TOKEN,
    DEACTIVATE,
    FIND,
    FOUND,
    GONE,
    NEW_KEYS,
    PRICES,
    REPRICE,
    SUMMED,
    SUPERSEDE,
    TAKEN,
    UPDATE,
)
from core.trading.instruments._report import RejectedRow, Shrink

MERGE_LIMIT = f"{Timeouts().bulk}s"
"""For one statement of a load."""

_MEMORY = "64MB"
"""For the server to compare a hundred thousand rows without a detour over its disk."""

_PART = 50_000
"""Prices that are sent at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StagedFile:
    """What was staged, and what the rejected rows named: the file has these, so they are not gone."""

    table: str
    count: int
    exchanges: tuple[str, ...]
    by_key: bool
    """Its rows are known by `broker_key`, not by `instrument_token`."""
    token_column: str
    """The file's word for either."""
    refused_tokens: frozenset[int] = frozenset()
    refused_keys: frozenset[str] = frozenset()
    refused_symbols: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
    """Rows by what became of them; `repriced` differ in their last price alone. `foreigners` were left out."""

    added: int
    changed: int
    attributes_changed: int
    renamed: int
    reactivated: int
    repriced: int
    deactivated: int
    foreigners: tuple[RejectedRow, ...]


async def apply_staged(
    session: AsyncSession, staged: StagedFile, *, source: str, trading_date: date, max_shrink: float | None
) -> Merged:
    """Bring the master to what is staged.

    Raises `StaleInstrumentFile` if it holds states of a later day than `trading_date`, `InstrumentFileRejected` if every row
    belongs to another source, and `MasterWouldShrink` if the file lacks more than the share `max_shrink` of an exchange; None
    allows any.
    """
    moment = datetime.combine(trading_date, time(), tzinfo=UTC)
    values = {
        "source": source,
        "moment": moment,
        "tomorrow": moment + timedelta(days=1),
        "day": trading_date,
        "exchanges": list(staged.exchanges),
    }
    # Neither table need have statistics yet, and a nested loop over the unindexed staged rows would take minutes.
    await session.execute(text("SET LOCAL enable_nestloop = off"))
    await session.execute(text(f"SET LOCAL work_mem = '{_MEMORY}'"))
    table = await bulk.stage(session, FOUND, name="found")
    if await _differ(session, staged, table, values):
        merged = await _applied(session, staged, table, values, max_shrink)
    else:
        merged = _merged(_found([]), [], staged)
    await session.execute(text("SET LOCAL work_mem TO DEFAULT"))
    await session.execute(text("SET LOCAL enable_nestloop TO DEFAULT"))
    return merged


async def _differ(session: AsyncSession, staged: StagedFile, table: str, values: dict[str, Any]) -> bool:
    parts = BY_KEY if staged.by_key else BY_TOKEN
    return bool((await _run(session, FIND.format(staged=staged.table, found=table, **parts), values)).rowcount)


async def _applied(
    session: AsyncSession, staged: StagedFile, table: str, values: dict[str, Any], max_shrink: float | None
) -> Merged:
    found = _found((await _run(session, SUMMED.format(found=table), values)).all())
    _check_holders(found, staged)
    gone = await _gone(session, staged, table, values)
    if found.later or any(row.later for row in gone):
        raise StaleInstrumentFile(f"the master holds instruments as of a later day than {values['day']}")
    await _write(session, staged, table, found, values)
    if max_shrink is not None and gone:
        await _check_shrink(session, gone, found.returned, values, max_shrink)
    if gone:
        arguments = {**values, "tokens": [row.instrument_token for row in gone]}
        await _run(session, ARCHIVE, arguments)
        await _run(session, DEACTIVATE, arguments)
    return _merged(found, gone, staged)


def _merged(found: "_Found", gone: Sequence[Any], staged: StagedFile) -> Merged:
    return Merged(
        added=found.rows["added"],
        changed=found.rows["changed"],
        attributes_changed=found.rows["attributes"],
        renamed=found.renamed,
        reactivated=found.rows["reactivated"],
        repriced=found.rows["repriced"],
        deactivated=len(gone),
        foreigners=tuple(
            RejectedRow(line=line, field=staged.token_column, reason=f"{token} is an instrument of source {holder!r}")
            for line, token, holder in found.foreigners
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """What differs: rows by verdict, (line, token, source) of those that others hold, and per exchange what is back."""

    rows: Counter[str]
    renamed: int
    returned: Counter[str]
    later: bool
    foreigners: list[tuple[int, int, str]]


def _found(groups: Sequence[Any]) -> _Found:
    rows, returned, renamed = Counter[str](), Counter[str](), 0
    foreigners: list[tuple[int, int, str]] = []
    for group in groups:
        rows[group.verdict] += group.rows
        if group.verdict == "changed":
            renamed += group.renamed
        if group.verdict == "reactivated":
            returned[group.exchange] += group.alive
        foreigners.extend(group.foreigners or ())
    later = any(group.later for group in groups)
    return _Found(rows=rows, renamed=renamed, returned=returned, later=later, foreigners=foreigners)


def _check_holders(found: _Found, staged: StagedFile) -> None:
    if found.foreigners and len(found.foreigners) == staged.count:
        holder = found.foreigners[0][2]
        raise InstrumentFileRejected(
            f"every instrument of the file is stored as one of source {holder!r}",
            hint=f"Load it with source={holder!r}; a token belongs to one source.",
        )


async def _write(session: AsyncSession, staged: StagedFile, table: str, found: _Found, values: dict[str, Any]) -> None:
    """All that was found but what is gone."""
    if found.rows["added"]:
        await _add(session, staged, table, values)
    # Few rows are quickest found by the index, many by a hash; every row of the one has one of the other.
    await session.execute(text("SET LOCAL enable_nestloop TO DEFAULT"))
    if found.rows["changed"] + found.rows["attributes"] + found.rows["reactivated"]:
        await _run(session, SUPERSEDE.format(found=table), values)
        await _run(session, UPDATE.format(found=table), values)
    if found.rows["repriced"]:
        await _reprice(session, table)


async def _reprice(session: AsyncSession, table: str) -> None:
    """Prices alone: no other column of such a row differs."""
    after = -(1 << 63)
    while True:
        values: dict[str, Any] = {"after": after, "part": _PART}
        tokens, prices = (await _run(session, PRICES.format(found=table), values)).one()
        if tokens is None:
            return
        await _run(session, REPRICE, {"tokens": tokens, "prices": prices})
        if len(tokens) < _PART:
            return
        after = tokens[-1]


async def _add(session: AsyncSession, staged: StagedFile, table: str, values: dict[str, Any]) -> None:
    if not staged.by_key:
        await _run(session, ADD.format(key="f.instrument_token", found=table, keys=""), values)
        return
    keys = await bulk.stage(session, {"broker_key": 'text COLLATE "C"', "token": "bigint"}, name="new_keys")
    await _run(session, NEW_KEYS.format(keys=keys, found=table), values)
    while (await session.execute(text(TAKEN.format(keys=keys)))).first():
        pass
    join = f"JOIN {keys} k ON k.broker_key = f.broker_key"
    await _run(session, ADD.format(key="k.token", found=table, keys=join), values)


async def _gone(session: AsyncSession, staged: StagedFile, table: str, values: dict[str, Any]) -> list[Any]:
    """Active instruments of the file's exchanges that no row of the file names, not even a rejected one."""
    rows = (await _run(session, GONE.format(found=table), values)).all()
    return [
        row
        for row in rows
        if row.instrument_token not in staged.refused_tokens
        and row.broker_key not in staged.refused_keys
        and (row.exchange, row.trading_symbol) not in staged.refused_symbols
    ]


async def _check_shrink(
    session: AsyncSession, gone: list[Any], returned: Counter[str], values: dict[str, Any], max_shrink: float
) -> None:
    lost = Counter[str](row.exchange for row in gone if not row.expired)
    active = {row.exchange: int(row.rows) for row in await _run(session, ACTIVE, values)}
    shrinks = [
        Shrink(exchange=venue, gone=rows, active=max(active.get(venue, 0) - returned[venue], rows))
        for venue, rows in sorted(lost.items())
    ]
    if over := tuple(item for item in shrinks if item.share > max_shrink):
        figures = ", ".join(f"{item.gone:,} of {item.active:,} of {item.exchange} ({item.share:.0%})" for item in over)
        message = f"the file no longer names {figures}; at most {max_shrink:.0%} of an exchange may go at once"
        raise MasterWouldShrink(message, shrinks=over)


async def _run(session: AsyncSession, statement: str, values: dict[str, Any]) -> Any:
    """Execute with the parameters that the statement has."""
    named = [name for name in values if f":{name}" in statement]
    return await session.execute(_typed(statement, named), {name: values[name] for name in named})


def _typed(statement: str, names: Sequence[str]) -> TextClause:
    return text(statement).bindparams(*(bindparam(name, type_=_TYPES[name]) for name in names))


_TYPES: dict[str, Any] = {
    "source": TEXT(),
    "moment": TIMESTAMP(timezone=True),
    "tomorrow": TIMESTAMP(timezone=True),
    "day": DATE(),
    "exchanges": ARRAY(TEXT()),
    "tokens": ARRAY(BIGINT()),
    "prices": ARRAY(TEXT()),
    "after": BIGINT(),
    "part": INTEGER(),
}
