"""A staged file against the stored master: only what differs is written.

Runs in the loader's transaction. An anti-join finds the rows that are new, changed or back; equal rows are neither written nor
locked. A state that is superseded goes to `instrument_versions`, unless it began with the same day: then it is a correction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any, NoReturn

from sqlalchemy import TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, BIGINT, TEXT, TIMESTAMP
from sqlalchemy.ext.asyncio import AsyncSession

from core.config.options import Timeouts
from core.database import bulk
from core.database.errors import InvalidInput
from core.trading.instruments._errors import InstrumentFileRejected
from core.trading.instruments._parse import STAGED, Parsed
from core.trading.instruments._report import RejectedRow

_LOCK_WAIT = "60s"
"""For another load to end."""
_MERGE_LIMIT = f"{Timeouts().bulk}s"
"""For one statement of this one."""

_STATE = tuple(column for column in STAGED if column not in {"instrument_token", "last_price", "line"})
_WRITTEN = ("instrument_token", *_STATE, "last_price")
_VERSION = ("instrument_token", "source", *_STATE, "is_active", "attributes")
_SET = (*_STATE, "last_price", "is_active", "valid_from", "updated_at")


def _list(columns: Sequence[str], alias: str | None = None) -> str:
    return ", ".join(f"{alias}.{column}" if alias else column for column in columns)


_SAME_STATE = f"({_list(_STATE, 's')}) IS NOT DISTINCT FROM ({_list(_STATE, 't')})"

# {staged} is a name of our own; every value is a bound parameter.
_APPLY = f"""
    WITH found AS MATERIALIZED (
        SELECT {_list(_WRITTEN, "s")}, s.line, t.source AS holder, t.valid_from AS since,
            CASE
                WHEN t.instrument_token IS NULL THEN 'added'
                WHEN t.source <> :source THEN 'foreign'
                WHEN NOT t.is_active THEN 'reactivated'
                WHEN NOT ({_SAME_STATE}) THEN 'changed'
                ELSE 'repriced'
            END AS verdict
        FROM {{staged}} s LEFT JOIN instruments t ON t.instrument_token = s.instrument_token
        WHERE t.instrument_token IS NULL OR t.source <> :source OR NOT t.is_active
            OR NOT ({_SAME_STATE}) OR s.last_price IS DISTINCT FROM t.last_price
    ), archived AS (
        INSERT INTO instrument_versions ({_list(_VERSION)}, valid_from, valid_to)
        SELECT {_list(_VERSION, "t")}, t.valid_from, :moment
        FROM found f JOIN instruments t ON t.instrument_token = f.instrument_token
        WHERE f.verdict IN ('changed', 'reactivated') AND t.valid_from < :moment
    ), applied AS (
        INSERT INTO instruments ({_list(_WRITTEN)}, source, is_active, valid_from, updated_at)
        SELECT {_list(_WRITTEN, "f")}, :source, true,
            CASE f.verdict WHEN 'repriced' THEN f.since ELSE :moment END, :now
        FROM found f WHERE f.verdict <> 'foreign'
        ON CONFLICT (instrument_token) DO UPDATE SET {", ".join(f"{column} = excluded.{column}" for column in _SET)}
    )
    SELECT verdict, count(*) AS rows, bool_or(since > :moment AND verdict <> 'foreign') AS later,
        json_agg(json_build_array(line, instrument_token, holder)) FILTER (WHERE verdict = 'foreign') AS foreigners
    FROM found GROUP BY verdict
"""  # noqa: S608

_HELD = """
    SELECT count(*) FROM instruments WHERE source = :source AND exchange = ANY(:exchanges) AND is_active
"""

_GONE = """
    SELECT t.instrument_token, t.exchange, t.trading_symbol, t.valid_from > :moment AS later FROM instruments t
    WHERE t.source = :source AND t.exchange = ANY(:exchanges) AND t.is_active
        AND NOT EXISTS (SELECT FROM {staged} s WHERE s.instrument_token = t.instrument_token)
"""

_ARCHIVE = f"""
    INSERT INTO instrument_versions ({_list(_VERSION)}, valid_from, valid_to)
    SELECT {_list(_VERSION)}, valid_from, :moment FROM instruments
    WHERE instrument_token = ANY(:tokens) AND valid_from < :moment
"""  # noqa: S608

_DEACTIVATE = """
    UPDATE instruments SET is_active = false, valid_from = :moment, updated_at = :now
    WHERE instrument_token = ANY(:tokens)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
    """Rows by what became of them; `repriced` differ in their last price alone. `foreigners` were left out."""

    added: int
    changed: int
    reactivated: int
    repriced: int
    deactivated: int
    foreigners: tuple[RejectedRow, ...]


async def begin_load(session: AsyncSession) -> None:
    """Wait until no other load is under way; one at a time, whatever its source. Ends with the transaction."""
    await session.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_WAIT}'"))
    await session.execute(text(f"SET LOCAL statement_timeout = '{_LOCK_WAIT}'"))
    await session.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('alpha-panda: instruments', 0))"))
    await session.execute(text("SET LOCAL lock_timeout TO DEFAULT"))


async def copy_staged(session: AsyncSession, parsed: Parsed) -> str:
    """The name of a temporary table that holds the parsed rows."""
    staged = await bulk.stage(session, STAGED, name="instruments")
    await bulk.copy_csv(session, staged, parsed.csv, columns=list(STAGED))
    return staged


async def apply_staged(
    session: AsyncSession, staged: str, parsed: Parsed, *, source: str, trading_date: date
) -> Merged:
    """Bring the master to what is staged. Raises `InvalidInput` if it holds states of a later day than `trading_date`."""
    await session.execute(text(f"SET LOCAL statement_timeout = '{_MERGE_LIMIT}'"))
    moment = datetime.combine(trading_date, time(), tzinfo=UTC)
    values = {"source": source, "moment": moment, "now": datetime.now(UTC)}
    found = {row.verdict: row for row in await session.execute(_typed(_APPLY.format(staged=staged)), values)}
    applied = parsed.count - (int(found["foreign"].rows) if "foreign" in found else 0)
    tokens = await _gone(session, staged, parsed, applied, values)
    if any(row.later for row in found.values()):
        _refuse_backdated(trading_date)
    if tokens:
        arguments = {**values, "tokens": tokens}
        await session.execute(_typed(_ARCHIVE), {key: arguments[key] for key in ("moment", "tokens")})
        await session.execute(_typed(_DEACTIVATE), {key: arguments[key] for key in ("moment", "now", "tokens")})
    await session.execute(text("SET LOCAL statement_timeout TO DEFAULT"))
    counts = {verdict: int(row.rows) for verdict, row in found.items()}
    if counts.get("foreign") == parsed.count:
        holder = found["foreign"].foreigners[0][2]
        raise InstrumentFileRejected(
            f"every instrument of the file is stored as one of source {holder!r}",
            hint=f"Load it with source={holder!r}; a token belongs to one source.",
        )
    return Merged(
        added=counts.get("added", 0),
        changed=counts.get("changed", 0),
        reactivated=counts.get("reactivated", 0),
        repriced=counts.get("repriced", 0),
        deactivated=len(tokens),
        foreigners=_foreigners(found["foreign"].foreigners) if "foreign" in found else (),
    )


async def _gone(session: AsyncSession, staged: str, parsed: Parsed, applied: int, values: dict[str, Any]) -> list[int]:
    """Active instruments of the file's exchanges that no row of the file names, not even a rejected one.

    All `applied` rows are active by now, so that an equal count, which is quick to get, says that there are no others.
    """
    scope = {"source": values["source"], "exchanges": list(parsed.exchanges)}
    if await session.scalar(_typed(_HELD), scope) == applied:
        return []
    arguments = {**scope, "moment": values["moment"]}
    # Neither table need have statistics yet, and a nested loop over the unindexed staged rows would take minutes.
    await session.execute(text("SET LOCAL enable_nestloop = off"))
    rows = (await session.execute(_typed(_GONE.format(staged=staged)), arguments)).all()
    await session.execute(text("SET LOCAL enable_nestloop TO DEFAULT"))
    tokens, symbols = set(parsed.refused_tokens), set(parsed.refused_symbols)
    gone = [
        row for row in rows if row.instrument_token not in tokens and (row.exchange, row.trading_symbol) not in symbols
    ]
    if any(row.later for row in gone):
        _refuse_backdated(values["moment"].date())
    return [row.instrument_token for row in gone]


def _refuse_backdated(trading_date: date) -> NoReturn:
    raise InvalidInput(
        f"trading_date: the master holds instruments as of a later day than {trading_date}",
        hint="Load a broker's files in the order of their days.",
        column="trading_date",
    )


def _foreigners(rows: list[tuple[int, int, str]]) -> tuple[RejectedRow, ...]:
    return tuple(
        RejectedRow(line=line, field="instrument_token", reason=f"{token} is an instrument of source {holder!r}")
        for line, token, holder in rows
    )


def _typed(statement: str) -> TextClause:
    """The statement with the types of the parameters that it has."""
    types: dict[str, Any] = {
        "source": TEXT(),
        "moment": TIMESTAMP(timezone=True),
        "now": TIMESTAMP(timezone=True),
        "exchanges": ARRAY(TEXT()),
        "tokens": ARRAY(BIGINT()),
    }
    named = [bindparam(name, type_=kind) for name, kind in types.items() if f":{name}" in statement]
    return text(statement).bindparams(*named)
