"""What a check says: values, and the words in them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Status = Literal["ok", "info", "warning", "error", "skipped"]

_ORDER: tuple[Status, ...] = ("skipped", "ok", "info", "warning", "error")
_SIZES = ("B", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. No text holds a secret."""

    check: str
    """The check's name, such as `clock`; a server of several hosts has a finding `server` for each."""
    status: Status
    """`skipped` where it could not be examined; `info` asks for nothing."""
    message: str
    mend: str | None = None
    """What to do: a command, SQL or a setting, one to a line."""
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The figures behind the message, of the types that JSON knows."""

    def to_json(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "status": self.status,
            "message": self.message,
            "mend": self.mend,
            "details": dict(self.details),
        }


class Note(NamedTuple):
    """One trouble among those that a check looks for."""

    status: Status
    message: str
    mend: str | None = None


def summed(check: str, notes: Sequence[Note], *, fine: str, details: Mapping[str, Any] | None = None) -> Finding:
    """One finding of all troubles, as bad as the worst of them, the worst first; `fine` says what holds without any."""
    if not notes:
        return Finding(check, "ok", fine, None, details or {})
    ordered = sorted(notes, key=lambda note: -_ORDER.index(note.status))
    mends = list(dict.fromkeys(note.mend for note in ordered if note.mend))
    return Finding(
        check,
        ordered[0].status,
        "; ".join(note.message for note in ordered),
        "\n".join(mends) or None,
        details or {},
    )


def size_of(count: float) -> str:
    """Bytes as PostgreSQL writes them, in steps of 1,024: 8.2 GB."""
    unit = 0
    while abs(count) >= 1024 and unit < len(_SIZES) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} {_SIZES[unit]}" if unit == 0 or count >= 100 else f"{count:.1f} {_SIZES[unit]}"


def span_of(seconds: float) -> str:
    """A duration to be read: 250 ms, 12.5 s, 4 min, 3 h, 9 days."""
    for limit, divisor, unit in ((1, 0.001, "ms"), (120, 1, "s"), (7_200, 60, "min"), (172_800, 3_600, "h")):
        if abs(seconds) < limit:
            return f"{seconds / divisor:.3g} {unit}"
    return f"{seconds / 86_400:.0f} days"


def listed(names: Iterable[str], most: int = 3) -> str:
    """Names in a row, the first few of many: a, b, c and 4 more."""
    names = list(names)
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
