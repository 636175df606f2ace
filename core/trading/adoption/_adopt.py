"""`adopt`: the original's database becomes ours, whole or not at all."""
# ruff: noqa: S608 - every name in a statement is one of our own or quoted, every value is bound

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from core.config.options import Timeouts
from core.database import schema
from core.database.canaries import keep_canary
from core.database.encryption import KeyRing
from core.database.errors import MigrationFailed, PandaDatabaseError, SchemaMissing, translate
from core.database.records import CURRENCY_RULE
from core.trading import accounts
from core.trading._stages import Stages
from core.trading.adoption._accounts import Secrets, move_sessions, move_sessions_away, move_users, seal_secrets
from core.trading.adoption._books import move_instruments, move_strategies
from core.trading.adoption._original import ORIGINAL_SCHEMA, Original, adopted, head, recognise, refuse_dependents
from core.trading.adoption._portfolios import move_portfolios
from core.trading.adoption._report import SHOWN, AdoptionReport, Rounded, SetAside, TableCount
from core.trading.adoption._stage import run

Progress = Callable[[str], None]

# What texts of times and floats depend on; a time without a zone is the original's UTC.
_SPELLING = text("SELECT set_config('TimeZone', 'UTC', true), set_config('extra_float_digits', '1', true)")
_RECORDS = (
    f"CREATE SCHEMA {ORIGINAL_SCHEMA}",
    f"""CREATE TABLE {ORIGINAL_SCHEMA}.adoption (
        adopted_at timestamptz PRIMARY KEY DEFAULT now(), report jsonb NOT NULL)""",
    f"""CREATE TABLE {ORIGINAL_SCHEMA}.set_aside (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, source_table text NOT NULL, row_key text NOT NULL,
        reason text NOT NULL, original json NOT NULL, sealed bytea)""",
    f"""CREATE TABLE {ORIGINAL_SCHEMA}.rounded (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, source_table text NOT NULL, row_key text NOT NULL,
        field text NOT NULL, given numeric NOT NULL, kept numeric NOT NULL)""",
)
_SET_ASIDE = f"""
    SELECT source_table, row_key, reason FROM (
        SELECT *, row_number() OVER (PARTITION BY source_table ORDER BY id) AS place FROM {ORIGINAL_SCHEMA}.set_aside) s
    ORDER BY place, id LIMIT {SHOWN}
"""
_REPORT = text(f"SELECT CAST(report AS text) FROM {ORIGINAL_SCHEMA}.adoption ORDER BY adopted_at DESC LIMIT 1")
_KEEP_REPORT = text(f"INSERT INTO {ORIGINAL_SCHEMA}.adoption (report) VALUES (CAST(:report AS jsonb))")


async def is_original(engine: AsyncEngine) -> bool:
    """Whether `adopt` has work on this database, or has done it. Raises `SchemaUnstamped` for half an original."""
    async with engine.connect() as connection:
        return await adopted(connection) or await recognise(connection) is not None


async def adopt(
    engine: AsyncEngine,
    *,
    ring: KeyRing | None = None,
    currency: str = "INR",
    dry_run: bool = False,
    timeouts: Timeouts | None = None,
    progress: Progress | None = None,
) -> AdoptionReport:
    """Make the original's database ours, data kept, in one transaction under the migration lock.

    The original's tables move to the schema `alpha_panda_original`, sessions without their tokens, which are sealed
    with `ring` into `credentials`. Our tables are made at head and filled. A row that they refuse goes to `set_aside`
    there with the reason and, where a token was in it, its envelope; each rounded amount goes to `rounded`. Every row
    read is moved or set aside. `currency` is that of the portfolios, since the original knew none.

    `dry_run` does all of it, reports and rolls back: it too locks the original's tables meanwhile, and it needs no
    ring. A database that was adopted before gives the report of that time, with `already` set. `progress` is told each
    stage.

    Raises `SchemaMissing` if the database is not the original's, `SchemaUnstamped` if it is half of one, `SchemaError`
    if views or foreign keys of others hang on the sessions' table, `ConfigurationError` if there are tokens and no
    ring, `LockTimeout` if the original is still at work, `PermissionDenied` if the role may not make a schema,
    `SchemaLockTimeout`, and `MigrationFailed`; nothing is changed then.
    """
    CURRENCY_RULE(currency)
    limits, watch = timeouts or Timeouts(), Stages(progress)
    async with schema.migration_lock(engine, timeouts=limits) as worker, worker.begin() as transaction:
        if await adopted(worker):
            return AdoptionReport.from_stored((await worker.execute(_REPORT)).scalar_one())
        await worker.execute(_SPELLING)
        original = await recognise(worker)
        if original is None:
            raise SchemaMissing(
                "This is not a database of the original Alpha Panda.",
                hint="`panda migrate verify` says what it is.",
            )
        sealing = ring or (KeyRing({"dry-run": bytes(32)}, active="dry-run") if dry_run else None)
        try:
            work = _Work(worker, original, sealing, currency, watch, dry_run=dry_run)
            report = await work.run()
        except PandaDatabaseError:
            raise
        except Exception as error:  # whatever the server says of data that nobody foresaw
            found = translate(error)
            if found is None:
                raise
            raise found from error
        if dry_run:
            await transaction.rollback()
        else:
            await worker.execute(_KEEP_REPORT, {"report": report.stored()})
            watch.start("commit")
    watch.stop()
    return report


async def drop_original(engine: AsyncEngine, *, timeouts: Timeouts | None = None) -> tuple[str, ...]:
    """Drop the schema `alpha_panda_original` with all its tables, set-aside rows included; the names of these.

    Raises `SchemaError` if something else depends on them, a view say, and `SchemaMissing` if the database was not
    adopted.
    """
    async with schema.migration_lock(engine, timeouts=timeouts or Timeouts()) as worker, worker.begin():
        if not await adopted(worker):
            raise SchemaMissing(f"There is no schema {ORIGINAL_SCHEMA}: nothing was adopted here, or it was dropped.")
        query = text(
            "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(:name) AND relkind = 'r' ORDER BY 1"
        )
        names = tuple(await worker.scalars(query, {"name": ORIGINAL_SCHEMA}))
        tables = [f"{ORIGINAL_SCHEMA}.{name}" for name in names]
        await refuse_dependents(worker, tables)
        await run(worker, f"DROP TABLE {', '.join(tables)}")
        await run(worker, f"DROP SCHEMA {ORIGINAL_SCHEMA}")
    return names


async def left_aside(engine: AsyncEngine) -> dict[str, int]:
    """The rows that stand in the schema `alpha_panda_original` alone, by table: set aside, or without a counterpart here."""
    async with engine.connect() as connection:
        report = AdoptionReport.from_stored((await connection.execute(_REPORT)).scalar_one())
    return {row.table: row.set_aside for row in report.tables if row.set_aside} | {
        name: rows for name, rows in report.kept if rows and name != "alembic_version"
    }


class _Work:
    """One adoption, within its transaction."""

    def __init__(
        self,
        connection: AsyncConnection,
        original: Original,
        ring: KeyRing | None,
        currency: str,
        watch: Stages,
        *,
        dry_run: bool,
    ) -> None:
        self._connection = connection
        self._original = original
        self._ring = ring
        self._currency = currency
        self._watch = watch
        self._dry_run = dry_run
        self._notes = [
            f"column {name} is no part of the original; it is kept there" for name in original.further_columns
        ]

    async def run(self) -> AdoptionReport:
        there = (*self._original.tables, *self._original.kept)
        with self._watch.stage("lock"):
            await run(self._connection, f"LOCK TABLE {', '.join(there)} IN ACCESS EXCLUSIVE MODE")
        await refuse_dependents(self._connection, ["trading_sessions"])
        counts = {table: await self._rows(table) for table in there}
        for statement in _RECORDS:
            await run(self._connection, statement)
        with self._watch.stage("seal tokens"):
            secrets = await seal_secrets(self._connection, self._ring)
        with self._watch.stage("create tables"):
            await self._move_away()
            await schema.create_all(self._connection)
            await self._keep_canary(secrets)
        return await self._fill(counts, secrets)

    async def _move_away(self) -> None:
        await move_sessions_away(self._connection)
        for table in (*self._original.tables, *self._original.kept):
            if table != "trading_sessions":
                await run(self._connection, f"ALTER TABLE {table} SET SCHEMA {ORIGINAL_SCHEMA}")

    async def _keep_canary(self, secrets: Secrets) -> None:
        if secrets.sealed and self._ring is not None:
            session = AsyncSession(self._connection)
            await keep_canary(session, self._ring)
            await session.flush()

    async def _fill(self, counts: dict[str, int], secrets: Secrets) -> AdoptionReport:
        connection, watch, notes = self._connection, self._watch, self._notes
        rounded: tuple[Rounded, ...] = ()
        with watch.stage("users"):
            users = await move_users(connection, read=counts["users"], verifiable=accounts.can_verify)
        moved = [users.count]
        with watch.stage("trading_sessions"):
            moved.append(await move_sessions(connection, read=counts["trading_sessions"], notes=notes))
        with watch.stage("strategy_configurations"):
            read, composed = counts["strategy_configurations"], self._original.has_composition
            moved.append(await move_strategies(connection, read=read, has_composition=composed))
        if "portfolio_snapshots" in counts:
            with watch.stage("portfolio_snapshots"):
                read = counts["portfolio_snapshots"]
                count, rounded = await move_portfolios(connection, read=read, currency=self._currency, notes=notes)
                moved.append(count)
        if "instruments" in counts:
            with watch.stage("instruments"):
                moved.append(await move_instruments(connection, read=counts["instruments"], notes=notes))
        self._balance(moved)
        self._tell(secrets)
        return AdoptionReport(
            tables=tuple(moved),
            kept=tuple((table, counts[table]) for table in self._original.kept),
            set_aside=await self._set_aside(),
            rounded=rounded,
            sealed=secrets.sealed,
            accounts_made=users.accounts_made,
            password_resets=users.password_resets,
            notes=tuple(notes),
            revision=await head(connection),
            seconds={stage: round(taken, 3) for stage, taken in watch.seconds.items()},
            adopted_at=datetime.now(UTC),
            dry_run=self._dry_run,
        )

    def _tell(self, secrets: Secrets) -> None:
        if secrets.as_objects:
            self._notes.append(
                f"sessions with other secrets than a lone access token: {secrets.as_objects:,}; theirs are sealed as a JSON object"
            )
        if secrets.erased:
            self._notes.append(f"sessions with secrets too long to be sealed: {secrets.erased:,}; these are erased")

    def _balance(self, moved: list[TableCount]) -> None:
        for row in moved:
            if row.read != row.moved + row.set_aside:
                raise MigrationFailed(
                    f"{row.read} rows of {row.table} were read, {row.moved} moved and {row.set_aside} set aside;"
                    " the database is left as it was",
                    hint="This is a defect; please report it.",
                )

    async def _rows(self, table: str) -> int:
        return int(await self._connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0)

    async def _set_aside(self) -> tuple[SetAside, ...]:
        rows: Any = (await self._connection.execute(text(_SET_ASIDE))).all()
        return tuple(SetAside(table=table, key=key, reason=reason) for table, key, reason in rows)
