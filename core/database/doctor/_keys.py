"""Do the keys open what was sealed?"""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from core.database.canaries import check_ring
from core.database.doctor._case import Case, row, rows
from core.database.doctor._finding import Finding, Note, listed, summed
from core.database.encryption import KeyRing
from core.database.errors import EncryptionError

_PRESENT = """
    SELECT to_regclass('encryption_canaries') IS NOT NULL AS canaries, to_regclass('trading_sessions') IS NOT NULL AS sessions
"""
_STORED = "SELECT key_id FROM encryption_canaries ORDER BY 1"
_SEALED = """
    SELECT encode(substring(credentials, 3, get_byte(credentials, 1)), 'escape') AS key_id, count(*) AS sessions
    FROM trading_sessions WHERE is_active AND credentials IS NOT NULL GROUP BY 1 ORDER BY 1
"""
_SETTING = "DATABASE__ENCRYPTION_KEYS"


async def encryption(connection: AsyncConnection, case: Case) -> Finding:
    """The configured keys against the canaries, and against the sessions that are open now."""
    present = await row(connection, _PRESENT)
    if not present.canaries:
        return Finding("encryption", "skipped", "the table encryption_canaries is missing", "panda migrate upgrade")
    sealed = {item.key_id: item.sessions for item in await rows(connection, _SEALED)} if present.sessions else {}
    if case.encryption_keys is None:
        stored = [item.key_id for item in await rows(connection, _STORED)]
        return _without_keys(case, sorted({*stored, *sealed}), sealed)
    try:
        ring = KeyRing.parse(case.encryption_keys)
    except EncryptionError as error:
        return Finding("encryption", "error", f"{_SETTING}: {error.message}", error.hint)
    found = await check_ring(connection, ring)
    missing = sorted({*found.missing, *sealed} - set(ring.key_ids))
    notes: list[Note] = []
    if found.wrong:
        mend = (
            f"Put the key that was used before under its id in {_SETTING} again, and a new key under a new id before it"
        )
        notes.append(Note("error", f"another key has sealed here under {_ids(found.wrong)}", mend))
    if missing:
        mend = f"Add {_ids(missing)} behind the others in {_SETTING}; lost for good, its sessions must be opened anew"
        notes.append(Note("error", f"secrets were sealed by {_ids(missing)}, which is not configured", mend))
    details: dict[str, Any] = {
        "active": ring.active_id,
        "right": list(found.right),
        "wrong": list(found.wrong),
        "missing": missing,
        "retired": list(found.retired),
        "unused": list(found.unused),
        "open_sessions_by_key": sealed,
    }
    fine = f"{_ids([ring.active_id])} seals; " + (
        f"{_ids(found.right)} proven" if found.right else "nothing sealed yet"
    )
    return summed("encryption", notes, fine=fine, details=details)


def _without_keys(case: Case, stored: list[str], sealed: dict[str, int]) -> Finding:
    details = {"active": None, "missing": stored, "open_sessions_by_key": sealed}
    if stored:
        mend = f"{_SETTING}=id:base64 with the keys that were used before"
        return Finding(
            "encryption", "error", f"secrets were sealed by {_ids(stored)}, and no key is configured", mend, details
        )
    said = "no key is configured: broker credentials cannot be stored"
    status = "warning" if case.is_guarded else "info"
    return Finding("encryption", status, said, f'{_SETTING}="k1:$(openssl rand -base64 32)"', details)


def _ids(key_ids: Any) -> str:
    return "key " + listed([repr(key_id) for key_id in key_ids])
