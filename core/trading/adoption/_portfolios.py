"""The original's portfolio snapshots into our portfolios and their history: floats become exact decimals.

PostgreSQL writes a float8 as the shortest decimal that means it, and that decimal is what is stored.
"""
# ruff: noqa: S608 - every name in a statement is one of our own or quoted, every value is bound

from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core.database.models import snapshot_partition_ddl
from core.trading.adoption._original import ORIGINAL_SCHEMA
from core.trading.adoption._report import Rounded, TableCount
from core.trading.adoption._stage import analyze, judge, refuse, run, settle, stage, staged

_THERE = f"{ORIGINAL_SCHEMA}.portfolio_snapshots"
_AMOUNTS = {"cash": "cash", "realized_pnl": "total_realized_pnl", "unrealized_pnl": "total_unrealized_pnl"}
_FIELDS = ("quantity", "average_price", "last_price", "unrealized_pnl")


def _number(field: str) -> str:
    """A member of a position as an exact number; NULL if it is none."""
    return f"CASE WHEN jsonb_typeof(e.value -> '{field}') = 'number' THEN CAST(e.value ->> '{field}' AS numeric) END AS {field}"


_POSITIONS = f"""
    CREATE TEMPORARY TABLE adopting_positions ON COMMIT DROP AS
    SELECT CAST(o.id AS text) AS _key, e.place, {_number("instrument_token")}, {", ".join(map(_number, _FIELDS))},
        {_number("realized_pnl")}, COALESCE(jsonb_typeof(e.value -> 'last_price'), 'null') AS last_kind,
        COALESCE(jsonb_typeof(e.value -> 'unrealized_pnl'), 'null') AS pnl_kind, CAST(NULL AS text) AS reason
    FROM {_THERE} o CROSS JOIN LATERAL (
        SELECT key AS place, value
        FROM jsonb_each(CASE jsonb_typeof(CAST(o.positions AS jsonb)) WHEN 'object' THEN CAST(o.positions AS jsonb) ELSE '{{}}' END)
        UNION ALL SELECT CAST(place - 1 AS text), value
        FROM jsonb_array_elements(CASE jsonb_typeof(CAST(o.positions AS jsonb)) WHEN 'array' THEN CAST(o.positions AS jsonb) ELSE '[]' END)
            WITH ORDINALITY a (value, place)
    ) e
"""
_MISSHAPEN = f"""
    UPDATE adopting_positions SET reason = format('position %s %s', place, CASE
        WHEN instrument_token IS NULL OR instrument_token <> trunc(instrument_token) OR abs(instrument_token) >= 9e18
            THEN 'has no whole instrument_token'
        WHEN quantity IS NULL THEN 'has no quantity'
        WHEN average_price IS NULL THEN 'has no average_price'
        WHEN last_price IS NULL AND last_kind <> 'null' THEN 'has a last_price that is no number'
        WHEN unrealized_pnl IS NULL AND pnl_kind <> 'null' THEN 'has an unrealized_pnl that is no number'
        WHEN GREATEST({", ".join(f"abs({field})" for field in _FIELDS)}) >= 1e18
            THEN 'has an amount of more than 18 digits before the point' END)
    WHERE instrument_token IS NULL OR instrument_token <> trunc(instrument_token) OR abs(instrument_token) >= 9e18
        OR quantity IS NULL OR average_price IS NULL OR (last_price IS NULL AND last_kind <> 'null')
        OR (unrealized_pnl IS NULL AND pnl_kind <> 'null')
        OR GREATEST({", ".join(f"abs({field})" for field in _FIELDS)}) >= 1e18
"""
_SNAPSHOTS = f"""
    WITH held AS (
        SELECT _key, min(reason) AS reason,
            sum(round(quantity, 10) * round(COALESCE(last_price, average_price), 10)) FILTER (WHERE reason IS NULL) AS value,
            jsonb_agg(jsonb_build_object(
                'instrument_token', CAST(instrument_token AS bigint),
                'quantity', CAST(trim_scale(round(quantity, 10)) AS text),
                'average_price', CAST(trim_scale(round(average_price, 10)) AS text),
                'last_price', CAST(trim_scale(round(COALESCE(last_price, average_price), 10)) AS text),
                'pnl', CAST(trim_scale(round(COALESCE(unrealized_pnl, 0), 10)) AS text)
            ) ORDER BY instrument_token) FILTER (WHERE reason IS NULL) AS positions
        FROM adopting_positions GROUP BY _key
    )
    INSERT INTO adopting_portfolio_snapshots (portfolio_id, snapshot_time, broker, positions, cash, realized_pnl,
        unrealized_pnl, total_pnl, equity, _key, _reason)
    SELECT o.portfolio_id, o.snapshot_time, o.broker_namespace, COALESCE(h.positions, '[]'),
        {", ".join(f"round(CAST(CAST(o.{theirs} AS text) AS numeric), 10)" for theirs in _AMOUNTS.values())},
        CAST(CAST(o.total_pnl AS text) AS numeric),
        round(round(CAST(CAST(o.cash AS text) AS numeric), 10) + COALESCE(h.value, 0), 10), CAST(o.id AS text),
        CASE WHEN jsonb_typeof(CAST(o.positions AS jsonb)) NOT IN ('object', 'array') THEN 'positions holds no positions' ELSE h.reason END
    FROM {_THERE} o LEFT JOIN held h ON h._key = CAST(o.id AS text)
"""
_WRONG_TOTAL = """
    abs(s.total_pnl) < 1e18 AND abs(s.realized_pnl) < 1e18 AND abs(s.unrealized_pnl) < 1e18
    AND abs(s.total_pnl - (s.realized_pnl + s.unrealized_pnl))
        > 1e-6 + 1e-12 * (abs(s.realized_pnl) + abs(s.unrealized_pnl))
"""
_WRONG_TOTAL_SAYS = (
    "format('total_pnl %s is not the sum of realized %s and unrealized %s', s.total_pnl,"
    " trim_scale(s.realized_pnl), trim_scale(s.unrealized_pnl))"
)
_TOTALS = f"""
    UPDATE {staged("portfolio_snapshots")} SET total_pnl = realized_pnl + unrealized_pnl
    WHERE abs(total_pnl) < 1e18 AND total_pnl <> realized_pnl + unrealized_pnl AND _reason IS NULL
"""
# A portfolio is what its latest snapshot says.
_PORTFOLIOS = f"""
    INSERT INTO adopting_portfolios (portfolio_id, broker, strategy_id, currency, name, created_at, _key)
    SELECT DISTINCT ON (s.portfolio_id) s.portfolio_id, s.broker, t.strategy_id, :currency, s.portfolio_id,
        COALESCE(o.created_at, s.snapshot_time), s._key
    FROM adopting_portfolio_snapshots s JOIN {_THERE} o ON CAST(o.id AS text) = s._key
    LEFT JOIN strategies t ON t.strategy_id = o.strategy_id COLLATE "C"
    WHERE s._reason IS NULL ORDER BY s.portfolio_id, s.snapshot_time DESC, o.id DESC
"""
_ADD_PORTFOLIOS = """
    INSERT INTO portfolios (portfolio_id, broker, strategy_id, currency, name, created_at)
    SELECT portfolio_id, broker, strategy_id, currency, name, created_at FROM adopting_portfolios WHERE _reason IS NULL
"""
_SAME_TIME = """(
    SELECT _key AS twin, first_value(_key) OVER (PARTITION BY portfolio_id, snapshot_time ORDER BY length(_key), _key) AS elder
    FROM adopting_portfolio_snapshots WHERE _reason IS NULL) d
"""
_MONTHS = """
    SELECT DISTINCT CAST(date_trunc('month', snapshot_time, 'UTC') AS date) FROM adopting_portfolio_snapshots
    WHERE _reason IS NULL ORDER BY 1
"""
_ROUND_AMOUNTS = [
    f"""
    INSERT INTO {ORIGINAL_SCHEMA}.rounded (source_table, row_key, field, given, kept)
    SELECT 'portfolio_snapshots', s._key, '{theirs}', CAST(CAST(o.{theirs} AS text) AS numeric), s.{ours}
    FROM adopting_portfolio_snapshots s JOIN {_THERE} o ON CAST(o.id AS text) = s._key
    WHERE s._reason IS NULL AND CAST(CAST(o.{theirs} AS text) AS numeric) <> s.{ours}
    """
    for ours, theirs in _AMOUNTS.items()
]
_ROUND_POSITIONS = [
    f"""
    INSERT INTO {ORIGINAL_SCHEMA}.rounded (source_table, row_key, field, given, kept)
    SELECT 'portfolio_snapshots', s._key, format('positions[%s].{field}', p.place), p.{field}, round(p.{field}, 10)
    FROM adopting_portfolio_snapshots s JOIN adopting_positions p USING (_key)
    WHERE s._reason IS NULL AND p.{field} <> round(p.{field}, 10)
    """
    for field in _FIELDS
]
_ROUNDED = f"""
    SELECT regexp_replace(field, '\\[.*\\]', ''), count(*), max(abs(given - kept)) FROM {ORIGINAL_SCHEMA}.rounded GROUP BY 1 ORDER BY 1
"""
_ODD = """
    SELECT count(*) FILTER (WHERE p.last_price IS NULL AND p.quantity <> 0), count(*) FILTER (WHERE p.realized_pnl <> 0)
    FROM adopting_portfolio_snapshots s JOIN adopting_positions p USING (_key) WHERE s._reason IS NULL
"""
_WITHOUT_STRATEGY = f"""
    SELECT count(*) FROM adopting_portfolios a JOIN {_THERE} o ON CAST(o.id AS text) = a._key
    WHERE a._reason IS NULL AND a.strategy_id IS NULL AND o.strategy_id <> ''
"""


async def move_portfolios(
    connection: AsyncConnection, *, read: int, currency: str, notes: list[str]
) -> tuple[TableCount, tuple[Rounded, ...]]:
    """Move the snapshots, and make the portfolios that they are of. Equity is cash and the positions at their last price."""
    table = "portfolio_snapshots"
    await run(connection, _POSITIONS)
    await run(connection, _MISSHAPEN)
    await analyze(connection, "adopting_positions")
    await stage(connection, table)
    await run(connection, _SNAPSHOTS)
    await analyze(connection, staged(table))
    await refuse(connection, table, _WRONG_TOTAL_SAYS, _WRONG_TOTAL)
    totals = await run(connection, _TOTALS)
    await judge(connection, table)
    await _make_portfolios(connection, currency)
    twin = "format('row %s is a snapshot of the same portfolio and time', d.elder)"
    await refuse(connection, table, twin, "d.twin = s._key AND d.elder <> s._key", joined=_SAME_TIME)
    for month in await connection.scalars(text(_MONTHS)):
        await run(connection, snapshot_partition_ddl(month))
    await _tell(connection, notes, totals)
    rounded = await _rounded(connection)
    moved, aside = await settle(connection, table, source=table, key="id")
    into = "portfolios, portfolio_snapshots"
    return TableCount(table=table, into=into, read=read, moved=moved, set_aside=aside), rounded


async def _make_portfolios(connection: AsyncConnection, currency: str) -> None:
    await stage(connection, "portfolios")
    await run(connection, _PORTFOLIOS, currency=currency)
    await analyze(connection, staged("portfolios"))
    await judge(connection, "portfolios")
    await run(connection, _ADD_PORTFOLIOS)
    joined = "adopting_portfolios p"
    await refuse(
        connection,
        "portfolio_snapshots",
        "COALESCE(p._reason, format('its portfolio is one with broker %s', p.broker))",
        "p.portfolio_id = s.portfolio_id AND (p._reason IS NOT NULL OR p.broker <> s.broker)",
        joined=joined,
    )


async def _rounded(connection: AsyncConnection) -> tuple[Rounded, ...]:
    for statement in (*_ROUND_AMOUNTS, *_ROUND_POSITIONS):
        await run(connection, statement)
    rows: Any = (await connection.execute(text(_ROUNDED))).all()
    return tuple(Rounded(field=name, count=count, largest=largest) for name, count, largest in rows)


async def _tell(connection: AsyncConnection, notes: list[str], totals: int) -> None:
    if totals:
        notes.append(
            f"total_pnl is the exact sum now in {totals:,} rows; as floats it was off, by less than a millionth or so"
        )
    unpriced, realized = (await connection.execute(text(_ODD))).one()
    if unpriced:
        notes.append(f"positions without a last price: {unpriced:,}; their average price stands for it")
    if realized:
        notes.append(
            f"positions with a realized P&L of their own: {realized:,}; it is in the portfolio's, and in the original table"
        )
    lost = await connection.scalar(text(_WITHOUT_STRATEGY)) or 0
    if lost:
        notes.append(f"portfolios that name a strategy that is not there: {lost:,}; they are without one")
