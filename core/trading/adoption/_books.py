"""The original's strategies, portfolios and instruments into ours."""
# ruff: noqa: S608 - every name in a statement is one of our own or quoted, every value is bound

from typing import Any

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT
from sqlalchemy.ext.asyncio import AsyncConnection

from core.database.errors import InvalidInput
from core.database.types import strict_json_dumps, strict_json_loads
from core.trading.adoption._original import ORIGINAL_SCHEMA
from core.trading.adoption._report import TableCount
from core.trading.adoption._stage import analyze, batches, judge, run, settle, stage, staged

_STRATEGIES_THERE = f"{ORIGINAL_SCHEMA}.strategy_configurations"

_DOCUMENTS = (
    "CREATE TEMPORARY TABLE adopting_documents (id text, config text, parameters text, reason text) ON COMMIT DROP"
)
_ADD_DOCUMENTS = text(
    "INSERT INTO adopting_documents SELECT * FROM unnest(:ids, :configs, :parameters, :reasons)"
).bindparams(*(bindparam(name, type_=ARRAY(TEXT())) for name in ("ids", "configs", "parameters", "reasons")))
_STRATEGIES = f"""
    INSERT INTO adopting_strategies (strategy_id, name, strategy_type, config, parameters, active_brokers, is_active,
        version, created_at, updated_at, _key, _reason)
    SELECT o.id, o.id, NULLIF(btrim(o.strategy_type), ''), CAST(d.config AS jsonb), CAST(d.parameters AS jsonb),
        CASE WHEN o.zerodha_trading_enabled THEN ARRAY['paper', 'zerodha'] ELSE ARRAY['paper'] END, o.is_active,
        1, COALESCE(o.created_at, now()), COALESCE(o.updated_at, o.created_at, now()), o.id, d.reason
    FROM {_STRATEGIES_THERE} o JOIN adopting_documents d ON d.id = o.id COLLATE "C"
"""
_REVISIONS = """
    INSERT INTO strategy_revisions (strategy_id, version, name, strategy_type, config, parameters, active_brokers,
        is_active, note, created_at)
    SELECT strategy_id, version, name, strategy_type, config, parameters, active_brokers, is_active,
        'Adopted from the original Alpha Panda', updated_at
    FROM strategies
"""
_INSTRUMENTS = f"""
    INSERT INTO adopting_instruments (instrument_token, source, exchange, exchange_token, trading_symbol, name, segment,
        instrument_type, underlying, option_type, tick_size, lot_size, expiry, strike, is_active, attributes, last_price,
        valid_from, created_at, updated_at, _key)
    SELECT instrument_token, 'kite', btrim(exchange), CAST(NULLIF(exchange_token, 0) AS text), btrim(tradingsymbol),
        NULLIF(btrim(name), ''), place, CASE WHEN kind IN ('CE', 'PE') THEN 'OPT' ELSE kind END,
        CASE WHEN kind IN ('CE', 'PE', 'FUT') THEN NULLIF(btrim(name), '') END,
        CASE WHEN kind IN ('CE', 'PE') THEN kind END,
        tick_size, lot_size, CAST(expiry AS date), CASE WHEN kind IN ('CE', 'PE') THEN strike ELSE NULLIF(strike, 0) END,
        COALESCE(is_active, true), jsonb_strip_nulls(jsonb_build_object('source_file', source_file)), last_price,
        date_trunc('day', written, 'UTC'), COALESCE(created_at, written), written, CAST(instrument_token AS text)
    FROM (
        SELECT o.*, COALESCE(NULLIF(btrim(segment), ''), btrim(exchange)) AS place,
            COALESCE(o.updated_at, o.created_at, now()) AS written
        FROM {ORIGINAL_SCHEMA}.instruments o
    ) p CROSS JOIN LATERAL (
        SELECT CASE
            WHEN COALESCE(upper(btrim(instrument_type)), 'EQ') = 'EQ' AND place ~ '(^|-)INDICES$' THEN 'IDX'
            WHEN NULLIF(btrim(instrument_type), '') IS NOT NULL THEN upper(btrim(instrument_type))
            WHEN expiry IS NULL THEN 'EQ'
            WHEN strike > 0 AND tradingsymbol ~ '(CE|PE)$' THEN right(tradingsymbol, 2)
            ELSE 'FUT' END AS kind
    ) k
"""
_GUESSED = f"""
    SELECT count(*) FROM adopting_instruments s JOIN {ORIGINAL_SCHEMA}.instruments o ON CAST(o.instrument_token AS text) = s._key
    WHERE NULLIF(btrim(o.instrument_type), '') IS NULL AND s._reason IS NULL
"""


async def move_strategies(connection: AsyncConnection, *, read: int, has_composition: bool) -> TableCount:
    """Move the configurations as version 1 of strategies named by their ids; instruments go into `config`."""
    await run(connection, _DOCUMENTS)
    extra = ", use_composition" if has_composition else ""
    query = f"SELECT id, CAST(instruments AS text), CAST(parameters AS text){extra} FROM {_STRATEGIES_THERE}"
    async for part in batches(connection, query, name="adopting_configurations"):
        ids, configs, parameters, reasons = (list(column) for column in zip(*map(_documents, part), strict=True))
        values = {"ids": ids, "configs": configs, "parameters": parameters, "reasons": reasons}
        await connection.execute(_ADD_DOCUMENTS, values)
    await analyze(connection, "adopting_documents")
    await stage(connection, "strategies")
    await run(connection, _STRATEGIES)
    await analyze(connection, staged("strategies"))
    await judge(connection, "strategies")
    moved, aside = await settle(connection, "strategies", source="strategy_configurations", key="id")
    await run(connection, _REVISIONS)
    return TableCount(table="strategy_configurations", into="strategies", read=read, moved=moved, set_aside=aside)


async def move_instruments(connection: AsyncConnection, *, read: int, notes: list[str]) -> TableCount:
    """Move the instruments as those of source `kite`, so that the next file of that broker is compared with them."""
    await stage(connection, "instruments")
    await run(connection, _INSTRUMENTS)
    await analyze(connection, staged("instruments"))
    await judge(connection, "instruments")
    guessed = await connection.scalar(text(_GUESSED)) or 0
    if guessed:
        notes.append(f"instruments without a type: {guessed:,}; it was read off segment, expiry, strike and symbol")
    moved, aside = await settle(connection, "instruments", source="instruments", key="instrument_token")
    return TableCount(table="instruments", into="instruments", read=read, moved=moved, set_aside=aside)


def _documents(row: Any) -> tuple[str, str | None, str | None, str | None]:
    """A strategy's id, config, parameters, and why it is set aside."""
    config: dict[str, Any] = {}
    parameters: Any = None
    for column in ("instruments", "parameters"):
        try:
            value = strict_json_loads(row[1 if column == "instruments" else 2])
            strict_json_dumps(value)  # what JSONB and our readers would refuse: NUL, lone surrogates, endless numbers
        except InvalidInput as fault:
            return row[0], None, None, f"{column} {fault.message}"
        if column == "instruments":
            config[column] = value
        else:
            parameters = value
    if len(row) > 3:
        config["use_composition"] = row[3]
    return row[0], strict_json_dumps(config), strict_json_dumps(parameters), None
