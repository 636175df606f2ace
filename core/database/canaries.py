"""Whether a ring still holds the very keys that sealed this database's secrets.

The first secret that a key seals leaves a canary beside it: an envelope without a secret, under the key's id. A ring whose
key of that id does not open it holds another key, and would orphan every secret stored before. After a rotation
(`core.trading.sessions.rotate`) an older key's canary stays, while nothing is sealed by the key any more: it may leave the ring.
"""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from core.database.encryption import KeyRing
from core.database.errors import EnvelopeTampered, InvalidKey, UnknownKey
from core.database.models import EncryptionCanary, TradingSession

__all__ = ["RingCheck", "check_ring", "keep_canary"]

_WRONG_KEY = "Put the key that was used before under this id again, and give the new one an id of its own, before it: new:...,old:..."

_SEALED = TradingSession.credentials
_NEEDED = (
    select(func.encode(func.substring(_SEALED, 3, func.get_byte(_SEALED, 1)), "escape"))
    .where(TradingSession.is_active, _SEALED.is_not(None))
    .distinct()
)
"""The keys of the envelopes of open sessions."""


@dataclass(frozen=True, slots=True)
class RingCheck:
    """A ring against the canaries of a database; each id stands in one of the five, in the order of the ids."""

    right: tuple[str, ...]
    """Keys of the ring that open their canary."""
    wrong: tuple[str, ...]
    """Keys of the ring that do not: another key stood under that id, or the canary is damaged."""
    missing: tuple[str, ...]
    """Keys that are not in the ring and without which open sessions' credentials cannot be opened."""
    unused: tuple[str, ...]
    """Keys of the ring that have sealed nothing here."""
    retired: tuple[str, ...] = ()
    """Keys that have sealed here once, are not in the ring, and are needed no more."""

    def raise_unless_whole(self) -> None:
        """Raise `InvalidKey` for a wrong key, else `UnknownKey` for a missing one."""
        if self.wrong:
            raise _wrong(self.wrong[0])
        if self.missing:
            raise UnknownKey(f"no key {self.missing[0]!r} in the ring, which has sealed secrets in this database")


async def check_ring(database: AsyncSession | AsyncConnection, ring: KeyRing) -> RingCheck:
    """Hold the ring against every stored canary; changes nothing, and raises only what the server does."""
    rows = await database.execute(
        select(EncryptionCanary.key_id, EncryptionCanary.envelope).order_by(EncryptionCanary.key_id)
    )
    stored: dict[str, bytes] = {row.key_id: row.envelope for row in rows}
    held = [key_id for key_id in stored if key_id in ring.key_ids]
    gone = [key_id for key_id in stored if key_id not in ring.key_ids]
    needed = set(await database.scalars(_NEEDED)) if gone else set[str]()
    right = tuple(key_id for key_id in held if _opens(ring, stored[key_id]))
    return RingCheck(
        right=right,
        wrong=tuple(key_id for key_id in held if key_id not in right),
        missing=tuple(key_id for key_id in gone if key_id in needed),
        unused=tuple(sorted(set(ring.key_ids) - set(stored))),
        retired=tuple(key_id for key_id in gone if key_id not in needed),
    )


async def keep_canary(session: AsyncSession, ring: KeyRing) -> None:
    """Before the active key seals: hold it against its canary, or leave one if it is the key's first secret here.

    One round trip, two more the first time. The caller commits, and the canary is stored with the secret or not at all.
    Raises `InvalidKey`, with nothing written, if the stored canary does not open.
    """
    key_id = ring.active_id
    stored = await _canary(session, key_id)
    if stored is None:
        envelope = ring.seal_canary()
        await session.execute(
            insert(EncryptionCanary).values(key_id=key_id, envelope=envelope).on_conflict_do_nothing()
        )
        # Another transaction may have been first, perhaps with another key: what is stored counts.
        stored = await _canary(session, key_id)
    if stored is None or not _opens(ring, stored):
        raise _wrong(key_id)


async def _canary(session: AsyncSession, key_id: str) -> bytes | None:
    return await session.scalar(select(EncryptionCanary.envelope).where(EncryptionCanary.key_id == key_id))


def _opens(ring: KeyRing, envelope: bytes) -> bool:
    try:
        ring.check_canary(envelope)
    except (UnknownKey, EnvelopeTampered):
        return False
    return True


def _wrong(key_id: str) -> InvalidKey:
    return InvalidKey(f"the key {key_id!r} is not the one that has sealed secrets in this database", hint=_WRONG_KEY)
