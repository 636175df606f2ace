"""The settings themselves."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_serializer,
    field_validator,
)
from pydantic.dataclasses import is_pydantic_dataclass
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from core.config.brokers import DEFAULT_BROKERS, ExpiryPolicy, parse_brokers
from core.config.options import (
    Environment,
    MonitoringOptions,
    PoolOptions,
    RetryOptions,
    SchemaManagement,
    Timeouts,
    TlsOptions,
)
from core.config.settings._errors import SettingProblem, SettingsError, flatten
from core.config.settings._read import Found, Place, Reader, Source
from core.config.settings._redact import HIDDEN, redact_url


class DatabaseSettings(BaseModel):
    """How to reach PostgreSQL and what to do with its schema.

    `postgres_url` is the real URL; `repr()` and every dump show it without its password, so a dump cannot be read back.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, validate_assignment=True)

    postgres_url: str = "postgresql+asyncpg://user:pass@localhost:5432/db"
    schema_management: SchemaManagement = "auto"
    verify_migrations: bool = True
    pool: PoolOptions = Field(default_factory=PoolOptions)
    timeouts: Timeouts = Field(default_factory=Timeouts)
    tls: TlsOptions = Field(default_factory=TlsOptions)
    retry: RetryOptions = Field(default_factory=RetryOptions)
    monitoring: MonitoringOptions = Field(default_factory=MonitoringOptions)
    pgbouncer: bool = False
    """Whether the URL leads to a PgBouncer in transaction mode."""
    application_name: Annotated[str, Field(min_length=1, max_length=63)] = "alpha-panda"
    """What pg_stat_activity shows."""
    encryption_keys: SecretStr | None = None
    """Keys that seal broker credentials, the first of them for new envelopes."""

    @property
    def url_is_default(self) -> bool:
        """Whether nobody set the URL: the default only shows its form, and leads nowhere."""
        return "postgres_url" not in self.model_fields_set

    @field_serializer("postgres_url")
    def _without_password(self, url: str) -> str:
        return redact_url(url)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, redact_url(self.postgres_url) if name == "postgres_url" else value


class TradingSettings(BaseModel):
    """What the trading rooms are told of this installation."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, validate_assignment=True)

    brokers: str = DEFAULT_BROKERS
    """The brokers that there are, and when a login with each ends, as `config.brokers` reads it."""
    strategy_rules: str | None = None
    """`module:attribute`: the StrategyRules of the application, by which `panda strategy` judges what it writes."""

    @field_validator("brokers")
    @classmethod
    def _readable(cls, text: str) -> str:
        parse_brokers(text)
        return text

    @property
    def broker_policies(self) -> Mapping[str, ExpiryPolicy]:
        """`brokers`, read."""
        return parse_brokers(self.brokers)


class SettingInForce(NamedTuple):
    """A setting as it may be shown: its name in the environment, its value without secrets, where that came from."""

    name: str
    value: str
    source: Source


class Settings(BaseSettings):
    """All settings: from arguments, else the environment, else `.env` in the working directory, else the defaults.

    `SettingsError` lists everything that is wrong at once. A value may also come from a file: DATABASE__POSTGRES_URL_FILE,
    DATABASE__ENCRYPTION_KEYS_FILE. DATABASE_URL is taken when the same layer has no DATABASE__POSTGRES_URL.
    """

    model_config = SettingsConfigDict(extra="forbid", hide_input_in_errors=True, validate_assignment=True)

    environment: Environment = "development"
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    trading: TradingSettings = Field(default_factory=TradingSettings)

    _sources: dict[Place, Source] = PrivateAttr(default_factory=dict[Place, Source])

    def __init__(self, *, _env_file: str | Path | None = ".env", **values: Any) -> None:
        known = setting_names(type(self).model_fields)
        reader = Reader(known)
        found = reader.read(Path(_env_file) if _env_file is not None else None)
        problems = list(reader.problems)
        layers = (InitSettingsSource(type(self), values), _FoundValues(type(self), found))
        try:
            super().__init__(_build_sources=(layers, values))
        except ValidationError as error:
            problems += [_problem(place, message, found) for place, message in flatten(error)]
        if problems:  # outside the handler: a chained ValidationError would still hold the values
            raise SettingsError(problems)
        given = _given(values)
        self._sources = {
            place: Source("argument")
            if place in given
            else found[place].source
            if place in found
            else Source("default")
            for place in known.values()
        }

    @property
    def sources(self) -> Mapping[str, Source]:
        """Where each value came from when the settings were made, by its dotted name: `database.pool.size`."""
        return {".".join(place): source for place, source in self._sources.items()}

    def in_force(self) -> tuple[SettingInForce, ...]:
        """Every setting with its value as it may be shown, and its source."""
        return tuple(
            SettingInForce(name, _show(self, place), self._sources.get(place, Source("default")))
            for name, place in setting_names(type(self).model_fields).items()
        )


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The process's settings, read once; `get_settings.cache_clear()` reads them anew. Raises `SettingsError`."""
    return Settings()


def setting_names(fields: Mapping[str, FieldInfo], place: Place = ()) -> dict[str, Place]:
    """The place of every single setting by its name in the environment: DATABASE__POOL__SIZE."""
    names: dict[str, Place] = {}
    for name, field in fields.items():
        here, kind = (*place, name), cast("Any", field.annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names |= setting_names(kind.model_fields, here)
        elif isinstance(kind, type) and is_pydantic_dataclass(kind):
            names |= setting_names(kind.__pydantic_fields__, here)
        else:
            names["__".join(here).upper()] = here
    return names


class _Quiet(str):
    """A value on its way into the model; a library's debug log shows the repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return HIDDEN


class _FoundValues(PydanticBaseSettingsSource):
    """What the reader found, as the nested values that pydantic-settings merges."""

    def __init__(self, settings_cls: type[BaseSettings], found: Mapping[Place, Found]) -> None:
        super().__init__(settings_cls)
        self._found = found

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self().get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        nested: dict[str, Any] = {}
        for place, item in self._found.items():
            level = nested
            for part in place[:-1]:
                level = level.setdefault(part, {})
            level[place[-1]] = _Quiet(item.value)
        return nested


def _problem(place: Place, message: str, found: Mapping[Place, Found]) -> SettingProblem:
    source = found[place].source if place in found else None
    if source is None:
        return SettingProblem("__".join(place).upper(), message)
    return SettingProblem(source.name, message, ".env" if source.kind == ".env" else "")


def _given(values: Mapping[str, Any], place: Place = ()) -> set[Place]:
    """The places of the settings that were passed as arguments, as mappings or as models."""
    places: set[Place] = set()
    for name, value in values.items():
        here, kind = (*place, name), cast("type[Any]", type(value))
        if isinstance(value, BaseModel):
            places |= _given({field: getattr(value, field) for field in value.model_fields_set}, here)
        elif isinstance(value, Mapping):
            places |= _given(cast("Mapping[str, Any]", value), here)
        elif is_pydantic_dataclass(kind):
            places |= {(*here, field) for field in kind.__pydantic_fields__}
        else:
            places.add(here)
    return places


def _show(settings: Settings, place: Place) -> str:
    value: Any = settings
    for part in place:
        value = getattr(value, part)
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, SecretStr):
        return HIDDEN
    return redact_url(value) if place[-1] == "postgres_url" else str(value)
