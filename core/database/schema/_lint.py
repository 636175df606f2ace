"""Would a migration hurt a database that is in use? squawk reads the SQL, a few rules of our own the file."""

import asyncio
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sqlalchemy import MetaData

from core.config.options import Timeouts
from core.database.errors import ConfigurationError, SchemaError
from core.database.schema._lint_rules import Complaint, Exemption, about_file, about_sql, exemptions, mend_of
from core.database.schema._lock import alembic_guard
from core.database.schema._scripts import Revision, Scripts, read
from core.database.schema._state import project_metadata

CONFIGURATION = ".squawk.toml"

_OWN_TABLE = re.compile(
    r"^(?:CREATE TABLE|INSERT INTO|UPDATE|DELETE FROM) alembic_version\b.*?;$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a migration should not do to a database in use, or not without a word."""

    revision: str
    file: str
    rule: str
    message: str
    mend: str
    line: int | None
    """Of the file, or of the migration's SQL where `sql` is given; counted from 1. None: the whole migration."""
    sql: str | None
    """That line of the SQL."""


async def lint(
    revisions: Sequence[str] = (),
    *,
    timeouts: Timeouts | None = None,
    metadata: MetaData | None = None,
    versions: Path | None = None,
    squawk: Path | None = None,
) -> tuple[Finding, ...]:
    """What there is to say against the given migrations, or all of them: in their order, by line. Needs no database.

    Each is rendered to SQL and read by squawk, with the `.squawk.toml` that is nearest to the folder of the migrations, and
    by rules of our own. A line `# lint: allow RULE, RULE - reason` in a migration takes it out of these rules.

    `squawk` is its program, by default the one beside this Python's or on the path. Raises `ConfigurationError` where there
    is none or its configuration is wrong, `SchemaUnknownRevision`, and `SchemaError` for files that are no history.
    """
    scripts, program = read(versions), squawk or _program()
    chosen = _chosen(scripts, revisions)
    complaints: dict[str, list[Complaint]] = {}
    sources: dict[str, list[str]] = {}
    for item in chosen:
        sql, refusal = await _sql(item, scripts, metadata or project_metadata(), timeouts or Timeouts())
        source = (scripts.folder / item.file).read_text(encoding="utf-8")
        sources[item.revision] = sql.splitlines()
        complaints[item.revision] = [*about_file(source), *refusal, *about_sql(sql)]
    for revision, found in (await _ask(program, sources, _configuration(scripts.folder))).items():
        complaints[revision].extend(found)
    return tuple(
        finding
        for item in chosen
        for finding in _judge(item, complaints[item.revision], scripts.folder, sources[item.revision])
    )


def _chosen(scripts: Scripts, revisions: Sequence[str]) -> tuple[Revision, ...]:
    wanted = {name if name in scripts.revisions else scripts.resolve(name, current=None) for name in revisions}
    lines = [scripts.line(head) for head in scripts.heads]
    every = tuple(dict.fromkeys(item for line in lines for item in line))
    return tuple(item for item in every if not revisions or item.revision in wanted)


def _program() -> Path:
    beside = Path(sys.executable).with_name("squawk")
    found = str(beside) if beside.is_file() else shutil.which("squawk")
    if found is None:
        raise ConfigurationError(
            "squawk, which reads the SQL of the migrations, is not installed",
            hint="`pip install squawk-cli`; in a checkout `make check` installs it.",
        )
    return Path(found)


def _configuration(folder: Path) -> Path | None:
    above = folder.resolve()
    return next((path for place in (above, *above.parents) if (path := place / CONFIGURATION).is_file()), None)


async def _sql(
    revision: Revision, scripts: Scripts, metadata: MetaData, timeouts: Timeouts
) -> tuple[str, list[Complaint]]:
    """The upgrade as SQL, without the statements on Alembic's own table, whose lines are left blank."""
    from core.database.schema._render import render  # late: it imports Alembic

    try:
        async with alembic_guard(timeouts=timeouts):
            sql = render(None, revision, scripts=scripts, metadata=metadata, up=True, timeouts=timeouts, partitions={})
    except Exception as error:  # a migration is foreign code: it may raise anything
        return "", [Complaint("not-renderable", f"It cannot be written as SQL: {type(error).__name__}: {error}")]
    return _OWN_TABLE.sub(lambda found: "\n" * found[0].count("\n"), sql), []


async def _ask(
    program: Path, sources: Mapping[str, Sequence[str]], configuration: Path | None
) -> dict[str, list[Complaint]]:
    """What squawk says, by revision."""
    with tempfile.TemporaryDirectory(prefix="panda-lint-") as name:
        files: dict[str, str] = {}
        for number, (revision, lines) in enumerate(sources.items()):
            path = Path(name) / f"{number}.sql"
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
            files[str(path)] = revision
        if not files:
            return {}
        arguments = ["--config", str(configuration)] if configuration else []
        process = await asyncio.create_subprocess_exec(
            program,
            "--reporter",
            "json",
            *arguments,
            *files,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=name,
        )
        output, errors = await process.communicate()
    said = errors.decode(errors="replace").strip()
    found = read_squawk(output.decode(errors="replace"), files)
    if process.returncode and not any(found.values()):
        raise ConfigurationError(
            f"squawk failed: {said.splitlines()[0] if said else f'exit code {process.returncode}'}",
            hint=f"Check {configuration}." if configuration else "Run `squawk --version`; 2.70 or newer is needed.",
        )
    return found


def read_squawk(output: str, files: Mapping[str, str]) -> dict[str, list[Complaint]]:
    """The complaints by revision in the JSON that squawk prints; `files` says which revision stands in which file.

    Raises `SchemaError` for anything else.
    """
    found: dict[str, list[Complaint]] = {revision: [] for revision in files.values()}
    try:
        items = json.loads(output or "[]")
        if not isinstance(items, list):
            raise TypeError("a list expected")
        for item in cast("list[dict[str, Any]]", items):
            complaint = Complaint(
                rule=_text(item["rule_name"]),
                message=" ".join(_text(item["message"]).split()),
                mend=" ".join(_text(item["help"]).split()) if item.get("help") else "",
                sql_line=int(item["line"]) + 1,
            )
            found[files[_text(item["file"])]].append(complaint)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise SchemaError(
            "squawk's answer cannot be read", hint="Run `squawk --version`; 2.70 or newer is needed."
        ) from error
    return found


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("text expected")
    return value


def _judge(revision: Revision, complaints: Iterable[Complaint], folder: Path, sql: Sequence[str]) -> Iterable[Finding]:
    """Without what the file exempts itself from; an exemption that has no reason or no use is a finding itself."""
    exempt = exemptions((folder / revision.file).read_text(encoding="utf-8"))
    allowed = {rule for item in exempt for rule in item.rules if item.reason}
    used: set[str] = set()
    kept: list[Complaint] = []
    for complaint in complaints:
        if complaint.rule in allowed:
            used.add(complaint.rule)
        else:
            kept.append(complaint)
    kept.extend(_about_exemptions(exempt, used))
    for complaint in sorted(kept, key=lambda item: (item.sql_line or 0, item.file_line or 0, item.rule)):
        place = complaint.sql_line
        yield Finding(
            revision=revision.revision,
            file=revision.file,
            rule=complaint.rule,
            message=complaint.message,
            mend=mend_of(complaint),
            line=place or complaint.file_line,
            sql=sql[place - 1].strip() if place and place <= len(sql) else None,
        )


def _about_exemptions(exempt: Sequence[Exemption], used: set[str]) -> Iterable[Complaint]:
    for item in exempt:
        if not item.reason:
            yield Complaint("exemption-without-reason", "An exemption says why.", file_line=item.line)
            continue
        for rule in sorted(item.rules - used):
            yield Complaint("exemption-unused", f"{rule} has nothing to say here.", file_line=item.line)
