"""Which hashes are stored that cost another time to verify than those of today, so that no refusal tells whose they are."""

import time
import weakref
from functools import partial
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.connection import DatabaseManager
from core.database.errors import StatementTimeout
from core.trading.accounts._passwords import kind_of, measured, todays_kind

_AGAIN: Final = 600.0  # seconds after which they are looked for anew: they come with data that is restored or adopted
# No pattern, which would take seconds for 100,000 users. What has another shape than a hash is left out afterwards.
_KINDS = text("""
    SELECT DISTINCT CASE WHEN starts_with(hashed_password, '$2') THEN left(hashed_password, 7) ELSE concat('$',
        split_part(hashed_password, '$', 2), '$', split_part(hashed_password, '$', 3), '$', split_part(hashed_password, '$', 4), '$')
        END FROM users WHERE is_active AND NOT starts_with(hashed_password, :today) LIMIT 100
""")
_known: "weakref.WeakKeyDictionary[DatabaseManager, tuple[float, tuple[str, ...]]]" = weakref.WeakKeyDictionary()


async def outdated_kinds(manager: DatabaseManager) -> tuple[str, ...]:
    """The kinds of `_passwords.verify`; a look into the database every ten minutes.

    Those known before where it has more users than can be looked through within the statement's time limit.
    """
    due, kinds = _known.get(manager, (0.0, ()))
    now = time.monotonic()
    if now < due:
        return kinds
    _known[manager] = now + _AGAIN, kinds  # who comes meanwhile does not look too
    try:
        today = await todays_kind()
        kinds = await measured(await manager.run_transaction(partial(_stored, today=today)))
    except StatementTimeout:  # so many users that the look takes too long: no login fails for it
        return kinds
    except BaseException:
        _known[manager] = 0.0, kinds
        raise
    _known[manager] = now + _AGAIN, kinds
    return kinds


async def _stored(session: AsyncSession, *, today: str) -> set[str]:
    found = await session.scalars(_KINDS, {"today": today})
    return {kind for kind in found if kind and kind == kind_of(kind)}
