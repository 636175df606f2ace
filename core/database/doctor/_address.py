"""Where the URL leads, before anything is sent."""

from dataclasses import dataclass
from pathlib import Path

from core.database import embedded
from core.database.doctor._finding import Finding, Note, Status, summed
from core.database.encryption import KeyRing
from core.database.engine import DatabaseUrl, EngineOptions, is_guessed, tls_mode
from core.database.errors import EncryptionError, PandaDatabaseError


@dataclass(frozen=True, slots=True)
class Address:
    """Where to go on, or None where that is known to be of no use."""

    findings: tuple[Finding, ...]
    url: DatabaseUrl | None
    data_directory: Path | None = None


def locate(text: str, options: EngineOptions) -> Address:
    """Read the URL; look at the built-in server without touching it."""
    try:
        if embedded.is_embedded_url(text):
            return _embedded(text)
        url = DatabaseUrl.parse(text)
    except PandaDatabaseError as error:
        return Address((Finding("url", "error", error.message, error.hint),), None)
    found = _url(url, options)
    try:
        tls_mode(url, options.tls, options.environment)
    except PandaDatabaseError as error:
        return Address((found, Finding("tls", "error", error.message, error.hint)), None)
    return Address((found,), url)


def secrets(url: DatabaseUrl, encryption_keys: str | None, *, grave: Status) -> Finding:
    """Passwords and keys that anybody would try first; a malformed key is told by the check `encryption`."""
    notes: list[Note] = []
    if is_guessed(url):
        notes.append(
            Note(
                grave,
                "the password in the URL is one that anybody would try first",
                f"ALTER ROLE \"{url.user}\" PASSWORD '...'; with a random one, then set it in DATABASE__POSTGRES_URL",
            )
        )
    weak = _weak_keys(encryption_keys)
    if weak:
        notes.append(
            Note(
                grave,
                f"the encryption key {weak[0]!r} is no random one",
                "Put a new key first in DATABASE__ENCRYPTION_KEYS: openssl rand -base64 32",
            )
        )
    fine = "no password in the URL" if url.password is None else "the password is none of the usual ones"
    return summed("secrets", notes, fine=fine)


def _embedded(text: str) -> Address:
    state = embedded.EmbeddedServer.from_url(text).status()
    found = Finding("url", "ok", f"the built-in server in {state.directory}", None, {"directory": str(state.directory)})
    if state.url is None:
        what = "is starting or stopping" if state.running else "is not running"
        down = Finding("server", "error", f"the built-in server {what}", "panda up", {"log": str(state.log_file)})
        return Address((found, down), None)
    return Address((found,), DatabaseUrl.parse(state.url), state.directory / "data")


def _url(url: DatabaseUrl, options: EngineOptions) -> Finding:
    notes: list[Note] = []
    if not url.is_local and options.environment == "development":
        notes.append(
            Note(
                "warning",
                f"{url} is on another machine, yet the environment is development: an application would migrate it "
                "unasked and not demand TLS",
                "ENVIRONMENT=production, or staging",
            )
        )
    if not url.database:
        notes.append(Note("warning", f"{url} names no database", "postgresql://user:password@host:5432/database"))
    hosts = [f"{host}:{port}" for host, port in url.hosts]
    return summed("url", notes, fine=str(url), details={"url": str(url), "hosts": hosts})


def _weak_keys(encryption_keys: str | None) -> tuple[str, ...]:
    """The ids of keys that are a pattern or a text."""
    if not encryption_keys:
        return ()
    try:
        return KeyRing.parse(encryption_keys).guessed_ids
    except EncryptionError:
        return ()
