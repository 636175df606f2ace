"""The file: a plain tar archive of the dump, the manifest and their checksums.

    alpha-panda-backup/database.dump   pg_dump's custom format
    alpha-panda-backup/manifest.json
    alpha-panda-backup/SHA256SUMS      for `sha256sum -c`

Who has nothing but tar and pg_restore can get at everything. Every byte around the dump follows from the manifest, so that
one that is altered anywhere is found.
"""

import hashlib
import os
import stat
import tarfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.database.backup._manifest import Manifest, parsed
from core.database.errors import BackupDamaged, BackupError, BackupRefused

FOLDER = "alpha-panda-backup"
DUMP, MANIFEST, SUMS = "database.dump", "manifest.json", "SHA256SUMS"
BLOCK = 512
_END = bytes(2 * BLOCK)
_CHUNK = 1024 * 1024
_LONGEST = 64 * 1024 * 1024  # of the manifest and the checksums, which are held in memory


def header(name: str, size: int, mtime: int) -> bytes:
    """The tar header of a member; always the same for the same arguments."""
    member = tarfile.TarInfo(f"{FOLDER}/{name}")
    member.size, member.mtime, member.mode = size, mtime, 0o600
    return member.tobuf(tarfile.GNU_FORMAT)


def tail(dump_bytes: int, dump_sha256: str, manifest: bytes, mtime: int) -> bytes:
    """All that follows the dump."""
    sums = f"{dump_sha256}  {DUMP}\n{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()
    members = ((MANIFEST, manifest), (SUMS, sums))
    return b"".join(
        (
            _padding(dump_bytes),
            *(header(name, len(body), mtime) + body + _padding(len(body)) for name, body in members),
            _END,
        )
    )


@dataclass(frozen=True, slots=True)
class OpenBackup:
    """A backup file whose structure and manifest are in order; the dump itself is checked by `check_dump`."""

    path: Path
    descriptor: int
    manifest: Manifest
    size: int
    """Bytes of the whole file."""
    private: bool
    """Whether nobody but its owner may read it."""

    def check_dump(self, progress: Callable[[int], None]) -> None:
        """Read the whole dump and raise BackupDamaged unless it is what was written; `progress` is told the bytes read."""
        digest, done = hashlib.sha256(), 0
        while done < self.manifest.dump_bytes:
            chunk = os.pread(self.descriptor, min(_CHUNK, self.manifest.dump_bytes - done), BLOCK + done)
            if not chunk:
                raise BackupDamaged(f"{self.path} became shorter while it was read")
            digest.update(chunk)
            done += len(chunk)
            progress(done)
        if digest.hexdigest() != self.manifest.dump_sha256:
            raise BackupDamaged(f"{self.path} is damaged: its dump is not the one that was written (SHA-256 differs)")


@contextmanager
def opened_backup(path: Path) -> Generator[OpenBackup]:
    """Open a backup and check all of it but the dump's bytes. Raises BackupDamaged, or BackupRefused if it cannot be read."""
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError:  # a NUL, or a lone surrogate that stands for no byte
        raise BackupRefused(f"{str(path)!r} is no path", hint="Name the backup file.") from None
    if not regular:
        what = "a folder" if path.is_dir() else "no regular file"
        raise BackupRefused(f"{path} is {what}", hint="Name the backup file.")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        yield _checked(path, descriptor)
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise BackupError(f"{path} cannot be read: {error.strerror}") from error
        raise
    finally:
        os.close(descriptor)


def _unreadable(path: Path, error: OSError) -> BackupRefused:
    return BackupRefused(f"{path} cannot be read: {error.strerror}", hint="Check the name and its rights.")


def _checked(path: Path, descriptor: int) -> OpenBackup:
    state = os.fstat(descriptor)
    first = os.pread(descriptor, BLOCK, 0)
    dump_bytes, mtime = _member(path, first, DUMP)
    place = BLOCK + dump_bytes + len(_padding(dump_bytes))
    if state.st_size < place + BLOCK:
        raise _cut_off(path, state.st_size)
    length, _ = _member(path, os.pread(descriptor, BLOCK, place), MANIFEST)
    if length > _LONGEST:
        raise BackupDamaged(f"{path} is damaged: its manifest would be of {length} bytes")
    text = os.pread(descriptor, length, place + BLOCK)
    if len(text) < length:
        raise _cut_off(path, state.st_size)
    rest = os.pread(descriptor, 2 * _LONGEST, BLOCK + dump_bytes)
    manifest = _manifest(path, text, rest)
    expected = tail(dump_bytes, manifest.dump_sha256, text, mtime)
    if len(rest) < len(expected) and expected.startswith(rest):
        raise _cut_off(path, state.st_size)
    if rest != expected or first != header(DUMP, dump_bytes, mtime) or manifest.dump_bytes != dump_bytes:
        raise BackupDamaged(f"{path} is damaged: what surrounds the dump is not what was written")
    return OpenBackup(path, descriptor, manifest, state.st_size, private=not state.st_mode & 0o077)


def _manifest(path: Path, text: bytes, rest: bytes) -> Manifest:
    """Parsed, once its own checksum has been found in the file: damage must not be taken for another format."""
    if hashlib.sha256(text).hexdigest().encode() not in rest:
        whole = rest.endswith(_END)
        raise BackupDamaged(
            f"{path} is {'damaged: its manifest is not the one that was written' if whole else 'cut off'}"
        )
    return parsed(text)


def _member(path: Path, block: bytes, name: str) -> tuple[int, int]:
    """Size and time of the member that the header describes; it must be the one of that name."""
    try:
        found = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError):  # too short a block is one too
        found = None
    if found is not None and found.name == f"{FOLDER}/{name}" and found.size >= 0:
        return found.size, int(found.mtime)
    if name == DUMP:
        raise _something_else(path, block)
    raise BackupDamaged(f"{path} is damaged: {name} is not where it should be")


def _something_else(path: Path, block: bytes) -> BackupDamaged:
    """What the file is, where its first bytes tell."""
    hint = "Name a file that `panda backup` made."
    if not block:
        return BackupDamaged(f"{path} is empty")
    if block.startswith(FOLDER.encode()) or FOLDER.encode().startswith(block):
        return BackupDamaged(f"{path} is {'cut off' if len(block) < BLOCK else 'damaged'} in its first bytes")
    if block.startswith(b"PGDMP"):
        return BackupDamaged(
            f"{path} is a plain dump of pg_dump, which says nothing about what it must hold",
            hint="Restore it into an empty database with pg_restore --single-transaction, then run `panda migrate check`.",
        )
    if block.lstrip(b"-\n ").startswith(b"PostgreSQL database"):
        return BackupDamaged(
            f"{path} is a plain SQL script of pg_dump",
            hint="Restore it into an empty database with psql --single-transaction, then run `panda migrate check`.",
        )
    if block.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")):
        return BackupDamaged(f"{path} is compressed by another program", hint="Decompress it first.")
    return BackupDamaged(f"{path} is not a backup of this project", hint=hint)


def _cut_off(path: Path, size: int) -> BackupDamaged:
    return BackupDamaged(f"{path} is cut off after {size} bytes")


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)
