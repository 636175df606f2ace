"""`panda migrate ...`: the database's schema."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.cli._command import command
from core.cli._failure import FAILED, USAGE, CommandError
from core.cli._migrate_files import lint, new
from core.cli._migrate_state import adopt, check
from core.cli._output import Output

if TYPE_CHECKING:
    from core.config.options import Timeouts
    from core.config.settings import Settings
    from core.database.schema import Revision, SchemaState

__all__ = ["register"]

Target = Annotated[str, typer.Argument(metavar="REV", help="head, a revision, or steps such as +1.")]
LowerTarget = Annotated[str, typer.Argument(metavar="REV", help="A revision, base, or steps such as -1.")]
Sql = Annotated[bool, typer.Option("--sql", help="Print the SQL and change nothing.")]
Attempts = Annotated[
    int, typer.Option("--attempts", metavar="N", min=1, help="Tries of a migration that gets no lock.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(help="The schema and its migrations.", no_args_is_help=True)
    group.command("upgrade")(command(upgrade))
    # A step such as -1 is an argument here, not an option.
    group.command("downgrade", context_settings={"ignore_unknown_options": True})(command(downgrade))
    group.command("verify")(command(verify))
    group.command("check")(command(check))
    group.command("adopt")(command(adopt))
    group.command("plan")(command(plan))
    group.command("history")(command(history))
    group.command("new")(command(new))
    group.command("lint")(command(lint))
    app.add_typer(group, name="migrate")


def upgrade(out: Output, revision: Target = "head", sql: Sql = False, attempts: Attempts = 3) -> None:
    """Migrate the schema up, to head unless REV says otherwise.

    A lock lets one process at a time do so. Each migration has a transaction of its own.
    """
    from core.cli._database import connected, run, settings_in_force
    from core.database import schema

    settings = settings_in_force()
    limits = settings.database.timeouts

    async def work() -> None:
        async with connected(settings, out) as manager:
            if sql:
                _print_sql(out, await schema.preview(manager.engine, revision, direction="up", timeouts=limits))
                return
            before = await schema.inspect(manager.engine)
            state = await schema.upgrade(
                manager.engine, revision, timeouts=limits, attempts=attempts, progress=out.note
            )
            _print_move(out, before, state)

    run(work())


def downgrade(
    out: Output, revision: LowerTarget, sql: Sql = False, yes: Yes = False, attempts: Attempts = 3
) -> int | None:
    """Migrate the schema down. What the reverted migrations added is lost, data included.

    Asks first; in production it is refused without --yes.
    """
    from core.cli._database import connected, run, settings_in_force
    from core.database import schema

    if revision.startswith("-") and not revision[1:].isdigit():
        raise CommandError(f"no such option: {revision}", hint="`panda migrate downgrade --help`", code=USAGE)
    settings = settings_in_force()
    limits = settings.database.timeouts
    if not sql and not yes and not _confirmed(out, settings, revision):
        out.note("nothing was changed")
        return FAILED

    async def work() -> None:
        async with connected(settings, out) as manager:
            if sql:
                _print_sql(out, await schema.preview(manager.engine, revision, direction="down", timeouts=limits))
                return
            before = await schema.inspect(manager.engine)
            state = await schema.downgrade(
                manager.engine, revision, timeouts=limits, attempts=attempts, progress=out.note
            )
            _print_move(out, before, state)

    return run(work())


def verify(out: Output) -> None:
    """Check that the schema is exactly at head.

    Exit code 3 if it is not.
    """
    from core.cli._database import connected, run, settings_in_force
    from core.database import schema

    async def work() -> "SchemaState":
        async with connected(settings_in_force(), out) as manager:
            return await schema.verify(manager.engine)

    state = run(work())
    out.data(_state(state))
    out.line(state.describe())


def plan(out: Output) -> None:
    """The migrations that an upgrade would apply, oldest first.

    With their limits: how long a statement may wait for a lock, and may take.
    """
    from core.cli._database import connected, run, settings_in_force
    from core.database import schema

    settings = settings_in_force()
    limits = settings.database.timeouts

    async def work() -> "tuple[Revision, ...]":
        async with connected(settings, out) as manager:
            return await schema.plan(manager.engine)

    pending = run(work())
    out.data(
        {
            "pending": [
                {**data, **_limits(item, limits)} for data, item in zip(_revisions(pending), pending, strict=True)
            ]
        }
    )
    if pending:
        _print_plan(out, pending, limits)
    else:
        out.line("nothing to do: the schema is at head")


def history(out: Output) -> None:
    """Every migration of this release, oldest first.

    Needs no database.
    """
    from core.database import schema

    revisions = schema.history()
    out.data({"revisions": _revisions(revisions)})
    _print_revisions(out, revisions)


def _confirmed(out: Output, settings: "Settings", revision: str) -> bool:
    from core.config.settings import redact_url

    place = redact_url(settings.database.postgres_url)
    if settings.environment == "production":
        raise CommandError(
            f"a downgrade of {place} in production may lose data", hint="Say --yes if it is meant.", code=USAGE
        )
    if out.as_json or not sys.stdin.isatty():
        raise CommandError("a downgrade asks first, and nobody is there to answer", hint="Say --yes.", code=USAGE)
    return typer.confirm(f"Downgrade {place} to {revision}? Data may be lost.", err=True)


def _print_sql(out: Output, sql: str) -> None:
    out.data({"sql": sql})
    if not sql.strip():
        out.note("nothing to do")
    else:
        out.raw(sql.rstrip())


def _print_move(out: Output, before: "SchemaState", after: "SchemaState") -> None:
    out.data({"from": list(before.current), **_state(after)})
    if before.current == after.current:
        out.line(f"nothing to do: {after.describe()}")
    else:
        out.line(after.describe())


def _state(state: "SchemaState") -> dict[str, Any]:
    return {
        "status": state.status,
        "current": list(state.current),
        "head": state.head,
        "pending": list(state.pending),
        "missing_tables": list(state.missing_tables),
    }


def _revisions(revisions: "Sequence[Revision]") -> list[dict[str, Any]]:
    return [
        {
            "revision": item.revision,
            "down_revision": item.down_revision,
            "message": item.message,
            "date": item.date,
            "file": item.file,
        }
        for item in revisions
    ]


def _limits(revision: "Revision", timeouts: "Timeouts") -> dict[str, float]:
    lock, statement = revision.limits(timeouts)
    return {"lock_timeout": lock, "statement_timeout": statement}


def _print_plan(out: Output, revisions: "Sequence[Revision]", timeouts: "Timeouts") -> None:
    rows = [
        (item.revision, *(f"{limit:g} s" if limit else "none" for limit in item.limits(timeouts)), item.message)
        for item in revisions
    ]
    out.table(rows, columns=("revision", "lock", "statement", "what it does"))


def _print_revisions(out: Output, revisions: "Sequence[Revision]") -> None:
    rows = [(item.revision, item.date.isoformat() if item.date else "-", item.message) for item in revisions]
    out.table(rows, columns=("revision", "date", "what it does"))
