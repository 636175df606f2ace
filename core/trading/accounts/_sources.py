"""Where a login comes from, and what is known of it: addresses, and devices that keep a cookie."""

import hashlib
import ipaddress
import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.errors import InvalidInput, forgets
from core.database.models import KnownSource, User
from core.trading.accounts._delays import LoginDelays
from core.trading.accounts._names import checked_source

_DEVICE = "device:"  # and a digest, among the sources that are known
_DEFAULTS = LoginDelays()


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Origin:
    """What the application tells of where an attempt comes from; `device` as it is stored."""

    source: str | None
    device: str | None


def origin(source: str | None, device: str | None) -> Origin:
    """Raises `InvalidInput`, which names `source` or `device`."""
    return Origin(source=checked_source(source), device=None if device is None else _stored(device))


def source_of(address: str) -> str:
    """What to give as `source` for a client's IP address: the same however it is written, and of IPv6 the /64.

    Whoever has one IPv6 address has as many as a /64 holds. Raises `InvalidInput` for what is no address.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except (ValueError, TypeError, AttributeError):
        raise InvalidInput("source: is no IP address", column="source") from None
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))


@forgets
async def remember_device(
    session: AsyncSession, user_id: int, *, device: str | None = None, delays: LoginDelays = _DEFAULTS
) -> str:
    """The cookie to give to a device from which the user has just logged in; the caller commits.

    `device` is what it sent: given back if it is known, else a new one is made (256 bits, kept as its SHA-256). Set it
    HttpOnly, Secure, for `delays.known` seconds, and pass it to `authenticate` as `device`. Raises `InvalidInput`.
    """
    if device is not None:
        mine = (KnownSource.user_id == user_id, KnownSource.source == _stored(device))
        if await session.scalar(select(KnownSource.user_id).where(*mine, _lately(delays))) is not None:
            return device
    made = secrets.token_urlsafe(32)
    await session.execute(insert(KnownSource).values(user_id=user_id, source=_stored(made)))
    return made


def known_as(where: Origin, delays: LoginDelays) -> Any:
    """As which of the two the origin is known for the `User` of the query around it, the device first; else NULL."""
    return (
        select(KnownSource.source)
        .where(KnownSource.user_id == User.id, KnownSource.source.in_([where.device or "", where.source or ""]))
        .where(_lately(delays))
        .order_by(KnownSource.source != (where.device or ""))
        .limit(1)
        .scalar_subquery()
    )


async def seen(session: AsyncSession, user_id: int, where: Origin) -> None:
    """The user has logged in from there. A device that is not known does not become so: it could choose its cookie."""
    if where.source is not None:
        row = insert(KnownSource).values(user_id=user_id, source=where.source, seen_at=func.now())
        key = [KnownSource.user_id, KnownSource.source]
        await session.execute(row.on_conflict_do_update(index_elements=key, set_={"seen_at": row.excluded.seen_at}))
    if where.device is not None:
        mine = (KnownSource.user_id == user_id, KnownSource.source == where.device)
        await session.execute(update(KnownSource).where(*mine).values(seen_at=func.now()))


def _lately(delays: LoginDelays) -> ColumnElement[bool]:
    return KnownSource.seen_at > func.now() - func.make_interval(0, 0, 0, 0, 0, 0, delays.known)


def _stored(device: str) -> str:
    if not isinstance(device, str):  # pyright: ignore[reportUnnecessaryIsInstance] - values come from requests
        raise InvalidInput(f"device: takes str, not {type(device).__name__}", column="device")
    return _DEVICE + hashlib.sha256(device.encode("utf-8", "surrogatepass")).hexdigest()
