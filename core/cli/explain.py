"""`panda explain`: how the server would run a statement."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.cli._command import command
from core.cli._failure import FAILED, REFUSED, USAGE, CommandError, describe
from core.cli._output import Output

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from core.database.activity import Plan, SlowStatement
    from core.database.errors import PandaDatabaseError

__all__ = ["register"]

_LONGEST = 1_000_000  # bytes

Sql = Annotated[str | None, typer.Argument(metavar="STATEMENT", help="SQL, $1 for a parameter; else stdin.")]
File = Annotated[Path | None, typer.Option("--file", "-f", dir_okay=False, help="Read it from a file; - is stdin.")]
Slowest = Annotated[int | None, typer.Option("--slowest", min=1, max=100, help="The N slowest on average.")]
Limit = Annotated[float, typer.Option("--timeout", min=0.1, max=3_600, help="Seconds the server may take.")]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("explain")(command(explain))


def explain(
    out: Output, statement: Sql = None, file: File = None, slowest: Slowest = None, timeout: Limit = 5.0
) -> int | None:
    """Show the plan of a statement. Nothing is executed.

    It is the generic plan, which serves every value of the parameters. The slow-query log's statements can be given as they are. --slowest asks pg_stat_statements for them.
    """
    from core.cli._database import connected, run, settings_in_force
    from core.database.activity import explain, slowest_statements

    if (statement is not None) + (file is not None) + (slowest is not None) > 1:
        raise CommandError("STATEMENT, --file and --slowest exclude each other", code=USAGE)
    sql = "" if slowest is not None else _given(statement, file)

    async def work() -> int:
        async with connected(settings_in_force(), out) as manager:
            if slowest is not None:
                found = await slowest_statements(manager.engine, slowest)
                return await _explain_each(manager.engine, out, found, timeout)
            plan = await explain(manager.engine, sql, timeout=timeout)
        out.data(_json(plan))
        _print(out, plan)
        return 0

    return run(work())


def _given(statement: str | None, file: Path | None) -> str:
    """The text that is to be explained."""
    if statement is not None and statement != "-":
        return statement
    if file is not None and str(file) != "-":
        with file.open("rb") as source:
            raw = source.read(_LONGEST + 1)
    else:
        if sys.stdin is None or (sys.stdin.isatty() and file is None and statement is None):  # pyright: ignore[reportUnnecessaryComparison] - so it is after `<&-`
            raise CommandError(
                "there is no statement to explain", hint="Give it as an argument, by --file, or on stdin.", code=USAGE
            )
        raw = sys.stdin.buffer.read(_LONGEST + 1) if hasattr(sys.stdin, "buffer") else sys.stdin.read().encode()
    if len(raw) > _LONGEST:
        raise CommandError(f"a statement of more than {_LONGEST:,} bytes is not explained", code=REFUSED)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CommandError("the statement is not UTF-8 text", code=REFUSED) from error


async def _explain_each(engine: "AsyncEngine", out: Output, found: "tuple[SlowStatement, ...]", timeout: float) -> int:
    """Each on its own: one that cannot be planned does not hide the others."""
    from core.database.activity import explain
    from core.database.errors import ConnectionFailed, PandaDatabaseError

    results: list[dict[str, Any]] = []
    failed = 0
    for number, slow in enumerate(found, 1):
        result: dict[str, Any] = {"calls": slow.calls, "mean_seconds": slow.mean, "total_seconds": slow.total}
        _print_statement(out, number, slow)
        try:
            plan = await explain(engine, slow.statement, timeout=timeout)
        except ConnectionFailed:
            raise
        except PandaDatabaseError as error:
            failed += 1
            results.append(result | {"statement": slow.statement, **describe(error).to_json()})
            _print_failure(out, error)
        else:
            results.append(result | _json(plan))
            _print(out, plan)
    out.data({"statements": results})
    if not found:
        out.line("pg_stat_statements has seen no statement with a plan in this database")
    return FAILED if found and failed == len(found) else 0


def _json(plan: "Plan") -> dict[str, Any]:
    import dataclasses

    observations = [dataclasses.asdict(item) for item in plan.observations]
    return {"statement": plan.statement, "plan": plan.source, "observations": observations}


def _print(out: Output, plan: "Plan") -> None:
    out.line("The plan for any values, by the planner's estimates; nothing was executed.", "dim")
    out.line()
    width = max(out.stdout.width, 60)
    for line in plan.text(width).split("\n"):
        out.line(_clean(line))
    out.line()
    for observation in plan.observations:
        _print_wrapped(out, observation.text, "- ", "  ", width)
    if not plan.observations:
        out.line("Nothing in it strikes the eye.")


def _print_statement(out: Output, number: int, slow: "SlowStatement") -> None:
    from core.database.monitoring import without_literals

    if number > 1:
        out.line()
    out.line(
        f"{number}. {slow.mean * 1_000:,.1f} ms on average, {slow.calls:,} calls, {slow.total:,.1f} s in all", "bold"
    )
    _print_wrapped(out, without_literals(slow.statement), "   ", "   ", max(out.stdout.width, 60))


def _print_failure(out: Output, error: "PandaDatabaseError") -> None:
    _print_wrapped(out, f"It cannot be planned: {error}", "   ", "   ", max(out.stdout.width, 60))


def _print_wrapped(out: Output, text: str, first: str, rest: str, width: int) -> None:
    import textwrap

    wrapped = textwrap.wrap(
        _clean(text),
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for line in wrapped:
        out.line(line)


def _clean(text: str) -> str:
    """Names and literals come from others: nothing in them may steer the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
