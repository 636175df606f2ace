"""The server: version, transport, clock, limits, extensions, durability."""

import time
from typing import Any

from cryptography import x509
from sqlalchemy.ext.asyncio import AsyncConnection

from core.database.doctor._case import Case, reset_of, row, rows
from core.database.doctor._finding import Finding, Note, listed, span_of, summed
from core.database.engine import tls_mode

_OLDEST, _NEWEST = 15, 18
_MINORS = {15: 18, 16: 14, 17: 10, 18: 4}
"""The minor releases of May 2026; an older one lacks known corrections, some of them of security or of lost data."""
_EXPIRES_SOON = 21  # days
_CLOCK_TROUBLE, _CLOCK_GRAVE = 1.0, 60.0  # seconds
_SAMPLES = 5
_LIMITS = {
    "statement_timeout": ("statement", "STATEMENT"),
    "lock_timeout": ("lock", "LOCK"),
    "idle_in_transaction_session_timeout": ("idle_in_transaction", "IDLE_IN_TRANSACTION"),
}


async def tls(connection: AsyncConnection, case: Case) -> Finding:
    """Is what travels unreadable, and is the other end who it says it is?"""
    wire, mode = case.answer.wire, tls_mode(case.url, case.options.tls, case.options.environment)
    details: dict[str, Any] = {"mode": mode, "version": wire.tls, "cipher": wire.cipher, "verified": False}
    if wire.tls is None:
        if case.url.is_local:
            return Finding("tls", "ok", "none is needed on this machine", None, details)
        mend = "DATABASE__TLS__MODE=verify-full, and DATABASE__TLS__CA_FILE, or sslmode=verify-full&sslrootcert=FILE in the URL"
        return Finding(
            "tls", case.grave, "plain text to another machine: passwords and data can be read", mend, details
        )
    details["verified"] = mode in ("verify-ca", "verify-full")
    notes: list[Note] = []
    if not case.url.is_local and mode != "verify-full":
        checked = "the server's name is not checked" if mode == "verify-ca" else "nobody checks who answers"
        notes.append(Note(case.grave, f"{wire.tls}, but {checked}", "DATABASE__TLS__MODE=verify-full"))
    if wire.certificate is not None:
        ends = x509.load_der_x509_certificate(wire.certificate).not_valid_after_utc
        details["certificate_ends"] = ends.isoformat()
        left = ends.timestamp() - case.now()
        if left < _EXPIRES_SOON * 86_400:
            said = (
                f"the server's certificate ends in {span_of(left)}"
                if left > 0
                else "the server's certificate has ended"
            )
            notes.append(Note("warning", said, "Renew the certificate (ssl_cert_file), then SELECT pg_reload_conf();"))
    return summed("tls", notes, fine=f"{wire.tls}, {mode}", details=details)


async def version(connection: AsyncConnection, case: Case) -> Finding:
    """A release that this project is tested with, and its corrections."""
    found = await row(
        connection,
        "SELECT current_setting('server_version_num')::int AS number, current_setting('server_version') AS name",
    )
    return judge_version(found.number, found.name, guarded=case.is_guarded)


def judge_version(number: int, name: str, *, guarded: bool) -> Finding:
    major, minor = divmod(number, 10_000)
    details = {"number": number, "version": name, "supported": [_OLDEST, _NEWEST]}
    if major < _OLDEST:
        mend = f"Move to PostgreSQL {_NEWEST} by pg_upgrade, or by `panda backup` and `panda restore`"
        return Finding(
            "version", "error", f"PostgreSQL {name} is older than {_OLDEST}, the oldest supported", mend, details
        )
    if major > _NEWEST:
        return Finding(
            "version", "warning", f"PostgreSQL {name} is newer than {_NEWEST}, the newest tested", None, details
        )
    if minor < _MINORS[major]:
        said = f"PostgreSQL {name} lacks the corrections up to {major}.{_MINORS[major]}"
        mend = "Install the newest minor release and restart; nothing is converted"
        return Finding("version", "warning" if guarded else "info", said, mend, details)
    return Finding("version", "ok", f"PostgreSQL {name}", None, details)


async def extensions(connection: AsyncConnection, case: Case) -> Finding:
    """None is needed; those present are named."""
    found = await rows(
        connection,
        """SELECT e.extname AS name, e.extversion AS version, a.default_version AS offered
           FROM pg_extension e LEFT JOIN pg_available_extensions a ON a.name = e.extname
           WHERE e.extname <> 'plpgsql' ORDER BY 1""",
    )
    notes = [
        Note(
            "info",
            f"{item.name} {item.version} can be updated to {item.offered}",
            f'ALTER EXTENSION "{item.name}" UPDATE;',
        )
        for item in found
        if item.offered is not None and item.offered != item.version
    ]
    fine = listed((f"{item.name} {item.version}" for item in found), 6) or "none, and none is needed"
    return summed("extensions", notes, fine=fine, details={"extensions": {item.name: item.version for item in found}})


async def clock(connection: AsyncConnection, case: Case) -> Finding:
    """The server's clock against ours, and the time zone of our sessions.

    Of several readings the one with the shortest round trip counts: the server's moment lies within it, so half of it is
    the bound of the error.
    """
    readings = [await _reading(connection, case) for _ in range(_SAMPLES)]
    zone = (await row(connection, "SELECT current_setting('TimeZone') AS zone")).zone
    return _judge_clock(*min(readings, key=lambda reading: reading[1]), zone=zone, case=case)


async def _reading(connection: AsyncConnection, case: Case) -> tuple[float, float]:
    """The server's clock less ours, and how far that may be wrong; seconds."""
    sent, started = case.now(), time.perf_counter()
    at = (await row(connection, "SELECT extract(epoch FROM clock_timestamp())::float8 AS at")).at
    half = (time.perf_counter() - started) / 2
    return at - (sent + half), half


def _judge_clock(offset: float, bound: float, *, zone: str, case: Case) -> Finding:
    said = f"{span_of(abs(offset))} {'ahead of' if offset > 0 else 'behind'} ours, ±{span_of(bound)}"
    notes: list[Note] = []
    if abs(offset) - bound > _CLOCK_TROUBLE:
        status = case.grave if abs(offset) - bound > _CLOCK_GRAVE else "warning"
        notes.append(
            Note(
                status, f"the server's clock is {said}", "Run a time service on both machines: timedatectl set-ntp true"
            )
        )
    if zone not in ("UTC", "Etc/UTC", "GMT"):
        mend = f"ALTER DATABASE \"{case.url.database}\" SET timezone = 'UTC';"
        if any(name.lower() == "timezone" for name, _ in case.url.server_settings):
            mend = "Remove -c timezone=... from the options of the URL"
        notes.append(
            Note("warning", f"our sessions have the time zone {zone}: days and months begin at another hour", mend)
        )
    fine = f"the server's clock is ours within {span_of(abs(offset) + bound)}; UTC"
    details = {"offset_seconds": round(offset, 6), "bound_seconds": round(bound, 6), "time_zone": zone}
    return summed("clock", notes, fine=fine, details=details)


async def limits(connection: AsyncConnection, case: Case) -> Finding:
    """The time limits of our own sessions, as the server says it holds them."""
    if not case.as_application:
        return Finding(
            "limits", "skipped", "an application's own connection was not to be had; see pgbouncer and server"
        )
    found = await rows(
        connection,
        "SELECT name, setting::bigint AS ms, source FROM pg_settings WHERE name = ANY(CAST(:names AS text[]))"
        " ORDER BY array_position(CAST(:names AS text[]), name)",
        names=list(_LIMITS),
    )
    notes: list[Note] = []
    for item in found:
        field, variable = _LIMITS[item.name]
        wanted = round(getattr(case.options.timeouts, field) * 1000)
        setting = f"DATABASE__TIMEOUTS__{variable}"
        if item.ms != wanted:
            mend = reset_of(case, item.name, item.source)
            said = f"{item.name} is {_limit(item.ms)} where {setting} asks for {_limit(wanted)}"
            notes.append(Note(case.grave if item.ms == 0 else "warning", said, mend))
        elif wanted == 0:
            default = type(case.options.timeouts)()
            notes.append(Note("warning", f"{item.name} is off", f"{setting}={getattr(default, field):g}"))
    fine = ", ".join(f"{_LIMITS[item.name][0].replace('_', ' ')} {_limit(item.ms)}" for item in found)
    details = {item.name: {"ms": item.ms, "source": item.source} for item in found}
    return summed("limits", notes, fine=fine, details=details)


def _limit(milliseconds: int) -> str:
    return span_of(milliseconds / 1000) if milliseconds else "off"


async def durability(connection: AsyncConnection, case: Case) -> Finding:
    """Is an acknowledged write on the disk, and is a damaged page noticed?"""
    found = await row(
        connection,
        """SELECT current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,
                  current_setting('synchronous_commit') AS synchronous_commit,
                  current_setting('data_checksums') AS data_checksums,
                  coalesce((SELECT checksum_failures FROM pg_stat_database WHERE datname = current_database()), 0)::bigint
                    AS failures""",
    )
    notes: list[Note] = []
    if found.failures:
        mend = "Stop writing, find the tables in the server's log, and restore from a backup: `panda restore`"
        notes.append(Note("error", f"{found.failures} pages had a wrong checksum: the disk loses data", mend))
    for name, loss in (
        ("fsync", "a crash of the machine destroys the database"),
        ("full_page_writes", "a crash of the machine leaves torn pages"),
        ("synchronous_commit", "a crash loses what was acknowledged last"),
    ):
        if getattr(found, name) == "off":
            mend = f"ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf();"
            notes.append(Note(case.grave, f"{name} is off: {loss}", mend))
    if found.data_checksums != "on":
        status = "warning" if case.is_guarded else "info"
        mend = "Stop the server, then: pg_checksums --enable -D DATA_DIRECTORY"
        notes.append(Note(status, "data checksums are off: a damaged page is not noticed", mend))
    details = {name: getattr(found, name) for name in found._fields}
    fine = f"fsync on, synchronous commit {found.synchronous_commit}, checksums on"
    return summed("durability", notes, fine=fine, details=details)
