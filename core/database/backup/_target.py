"""A database to back up or to restore into: one server of the URL, reached by us and by pg_dump in the same way."""

import asyncio
import os
import re
import ssl
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from core.config.options import PoolOptions
from core.database.embedded import EmbeddedServer, is_embedded_url
from core.database.engine import DatabaseUrl, EngineOptions, build_engine, tls_mode
from core.database.errors import BackupRefused, HostUnreachable, PandaDatabaseError

_FACTS = text("""
    SELECT current_database() AS database, session_user::text AS role, current_setting('server_version') AS version,
        current_setting('server_version_num')::integer AS number, pg_is_in_recovery() AS standby,
        (SELECT system_identifier::text FROM pg_control_system()) AS system,
        coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false) AS encrypted
""")
_ESCAPED, _BACKSLASH = re.compile(r"([\\ ])"), r"\\\1"
_SETTLED = "a backup needs sessions of its own, which PgBouncer in transaction mode does not give"
_DIRECT = "Name the server itself for this command: DATABASE__POSTGRES_URL=... DATABASE__PGBOUNCER=false"
_PROTOCOL_VIOLATION = "08P01"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A database that answers."""

    engine: AsyncEngine
    url: DatabaseUrl
    """With the one host that answered."""
    options: EngineOptions
    database: str
    role: str
    version: str
    version_num: int
    standby: bool
    system_identifier: str
    encrypted: bool

    @property
    def major(self) -> int:
        return self.version_num // 10_000

    @contextmanager
    def client_environment(self) -> Generator[dict[str, str]]:
        """The environment in which a client of PostgreSQL's own connects as we do.

        The password stands in a file that only this user may read, in a folder of its own that is removed on leaving: neither
        a command line nor an environment shows it.
        """
        with tempfile.TemporaryDirectory(prefix="panda-") as folder:
            passwords = Path(folder, "passwords")
            names = self._names() | self._tls_names()
            password = self.url.password if self.url.password is not None else os.environ.get("PGPASSWORD")
            if password is not None:
                descriptor = os.open(passwords, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    file.write(f"*:*:*:*:{_escaped(password)}\n")
                names["PGPASSFILE"] = str(passwords)
            else:
                names |= {name: os.environ[name] for name in ("PGPASSFILE", "HOME") if name in os.environ}
            yield names

    def _names(self) -> dict[str, str]:
        host, port = self.url.hosts[0]
        settings = " ".join(f"-c {name}={_ESCAPED.sub(_BACKSLASH, value)}" for name, value in self.url.server_settings)
        return {
            "PGHOST": host,
            "PGPORT": str(port),
            "PGUSER": self.role,
            "PGDATABASE": self.database,
            "PGAPPNAME": "alpha-panda backup",
            "PGCONNECT_TIMEOUT": str(max(2, round(self.url.connect_timeout or self.options.timeouts.connect))),
            "PGGSSENCMODE": "disable",
            **({"PGOPTIONS": settings} if settings else {}),
        }

    def _tls_names(self) -> dict[str, str]:
        """As strict as our own connection, and never in plain text where that one was encrypted."""
        if self.url.hosts[0][0].startswith("/"):
            return {"PGSSLMODE": "disable"}
        mode: str = tls_mode(self.url, self.options.tls, self.options.environment)
        if mode == "prefer":
            mode = "require" if self.encrypted else "disable"
        tls, names = self.options.tls, {"PGSSLMODE": mode}
        if mode in ("verify-ca", "verify-full"):
            names["PGSSLROOTCERT"] = str(tls.ca_file or self.url.sslrootcert or _system_authorities())
        if certificate := tls.cert_file or self.url.sslcert:
            names["PGSSLCERT"] = str(certificate)
            if key := tls.key_file or self.url.sslkey:
                names["PGSSLKEY"] = str(key)
        return names


@asynccontextmanager
async def opened(
    db_url: str, options: EngineOptions, *, create: bool, superuser: bool = False
) -> AsyncGenerator[Target]:
    """Reach the database; the first host of the URL that will do is the one that everything is done on.

    An `embedded:` server is started if need be, and made if `create`; with `superuser` it is used as its superuser, who sees
    every row. Nothing is limited in time but connecting and waiting for locks. Raises what connecting raises, and
    BackupRefused for PgBouncer.
    """
    if options.pgbouncer:
        raise BackupRefused(_SETTLED, hint=_DIRECT)
    if not is_embedded_url(db_url):
        async with _connected(DatabaseUrl.parse(db_url), options) as target:
            yield target
        return
    server = EmbeddedServer.from_url(db_url)
    if not create and not (server.directory / "data").exists():
        raise BackupRefused(f"there is no database in {server.directory}", hint="Check DATABASE__POSTGRES_URL.")
    url = DatabaseUrl.parse(await asyncio.to_thread(server.ensure))
    try:
        async with _connected(replace(url, user="postgres") if superuser else url, options) as target:
            yield target
    finally:
        await asyncio.to_thread(server.release)


@asynccontextmanager
async def _connected(url: DatabaseUrl, options: EngineOptions) -> AsyncGenerator[Target]:
    unlimited = replace(options.timeouts, statement=0, idle_in_transaction=0, lock=options.timeouts.migration_lock)
    patient = replace(
        options,
        timeouts=unlimited,
        pool=PoolOptions(size=3, max_overflow=2),
        application_name="alpha-panda backup",
    )
    wanted = url.target_session_attrs or ("any" if len(url.hosts) == 1 else "read-write")
    failures: list[PandaDatabaseError] = []
    for host in url.hosts:
        alone = replace(url, hosts=(host,), target_session_attrs=wanted)
        engine = build_engine(alone, patient)
        try:
            async with engine.connect() as connection:
                facts: Any = (await connection.execute(_FACTS)).one()
        except PandaDatabaseError as error:
            await engine.dispose()
            if error.sqlstate == _PROTOCOL_VIOLATION:
                raise BackupRefused(
                    f"the server refuses a session's settings, as PgBouncer does; {_SETTLED}", hint=_DIRECT
                ) from error
            if not error.retryable:
                raise
            failures.append(error)
            continue
        try:
            yield Target(
                engine=engine,
                url=alone,
                options=options,
                database=facts.database,
                role=facts.role,
                version=facts.version.split()[0],
                version_num=facts.number,
                standby=facts.standby,
                system_identifier=facts.system,
                encrypted=facts.encrypted,
            )
        finally:
            await engine.dispose()
        return
    if len(failures) == 1:
        raise failures[0]
    raise HostUnreachable(
        f"none of the {len(failures)} hosts would do: {'; '.join(failure.message for failure in failures)}"
    )


def _escaped(password: str) -> str:
    if "\n" in password or "\r" in password:
        raise BackupRefused(
            "the password holds a line break, which pg_dump cannot be given", hint="Set another password for this role."
        )
    return re.sub(r"([\\:])", r"\\\1", password)


def _system_authorities() -> str:
    """The file of authorities that our own connections trust by default."""
    found = ssl.get_default_verify_paths().cafile
    if not found:
        raise BackupRefused(
            "the system's authorities are in no single file, and pg_dump needs one",
            hint="Name the server's authority: sslrootcert=FILE in the URL, or DATABASE__TLS__CA_FILE.",
        )
    return found
