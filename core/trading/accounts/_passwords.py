"""Hashing and verifying passwords, in threads, a few at once."""

import asyncio
import functools
import importlib.util
import os
import re
import time
import unicodedata
from collections import defaultdict, deque
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pwdlib import PasswordHash
from pwdlib.hashers import HasherProtocol
from pwdlib.hashers.argon2 import Argon2Hasher

from core.database.errors import InvalidInput
from core.database.models import User
from core.database.types import checked_text

MIN_PASSWORD = 8
MAX_PASSWORD = 1_024
"""Lengths in characters."""

_BCRYPT_MAX_BYTES = 72
_AT_ONCE = min(4, os.cpu_count() or 1)
"""Hashes in the making, whatever the number of tasks and event loops: each takes 64 MiB and four lanes."""

T = TypeVar("T")


def _hashers() -> tuple[HasherProtocol, ...]:
    """The one that hashes, then those that only verify."""
    if importlib.util.find_spec("bcrypt") is None:
        return (Argon2Hasher(),)
    from pwdlib.hashers.bcrypt import BcryptHasher

    return Argon2Hasher(), BcryptHasher()


_hasher = PasswordHash(_hashers())

_KIND = r"\$2[abxy]?\$(?:0[4-9]|1[0-4])\$|\$argon2[a-z]{1,2}\$v=\d+\$m=\d{1,6},t=\d,p=\d{1,2}\$"
"""What hashes of one cost begin with. One that costs more than these could be made to do keeps nobody else waiting."""
_taken: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=32))
"""Seconds that the last verifications took, by the kind of the hash."""


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="panda-password")


if hasattr(os, "register_at_fork"):  # the child has the pool without its threads
    os.register_at_fork(after_in_child=_threads.cache_clear)


async def hash_password(password: str) -> str:
    """The hash to store. Raises `InvalidInput`, which names `password`."""
    return await _in_thread(_hasher.hash, checked_password(password))


async def verify(password: str, hashed: str | None, *, outdated: Collection[str] = ()) -> tuple[bool, str | None]:
    """Whether they match, and the hash to store instead of one with older parameters. Without a hash nothing matches.

    A no takes as long without a hash, or with one that cannot be verified here, as with one of today's parameters. With
    `outdated`, the kinds of other hashes that there are (`measured`), every no takes as long as with the slowest of all.
    """
    matches, renewed, seconds = await _in_thread(_verify, password, hashed)
    if outdated and not matches:
        await asyncio.sleep(max(map(_usual, (_todays_kind(), *outdated))) - seconds)
    return matches, renewed


async def todays_kind() -> str:
    """That of what `hash_password` makes."""
    return await _in_thread(_todays_kind)


async def measured(kinds: Collection[str]) -> tuple[str, ...]:
    """Those of the kinds that can be verified here, and are not today's; how long they take is known from then on."""
    return await _in_thread(_measured, kinds)


async def verify_password(user: User, password: str) -> bool:
    """Whether it is this user's password. Says nothing about whether the user may log in, and counts and records nothing."""
    return (await verify(password, user.hashed_password))[0]


def can_verify(hashed: str) -> bool:
    """Whether a stored hash is of a kind that passwords can be held against here."""
    return any(hasher.identify(hashed) for hasher in _hasher.hashers)


def checked_password(password: str) -> str:
    """The password as it is hashed. Raises `InvalidInput`, which never repeats it."""
    try:
        plain = unicodedata.normalize("NFC", checked_text(password, MAX_PASSWORD))
    except InvalidInput as fault:
        raise InvalidInput(f"password: {fault.message}", column="password") from None
    if len(plain) < MIN_PASSWORD:
        raise InvalidInput(f"password: must have at least {MIN_PASSWORD} characters", column="password")
    return plain


async def _in_thread(work: Callable[..., T], *arguments: object) -> T:
    return await asyncio.get_running_loop().run_in_executor(_threads(), work, *arguments)


def _verify(password: str, hashed: str | None) -> tuple[bool, str | None, float]:
    """And the seconds that it took."""
    try:
        plain = checked_password(password)
    except InvalidInput:
        plain, hashed = "", None
    nobody = _nobody()  # made by whoever comes first, known or not
    if hashed is not None and _is_bcrypt(hashed):
        plain = password  # the original hashed it as it was typed
        # More bytes than bcrypt takes in are an error to its package; the libraries of old cut them off.
        hashed = None if len(plain.encode()) > _BCRYPT_MAX_BYTES else hashed
    if hashed is None or not can_verify(hashed):
        return False, None, _timed(plain, nobody)[1]
    matches, seconds = _timed(plain, hashed)
    if matches and (_is_bcrypt(hashed) or _hasher.current_hasher.check_needs_rehash(hashed)):
        return True, _hasher.hash(checked_password(password)), seconds
    return matches, None, seconds


def _timed(plain: str, hashed: str) -> tuple[bool, float]:
    start = time.perf_counter()
    try:
        matches = _hasher.verify(plain, hashed)
    except ValueError:  # of bcrypt, for a hash that only looks like one of its own
        return _timed(plain, _nobody())
    seconds = time.perf_counter() - start
    _taken[kind_of(hashed)].append(seconds)
    return matches, seconds


def _measured(kinds: Collection[str]) -> tuple[str, ...]:
    found = tuple(kind for kind in sorted(kinds) if kind != _todays_kind() and can_verify(_filled(kind)))
    for kind in (_todays_kind(), *found) if found else ():
        _timed("a password that nobody has", _filled(kind))
    return found


def _usual(kind: str) -> float:
    """What nine in ten do not exceed by much."""
    taken = sorted(_taken[kind])
    return 1.1 * taken[len(taken) * 9 // 10] if taken else 0.0


def kind_of(hashed: str) -> str:
    """What says how much it costs to verify."""
    found = re.match(_KIND, hashed)
    return found[0] if found else ""


def _todays_kind() -> str:
    return kind_of(_nobody())


def _filled(kind: str) -> str:
    """A hash of that kind which is nobody's."""
    return kind + ("." * 53 if _is_bcrypt(kind) else "A" * 22 + "$" + "A" * 43)


def _is_bcrypt(hashed: str) -> bool:
    return hashed.startswith("$2")


@functools.cache
def _nobody() -> str:
    """A hash that stands for the password of a user who does not exist."""
    return _hasher.hash("a password that nobody has")
