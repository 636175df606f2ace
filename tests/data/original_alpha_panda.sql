-- The tables of the original Alpha Panda as its models make them, written anew from what its public repository says.
CREATE TABLE users (
    id SERIAL NOT NULL,
    username VARCHAR NOT NULL,
    hashed_password VARCHAR NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now(),
    PRIMARY KEY (id)
);
CREATE INDEX ix_users_id ON users (id);
CREATE UNIQUE INDEX ix_users_username ON users (username);

CREATE TABLE trading_sessions (
    session_id VARCHAR NOT NULL,
    user_id VARCHAR NOT NULL,
    start_time TIMESTAMP WITH TIME ZONE DEFAULT now(),
    end_time TIMESTAMP WITH TIME ZONE,
    is_active BOOLEAN NOT NULL,
    session_data JSONB,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now(),
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now(),
    PRIMARY KEY (session_id)
);
CREATE INDEX ix_trading_sessions_session_id ON trading_sessions (session_id);
CREATE UNIQUE INDEX ix_trading_sessions_user_id ON trading_sessions (user_id);
CREATE INDEX idx_trading_sessions_updated_at ON trading_sessions (updated_at);
CREATE INDEX idx_trading_sessions_is_active ON trading_sessions (is_active);
CREATE INDEX idx_trading_sessions_active_user ON trading_sessions (user_id, is_active);

CREATE TABLE strategy_configurations (
    id VARCHAR NOT NULL,
    strategy_type VARCHAR NOT NULL,
    instruments JSON NOT NULL,
    parameters JSON NOT NULL,
    is_active BOOLEAN NOT NULL,
    zerodha_trading_enabled BOOLEAN NOT NULL,
    use_composition BOOLEAN NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now(),
    updated_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id)
);
CREATE INDEX ix_strategy_configurations_id ON strategy_configurations (id);

CREATE TABLE portfolio_snapshots (
    id SERIAL NOT NULL,
    portfolio_id VARCHAR NOT NULL,
    broker_namespace VARCHAR NOT NULL,
    strategy_id VARCHAR NOT NULL,
    positions JSONB NOT NULL,
    total_realized_pnl FLOAT NOT NULL,
    total_unrealized_pnl FLOAT NOT NULL,
    total_pnl FLOAT NOT NULL,
    cash FLOAT NOT NULL,
    snapshot_time TIMESTAMP WITH TIME ZONE DEFAULT now(),
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now(),
    PRIMARY KEY (id)
);
CREATE INDEX ix_portfolio_snapshots_id ON portfolio_snapshots (id);
CREATE UNIQUE INDEX ix_portfolio_snapshots_portfolio_id ON portfolio_snapshots (portfolio_id);
CREATE INDEX ix_portfolio_snapshots_broker_namespace ON portfolio_snapshots (broker_namespace);
CREATE INDEX ix_portfolio_snapshots_strategy_id ON portfolio_snapshots (strategy_id);
CREATE INDEX idx_portfolio_snapshots_broker_time ON portfolio_snapshots (broker_namespace, snapshot_time);
CREATE INDEX idx_portfolio_snapshots_strategy ON portfolio_snapshots (strategy_id);

CREATE TABLE trading_events (
    id SERIAL NOT NULL,
    event_id VARCHAR NOT NULL,
    event_type VARCHAR NOT NULL,
    broker_namespace VARCHAR NOT NULL,
    strategy_id VARCHAR NOT NULL,
    instrument_token INTEGER NOT NULL,
    event_data JSONB NOT NULL,
    correlation_id VARCHAR,
    event_timestamp TIMESTAMP WITH TIME ZONE NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now(),
    PRIMARY KEY (id)
);
CREATE UNIQUE INDEX ix_trading_events_event_id ON trading_events (event_id);

CREATE TABLE instruments (
    instrument_token SERIAL NOT NULL,
    exchange_token INTEGER NOT NULL,
    tradingsymbol VARCHAR(50) NOT NULL,
    name VARCHAR(200) NOT NULL,
    exchange VARCHAR(10) NOT NULL,
    segment VARCHAR(20),
    instrument_type VARCHAR(10),
    last_price NUMERIC(15, 4),
    tick_size NUMERIC(10, 4),
    lot_size INTEGER,
    expiry TIMESTAMP WITHOUT TIME ZONE,
    strike NUMERIC(15, 4),
    is_active BOOLEAN,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now(),
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now(),
    source_file VARCHAR(255),
    PRIMARY KEY (instrument_token)
);
CREATE INDEX ix_instruments_tradingsymbol ON instruments (tradingsymbol);
CREATE INDEX ix_instruments_exchange ON instruments (exchange);
CREATE INDEX idx_instruments_symbol_exchange ON instruments (tradingsymbol, exchange);
CREATE INDEX idx_instruments_exchange_type ON instruments (exchange, instrument_type);
CREATE INDEX idx_instruments_expiry ON instruments (expiry);
CREATE INDEX idx_instruments_active ON instruments (is_active);
CREATE INDEX idx_instruments_updated ON instruments (updated_at);

CREATE TABLE instrument_registry (
    id SERIAL NOT NULL,
    instrument_token INTEGER NOT NULL,
    tradingsymbol VARCHAR(50) NOT NULL,
    exchange VARCHAR(10) NOT NULL,
    is_subscribed BOOLEAN,
    priority INTEGER,
    added_at TIMESTAMP WITH TIME ZONE DEFAULT now(),
    added_by VARCHAR(100),
    notes VARCHAR(500),
    PRIMARY KEY (id),
    UNIQUE (instrument_token),
    FOREIGN KEY (instrument_token) REFERENCES instruments (instrument_token) ON DELETE CASCADE
);
CREATE INDEX idx_registry_subscribed ON instrument_registry (is_subscribed);

CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO alembic_version VALUES ('cc6a84f0b6f1');
