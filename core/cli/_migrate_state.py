"""`panda migrate check` and `panda migrate adopt`: what the database really is, and making it this project's."""

import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.cli._failure import FAILED, SCHEMA, USAGE, CommandError
from core.cli._output import Output

if TYPE_CHECKING:
    from core.config.settings import Settings
    from core.database.connection import DatabaseManager
    from core.database.encryption import KeyRing
    from core.database.schema import Adoption, Difference, Drift
    from core.trading.adoption import AdoptionReport

__all__ = ["adopt", "check"]

_WIDTH = 79
_SHOWN_ROUNDED = 12

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")]
Currency = Annotated[
    str, typer.Option("--currency", metavar="CODE", help="That of the original Alpha Panda's portfolios.")
]
DropOriginal = Annotated[
    bool, typer.Option("--drop-original", help="After an adoption: drop the original's tables for good.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def check(out: Output) -> int:
    """Compare the live schema with the migrations.

    Everything in the catalog, to the last constraint. Exit code 3 if it has drifted or is not at head. Reads the catalog only.
    """
    from core.cli._database import connected, run, settings_in_force
    from core.database import schema

    async def work() -> "Drift":
        async with connected(settings_in_force(), out) as manager:
            return await schema.drift(manager.engine)

    found = run(work())
    out.data(
        {
            "clean": found.clean,
            "status": found.state.status,
            "current": list(found.state.current),
            "head": found.state.head,
            "compared_with": found.compared_with,
            "drift": _differences(found.drift),
            "notes": _differences(found.notes),
        }
    )
    out.line(found.state.describe())
    if found.drift:
        count = f"{len(found.drift)} difference{'s' if len(found.drift) > 1 else ''}"
        out.line()
        out.line(f"{count} from revision {found.compared_with}:")
    elif found.state.current:
        out.line(f"Nothing in the catalog differs from revision {found.compared_with}.")
    _print_differences(out, found.differences)
    return 0 if found.clean else SCHEMA


def adopt(
    out: Output,
    dry_run: DryRun = False,
    currency: Currency = "INR",
    drop_original: DropOriginal = False,
    yes: Yes = False,
) -> int | None:
    """Take over a database that the migrations did not make.

    One made by create_all, or whose stamp is lost, is stamped with the revision whose schema it has. One of the original Alpha Panda is converted with its data, tokens sealed with DATABASE__ENCRYPTION_KEYS; its own tables stay in the schema alpha_panda_original. Else nothing is changed: exit code 3.
    """
    from core.cli._database import connected, run, settings_in_force
    from core.trading import adoption

    settings = settings_in_force()
    limits = settings.database.timeouts

    async def work() -> int | None:
        async with connected(_patient(settings), out) as manager:
            if drop_original:
                return await _drop(out, settings, manager, yes=yes)
            if await adoption.is_original(manager.engine):
                with out.status("Adopting the original's database"):
                    report = await adoption.adopt(
                        manager.engine,
                        ring=_ring(settings),
                        currency=currency,
                        dry_run=dry_run,
                        timeouts=limits,
                        progress=out.note,
                    )
                return _print_report(out, report, has_ring=_ring(settings) is not None)
            return await _stamp(out, manager, settings, dry_run=dry_run)

    return run(work())


def _patient(settings: "Settings") -> "Settings":
    """The settings without the log of slow statements: those of an adoption are many rows each."""
    from core.config.options import MonitoringOptions

    database = settings.database.model_copy(update={"monitoring": MonitoringOptions(slow_query=0, long_session=0)})
    return settings.model_copy(update={"database": database})


async def _stamp(out: Output, manager: "DatabaseManager", settings: "Settings", *, dry_run: bool) -> int:
    from core.database import schema

    done = await schema.adopt(manager.engine, dry_run=dry_run, timeouts=settings.database.timeouts)
    out.data(
        {
            "kind": "stamp",
            "stamped": done.stamped,
            "dry_run": dry_run,
            "revision": done.revision,
            "before": list(done.before.current),
            "head": done.before.head,
            "pending": done.pending,
            "drift": _differences(done.drift),
            "notes": _differences([item for item in done.differences if item.severity == "note"]),
        }
    )
    out.line(_said(done, dry_run=dry_run))
    _print_differences(out, done.differences)
    if done.pending:
        out.note(f"Bring it to head ({done.before.head}) with `panda migrate upgrade`.")
    return SCHEMA if done.drift else 0


def _said(done: "Adoption", *, dry_run: bool) -> str:
    if done.drift:
        return f"Nothing was changed, for the database differs from revision {done.revision}:"
    if not done.stamped:
        return f"Nothing to do: the database is at revision {done.revision}, as it says."
    before = f" (it said {', '.join(done.before.current)})" if done.before.current else ""
    verb = "would be" if dry_run else "is"
    return f"The schema is that of revision {done.revision}, which {verb} recorded now{before}."


async def _drop(out: Output, settings: "Settings", manager: "DatabaseManager", *, yes: bool) -> int | None:
    from core.trading import adoption

    if not yes:
        only = await adoption.left_aside(manager.engine)
        words = ", ".join(f"{rows:,} of {table}" for table, rows in only.items()) or "none"
        out.note(f"rows that are nowhere else: {words}")
        if out.as_json or not sys.stdin.isatty():
            raise CommandError("this asks first, and nobody is there to answer", hint="Say --yes.", code=USAGE)
        if not typer.confirm(f"Drop the schema {adoption.ORIGINAL_SCHEMA} with all its tables?", err=True):
            out.note("nothing was changed")
            return FAILED
    names = await adoption.drop_original(manager.engine, timeouts=settings.database.timeouts)
    out.data({"kind": "drop_original", "dropped": list(names)})
    out.line(f"dropped: {', '.join(names)}")
    return None


def _ring(settings: "Settings") -> "KeyRing | None":
    from core.database.encryption import KeyRing, refuse_guessed_keys

    keys = settings.database.encryption_keys
    if keys is None:
        return None
    ring = KeyRing.parse(keys.get_secret_value())
    refuse_guessed_keys(ring, settings.environment)
    return ring


def _differences(found: "Sequence[Difference]") -> list[dict[str, Any]]:
    return [{"kind": item.kind, "name": item.name, "says": item.says, "mend": item.mend} for item in found]


def _print_differences(out: Output, found: "Sequence[Difference]") -> None:
    """A paragraph each; a statement that mends is never broken, since it may be copied."""
    for item in found:
        label = "note: " if item.severity == "note" else "- "
        for line in textwrap.wrap(label + item.says, _WIDTH, subsequent_indent="  ", break_on_hyphens=False):
            out.line(line)
        if item.mend:
            out.line(f"    {item.mend}", style="cyan")


def _print_report(out: Output, report: "AdoptionReport", *, has_ring: bool) -> None:
    out.data({"kind": "original", **report.to_json()})
    out.line(_headline(report))
    out.line()
    rows = [
        (row.table, f"{row.read:,}", f"{row.moved:,}", f"{row.set_aside:,}", row.into.replace(", portfolio_", ", "))
        for row in report.tables
    ]
    columns = ("from", "read", "moved", "set aside", "into")
    widths = [max(len(row[number]) for row in [columns, *rows]) for number in range(1, 4)]
    out.table(
        [(row[0], *(cell.rjust(width) for cell, width in zip(row[1:4], widths, strict=True)), row[4]) for row in rows],
        columns=(
            columns[0],
            *(name.rjust(width) for name, width in zip(columns[1:4], widths, strict=True)),
            columns[4],
        ),
    )
    out.line()
    for label, words in _facts(report):
        for number, line in enumerate(textwrap.wrap(words, _WIDTH - 12, break_on_hyphens=False)):
            out.line(f"{label if number == 0 else '':<11} {line}")
    if report.dry_run and report.sealed and not has_ring:
        out.warn("there is no key to seal the tokens with: set DATABASE__ENCRYPTION_KEYS before the adoption")


def _headline(report: "AdoptionReport") -> str:
    if report.already:
        return f"Already adopted, on {report.adopted_at:%Y-%m-%d %H:%M} UTC. What was done then:"
    if report.dry_run:
        return "A dry run: this is what an adoption would do. Nothing was changed."
    return f"The original Alpha Panda's database is adopted; it is at revision {report.revision}."


def _facts(report: "AdoptionReport") -> list[tuple[str, str]]:
    facts = [("tokens", f"{report.sealed:,} sessions' tokens sealed into trading_sessions.credentials")]
    if report.accounts_made:
        facts.append(
            ("accounts", f"{report.accounts_made:,} inactive users made, named by the broker's ids that sessions have")
        )
    if report.password_resets:
        words = "users have hashes that cannot be verified here: set them a new password, or install the package bcrypt"
        facts.append(("passwords", f"{report.password_resets:,} {words}"))
    facts += [
        ("rounded", f"{item.count:,} {item.field} to 10 digits after the point, by {item.largest:.1E} at most")
        for item in report.rounded[:_SHOWN_ROUNDED]
    ]
    facts += [
        ("kept", f"{table} ({rows:,} rows) as it is: it has no counterpart here")
        for table, rows in report.kept
        if table != "alembic_version"
    ]
    facts += [("note", words) for words in report.notes]
    facts += [("set aside", f"{row.table} {row.key}: {row.reason}") for row in report.set_aside]
    if report.set_aside_count > len(report.set_aside):
        facts.append(
            ("", f"and {report.set_aside_count - len(report.set_aside):,} more in alpha_panda_original.set_aside")
        )
    if not report.already:
        facts.append(("time", f"{sum(report.seconds.values()):.1f} s"))
    return facts
