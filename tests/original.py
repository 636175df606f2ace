"""Databases of the original Alpha Panda, as its models make them and its services fill them."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg

DDL = (Path(__file__).parent / "data" / "original_alpha_panda.sql").read_text(encoding="utf-8")
BEGIN = datetime(2026, 7, 1, 3, 45, tzinfo=UTC)
TOKEN = "kite-token-in-the-open-{:05}"

_USERS = """
    INSERT INTO users (username, hashed_password, created_at)
    SELECT 'trader' || n, '$2b$12$' || rpad(md5(n::text), 53, 'x'), $2::timestamptz + n * interval '1 minute'
    FROM generate_series(1, $1) n
"""
_SESSIONS = """
    INSERT INTO trading_sessions (session_id, user_id, start_time, end_time, is_active, session_data, updated_at)
    SELECT 'a5e1c0de-0000-4000-8000-' || lpad(n::text, 12, '0'), 'ZA' || lpad(n::text, 5, '0'), $2::timestamptz,
        $2::timestamptz + interval '24 hours', n % 4 <> 0,
        jsonb_build_object('access_token', 'kite-token-in-the-open-' || lpad(n::text, 5, '0'), 'user_name', 'Trader ' || n,
            'user_shortname', 'T' || n, 'broker', 'ZERODHA', 'email', 'trader' || n || '@example.test',
            'login_method', 'external_token', 'ip_address', NULL, 'user_agent', NULL),
        $2::timestamptz + interval '1 hour'
    FROM generate_series(1, $1) n
"""
_STRATEGIES = """
    INSERT INTO strategy_configurations (id, strategy_type, instruments, parameters, is_active, zerodha_trading_enabled,
        use_composition, created_at)
    SELECT 'momentum_' || n, 'MomentumProcessor', '[738561, 256265]',
        json_build_object('lookback_period', 20, 'momentum_threshold', 0.02, 'position_size', n), true, n % 5 = 0, true,
        $2::timestamptz
    FROM generate_series(1, $1) n
"""
_PORTFOLIOS = """
    INSERT INTO portfolio_snapshots (portfolio_id, broker_namespace, strategy_id, positions, total_realized_pnl,
        total_unrealized_pnl, total_pnl, cash, snapshot_time, created_at)
    SELECT (CASE WHEN n % 2 = 0 THEN 'paper_' ELSE 'zerodha_' END) || 'momentum_' || n,
        CASE WHEN n % 2 = 0 THEN 'paper' ELSE 'zerodha' END, 'momentum_' || n,
        jsonb_build_object('738561', jsonb_build_object('instrument_token', 738561, 'quantity', n % 50, 'average_price',
                2500.05::float8 + n * 0.1::float8, 'last_price', 2510.1::float8, 'unrealized_pnl', 0.1::float8 * n, 'realized_pnl', 0.0),
            '256265', jsonb_build_object('instrument_token', 256265, 'quantity', 0, 'average_price', 100.25, 'last_price', NULL,
                'unrealized_pnl', 0.0, 'realized_pnl', 0.0)),
        0.1::float8 * n, 0.2::float8 * n, 0.1::float8 * n + 0.2::float8 * n, 1000000.0::float8 - 1234.1::float8 * n,
        $2::timestamptz + n * interval '17 minutes', $2::timestamptz
    FROM generate_series(1, $1) n
"""
_INSTRUMENTS = """
    INSERT INTO instruments (instrument_token, exchange_token, tradingsymbol, name, exchange, segment, instrument_type, last_price,
        tick_size, lot_size, expiry, strike, is_active, created_at, updated_at, source_file)
    SELECT 1000 + n, n, CASE n % 4 WHEN 0 THEN 'STOCK' || n WHEN 1 THEN 'NIFTY26JULFUT' || n WHEN 2 THEN 'NIFTY26JUL' || n || 'CE'
            ELSE 'NIFTY INDEX ' || n END,
        CASE n % 4 WHEN 0 THEN 'STOCK NUMBER ' || n ELSE 'NIFTY' END, CASE WHEN n % 4 IN (1, 2) THEN 'NFO' ELSE 'NSE' END,
        CASE n % 4 WHEN 0 THEN 'NSE' WHEN 1 THEN 'NFO-FUT' WHEN 2 THEN 'NFO-OPT' ELSE 'INDICES' END,
        CASE n % 4 WHEN 1 THEN 'FUT' WHEN 2 THEN 'CE' ELSE 'EQ' END, 0, 0.05, CASE WHEN n % 4 IN (1, 2) THEN 75 ELSE 1 END,
        CASE WHEN n % 4 IN (1, 2) THEN timestamp '2026-07-30' END, CASE n % 4 WHEN 2 THEN n ELSE 0 END, true,
        $2::timestamptz, $2::timestamptz + interval '5 hours', 'instruments.csv'
    FROM generate_series(1, $1) n
"""
_REST = """
    INSERT INTO instrument_registry (instrument_token, tradingsymbol, exchange, is_subscribed, priority, added_by)
    SELECT instrument_token, tradingsymbol, exchange, true, 100, 'system' FROM instruments WHERE instrument_token % 10 = 0;
    INSERT INTO trading_events (event_id, event_type, broker_namespace, strategy_id, instrument_token, event_data, event_timestamp)
    SELECT 'event-' || n, 'ORDER_FILLED', 'paper', 'momentum_1', 738561, '{"fill_price": 1.5}', now() FROM generate_series(1, 7) n
"""


async def make(url: str, *, rows: int = 0) -> None:
    """The original's tables in an empty database, with `rows` healthy rows in each of the five."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(DDL)
        if rows:
            for statement in (_USERS, _SESSIONS, _STRATEGIES, _PORTFOLIOS, _INSTRUMENTS):
                await connection.execute(statement, rows, BEGIN)
            await connection.execute(_REST)
    finally:
        await connection.close()


async def add(connection: Any, table: str, **values: Any) -> None:
    """One row, documents as JSON text; `values` replace those of a healthy row."""
    row = HEALTHY[table] | values
    names = ", ".join(row)
    places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
    documents = {"session_data", "instruments", "parameters", "positions"}
    given = [
        json.dumps(value) if name in documents and not isinstance(value, (str, type(None))) else value
        for name, value in row.items()
    ]
    await connection.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", *given)


HEALTHY: dict[str, dict[str, Any]] = {
    "users": {"username": "somebody", "hashed_password": "$2b$12$" + "x" * 53},
    "trading_sessions": {
        "session_id": "session-1",
        "user_id": "AB1234",
        "start_time": BEGIN,
        "end_time": BEGIN + timedelta(days=1),
        "is_active": True,
        "session_data": {"access_token": TOKEN.format(99), "broker": "zerodha", "login_method": "oauth"},
        "updated_at": BEGIN + timedelta(hours=1),
    },
    "strategy_configurations": {
        "id": "strategy",
        "strategy_type": "MomentumProcessor",
        "instruments": [738561],
        "parameters": {"lookback": 20},
        "is_active": True,
        "zerodha_trading_enabled": False,
        "use_composition": True,
    },
    "portfolio_snapshots": {
        "portfolio_id": "paper_strategy",
        "broker_namespace": "paper",
        "strategy_id": "strategy",
        "positions": {},
        "total_realized_pnl": 0.0,
        "total_unrealized_pnl": 0.0,
        "total_pnl": 0.0,
        "cash": 1_000_000.0,
        "snapshot_time": BEGIN,
    },
    "instruments": {
        "instrument_token": 738561,
        "exchange_token": 2885,
        "tradingsymbol": "RELIANCE",
        "name": "RELIANCE INDUSTRIES",
        "exchange": "NSE",
        "segment": "NSE",
        "instrument_type": "EQ",
        "source_file": "instruments.csv",
    },
}
