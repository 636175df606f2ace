"""The examination: one check after the other, each bounded in time, none able to end the run."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from core.database.doctor import _access, _capacity, _keys, _pooler, _running, _schema, _server, _upkeep
from core.database.doctor._address import locate, secrets
from core.database.doctor._case import Answer, Case
from core.database.doctor._finding import Finding
from core.database.doctor._reach import SMALL_POOL, ask_hosts, cautious
from core.database.engine import EngineOptions, build_engine
from core.database.errors import ConnectionFailed, PandaDatabaseError, translate

Check = Callable[[AsyncConnection, Case], Awaitable[Finding]]

_CHECKS: tuple[tuple[str, Check], ...] = (
    ("tls", _server.tls),
    ("pgbouncer", _pooler.pgbouncer),
    ("version", _server.version),
    ("role", _access.role),
    ("rights", _access.rights),
    ("isolation", _access.isolation),
    ("schema", _schema.schema),
    ("partitions", _schema.partitions),
    ("encryption", _keys.encryption),
    ("clock", _server.clock),
    ("limits", _server.limits),
    ("connections", _capacity.connections),
    ("durability", _server.durability),
    ("disk", _capacity.disk),
    ("replication", _running.replication),
    ("transactions", _running.transactions),
    ("vacuum", _upkeep.vacuum),
    ("wraparound", _upkeep.wraparound),
    ("indexes", _upkeep.indexes),
    ("extensions", _server.extensions),
)
CHECKS: tuple[str, ...] = ("url", "secrets", "server", *(name for name, _ in _CHECKS))
"""The names of all checks, in the order in which they are made."""

_PATIENCE = 2  # checks that may go unanswered before the server is given up


async def examine(
    url: str,
    options: EngineOptions | None = None,
    *,
    encryption_keys: str | None = None,
    limit: float = 5.0,
    report: Callable[[Finding], None] | None = None,
    now: Callable[[], float] = time.time,
) -> tuple[Finding, ...]:
    """Every check on the database that `url` names, as an application with these options would use it.

    Changes nothing and starts nothing, the built-in server included: every transaction is READ ONLY. Raises nothing for
    whatever state the database is in: what cannot be examined is a finding too. Each check has `limit` seconds;
    `options.pool.processes` is how many processes share the server. `encryption_keys` are written as in
    DATABASE__ENCRYPTION_KEYS. `report` is called with each finding as it is made; `now` is our clock.
    """
    run = _Run(options or EngineOptions(), limit, report)
    address = await asyncio.to_thread(locate, url, run.options)
    run.say(*address.findings)
    if address.url is None:
        return run.end(f"there is nothing to connect to; see {address.findings[-1].check}")
    grave = "error" if run.options.environment in ("staging", "production") else "warning"
    run.say(secrets(address.url, encryption_keys, grave=grave))
    answers = await ask_hosts(address.url, run.options)
    answer = _best([answer for _, answer in answers if answer is not None])
    run.say(*(_of_many(finding, reached=answer is not None) for finding, _ in answers))
    if answer is None:
        return run.end("no connection could be made; see server")
    case = Case(
        url=address.url,
        options=run.options,
        encryption_keys=encryption_keys,
        answer=answer,
        now=now,
        data_directory=address.data_directory,
        as_application=run.options.pgbouncer or not answer.is_pooled,
    )
    await run.all_checks(case)
    return run.end("the server no longer answers")


def _best(answers: Sequence[Answer]) -> Answer | None:
    """The first primary, else the first that answers."""
    return next((answer for answer in answers if not answer.standby), answers[0] if answers else None)


def _of_many(finding: Finding, *, reached: bool) -> Finding:
    """A dead host beside one that works is what several hosts are for."""
    return replace(finding, status="warning") if reached and finding.status == "error" else finding


class _Run:
    """The findings so far, and the way to the next."""

    def __init__(self, options: EngineOptions, limit: float, report: Callable[[Finding], None] | None) -> None:
        self.options = options
        self._limit = limit
        self._report = report
        self._findings: list[Finding] = []
        self._unanswered = 0

    def say(self, *findings: Finding) -> None:
        for finding in findings:
            self._findings.append(finding)
            if self._report is not None:
                self._report(finding)

    def end(self, reason: str) -> tuple[Finding, ...]:
        """All findings; what has none yet was skipped for this reason."""
        told = {finding.check for finding in self._findings}
        self.say(*(Finding(name, "skipped", reason, None, {"rest": True}) for name in CHECKS if name not in told))
        return tuple(self._findings)

    async def all_checks(self, case: Case) -> None:
        engine, case = await self._engine(case)
        try:
            for name, check in _CHECKS:
                if self._unanswered >= _PATIENCE:
                    return
                self.say(await self._one(name, check, engine, case))
        finally:
            await engine.dispose()

    async def _engine(self, case: Case) -> tuple[AsyncEngine, Case]:
        """One whose connections are an application's; where they are refused, one that gets in, and the refusal is told."""
        url = replace(case.url, hosts=((case.answer.host, case.answer.port),), target_session_attrs="any")
        if case.as_application:
            engine = build_engine(url, replace(case.options, pool=SMALL_POOL))
            try:
                async with engine.connect():
                    return engine, case
            except PandaDatabaseError as error:
                await engine.dispose()
                said = f"an application's connection is refused: {error.message}"
                self.say(Finding("server", "error", said, error.hint, {"error": type(error).__name__}))
        engine = build_engine(url, cautious(case.options))
        return engine, replace(case, as_application=False)

    async def _one(self, name: str, check: Check, engine: AsyncEngine, case: Case) -> Finding:
        try:
            async with asyncio.timeout(self._limit), engine.connect() as connection:
                await connection.execution_options(postgresql_readonly=True)
                return await check(connection, case)
        except TimeoutError:
            self._unanswered += 1
            return Finding(name, "warning", f"no answer within {self._limit:g} s")
        except Exception as error:  # the outermost door of a check: one that fails itself must not end the others
            ours = error if isinstance(error, PandaDatabaseError) else None
            if ours is None and isinstance(error, SQLAlchemyError | OSError):
                ours = translate(error)
            if isinstance(ours, ConnectionFailed):
                self._unanswered = _PATIENCE
                return Finding(name, "error", ours.message, ours.hint, {"error": type(ours).__name__})
            said = ours.message if ours is not None else f"unexpected {type(error).__name__}"
            mend = ours.hint if ours is not None else "This is a defect of the check; report it"
            return Finding(name, "warning", f"could not be examined: {said}", mend, {"error": type(error).__name__})
