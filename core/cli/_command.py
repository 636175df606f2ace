"""The options that every command takes, added in one place."""

import inspect
import warnings
from collections.abc import Callable
from typing import Annotated, Any, cast

import typer

from core.cli._output import Output

_KEYWORD = inspect.Parameter.KEYWORD_ONLY

_COMMON: dict[str, tuple[Any, Any]] = {
    "as_json": (Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")], False),
    "verbose": (
        Annotated[int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Log more; -vv logs all.")],
        0,
    ),
    "quiet": (Annotated[bool, typer.Option("--quiet", "-q", help="No notes and no warnings.")], False),
    "log_json": (Annotated[bool, typer.Option("--log-json", help="Logs as JSON, a line each.")], False),
    "debug": (Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")], False),
}


def command(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """A command: `function(out, ...)` as typer sees it, with the common options in the place of `out`.

    It returns its exit code, None for 0, and may raise anything: `core.cli.main` says what that means.
    """

    def run(**values: Any) -> int | None:
        common = {name: values.pop(name) for name in _COMMON}
        out = Output(as_json=common["as_json"], quiet=common["quiet"])
        _show_warnings(out)
        from core.cli._logging import configure

        configure(verbosity=-1 if common["quiet"] else common["verbose"], as_json=common["log_json"])
        return function(out, **values)

    own = [item for item in inspect.signature(function, eval_str=True).parameters.values() if item.name != "out"]
    shared = [
        inspect.Parameter(name, _KEYWORD, annotation=kind, default=default) for name, (kind, default) in _COMMON.items()
    ]
    parameters = [item.replace(kind=_KEYWORD) for item in own] + shared
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__annotations__ = {item.name: item.annotation for item in parameters}
    cast("Any", run).__signature__ = inspect.Signature(parameters)
    return run


def _show_warnings(out: Output) -> None:
    """Warnings of the settings in one plain line; Python's own form quotes source code."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if category.__name__ == "SettingsWarning":
            out.warn(str(message))
        else:
            before(message, category, *rest, **named)

    warnings.showwarning = show
    warnings.filterwarnings("always", module=r"core\.config\.settings")
