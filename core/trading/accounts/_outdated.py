"""Which hashes are stored that cost another time to verify than those of today, so that no refusal tells whose they are."""

import time
import weakref
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.connection import DatabaseManager
from core.trading.accounts._passwords import KIND, measured

_AGAIN: Final = 600.0  # seconds after which they are looked for anew: they come with data that is restored or adopted
_KINDS = text("SELECT DISTINCT substring(hashed_password FROM :pattern) FROM users WHERE is_active")
_known: "weakref.WeakKeyDictionary[DatabaseManager, tuple[float, tuple[str, ...]]]" = weakref.WeakKeyDictionary()


async def outdated_kinds(manager: DatabaseManager) -> tuple[str, ...]:
    """The kinds of `_passwords.verify`; a look into the database every ten minutes."""
    due, kinds = _known.get(manager, (0.0, ()))
    now = time.monotonic()
    if now < due:
        return kinds
    _known[manager] = now + _AGAIN, kinds  # who comes meanwhile does not look too
    try:
        kinds = await measured(await manager.run_transaction(_stored))
    except BaseException:
        _known[manager] = 0.0, kinds
        raise
    _known[manager] = now + _AGAIN, kinds
    return kinds


async def _stored(session: AsyncSession) -> set[str]:
    return {kind for kind in await session.scalars(_KINDS, {"pattern": KIND}) if kind}
