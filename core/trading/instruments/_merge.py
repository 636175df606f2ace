"""A staged file against the stored master: only what differs is written.

Runs in the loader's transaction. An anti-join finds the rows that are new, changed or back; equal rows are neither written nor
locked. A state that is superseded goes to `instrument_versions`, unless it began on the same day: then it is a correction.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from sqlalchemy import TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, BIGINT, DATE, TEXT, TIMESTAMP
from sqlalchemy.ext.asyncio import AsyncSession

from core.config.options import Timeouts
from core.database import bulk
from core.trading.instruments._errors import InstrumentFileRejected, MasterWouldShrink, StaleInstrumentFile
from core.trading.instruments._reader import STAGED
from core.trading.instruments._report import RejectedRow, Shrink

MERGE_LIMIT = f"{Timeouts().bulk}s"
"""For one statement of a load."""

_MEMORY = "64MB"
"""For the server to compare a hundred thousand rows without a detour over its disk."""

_NOT_STATE = {"instrument_token", "broker_key", "attributes", "last_price", "line"}
_STATE = tuple(column for column in STAGED if column not in _NOT_STATE)
_WRITTEN = ("instrument_token", "broker_key", *_STATE, "attributes", "last_price")
_VERSION = ("instrument_token", "source", *_STATE, "is_active", "attributes")
_SET = (*_STATE, "attributes", "last_price")
_TOKEN_BIT = 1 << 52
"""Made tokens have it: above every broker's own 32-bit token, below what JSON numbers hold exactly."""


def _list(columns: Sequence[str], alias: str | None = None) -> str:
    return ", ".join(f"{alias}.{column}" if alias else column for column in columns)


_SAME_STATE = f"({_list(_STATE, 's')}) IS NOT DISTINCT FROM ({_list(_STATE, 't')})"
_ATTRIBUTES = "coalesce(s.attributes, '{{}}')"  # its braces are doubled for format()
_ON_TOKEN = "t.instrument_token = s.instrument_token"  # noqa: S105 - a condition of SQL
_ON_KEY = "t.source = :source AND t.broker_key = s.broker_key"

# Keys that the source has not had before get tokens of their own: by hash, the next number where that is taken, the first of
# them after the last.
_NEW_KEYS = f"""
    INSERT INTO {{keys}} (broker_key, token)
    SELECT s.broker_key, {_TOKEN_BIT} | (hashtextextended(:source || chr(31) || s.broker_key, 0) & {_TOKEN_BIT - 1})
    FROM {{staged}} s LEFT JOIN instruments t ON {_ON_KEY} WHERE t.instrument_token IS NULL
"""  # noqa: S608
_TAKEN = f"""
    UPDATE {{keys}} SET token = {_TOKEN_BIT} | ((token + 1) & {_TOKEN_BIT - 1}) WHERE broker_key IN (
        SELECT k.broker_key FROM (
            SELECT broker_key, token, row_number() OVER (PARTITION BY token ORDER BY broker_key) AS place FROM {{keys}}
        ) k LEFT JOIN instruments t ON t.instrument_token = k.token WHERE k.place > 1 OR t.instrument_token IS NOT NULL
    )
    RETURNING 1
"""  # noqa: S608

# {staged} and {keys} are names of our own; every value is a bound parameter.
_APPLY = f"""
    WITH found AS MATERIALIZED (
        SELECT {{token}} AS instrument_token, s.broker_key, {_list(_STATE, "s")}, {_ATTRIBUTES} AS attributes, s.last_price,
            s.line, t.source AS holder, t.valid_from AS since, greatest(t.valid_from, :moment) AS begin,
            t.trading_symbol IS DISTINCT FROM s.trading_symbol AS renamed,
            CASE
                WHEN t.instrument_token IS NULL THEN 'added'
                WHEN t.source <> :source THEN 'foreign'
                WHEN NOT t.is_active THEN 'reactivated'
                WHEN NOT ({_SAME_STATE}) THEN 'changed'
                WHEN {_ATTRIBUTES} <> t.attributes THEN 'attributes'
                ELSE 'repriced'
            END AS verdict
        FROM {{staged}} s LEFT JOIN instruments t ON {{match}} {{keys}}
        WHERE t.instrument_token IS NULL OR t.source <> :source OR NOT t.is_active
            OR NOT ({_SAME_STATE}) OR {_ATTRIBUTES} <> t.attributes OR s.last_price IS DISTINCT FROM t.last_price
    ), archived AS (
        INSERT INTO instrument_versions ({_list(_VERSION)}, valid_from, valid_to)
        SELECT {_list(_VERSION, "t")}, t.valid_from, :moment
        FROM found f JOIN instruments t ON t.instrument_token = f.instrument_token
        WHERE f.verdict IN ('changed', 'attributes', 'reactivated') AND t.valid_from < :moment
    ), added AS (
        INSERT INTO instruments ({_list(_WRITTEN)}, source, is_active, valid_from)
        SELECT {_list(_WRITTEN, "f")}, :source, true, f.begin FROM found f WHERE f.verdict = 'added'
    ), updated AS (
        UPDATE instruments t SET {", ".join(f"{column} = f.{column}" for column in _SET)}, is_active = true,
            valid_from = CASE f.verdict WHEN 'repriced' THEN f.since ELSE f.begin END, updated_at = now()
        FROM found f WHERE f.instrument_token = t.instrument_token AND f.verdict NOT IN ('added', 'foreign')
    )
    SELECT verdict, exchange, count(*) AS rows, count(*) FILTER (WHERE renamed) AS renamed,
        count(*) FILTER (WHERE expiry IS NULL OR expiry >= :day) AS alive,
        coalesce(bool_or(since >= :tomorrow AND verdict <> 'foreign'), false) AS later,
        json_agg(json_build_array(line, instrument_token, holder)) FILTER (WHERE verdict = 'foreign') AS foreigners
    FROM found GROUP BY verdict, exchange
"""  # noqa: S608

_HELD = """
    SELECT count(*) FROM instruments WHERE source = :source AND exchange = ANY(:exchanges) AND is_active
"""

_GONE = """
    SELECT t.instrument_token, t.broker_key, t.exchange, t.trading_symbol, t.valid_from >= :tomorrow AS later,
        coalesce(t.expiry < :day, false) AS expired
    FROM instruments t
    WHERE t.source = :source AND t.exchange = ANY(:exchanges) AND t.is_active
        AND NOT EXISTS (SELECT FROM {staged} s WHERE {match})
"""

# What this transaction has added was not there to be lost; nor was what it has brought back, which is not seen here.
_ACTIVE = """
    SELECT exchange, count(*) AS rows FROM instruments
    WHERE source = :source AND exchange = ANY(:exchanges) AND is_active AND (expiry IS NULL OR expiry >= :day)
        AND created_at < now()
    GROUP BY exchange
"""

_ARCHIVE = f"""
    INSERT INTO instrument_versions ({_list(_VERSION)}, valid_from, valid_to)
    SELECT {_list(_VERSION)}, valid_from, :moment FROM instruments
    WHERE instrument_token = ANY(:tokens) AND valid_from < :moment
"""  # noqa: S608

_DEACTIVATE = """
    UPDATE instruments SET is_active = false, valid_from = greatest(valid_from, :moment), updated_at = now()
    WHERE instrument_token = ANY(:tokens)
"""


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
    found = _found(await _apply(session, staged, values))
    _check_holders(found, staged)
    gone = await _gone(session, staged, staged.count - len(found.foreigners), values)
    if found.later or any(row.later for row in gone):
        raise StaleInstrumentFile(f"the master holds instruments as of a later day than {trading_date}")
    if max_shrink is not None and gone:
        await _check_shrink(session, gone, found.returned, values, max_shrink)
    if gone:
        arguments = {**values, "tokens": [row.instrument_token for row in gone]}
        await _run(session, _ARCHIVE, arguments)
        await _run(session, _DEACTIVATE, arguments)
    await session.execute(text("SET LOCAL work_mem TO DEFAULT"))
    await session.execute(text("SET LOCAL enable_nestloop TO DEFAULT"))
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


async def _apply(session: AsyncSession, staged: StagedFile, values: dict[str, Any]) -> Sequence[Any]:
    if not staged.by_key:
        parts = {"staged": staged.table, "token": "s.instrument_token", "match": _ON_TOKEN, "keys": ""}
        return (await _run(session, _APPLY.format(**parts), values)).all()
    keys = await bulk.stage(session, {"broker_key": 'text COLLATE "C"', "token": "bigint"}, name="new_keys")
    await _run(session, _NEW_KEYS.format(keys=keys, staged=staged.table), values)
    while (await session.execute(text(_TAKEN.format(keys=keys)))).first():
        pass
    parts = {
        "staged": staged.table,
        "token": "coalesce(t.instrument_token, k.token)",
        "match": _ON_KEY,
        "keys": f"LEFT JOIN {keys} k ON k.broker_key = s.broker_key",
    }
    return (await _run(session, _APPLY.format(**parts), values)).all()


async def _gone(session: AsyncSession, staged: StagedFile, applied: int, values: dict[str, Any]) -> list[Any]:
    """Active instruments of the file's exchanges that no row of the file names, not even a rejected one.

    All `applied` rows are active by now, so that an equal count, which is quick to get, says that there are no others.
    """
    if (await _run(session, _HELD, values)).scalar_one() == applied:
        return []
    match = _ON_KEY if staged.by_key else _ON_TOKEN
    rows = (await _run(session, _GONE.format(staged=staged.table, match=match), values)).all()
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
    active = {row.exchange: int(row.rows) for row in await _run(session, _ACTIVE, values)}
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
}
