"""`panda roles`: the database roles of owner, application, broker's sessions and readers."""

from typing import Annotated

import typer

from core.cli._command import command
from core.cli._output import Output

__all__ = ["register"]

Application = Annotated[str, typer.Option("--application", help="The group of the logins that run.")]
Reader = Annotated[str, typer.Option("--reader", help="The group of the logins that only read.")]
SqlOnly = Annotated[bool, typer.Option("--sql", help="Print the statements and nothing else.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(help="The database roles: what is missing, and making it so.", no_args_is_help=True)
    group.command("plan")(command(plan))
    group.command("apply")(command(apply))
    app.add_typer(group, name="roles")


def plan(
    out: Output, application: Application = "panda_application", reader: Reader = "panda_reader", sql: SqlOnly = False
) -> None:
    """Print what the roles lack, as SQL. Changes nothing.

    Owner is who owns the tables. Application logins read and write every row, but only add to auth_events, and may take
    the restricted role panda_app, as which a broker's session works. A reader sees every row and no secret.
    """
    _run(out, application, reader, change=False, sql=sql)


def apply(out: Output, application: Application = "panda_application", reader: Reader = "panda_reader") -> None:
    """Run what `panda roles plan` prints, in one transaction.

    A second run does nothing. Where a statement needs another role than ours, nothing is done and exit code 1.
    """
    _run(out, application, reader, change=True, sql=False)


def _run(out: Output, application: str, reader: str, *, change: bool, sql: bool) -> None:
    from core.cli._database import connected, run, settings_in_force
    from core.database import roles

    async def work() -> roles.RolesPlan:
        async with connected(settings_in_force(), out) as manager:
            do = roles.apply if change else roles.plan
            return await do(manager.engine, application=application, reader=reader)

    found = run(work())
    steps = [
        {"role": step.role, "why": step.why, "sql": step.sql, "allowed": step.allowed, "done": change}
        for step in found.steps
    ]
    names = {name: getattr(found, name) for name in ("owner", "application", "restricted", "reader", "user")}
    out.data({**names, "steps": steps})
    if sql:
        if found.sql:
            out.raw(found.sql.rstrip())
        return
    out.table([(name, role) for name, role in names.items() if name != "user"])
    out.line()
    for step in found.steps:
        who = "" if step.allowed else f"; {found.user} may not do this"
        out.line(f"-- {step.role}: {step.why}{who}")
        out.line(f"{step.sql};")
    if not found.steps:
        out.line("nothing is missing")
    elif change:
        out.line(f"done: {len(steps)} {'statement' if len(steps) == 1 else 'statements'}")
    elif found.forbidden:
        out.note("a superuser has to run it: panda roles plan --sql | psql ...")
    else:
        out.note("`panda roles apply` runs it")
