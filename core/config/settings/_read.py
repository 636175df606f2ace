"""The environment, `.env` and secret files, read strictly: what is not understood is refused, not passed over.

One layer is read after the other; a value of the real environment beats one of `.env`. Within a layer the setting's own
name beats DATABASE_URL.
"""

import io
import os
import re
import stat
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from core.config.settings._errors import SettingProblem, SettingsWarning, did_you_mean
from core.printable import printable

URL = "DATABASE__POSTGRES_URL"
GROUP = "DATABASE__"
GROUPS = (GROUP, "TRADING__")
"""Names that begin so are ours: one that is no setting is refused."""
ALIAS = "DATABASE_URL"
FROM_FILE = {f"{name}_FILE": name for name in (URL, "DATABASE__ENCRYPTION_KEYS", ALIAS)}
"""The settings whose value may be the content of a file, by the name of the variable that holds its path."""

_MAX_SECRET = 65_536

SourceKind = Literal["default", "argument", "environment", ".env"]
Place = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value came from; `name` is the variable, `is_file` tells that it named a file that holds the value."""

    kind: SourceKind
    name: str = ""
    is_file: bool = False

    def __str__(self) -> str:
        text = f"{self.kind} {self.name}".strip()
        return f"{text} (file)" if self.is_file else text


@dataclass(frozen=True, slots=True)
class Found:
    """A value and its source."""

    value: str = field(repr=False)
    source: Source


class Reader:
    """Collects values by the place of their field, and the problems met on the way.

    `known` gives the place of each setting by its name in the environment.
    """

    def __init__(self, known: Mapping[str, Place]) -> None:
        self.known = known
        self.problems: list[SettingProblem] = []

    def read(self, env_file: Path | None) -> dict[Place, Found]:
        """All values that are set. Problems are appended to `problems`; warnings are issued."""
        layers: list[dict[Place, Found]] = []
        if env_file is not None and env_file.is_file():
            layers.append(self._layer(".env", self._env_file(env_file)))
        layers.append(self._layer("environment", os.environ))
        merged = {place: found for layer in layers for place, found in layer.items()}
        return {place: opened for place, found in merged.items() if (opened := self._open(found)) is not None}

    def _refuse(self, name: str, message: str, kind: SourceKind) -> None:
        self.problems.append(SettingProblem(name, message, ".env" if kind == ".env" else ""))

    def _env_file(self, path: Path) -> Mapping[str, str | None]:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            self.problems.append(SettingProblem(str(path), f"cannot be read: {reason}"))
            return {}
        for binding in parse_stream(io.StringIO(text)):
            if not binding.error:
                continue
            message = f"line {binding.original.line} is not NAME=value"
            if "DATABASE" in binding.original.string.upper() or "ENVIRONMENT" in binding.original.string.upper():
                self.problems.append(SettingProblem(str(path), message))
            else:
                warnings.warn(printable(f"{path} {message}; it is passed over"), SettingsWarning, stacklevel=2)
        return dotenv_values(stream=io.StringIO(text))

    def _layer(self, kind: SourceKind, raw: Mapping[str, str | None]) -> dict[Place, Found]:
        values = self._ours(kind, raw)
        found: dict[Place, Found] = {}
        for name in (ALIAS, *self.known):  # the alias first, so that the setting's own name replaces it
            file_name = f"{name}_FILE" if f"{name}_FILE" in FROM_FILE else ""
            if name in values and file_name in values:
                self._refuse(name, f"and {file_name} are both set; remove one", kind)
            for given in (name, file_name):
                if given not in values:
                    continue
                place = self.known[URL if name == ALIAS else name]
                found[place] = Found(values[given], Source(kind, given, is_file=given == file_name))
        for place, item in list(found.items()):
            if not item.value:
                self._refuse(item.source.name, "is set but empty; give it a value or remove it", kind)
                del found[place]
        return found

    def _ours(self, kind: SourceKind, raw: Mapping[str, str | None]) -> dict[str, str]:
        """The variables that are settings, by their upper-case name; look-alikes are refused or warned of."""
        names = [*self.known, *FROM_FILE, ALIAS]
        ours: dict[str, str] = {}
        spelled: dict[str, str] = {}
        for name, value in raw.items():
            upper = name.upper()
            if upper in names:
                if upper in ours and ours[upper] != (value or ""):
                    self._refuse(upper, f"is set twice, as {spelled[upper]} and as {name}", kind)
                ours[upper], spelled[upper] = value or "", name
            elif upper.startswith(GROUPS):
                self._refuse(name, self._unknown(upper, names), kind)
            else:
                self._look_alike(name, value or "", names, kind)
        return ours

    def _unknown(self, name: str, names: Sequence[str]) -> str:
        members = [known for known in names if known.startswith(f"{name}__")]
        if members:
            return f"is a group, not a setting; set its members by name, such as {members[0]}"
        return f"is not a setting{did_you_mean(name, names)}"

    def _look_alike(self, name: str, value: str, names: Sequence[str], kind: SourceKind) -> None:
        """Variables outside the group belong to anybody, so these are warnings; JSON in DATABASE can only be ours."""
        upper = name.upper()
        if upper == GROUP.rstrip("_") and value.lstrip().startswith("{"):
            self._refuse(name, f"holds JSON, which is not read; set each setting by its name, such as {URL}", kind)
            return
        single = {re.sub("_+", "_", known): known for known in names if known.startswith(GROUPS)}
        meant = single.get(re.sub("_+", "_", upper)) or ("ENVIRONMENT" if upper in _ENVIRONMENT_TYPOS else None)
        if meant:
            told = f"{name} is not a setting and is not read; did you mean {meant}?"
            warnings.warn(printable(told), SettingsWarning, 2)

    def _open(self, found: Found) -> Found | None:
        """The value itself, for a variable that names a file; None when that cannot be read."""
        if not found.source.is_file:
            return found
        name, kind, path = found.source.name, found.source.kind, Path(found.value).expanduser()
        try:
            with path.open("rb") as file:
                content = file.read(_MAX_SECRET + 1)
                mode = os.fstat(file.fileno()).st_mode
            text = content.decode().rstrip("\r\n")
        except (OSError, UnicodeDecodeError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it does not hold UTF-8 text"
            self._refuse(name, f"names a file that cannot be read{_shown(path)}: {reason}", kind)
            return None
        if not text or len(content) > _MAX_SECRET:
            self._refuse(name, f"names a file that is {'too large' if text else 'empty'}{_shown(path)}", kind)
            return None
        if stat.S_ISREG(mode) and mode & stat.S_IROTH:
            warnings.warn(f"the file that {name} names can be read by everybody; chmod o-r it", SettingsWarning, 2)
        return Found(text, found.source)


_ENVIRONMENT_TYPOS = frozenset(
    {
        "ENVIROMENT",
        "ENVIRONEMENT",
        "ENVIRONMNET",
        "ENVIRONMET",
        "ENVIRONMEN",
        "ENVIRNOMENT",
        "ENVIRONMENTS",
        "ENVIORNMENT",
    }
)


def _shown(path: Path) -> str:
    """The path, in brackets, when it is plainly a path; a secret put there by mistake must not be repeated."""
    return f" ({path})" if path.is_absolute() and path.parent != Path("/") and path.parent.is_dir() else ""
