"""Sealing anew what older keys have sealed, while everybody goes on; and opening all there is, to see that it opens."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession

from core.config.options import Timeouts
from core.database.canaries import RingCheck, check_ring, keep_canary
from core.database.connection import DatabaseManager
from core.database.encryption import KeyRing
from core.database.errors import ConfigurationError, EncryptionError, EnvelopeTampered, LockTimeout, UnknownKey
from core.database.models import TradingSession
from core.trading.sessions._secrets import COLUMN, TABLE

_PATIENCE = 60.0
_SEALED = TradingSession.credentials.is_not(None)
_HEADER = sa.func.substring(TradingSession.credentials, 1, 2 + sa.func.get_byte(TradingSession.credentials, 1))
_KEY_ID = sa.func.encode(
    sa.func.substring(TradingSession.credentials, 3, sa.func.get_byte(TradingSession.credentials, 1)), "escape"
)
_STORE = sa.text(
    """
    UPDATE trading_sessions AS t SET credentials = n.envelope
    FROM unnest(:ids, :before, :after) AS n (session_id, before, envelope)
    WHERE t.session_id = n.session_id AND t.credentials = n.before
    RETURNING t.session_id
    """
).bindparams(
    sa.bindparam("ids", type_=ARRAY(sa.Text())),
    sa.bindparam("before", type_=ARRAY(sa.LargeBinary())),
    sa.bindparam("after", type_=ARRAY(sa.LargeBinary())),
)


@dataclass(frozen=True, slots=True)
class EnvelopeFault:
    """An envelope that does not open, and why: `UnknownKey`, or `EnvelopeTampered` for one that is damaged or another row's."""

    session_id: str
    error: EncryptionError


@dataclass(frozen=True, slots=True)
class RotationReport:
    """What a rotation came to."""

    key_id: str
    """Of the key that seals now."""
    rotated: int
    """Envelopes that were sealed anew."""
    faults: tuple[EnvelopeFault, ...]
    """Those that did not open; they are as they were."""
    busy: tuple[str, ...]
    """Sessions that others held locked all the while; the same again does them."""
    batches: int
    seconds: float

    @property
    def is_whole(self) -> bool:
        """Whether the active key has sealed everything that is stored."""
        return not self.faults and not self.busy

    def raise_unless_whole(self) -> None:
        """Raise the first fault, else `LockTimeout` for what was busy."""
        if self.faults:
            raise self.faults[0].error
        if self.busy:
            raise LockTimeout(
                f"{len(self.busy)} sessions were locked by others", hint="Rotate again: what is done stays done."
            )


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What of the stored secrets a ring opens."""

    ring: RingCheck
    envelopes: Mapping[str, int]
    """How many each key has sealed that is stored now, by the key's id."""
    opened: int | None
    """How many were opened; None where this was not asked for."""
    faults: tuple[EnvelopeFault, ...]

    @property
    def is_whole(self) -> bool:
        """Whether the ring opens everything, as far as was looked."""
        return not (self.ring.wrong or self.ring.missing or self.faults)

    def raise_unless_whole(self) -> None:
        """Raise what `RingCheck` does, else the first fault."""
        self.ring.raise_unless_whole()
        if self.faults:
            raise self.faults[0].error


async def rotate(
    manager: DatabaseManager,
    ring: KeyRing,
    *,
    batch: int = 500,
    progress: Callable[[int, int], object] | None = None,
    pause: float = 0.0,
    patience: float = _PATIENCE,
) -> RotationReport:
    """Seal anew, with the ring's active key, every envelope that another key has sealed.

    Each `batch` of rows is a transaction of its own, `pause` seconds apart: killed at any point, nothing is lost, and the next
    run does what is left. Everybody else goes on; a row that another transaction holds is passed over and come back to, for
    `patience` seconds at the most. What does not open stays as it is and is reported. `progress` is told how many are done and
    how many there were. Processes whose ring still seals with an older key must have the new one before, or their sessions
    are left for another run.

    Raises `InvalidKey`, before anything is written, if a key of the ring is not the one that has sealed here under its id.
    """
    _check_batch(batch)
    if pause < 0 or patience < 0:
        raise ConfigurationError("pause and patience must not be negative")
    run = _Rotation(manager, ring, batch, pause)
    async with manager.get_session() as session:
        await _unhurried(session)
        await _refuse_wrong_keys(session, ring)
        run.total = await session.scalar(sa.select(sa.func.count()).where(_SEALED, run.is_stale)) or 0
    if run.total:
        await manager.run_transaction(run.vouch)
    until, wait = time.monotonic() + patience, 0.05
    await run.pass_over(progress)
    while (busy := await run.left()) and time.monotonic() < until:
        await asyncio.sleep(min(wait, max(until - time.monotonic(), 0)))
        wait = min(wait * 2, 1.0)
        await run.pass_over(progress)
    return run.report(busy)


async def verify(manager: DatabaseManager, ring: KeyRing, *, deep: bool = False, batch: int = 500) -> VerifyReport:
    """Hold the ring against the canaries and count what each key has sealed; with `deep` open every envelope too.

    Changes nothing. Raises only what the server does.
    """
    _check_batch(batch)
    async with manager.get_session(read_only=True, consistent=True) as session:
        await _unhurried(session)
        check = await check_ring(session, ring)
        rows = await session.execute(
            sa.select(_KEY_ID.label("key_id"), sa.func.count().label("sealed"))
            .where(_SEALED)
            .group_by(_KEY_ID)
            .order_by(_KEY_ID)
        )
        envelopes: dict[str, int] = {row.key_id: row.sealed for row in rows}
    faults: list[EnvelopeFault] = []
    opened, after = 0, ""
    while deep:
        async with manager.get_session(read_only=True, consistent=True) as session:
            await _unhurried(session)
            page = (await session.execute(_page(after, batch))).all()
        for row in page:
            fault = _fault_of(ring, row)
            opened += fault is None
            faults += [fault] if fault else []
        if len(page) < batch:
            break
        after = page[-1].session_id
        await asyncio.sleep(0)
    return VerifyReport(check, envelopes, opened if deep else None, tuple(faults))


class _Rotation:
    """One run: what is done, and what cannot be."""

    def __init__(self, manager: DatabaseManager, ring: KeyRing, batch: int, pause: float) -> None:
        self._manager = manager
        self._ring = ring
        self._batch = batch
        self._pause = pause
        self._began = time.perf_counter()
        self._faults: dict[str, EnvelopeFault] = {}
        self._rotated = self._batches = 0
        self.total = 0
        key_id = ring.active_id.encode()
        self.is_stale = sa.literal(bytes((1, len(key_id))) + key_id, sa.LargeBinary()) != _HEADER

    def report(self, busy: list[str]) -> RotationReport:
        faults = tuple(self._faults[key] for key in sorted(self._faults))
        seconds = time.perf_counter() - self._began
        return RotationReport(self._ring.active_id, self._rotated, faults, tuple(busy), self._batches, seconds)

    async def vouch(self, session: AsyncSession) -> None:
        """Leave the key's canary before any row is locked: who opens its first session holds the canary and wants the row.

        None where it will have nothing to vouch for.
        """
        await _unhurried(session)
        rows = await session.execute(_page("", self._batch).where(self.is_stale))
        if any(_fault_of(self._ring, row) is None for row in rows.all()):
            await keep_canary(session, self._ring)

    async def pass_over(self, progress: Callable[[int, int], object] | None) -> None:
        """Once over all rows, in the order of their keys."""
        after: str | None = ""
        while after is not None:
            after, rotated, faults = await self._manager.run_transaction(
                lambda session, at=after: self._page(session, at)
            )
            self._rotated += rotated
            self._faults |= faults
            self._batches += rotated > 0
            if progress is not None and (rotated or faults):
                progress(self._rotated, max(self.total, self._rotated))
            if after is not None:
                await asyncio.sleep(self._pause)

    async def left(self) -> list[str]:
        """Those that a pass has left, faults aside: others held them."""
        async with self._manager.get_session() as session:
            await _unhurried(session)
            found = await session.scalars(
                sa.select(TradingSession.session_id).where(_SEALED, self.is_stale).order_by(TradingSession.session_id)
            )
            return [session_id for session_id in found if session_id not in self._faults]

    async def _page(self, session: AsyncSession, after: str) -> tuple[str | None, int, dict[str, EnvelopeFault]]:
        """Where the next page begins (None at the end), how many were sealed anew, and what did not open."""
        await _unhurried(session)
        locked = _page(after, self._batch).where(self.is_stale).with_for_update(skip_locked=True, key_share=True)
        rows = (await session.execute(locked)).all()
        faults: dict[str, EnvelopeFault] = {}
        anew: list[tuple[str, bytes, bytes]] = []
        for row in rows:
            place = {"table": TABLE, "column": COLUMN, "row_key": row.session_id}
            try:
                anew.append(
                    (
                        row.session_id,
                        row.credentials,
                        self._ring.seal(self._ring.open(row.credentials, **place), **place),
                    )
                )
            except (UnknownKey, EnvelopeTampered) as error:
                faults[row.session_id] = EnvelopeFault(row.session_id, error)
        rotated = 0
        if anew:
            await keep_canary(session, self._ring)
            ids, before, envelopes = (list(column) for column in zip(*anew, strict=True))
            stored = await session.scalars(_STORE, {"ids": ids, "before": before, "after": envelopes})
            rotated = len(stored.all())
        return (rows[-1].session_id if len(rows) == self._batch else None), rotated, faults


async def _unhurried(session: AsyncSession) -> None:
    """A page is found among all sessions that ever were, which may take longer than a statement may by default."""
    await session.execute(sa.text(f"SET LOCAL statement_timeout = '{Timeouts().bulk}s'"))


def _page(after: str, batch: int) -> Any:
    table = TradingSession
    return (
        sa.select(table.session_id, table.credentials)
        .where(_SEALED, table.session_id > after)
        .order_by(table.session_id)
        .limit(batch)
    )


def _fault_of(ring: KeyRing, row: Any) -> EnvelopeFault | None:
    try:
        ring.open(row.credentials, table=TABLE, column=COLUMN, row_key=row.session_id)
    except (UnknownKey, EnvelopeTampered) as error:
        return EnvelopeFault(row.session_id, error)
    return None


async def _refuse_wrong_keys(session: AsyncSession, ring: KeyRing) -> None:
    check = await check_ring(session, ring)
    if check.wrong:
        check.raise_unless_whole()


def _check_batch(batch: int) -> None:
    if not 1 <= batch <= 10_000:
        raise ConfigurationError("batch must be 1 to 10,000")
