"""The URL scheme `embedded:`, and the plain URL that it stands for."""

import os
import sys
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes, urlsplit

import platformdirs

from core.database.errors import InvalidUrl

_SCHEME = "embedded:"
_MEND = "Write embedded: for the default folder or embedded:///absolute/folder, with %XX for special characters."
_HEX = frozenset("0123456789abcdefABCDEF")


def system_folder() -> Path:
    """Where root keeps the server's copy and, by default, the data."""
    return Path("/Library/Application Support/alpha-panda" if sys.platform == "darwin" else "/var/lib/alpha-panda")


def default_directory() -> Path:
    """What `embedded:` means: below the user's data folder (XDG_DATA_HOME is honoured); for root a system folder."""
    if os.geteuid() == 0:
        return system_folder() / "embedded"
    return platformdirs.user_data_path("alpha-panda", appauthor=False) / "embedded"


def is_embedded_url(url: str) -> bool:
    """Whether the URL has the scheme `embedded:`; it may still be an invalid one."""
    return url[: len(_SCHEME)].lower() == _SCHEME


def directory_of(url: str) -> Path:
    """The folder that an `embedded:` URL names. The text of `InvalidUrl` never repeats the URL."""
    if not is_embedded_url(url):
        raise InvalidUrl("This is not an embedded: URL", hint=_MEND)
    rest = url[len(_SCHEME) :]
    if not rest:
        return default_directory()
    if "?" in rest or "#" in rest:
        raise InvalidUrl("An embedded: URL takes no query string and no fragment", hint=_MEND)
    if not rest.startswith("//"):
        raise InvalidUrl("An embedded: URL needs an absolute folder after three slashes", hint=_MEND)
    if not rest.startswith("///"):
        raise InvalidUrl("An embedded: URL names no host, user or port", hint=_MEND)
    return _decoded(urlsplit(rest).path)


def server_url(socket_folder: Path) -> str:
    """The URL of the application's role and database behind that socket folder."""
    return f"postgresql://panda@/panda?host={quote(os.fsencode(socket_folder), safe='/')}"


def _decoded(path: str) -> Path:
    for escape in path.split("%")[1:]:
        if len(escape) < 2 or not _HEX.issuperset(escape[:2]):
            raise InvalidUrl("A % in an embedded: URL must be followed by two hexadecimal digits", hint=_MEND)
    raw = unquote_to_bytes(path)
    if any(byte < 0x20 or byte == 0x7F for byte in raw):
        raise InvalidUrl("The folder of an embedded: URL holds a control character", hint=_MEND)
    directory = Path(os.fsdecode(raw))
    if not directory.name or ".." in directory.parts:
        raise InvalidUrl("An embedded: URL must name a folder below the root, without ..", hint=_MEND)
    return directory
