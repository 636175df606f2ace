"""Seal secrets before they are bound to a statement, and open them again; nothing here is ever stored in clear.

An envelope is bytes, for a BYTEA column, and says by itself how to open it. Version 1, for good:

    offset    length     what
    0         1          version, 0x01
    1         1          n, the length of the key's id, 1 to 32
    2         n          key id, ASCII: a letter or digit, then letters, digits, `.`, `_` or `-`
    2 + n     12         nonce, random
    14 + n    >= 16      AES-256-GCM ciphertext, its tag of 16 bytes last

The associated data are version (one byte), key id, table, column and row key, each as four bytes of big-endian length and
its UTF-8 bytes. An envelope therefore opens in its own row only, and no two places give the same associated data.
Bytes rather than text: a third shorter, nothing to normalise, and a CHECK constraint can read the version from the
first byte.

Nonces are random, so one key may seal 2**32 values before a collision becomes likely enough to matter (NIST SP 800-38D,
8.3); rotate long before.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from itertools import pairwise
from os import urandom
from typing import NoReturn, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from core.config.options import Environment
from core.database.errors import EnvelopeTampered, InvalidInput, InvalidKey, UnknownKey, forgets

__all__ = ["MAX_SECRET_BYTES", "KeyRing", "is_guessed_key", "refuse_guessed_keys"]

MAX_SECRET_BYTES = 60_000
"""The longest value that is sealed, so that every envelope stays within the columns' limit of 65,536 bytes."""

_VERSION = 1
_KEY_BYTES, _NONCE_BYTES, _TAG_BYTES = 32, 12, 16
_KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_FEW_BYTES = 10
_TYPED = frozenset(range(0x20, 0x7F))
_CANARY_PLACE = ("encryption", "canary", "canary")
_CANARY = b"alpha panda canary"


class KeyRing:
    """The keys: one that seals, and older ones that still open.

    `keys` are 32 bytes each by their id; `active` is the id that seals. Raises `InvalidKey`, which never repeats key
    material. No text form of a ring shows a key, and it cannot be pickled or copied.
    """

    __slots__ = ("_active", "_ciphers", "_guessed")

    @forgets
    def __init__(self, keys: Mapping[str, bytes], *, active: str) -> None:
        for key_id, key in keys.items():
            _check_key(key_id, key)
        if active not in keys:
            raise InvalidKey("the active key is not in the ring")
        if len(set(keys.values())) != len(keys):
            raise InvalidKey("one key stands under two ids")
        self._active = active
        # Only the ciphers are kept: the key material is out of reach of a debugger's glance at the attributes.
        self._ciphers = {key_id: AESGCM(key) for key_id, key in keys.items()}
        self._guessed = tuple(key_id for key_id, key in keys.items() if is_guessed_key(key))

    @classmethod
    @forgets
    def parse(cls, text: str) -> Self:
        """A ring from `id:base64,id:base64,...`, each key 32 bytes; the first is active. Raises `InvalidKey`.

        They may stand in several lines, and what follows a `#` is a comment.
        """
        keys: dict[str, bytes] = {}
        first = None
        entries = _entries(text)
        for number, entry in enumerate(entries, 1):
            this = f"key {number} of {len(entries)}"
            key_id, colon, encoded = entry.strip().partition(":")
            if not colon:
                raise InvalidKey(f"{this} is not written id:base64")
            if key_id in keys:
                raise InvalidKey(f"{this} has the id of one before it")
            key = _decoded(encoded)
            if key is None:
                raise InvalidKey(f"{this} is not base64")
            keys[key_id] = key
            first = first or key_id
        return cls(keys, active=first or "")

    @staticmethod
    def generate_key() -> str:
        """A new random key in base64, to be written behind `id:`."""
        return base64.b64encode(urandom(_KEY_BYTES)).decode()

    @property
    def active_id(self) -> str:
        return self._active

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids, the active one first."""
        return (self._active, *(key_id for key_id in self._ciphers if key_id != self._active))

    @property
    def guessed_ids(self) -> tuple[str, ...]:
        """The ids of keys that are a pattern or a text and no random bytes: `is_guessed_key`."""
        return self._guessed

    @forgets
    def seal(self, value: bytes | str, *, table: str, column: str, row_key: str) -> bytes:
        """An envelope of `value` (text as UTF-8) that opens only in this place.

        `row_key` is the primary key of the row as text, made by the application before the row is written. Raises
        `InvalidInput` for another type, a lone surrogate, or more than `MAX_SECRET_BYTES` bytes.
        """
        nonce = urandom(_NONCE_BYTES)
        place = _associated_data(self._active, table, column, row_key)
        sealed = self._ciphers[self._active].encrypt(nonce, _as_bytes(value, column), place)
        return _header(self._active) + nonce + sealed

    def open(self, envelope: bytes, *, table: str, column: str, row_key: str) -> bytes:
        """What was sealed in this place.

        Raises `UnknownKey` if the ring lacks the envelope's key, and `EnvelopeTampered` if the envelope is damaged or was
        sealed for another place.
        """
        key_id, nonce, sealed = _split(envelope, table, column)
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise UnknownKey(f"no key {key_id!r} in the ring", table=table, column=column)
        try:
            return cipher.decrypt(nonce, sealed, _associated_data(key_id, table, column, row_key))
        except InvalidTag:
            raise _tampered(table, column) from None

    def open_text(self, envelope: bytes, *, table: str, column: str, row_key: str) -> str:
        """As `open`, for what was sealed as text."""
        try:
            return self.open(envelope, table=table, column=column, row_key=row_key).decode()
        except UnicodeDecodeError:
            raise InvalidInput("the sealed value is not text; open it as bytes", table=table, column=column) from None

    def needs_rotation(self, envelope: bytes) -> bool:
        """Whether the envelope was sealed by another key than the active one. Raises `EnvelopeTampered` if it is none."""
        return _split(envelope, None, None)[0] != self._active

    def seal_canary(self) -> bytes:
        """An envelope to store once, by which a later start can tell whether its keys are the right ones."""
        table, column, row_key = _CANARY_PLACE
        return self.seal(_CANARY, table=table, column=column, row_key=row_key)

    def check_canary(self, envelope: bytes) -> None:
        """Raise `UnknownKey` or `EnvelopeTampered` unless this ring opens an envelope of `seal_canary`."""
        table, column, row_key = _CANARY_PLACE
        if self.open(envelope, table=table, column=column, row_key=row_key) != _CANARY:
            raise _tampered(table, column)

    def __repr__(self) -> str:
        return f"KeyRing(key_ids={self.key_ids!r})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a KeyRing cannot be pickled or copied: it holds keys; make it where it is used")


def is_guessed_key(key: bytes) -> bool:
    """Whether a key is one that somebody typed: one byte or some bytes over and over, a sequence, or text, padded or not.

    Of 32 random bytes fewer than one in 10**13 is taken for such a key.
    """
    repeated = any(key == (key[:length] * len(key))[: len(key)] for length in range(1, _KEY_BYTES // 2 + 1))
    sequence = len({(after - before) % 256 for before, after in pairwise(key)}) == 1
    text = key.rstrip(b"\0\n")
    return repeated or sequence or len(set(key)) <= _FEW_BYTES or all(byte in _TYPED for byte in text)


def refuse_guessed_keys(ring: KeyRing, environment: Environment) -> None:
    """Raise `InvalidKey` where money is real and the active key is one that anybody could guess.

    An older key of that kind may stay in the ring, to open what it sealed until that is sealed anew; the doctor names it.
    """
    if environment in ("staging", "production") and ring.active_id in ring.guessed_ids:
        raise InvalidKey(
            f"the key {ring.active_id!r} is a pattern or a text that can be guessed, which {environment} refuses",
            hint="Put a random one of its own id first in DATABASE__ENCRYPTION_KEYS: openssl rand -base64 32. The old one"
            " stays behind it until nothing is sealed by it.",
        )


def _entries(text: str) -> list[str]:
    """What stands between the commas and the ends of lines; a comma may stand before the end of a line that others follow."""
    lines = [line for raw in text.splitlines() if (line := raw.partition("#")[0].strip())]
    if not lines:
        raise InvalidKey("there is no key")
    return ",".join([*(line.removesuffix(",") for line in lines[:-1]), lines[-1]]).split(",")


def _decoded(key: str) -> bytes | None:
    """None of what is not base64: its error, which would hang on ours, has the key in its frames."""
    try:
        return base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        return None


def _check_key(key_id: object, key: object) -> None:
    if not isinstance(key_id, str) or _KEY_ID.fullmatch(key_id) is None:
        raise InvalidKey("a key's id is 1 to 32 letters, digits, dots, dashes and underscores")
    if not isinstance(key, bytes) or len(key) != _KEY_BYTES:
        raise InvalidKey(f"the key {key_id!r} is not {_KEY_BYTES} bytes")


def _as_bytes(value: object, column: str) -> bytes:
    if isinstance(value, str):
        # Not by the error of encoding it, which would hang on ours and holds the whole of it.
        if _SURROGATE.search(value) is not None:
            raise InvalidInput("the secret holds a lone surrogate, which is not text", column=column)
        value = value.encode()
    if not isinstance(value, bytes):
        raise InvalidInput(f"a secret is bytes or str, not {type(value).__name__}", column=column)
    if len(value) > MAX_SECRET_BYTES:
        raise InvalidInput(f"the secret is longer than {MAX_SECRET_BYTES} bytes", column=column)
    return value


def _header(key_id: str) -> bytes:
    return bytes((_VERSION, len(key_id))) + key_id.encode()


def _associated_data(key_id: str, table: str, column: str, row_key: object) -> bytes:
    if not isinstance(row_key, str) or not row_key:
        raise InvalidInput("the row key that seals a secret is a text that is not empty", table=table, column=column)
    try:
        parts = [bytes((_VERSION,)), *(part.encode() for part in (key_id, table, column, row_key))]
    except UnicodeEncodeError:
        raise InvalidInput("the row key holds a lone surrogate", table=table, column=column) from None
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _split(envelope: object, table: str | None, column: str | None) -> tuple[str, bytes, bytes]:
    """Key id, nonce and ciphertext; raises `EnvelopeTampered` unless the frame is whole."""
    if not isinstance(envelope, bytes) or len(envelope) < 2 or envelope[0] != _VERSION:
        raise _tampered(table, column)
    nonce_at = 2 + envelope[1]
    sealed_at = nonce_at + _NONCE_BYTES
    key_id = envelope[2:nonce_at].decode("ascii", "replace")
    if _KEY_ID.fullmatch(key_id) is None or len(envelope) < sealed_at + _TAG_BYTES:
        raise _tampered(table, column)
    return key_id, envelope[nonce_at:sealed_at], envelope[sealed_at:]


def _tampered(table: str | None, column: str | None) -> EnvelopeTampered:
    return EnvelopeTampered("the envelope is damaged, or was sealed for another row", table=table, column=column)
