"""Settings from the environment, `.env` and secret files. Only the doors (`core.cli`, `core.demo`) read them.

    ENVIRONMENT=production
    DATABASE__POSTGRES_URL=postgresql://panda:...@db.internal/panda
    DATABASE__SCHEMA_MANAGEMENT=migrations_only
    DATABASE__POOL__SIZE=20

Precedence, highest first: arguments of `Settings(...)`, the real environment, `.env` in the working directory, the
defaults. Within one layer DATABASE__POSTGRES_URL beats DATABASE_URL. Names are read in any case; modes must be spelled
exactly. An unknown name in the DATABASE__ group is refused, whichever layer it stands in. In `.env`, `${NAME}` is replaced
by that variable's value.
"""

from core.config.settings._errors import SettingProblem, SettingsError, SettingsWarning
from core.config.settings._model import DatabaseSettings, SettingInForce, Settings, TradingSettings, get_settings
from core.config.settings._read import Source
from core.config.settings._redact import redact_url

__all__ = [
    "DatabaseSettings",
    "SettingInForce",
    "SettingProblem",
    "Settings",
    "SettingsError",
    "SettingsWarning",
    "Source",
    "TradingSettings",
    "get_settings",
    "redact_url",
]
