"""The statements of a merge: one join finds what differs, the others write it.

`{staged}`, `{found}` and `{keys}` are names of our own; every value is a bound parameter.
"""

from collections.abc import Sequence

from core.trading.instruments._reader import STAGED

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

FOUND = {**STAGED, "holder": 'text COLLATE "C"', "since": "timestamptz", "renamed": "boolean", "verdict": "text"}
"""What differs: the staged row, source and valid_from of the stored one, and what is to become of it. Of what is gone there is
no staged row: the stored one says which it was."""
_SAID: dict[str, str] = {
    **{column: f"s.{column}" for column in STAGED},
    "instrument_token": "{token}",
    "broker_key": "coalesce(s.broker_key, t.broker_key)",
    "exchange": "coalesce(s.exchange, t.exchange)",
    "trading_symbol": "coalesce(s.trading_symbol, t.trading_symbol)",
    "expiry": "CASE WHEN s.line IS NULL THEN t.expiry ELSE s.expiry END",
    "attributes": _ATTRIBUTES,
    "holder": "t.source",
    "since": "t.valid_from",
    "renamed": "t.trading_symbol IS DISTINCT FROM s.trading_symbol",
    "verdict": f"""CASE
        WHEN s.line IS NULL THEN 'gone'
        WHEN t.instrument_token IS NULL THEN 'added'
        WHEN t.source <> :source THEN 'foreign'
        WHEN NOT t.is_active THEN 'reactivated'
        WHEN NOT ({_SAME_STATE}) THEN 'changed'
        WHEN {_ATTRIBUTES} <> t.attributes THEN 'attributes'
        ELSE 'repriced'
    END""",
}

# One join finds all that differs; what is equal is not looked at again.
FIND = f"""
    INSERT INTO {{found}} ({_list(tuple(FOUND))}) SELECT {", ".join(_SAID[column] for column in FOUND)}
    FROM {{staged}} s FULL JOIN {{stored}} t ON {{match}}
    WHERE CASE
        WHEN s.line IS NULL THEN t.source = :source AND t.is_active AND t.exchange = ANY(:exchanges)
        ELSE t.instrument_token IS NULL OR t.source <> :source OR NOT t.is_active
            OR NOT ({_SAME_STATE}) OR {_ATTRIBUTES} <> t.attributes OR s.last_price IS DISTINCT FROM t.last_price
    END
"""  # noqa: S608
BY_TOKEN = {
    "stored": "instruments",
    "token": "coalesce(s.instrument_token, t.instrument_token)",
    "match": "t.instrument_token = s.instrument_token",
}
BY_KEY = {
    "stored": "(SELECT * FROM instruments WHERE source = :source)",
    "token": "t.instrument_token",
    "match": "t.broker_key = s.broker_key",
}

SUMMED = """
    SELECT verdict, exchange, count(*) AS rows, count(*) FILTER (WHERE renamed) AS renamed,
        count(*) FILTER (WHERE expiry IS NULL OR expiry >= :day) AS alive,
        coalesce(bool_or(since >= :tomorrow AND verdict <> 'foreign'), false) AS later,
        json_agg(json_build_array(line, instrument_token, holder)) FILTER (WHERE verdict = 'foreign') AS foreigners
    FROM {found} WHERE verdict <> 'gone' GROUP BY verdict, exchange
"""

# Keys that the source has not had before get tokens of their own: by hash, the next number where that is taken, the first of
# them after the last.
NEW_KEYS = f"""
    INSERT INTO {{keys}} (broker_key, token)
    SELECT broker_key, {_TOKEN_BIT} | (hashtextextended(:source || chr(31) || broker_key, 0) & {_TOKEN_BIT - 1})
    FROM {{found}} WHERE verdict = 'added'
"""  # noqa: S608
TAKEN = f"""
    UPDATE {{keys}} SET token = {_TOKEN_BIT} | ((token + 1) & {_TOKEN_BIT - 1}) WHERE broker_key IN (
        SELECT k.broker_key FROM (
            SELECT broker_key, token, row_number() OVER (PARTITION BY token ORDER BY broker_key) AS place FROM {{keys}}
        ) k LEFT JOIN instruments t ON t.instrument_token = k.token WHERE k.place > 1 OR t.instrument_token IS NOT NULL
    )
    RETURNING 1
"""  # noqa: S608

ADD = f"""
    INSERT INTO instruments ({_list(_WRITTEN)}, source, is_active, valid_from)
    SELECT {{key}}, {_list(_WRITTEN[1:], "f")}, :source, true, :moment FROM {{found}} f {{keys}} WHERE f.verdict = 'added'
"""  # noqa: S608

SUPERSEDE = f"""
    INSERT INTO instrument_versions ({_list(_VERSION)}, valid_from, valid_to)
    SELECT {_list(_VERSION, "t")}, t.valid_from, :moment
    FROM {{found}} f JOIN instruments t ON t.instrument_token = f.instrument_token
    WHERE f.verdict IN ('changed', 'attributes', 'reactivated') AND f.since < :moment
"""  # noqa: S608

# Every row conflicts: this is an UPDATE joined to the staged rows, as it is written where tables are sharded.
UPDATE = f"""
    INSERT INTO instruments ({_list(_WRITTEN)}, source, is_active, valid_from, updated_at)
    SELECT {_list(_WRITTEN, "f")}, :source, true, greatest(f.since, :moment), now()
    FROM {{found}} f WHERE f.verdict IN ('changed', 'attributes', 'reactivated')
    ON CONFLICT (instrument_token) DO UPDATE SET
        {", ".join(f"{column} = excluded.{column}" for column in (*_SET, "is_active", "valid_from", "updated_at"))}
"""  # noqa: S608

# Prices move every day and in every row, and are fetched and sent back, a part at a time: an ON CONFLICT, which locks each row
# and checks it twice, takes an eighth longer.
PRICES = """
    SELECT array_agg(instrument_token) AS tokens, array_agg(price) AS prices FROM (
        SELECT instrument_token, CAST(last_price AS text) AS price FROM {found}
        WHERE verdict = 'repriced' AND instrument_token > :after ORDER BY instrument_token LIMIT :part
    ) f
"""
REPRICE = """
    UPDATE instruments t SET last_price = CAST(p.price AS numeric), updated_at = now()
    FROM unnest(CAST(:tokens AS bigint[]), CAST(:prices AS text[])) AS p (token, price)
    WHERE t.instrument_token = p.token
"""

GONE = """
    SELECT instrument_token, broker_key, exchange, trading_symbol, since >= :tomorrow AS later,
        coalesce(expiry < :day, false) AS expired
    FROM {found} WHERE verdict = 'gone'
"""

# What this transaction has added was not there to be lost; nor was what it has brought back, which is not seen here.
ACTIVE = """
    SELECT exchange, count(*) AS rows FROM instruments
    WHERE source = :source AND exchange = ANY(:exchanges) AND is_active AND (expiry IS NULL OR expiry >= :day)
        AND created_at < now()
    GROUP BY exchange
"""

ARCHIVE = f"""
    INSERT INTO instrument_versions ({_list(_VERSION)}, valid_from, valid_to)
    SELECT {_list(_VERSION)}, valid_from, :moment FROM instruments
    WHERE instrument_token = ANY(:tokens) AND valid_from < :moment
"""  # noqa: S608

DEACTIVATE = """
    UPDATE instruments SET is_active = false, valid_from = greatest(valid_from, :moment), updated_at = now()
    WHERE instrument_token = ANY(:tokens)
"""
