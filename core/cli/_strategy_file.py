"""`panda strategy apply` and `export`: strategies as a file."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.cli._failure import FAILED, REFUSED, USAGE, CommandError
from core.cli._output import Output
from core.cli._strategy_change import By, Note, Rules, rules_in_force, system_user, write
from core.cli._strategy_print import as_json, change_lines, named, shown

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from core.trading.strategies import ApplyReport, StrategyDocument

Source = Annotated[str, typer.Option("--file", "-f", metavar="FILE", help="YAML or JSON; - is stdin.")]
Target = Annotated[Path | None, typer.Option("--file", "-f", metavar="FILE", help="A new file; else stdout.")]
Prune = Annotated[bool, typer.Option("--prune", help="Disable the strategies that are not in FILE.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before --prune stops any.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="STRATEGY", help="Their ids; else all.")]
Versions = Annotated[bool, typer.Option("--versions", help="With versions: it applies to these alone.")]
Force = Annotated[bool, typer.Option("--force", help="Replace FILE.")]

_MARKS = {"created": "+", "changed": "~", "unchanged": " ", "disabled": "-"}


def apply(
    out: Output,
    file: Source,
    *,
    dry_run: DryRun = False,
    prune: Prune = False,
    yes: Yes = False,
    by: By = None,
    note: Note = None,
    rules: Rules = None,
) -> int | None:
    """Bring strategies to what a file says they are.

    One transaction: all of it or nothing. What is as the file says is left alone, and a strategy is started or
    stopped only where the file says `is_active`. Nothing is ever deleted. --prune stops what is not in the file, and
    asks first; where nobody can answer it needs --yes. Exit code 6 if the file, the rules or a
    `version` in the file refuse it.
    """
    from core.trading import strategies
    from core.trading.strategies import read_documents

    name = "standard input" if file == "-" else file
    documents = read_documents(_content(file), name=name)
    held = rules_in_force(rules)

    async def planned(session: "AsyncSession") -> "ApplyReport":
        return await strategies.apply(session, documents, rules=held, prune=prune, dry_run=True, note=note)

    agreed: set[str] | None = None
    if prune and not dry_run and not yes:
        agreed = _stopped(write(out, planned))
        if agreed and not _agreed(out, agreed):
            out.note("nothing was changed")
            return FAILED

    async def work(session: "AsyncSession") -> "ApplyReport":
        done = await strategies.apply(
            session, documents, rules=held, prune=prune, dry_run=dry_run, changed_by=by or system_user(), note=note
        )
        if agreed is not None and not agreed.issuperset(_stopped(done)):
            raise CommandError(
                "more strategies would be stopped than were a moment ago", hint="Try again.", code=REFUSED
            )
        return done

    report = write(out, work)
    counts = {outcome: report.count(outcome) for outcome in ("created", "changed", "unchanged", "disabled")}
    items = [
        {"strategy_id": one.strategy_id, "outcome": one.outcome, "version": one.version, "is_active": one.is_active}
        | {"changes": [as_json(change) for change in one.changes]}
        for one in report.strategies
    ]
    out.data({"dry_run": dry_run, **counts, "strategies": items})
    _print(out, report, counts)
    return None


def export(
    out: Output,
    strategy: Ids = None,
    *,
    file: Target = None,
    versions: Versions = False,
    force: Force = False,
) -> None:
    """Write strategies as a file that `apply` takes.

    Applied as it is it changes nothing. Exit code 6 if one of those named is not there.
    """
    from core.cli._database import read
    from core.cli._target import check_target, published
    from core.trading import strategies
    from core.trading.strategies import write_documents

    if file is not None:
        check_target(file, force=force)

    async def work(session: "AsyncSession") -> "tuple[StrategyDocument, ...]":
        return await strategies.documents_of(session, strategy, versions=versions)

    documents = read(out, work)
    there = {document.strategy_id for document in documents}
    for one in strategy or ():
        if one not in there:
            hint = "`panda strategy list` shows those there are."
            raise CommandError(f"there is no strategy {one!r}", hint=hint, code=REFUSED)
    text = write_documents(documents)
    if file is not None:
        with published(file, force=force) as part:
            part.write_text(text, encoding="utf-8")
    out.data({"strategies": [document.members() for document in documents], "file": file})
    if file is None:
        out.raw(text.rstrip())
    else:
        out.line(f"{file}: {named(len(documents), 'strategy').replace('strategys', 'strategies')}")


def _print(out: Output, report: "ApplyReport", counts: dict[str, int]) -> None:
    for one in report.strategies:
        if one.outcome != "unchanged":
            out.line(f"{_MARKS[one.outcome]} {shown(one.strategy_id)}: {one.outcome}, version {one.version}")
            for line in change_lines(one.changes):
                out.line(f"    {line}")
    told = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items())
    out.line(f"{told}{'; nothing was written' if report.dry_run else ''}")
    stopped = [shown(one.strategy_id) for one in report.strategies if not one.is_active and one.outcome == "unchanged"]
    if stopped:
        out.note(f"disabled, and left so: {', '.join(stopped)}")


def _stopped(report: "ApplyReport") -> set[str]:
    return {one.strategy_id for one in report.strategies if one.outcome == "disabled"}


def _agreed(out: Output, names: set[str]) -> bool:
    """Whether somebody agrees to stop them. Raises CommandError."""
    which = ", ".join(shown(name) for name in sorted(names))
    if out.as_json or not sys.stdin.isatty():
        hint = "Say --yes if it is meant."
        raise CommandError(
            f"--prune would stop {which}: it asks first, and nobody is there to answer", hint=hint, code=USAGE
        )
    return typer.confirm(f"Stop {which}?", err=True)


def _content(file: str) -> bytes:
    """Raises CommandError."""
    from core.trading.strategies import LARGEST_FILE

    if file == "-":
        if sys.stdin is None or sys.stdin.isatty():  # pyright: ignore[reportUnnecessaryComparison] - so it is after `<&-`
            raise CommandError("nothing comes from standard input", hint="Name a file, or pipe one in.", code=USAGE)
        buffer = getattr(sys.stdin, "buffer", None)
        return buffer.read(LARGEST_FILE * 4 + 1) if buffer is not None else sys.stdin.read().encode()
    try:
        with Path(file).open("rb") as opened:
            return opened.read(LARGEST_FILE * 4 + 1)
    except FileNotFoundError:
        raise CommandError(f"{file} does not exist", hint="Check the path.", code=REFUSED) from None
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}", code=REFUSED) from None
