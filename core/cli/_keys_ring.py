"""The key ring of the settings."""

from typing import TYPE_CHECKING

from core.cli._failure import USAGE, CommandError

if TYPE_CHECKING:
    from core.config.settings import Settings
    from core.database.encryption import KeyRing

SETTING = "DATABASE__ENCRYPTION_KEYS"


def ring_of(settings: "Settings") -> "KeyRing":
    """Raises CommandError where no key is configured, and `InvalidKey` for what is none."""
    from core.database.encryption import KeyRing

    keys = settings.database.encryption_keys
    if keys is None or not keys.get_secret_value().strip():
        raise CommandError(
            "no encryption key is configured",
            hint=f"`panda keys generate --file keys` makes one; then {SETTING}_FILE=keys, or {SETTING}=id:key.",
            code=USAGE,
        )
    return KeyRing.parse(keys.get_secret_value())
