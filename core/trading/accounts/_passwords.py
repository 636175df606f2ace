"""Hashing and verifying passwords, in threads, a few at once."""

import asyncio
import functools
import importlib.util
import os
import random
import time
import unicodedata
from collections import deque
from collections.abc import Callable
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
_taken: deque[float] = deque(maxlen=32)
"""Seconds that the last verifications took, of hashes with the parameters of today."""


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="panda-password")


if hasattr(os, "register_at_fork"):  # the child has the pool without its threads
    os.register_at_fork(after_in_child=_threads.cache_clear)


async def hash_password(password: str) -> str:
    """The hash to store. Raises `InvalidInput`, which names `password`."""
    return await _in_thread(_hasher.hash, checked_password(password))


async def verify(password: str, hashed: str | None) -> tuple[bool, str | None]:
    """Whether they match, and the hash to store instead of one with older parameters. Without a hash nothing matches.

    It takes as long without a hash, or with one that cannot be verified here, as with one of today's parameters, and with
    one that is quicker. Only a slower one (bcrypt, as a rule) tells by its time that the user is there, until it is
    replaced at the first login.
    """
    return await _in_thread(_verify, password, hashed)


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


def _verify(password: str, hashed: str | None) -> tuple[bool, str | None]:
    try:
        plain = checked_password(password)
    except InvalidInput:
        plain, hashed = "", None
    nobody = _nobody()  # made by whoever comes first, known or not
    # More bytes than bcrypt takes in are an error to its package; the libraries of old cut them off.
    too_long = hashed is not None and hashed.startswith("$2") and len(plain.encode()) > _BCRYPT_MAX_BYTES
    if hashed is None or too_long or not can_verify(hashed):
        _timed(plain, nobody)
        return False, None
    if not _hasher.current_hasher.check_needs_rehash(hashed):
        return _timed(plain, hashed), None
    return _verify_outdated(plain, hashed, nobody)


def _verify_outdated(plain: str, hashed: str, nobody: str) -> tuple[bool, str | None]:
    """No quicker to say no than a hash of today would be."""
    start = time.perf_counter()
    matches, renewed = _hasher.verify_and_update(plain, hashed)
    if not matches:
        if not _taken:
            _timed(plain, nobody)
        usual = random.choice(_taken)  # noqa: S311 - so that the times are spread alike
        time.sleep(max(0.0, usual - (time.perf_counter() - start)))
    return matches, renewed


def _timed(plain: str, hashed: str) -> bool:
    start = time.perf_counter()
    matches = _hasher.verify(plain, hashed)
    _taken.append(time.perf_counter() - start)
    return matches


@functools.cache
def _nobody() -> str:
    """A hash that stands for the password of a user who does not exist."""
    return _hasher.hash("a password that nobody has")
