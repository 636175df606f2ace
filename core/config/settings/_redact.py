"""A database URL as it may be shown: without its password, whatever state the URL is in."""

import re
from urllib.parse import unquote_plus

HIDDEN = "***"

# A word that is no database's may be the beginning of a password given in a URL's place.
_SCHEME = re.compile(
    r"(?:postgres|postgresql|postgis|embedded|cockroachdb|redshift|mysql|mariadb|sqlite|mssql|oracle|https?)(?:\+[a-z0-9_]+)?"
)
_HOST = r"(?:[A-Za-z0-9._~\-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_HOSTS = re.compile(rf"{_HOST}(?:,{_HOST})*")
_FOLDER = re.compile(r"(?:(?://)?/(?!/)[^?]*)?")
_USER = re.compile(r"[A-Za-z0-9._~%\-]*")
_DATABASE = re.compile(r"[A-Za-z0-9._~\-]*")
# Whatever is not listed is hidden: a part of an unescaped password may look like any parameter.
_SHOWN_PARAMETERS = frozenset(
    {
        "application_name", "channel_binding", "connect_timeout", "dbname", "gssencmode", "host", "hostaddr",
        "load_balance_hosts", "port", "sslcert", "sslcrl", "sslkey", "sslmode", "sslrootcert", "sslnegotiation",
        "target_session_attrs", "user",
    }
)  # fmt: skip


def redact_url(url: str) -> str:
    """The URL with its password and every unlisted query value replaced by `***`.

    Passwords may be percent-encoded or not: where an unescaped one makes the parts ambiguous, more is hidden rather
    than less. What does not begin with the scheme of a database is hidden whole.
    """
    scheme, colon, rest = url.partition(":")
    if not colon or not _SCHEME.fullmatch(scheme):
        return HIDDEN
    if scheme == "embedded" and _FOLDER.fullmatch(rest):
        return url
    if not rest.startswith("//"):
        return f"{scheme}:{HIDDEN}"
    return f"{scheme}://{_redact_rest(rest[2:])}"


def _redact_rest(rest: str) -> str:
    userinfo, at, tail = rest.rpartition("@")
    if not at:
        return _redact_place(tail)
    user, colon, _ = userinfo.partition(":")
    user = user if _USER.fullmatch(user) else HIDDEN
    shown = f"{user}:{HIDDEN}@" if colon else f"{user}@"
    # A question mark before the last @ belongs to an unescaped password, or the @ to a query value: nobody can tell.
    return shown + (HIDDEN if "?" in userinfo else _redact_place(tail))


def _redact_place(place: str) -> str:
    """`host:port/database?query`; only what is well-formed is shown."""
    address, mark, query = place.partition("?")
    hosts, slash, database = address.partition("/")
    if not _HOSTS.fullmatch(hosts):
        return HIDDEN
    shown = hosts + slash + (database if _DATABASE.fullmatch(database) else HIDDEN)
    return shown + (mark + "&".join(map(_redact_parameter, query.split("&"))) if mark else "")


def _redact_parameter(parameter: str) -> str:
    key, equals, _ = parameter.partition("=")
    name = unquote_plus(key).lower()
    if not parameter or (equals and name in _SHOWN_PARAMETERS):
        return parameter
    if equals and name in ("password", "sslpassword"):
        return f"{name}={HIDDEN}"
    return HIDDEN
