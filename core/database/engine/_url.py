"""The database URL, parsed and checked once; what it says is kept as values and the password is never shown."""

import difflib
import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn, get_args
from urllib.parse import quote, unquote

from core.config.options import TlsMode
from core.database.driver import SessionAttrs
from core.database.errors import InvalidUrl

_SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg", "postgresql+panda")
_DEFAULT_PORT = 5432
_EXAMPLE = "Write postgresql://user:password@host:5432/database."
_ESCAPE = "Percent-encode @ : / ? # % in the user name and password: urllib.parse.quote(password, safe='')."
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SETTING = re.compile(r"-c\s*([a-z_.]+)=((?:\\.|\S)*)\s*")
_PARAMETERS = (
    "application_name",
    "connect_timeout",
    "database",
    "dbname",
    "host",
    "options",
    "password",
    "port",
    "ssl",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
    "user",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DatabaseUrl:
    """A PostgreSQL URL as values. A host that starts with `/` is the folder of a unix socket."""

    hosts: tuple[tuple[str, int], ...]
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    database: str | None = None
    sslmode: TlsMode | None = None
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None
    connect_timeout: float | None = None
    application_name: str | None = None
    target_session_attrs: SessionAttrs | None = None
    server_settings: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, url: str) -> "DatabaseUrl":
        """Read postgres://, postgresql:// and postgresql+asyncpg:// with libpq's parameters and several hosts.

        Raises `InvalidUrl`, whose text says what to write instead and repeats neither the user name nor the password.
        """
        scheme, authority, path, query = _split(url)
        credentials, _, location = authority.rpartition("@")
        values = _parameters(query)
        user, password = _credentials(credentials)
        database = _decoded(path, "database name") or None
        return cls(
            hosts=_hosts(location, values.pop("host", []), values.pop("port", [])),
            user=_single(values, "user") or user,
            password=_single(values, "password") or password,
            database=_single(values, "dbname") or _single(values, "database") or database,
            **_options(values, scheme),
        )

    @property
    def is_local(self) -> bool:
        """Every host is this machine: a unix socket, localhost or a loopback address."""
        return all(_is_local(host) for host, _ in self.hosts)

    def __str__(self) -> str:
        """The URL with the password replaced by ***."""
        user = quote(self.user or "", safe="")
        secret = ":***" if self.password is not None else ""
        at = "@" if user or secret else ""
        database = quote(self.database or "", safe="")
        if len(self.hosts) == 1 and self.hosts[0][0].startswith("/"):
            host, port = self.hosts[0]
            tail = "" if port == _DEFAULT_PORT else f"&port={port}"
            return f"postgresql://{user}{secret}{at}/{database}?host={quote(host, safe='/')}{tail}"
        hosts = ",".join(_written(host, port) for host, port in self.hosts)
        query = f"?sslmode={self.sslmode}" if self.sslmode else ""
        return f"postgresql://{user}{secret}{at}{hosts}/{database}{query}"


def _fail(message: str, hint: str = _EXAMPLE) -> NoReturn:
    raise InvalidUrl(message, hint=hint)


def _split(url: Any) -> tuple[str, str, str, str]:
    """Scheme, authority, path and query; what betrays an unescaped character is refused."""
    if not isinstance(url, str) or not url.strip():
        _fail("the database URL is empty")
    if any(ord(char) <= 32 or ord(char) == 127 for char in url):
        _fail("the database URL holds a blank or a control character", _ESCAPE)
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        known = scheme if separator and re.fullmatch(r"[a-z0-9+]{1,40}", scheme) else "none"
        _fail(f"the database URL has the scheme {known!r}; this project speaks to PostgreSQL through asyncpg")
    if "#" in rest:
        _fail("the database URL holds an unescaped '#'", _ESCAPE)
    if _BAD_ESCAPE.search(rest):
        _fail("the database URL holds a '%' that is not followed by two hexadecimal digits", _ESCAPE)
    main, _, query = rest.partition("?")
    authority, _, path = main.partition("/")
    if authority.count("@") > 1 or "@" in path or ("@" in query and "@" not in authority):
        _fail("the user name or password in the database URL holds a character that must be escaped", _ESCAPE)
    if "/" in path:
        _fail("the database name in the URL holds an unescaped '/'", _ESCAPE)
    return scheme, authority, path, query


def _decoded(text: str, what: str) -> str:
    try:
        plain = unquote(text, errors="strict")
    except UnicodeDecodeError:
        _fail(f"the {what} in the database URL is not UTF-8 when decoded", _ESCAPE)
    if "\x00" in plain:
        _fail(f"the {what} in the database URL holds a NUL character", _ESCAPE)
    return plain


def _credentials(text: str) -> tuple[str | None, str | None]:
    if not text:
        return None, None
    user, colon, password = text.partition(":")
    return _decoded(user, "user name") or None, _decoded(password, "password") if colon else None


def _parameters(query: str) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for item in filter(None, query.split("&")):
        name, equals, value = item.partition("=")
        if name not in _PARAMETERS:
            _unknown_parameter(name)
        if not equals:
            _fail(f"the parameter {name!r} of the database URL has no value")
        values.setdefault(name, []).append(_decoded(value, name))
    return values


def _unknown_parameter(name: str) -> NoReturn:
    if not re.fullmatch(r"[A-Za-z_]{1,40}", name):
        _fail("the query of the database URL is not of the form ?name=value&name=value", _ESCAPE)
    near = difflib.get_close_matches(name, _PARAMETERS, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known parameters: {', '.join(_PARAMETERS)}."
    _fail(f"the database URL has an unknown parameter {name!r}", hint)


def _single(values: dict[str, list[str]], name: str) -> str | None:
    given = values.pop(name, [])
    if len(given) > 1:
        _fail(f"the parameter {name!r} stands more than once in the database URL")
    return given[0] if given else None


def _hosts(location: str, named: list[str], ports: list[str]) -> tuple[tuple[str, int], ...]:
    """From `a:1,b:2`, from `?host=a:1&host=b:2`, or from libpq's `?host=a,b&port=1,2`."""
    if location and named:
        _fail("the database URL names hosts both before the '/' and as a parameter")
    entries = [entry for text in (named or [location]) for entry in text.split(",")]
    common = [entry for text in ports for entry in text.split(",")]
    if len(common) > 1 and len(common) != len(entries):
        _fail(f"the database URL has {len(entries)} hosts but {len(common)} ports")
    default = _port(common[0]) if len(common) == 1 else _DEFAULT_PORT
    pairs = [_host(entry, default) for entry in entries]
    if len(common) > 1:
        pairs = [(host, _port(port)) for (host, _), port in zip(pairs, common, strict=True)]
    return tuple(pairs)


def _host(entry: str, default: int) -> tuple[str, int]:
    text = _decoded(entry, "host")
    if text.startswith("/"):
        return text, default
    bracketed = re.fullmatch(r"\[([0-9A-Fa-f:.%a-z]+)\](?::(.*))?", text)
    if bracketed:
        return bracketed[1], _port(bracketed[2]) if bracketed[2] is not None else default
    host, colon, port = text.partition(":")
    if ":" in port:
        _fail("an IPv6 address in the database URL stands without brackets", "Write [::1]:5432.")
    if host and not re.fullmatch(r"[A-Za-z0-9._-]+", host):
        _fail("the host in the database URL holds a character that no host name has", _ESCAPE)
    return host or "localhost", _port(port) if colon else default


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65_536:
        _fail("the port in the database URL is not a number from 1 to 65535", f"{_EXAMPLE} {_ESCAPE}")
    return int(text)


def _options(values: dict[str, list[str]], scheme: str) -> dict[str, Any]:
    """The parameters that are neither place nor person, each checked."""
    ssl = _single(values, "ssl")
    sslmode = _single(values, "sslmode") or {"true": "require", "false": "disable"}.get(ssl or "", ssl)
    options: dict[str, Any] = {"sslmode": _choice("sslmode", sslmode, get_args(TlsMode))}
    for name in ("sslrootcert", "sslcert", "sslkey", "application_name"):
        options[name] = _single(values, name)
    options["target_session_attrs"] = _choice(
        "target_session_attrs", _single(values, "target_session_attrs"), get_args(SessionAttrs)
    )
    limit = _single(values, "connect_timeout")
    if limit is not None and (not re.fullmatch(r"[0-9]{1,5}", limit) or not int(limit)):
        _fail("connect_timeout in the database URL is not a whole number of seconds above 0")
    options["connect_timeout"] = float(limit) if limit else None
    options["server_settings"] = _server_settings(_single(values, "options"))
    return options


def _choice(name: str, value: str | None, choices: tuple[str, ...]) -> str | None:
    if value is not None and value not in choices:
        _fail(f"{name} in the database URL is none of the known modes", f"Choose one of {', '.join(choices)}.")
    return value


def _server_settings(text: str | None) -> tuple[tuple[str, str], ...]:
    """The parameter options=-c name=value -c name=value."""
    if not text:
        return ()
    if re.sub(_SETTING, "", text.strip()):
        _fail("options in the database URL is not of the form -c name=value", "Write options=-c%20search_path%3Dapp.")
    return tuple((name, re.sub(r"\\(.)", r"\1", value)) for name, value in _SETTING.findall(text))


def _is_local(host: str) -> bool:
    if host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _written(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
