"""How long a login has to wait after others have failed: counted in the database, by its clock, for all processes alike."""

import hashlib
from collections.abc import Iterable
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from sqlalchemy import delete, text
from sqlalchemy.ext.asyncio import AsyncSession

from core.config.options import Seconds, SecondsOrOff
from core.database.models import LoginDelay

_DAY = 86_400.0


@dataclass(frozen=True, kw_only=True, slots=True, config=ConfigDict(extra="forbid", hide_input_in_errors=True))
class LoginDelays:
    """How the wait grows with failures. All durations are seconds; give every process the same."""

    free: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    """Failures that cost no wait."""
    first: Seconds = 1.0
    """The wait after the next one; it doubles with each further."""
    cap: Seconds = 900.0
    """The longest wait."""
    forget: Annotated[float, Field(ge=60, le=365 * _DAY, allow_inf_nan=False)] = _DAY
    """Failures are forgotten when none was added for so long; never before their wait is over."""
    patience: SecondsOrOff = 2.0
    """Waits up to this are waited for instead of being refused, in all: for many logins of one user at the same moment."""
    known: Annotated[float, Field(ge=_DAY, le=3_650 * _DAY, allow_inf_nan=False)] = 90 * _DAY
    """How long a source is known for a user after a login from it."""

    @property
    def forgotten(self) -> float:
        """When failures are, in seconds after the last."""
        return max(self.forget, self.cap)


def name_digest(form: str) -> bytes:
    """What is kept of a name that was typed, which may have been a password. Also the bucket that strangers share."""
    return hashlib.sha256(form.encode("utf-8", "surrogatepass")).digest()


def source_bucket(form: str, source: str) -> bytes:
    """The bucket of a name at a source that is known for it; the byte between them is in no text that can be typed."""
    return hashlib.sha256(form.encode() + b"\xff" + source.encode()).digest()


_COUNTS = "d.failures > :free AND d.failed_at > clock_timestamp() - make_interval(secs => :forget)"
_WAIT = text(f"""
    SELECT CAST(extract(epoch FROM d.waits_until - clock_timestamp()) AS float8) FROM login_delays d
    WHERE d.bucket = :bucket AND d.waits_until > clock_timestamp() AND {_COUNTS}
""")  # noqa: S608 - made of constants
_FORGOTTEN = "d.failed_at <= excluded.failed_at - make_interval(secs => :forget)"
_FAILURES = f"CASE WHEN {_FORGOTTEN} THEN 1 ELSE d.failures + 1 END"
# One instant for both columns: clock_timestamp() is another one each time that it is asked.
_COUNT = text(f"""
    INSERT INTO login_delays AS d (bucket, failures, failed_at, waits_until)
    VALUES (:bucket, 1, statement_timestamp(), statement_timestamp())
    ON CONFLICT (bucket) DO UPDATE SET
        failures = {_FAILURES},
        failed_at = greatest(d.failed_at, excluded.failed_at),
        waits_until = greatest(d.failed_at, excluded.failed_at) + CASE WHEN {_FAILURES} <= :free THEN interval '0' ELSE
            make_interval(secs => least(:cap, :first * power(CAST(2 AS float8), least({_FAILURES} - :free - 1, 40)))) END
    WHERE d.failures <= :free OR d.waits_until <= excluded.failed_at OR {_FORGOTTEN}
    RETURNING failures
""")  # noqa: S608 - made of constants


async def waiting(session: AsyncSession, bucket: bytes, delays: LoginDelays) -> float:
    """Seconds that the next attempt has to wait."""
    values = {"bucket": bucket, "free": delays.free, "forget": delays.forgotten}
    return await session.scalar(_WAIT, values) or 0.0


async def reserve(session: AsyncSession, bucket: bytes, delays: LoginDelays) -> float:
    """Count an attempt as a failure before it is one, or say for how many seconds it has to wait and count nothing.

    So that many at once are not all let through. Who has to wait takes no lock, unless it was admitted a moment ago.
    """
    wait = await waiting(session, bucket, delays)
    if wait > 0:
        return wait
    values = {
        "bucket": bucket,
        "free": delays.free,
        "first": delays.first,
        "cap": delays.cap,
        "forget": delays.forgotten,
    }
    if (await session.scalar(_COUNT, values)) is not None:
        return 0.0
    return max(await waiting(session, bucket, delays), 0.001)


async def clear(session: AsyncSession, buckets: Iterable[bytes]) -> None:
    """Forget their failures."""
    await session.execute(delete(LoginDelay).where(LoginDelay.bucket.in_(sorted(buckets))))
