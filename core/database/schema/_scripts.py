"""What the migration files say about themselves, read as text: importing Alembic would cost each start a tenth of a second."""

import ast
import datetime as dt
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from core.config.options import Timeouts
from core.database.errors import SchemaError, SchemaUnknownRevision

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"

_ASSIGNED = re.compile(
    r"^(revision|down_revision|lock_timeout|statement_timeout)(?:\s*:[^=\n]+)?\s*=\s*(\S.*)$", re.MULTILINE
)
_LONGEST = 86_400  # seconds, as for every limit in Timeouts
_DOCSTRING = re.compile(r'\s*(?:#.*\n\s*)*[rR]?"""(.*?)(?:"""|\n)')
_DATED = re.compile(r"(\d{4})_(\d{2})_(\d{2})_")


@dataclass(frozen=True, slots=True)
class Revision:
    """One migration file."""

    revision: str
    down_revision: str | None
    """The revision before it; None for the first."""
    message: str
    """The first line of the file's docstring."""
    date: dt.date | None
    """From the file's name; None where the name has none."""
    file: str
    """The file's name without its folder."""
    lock_timeout: float | None = None
    """Seconds that one of its statements may wait for a lock; 0 is no limit. None: the file declares none."""
    statement_timeout: float | None = None
    """Seconds that one of its statements may take; 0 is no limit. None: the file declares none."""

    def limits(self, timeouts: Timeouts) -> tuple[float, float]:
        """The lock and the statement limit in force, in seconds: the file's own, else `lock` and `migration`."""
        return (
            timeouts.lock if self.lock_timeout is None else self.lock_timeout,
            timeouts.migration if self.statement_timeout is None else self.statement_timeout,
        )


@dataclass(frozen=True, slots=True)
class Scripts:
    """The migration files of one folder."""

    folder: Path
    revisions: dict[str, Revision]
    """By revision id."""
    heads: tuple[str, ...]
    """The revisions that no other follows, sorted; more than one is a fault."""

    @property
    def head(self) -> str:
        return ", ".join(self.heads)

    def line(self, upper: str | None) -> tuple[Revision, ...]:
        """The revisions from the first to `upper`, oldest first; none for None."""
        found: list[Revision] = []
        while upper is not None and len(found) <= len(self.revisions):
            found.append(self.revisions[upper])
            upper = self.revisions[upper].down_revision
        return tuple(reversed(found))

    def pending(self, current: str | None) -> tuple[Revision, ...]:
        """What leads from `current`, a revision of this line or None, to the head, oldest first."""
        return self.line(self.heads[0])[len(self.line(current)) :]

    def resolve(self, target: str, *, current: str | None) -> str | None:
        """The revision that `target` means: `head`, `base` (None), a revision id, or steps from `current` (`+1`, `-1`).

        Raises `SchemaUnknownRevision`.
        """
        line: list[str | None] = [None, *(item.revision for item in self.line(self.heads[0]))]
        if target == "head":
            return line[-1]
        if target == "base":
            return None
        if re.fullmatch(r"[+-]\d{1,4}", target):
            place = line.index(current) + int(target)
            if 0 <= place < len(line):
                return line[place]
            raise SchemaUnknownRevision(
                f"{target} leads past the {'head' if place > 0 else 'base'} from {current or 'base'}",
                hint="`panda migrate history` lists the revisions.",
            )
        if target in line:
            return target
        raise SchemaUnknownRevision(
            f"there is no revision {target!r}", hint="`panda migrate history` lists the revisions."
        )


def read(versions: Path | None = None) -> Scripts:
    """The files in `versions`, by default this project's. Kept for the process until the folder changes.

    Raises `SchemaError` for a folder whose files do not form a history.
    """
    folder = MIGRATIONS / "versions" if versions is None else versions
    return _read(folder, folder.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _read(folder: Path, _changed: int) -> Scripts:
    files = sorted(path for path in folder.glob("*.py") if not path.name.startswith((".", "__")))
    found = [_revision(path) for path in files]
    revisions = {item.revision: item for item in found}
    if len(revisions) < len(found):
        raise _broken(folder, "two files have the same revision id")
    followed = {item.down_revision for item in found}
    if not followed - {None} <= revisions.keys():
        raise _broken(
            folder, f"a file follows {min(followed - {None} - revisions.keys(), key=str)}, which is not there"
        )
    scripts = Scripts(folder, revisions, tuple(sorted(revisions.keys() - followed)))
    if not scripts.heads:
        raise _broken(folder, "there is none, or they form a circle")
    if any(scripts.line(head)[0].down_revision is not None for head in scripts.heads):
        raise _broken(folder, "they form a circle")
    return scripts


def _revision(path: Path) -> Revision:
    text = path.read_text(encoding="utf-8")
    said = {name: _literal(path, name, value) for name, value in _ASSIGNED.findall(text)}
    revision, down = said.get("revision"), said.get("down_revision")
    if not isinstance(revision, str) or not isinstance(down, str | None):
        raise _broken(path.parent, f"{path.name} must name one revision and at most one before it")
    doc, dated = _DOCSTRING.match(text), _DATED.match(path.name)
    return Revision(
        revision=revision,
        down_revision=down,
        message=doc.group(1).strip() if doc else "",
        date=dt.date(*map(int, dated.groups())) if dated else None,
        file=path.name,
        lock_timeout=_seconds(path, "lock_timeout", said),
        statement_timeout=_seconds(path, "statement_timeout", said),
    )


def _literal(path: Path, name: str, source: str) -> object:
    try:
        return ast.literal_eval(source)
    except (ValueError, SyntaxError):
        raise _broken(path.parent, f"{path.name} must give {name} as a plain value on one line") from None


def _seconds(path: Path, name: str, said: dict[str, object]) -> float | None:
    value = said.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LONGEST:
        raise _broken(path.parent, f"{path.name} must give {name} in seconds, 0 to {_LONGEST}")
    return float(value)


def _broken(folder: Path, what: str) -> SchemaError:
    return SchemaError(
        f"the migration files in {folder} are no history: {what}",
        hint="Reinstall the package alpha-panda-core; `panda migrate history` then lists its migrations.",
    )
