"""What a backup says about itself, as it is written into the file."""

from datetime import datetime
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from core.database.errors import BackupDamaged

FORMAT = "alpha-panda-backup"
VERSION = 1
_STRICT = ConfigDict(extra="forbid", hide_input_in_errors=True)


@dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class TableDigest:
    """The rows of one table, partitions each for themselves.

    `digest` is 128 bits in hexadecimal: two halves of each row's SHA-256 added up, so that the order of rows is no part of
    it and a row that stands twice counts twice.
    """

    name: str
    """Schema and table, quoted where SQL needs it: public.users."""
    rows: int
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class SequenceValue:
    """Where a sequence stands."""

    name: str
    last_value: int
    is_called: bool
    """Whether `last_value` has been given out; if not it is the next one."""


@dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class Contents:
    """All rows and sequences of a database, in a form that can be compared; see `differences`."""

    tables: tuple[TableDigest, ...]
    sequences: tuple[SequenceValue, ...]

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables)


@dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class Manifest:
    """Where a backup comes from and what a restore must yield."""

    format: Literal["alpha-panda-backup"] = FORMAT
    format_version: Literal[1] = VERSION
    created_at: datetime
    """Aware, UTC; just before the snapshot was taken, to the second."""
    release: str
    """The version of this package that made it."""
    database: str
    system_identifier: str
    """Of the cluster; the same for all its databases and its standbys."""
    server_version: str
    server_version_num: int
    """As PostgreSQL counts: 150014 is 15.14."""
    dump_version: str
    """The version of the pg_dump that wrote the dump; pg_restore must be as new."""
    revision: str | None
    """Of the schema; None where the database recorded none."""
    roles: tuple[str, ...]
    """Roles that policies and privileges name, the owner's aside: they must exist where it is restored."""
    catalog: tuple[str, ...]
    """What stands in schema public, as `core.database.schema.catalog` says it on a server of this version; a line each."""
    contents: Contents
    dump_bytes: int
    dump_sha256: str

    @property
    def server_major(self) -> int:
        return self.server_version_num // 10_000


_MANIFEST = TypeAdapter(Manifest)


def written(manifest: Manifest) -> bytes:
    """As JSON for people and machines, in UTF-8."""
    return _MANIFEST.dump_json(manifest, indent=1) + b"\n"


def parsed(text: bytes) -> Manifest:
    """The manifest in those bytes. Raises BackupDamaged for anything else, and for a newer release's."""
    try:
        return _MANIFEST.validate_json(text)
    except ValidationError as error:
        places = {problem["loc"][:1] for problem in error.errors(include_input=False)}
        if ("format_version",) in places:
            raise BackupDamaged(
                "the backup has a format that this release does not know",
                hint="Read it with the release that made it, or upgrade this one (alpha-panda-core).",
            ) from None
        raise BackupDamaged("the backup's manifest is not one that this project writes") from None
