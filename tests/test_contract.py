"""The code blocks of the contract run as written: in order, inside one async function, after a stated prelude."""

import os
import re
import textwrap
from pathlib import Path

import pytest

from core.config.settings import DatabaseSettings, get_settings
from core.database.connection import DatabaseManager

ROOT = Path(__file__).parents[1]
CONTRACT = ROOT / "docs" / "contract.md"
SHARED = Path(os.environ.get("PANDA_SHARED_DATA", ROOT.parent / "shared" / "data")).parent / "seed"
PRELUDE = "from sqlalchemy import select, text\nfrom pydantic import BaseModel\n"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", CONTRACT.read_text(), re.DOTALL)


def test_the_contract_has_its_four_blocks() -> None:
    assert len(blocks()) == 4


@pytest.mark.shared_data
def test_the_copy_here_is_the_contract_itself() -> None:
    original = SHARED / "core-database-module.md"
    if not original.exists():
        pytest.skip("the original contract is not beside this checkout")
    assert CONTRACT.read_text().strip() == original.read_text().strip()


async def test_the_code_of_the_contract_runs_as_written(empty_database: str, monkeypatch, capsys) -> None:
    monkeypatch.setenv("DATABASE__POSTGRES_URL", empty_database)
    get_settings.cache_clear()
    body = "\n".join(blocks())
    source = f"{PRELUDE}\nasync def run():\n{textwrap.indent(body, '    ')}\n    return locals()\n"
    scope: dict[str, object] = {}
    exec(compile(source, str(CONTRACT), "exec"), scope)
    try:
        names = await scope["run"]()  # type: ignore[operator]
    finally:
        get_settings.cache_clear()
    manager: DatabaseManager = names["db_manager"]
    try:
        assert names["user"].username == "trader"
        assert names["user"].created_at is not None
        assert names["health_status"]["status"] == "healthy"
        assert "healthy" in capsys.readouterr().out
    finally:
        await manager.close()


def test_the_settings_have_the_defaults_of_the_contract() -> None:
    scope: dict[str, object] = {}
    exec(PRELUDE + blocks()[3], scope)
    theirs = scope["DatabaseSettings"]()  # type: ignore[operator]
    ours = DatabaseSettings()
    for name in type(theirs).model_fields:
        assert getattr(ours, name) == getattr(theirs, name), name


FIELDS = {
    "User": ["id", "username", "hashed_password", "created_at"],
    "TradingSession": ["session_id", "user_id", "start_time", "end_time", "is_active", "session_data"],
    "Strategy": ["strategy_id", "name", "config", "active_brokers", "parameters"],
    "Instrument": ["instrument_token", "trading_symbol", "name", "segment", "instrument_type"],
    "PortfolioSnapshot": ["portfolio_id", "snapshot_time", "positions", "total_pnl"],
}


@pytest.mark.parametrize("model", FIELDS)
def test_the_models_have_the_fields_of_the_contract(model: str) -> None:
    from core.database import models

    assert set(FIELDS[model]) <= set(getattr(models, model).__table__.columns.keys())
