"""Users: register and authenticate.

Passwords are hashed with Argon2id (pwdlib's recommended parameters: 64 MiB, 3 passes, 4 lanes), in a thread, since one hash
takes tens of milliseconds. They are brought to Unicode NFC first, so that the same password typed on two keyboards is the same.

A bcrypt hash, as the original Alpha Panda made them, is verified where the package bcrypt is installed, and replaced at the
first login; elsewhere, like any hash of an unknown kind, it matches no password.
"""

import asyncio
import functools
import importlib.util
import unicodedata

from pwdlib import PasswordHash
from pwdlib.hashers import HasherProtocol
from pwdlib.hashers.argon2 import Argon2Hasher
from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from core.database.connection import DatabaseManager
from core.database.errors import InvalidInput
from core.database.models import User
from core.database.records import USERNAME_RULE, UserCreate
from core.database.types import checked_text, invalid_input

__all__ = ["MAX_PASSWORD", "MIN_PASSWORD", "MIN_USERNAME", "authenticate", "can_verify", "register", "verify_password"]

MIN_USERNAME = 3
MIN_PASSWORD = 8
MAX_PASSWORD = 1_024
"""Lengths in characters; a user name's longest is that of its column."""

_BCRYPT_MAX_BYTES = 72


def _hashers() -> tuple[HasherProtocol, ...]:
    """The one that hashes, then those that only verify."""
    if importlib.util.find_spec("bcrypt") is None:
        return (Argon2Hasher(),)
    from pwdlib.hashers.bcrypt import BcryptHasher

    return Argon2Hasher(), BcryptHasher()


_hasher = PasswordHash(_hashers())


async def register(session: AsyncSession, username: str, password: str) -> User:
    """Add a user; the caller commits.

    Raises `InvalidInput` naming `username` or `password`, and `UniqueViolation` if the name is taken, in whatever case; the
    caller's transaction goes on after that.
    """
    _check_username(username)
    hashed = await asyncio.to_thread(_hasher.hash, _checked_password(password))
    try:
        record = UserCreate(username=username, hashed_password=hashed)
    except ValidationError as fault:
        raise invalid_input(fault) from None
    user = User(**record.columns())
    async with session.begin_nested():
        session.add(user)
        await session.flush()
    return user


async def authenticate(manager: DatabaseManager, username: str, password: str) -> User | None:
    """The active user of that name and password, else None; the name's case does not matter.

    An unknown name costs as much as a wrong password. A hash made with older parameters is replaced, in a transaction of its
    own.
    """
    user = await _find(manager, username)
    known = user is not None and user.is_active
    hashed = user.hashed_password if known and user is not None else None
    matches, renewed = await asyncio.to_thread(_verify, password, hashed)
    if not matches or user is None:
        return None
    if renewed is not None:
        async with manager.transaction() as session:
            stored = await session.get(User, user.id, with_for_update=True)
            if stored is not None and stored.hashed_password == hashed:
                stored.hashed_password = renewed
                user = stored
    return user


async def verify_password(user: User, password: str) -> bool:
    """Whether it is this user's password. Says nothing about whether the user may log in."""
    return (await asyncio.to_thread(_verify, password, user.hashed_password))[0]


def can_verify(hashed: str) -> bool:
    """Whether a stored hash is of a kind that passwords can be held against here."""
    return any(hasher.identify(hashed) for hasher in _hasher.hashers)


async def _find(manager: DatabaseManager, username: str) -> User | None:
    try:
        _check_username(username)
    except InvalidInput:
        return None
    async with manager.get_session(read_only=True) as session:
        return await session.scalar(select(User).where(func.lower(User.username) == func.lower(username)))


def _verify(password: str, hashed: str | None) -> tuple[bool, str | None]:
    """Whether they match, and the hash to store instead. Without a hash the work is done all the same."""
    try:
        plain = _checked_password(password)
    except InvalidInput:
        plain, hashed = "", None
    nobody = _nobody()  # made by whoever comes first, known or not
    # More bytes than bcrypt takes in are an error to its package; the libraries of old cut them off.
    too_long = hashed is not None and hashed.startswith("$2") and len(plain.encode()) > _BCRYPT_MAX_BYTES
    if hashed is None or too_long or not can_verify(hashed):
        _hasher.verify(plain, nobody)
        return False, None
    return _hasher.verify_and_update(plain, hashed)


@functools.cache
def _nobody() -> str:
    """A hash that stands for the password of a user who does not exist."""
    return _hasher.hash("a password that nobody has")


def _check_username(username: str) -> None:
    try:
        if len(USERNAME_RULE(username)) < MIN_USERNAME:
            raise InvalidInput(f"must have at least {MIN_USERNAME} characters")
    except InvalidInput as fault:
        raise InvalidInput(f"username: {fault.message}", column="username") from None


def _checked_password(password: str) -> str:
    try:
        plain = unicodedata.normalize("NFC", checked_text(password, MAX_PASSWORD))
    except InvalidInput as fault:
        raise InvalidInput(f"password: {fault.message}", column="password") from None
    if len(plain) < MIN_PASSWORD:
        raise InvalidInput(f"password: must have at least {MIN_PASSWORD} characters", column="password")
    return plain
