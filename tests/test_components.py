"""What needs Debian's packages: PostgreSQL 15 over TLS with SCRAM, and PgBouncer in transaction mode."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import text

from core.config.brokers import FixedLifetime
from core.config.options import PoolOptions, Timeouts, TlsOptions
from core.database import schema
from core.database.connection import DatabaseManager
from core.database.encryption import KeyRing
from core.database.engine import DatabaseUrl, EngineOptions, build_engine
from core.database.errors import AuthenticationFailed, StatementTimeout, TlsRefused
from core.testing import make_user
from core.trading import sessions
from tests.cluster.debian import DebianServer, binaries, debian_server, pgbouncer, pooled

pytestmark = pytest.mark.component


@pytest.fixture(scope="module")
def tls_server(component) -> Iterator[DebianServer]:
    component(binaries() is not None, "apt-get install postgresql")
    with debian_server() as server:
        yield server


@pytest.fixture(scope="module")
def plain_server(component) -> Iterator[DebianServer]:
    component(binaries() is not None, "apt-get install postgresql")
    with debian_server(tls=False) as server:
        yield server


@pytest.fixture(scope="module")
def bouncer_url(component, tls_server: DebianServer) -> Iterator[str]:
    component(pgbouncer() is not None, "apt-get install pgbouncer")
    with pooled(tls_server) as url:
        yield url


async def answer(url: str, *, tls: TlsOptions | None = None, environment: str = "testing") -> bool:
    """Whether the connection that the URL makes is encrypted."""
    manager = DatabaseManager(url, environment, "migrations_only", verify_migrations=False, tls=tls)  # type: ignore[arg-type]
    async with manager, manager.get_session() as session:
        query = text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        return bool(await session.scalar(query))


class TestTls:
    async def test_verify_full_with_the_right_authority_is_encrypted(self, tls_server: DebianServer) -> None:
        query = f"?sslmode=verify-full&sslrootcert={tls_server.authority}"
        assert await answer(tls_server.url(query=query), environment="production")
        assert await answer(tls_server.url(), tls=TlsOptions(mode="verify-full", ca_file=tls_server.authority))

    async def test_prefer_encrypts_where_the_server_can(self, tls_server, plain_server) -> None:
        assert await answer(tls_server.url())
        assert not await answer(plain_server.url())

    @pytest.mark.usefixtures("settled")
    async def test_a_certificate_of_another_authority_is_refused(self, tls_server: DebianServer) -> None:
        for mode in ("verify-ca", "verify-full"):
            with pytest.raises(TlsRefused, match="certificate"):
                await answer(tls_server.url(query=f"?sslmode={mode}&sslrootcert={tls_server.stranger}"))

    @pytest.mark.usefixtures("settled")
    async def test_a_certificate_for_another_name_is_refused_by_verify_full_alone(self, tls_server) -> None:
        query = f"?sslmode=verify-full&sslrootcert={tls_server.authority}"
        with pytest.raises(TlsRefused, match="certificate"):
            await answer(tls_server.url(host="127.0.0.1", query=query))
        assert await answer(tls_server.url(host="127.0.0.1", query=query.replace("verify-full", "verify-ca")))

    async def test_a_server_without_tls_refuses_those_who_demand_it(self, plain_server: DebianServer) -> None:
        with pytest.raises(TlsRefused, match="TLS"):
            await answer(plain_server.url(query="?sslmode=require"))

    async def test_plain_text_to_a_server_that_demands_tls_is_refused(self, tls_server: DebianServer) -> None:
        with pytest.raises(AuthenticationFailed):
            await answer(tls_server.url(query="?sslmode=disable"))

    @pytest.mark.usefixtures("settled")
    async def test_a_wrong_password_is_told_without_repeating_it(self, tls_server: DebianServer) -> None:
        with pytest.raises(AuthenticationFailed) as caught:
            await answer(tls_server.url(password="wr0ng-s3cret"))
        assert "wr0ng" not in str(caught.value)


class TestPostgres15:
    async def test_up_down_up_and_models_equal_migrations(self, tls_server: DebianServer) -> None:
        catalogs = []
        for name, mode in (("migrated", "auto"), ("created", "create_all")):
            async with DatabaseManager(
                tls_server.url(), "testing", "migrations_only", verify_migrations=False
            ) as admin:
                autocommit = admin.engine.execution_options(isolation_level="AUTOCOMMIT")
                async with autocommit.connect() as connection:
                    await connection.execute(text(f"CREATE DATABASE {name}"))
            url = tls_server.url(database=name)
            async with DatabaseManager(url, "testing", mode) as manager:  # type: ignore[arg-type]
                if mode == "auto":
                    await schema.downgrade(manager.engine, "base", timeouts=Timeouts())
                    await schema.upgrade(manager.engine, timeouts=Timeouts())
                async with manager.engine.connect() as connection:
                    catalogs.append(await schema.catalog(connection))
        assert schema.differences(*catalogs) == ()


class TestPgBouncer:
    async def test_the_schema_is_migrated_through_it(self, bouncer_url: str) -> None:
        async with DatabaseManager(bouncer_url, "testing", "auto", pgbouncer=True) as manager:
            assert (await manager.health_check())["status"] == "healthy"

    async def test_many_tasks_share_few_server_connections_without_an_error(self, bouncer_url: str) -> None:
        pool = PoolOptions(size=20, wait=60)
        async with DatabaseManager(bouncer_url, "testing", "auto", pgbouncer=True, pool=pool) as manager:

            async def work(number: int) -> None:
                for step in range(20):
                    async with manager.get_session(read_only=bool(step % 2)) as session:
                        statement = text(f"SELECT CAST(:x AS integer) + {step % 7}")
                        assert await session.scalar(statement, {"x": number}) == number + step % 7

            await asyncio.gather(*(work(number) for number in range(40)))

    async def test_the_time_limits_hold_in_each_transaction_and_leak_to_none(self, bouncer_url: str) -> None:
        limits = Timeouts(statement=0.3)
        options = {"pgbouncer": True, "verify_migrations": False}
        async with DatabaseManager(bouncer_url, "testing", "migrations_only", timeouts=limits, **options) as manager:  # type: ignore[arg-type]
            async with manager.get_session() as session:
                assert await session.scalar(text("SHOW statement_timeout")) == "300ms"
                with pytest.raises(StatementTimeout):
                    await session.execute(text("SELECT pg_sleep(5)"))
        engine = build_engine(
            DatabaseUrl.parse(bouncer_url), EngineOptions(pgbouncer=True, timeouts=Timeouts(statement=0))
        )
        for _ in range(10):
            async with engine.connect() as connection:
                assert (await connection.execute(text("SHOW statement_timeout"))).scalar() == "0"
        await engine.dispose()

    async def test_trading_sessions_are_opened_watched_ended_and_sealed_anew(self, bouncer_url: str) -> None:
        keys = [f"{key_id}:{KeyRing.generate_key()}" for key_id in ("k2", "k1")]
        old, both = KeyRing.parse(keys[1]), KeyRing.parse(",".join(keys))
        async with DatabaseManager(bouncer_url, "testing", "auto", pgbouncer=True) as manager:
            async with manager.transaction() as session:
                session.add(user := make_user(username="behind-pgbouncer"))
            async with sessions.SessionWatch(manager, interval=0.1) as watch:
                async with manager.transaction() as session:
                    kept = await sessions.open(session, user_id=user.id, broker="a", credentials="token", ring=old)
                    end = FixedLifetime(timedelta(milliseconds=300))
                    short = await sessions.open(session, user_id=user.id, broker="b", policy=end)
                async with asyncio.timeout(60):
                    while not isinstance(event := await anext(watch), sessions.SessionEnded):
                        pass
                assert (event.session_id, event.reason) == (short.session.session_id, "expired")
            assert (await sessions.rotate(manager, both)).rotated == 1
            async with manager.get_session(read_only=True) as session:
                resumed = await sessions.resume(session, kept.bearer)
                assert sessions.credentials_of(resumed, ring=KeyRing.parse(keys[0])) == "token"
