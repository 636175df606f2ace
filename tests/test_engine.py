"""The URL, read once: what is accepted, what is refused and in which words, and never the password."""

import ssl
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config.options import TlsOptions
from core.database.engine import DatabaseUrl, EngineOptions, build_engine, tls_mode
from core.database.errors import ConfigurationError, InvalidUrl

SECRET = "hunter2secret"


@pytest.mark.parametrize(
    ("url", "hosts", "database"),
    [
        ("postgres://u:p@h/d", (("h", 5432),), "d"),
        ("postgresql://u:p@h:6000/d", (("h", 6000),), "d"),
        ("postgresql+asyncpg://u:p@h/d", (("h", 5432),), "d"),
        ("postgresql:///d?host=/var/run/pg", (("/var/run/pg", 5432),), "d"),
        ("postgresql://%2Ftmp%2Fpg/d", (("/tmp/pg", 5432),), "d"),
        ("postgresql:///d?host=/tmp&port=6000", (("/tmp", 6000),), "d"),
        ("postgresql://u@[::1]:5433/d", (("::1", 5433),), "d"),
        ("postgresql://u@a:1,b:2,c/d", (("a", 1), ("b", 2), ("c", 5432)), "d"),
        ("postgresql:///d?host=a:1&host=b:2", (("a", 1), ("b", 2)), "d"),
        ("postgresql:///d?host=a,b&port=1,2", (("a", 1), ("b", 2)), "d"),
        ("postgresql:///?dbname=d&host=a", (("a", 5432),), "d"),
        ("postgresql://localhost", (("localhost", 5432),), None),
    ],
)
def test_the_forms_of_libpq_and_sqlalchemy_are_read(url, hosts, database) -> None:
    parsed = DatabaseUrl.parse(url)
    assert (parsed.hosts, parsed.database) == (hosts, database)


def test_libpqs_parameters_become_values() -> None:
    url = DatabaseUrl.parse(
        "postgresql://u:p@h/d?sslmode=verify-full&sslrootcert=/ca.pem&connect_timeout=7&application_name=a%20b"
        "&target_session_attrs=read-write&options=-c%20search_path%3Dapp%20-c%20work_mem%3D8MB"
    )
    assert (url.sslmode, url.sslrootcert, url.connect_timeout) == ("verify-full", "/ca.pem", 7.0)
    assert (url.application_name, url.target_session_attrs) == ("a b", "read-write")
    assert dict(url.server_settings) == {"search_path": "app", "work_mem": "8MB"}


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("", "empty"),
        ("localhost/db", "scheme"),
        (f"mysql://u:{SECRET}@h/d", "scheme"),
        (f"postgresql+psycopg2://u:{SECRET}@h/d", "scheme"),
        (f"postgresql://u:{SECRET}@x@h/d", "escaped"),
        (f"postgresql://u:{SECRET}/x@h/d", "escaped"),
        (f"postgresql://u:{SECRET}?x@h/d", "escaped"),
        (f"postgresql://u:{SECRET}#x@h/d", "'#'"),
        (f"postgresql://u:{SECRET}%zz@h/d", "'%'"),
        (f"postgresql://u:{SECRET} x@h/d", "blank"),
        (f"postgresql://u:{SECRET}@h:port/d", "port"),
        (f"postgresql://u:{SECRET}@h:70000/d", "port"),
        (f"postgresql://u:{SECRET}@::1/d", "brackets"),
        (f"postgresql://u:{SECRET}@h/d?sslmod=require", "sslmod"),
        (f"postgresql://u:{SECRET}@h/d?sslmode=requird", "sslmode"),
        (f"postgresql://u:{SECRET}@h/d?connect_timeout=soon", "connect_timeout"),
        (f"postgresql://u:{SECRET}@h/d?pool_size=5", "pool_size"),
        (f"postgresql://u:{SECRET}@h/d?options=--x", "options"),
        (f"postgresql://u:{SECRET}@a,b/d?port=1,2,3", "ports"),
        (f"postgresql://u:{SECRET}@h/d?host=other", "hosts"),
        (f"postgresql://u:{SECRET}@h/a/b", "'/'"),
        (f"postgresql://u:{SECRET}%00@h/d", "NUL"),
        (f"postgresql://u:{SECRET}%ff@h/d", "UTF-8"),
    ],
)
def test_what_cannot_work_is_refused_in_words_without_the_password(url: str, word: str) -> None:
    with pytest.raises(InvalidUrl) as caught:
        DatabaseUrl.parse(url)
    assert word in str(caught.value)
    assert SECRET not in repr(caught.value) + str(caught.value)


def test_an_unknown_parameter_is_answered_with_the_nearest() -> None:
    with pytest.raises(InvalidUrl, match="Did you mean 'sslmode'"):
        DatabaseUrl.parse("postgresql://h/d?sslmod=require")


@given(st.text(min_size=1, max_size=40).filter(lambda text: "\x00" not in text and text.isprintable()))
def test_any_password_survives_when_escaped_and_is_never_shown(password: str) -> None:
    password = f"{password}☃{SECRET}"
    url = DatabaseUrl.parse(f"postgresql://u:{quote(password, safe='')}@h/d")
    assert url.password == password
    assert SECRET not in f"{url!r}{url}"
    assert "***" in str(url)


@given(st.text(max_size=60))
def test_no_text_at_all_breaks_the_reader_or_is_echoed(text: str) -> None:
    try:
        DatabaseUrl.parse(f"postgresql://user:{SECRET}{text}@host/db")
    except InvalidUrl as error:
        assert SECRET not in f"{error}{error!r}"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.53", "[::1]", "%2Ftmp"])
def test_this_machine_needs_no_tls_anywhere(host: str) -> None:
    assert tls_mode(DatabaseUrl.parse(f"postgresql://{host}/d"), TlsOptions(), "production") == "prefer"


@pytest.mark.parametrize("environment", ["staging", "production"])
@pytest.mark.parametrize("mode", ["disable", "prefer", "require", "verify-ca"])
def test_another_machine_needs_verify_full_where_money_is_real(environment, mode) -> None:
    url = DatabaseUrl.parse(f"postgresql://u:{SECRET}@db.example/d?sslmode={mode}")
    with pytest.raises(ConfigurationError, match="verify-full") as caught:
        tls_mode(url, TlsOptions(), environment)
    assert SECRET not in str(caught.value)
    plain = DatabaseUrl.parse("postgresql://db.example/d")
    assert tls_mode(plain, TlsOptions(), environment) == "verify-full"


def test_two_contradicting_tls_modes_are_refused() -> None:
    url = DatabaseUrl.parse("postgresql://h/d?sslmode=require")
    with pytest.raises(ConfigurationError, match="one place"):
        tls_mode(url, TlsOptions(mode="verify-full"), "development")


def test_a_tls_file_that_is_not_there_is_named_as_the_reason(tmp_path) -> None:
    url = DatabaseUrl.parse(f"postgresql://h/d?sslmode=verify-full&sslrootcert={tmp_path}/none.pem")
    with pytest.raises(ConfigurationError, match="TLS file"):
        build_engine(url, EngineOptions())


@pytest.mark.parametrize(
    ("mode", "verify", "name"),
    [
        ("require", ssl.CERT_NONE, False),
        ("verify-ca", ssl.CERT_REQUIRED, False),
        ("verify-full", ssl.CERT_REQUIRED, True),
    ],
)
def test_each_mode_checks_what_libpq_checks(mode, verify, name) -> None:
    from core.database.engine._build import _tls

    context = _tls(DatabaseUrl.parse(f"postgresql://h/d?sslmode={mode}"), EngineOptions())
    assert (context.verify_mode, context.check_hostname) == (verify, name)


def test_the_engine_itself_holds_no_password() -> None:
    engine = build_engine(DatabaseUrl.parse(f"postgresql://u:{SECRET}@h/d"), EngineOptions())
    assert SECRET not in repr(engine) + str(engine.url.render_as_string(hide_password=False))


def test_behind_pgbouncer_only_the_application_name_is_sent_at_startup() -> None:
    from core.database.engine._build import _spec

    spec = _spec(DatabaseUrl.parse("postgresql://h/d"), EngineOptions(pgbouncer=True), read_only=False)
    assert set(spec.server_settings) == {"application_name"}
    assert not spec.prepared_statements


@pytest.mark.parametrize("name", ["a\ud800", "a\0b"])
def test_an_application_name_that_can_be_sent_nowhere_is_refused_at_once(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"application_name holds a .*Name it in plain text"):
        EngineOptions(application_name=name)
