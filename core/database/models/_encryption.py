"""What tells later whether a key is still the one that sealed."""

from datetime import datetime

from sqlalchemy import CheckConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from core.database.models._base import Base, instant_check, text_check
from core.database.records import TextRule
from core.database.types import Bytes, Text, UtcDateTime

_KEY_ID = TextRule("[A-Za-z0-9][A-Za-z0-9._-]*", 32, "must be letters, digits, dots, dashes and underscores")
_MAX_BYTES = 80  # an envelope of 18 bytes under the longest id


class EncryptionCanary(Base):
    """An envelope of `KeyRing.seal_canary`, one for each key that has sealed a secret here; it holds no secret itself.

    Only `canaries` writes it, in the transaction of the first secret that the key seals, and nothing changes it.
    """

    __tablename__ = "encryption_canaries"

    key_id: Mapped[str] = mapped_column(Text(_KEY_ID.max_length), primary_key=True)
    envelope: Mapped[bytes] = mapped_column(Bytes(_MAX_BYTES))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime(), server_default=func.now())

    __table_args__ = (
        text_check("key_id", _KEY_ID),
        # Version 1, and the id inside is the id outside: 'escape' leaves letters, digits, dots, dashes and underscores alone.
        CheckConstraint(
            rf"substring(envelope, 1, 1) = '\x01' AND octet_length(envelope) BETWEEN 49 AND {_MAX_BYTES}"
            " AND get_byte(envelope, 1) = length(key_id)"
            " AND encode(substring(envelope, 3, length(key_id)), 'escape') = key_id",
            name="envelope",
        ),
        instant_check("created_at"),
    )
