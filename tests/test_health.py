"""Health is a value: it never raises and says what is wrong in words."""

import asyncio

from sqlalchemy import text

from core.config.options import PoolOptions, Timeouts
from core.database.connection import DatabaseManager

KEYS = {"status", "latency_ms", "version", "role", "replica_lag", "schema", "pool", "warnings", "error"}


async def test_a_fit_database_is_healthy_with_all_its_figures(manager: DatabaseManager) -> None:
    report = await manager.health_check()
    assert report.keys() == KEYS
    assert (report["status"], report["role"], report["error"]) == ("healthy", "primary", None)
    assert report["schema"]["status"] == "at_head"
    assert report["schema"]["current"] == [report["schema"]["head"]]
    assert 0 < report["latency_ms"] < 30_000
    assert report["pool"]["read_write"]["limit"] == 15


async def test_a_schema_that_is_not_at_head_is_degraded_and_says_so(empty_database: str) -> None:
    async with DatabaseManager(empty_database, "testing", "migrations_only", verify_migrations=False) as manager:
        report = await manager.health_check()
    assert report["status"] == "degraded"
    assert report["schema"]["status"] == "empty"
    assert report["error"]


async def test_an_exhausted_pool_is_degraded_not_unreachable(database_url: str) -> None:
    pool = PoolOptions(size=1, max_overflow=0, read_size=1, wait=0.1)
    limits = Timeouts(health=30.0)
    async with DatabaseManager(database_url, "testing", "migrations_only", pool=pool, timeouts=limits) as manager:
        async with manager.get_session(read_only=True) as session:
            await session.execute(text("SELECT 1"))
            report = await manager.health_check()
            assert report["status"] == "degraded"
            assert "in use" in report["error"]
        assert (await manager.health_check())["status"] == "healthy"


async def test_a_database_dropped_meanwhile_is_unhealthy(empty_database: str, server_url: str) -> None:
    from core.database.engine import DatabaseUrl

    async with DatabaseManager(empty_database, "testing", "auto") as manager:
        async with DatabaseManager(server_url, "testing", "migrations_only", verify_migrations=False) as admin:
            name = DatabaseUrl.parse(empty_database).database
            autocommit = admin.engine.execution_options(isolation_level="AUTOCOMMIT")
            async with autocommit.connect() as connection:
                await connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
                await asyncio.sleep(0.1)
                report = await manager.health_check()
                await connection.execute(text(f"CREATE DATABASE {name}"))
    assert report["status"] == "unhealthy"
    assert report["error"]
