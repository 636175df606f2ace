"""`panda migrate new` and `lint`: the migration files themselves."""

import importlib
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.cli._failure import FAILED, USAGE, CommandError
from core.cli._output import WIDTH, Output

if TYPE_CHECKING:
    from sqlalchemy import MetaData

    from core.database.schema import Draft, Finding

__all__ = ["lint", "new"]

Message = Annotated[str, typer.Argument(help="What it does, in a line.")]
Directory = Annotated[
    Path | None, typer.Option("--directory", metavar="DIR", help="An application's folder of version files.")
]
Models = Annotated[
    str | None, typer.Option("--models", metavar="MODULE:NAME", help="The application's MetaData or declarative base.")
]
Empty = Annotated[bool, typer.Option("--empty", help="Compare nothing; write the bodies by hand.")]
Revisions = Annotated[list[str] | None, typer.Argument(metavar="REV", help="Only these; all by default.")]


def new(
    out: Output, message: Message, directory: Directory = None, models: Models = None, empty: Empty = False
) -> None:
    """Write a new migration file after the head.

    Its bodies come from comparing the models with what the migrations make, on
    a built-in server to throw away. Read them: what Alembic cannot see is told
    as warnings. Where there is nothing to compare they raise until written.
    """
    from core.cli._database import run
    from core.config.options import Timeouts
    from core.database import schema
    from core.database.errors import EmbeddedServerError

    schema.require_writable(message, versions=directory)
    tables = _metadata(models)
    draft: Draft | None = None
    if not empty and (directory is None or tables is not None):
        try:
            draft = run(_draft(out, tables, directory))
        except EmbeddedServerError as error:
            out.warn(f"nothing was compared: {error}")
    made = schema.new(message, versions=directory, draft=draft, timeouts=Timeouts())
    folder = directory or Path(schema.__file__).parent.parent / "migrations" / "versions"
    compared = draft is not None
    drafted = draft is not None and bool(draft.upgrade)
    notes = list(draft.notes) if draft else []
    out.data(
        {
            "revision": made.revision,
            "down_revision": made.down_revision,
            "path": folder / made.file,
            "compared": compared,
            "drafted": drafted,
            "notes": notes,
        }
    )
    out.line(str(folder / made.file))
    for note in notes:
        out.warn(note)
    if drafted:
        out.note("Read it, change what Alembic got wrong, then `panda migrate lint`.")
    else:
        why = "Alembic sees no difference" if compared else "Nothing was compared"
        out.note(f"{why}: write upgrade() and downgrade(); until then they raise.")


def lint(out: Output, revisions: Revisions = None, directory: Directory = None) -> int | None:
    """Find what would hurt a database in use.

    squawk reads the SQL of the migrations, rules of our own the files. Needs no
    database. Exit code 1 if there is anything to say.
    """
    from core.cli._database import run
    from core.database import schema

    chosen = revisions or []
    findings = run(schema.lint(chosen, versions=directory))
    checked = len(set(chosen)) if chosen else len(schema.history(versions=directory))
    out.data({"checked": checked, "findings": [_as_data(item) for item in findings]})
    for file in dict.fromkeys(item.file for item in findings):
        out.line(file, style="bold")
        for item in findings:
            if item.file == file:
                _print_finding(out, item)
    migrations = "1 migration" if checked == 1 else f"{checked} migrations"
    if not findings:
        out.line(f"{migrations}, nothing to say")
        return None
    out.line(f"{len(findings)} finding{'s' if len(findings) > 1 else ''} in {migrations}")
    return FAILED


async def _draft(out: Output, tables: "MetaData | None", directory: Path | None) -> "Draft":
    from core.database import schema

    with out.status("Comparing the models with the migrations on a built-in server"):
        async with schema.throwaway_engine() as engine:
            return await schema.draft(engine, metadata=tables, versions=directory)


def _metadata(models: str | None) -> "MetaData | None":
    """What `--models` names, with the current folder importable."""
    if models is None:
        return None
    from sqlalchemy import MetaData

    module, _, name = models.partition(":")
    if not module or not name:
        raise CommandError(f"{models!r} is not MODULE:NAME", hint="Such as myapp.models:Base.", code=USAGE)
    sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise CommandError(
            f"{models} cannot be imported: {error}", hint="Run it in the folder that holds the package.", code=USAGE
        ) from error
    tables = found if isinstance(found, MetaData) else getattr(found, "metadata", None)
    if not isinstance(tables, MetaData):
        raise CommandError(f"{models} is neither a MetaData nor has one", hint="Name the declarative base.", code=USAGE)
    return tables


def _print_finding(out: Output, item: "Finding") -> None:
    place = "the file" if item.line is None else f"line {item.line} of the {'SQL' if item.sql else 'file'}"
    out.line(f"  {item.rule}, {place}", style="yellow")
    if item.sql:
        out.line(f"    {textwrap.shorten(item.sql, WIDTH - 4, placeholder=' ...')}")
    for label, text in (("", item.message), ("mend: ", item.mend)):
        for line in _wrapped(label + text):
            out.line(line)


def _wrapped(text: str) -> Sequence[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent="    ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def _as_data(item: "Finding") -> dict[str, Any]:
    return {
        "revision": item.revision,
        "file": item.file,
        "rule": item.rule,
        "message": item.message,
        "mend": item.mend,
        "line": item.line,
        "sql": item.sql,
    }
