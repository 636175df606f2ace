"""Settings: what the environment, `.env` and secret files mean, what is refused, and that no secret is shown."""

import copy
import logging
import os
import pickle
import stat
import string
import warnings
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from core.config.options import PoolOptions, Timeouts
from core.config.settings import (
    DatabaseSettings,
    Settings,
    SettingsError,
    SettingsWarning,
    get_settings,
    redact_url,
)

SECRET = "hunter2-geheim"
URL = f"postgresql://panda:{SECRET}@db.internal:5432/panda"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """An environment without our names, in an empty working directory."""
    for name in list(os.environ):
        if name.upper().startswith("DATABASE") or name.upper() == "ENVIRONMENT":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def problems(**values: object) -> str:
    with pytest.raises(SettingsError) as caught:
        Settings(**values)  # type: ignore[arg-type]
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return str(caught.value)


def secret_file(path: Path, content: str, mode: int = 0o600) -> str:
    path.write_text(content)
    path.chmod(mode)
    return str(path)


def test_the_documented_fields_have_the_documented_defaults():
    settings = get_settings()
    assert settings.environment == "development"
    assert settings.database.postgres_url == "postgresql+asyncpg://user:pass@localhost:5432/db"
    assert settings.database.schema_management == "auto"
    assert settings.database.verify_migrations is True
    assert settings.database.pool == PoolOptions()
    assert settings.database.encryption_keys is None
    assert settings.database.url_is_default


def test_get_settings_is_read_once_until_its_cache_is_cleared(monkeypatch):
    first = get_settings()
    monkeypatch.setenv("ENVIRONMENT", "testing")
    assert get_settings() is first
    get_settings.cache_clear()
    assert get_settings().environment == "testing"


def test_every_kind_of_setting_is_read_from_the_environment(monkeypatch):
    for name, value in {
        "ENVIRONMENT": "production",
        "DATABASE__POSTGRES_URL": URL,
        "DATABASE__SCHEMA_MANAGEMENT": "migrations_only",
        "DATABASE__VERIFY_MIGRATIONS": "false",
        "DATABASE__POOL__SIZE": "7",
        "DATABASE__TIMEOUTS__STATEMENT": "0",
        "DATABASE__TLS__MODE": "verify-full",
        "DATABASE__TLS__CA_FILE": "/etc/ca.pem",
        "DATABASE__RETRY__MAX_ATTEMPTS": "2",
        "DATABASE__MONITORING__SLOW_QUERY": "1.5",
        "DATABASE__PGBOUNCER": "true",
        "DATABASE__APPLICATION_NAME": "desk-7",
        "DATABASE__ENCRYPTION_KEYS": f"k1:{SECRET}",
    }.items():
        monkeypatch.setenv(name, value)
    database = Settings().database
    assert Settings().environment == "production"
    assert (database.postgres_url, type(database.postgres_url)) == (URL, str)
    assert (database.schema_management, database.verify_migrations, database.pgbouncer) == (
        "migrations_only",
        False,
        True,
    )
    assert (database.pool, database.timeouts) == (PoolOptions(size=7), Timeouts(statement=0))
    assert (database.tls.mode, database.tls.ca_file) == ("verify-full", Path("/etc/ca.pem"))
    assert (database.retry.max_attempts, database.monitoring.slow_query) == (2, 1.5)
    assert database.application_name == "desk-7"
    assert database.encryption_keys is not None
    assert database.encryption_keys.get_secret_value() == f"k1:{SECRET}"
    assert not database.url_is_default


def test_names_are_read_in_any_case(monkeypatch):
    monkeypatch.setenv("database__pool__size", "4")
    assert Settings().database.pool.size == 4


def test_two_spellings_with_different_values_are_refused(monkeypatch):
    monkeypatch.setenv("DATABASE__POOL__SIZE", "4")
    monkeypatch.setenv("database__pool__size", "5")
    assert "DATABASE__POOL__SIZE is set twice" in problems()


def test_the_real_environment_beats_dotenv_and_arguments_beat_both(monkeypatch):
    Path(".env").write_text("DATABASE__POOL__SIZE=3\nDATABASE__POOL__READ_SIZE=4\nENVIRONMENT=staging\n")
    monkeypatch.setenv("DATABASE__POOL__SIZE", "8")
    settings = Settings()
    assert (settings.database.pool.size, settings.database.pool.read_size) == (8, 4)
    assert settings.environment == "staging"
    assert Settings(environment="testing").environment == "testing"
    assert Settings(_env_file=None).environment == "development"


@pytest.mark.parametrize(
    ("environment", "dotenv", "wins"),
    [
        ({"DATABASE_URL": "a"}, {}, "a"),
        ({"DATABASE_URL": "a", "DATABASE__POSTGRES_URL": "b"}, {}, "b"),
        ({}, {"DATABASE_URL": "a", "DATABASE__POSTGRES_URL": "b"}, "b"),
        ({"DATABASE_URL": "a"}, {"DATABASE__POSTGRES_URL": "b"}, "a"),
        ({"DATABASE__POSTGRES_URL": "a"}, {"DATABASE_URL": "b"}, "a"),
        ({"DATABASE_URL": "", "DATABASE__POSTGRES_URL": "b"}, {}, "b"),
        ({"DATABASE__POSTGRES_URL": "a"}, {"DATABASE__POSTGRES_URL_FILE": "/nowhere/at/all"}, "a"),
    ],
)
def test_the_layer_decides_first_and_then_the_nested_name(monkeypatch, environment, dotenv, wins):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    Path(".env").write_text("".join(f"{name}={value}\n" for name, value in dotenv.items()))
    assert Settings().database.postgres_url == wins


def test_sources_tell_where_each_value_came_from(monkeypatch, tmp_path):
    Path(".env").write_text("DATABASE__POOL__SIZE=3\nDATABASE__POOL__WAIT=1\n")
    monkeypatch.setenv("DATABASE__POOL__WAIT", "2")
    monkeypatch.setenv("DATABASE_URL_FILE", secret_file(tmp_path / "url", URL))
    sources = {name: str(source) for name, source in Settings(database={"pool": {"read_size": 2}}).sources.items()}
    assert sources["database.pool.size"] == ".env DATABASE__POOL__SIZE"
    assert sources["database.pool.wait"] == "environment DATABASE__POOL__WAIT"
    assert sources["database.pool.read_size"] == "argument"
    assert sources["database.postgres_url"] == "environment DATABASE_URL_FILE (file)"
    assert sources["environment"] == "default"


def test_settings_in_force_list_every_setting_without_secrets(monkeypatch):
    monkeypatch.setenv("DATABASE__POSTGRES_URL", URL)
    monkeypatch.setenv("DATABASE__ENCRYPTION_KEYS", f"k1:{SECRET}")
    shown = {setting.name: setting.value for setting in Settings().in_force()}
    assert shown["DATABASE__POSTGRES_URL"] == "postgresql://panda:***@db.internal:5432/panda"
    assert shown["DATABASE__ENCRYPTION_KEYS"] == "***"
    assert shown["DATABASE__VERIFY_MIGRATIONS"] == "true"
    assert shown["DATABASE__TLS__CA_FILE"] == "-"
    assert len(shown) == len(Settings().sources)
    assert SECRET not in str(shown)


def test_dotenv_with_a_byte_order_mark_quotes_and_export_is_read():
    Path(".env").write_bytes(b"\xef\xbb\xbfENVIRONMENT='testing'\nexport DATABASE__POOL__SIZE=\"3\"  # three\n")
    settings = Settings()
    assert (settings.environment, settings.database.pool.size) == ("testing", 3)


def test_an_unreadable_line_of_ours_in_dotenv_is_refused_and_a_foreign_one_is_warned_of():
    Path(".env").write_text("A=1\nDATABASE__POSTGRES_URL postgresql://u:hunter2@h/db\n")
    message = problems()
    assert message == ".env line 2 is not NAME=value"
    Path(".env").write_text("if [ x ]; then\nENVIRONMENT=testing\n")
    with pytest.warns(SettingsWarning, match=r"\.env line 1"):
        assert Settings().environment == "testing"


def test_dotenv_that_is_not_text_is_refused_and_a_folder_of_that_name_is_not():
    Path(".env").write_bytes(b"\xff\xfe\x00")
    assert ".env cannot be read" in problems()
    Path(".env").unlink()
    Path(".env").mkdir()
    assert Settings().environment == "development"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DATABASE__POSTGRES_ULR", "x", "did you mean DATABASE__POSTGRES_URL?"),
        ("DATABASE__POOL__SIZ", "1", "did you mean DATABASE__POOL__SIZE?"),
        ("DATABASE__POOOL__SIZE", "1", "did you mean DATABASE__POOL__SIZE?"),
        ("DATABASE__POSTGRES_URL__X", "1", "did you mean DATABASE__POSTGRES_URL"),
        ("DATABASE__POOL", '{"size": 1}', "set its members by name, such as DATABASE__POOL__SIZE"),
        ("DATABASE__POOL__SIZE_FILE", "/x", "did you mean DATABASE__POOL__SIZE?"),
        ("DATABASE__", "x", "is not a setting"),
        ("DATABASE", '{"postgres_url": "x"}', "holds JSON"),
        ("ENVIRONMENT", "Production", "'development', 'testing', 'staging' or 'production'"),
        ("ENVIRONMENT", "Production", "did you mean production?"),
        ("ENVIRONMENT", "prod uction ", "must be"),
        ("ENVIRONMENT", "", "is set but empty"),
        ("DATABASE__SCHEMA_MANAGEMENT", "migration_only", "did you mean migrations_only?"),
        ("DATABASE__SCHEMA_MANAGEMENT", "AUTO", "'auto', 'create_all' or 'migrations_only'"),
        ("DATABASE__SCHEMA_MANAGEMENT", "", "is set but empty"),
        ("DATABASE__VERIFY_MIGRATIONS", "maybe", "valid boolean"),
        ("DATABASE__POOL__SIZE", "ten", "valid integer"),
        ("DATABASE__POOL__SIZE", "0", "greater than or equal to 1"),
        ("DATABASE__POOL__WAIT", "nan", "finite number"),
        ("DATABASE__TLS__MODE", "full", "verify-full"),
        ("DATABASE__APPLICATION_NAME", "x" * 64, "63"),
        ("DATABASE__POSTGRES_URL", "", "is set but empty"),
        ("DATABASE_URL", "", "is set but empty"),
    ],
)
@pytest.mark.parametrize("layer", ["environment", ".env"])
def test_a_bad_setting_is_refused_by_name_in_either_layer(monkeypatch, layer, name, value, said):
    if layer == "environment":
        monkeypatch.setenv(name, value)
    else:
        Path(".env").write_text(f"{name}='{value}'\n")
    message = problems()
    assert message.startswith(f"{name} in .env " if layer == ".env" else f"{name} ")
    assert said in message
    assert len(message.splitlines()) == 1


def test_all_bad_settings_are_reported_at_once(monkeypatch):
    monkeypatch.setenv("ENVIRONMENT", "dev")
    monkeypatch.setenv("DATABASE__POOL__SIZE", "x")
    monkeypatch.setenv("DATABASE__NOPE", "x")
    assert [line.split()[0] for line in problems().splitlines()] == [
        "DATABASE__NOPE",
        "ENVIRONMENT",
        "DATABASE__POOL__SIZE",
    ]


@pytest.mark.parametrize("name", ["DATABASE_POSTGRES_URL", "DATABASE_POOL_SIZE", "DATABASE_POOL__SIZE", "ENVIROMENT"])
def test_a_look_alike_that_may_be_somebody_elses_is_warned_of(monkeypatch, name):
    monkeypatch.setenv(name, "x")
    with pytest.warns(SettingsWarning, match=f"{name} is not a setting and is not read; did you mean"):
        assert Settings().database.url_is_default


@pytest.mark.parametrize("name", ["DATABASE", "DATABASE_HOST", "DATABASES__X", "ENVIRONMENT_NAME"])
def test_foreign_variables_are_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, "x")
    Settings()


def test_unknown_arguments_are_refused():
    assert "is not a setting" in problems(databse={})
    assert "DATABASE__POOLS is not a setting" in problems(database={"pools": {}})
    with pytest.raises(ValidationError, match="schema_management"):
        DatabaseSettings(schema_management="migration_only")  # type: ignore[arg-type]


def test_assignment_is_validated():
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.environment = "Production"  # type: ignore[assignment]
    settings.database.postgres_url = URL
    assert not settings.database.url_is_default


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("DATABASE__POSTGRES_URL_FILE", "postgres_url"),
        ("DATABASE_URL_FILE", "postgres_url"),
        ("DATABASE__ENCRYPTION_KEYS_FILE", "encryption_keys"),
    ],
)
def test_a_value_may_be_the_content_of_a_file(monkeypatch, tmp_path, name, field):
    monkeypatch.setenv(name, secret_file(tmp_path / "secret", f"{SECRET} \n"))
    value = getattr(Settings().database, field)
    assert (value.get_secret_value() if isinstance(value, SecretStr) else value) == f"{SECRET} "


def test_a_setting_and_its_file_in_one_layer_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("DATABASE__POSTGRES_URL", URL)
    monkeypatch.setenv("DATABASE__POSTGRES_URL_FILE", secret_file(tmp_path / "secret", URL))
    assert problems() == "DATABASE__POSTGRES_URL and DATABASE__POSTGRES_URL_FILE are both set; remove one"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"x" * 70_000, "too large"),
        (b"\xff\xfe", "not hold UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(monkeypatch, tmp_path, content, said):
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    monkeypatch.setenv("DATABASE__POSTGRES_URL_FILE", str(path))
    message = problems()
    assert message.startswith("DATABASE__POSTGRES_URL_FILE names a file that")
    assert said in message
    assert str(path) in message


def test_a_folder_instead_of_a_file_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("DATABASE__POSTGRES_URL_FILE", str(tmp_path))
    assert "Is a directory" in problems()


@pytest.mark.parametrize("value", [URL, SECRET, f"/{SECRET}", f"/{SECRET}/x+y=", f"{SECRET}\0"])
def test_a_secret_put_where_a_path_belongs_is_not_repeated(monkeypatch, value):
    if "\0" in value:
        Path(".env").write_text(f'DATABASE__ENCRYPTION_KEYS_FILE="{value}"')
    else:
        monkeypatch.setenv("DATABASE__ENCRYPTION_KEYS_FILE", value)
    message = problems()
    assert "DATABASE__ENCRYPTION_KEYS_FILE" in message
    assert SECRET not in message


def test_a_secret_file_that_everybody_can_read_is_warned_of(monkeypatch, tmp_path):
    path = secret_file(tmp_path / "secret", URL, 0o644)
    monkeypatch.setenv("DATABASE__POSTGRES_URL_FILE", path)
    with pytest.warns(SettingsWarning, match="DATABASE__POSTGRES_URL_FILE names can be read by everybody"):
        Settings()
    Path(path).chmod(stat.S_IRUSR | stat.S_IRGRP)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Settings()


def test_attribute_access_gives_the_real_url_and_everything_else_hides_it(monkeypatch):
    monkeypatch.setenv("DATABASE__POSTGRES_URL", f"{URL}?sslmode=require&password={SECRET}&sslpassword={SECRET}")
    monkeypatch.setenv("DATABASE__ENCRYPTION_KEYS", SECRET)
    settings = Settings()
    assert SECRET in settings.database.postgres_url
    for shown in every_view(settings):
        assert SECRET not in shown
    assert "sslmode=require&password=***&sslpassword=***" in repr(settings)


def every_view(settings: Settings) -> list[str]:
    return [
        view
        for item in (settings, settings.database)
        for view in (
            repr(item),
            str(item),
            f"{item}",
            str(item.model_dump()),
            str(item.model_dump(mode="json")),
            item.model_dump_json(),
            str(list(item.__rich_repr__())),
        )
    ]


def test_the_debug_log_of_the_settings_library_shows_no_secret(monkeypatch, caplog):
    monkeypatch.setenv("PYDANTIC_SETTINGS_DEBUG", "1")
    monkeypatch.setenv("DATABASE__POSTGRES_URL", URL)
    monkeypatch.setenv("DATABASE__ENCRYPTION_KEYS", SECRET)
    with caplog.at_level(logging.DEBUG):
        Settings()
    assert "Resolving settings" in caplog.text
    assert SECRET not in caplog.text


def test_settings_survive_pickle_and_deepcopy(monkeypatch):
    monkeypatch.setenv("DATABASE__POSTGRES_URL", URL)
    settings = Settings()
    for twin in (pickle.loads(pickle.dumps(settings)), copy.deepcopy(settings), settings.model_copy(deep=True)):
        assert twin == settings
        assert twin.database.postgres_url == URL
        assert twin.sources == settings.sources
        assert not twin.database.url_is_default
    monkeypatch.delenv("DATABASE__POSTGRES_URL")
    assert pickle.loads(pickle.dumps(Settings())).database.url_is_default


def test_a_settings_error_survives_pickle():
    with pytest.raises(SettingsError) as caught:
        Settings(environment="x")  # type: ignore[arg-type]
    twin = pickle.loads(pickle.dumps(caught.value))
    assert (str(twin), twin.problems) == (str(caught.value), caught.value.problems)


# A marker of letters that occur in no other part of the URL makes a leak of any three neighbours of it visible.
ALPHABET = "\u00e9\u4e2dQZXJ"
FRAGMENTS = st.text(st.sampled_from(ALPHABET), min_size=4, max_size=10)
SPECIAL = st.sampled_from(
    ["@", ":", "/", "?", "#", "&", "=", "%", " ", "[", "]", ",", "\\", "'", '"', "@h/", ":1@", "?host="]
)
PASSWORDS = st.lists(st.one_of(FRAGMENTS, SPECIAL), min_size=1, max_size=5).map("".join)
SCHEMES = st.sampled_from(["postgresql", "postgres", "postgresql+asyncpg"])
TAILS = st.sampled_from(
    ["h/db", "db.internal:5432/panda", "a:1,b:2/d?target_session_attrs=primary", "/d?host=/run", "[::1]:5/d"]
)


def leaks(password: str, shown: str) -> bool:
    runs = "".join(letter if letter in ALPHABET else " " for letter in password).split()
    return any(run in shown or quote(run, safe="") in shown for run in runs)


@given(SCHEMES, PASSWORDS, TAILS, st.booleans())
def test_no_password_in_the_user_part_is_ever_shown(scheme, password, tail, encoded):
    url = f"{scheme}://panda:{quote(password, safe='') if encoded else password}@{tail}"
    settings = Settings(_env_file=None, database={"postgres_url": url})
    assert settings.database.postgres_url == url
    for shown in (redact_url(url), *every_view(settings)):
        assert not leaks(password, shown)


@given(
    SCHEMES, PASSWORDS, st.sampled_from(["password", "sslpassword", "passw%6Frd", "PASSWORD", "token"]), st.booleans()
)
def test_no_password_in_the_query_is_ever_shown(scheme, password, key, encoded):
    safe = password.replace("&", "").replace("?host=", "") if not encoded else quote(password, safe="")
    for base in (f"{scheme}://panda@h/db?sslmode=require", f"{scheme}://panda:x@h/db?port=1", f"{scheme}:///db?host=h"):
        assert not leaks(password, redact_url(f"{base}&{key}={safe}"))


@example("", "JJJJ:")
@example("", "JJJJ://h/d")
@given(st.text(string.printable), PASSWORDS)
def test_text_that_is_no_url_is_hidden(prefix, password):
    assert not leaks(password, redact_url(f"{prefix}{password}"))


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_no_value_is_repeated_by_an_error(value):
    marked = f"Q{value}ZXJQ"
    with pytest.raises(SettingsError) as caught:
        Settings(_env_file=None, environment=marked, database={"postgres_ulr": marked, "pool": {"size": marked}})  # type: ignore[arg-type]
    assert "ZXJQ" not in str(caught.value)
    assert "ZXJQ" not in repr(caught.value)
    with pytest.raises(ValidationError) as direct:
        DatabaseSettings(postgres_url=[marked], encryption_keys=[marked])  # type: ignore[arg-type]
    assert "ZXJQ" not in str(direct.value) + repr(direct.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p@h:5432/db", "postgresql://u:***@h:5432/db"),
        (
            "postgresql+asyncpg://u:p@a:1,b:2/db?sslmode=require",
            "postgresql+asyncpg://u:***@a:1,b:2/db?sslmode=require",
        ),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("postgresql://h/db", "postgresql://h/db"),
        ("postgresql://u:p@ss@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:p?ss@h/db", "postgresql://u:***@***"),
        ("postgresql://h/db?password=a@b", "postgresql://***@***"),
        ("postgresql://u:pass", "postgresql://***"),
        ("postgresql:///db?host=/run/pg&options=-csecret", "postgresql:///db?host=/run/pg&***"),
        ("host=h password=p", "***"),
        ("embedded:", "embedded:"),
        ("embedded:///srv/a@b", "embedded:///srv/a@b"),
        ("embedded://u:p@h/x", "embedded://u:***@h/x"),
        ("", "***"),
    ],
)
def test_urls_are_shown_like_this(url, shown):
    assert redact_url(url) == shown
