"""`panda doctor`: every check that a person would make, each with the mend."""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from core.cli._command import command
from core.cli._failure import FAILED, NOT_READY, SCHEMA, USAGE
from core.cli._output import Output

if TYPE_CHECKING:
    from core.config.settings import Settings
    from core.database.doctor import Finding
    from core.database.engine import EngineOptions

__all__ = ["register"]

_STYLES = {"ok": "green", "info": "cyan", "warning": "yellow", "error": "bold red", "skipped": "dim"}
_VERDICTS = (("error", "not fit for use"), ("warning", "fit for use, with doubts"), (None, "fit for use"))
_STATUS, _CHECK, _WIDEST = 9, 13, 100

Processes = Annotated[
    int | None,
    typer.Option(
        "--processes", min=1, max=10_000, help="How many processes share the server, in place of the setting."
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 where there are warnings.")]
Limit = Annotated[float, typer.Option("--timeout", min=0.1, max=3_600, help="Seconds for each check.")]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("doctor")(command(doctor))


def doctor(out: Output, processes: Processes = None, strict: Strict = False, timeout: Limit = 5.0) -> int:
    """Examine the database and say how to mend what is wrong.

    Looks at the settings, the way to the server, the server and the tables. Changes nothing and starts nothing, the built-in server included. Exit code 0 unless there are errors: 3 if they are all about the schema, 2 if the settings or the URL cannot be used, else 4.
    """
    from core.cli._database import run, settings_in_force
    from core.config.settings import redact_url
    from core.database.doctor import examine

    settings = settings_in_force()
    database = settings.database
    keys = database.encryption_keys.get_secret_value() if database.encryption_keys is not None else None
    first = _settings(settings)
    _print(out, first)
    work = examine(
        database.postgres_url,
        _options(settings, processes),
        encryption_keys=keys,
        limit=timeout,
        report=lambda finding: _print(out, finding),
    )
    with out.status("Examining"):
        findings = [first, *run(work)]
    counts = {status: sum(item.status == status for item in findings) for status in _STYLES}
    code = _code(findings, strict=strict)
    out.data(
        {
            "url": redact_url(database.postgres_url),
            "environment": settings.environment,
            "counts": counts,
            "exit_code": code,
            "findings": [finding.to_json() for finding in findings],
        }
    )
    _print_summary(out, findings, counts)
    return code


def _options(settings: "Settings", processes: int | None) -> "EngineOptions":
    """An application's, by the settings in force."""
    from core.database.engine import EngineOptions

    database = settings.database
    return EngineOptions(
        environment=settings.environment,
        pool=replace(database.pool, processes=processes) if processes is not None else database.pool,
        timeouts=database.timeouts,
        tls=database.tls,
        pgbouncer=database.pgbouncer,
        application_name=database.application_name,
    )


def _settings(settings: "Settings") -> "Finding":
    """Where the URL and what else is set came from; the values stand in the details, without secrets."""
    from core.database.doctor import Finding

    found = [item for item in settings.in_force() if item.source.kind != "default"]
    details = {item.name: {"value": item.value, "source": str(item.source)} for item in found}
    places: list[str] = []
    if "DATABASE__POSTGRES_URL" not in details:
        places.append("no URL is set, so embedded: is taken")
    for item in found:
        name = item.name if item.source.name in ("", item.name) else f"{item.name} (as {item.source.name})"
        places.append(f"{name} from {'a file named in ' if item.source.is_file else ''}{_kind(item.source.kind)}")
    return Finding("settings", "ok", "; ".join(places), None, details)


def _kind(kind: str) -> str:
    return {".env": ".env", "environment": "the environment"}.get(kind, f"an {kind}")


def _code(findings: "Sequence[Finding]", *, strict: bool) -> int:
    errors = {finding.check for finding in findings if finding.status == "error"}
    if not errors:
        return FAILED if strict and any(finding.status == "warning" for finding in findings) else 0
    if errors == {"schema"}:
        return SCHEMA
    # Nothing was sent: what is wrong is what was given.
    useless = {finding.check for finding in findings if finding.status == "skipped"}
    return USAGE if errors <= {"url", "tls"} and "server" in useless else NOT_READY


def _print(out: Output, finding: "Finding") -> None:
    """A line, more only where it is too long, and the mend below. What was not reached is counted in the summary."""
    if out.as_json or "rest" in finding.details:
        return
    _print_lines(out, finding.status, finding.check, finding.message)
    if finding.status not in ("ok", "skipped"):
        for line in (finding.mend or "").splitlines():
            _print_lines(out, "", "", line)


def _print_summary(out: Output, findings: "Sequence[Finding]", counts: dict[str, int]) -> None:
    if out.as_json:
        return
    rest = [finding for finding in findings if "rest" in finding.details]
    if rest:
        _print_lines(out, "skipped", f"{len(rest)} more", rest[0].message)
    out.line()
    parts = [f"{count} {status}{_plural(status, count)}" for status, count in counts.items() if count]
    verdict = next(word for status, word in _VERDICTS if status is None or counts[status])
    out.line(f"{verdict}: {', '.join(parts)}")


def _plural(status: str, count: int) -> str:
    return "s" if status in ("warning", "error") and count != 1 else ""


def _print_lines(out: Output, status: str, check: str, words: str) -> None:
    """Three columns, the last one wrapped between words. Without a status it is a mend, below the second column."""
    from rich.text import Text

    before = f"{status:<{_STATUS}}{check:<{_CHECK}}" if status else " " * _STATUS + "> "
    lines = textwrap.wrap(
        words,
        width=min(out.stdout.width, _WIDEST) - len(before),
        break_long_words=False,
        break_on_hyphens=False,
    )
    for number, line in enumerate(lines):
        text = Text((before if number == 0 else " " * len(before)) + line)
        text.stylize(_STYLES[status] if status else "cyan", 0 if status else len(before), _STATUS if status else None)
        out.stdout.print(text, soft_wrap=True)
