"""The command `panda`."""

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from core.cli import (
    backup,
    config,
    demo,
    doctor,
    explain,
    health,
    instruments,
    keys,
    metrics,
    migrate,
    portfolio,
    roles,
    server,
    session,
    strategy,
    top,
    user,
)
from core.cli._failure import CLOSED, EXIT_CODES, INTERRUPTED, USAGE, Failure, censored, describe
from core.cli._output import Output, OutputClosed
from core.printable import printable

__all__ = ["app", "main"]

_NAMES = {"help_option_names": ["-h", "--help"], "max_content_width": 80}
_EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES)

app = typer.Typer(
    name="panda",
    help="The persistence layer of Alpha Panda: its PostgreSQL, schema and data.",
    epilog=_EPILOG,
    context_settings=_NAMES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: it starts faster, and reads the same in a pipe
    pretty_exceptions_enable=False,
)
for room in (
    server,
    demo,
    health,
    doctor,
    migrate,
    roles,
    keys,
    backup,
    session,
    instruments,
    portfolio,
    user,
    strategy,
    config,
    top,
    explain,
    metrics,
):
    room.register(app)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(installed("alpha-panda-core"))
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error ends here, in words."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(arguments)
        if sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison] - so it is after `>&-`
            sys.stdout.flush()
        return code
    except (OutputClosed, BrokenPipeError):
        # The interpreter flushes once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return CLOSED


def _run(arguments: list[str]) -> int:
    try:
        with typer.main.get_command(app).make_context("panda", arguments) as context:
            return _invoke(context, arguments)
    except typer.Exit as done:
        return done.exit_code
    except typer.Abort:
        return _report(Failure("Interrupted", "interrupted", None, INTERRUPTED), arguments)
    except typer.TyperException as error:  # a wrong option, a missing argument
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.message, file=sys.stderr)
            return USAGE
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "panda"
        failure = Failure("UsageError", error.format_message(), f"`{path} --help` shows what it takes.", USAGE)
        return _report(failure, arguments)


def _invoke(context: Any, arguments: list[str]) -> int:
    try:
        result = context.command.invoke(context)
        return result if isinstance(result, int) else 0
    except (typer.Exit, typer.Abort, typer.TyperException, OutputClosed):
        raise
    except KeyboardInterrupt:
        return _report(Failure("Interrupted", "interrupted", None, INTERRUPTED), arguments)
    except Exception as error:  # the outermost door: whatever is wrong leaves as words and an exit code
        if "--debug" in arguments:
            import traceback

            told = censored("".join(traceback.format_exception(error)))
            print("\n".join(map(printable, told.split("\n"))), file=sys.stderr)
        return _report(describe(error), arguments)


def _report(failure: Failure, arguments: list[str]) -> int:
    out = Output(as_json="--json" in arguments)
    out.data(failure.to_json())
    if not out.as_json:
        reasons = [text for _, text in failure.causes]
        out.error(failure.message, lines=failure.lines, reasons=reasons, hint=failure.hint)
    return failure.code


if __name__ == "__main__":
    sys.exit(main())
