"""`panda keys ...`: the keys that seal brokers' credentials."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.cli._command import command
from core.cli._keys_ring import SETTING, ring_of
from core.cli._output import Output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from core.trading.sessions import EnvelopeFault, RotationReport, VerifyReport

__all__ = ["register"]

KeyId = Annotated[str | None, typer.Option("--id", help="The key's id; else of today, such as k2026-11-30.")]
File = Annotated[
    Path | None, typer.Option("--file", dir_okay=False, help="Put it into this file, before the keys that are there.")
]
Deep = Annotated[bool, typer.Option("--deep", help="Open every envelope, not the canaries alone.")]
Batch = Annotated[int, typer.Option("--batch", min=1, max=10_000, help="Rows in a transaction.")]
Pause = Annotated[float, typer.Option("--pause", metavar="SECONDS", min=0, max=60, help="Between two transactions.")]
Wait = Annotated[float, typer.Option("--wait", metavar="SECONDS", min=0, help="For rows that others hold.")]

_HELP = "The keys that seal brokers' tokens: make, verify, rotate."
_SHOWN = 10


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(help=_HELP, no_args_is_help=True)
    for name, function in {"generate": generate, "verify": verify, "rotate": rotate}.items():
        group.command(name)(command(function))
    app.add_typer(group, name="keys")


def generate(out: Output, *, key_id: KeyId = None, file: File = None) -> None:
    """Make a new key. With --file it goes there, readable by the owner alone, and is not shown.

    It stands before the keys of the file, so that it is the one that seals; those still open.
    """
    from datetime import UTC, datetime

    from core.cli._keys_file import put_first
    from core.database.encryption import KeyRing

    chosen = key_id if key_id is not None else f"k{datetime.now(UTC):%Y-%m-%d}"
    new = f"{chosen}:{KeyRing.generate_key()}"
    KeyRing.parse(new)
    if file is None:
        out.data({"id": chosen, "key": new})
        out.raw(new)
        out.note(f"keep it safe; {SETTING} takes it before the others: new,old")
        return
    ids = put_first(file, new)
    out.data({"id": chosen, "file": str(file), "ids": list(ids)})
    out.line(f"{file}: {', '.join(ids)}; {ids[0]} seals")
    out.note(f"{SETTING}_FILE={file}")


def verify(out: Output, *, deep: Deep = False) -> int | None:
    """Hold the configured keys against what has been sealed.

    Exit code 1 if something does not open: a wrong or a missing key, a damaged envelope or another row's.
    """
    from core.cli._database import connected, run, settings_in_force
    from core.trading import sessions

    settings = settings_in_force()
    ring = ring_of(settings)

    async def work() -> "VerifyReport":
        async with connected(settings, out, verify=True) as manager:
            with out.status("Opening what is stored" if deep else "Looking at the canaries"):
                return await sessions.verify(manager, ring, deep=deep)

    report = run(work())
    check = report.ring
    states = {name: list(getattr(check, name)) for name in ("right", "wrong", "missing", "unused", "retired")}
    envelopes = dict(report.envelopes)
    faults = _as_json(report.faults)
    out.data(
        {"active": ring.active_id, **states, "envelopes": envelopes, "opened": report.opened, "faults": faults,
         "whole": report.is_whole}
    )  # fmt: skip
    for key_id in dict.fromkeys([*ring.key_ids, *envelopes, *check.missing, *check.retired]):
        state = next((name for name, ids in states.items() if key_id in ids), "missing")
        seals = "; seals" if key_id == ring.active_id else ""
        out.line(f"{key_id}: {_WORDS[state]}, {_envelopes(envelopes.get(key_id, 0))}{seals}")
    if report.opened is not None:
        out.line(f"{_envelopes(report.opened)} opened, {len(report.faults):,} did not open")
    _tell_faults(out, report.faults)
    if check.wrong:
        out.warn(
            f"put the key that was used before under {check.wrong[0]} again, and a new one under a new id before it"
        )
    return None if report.is_whole else 1


def rotate(out: Output, *, batch: Batch = 500, pause: Pause = 0, wait: Wait = 60) -> int | None:
    """Seal anew, with the first key, what the others have sealed.

    Everybody goes on meanwhile. Interrupted or killed, the same again finishes it. First give all processes the new key,
    before the old ones; then rotate; then take the old ones away. Exit code 1 if something did not open, 5 if rows were
    locked by others all the while.
    """
    import asyncio

    from core.cli._database import connected, run, settings_in_force
    from core.cli._failure import LOCKED
    from core.trading import sessions

    settings = settings_in_force()
    ring = ring_of(settings)

    async def work() -> "RotationReport":
        async with connected(settings, out, verify=True) as manager:
            try:
                with _progress(out) as progress:
                    return await sessions.rotate(
                        manager, ring, batch=batch, pause=pause, patience=wait, progress=progress
                    )
            except asyncio.CancelledError:  # Ctrl-C
                out.note("what is sealed anew stays so; the same again does the rest")
                raise

    report = run(work())
    rate = report.rotated / max(report.seconds, 1e-9)
    out.data(
        {"key_id": report.key_id, "rotated": report.rotated, "faults": _as_json(report.faults),
         "busy": list(report.busy), "batches": report.batches, "seconds": report.seconds, "whole": report.is_whole}
    )  # fmt: skip
    pace = f" in {report.seconds:.1f} s, {rate:,.0f} a second" if report.rotated else ""
    out.line(f"{_envelopes(report.rotated)} sealed anew by {report.key_id}{pace}")
    _tell_faults(out, report.faults)
    if report.busy:
        out.warn(f"{len(report.busy):,} were locked by others all the while; run it again")
    elif report.is_whole:
        out.note(f"nothing else is sealed by another key than {report.key_id}")
    if report.faults:
        return 1
    return LOCKED if report.busy else None


_WORDS = {
    "right": "the right key",
    "wrong": "NOT the key that has sealed here",
    "missing": "MISSING from the ring",
    "unused": "has sealed nothing here yet",
    "retired": "not in the ring, and needed no more",
}


def _tell_faults(out: Output, faults: "Sequence[EnvelopeFault]") -> None:
    for fault in faults[:_SHOWN]:
        out.line(f"{fault.session_id}: {fault.error.message}")
    if len(faults) > _SHOWN:
        out.note(f"and {len(faults) - _SHOWN:,} more; --json lists all")


def _as_json(faults: "Sequence[EnvelopeFault]") -> list[dict[str, Any]]:
    return [
        {"session_id": fault.session_id, "error": type(fault.error).__name__, "message": fault.error.message}
        for fault in faults
    ]


def _envelopes(count: int) -> str:
    return f"{count:,} {'envelope' if count == 1 else 'envelopes'}"


@contextmanager
def _progress(out: Output) -> "Generator[Callable[[int, int], object] | None]":
    """How many are done, on a terminal."""
    if out.quiet or not out.stderr.is_terminal:
        yield None
        return
    with out.stderr.status("Looking for what other keys have sealed") as status:
        yield lambda done, total: status.update(f"Sealing anew: {done:,} of {total:,}")
